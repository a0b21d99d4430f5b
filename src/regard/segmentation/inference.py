"""How a trained segmentation is asked: whole images or windows in, classes of their pixels out, at any size.

One question is one or more passes: one for each scale, and one more of its mirror image. A pass gives logits on the
grid of the image that was fed. They are resampled to the size asked for, become probabilities there, and are averaged.

Sliding windows are those of mmsegmentation's `slide_inference`: logits are averaged where windows overlap, all windows
counting the same, and the last window of a row or column is shifted so that it lies inside.

Memory: the logits of every pass are kept, classes x height x width of the image as it was fed. So of many classes,
fewer images or windows than asked for share a forward pass: see `LOGITS`. At the size asked for, which may be far
larger, logits are made a strip of rows at a time.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from regard.backbones import normalize
from regard.evaluation.scores import confusion
from regard.segmentation.model import SegmentationModel
from regard.settings import Inference

Logits = Float[Tensor, "classes _ _"]
BATCH = 16  # images or windows in one forward pass
# Values in the logits of all passes over the images that share a forward pass, or of the windows that do: 1 GB of
# float32, and as much again while the next ones are made. Sixteen images of 171 classes at 512 x 683 would come to 4 GB
# a pass; here four of them go together, which is enough to keep a GPU busy. One image or window may have more.
LOGITS = 2**28
STRIP = 2**26  # values of a strip of rows: 256 MB of float32; most images are one strip


WHOLE = Inference()  # one pass over the whole image


@torch.no_grad()
def run_passes(
    model: nn.Module,
    scaled: Sequence[UInt8[Tensor, "batch planes _ _"]],
    classes: int,
    inference: Inference = WHOLE,
    batch_size: int = BATCH,
) -> list[Float[Tensor, "batch classes _ _"]]:
    """The logits of every pass over a batch, upright, each at the size it was fed.

    scaled:     the images, RGB in 0..255, at each of `inference.scales` in turn; with whole images, all go through
                together.
    batch_size: windows per forward pass; fewer where their logits would be larger than `LOGITS`.
    """
    passes = []
    for images in scaled:
        passes.append(_logits(model, images, classes, inference, batch_size))
        if inference.flip:
            passes.append(_logits(model, images.flip(-1), classes, inference, batch_size).flip(-1))
    return passes


def _logits(
    model: nn.Module, images: UInt8[Tensor, "batch planes h w"], classes: int, inference: Inference, batch_size: int
) -> Float[Tensor, "batch classes h w"]:
    """One pass: of the whole images, or the average over windows."""
    height, width = images.shape[-2:]
    window = inference.window
    if window is None or max(height, width) <= window:
        return model(normalize(images))
    rows, columns = min(window, height), min(window, width)
    tops, lefts = window_starts(height, rows, inference.overlap), window_starts(width, columns, inference.overlap)
    places = [(top, left) for top in tops for left in lefts]
    together = max(1, _fitting(batch_size, classes * rows * columns) // len(images))
    total = images.new_zeros(len(images), classes, height, width, dtype=torch.float32)
    for first in range(0, len(places), together):
        part = places[first : first + together]
        crops = torch.cat([images[..., y : y + rows, x : x + columns] for y, x in part])
        found = model(normalize(crops)).float()  # (windows * batch, classes, rows, columns)
        for (y, x), logits in zip(part, found.split(len(images)), strict=True):
            total[..., y : y + rows, x : x + columns] += logits
    # windows lie on a grid: how many cover a pixel is a product
    return total.div_(_covers(tops, rows, height).outer(_covers(lefts, columns, width)).to(total))


def _fitting(batch_size: int, values: int) -> int:
    """How many of `batch_size` share a forward pass, when the logits of each have so many values; one at least."""
    return max(1, min(batch_size, LOGITS // values))


def window_starts(side: int, window: int, overlap: float) -> list[int]:
    """Where windows along one side of an image begin; the last one ends where the image does."""
    step = max(1, round(window * (1 - overlap)))
    return [*range(0, side - window, step), side - window]


def _covers(starts: Sequence[int], window: int, side: int) -> Float[Tensor, "side"]:
    """How many windows each position lies in."""
    covers = torch.zeros(side)
    for start in starts:
        covers[start : start + window] += 1
    return covers


def classes_at(passes: Sequence[Logits], size: Sequence[int]) -> Int[Tensor, "height width"]:
    """The class of each pixel of one image at this (height, width)."""
    return torch.cat([strip.argmax(dim=0) for strip in _strips(passes, size)])


def predict_at(logits: Logits, size: Sequence[int]) -> Int[Tensor, "height width"]:
    """`classes_at` of a single pass."""
    return classes_at([logits], size)


def confidence_at(
    passes: Sequence[Logits], size: Sequence[int]
) -> tuple[Int[Tensor, "height width"], Float[Tensor, "height width"]]:
    """The class of each pixel, as `classes_at`, and its probability."""
    strips = [(strip.argmax(dim=0), _softmax(strip).amax(dim=0)) for strip in _strips(passes, size)]
    return torch.cat([classes for classes, _ in strips]), torch.cat([confidence for _, confidence in strips])


def probabilities_at(
    passes: Sequence[Logits], size: Sequence[int], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "classes height width"]:
    """The probability of each class at each pixel of one image; they sum to 1 over the classes."""
    made = torch.empty(len(passes[0]), *size, dtype=dtype, device=passes[0].device)
    row = 0
    for strip in _strips(passes, size):
        made[:, row : row + strip.shape[1]] = _softmax(strip)
        row += strip.shape[1]
    return made


def _softmax(logits: Float[Tensor, "classes _ _"]) -> Float[Tensor, "classes _ _"]:
    return logits.float().softmax(dim=0)


def _strips(passes: Sequence[Logits], size: Sequence[int]) -> Iterator[Logits]:
    """Rows of the logits at another size, from the top; of several passes, the logarithm of their mean probability.

    So the softmax is the probability in either case, and of one pass the largest logit is the answer.
    """
    height, width = size
    rows = max(1, STRIP // (len(passes[0]) * width))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        if len(passes) == 1:
            yield _resampled(passes[0], size, top, bottom)
            continue
        total = _softmax(_resampled(passes[0], size, top, bottom))
        for logits in passes[1:]:
            total += _softmax(_resampled(logits, size, top, bottom))
        yield total.div_(len(passes)).log_()


def _resampled(logits: Logits, size: Sequence[int], top: int, bottom: int) -> Logits:
    """Rows from `top` to before `bottom` of the logits at another size, bilinear: the logits, and not the answer."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits[:, top:bottom]
    if (top, bottom) == (0, size[0]):
        return F.interpolate(logits.unsqueeze(0), size=tuple(size), mode="bilinear", align_corners=False)[0]
    # The same for a part: rows of the image that was fed at their new width, then between two of them. The middle of
    # row i lies at i + 0.5; in float32, as torch counts it.
    height = logits.shape[1]
    middle = torch.arange(top, bottom, dtype=torch.float32, device=logits.device) + 0.5
    position = (middle * (height / size[0]) - 0.5).clamp(min=0)
    above = position.long().clamp(max=height - 1)
    below = (above + 1).clamp(max=height - 1)
    first, last = int(above[0]), int(below[-1])
    part = logits[:, first : last + 1].unsqueeze(0)
    wide = F.interpolate(part, size=(part.shape[-2], size[1]), mode="bilinear", align_corners=False)[0]
    share = (position - above).to(logits.dtype)[:, None]
    return wide[:, above - first].lerp_(wide[:, below - first], share)


def passes_of_each(
    model: nn.Module,
    pairs: Sequence[tuple[Sequence[UInt8[Tensor, "_ _ _"]], Any]],
    classes: int,
    inference: Inference = WHOLE,
    batch_size: int = BATCH,
) -> Iterator[tuple[list[Logits], Any]]:
    """For each pair of an image (at every scale) and something: the logits of its passes, and that, in order.

    Images of one size that follow each other share a forward pass; with windows, those of one image do.
    batch_size: images, or windows of one image, per forward pass; fewer where logits would be larger than `LOGITS`.
    """
    for shapes, group in groupby(pairs, key=lambda pair: [image.shape for image in pair[0]]):
        same = list(group)
        pixels = sum(height * width for _, height, width in shapes) * (2 if inference.flip else 1)
        together = 1 if inference.window else _fitting(batch_size, classes * pixels)
        for first in range(0, len(same), together):
            part = same[first : first + together]
            scaled = [torch.stack(images) for images in zip(*(images for images, _ in part), strict=True)]
            passes = run_passes(model, scaled, classes, inference, batch_size)
            for i, (_, other) in enumerate(part):
                yield [logits[i] for logits in passes], other


def count_cached(
    model: SegmentationModel,
    samples: Sequence[tuple[list[Tensor], tuple[int, int], Tensor]],
    classes: int,
    ignore_index: int,
) -> list[Int[Tensor, "classes classes"]]:
    """As `count_pixels`, of (tensors of an image's features, its (height, width), mask)."""
    counts = []
    for tensors, size, mask in samples:
        features = model.from_tensors([tensor.unsqueeze(0) for tensor in tensors])
        prediction = predict_at(model.decode(features, size)[0], mask.shape)
        counts.append(confusion(prediction, mask, classes, ignore_index))
    return counts


def count_pixels(
    model: nn.Module, pairs: Sequence[tuple[Tensor, Tensor]], classes: int, ignore_index: int
) -> list[Int[Tensor, "classes classes"]]:
    """One confusion matrix per (uint8 image, mask) pair, the prediction resampled to the mask's own size."""
    alone = [([image], mask) for image, mask in pairs]
    return [
        confusion(classes_at(passes, mask.shape), mask, classes, ignore_index)
        for passes, mask in passes_of_each(model, alone, classes, batch_size=max(1, len(pairs)))
    ]
