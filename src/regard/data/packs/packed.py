"""Reads packs: data sets as a few large chunk files, on disk or in a bucket; `contents` says what is in them.

Chunks on disk are memory-mapped, never read whole; remote ones come into the chunk cache first.
"""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from regard.data.datasets.base import Dataset, Source
from regard.data.packs.cache import chunk_folder, mapped, prefetch
from regard.data.packs.contents import FIELDS, PACK_FILE, Chunk, Contents, finished, unfinished
from regard.data.packs.store import Store, is_remote
from regard.data.reading import Least, decode_image, header, imdecode, readable
from regard.errors import InputError
from regard.settings import AS_STORED, Values

AHEAD = 2  # chunks that are fetched ahead where a split is read in order


class Packed:
    """One split of a pack: a `Dataset`, whose images are found by number in its chunks. Threads may share it."""

    fields: tuple[str, ...] = FIELDS["images"]

    def __init__(self, store: Store, split: str, contents: Contents) -> None:
        self.store, self.split, self.parts = store, split, contents.splits[split]
        self.classes: tuple[str, ...] = contents.classes
        self.ignore_index: int = contents.ignore_index
        self.values: Values = contents.values
        self.palette: UInt8[np.ndarray, "classes 3"] = np.array(contents.palette, np.uint8).reshape(-1, 3)
        self.chunks: tuple[int, ...] = tuple(part.images for part in self.parts)
        self._ends = np.cumsum(self.chunks)
        self._furthest = 0  # of the chunks that were read

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, i: int) -> str:
        """The name that it had where it was packed from."""
        return self._field(i, "name").decode(errors="replace")

    def encoded(self, i: int) -> bytes:
        """The file of image `i`, not decoded."""
        return self._field(i, "image")

    def image(self, i: int) -> UInt8[np.ndarray, "h w 3"]:
        """Image `i`, RGB in 0..255, upright."""
        return self.decoded(i)

    def decoded(self, i: int, least: Least | None = None) -> UInt8[np.ndarray, "h w 3"]:
        """As `image`, or fewer pixels of it where `least` says that they are enough: see `decode_image`."""
        return decode_image(self.encoded(i), f"{self.store.shown}/{self.split}: {self.name(i)}", least, self.values)

    def prefetch(self, numbers: Iterable[int]) -> None:
        """Begin to fetch these chunks, in the background, where they are remote."""
        prefetch(self.store, [self._wanted(number) for number in numbers])

    def is_whole(self, part: Chunk) -> bool:
        """Whether a chunk is where it was packed, with the sum that it had then; reads all of it, uncached."""
        return self.store.holds(f"{self.split}/{part.file}", part.bytes, part.sha256)

    def _field(self, i: int, field: str) -> bytes:
        i = range(len(self))[i]
        number = int(np.searchsorted(self._ends, i, side="right"))
        within = i - int(self._ends[number]) + self.chunks[number]
        if number == self._furthest + 1:  # read in order, as a split is that is not trained on
            self.prefetch(range(number + 1, min(number + 1 + AHEAD, len(self.parts))))
        self._furthest = max(number, self._furthest)
        chunk, column = memoryview(mapped(self.store, *self._wanted(number))), self.fields.index(field)
        try:
            first, behind = np.frombuffer(chunk, "<u4", 2, 4 + 4 * within).tolist()
            sizes = np.frombuffer(chunk[first:behind], "<u4", len(self.fields)).tolist()
            begin = first + 4 * len(sizes) + sum(sizes[:column])
            if first + 4 * len(sizes) + sum(sizes) != behind or behind > len(chunk):
                raise ValueError("the sizes of the fields don't add up to the record")
        except ValueError as error:
            copied = f", or its copy in {chunk_folder()}," if self.store.remote else ""
            what = f"{self.store.shown}/{self.split}/{self.parts[number].file}{copied} is broken"
            raise InputError(f"{what}: to remove it and pack again, or a whole copy of it, would work") from error
        return bytes(chunk[begin : begin + sizes[column]])

    def _wanted(self, number: int) -> tuple[str, int, str]:
        part = self.parts[number]
        return f"{self.split}/{part.file}", part.bytes, part.sha256


class PackedMasks(Packed):
    """A split with a mask for each image."""

    fields = FIELDS["masks"]

    def mask(self, i: int) -> UInt8[np.ndarray, "h w"]:
        """The class index, or `ignore_index`, of each pixel."""
        data, name = self._field(i, "mask"), f"{self.store.shown}/{self.split}: the mask of {self.name(i)}"
        with readable(name):
            header(io.BytesIO(data), name)
            mask = imdecode(data, cv2.IMREAD_UNCHANGED)
        if mask is None or mask.ndim != 2 or mask.dtype != np.uint8:
            raise InputError(f"{name} is broken: pack it again")
        return mask


class PackedLabels(Packed):
    """A split with a class for each image."""

    fields = FIELDS["labels"]

    def label(self, i: int) -> int:
        """The index into `classes` of image `i`."""
        return int.from_bytes(self._field(i, "label"), "little", signed=True)


KINDS: dict[str, type[Packed]] = {"images": Packed, "masks": PackedMasks, "labels": PackedLabels}


def is_pack(folder: Path) -> bool:
    """Whether a folder on disk holds a pack, finished or not."""
    return (folder / PACK_FILE).is_file() or unfinished(Store(folder)) is not None


def open_pack(src: str | Path) -> Source:
    """The pack at a path or URL.

    Raises InputError when there is no pack, or it is not finished, or of a version that is not known.
    """
    store = Store(src if is_remote(src) else Path(src).expanduser().resolve())
    if (contents := finished(store)) is None:
        if unfinished(store):
            raise InputError(f"{store.shown} is not packed to its end: the same `regard data pack` goes on with it")
        what = f"there is no pack at {store.shown}, or no such bucket"
        raise InputError(f"{what}: regard data pack SRC {store.shown} would make one")
    splits = {split: KINDS[contents.kind](store, split, contents) for split in contents.splits}
    return Source("packed", store.shown, splits, words="pack")


def sums(datasets: Mapping[str, Dataset]) -> str:
    """What identifies the content of a pack: the sums of all its chunks, and which of their values are read."""
    packed = {split: of for split, of in datasets.items() if isinstance(of, Packed)}
    parts: dict[str, list[str]] = {split: [part.sha256 for part in of.parts] for split, of in packed.items()}
    for split, of in packed.items():
        if of.values != AS_STORED:  # the same files, and other pixels
            parts[f"{split} read as"] = [str(of.values.channels), str(of.values.range)]
    return json.dumps(parts, sort_keys=True)
