"""What a source holds, in numbers: how often each class is seen, how much is void, how large the images are."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from regard.data.datasets.base import Chunked, Dataset, Decoded, LabelDataset, MaskDataset
from regard.data.names import VOID
from regard.data.reading import bits_in_use
from regard.data.source import Source
from regard.data.threads import in_threads
from regard.errors import InputError

SAMPLE = 32  # of the images looked at, that are decoded to see how many of their bits are in use
Seen = tuple[tuple[int, int], np.ndarray | None] | str  # of an image: its size, and the pixels of each value


@dataclass(frozen=True)
class Survey:
    """What was found in one split.

    images:     how many it has; `read` of them were looked at, besides `broken` ones that could not be.
    pixels:     of each class, over the masks that were read; `void` pixels are besides.
    holders:    how many images hold each class: of those that were read, or, of class folders, of all.
    dimensions: how many images have each (height, width).
    bits:       how many bits 16-bit images use, of `SAMPLE` of those; 0 where there are none.
    fault:      what is said of the first that could not be read, or could not as an image; "" where there is none.
    """

    images: int
    read: int
    broken: int
    pixels: Int64[np.ndarray, " classes"]
    void: int
    holders: Int64[np.ndarray, " classes"]
    dimensions: Counter[tuple[int, int]]
    bits: int = 0
    fault: str = ""

    @property
    def shares(self) -> np.ndarray:
        """Of each class, the share of the labelled pixels, (classes,); 0 where nothing is labelled."""
        return self.pixels / max(1, int(self.pixels.sum()))

    @property
    def held(self) -> Bool[np.ndarray, "256"]:
        """Which classes there is a pixel of; in the last place, void."""
        return np.append(np.pad(self.pixels, (0, VOID - len(self.pixels))), self.void) > 0

    @property
    def void_share(self) -> float:
        """The share of all pixels that is void."""
        return self.void / max(1, int(self.pixels.sum()) + self.void)

    @property
    def extremes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of the smallest, the median and the largest image, by area; () where none was read."""
        ranked = sorted(self.dimensions.elements(), key=lambda size: (size[0] * size[1], size))
        return (ranked[0], ranked[len(ranked) // 2], ranked[-1]) if ranked else ()

    def as_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        """The numbers for JSON; sizes as [width, height]."""
        kinds = zip(("smallest", "median", "largest"), self.extremes, strict=False)
        found: dict[str, Any] = {"images": self.images, "read": self.read, "broken": self.broken}
        found["sizes"] = {kind: [width, height] for kind, (height, width) in kinds}
        found["distinct_sizes"] = len(self.dimensions)
        if self.pixels.any() or self.void:
            found["void_share"] = self.void_share
            found["pixel_share"] = dict(zip(classes, self.shares.tolist(), strict=True))
        if classes:
            found["images_with"] = dict(zip(classes, self.holders.tolist(), strict=True))
        return found


def survey(source: Source, limit: int | None = None) -> dict[str, Survey]:
    """Look at every image of every split, or at `limit` evenly spaced ones of each; shows a progress bar.

    Of images with masks only the masks are decoded, and the first image. What can't be read is counted, not raised.
    """
    found = {}
    for split, dataset in source.splits.items():
        numbers, bits = evenly(len(dataset), limit), 0
        looked = _survey(dataset, numbers, f"looking at {split}")
        for place in evenly(len(numbers), SAMPLE):
            with suppress(InputError):
                bits = max(bits, bits_of(dataset, numbers[place]))
        fault = looked.fault or (_fault(dataset, numbers[0]) if numbers else "")
        found[split] = replace(looked, bits=bits, fault=fault)
    return found


def _fault(dataset: Dataset, i: int) -> str:
    """What is said of an image that can't be read; "" of one that can."""
    try:
        dataset.image(i)
    except InputError as error:
        return str(error)
    return ""


def class_pixels(dataset: MaskDataset) -> Int64[np.ndarray, " classes"]:
    """How many pixels each class has in all masks that can be read; shows a progress bar."""
    return _survey(dataset, range(len(dataset)), "counting pixels").pixels


def bits_of(dataset: Dataset, i: int) -> int:
    """How many bits the values of a 16-bit image use; 0 for other images, and where it was said which to read."""
    if not isinstance(dataset, Decoded) or dataset.values.range is not None:
        return 0
    return bits_in_use(dataset.encoded(i), dataset.name(i)) or 0


def unused_bits(bits: int) -> str:
    """What is said of 16-bit images that use so many bits at most; "" where they use all, or there are none."""
    what = f"16-bit images use {bits} bits at most, and their upper 8 of 16 are read, which is dark"
    return f"{what}: --range 0,{2 ** max(bits, 8) - 1} would use theirs" if 0 < bits < 16 else ""


def evenly(count: int, limit: int | None) -> list[int]:
    """All numbers below `count`, or `limit` of them, evenly spaced from the first on."""
    return list(range(count)) if limit is None or limit >= count else [i * count // limit for i in range(limit)]


def _look(dataset: Dataset, i: int) -> Seen:
    """(height, width), and how many pixels have each value of the mask; or why it can't be read."""
    try:
        if not isinstance(dataset, MaskDataset):
            height, width = dataset.image(i).shape[:2]
            return (height, width), None
        mask = dataset.mask(i)
        return (mask.shape[0], mask.shape[1]), np.bincount(mask.ravel(), minlength=256).astype(np.uint32)
    except InputError as error:
        return str(error)


def _survey(dataset: Dataset, numbers: Sequence[int], doing: str) -> Survey:
    classes = len(dataset.classes)
    pixels, images, sizes = np.zeros(256, np.int64), np.zeros(256, np.int64), Counter[tuple[int, int]]()
    faults: list[str] = []
    for one in in_threads(partial(_look, dataset), numbers, doing):
        if isinstance(one, str):
            faults.append(one)
            continue
        size, values = one
        sizes[size] += 1
        if values is not None:
            pixels += values
            images += values > 0
    if isinstance(dataset, LabelDataset):
        asked = numbers if isinstance(dataset, Chunked) else range(len(dataset))  # which needs no look at the images
        labels = np.array([dataset.label(i) for i in asked], np.int64)
        images = np.bincount(labels, minlength=classes)
    void = int(pixels[dataset.ignore_index])
    read = len(dataset), sizes.total(), len(faults)
    return Survey(*read, pixels[:classes], void, images[:classes], sizes, fault=next(iter(faults), ""))
