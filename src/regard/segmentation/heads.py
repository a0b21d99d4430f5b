"""Segmentation heads: a pyramid -> class logits on its finest grid. They know nothing of attention or backbones."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from torch import Tensor, nn

from regard.errors import InputError, unknown

Logits = Float[Tensor, "batch classes h w"]


class LinearHead(nn.Module):
    """A linear classifier on every position: all levels resampled to the finest grid, concatenated, batch-normalised.

    The norm without parameters makes it fair between backbones whose features differ in scale (as in DINOv2's linear
    segmentation, which normalises likewise).
    """

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(sum(channels), affine=False)
        self.classify = nn.Conv2d(sum(channels), classes, kernel_size=1)

    def forward(self, pyramid: tuple[Tensor, ...]) -> Logits:
        """Logits on the finest grid."""
        size = pyramid[0].shape[-2:]
        levels = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in pyramid]
        return self.classify(self.norm(torch.cat(levels, dim=1)))


class SegFormerHead(nn.Module):
    """The all-MLP decoder of SegFormer (Xie et al. 2021, section 3.2), from segmentation-models-pytorch.

    Its output is on the finest grid of the pyramid, which for a ViT is its patch grid.
    """

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], classes: int, width: int = 256) -> None:
        super().__init__()
        if len(channels) < 3:  # the library's limit
            raise InputError(
                f"head segformer needs a pyramid of 3 levels, and this backbone has {len(channels)}: use linear"
            )
        self.decoder = SegformerDecoder([3, *channels], encoder_depth=len(channels), segmentation_channels=width)
        self.dropout = nn.Dropout2d(0.1)
        self.classify = nn.Conv2d(width, classes, kernel_size=1)

    def forward(self, pyramid: tuple[Tensor, ...]) -> Logits:
        """Logits on the finest grid."""
        height, width = pyramid[0].shape[-2:]
        # the decoder reads no pixel of the image, only its size, a quarter of which it takes as the finest grid
        image = pyramid[0].new_empty(()).expand(1, 3, 4 * height, 4 * width)
        return self.classify(self.dropout(self.decoder([image, *pyramid])))


HEADS: dict[str, Callable[..., nn.Module]] = {"linear": LinearHead, "segformer": SegFormerHead}


def build_head(
    name: str, channels: tuple[int, ...], strides: tuple[int, ...], classes: int, **options: int
) -> nn.Module:
    """A head for a pyramid of these channels and strides; InputError for an unknown name."""
    if name not in HEADS:
        raise unknown("head", name, HEADS)
    return HEADS[name](channels, strides, classes, **options)
