"""What every backbone gives and promises: `Features`, `AttentionMap`, `Backbone`.

Heads, fusions and metrics are written against this file alone; they never look inside a model.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from regard.errors import InputError

# RGB in [0, 1]. Images come normalised by these; weights that were trained with others say so (`Backbone.statistics`).
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel, RGB in [0, 1]
Kind = Literal["cls", "pooled"]


@dataclass(frozen=True)
class AttentionMap:
    """Where the heads of one block look.

    weights:  >= 0; each head sums to 1 over its grid. float32, differentiable.
    kind:     how the map was read. `cls`: the CLS token's query against every patch. `pooled`: the mean of
              the queries, as the block uses them, against every position of the grid. That is the mean token's query
              where queries are linear in the tokens; in SwinV2, and wherever a block normalises or rotates its queries,
              it is the mean of those. In a ViT without CLS the mean is over all tokens, registers too.
              Tables never mix kinds.
    affinity: token to token, rows are queries and sum to 1 over the grid (n = h * w, row-major); only when asked for.
              In a window transformer it is zero between tokens of different windows.
    """

    weights: Float[Tensor, "batch heads h w"]
    kind: Kind
    affinity: Float[Tensor, "batch heads n n"] | None = None


@dataclass(frozen=True)
class Features:
    """What a backbone gives for a batch of images.

    pyramid:   one map per level, finest first; level i is (batch, channels[i], ceil(H / strides[i]), ceil(W / ...)).
    attention: one map per level on the same grid; empty unless asked for, and always empty for a convnet.
    pooled:    one vector per image, as the model pools for classification (CLS token, mean, attention pooling).
    """

    pyramid: tuple[Float[Tensor, "batch _ _ _"], ...]
    attention: tuple[AttentionMap, ...]
    pooled: Float[Tensor, "batch dim"]


class Backbone(nn.Module, ABC):
    """An image encoder: (batch, 3, H, W) float images, ImageNet-normalised -> `Features`.

    name:     timm's name of the model; options: what it was built with besides.
    channels: channels of each pyramid level, finest first.
    strides:  image pixels per position, per level.
    heads:    attention heads per level; empty where there is no attention to read.
    kind:     how its attention is read; None where there is none.
    dim:      length of the pooled vector.
    multiple: images are padded (zeros, at the right and the bottom) to a multiple of this, and all outputs cropped
              back to the image.
    statistics: mean and std that the weights were trained with; None where they are ImageNet's. Callers need not care:
              images come ImageNet-normalised, and `pad` brings them to these.
    """

    name: str
    options: dict[str, Any]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    heads: tuple[int, ...]
    kind: Kind | None
    dim: int
    multiple: int
    statistics: Statistics | None = None
    model: Any  # timm's; its parts are its own business, so they are not typed here

    @abstractmethod
    def forward(
        self, images: Float[Tensor, "batch 3 height width"], attention: bool = False, affinity: bool = False
    ) -> Features:
        """Features of a batch; with their attention maps, and the maps' affinity, only when asked for."""

    def grid(self, height: int, width: int, level: int) -> tuple[int, int]:
        """Height and width of a pyramid level for an image of this size: ceil(size / stride)."""
        return -(-height // self.strides[level]), -(-width // self.strides[level])

    def pad(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Images as the weights expect them: normalised by `self.statistics`, then zeros (the mean colour) up to the
        next multiple of `self.multiple`.
        """
        if self.statistics is not None:
            ours = (images.new_tensor(value).view(-1, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
            theirs = (images.new_tensor(value).view(-1, 1, 1) for value in self.statistics)
            (mean, std), (their_mean, their_std) = ours, theirs
            images = (images * std + mean - their_mean) / their_std
        height, width = images.shape[-2:]
        return F.pad(images, (0, -width % self.multiple, 0, -height % self.multiple))

    def refuse_checkpointing(self, what: str) -> None:
        """InputError when gradient checkpointing is on and gradients are wanted: it would run blocks again in the
        backward pass, without the state that `what` needs.
        """
        on = any(getattr(module, "grad_checkpointing", False) for module in self.model.modules())
        if on and torch.is_grad_enabled():
            raise InputError(
                f"{self.name} with gradient checkpointing cannot give gradients with {what}; "
                "switch it off: backbone.model.set_grad_checkpointing(False)"
            )


def normalize(images: UInt8[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch 3 h w"]:
    """RGB bytes as a backbone takes them: float32, minus the ImageNet mean, over the ImageNet standard deviation."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(3, 1, 1) * 255
    std = torch.tensor(IMAGENET_STD, device=images.device).view(3, 1, 1) * 255
    return (images.float() - mean) / std


def crop(maps: Float[Tensor, "*lead h w"], grid: tuple[int, int]) -> Float[Tensor, "*lead h2 w2"]:
    """The top left corner of a map: undoes the padding of its image."""
    return maps[..., : grid[0], : grid[1]]
