"""The contracts: what every dataset offers, with masks or labels where it has them, and a source, its splits."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import cv2
import numpy as np
from jaxtyping import UInt8

from regard.data.listing import HELD_OUT
from regard.data.reading import Least
from regard.errors import unknown
from regard.settings import AS_STORED, Values


@runtime_checkable
class Dataset(Protocol):
    """What every dataset offers: images in a fixed order, each with a name for people."""

    classes: tuple[str, ...]  # () when nothing is labelled
    ignore_index: int

    @property
    def palette(self) -> UInt8[np.ndarray, "classes 3"]: ...  # noqa: D102
    def __len__(self) -> int: ...
    def name(self, i: int) -> str: ...  # noqa: D102
    def image(self, i: int) -> UInt8[np.ndarray, "h w 3"]: ...  # noqa: D102


@runtime_checkable
class MaskDataset(Dataset, Protocol):
    """A dataset with a class index, or `ignore_index`, for every pixel."""

    def mask(self, i: int) -> UInt8[np.ndarray, "h w"]: ...  # noqa: D102


@runtime_checkable
class LabelDataset(Dataset, Protocol):
    """A dataset with one class index per image."""

    def label(self, i: int) -> int: ...  # noqa: D102


@runtime_checkable
class Decoded(Protocol):
    """Of a dataset whose images are decoded from files. values: of these, that are read."""

    values: Values

    def decoded(self, i: int, least: Least | None = None) -> UInt8[np.ndarray, "h w 3"]: ...  # noqa: D102
    def encoded(self, i: int) -> bytes: ...  # noqa: D102


D = TypeVar("D", bound=Dataset)


def read_as(dataset: D, values: Values) -> D:
    """The dataset with these values of its images, where it holds files; what they do not say is as it says itself."""
    if values == AS_STORED:
        return dataset
    if isinstance(dataset, Decoded):
        part: Any = copy.copy(dataset)
        part.values = values.over(dataset.values)
        return part
    around: Any = dataset  # maybe around another one
    return cast(D, around.read_as(values) if hasattr(around, "read_as") else dataset)


def values_of(dataset: Dataset) -> Values:
    """Which values of its images are read, also where it lies in others."""
    while not isinstance(dataset, Decoded) and hasattr(dataset, "dataset"):
        dataset = cast(Any, dataset).dataset
    return dataset.values if isinstance(dataset, Decoded) else AS_STORED


def image_file(dataset: Dataset, i: int) -> bytes:
    """The file of image `i` as it is; a PNG of one that is drawn."""
    if isinstance(dataset, Decoded):
        return dataset.encoded(i)
    return as_png(dataset.image(i))


def as_png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """A PNG of it."""
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


@dataclass(frozen=True)
class Source:
    """What was recognised at a path: its datasets by split, all with the same classes."""

    layout: str  # a short word for what the folders look like
    root: str  # "scenes", the resolved path, or a URL without its secrets
    splits: Mapping[str, Dataset]  # "train", "val", "test": those there are
    notes: tuple[str, ...] = ()  # what was decided for the user, for people to read
    words: str = ""  # for the layout, for people
    every: Mapping[str, Dataset] = field(default_factory=dict)  # also images without a mask, of splits that have some

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names; () when nothing is labelled."""
        return self._any.classes

    @property
    def palette(self) -> UInt8[np.ndarray, "classes 3"]:
        """RGB, one colour per class."""
        return self._any.palette

    @property
    def ignore_index(self) -> int:
        """The label of void pixels."""
        return self._any.ignore_index

    @property
    def has_masks(self) -> bool:
        """Whether every dataset has `mask(i)`."""
        return isinstance(self._any, MaskDataset)

    @property
    def has_labels(self) -> bool:
        """Whether every dataset has `label(i)`."""
        return isinstance(self._any, LabelDataset)

    @property
    def held_out(self) -> bool:
        """Whether val was held out of train, as there was none."""
        return HELD_OUT in self.notes

    @property
    def given_to_learn(self) -> tuple[str, ...]:
        """The splits of what its owner gave for training: what was held out of that is a part of it."""
        return ("train", "val") if self.held_out else ("train",)

    @property
    def _any(self) -> Dataset:
        return next(iter(self.splits.values()))

    def split(self, name: str) -> Dataset:
        """The dataset of a split; InputError when there is none of that name."""
        if name not in self.splits:
            raise unknown(f"split of {self.root}", name, self.splits)
        return self.splits[name]

    def images(self, split: str) -> Dataset:
        """The images of a split to learn from without masks: those that have none, too."""
        return self.every.get(split) or self.split(split)

    def read_as(self, values: Values) -> "Source":
        """The source with these values of its images; what they do not say is as it says itself."""
        both = (self.splits, self.every)
        splits, every = ({name: read_as(of, values) for name, of in parts.items()} for parts in both)
        return replace(self, splits=splits, every=every)

    def describe(self) -> str:
        """One line for people: what was recognised, how many images, which classes."""
        counts = ", ".join(f"{len(dataset):,} {split}" for split, dataset in self.splits.items())
        line = self.words + ("" if self.layout == "scenes" else f" at {self.root}") + f": {counts} images"
        if self.classes:
            line += f"; {len(self.classes)} classes ({', '.join((*self.classes[:3], '...')[: len(self.classes)])})"
        return "; ".join((line, *self.notes))


@runtime_checkable
class Chunked(Protocol):
    """A dataset whose images lie in chunks, the first `chunks[0]` in the first one: best read chunk by chunk."""

    @property
    def chunks(self) -> Sequence[int]: ...  # noqa: D102
    def prefetch(self, numbers: Iterable[int]) -> None: ...  # noqa: D102
