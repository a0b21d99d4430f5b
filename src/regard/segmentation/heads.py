"""Segmentation heads: a pyramid -> class logits on some grid. They know nothing of backbones, nor of attention, unless
one declares that it wants maps.

A pyramid is of one of two kinds: stages, whose strides double from level to level (Swin, convnets), or the levels of a
ViT, which share one stride. Heads that were written for stages give a ViT's levels different sizes first (`Neck`).
Decoders are those of segmentation-models-pytorch where it has one. No size needs to divide by a stride: a map is
resampled to the very size of the map that it joins.
"""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn

from regard.errors import InputError, unknown
from regard.settings import HEADS, check_number, find

Pyramid = tuple[Float[Tensor, "batch _ _ _"], ...]  # finest first
Logits = Float[Tensor, "batch classes h w"]

MOST = {"width": 2048, "layers": 12}  # of a head: four times those that are published


class Head(nn.Module):
    """A pyramid of these channels and strides -> logits of so many classes, which the model resamples to the image.

    levels: the levels that it reads, from 0. What the others hold changes nothing and gets no gradient.
    attention: whether it also takes the backbone's maps; scalars: names of the parameters that weigh these, and learn
               at a rate of their own (`SegmentSettings.fusion_lr`).
    """

    levels: tuple[int, ...]
    attention = False
    scalars: tuple[str, ...] = ()

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.levels = tuple(range(len(channels)))


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that takes its running statistics where a batch has one value a channel.

    One value has no variance, and torch raises. It happens in training on one image wherever a map is pooled to a
    single position (the image pooling of DeepLabV3+ and UPerNet), or is one because the image is small.
    """

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The input, normalised."""
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


class AdaptiveMean(nn.Module):
    """Means over a grid of cells x cells, as `nn.AdaptiveAvgPool2d`, by two matrix products.

    ONNX has no such pooling. Torch's exporter writes the windows of the example's size in its place, and the model then
    answers wrongly, without a word, at any other.
    """

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c cells cells"]:
        """The means."""
        return self._shares(x.shape[-2], x) @ x @ self._shares(x.shape[-1], x).T

    def _shares(self, length: int | torch.SymInt, like: Tensor) -> Float[Tensor, "cells length"]:
        """What each position counts in each cell. A position on a border of cells is in both."""
        cell = torch.arange(self.cells, device=like.device).unsqueeze(1)
        position = torch.arange(length, device=like.device)
        start, end = cell * length // self.cells, ((cell + 1) * length + self.cells - 1) // self.cells
        inside = ((position >= start) & (position < end)).to(like.dtype)
        return inside / inside.sum(dim=1, keepdim=True)


class Neck(nn.Module):
    """Gives the levels of a ViT, which share one stride, different sizes; passes stages on as they are.

    octaves: how often each level's grid is doubled, by transposed convolutions; a negative one is halved, by maximum.
    As BEiT feeds UPerNet (Bao et al. 2022, https://arxiv.org/abs/2106.08254).
    """

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], octaves: tuple[int, ...]) -> None:
        super().__init__()
        flat = len(set(strides)) == 1
        self.levels = nn.ModuleList(_resample(c, o if flat else 0) for c, o in zip(channels, octaves, strict=True))

    def forward(self, pyramid: Pyramid) -> Pyramid:
        """The pyramid, each level at its own size."""
        return tuple(level(x) for level, x in zip(self.levels, pyramid, strict=True))


OCTAVES = (2, 1, 0, -1)  # stride s -> s/4, s/2, s, 2s; a shorter pyramid takes the last of them


def _resample(channels: int, octaves: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(-octaves):  # the padding keeps an odd row and column, as ceil_mode does, which no export can free
        layers += [nn.ConstantPad2d((0, 1, 0, 1), -math.inf), nn.MaxPool2d(2)]
    for left in reversed(range(octaves)):
        layers.append(nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2, bias=left == 0))
        if left:
            layers += [BatchNorm(channels), nn.GELU()]
    return nn.Sequential(*layers)


class LinearHead(Head):
    """A linear classifier on every position: all levels resampled to the finest grid, concatenated, batch-normalised.

    The norm without parameters makes it fair between backbones whose features differ in scale (as in DINOv2's linear
    segmentation, which normalises likewise).
    """

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], classes: int) -> None:
        super().__init__(channels, strides, classes)
        self.norm = BatchNorm(sum(channels), affine=False)
        self.classify = nn.Conv2d(sum(channels), classes, kernel_size=1)

    def columns(self, pyramid: Pyramid) -> Float[Tensor, "batch columns h w"]:
        """What it classifies, before it is normalised."""
        size = pyramid[0].shape[-2:]
        return torch.cat([F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in pyramid], dim=1)

    def forward(self, pyramid: Pyramid) -> Logits:
        """Logits on the finest grid."""
        return self.classify(self.norm(self.columns(pyramid)))


class RidgeHead(LinearHead):
    """A linear classifier whose weights are solved in closed form, not trained: see `runs.solving`."""

    @torch.no_grad()
    def set_linear(
        self,
        slopes: Float[Tensor, "columns classes"],
        intercept: Float[Tensor, "classes"],
        mean: Float[Tensor, "columns"],
        deviation: Float[Tensor, "columns"],
    ) -> None:
        """Answer x to intercept + x slopes. mean, deviation: of columns, which are normalised by them for rounding."""
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        self.norm.running_mean.copy_(mean)
        self.norm.running_var.copy_(deviation.square())
        scale = (deviation.double().square() + self.norm.eps).sqrt()
        self.classify.weight.copy_((slopes.double() * scale[:, None]).T[..., None, None])
        assert self.classify.bias is not None
        self.classify.bias.copy_(intercept.double() + mean.double() @ slopes.double())


class FCNHead(Head):
    """The last level through one 3 x 3 convolution, then a classifier (Long et al. 2015, as FCN-32s is built today).

    Finer levels do not refine it: enough for a ViT, and a baseline for stages.
    """

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], classes: int, width: int = 256) -> None:
        super().__init__(channels, strides, classes)
        self.levels = (len(channels) - 1,)
        self.conv = _conv(channels[-1], width)
        self.dropout = nn.Dropout2d(0.1)
        self.classify = nn.Conv2d(width, classes, kernel_size=1)

    def forward(self, pyramid: Pyramid) -> Logits:
        """Logits on the last grid."""
        return self.classify(self.dropout(self.conv(pyramid[-1])))


class SETRPUPHead(Head):
    """Progressive upsampling of the last level (SETR-PUP; Zheng et al. 2021, https://arxiv.org/abs/2012.15840).

    Four times a 3 x 3 convolution, and the grid doubled; where the level's stride is below 16, the first convolutions
    keep its grid, so that the logits are never on a finer grid than the image (a departure; the paper's stride is 16).
    """

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], classes: int, width: int = 256) -> None:
        super().__init__(channels, strides, classes)
        self.levels = (len(channels) - 1,)
        self.doublings = min(4, int(math.log2(strides[-1])))
        self.convs = nn.ModuleList(_conv(c, width) for c in (channels[-1], width, width, width))
        self.classify = nn.Conv2d(width, classes, kernel_size=1)

    def forward(self, pyramid: Pyramid) -> Logits:
        """Logits on a grid up to 16 times as fine as the last."""
        x = pyramid[-1]
        for left, conv in zip(reversed(range(4)), self.convs, strict=True):
            x = conv(x)
            if left < self.doublings:
                size = (2 * x.shape[-2], 2 * x.shape[-1])
                x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return self.classify(x)


class UNetHead(Head):
    """The decoder of U-Net (Ronneberger et al. 2015) up to the finest level, from segmentation-models-pytorch.

    width: channels after the first of its steps; each further step has half of it.
    """

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], classes: int, width: int = 256) -> None:
        super().__init__(channels, strides, classes)
        _require_levels("unet", channels, 2)
        self.neck = Neck(channels, strides, OCTAVES[-len(channels) :])
        widths = [max(1, width >> step) for step in range(len(channels) - 1)]
        self.decoder = UnetDecoder([3, *channels], widths, n_blocks=len(widths))
        _adapt(self.decoder)
        self.classify = nn.Conv2d(widths[-1], classes, kernel_size=1)

    def forward(self, pyramid: Pyramid) -> Logits:
        """Logits on the finest grid, of a ViT on one of four times its grid's size."""
        levels = self.neck(pyramid)
        return self.classify(self.decoder([levels[0], *levels]))  # the first stands for the image, which is not read


class SegFormerHead(Head):
    """The all-MLP decoder of SegFormer (Xie et al. 2021, section 3.2), from segmentation-models-pytorch.

    Its output is on the finest grid of the pyramid, which for a ViT is its patch grid.
    """

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], classes: int, width: int = 256) -> None:
        super().__init__(channels, strides, classes)
        _require_levels("segformer", channels, 3)  # the library's limit
        self.decoder = SegformerDecoder([3, *channels], encoder_depth=len(channels), segmentation_channels=width)
        _adapt(self.decoder)
        self.dropout = nn.Dropout2d(0.1)
        self.classify = nn.Conv2d(width, classes, kernel_size=1)

    def forward(self, pyramid: Pyramid) -> Logits:
        """Logits on the finest grid."""
        height, width = pyramid[0].shape[-2:]
        # the decoder reads no pixel of the image, only its size, a quarter of which it takes as the finest grid
        image = pyramid[0].new_empty(()).expand(1, 3, 4 * height, 4 * width)
        return self.classify(self.dropout(self.decoder([image, *pyramid])))


class UPerNetHead(Head):
    """UPerNet (Xiao et al. 2018, https://arxiv.org/abs/1807.10221), from segmentation-models-pytorch.

    Its pyramid pooling is done by `AdaptiveMean`, which equals the library's but for rounding.
    """

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], classes: int, width: int = 256) -> None:
        super().__init__(channels, strides, classes)
        _require_levels("upernet", channels, 2)  # the library's limit
        self.neck = Neck(channels, strides, OCTAVES[-len(channels) :])
        self.decoder = UPerNetDecoder([3, 0, *channels], encoder_depth=len(channels) + 1, decoder_channels=width)
        _adapt(self.decoder)
        self.dropout = nn.Dropout2d(0.1)
        self.classify = nn.Conv2d(width, classes, kernel_size=1)

    def forward(self, pyramid: Pyramid) -> Logits:
        """Logits on the finest grid, of a ViT on one of four times its grid's size."""
        levels = self.neck(pyramid)
        # it skips two levels, of strides 1 and 2
        return self.classify(self.dropout(self.decoder([levels[0], levels[0], *levels])))


class DeepLabV3PlusHead(Head):
    """DeepLabV3+ (Chen et al. 2018, https://arxiv.org/abs/1802.02611), from segmentation-models-pytorch.

    It reads the first and the last level. The paper's encoder has strides 4 and 16, a ViT of stride 16 is given the
    same (`Neck`); a backbone of stages keeps its own, most often 32. Rates of the atrous convolutions are 96, 192 and
    288 pixels of the image, which are the paper's at both of its strides: 6, 12, 18 at 16, and 12, 24, 36 at 8.
    """

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], classes: int, width: int = 256) -> None:
        super().__init__(channels, strides, classes)
        _require_levels("deeplabv3plus", channels, 2)
        self.levels = (0, len(channels) - 1)
        read, at = (channels[0], channels[-1]), (strides[0], strides[-1])
        self.neck = Neck(read, at, (2, 0))
        self.decoder = DeepLabV3PlusDecoder(
            (3, 0, *read),
            encoder_depth=3,
            out_channels=width,
            atrous_rates=[max(1, round(pixels / strides[-1])) for pixels in (96, 192, 288)],
            output_stride=16,
            aspp_separable=True,
            aspp_dropout=0.5,
        )
        _adapt(self.decoder)
        self.classify = nn.Conv2d(width, classes, kernel_size=1)

    def forward(self, pyramid: Pyramid) -> Logits:
        """Logits on the finest grid, of a ViT on one of four times its grid's size."""
        fine, coarse = self.neck((pyramid[0], pyramid[-1]))
        # the decoder's own forward, but that it resamples to the fine level's size, not by 2 or 4
        context = F.interpolate(self.decoder.aspp(coarse), size=fine.shape[-2:], mode="bilinear", align_corners=True)
        detail = self.decoder.block1(fine)
        return self.classify(self.decoder.block2(torch.cat([context, detail], dim=1)))


def _conv(channels: int, width: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(conv, BatchNorm(width), nn.ReLU(inplace=True))


def _adapt(decoder: nn.Module) -> None:
    """Puts `BatchNorm` and `AdaptiveMean` in the place of torch's; names of parameters stay."""
    for module in list(decoder.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, BatchNorm(child.num_features))
            cells = child.output_size if isinstance(child, nn.AdaptiveAvgPool2d) else None
            if isinstance(cells, int) and cells > 1:  # the mean of all exports as it is
                setattr(module, name, AdaptiveMean(cells))


def _require_levels(head: str, channels: tuple[int, ...], needed: int) -> None:
    if len(channels) < needed:
        has = f"this backbone has {len(channels)}"
        raise InputError(f"head {head} needs a pyramid of {needed} levels, and {has}: use linear")


def build_head(
    name: str,
    channels: tuple[int, ...],
    strides: tuple[int, ...],
    classes: int,
    options: Mapping[str, int | bool] = {},
    heads: tuple[int, ...] = (),
) -> Head:
    """A head for a pyramid of these channels and strides.

    options: the head's own, such as `width`, the channels that it works with; `maps` gives it the attention maps of the
             levels, of so many `heads` each.

    Raises InputError for an unknown name or option, an option below 1 or past `MOST`, maps of a backbone that has none,
    and a pyramid that is too short for the head.
    """
    head = find("head", name, HEADS)
    known = list(inspect.signature(head).parameters)[3:]
    for option, value in options.items():
        if not known:
            raise InputError(f"head {name} has no options, and {option} was given: leave it out")
        if option not in known:
            raise unknown(f"option of head {name}", option, known)
        if isinstance(value, bool) != (option == "maps"):
            should = "true or false" if option == "maps" else "a whole number"
            raise InputError(f"{option} of head {name} should be {should}, not {value}")
        if option != "maps":
            check_number(f"{option} of head {name}", value, 1, MOST[option])
    given: dict[str, Any] = {option: value for option, value in options.items() if option != "maps"}
    if options.get("maps"):
        if not heads:
            raise InputError(f"maps of head {name} are attention, and this backbone has none: leave them out")
        given["maps"] = heads
    return head(channels, strides, classes, **given)
