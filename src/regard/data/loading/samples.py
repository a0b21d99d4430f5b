"""What loading processes make of a dataset: views, crops and pairs, as tensors; and datasets around a dataset."""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from regard.data.datasets.base import Dataset, LabelDataset, MaskDataset
from regard.data.loading.augment import (
    CROP,
    LABELS,
    VIEW,
    TrainTransform,
    centre_crop,
    draws,
    resize_pair,
    short_side,
)
from regard.data.loading.device_views import blur_radius, numbers_of
from regard.data.loading.views import Draw, View, least_for
from regard.data.packs.packed import Chunked
from regard.data.reading import decode_image
from regard.errors import InputError


class Cached:
    """A dataset whose decoded images and masks are kept in memory, until `limit` bytes are full."""

    def __init__(self, dataset: Dataset, limit: int = 2**30) -> None:
        self.dataset = dataset
        self.classes, self.palette, self.ignore_index = dataset.classes, dataset.palette, dataset.ignore_index
        self._kept: dict[tuple[str, int], np.ndarray] = {}
        self._free = limit

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, i: int) -> str:
        """As the dataset."""
        return self.dataset.name(i)

    def image(self, i: int) -> np.ndarray:
        """As the dataset; not to be written to."""
        return self._get("image", i)

    def mask(self, i: int) -> np.ndarray:
        """As the dataset; not to be written to."""
        return self._get("mask", i)

    def _get(self, what: str, i: int) -> np.ndarray:
        if (what, i) in self._kept:
            return self._kept[what, i]
        array = getattr(self.dataset, what)(i)
        if array.nbytes <= self._free:
            self._free -= array.nbytes
            self._kept[what, i] = array
        return array


class Fraction:
    """A share of a dataset with masks, fixed by the seed, repeated up to the length of the whole.

    So a training on it takes as many steps as one on all: what differs is the labels alone. A smaller share is part of
    a larger one of the same seed. It holds at least one image.
    """

    def __init__(self, dataset: MaskDataset, share: float, seed: int) -> None:
        self.dataset = dataset
        self.classes, self.palette, self.ignore_index = dataset.classes, dataset.palette, dataset.ignore_index
        order = draws(LABELS, seed).permutation(len(dataset))
        count = math.ceil(round(share * len(dataset), 6))  # 7% of 100 is 7, though 0.07 * 100 is above it
        self.numbers = [int(i) for i in order[:count]]
        self.length = len(dataset)

    def once(self) -> "Fraction":
        """The same images, each a single time."""
        part = copy.copy(self)
        part.length = len(self.numbers)
        return part

    def __len__(self) -> int:
        return self.length

    def name(self, i: int) -> str:
        """As the dataset."""
        return self.dataset.name(self._number(i))

    def image(self, i: int) -> np.ndarray:
        """As the dataset."""
        return self.dataset.image(self._number(i))

    def mask(self, i: int) -> np.ndarray:
        """As the dataset."""
        return self.dataset.mask(self._number(i))

    def _number(self, i: int) -> int:
        return self.numbers[range(len(self))[i] % len(self.numbers)]


Read = TypeVar("Read")
AS_NAMED: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}  # file names need not be UTF-8


class SkipUnreadable:
    """A dataset that gives the next readable image, and its label, in the place of one that cannot be read.

    Where the images lie in chunks, they do so here.

    record: a file that gets the name of each such image, a line each; shared by all loading processes of a run.
    share:  of the images, how many may be unreadable. One more is an InputError: then it is not a stray bad file.
    """

    def __init__(self, dataset: Dataset, record: Path, share: float = 0.01) -> None:
        self.dataset, self.record, self.share = dataset, record, share
        self.classes, self.palette, self.ignore_index = dataset.classes, dataset.palette, dataset.ignore_index
        self._instead: dict[int, int] = {}
        if isinstance(dataset, Chunked):
            self.chunks, self.prefetch = dataset.chunks, dataset.prefetch

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, i: int) -> str:
        """As the dataset."""
        return self.dataset.name(i)

    def image(self, i: int) -> np.ndarray:
        """Image `i`, or the next one that can be read."""
        return self.read(i, self.dataset.image)

    def read(self, i: int, read: Callable[[int], Read]) -> Read:
        """What `read` gives of image `i`, or of the next one of which it gives anything and raises no InputError."""
        while True:
            index = self._instead.get(i, i)
            try:
                return read(index)
            except InputError as error:
                self._note(self.dataset.name(index), error)
                self._instead[i] = (index + 1) % len(self)

    def label(self, i: int) -> int:
        """The label of the image that was read for `i`; to be called after it."""
        return cast(LabelDataset, self.dataset).label(self._instead.get(i, i))

    def _note(self, name: str, error: InputError) -> None:
        known = skipped(self.record)
        if name not in known:
            known.append(name)
            with self.record.open("a", **AS_NAMED) as file:
                file.write(name + "\n")
        if len(known) > self.share * len(self):
            raise InputError(
                f"{len(known)} of {len(self)} images cannot be read, more than {self.share:.0%}: mend or remove those "
                f"named in {self.record.name}; the last: {error}"
            ) from error


def skipped(record: Path) -> list[str]:
    """The images named in a record of `SkipUnreadable`."""
    return sorted(set(record.read_text(**AS_NAMED).split("\n")) - {""}) if record.is_file() else []


class Views(TorchDataset):
    """(epoch, index) -> a list of views, each a uint8 (size, size, 3) tensor; then, if asked for, where they are in the
    image, (views, 5) as `View.placed`; last, if `labelled`, the class index.

    on_device: views are cropped and flipped alone, and behind them comes what is still to be done, (views, numbers) as
               of `device_views.numbers_of`.
    """

    def __init__(
        self,
        dataset: Dataset,
        views: Sequence[View],
        seed: int,
        labelled: bool = False,
        placed: bool = False,
        on_device: bool = False,
    ) -> None:
        self.dataset, self.views, self.seed, self.labelled, self.placed = dataset, views, seed, labelled, placed
        self.on_device, self._radius = on_device, blur_radius(views)

    def __getitem__(self, key: tuple[int, int]) -> list[Tensor]:
        epoch, index = key
        image, drawn = self._drawn(epoch, index)
        if self.on_device:
            crops = [torch.from_numpy(draw.crop(image)) for draw in drawn]
            sample = [*crops, numbers_of(drawn, self._radius)]
        else:
            sample = [torch.from_numpy(draw(image)) for draw in drawn]
        if self.placed:
            sample.append(torch.tensor([draw.place for draw in drawn]))
        if self.labelled:
            sample.append(torch.tensor(cast(LabelDataset, self.dataset).label(index)))
        return sample

    def _drawn(self, epoch: int, index: int) -> tuple[np.ndarray, list[Draw]]:
        """The image, decoded once, and what each view is made by.

        Of a JPEG the draws come first, from the size in its header: a large one is then decoded at the smallest scale
        that enlarges no crop.
        """

        def draw(shape: tuple[int, int]) -> list[Draw]:
            rng = draws(VIEW, self.seed, epoch, index)  # one for all: to make it takes as long as to draw a view
            return [view.draw(shape, rng) for view in self.views]

        def decoded(dataset: Dataset, number: int) -> tuple[np.ndarray, list[Draw]]:
            drawn: list[Draw] = []

            def least(shape: tuple[int, int]) -> tuple[int, int]:
                drawn[:] = draw(shape)
                return least_for(drawn)

            image = decode_image(cast(Any, dataset).encoded(number), dataset.name(number), least)
            return image, drawn or draw(image.shape[:2])

        def read(dataset: Dataset, number: int) -> tuple[np.ndarray, list[Draw]]:
            if not hasattr(dataset, "encoded"):  # packed images and those in folders have it
                image = dataset.image(number)
                return image, draw(image.shape[:2])
            try:
                return decoded(dataset, number)
            except InputError:
                dataset.image(number)  # of a pack, a chunk that went bad on this machine is mended; else this raises
                return decoded(dataset, number)

        if isinstance(self.dataset, SkipUnreadable):
            return self.dataset.read(index, partial(read, self.dataset.dataset))
        return read(self.dataset, index)


class CentreCrops(TorchDataset):
    """Number -> the middle square of an image, uint8 (size, size, 3), and its class; as kNN and linear probes see it.

    The short side is brought to 256/224 of `size` first, as is usual for ImageNet.
    indices: the images to use. Numbers past their end give an empty image of class -1, so that ranks come out even.
    """

    def __init__(self, dataset: Dataset, indices: Sequence[int], size: int) -> None:
        self.dataset, self.indices, self.size = dataset, indices, size

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        if number >= len(self.indices):
            return torch.zeros(self.size, self.size, 3, dtype=torch.uint8), -1
        index = self.indices[number]
        crop = centre_crop(self.dataset.image(index), self.size)
        return torch.from_numpy(crop), cast(LabelDataset, self.dataset).label(index)


class TrainPairs(TorchDataset):
    """(epoch, index) -> uint8 image (3, size, size) and int64 mask (size, size)."""

    def __init__(self, dataset: MaskDataset, transform: TrainTransform, seed: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = key
        rng = draws(CROP, self.seed, epoch, index)
        image, mask = self.transform(self.dataset.image(index), self.dataset.mask(index), rng)
        return planes_of(image), torch.from_numpy(mask).long()


class WholePairs(TorchDataset):
    """index -> the whole image, its short side brought to `size`, and its mask at the mask's own size."""

    def __init__(self, dataset: MaskDataset, size: int) -> None:
        self.dataset, self.size = dataset, size

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = self.dataset.image(index), self.dataset.mask(index)
        small, _ = resize_pair(image, mask, short_side(image.shape[:2], self.size))
        return planes_of(small), torch.from_numpy(mask).long()


def planes_of(image: np.ndarray) -> Tensor:
    """(h, w, 3) uint8 as a tensor (3, h, w)."""
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, [planes[0], planes[1], planes[2]])  # many times faster than a copy of the transposed array
    return torch.from_numpy(planes)
