"""Any timm model with stages and without readable attention: ResNet, ConvNeXt, EfficientNet and kin."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from regard.backbones.base import Backbone, Features, Kind, crop
from regard.errors import InputError

LEVELS = 4  # strides 4, 8, 16 and 32 in nearly every convnet


class ConvNet(Backbone):
    """A pyramid of the last four stages (the stem, where timm counts it as one, is left out); `pooled` is the model's
    own pooling. It has no attention maps: asking for them is an InputError, which names a block whose attention is of
    another kind than those that are read (PVT's, SAM's).
    Images are padded to the coarsest stride: some convnets (ConvNeXt) drop the rows that a stride leaves over.
    """

    def __init__(self, model: Any, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name
        stages = list(model.feature_info)
        self.indices = list(range(len(stages)))[-LEVELS:]
        self.channels = tuple(stages[i]["num_chs"] for i in self.indices)
        self.strides = tuple(stages[i]["reduction"] for i in self.indices)
        self.multiple = max(self.strides)
        self.dim = model.head_hidden_size

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
        last, pyramid = self.model.forward_intermediates(self.pad(images), indices=self.indices)
        grids = [self.grid(height, width, level) for level in range(len(self.strides))]
        return Features(
            pyramid=tuple(crop(level, grid) for level, grid in zip(pyramid, grids, strict=True)),
            attention=(),
            pooled=self.model.forward_head(crop(last, grids[-1]), pre_logits=True),
        )
