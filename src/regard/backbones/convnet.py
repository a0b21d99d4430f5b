"""Any timm model with stages and without readable attention: ResNet, ConvNeXt, EfficientNet and kin."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from regard.backbones.base import Backbone, Features, Kind, crop, eval_mode
from regard.errors import InputError

LEVELS = 4  # strides 4, 8, 16 and 32 in nearly every convnet


class ConvNet(Backbone):
    """A pyramid of the last four stages (the stem, where timm counts it as one, is left out); `pooled` is the model's
    own pooling. It has no attention maps: asking for them is an InputError, which names a block whose attention is of
    another kind than those that are read (PVT's, SAM's).

    Images are padded to the coarsest stride only where a network drops the rows that a stride leaves over (ConvNeXt,
    DenseNet, VGG) or cannot take them (HRNet, DLA): strided convolutions with padding (ResNet, EfficientNet, RegNet)
    give ceil(size / stride) of themselves, and padding would change their last stage far into the image.
    """

    def __init__(self, model: Any, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name
        stages = list(model.feature_info)
        self.indices = list(range(len(stages)))[-LEVELS:]
        self.channels = tuple(stages[i]["num_chs"] for i in self.indices)
        self.strides = tuple(stages[i]["reduction"] for i in self.indices)
        self.multiple = max(self.strides) if self._drops_rows() else 1
        self.dim = model.head_hidden_size

    @torch.no_grad()
    def _drops_rows(self) -> bool:
        """Whether one stage or another gives fewer rows than ceil(size / stride) of an image of a pixel too many."""
        side, weight = max(self.strides) + 1, next(self.model.parameters())  # one row is over at each stage
        image = torch.zeros(1, 3, side, side, device=weight.device, dtype=weight.dtype)
        try:
            with eval_mode(self.model):
                _, pyramid = self.model.forward_intermediates(image, indices=self.indices)
        except (RuntimeError, ValueError, AssertionError):  # of networks that cannot take it, each raises its own
            return True
        return any(tuple(x.shape[-2:]) != self.grid(side, side, i) for i, x in enumerate(pyramid))

    def forward(
        self,
        images: Float[Tensor, "batch 3 height width"],
        attention: bool | Kind = False,
        affinity: bool = False,
        blocks: Sequence[int] | None = None,
    ) -> Features:
        """As `Backbone.forward`; InputError when attention is asked for."""
        if attention or affinity:
            modules = self.model.named_modules()
            unread = [f"{name} ({type(m).__name__})" for name, m in modules if "Attention" in type(m).__name__]
            reason = f" (that of {unread[0]} is of a kind that is not read)" if unread else ""
            raise InputError(f"{self.name} has no attention maps{reason}: use a ViT or a Swin, or fusion none")
        height, width = images.shape[-2:]
        with self._exact(images):
            last, pyramid = self.model.forward_intermediates(self.pad(images), indices=self.indices)
        grids = [self.grid(height, width, level) for level in range(len(self.strides))]
        return Features(
            pyramid=tuple(crop(level, grid) for level, grid in zip(pyramid, grids, strict=True)),
            attention=(),
            pooled=self.model.forward_head(crop(last, grids[-1]), pre_logits=True),
        )

    def _exact(self, images: Float[Tensor, "batch 3 height width"]) -> AbstractContextManager[Any]:
        """float32 on a CPU where a stage would see a single column: of a strided convolution over one, oneDNN leaves
        the gradient of bfloat16 weights that meet nothing but padding as memory was (seen in torch 2.14).
        """
        if images.device.type == "cpu" and images.shape[-1] <= max(self.strides) // 2:
            return torch.autocast("cpu", enabled=False)
        return nullcontext()
