"""The colours, blur and solarize of drawn views for a whole batch on its device: what follows crop and flip.

The same draws give the pixels of `views.Draw.colour`, within 2 of 255 but where the hue falls on the other side of a
rounding. Each image of a batch has changes and an order of its own; nothing here depends on what they are but the
values, so that the host never waits for the device and a compiler sees one graph.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import pad

from regard.data.loading.views import BRIGHTNESS, CONTRAST, CUT, GREY, HUE, SATURATION, Draw, Jitter, View, blur_kernel

# The numbers of a draw, before the taps of its blur: factors of brightness, contrast and saturation, and the steps of
# hue; which of the three factors comes first, second and third, and before how many of them the hue; then yes or no.
FACTORS, STEPS, BLENDS, BEFORE_HUE, JITTERED, GREYED, SOLARIZED, TAPS = slice(0, 3), 3, slice(4, 7), 7, 8, 9, 10, 11
UNCHANGED = Jitter(1.0, 1.0, 1.0, 0.0, (BRIGHTNESS, CONTRAST, SATURATION, HUE))


def numbers_of(drawn: Sequence[Draw], radius: int) -> Float[Tensor, "views numbers"]:
    """What `finish` needs to know of the draws of one image, a row each. radius: as `blur_radius` gives it."""
    return torch.tensor([_row(draw, radius) for draw in drawn], dtype=torch.float32)


def blur_radius(views: Sequence[View]) -> int:
    """The taps to each side of the widest blur that these views may have."""
    return max(len(blur_kernel(view.sigma[1])) // 2 if view.blur else 0 for view in views)


def finish(
    pixels: UInt8[Tensor, "batch side side 3"], rows: Float[Tensor, "batch numbers"], view: View
) -> UInt8[Tensor, "batch 3 side side"]:
    """Cropped and flipped views of one distribution, with colour, grey, blur and solarize of the rows of `numbers_of`.

    In channels_last, as they came.
    """
    image = pixels.permute(0, 3, 1, 2).float()
    per_image = rows[..., None, None, None]  # (batch, numbers, 1, 1, 1)
    if view.jitter:
        image = torch.where(per_image[:, JITTERED] > 0, _jittered(image, rows), image)
    if view.grey:
        image = torch.where(per_image[:, GREYED] > 0, (_grey(image) + 0.5).floor(), image)
    if view.blur:
        image = _blurred(image, rows[:, TAPS:])
    if view.solarize:
        image = torch.where(per_image[:, SOLARIZED] > 0, torch.minimum(image, 255 - image), image)
    return image.to(torch.uint8, memory_format=torch.channels_last)  # as convolutions like them; the hue parts channels


def _row(draw: Draw, radius: int) -> list[float]:
    jitter = draw.jitter or UNCHANGED
    blends = [change for change in jitter.order if change != HUE]
    changes = [jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue_steps, *blends]
    others = [jitter.order.index(HUE), draw.jitter is not None, draw.grey, draw.solarized]
    taps = blur_kernel(draw.sigma).tolist() if draw.sigma else [1.0]
    beside = [0.0] * (radius - len(taps) // 2)
    return [*map(float, changes), *map(float, others), *beside, *taps, *beside]


def _jittered(
    image: Float[Tensor, "batch 3 h w"], rows: Float[Tensor, "batch numbers"]
) -> Float[Tensor, "batch 3 h w"]:
    """The three blends in each image's order, with the hue somewhere before, between or behind them."""
    blends = rows[:, BLENDS].long()
    factors = rows[:, FACTORS].gather(1, blends)[..., None, None, None]  # (batch, 3, 1, 1, 1), in order
    blends = blends[..., None, None, None]
    before_hue = rows[:, BEFORE_HUE, None, None, None]
    for place in range(3):
        image = torch.where(place < before_hue, _blend(image, blends[:, place], factors[:, place]), image)
    image = _turned(image, rows[:, STEPS, None, None])
    for place in range(3):
        image = torch.where(place < before_hue, image, _blend(image, blends[:, place], factors[:, place]))
    return image


def _blend(image: Tensor, blend: Tensor, factor: Tensor) -> Tensor:
    """Away from, or towards, black (brightness), the mean grey (contrast), or each pixel's grey (saturation)."""
    grey = _grey(image)
    mean = (grey.mean((1, 2, 3), keepdim=True) + 0.5).floor()
    target = torch.where(blend == SATURATION, grey, torch.where(blend == CONTRAST, mean, 0.0))
    return (factor * image + (1 - factor) * target + (0.5 - CUT)).floor().clamp(0, 255)


def _grey(image: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch 1 h w"]:
    red, green, blue = image.split(1, dim=1)
    return GREY[0] * red + GREY[1] * green + GREY[2] * blue


def _turned(image: Float[Tensor, "batch 3 h w"], steps: Float[Tensor, "batch 1 1"]) -> Float[Tensor, "batch 3 h w"]:
    """The hue turned by steps of a byte, through bytes of hue and saturation as OpenCV makes and reads them.

    Which takes a turn for 256 steps on the way there, and for 255 on the way back.
    """
    red, green, blue = image.unbind(1)
    value = image.amax(1)
    chroma = value - image.amin(1)
    sixths = torch.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    sixths = torch.where(value == red, green - blue, sixths)  # times the chroma
    hue = _ratio(sixths, chroma, 256 / 6)
    hue = (torch.where(hue < 0, hue + 256, hue).clamp(max=255) + steps) % 256
    chroma = value * _ratio(chroma, value, 255.0) / 255
    # A channel is below the largest by as much of the chroma as its own hue is away, in sixths of a turn.
    away = [(hue * (6 / 255) + start) % 6 for start in (5, 3, 1)]
    channels = [value - chroma * torch.minimum(sixth, 4 - sixth).clamp(0, 1) for sixth in away]
    return (torch.stack(channels, 1) + 0.5).floor()


def _ratio(part: Tensor, whole: Tensor, scale: float) -> Tensor:
    """The nearest whole number to part / whole * scale, by a reciprocal of 12 bits, as OpenCV has it in a table."""
    reciprocal = (scale * 4096 / whole.clamp(min=1)).round()
    return (part * reciprocal / 4096 + 0.5).floor()  # exact: the product is below 2^24


def _blurred(image: Float[Tensor, "batch 3 h w"], taps: Float[Tensor, "batch taps"]) -> Float[Tensor, "batch 3 h w"]:
    """Each image with its own taps, along rows and then along columns; the border is repeated."""
    count = taps.shape[1]
    for dim, ends in ((3, (count // 2, count // 2, 0, 0)), (2, (0, 0, count // 2, count // 2))):
        padded, side, total = pad(image, ends, mode="replicate"), image.shape[dim], torch.zeros_like(image)
        for tap in range(count):
            total = torch.addcmul(total, padded.narrow(dim, tap, side), taps[:, tap, None, None, None])
        image = total
    return (image + 0.5).floor().clamp(0, 255)
