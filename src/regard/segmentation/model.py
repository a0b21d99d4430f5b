"""A backbone, a fusion, a head and a refiner: from images to logits."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.backbones import AttentionMap, Backbone, Features, eval_mode, normalize, to_bytes
from regard.errors import InputError
from regard.segmentation.fusions import build_fusion, seen
from regard.segmentation.heads import build_head
from regard.segmentation.refiners import build_refiner


class SegmentationModel(nn.Module):
    """features = backbone(images); logits = refiner(head(fusion(features)), features), at the images' own size. A head
    that wants maps gets them beside.

    freeze: the backbone gets no gradient and stays in evaluation mode, so that its batch statistics stay put.
    kept:   the attention heads that the fusion sees, of each level; None: all: see `build_fusion`.
    maps:   what fusion, head and refiner see of them: "position" for the control, see `Fusion`.

    Raises InputError for parts that do not go together.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        fusion: str = "none",
        head: str = "segformer",
        freeze: bool = False,
        kept: Sequence[Sequence[int]] | None = None,
        head_options: Mapping[str, int | bool] = {},
        maps: Literal["own", "position", "other"] = "own",
        refiner: str = "none",
    ) -> None:
        super().__init__()
        self.backbone, self.freeze = backbone, freeze
        # the head first, the refiner last: with one seed, head and fusion then start the same whatever the others are
        self.head = build_head(head, backbone.channels, backbone.strides, classes, head_options, backbone.heads)
        self.fusion = build_fusion(fusion, backbone, self.head.levels, kept, maps)
        self.refiner = build_refiner(refiner, classes, backbone, maps)
        self.attention = self.fusion.attention or self.head.attention or self.refiner.attention
        self.affinity = self.fusion.affinity or self.refiner.affinity
        if maps != "own" and not self.attention:
            raise InputError(f"fusion {fusion} sees no maps: leave out maps {maps}, or take another fusion")
        if freeze:  # eval at once: Lightning keeps each module's mode and does not call train() before it fits
            backbone.requires_grad_(False).eval()

    def forward(
        self, images: Float[Tensor, "batch planes height width"]
    ) -> Float[Tensor, "batch classes height width"]:
        """Logits of normalised images of any size; with maps of others, of `planes` 6: the others' stand behind."""
        return self.decode(self.features(images), (images.shape[-2], images.shape[-1]))

    @property
    def planes(self) -> int:
        """Of an image: 3, or 6 where the maps are another image's."""
        return 6 if self.fusion.maps == "other" else 3

    def features(self, images: Float[Tensor, "batch planes height width"], attention: bool = False) -> Features:
        """The backbone's features, with attention maps where fusion, head or refiner need them, or asked for."""
        asked = {"attention": self.attention or attention, "affinity": self.affinity}
        own, *other = images.split(3, dim=1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            found = self.backbone(own, **asked)
            if other:
                found = replace(found, attention=self.backbone(other[0], **asked).attention)
        return replace(found, image=own) if self.refiner.image else found

    def to_tensors(self, features: Features) -> list[Tensor]:
        """What `decode` needs of features, as a flat list, for a cache: levels, maps, their affinities, and the images
        as bytes.
        """
        tensors = list(features.pyramid)
        if self.attention:
            tensors += [found.weights for found in features.attention]
        if self.affinity:
            tensors += [found.affinity for found in features.attention if found.affinity is not None]
        return tensors if features.image is None else [*tensors, to_bytes(features.image)]

    def from_tensors(self, tensors: list[Tensor]) -> Features:
        """The features that `to_tensors` took apart, but for their pooled vector, which no head reads."""
        levels, kind, image = len(self.backbone.channels), self.backbone.kind, None
        if self.refiner.image:
            *tensors, stored = tensors
            image = normalize(stored)
        pyramid, rest = tuple(tensors[:levels]), tensors[levels:]
        weights, affinities = rest[:levels], rest[levels:] or [None] * levels
        maps = ()
        if self.attention and kind is not None:
            maps = tuple(AttentionMap(w, kind, a) for w, a in zip(weights, affinities, strict=True))
        return Features(pyramid, maps, pyramid[0].new_zeros(len(pyramid[0]), self.backbone.dim), image)

    def decode(
        self, features: Features, size: tuple[int, int], read: Any = None
    ) -> Float[Tensor, "batch classes height width"]:
        """Logits at this (height, width). read: what the refiner reads of the features, where it has done so."""
        read = self.refiner.read(features) if read is None else read
        pyramid = self.fusion(features)
        logits = self.head(pyramid, seen(features, self.fusion.maps)) if self.head.attention else self.head(pyramid)
        return self.refiner(logits, read, size)

    def train(self, mode: bool = True) -> "SegmentationModel":
        """Training mode for what trains."""
        super().train(mode)
        if self.freeze:
            self.backbone.eval()
        return self


def has_unused(model: SegmentationModel) -> bool:
    """Whether the logits do not depend on some of the parameters that train, such as a last norm for classifying."""
    trained = [p for p in model.parameters() if p.requires_grad]
    side = 2 * max(model.backbone.strides)
    images = torch.zeros(1, model.planes, *model.backbone.padded_size(side, side), device=trained[0].device)
    with eval_mode(model), torch.enable_grad():
        gradients = torch.autograd.grad(model(images).float().sum(), trained, allow_unused=True)
    return any(gradient is None for gradient in gradients)
