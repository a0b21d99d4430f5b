"""Datasets around a dataset: in memory, a share of it, with another image for each, without what cannot be read."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from regard.data.datasets.base import Chunked, Dataset, LabelDataset, MaskDataset, read_as
from regard.data.groups import groups_of
from regard.data.loading.draws import LABELS, draws
from regard.errors import InputError
from regard.settings import Values

Read = TypeVar("Read")
Around = TypeVar("Around", bound="_Around")
AS_NAMED: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}  # file names need not be UTF-8


class _Around:
    """A dataset with the classes and names of another one."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.classes, self.palette, self.ignore_index = dataset.classes, dataset.palette, dataset.ignore_index

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, i: int) -> str:
        """The name of image `i`, for people."""
        return self.dataset.name(i)

    def read_as(self: Around, values: Values) -> Around:
        """As of the dataset."""
        part = copy.copy(self)
        part.dataset = read_as(self.dataset, values)
        return part


class Cached(_Around):
    """A dataset whose decoded images and masks are kept in memory, until `limit` bytes are full; not to be changed."""

    def __init__(self, dataset: Dataset, limit: int = 2**30) -> None:
        super().__init__(dataset)
        self._kept: dict[tuple[str, int], np.ndarray] = {}
        self._free = limit

    def read_as(self, values: Values) -> "Cached":
        """As of the dataset; what is kept is read again."""
        return Cached(read_as(self.dataset, values), self._free + sum(array.nbytes for array in self._kept.values()))

    def image(self, i: int) -> np.ndarray:
        """Image `i`, RGB in 0..255."""
        return self._get("image", i)

    def mask(self, i: int) -> np.ndarray:
        """The class index, or `ignore_index`, of each pixel."""
        return self._get("mask", i)

    def _get(self, what: str, i: int) -> np.ndarray:
        if (what, i) in self._kept:
            return self._kept[what, i]
        array = getattr(self.dataset, what)(i)
        if array.nbytes <= self._free:
            self._free -= array.nbytes
            self._kept[what, i] = array
        return array


def check_share(share: float) -> None:
    """InputError for what is no share of the training masks."""
    if not 0 < share <= 1:
        raise InputError(f"label_fraction {share:g} is no share: take one above 0, up to 1")


class Fraction(_Around):
    """A share of a dataset with masks, fixed by the seed, repeated up to the length of the whole.

    So a training on it takes as many steps as one on all: what differs is the labels alone. A smaller share is part of
    a larger one of the same seed. It holds at least one image.
    """

    dataset: MaskDataset

    def __init__(self, dataset: MaskDataset, share: float, seed: int) -> None:
        check_share(share)
        super().__init__(dataset)
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
        """The name of the image that comes in place `i`."""
        return self.dataset.name(self.number(i))

    def image(self, i: int) -> np.ndarray:
        """Image `i`, RGB in 0..255."""
        return self.dataset.image(self.number(i))

    def mask(self, i: int) -> np.ndarray:
        """The class index, or `ignore_index`, of each pixel."""
        return self.dataset.mask(self.number(i))

    def number(self, i: int) -> int:
        """Which image of the whole comes in place `i`."""
        return self.numbers[range(len(self))[i] % len(self.numbers)]


class WithOthers(_Around):
    """A dataset with masks that also has, for each image, another one: always the same, of another group, half the
    dataset away or the next one behind. Of a `Fraction`, it may be any image of the whole.

    rule: of the groups that images belong to, see `groups_of`; None: each image is one.

    Raises InputError where all images are of one group.
    """

    dataset: MaskDataset

    def __init__(self, dataset: MaskDataset, rule: str | None = None) -> None:
        super().__init__(dataset)
        self.whole = dataset.dataset if isinstance(dataset, Fraction) else dataset
        self.groups = groups_of([self.whole.name(i) for i in range(len(self.whole))], rule)
        if len(set(self.groups)) < 2:
            raise InputError(
                "all images are of one group, and have no other whose maps they could see: leave out maps other, or "
                "take other --groups"
            )

    def image(self, i: int) -> np.ndarray:
        """Image `i`, RGB in 0..255."""
        return self.dataset.image(i)

    def mask(self, i: int) -> np.ndarray:
        """The class index, or `ignore_index`, of each pixel."""
        return self.dataset.mask(i)

    def other(self, i: int) -> np.ndarray:
        """The image that goes with image `i`, at its own size."""
        number, count = self.dataset.number(i) if isinstance(self.dataset, Fraction) else i, len(self.whole)
        others = ((number + count // 2 + step) % count for step in range(count))
        return self.whole.image(next(n for n in others if self.groups[n] != self.groups[number]))


class SkipUnreadable(_Around):
    """A dataset that gives the next readable image, and its label, in the place of one that cannot be read.

    Where the images lie in chunks, they do so here.

    record: a file that gets the name of each such image, a line each; shared by all loading processes of a run.
    share:  of the images, how many may be unreadable. One more is an InputError: then it is not a stray bad file.
    """

    def __init__(self, dataset: Dataset, record: Path, share: float = 0.01) -> None:
        super().__init__(dataset)
        self.record, self.share = record, share
        self._instead: dict[int, int] = {}
        if isinstance(dataset, Chunked):
            self.chunks, self.prefetch = dataset.chunks, dataset.prefetch

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
