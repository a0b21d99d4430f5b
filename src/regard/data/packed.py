"""Reads packs: data sets as a few large chunk files, on disk or in a bucket, as `packing.pack` writes them.

| file of a pack | what it holds |
|---|---|
| regard.json | classes, and of each split the chunks with their images, bytes and SHA-256; written last |
| packing.json | of a pack that is not finished, as far as it is |
| SPLIT/chunk-0-N.bin | LitData's layout: uint32 images; uint32 offsets, one more than images; the images' records |
| SPLIT/index.json | LitData's own list of the chunks, for its `StreamingDataset(PACK/SPLIT)` |

A record is a uint32 size for each of its fields, then these: `name` (UTF-8), `image` (a JPEG, PNG, ... file), and
`mask` (a PNG of class indices) or `label` (int64) where the data has them. All numbers are little-endian.

Chunks on disk are memory-mapped, never read whole; remote ones come into the chunk cache first.
"""

import hashlib
import json
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import UInt8

from regard.data.chunk_cache import ChunkCache
from regard.data.datasets import Dataset
from regard.data.reading import decode_image
from regard.data.store import Store, is_remote
from regard.errors import InputError, unknown

VERSION = 1
PACK_FILE = "regard.json"
UNFINISHED_FILE = "packing.json"
FIELDS = {"images": ("name", "image"), "masks": ("name", "image", "mask"), "labels": ("name", "image", "label")}
OPEN = 24  # maps that a process keeps: the 16 chunks that an epoch is shuffled within at a time, and some of the next
AHEAD = 2  # chunks that are fetched ahead where a split is read in order


@dataclass(frozen=True)
class Chunk:
    """One chunk file of a split. labelled: whether any pixel of its masks is, where it has masks."""

    file: str
    images: int
    bytes: int
    sha256: str
    labelled: bool = True


@runtime_checkable
class Chunked(Protocol):
    """A dataset whose images lie in chunks, the first `chunks[0]` in the first one: best read chunk by chunk."""

    @property
    def chunks(self) -> Sequence[int]: ...  # noqa: D102
    def prefetch(self, numbers: Iterable[int]) -> None: ...  # noqa: D102


class Packed:
    """One split of a pack: a `Dataset`, whose images are found by number in its chunks."""

    fields: tuple[str, ...] = FIELDS["images"]

    def __init__(self, store: Store, split: str, parts: Sequence[Chunk], described: Mapping[str, Any]) -> None:
        self.where, self.parts = f"{store.shown}/{split}", tuple(parts)
        self.classes: tuple[str, ...] = tuple(described["classes"])
        self.ignore_index: int = described["ignore_index"]
        self.palette: UInt8[np.ndarray, "classes 3"] = np.array(described["palette"], np.uint8).reshape(-1, 3)
        self.chunks: tuple[int, ...] = tuple(part.images for part in self.parts)
        self._ends = np.cumsum(self.chunks)
        self._maps = _Maps(ChunkCache(store), split, self.parts)

    @property
    def labelled(self) -> bool:
        """Whether any pixel of any mask is."""
        return any(part.labelled for part in self.parts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, i: int) -> str:
        """As it was called where it was packed from."""
        return self._field(i, "name").decode()

    def encoded(self, i: int) -> bytes:
        """The file of image `i`, not decoded."""
        return self._field(i, "image")

    def image(self, i: int) -> UInt8[np.ndarray, "h w 3"]:
        """Image `i`, RGB in 0..255, upright."""
        return decode_image(self.encoded(i), f"{self.where}: {self.name(i)}")

    def prefetch(self, numbers: Iterable[int]) -> None:
        """Begin to fetch these chunks, in the background, where they are remote."""
        self._maps.prefetch(numbers)

    def wrong_sums(self) -> list[str]:
        """The chunk files that are not what was packed; reads every byte."""
        return [part.file for number, part in enumerate(self.parts) if not self._maps.is_whole(number)]

    def _field(self, i: int, field: str) -> bytes:
        i = range(len(self))[i]
        number = int(np.searchsorted(self._ends, i, side="right"))
        within = i - int(self._ends[number]) + self.chunks[number]
        record = self._maps.record(number, within)
        sizes = np.frombuffer(record, "<u4", len(self.fields)) if len(record) >= 4 * len(self.fields) else None
        if sizes is None or 4 * len(self.fields) + int(sizes.sum()) != len(record):
            raise self._maps.broken(number)
        column = self.fields.index(field)
        begin = 4 * len(self.fields) + int(sizes[:column].sum())
        return bytes(record[begin : begin + int(sizes[column])])


class PackedMasks(Packed):
    """A split with a mask for each image."""

    fields = FIELDS["masks"]

    def mask(self, i: int) -> UInt8[np.ndarray, "h w"]:
        """The class index, or `ignore_index`, of each pixel."""
        mask = cv2.imdecode(np.frombuffer(self._field(i, "mask"), np.uint8), cv2.IMREAD_UNCHANGED)
        if mask is None:
            raise InputError(f"{self.where}: the mask of {self.name(i)} can't be read: packing again would work")
        return mask.astype(np.uint8, copy=False)


class PackedLabels(Packed):
    """A split with a class for each image."""

    fields = FIELDS["labels"]

    def label(self, i: int) -> int:
        """The index into `classes` of image `i`."""
        return int.from_bytes(self._field(i, "label"), "little", signed=True)


class _Maps:
    """The memory maps of a split's chunks, the last used ones. Threads may share it; each process has its own."""

    def __init__(self, cache: ChunkCache, split: str, parts: Sequence[Chunk]) -> None:
        self.cache, self.split, self.parts = cache, split, parts
        self._begin()

    def _begin(self) -> None:
        self._pid, self._lock, self._last = os.getpid(), threading.Lock(), -1
        self._open: OrderedDict[int, mmap.mmap] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"cache": self.cache, "split": self.split, "parts": self.parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def record(self, number: int, within: int) -> memoryview:
        """The bytes of a record: a view into the map."""
        chunk = memoryview(self._map(number))
        count = self.parts[number].images
        if int.from_bytes(chunk[:4], "little") != count:
            raise self.broken(number)
        begin, end = np.frombuffer(chunk, "<u4", 2, 4 + 4 * within).tolist()
        if not 8 + 4 * count <= begin <= end <= len(chunk):
            raise self.broken(number)
        return chunk[begin:end]

    def broken(self, number: int) -> InputError:
        """The error for a chunk that holds other bytes than were packed."""
        name = f"{self.cache.store.shown}/{self.split}/{self.parts[number].file}"
        return InputError(f"{name} is broken: a whole copy of the pack, or packing again, would work")

    def is_whole(self, number: int) -> bool:
        """Whether a chunk is there, and has the sum that was noted when it was packed."""
        try:
            return hashlib.sha256(self._map(number)).hexdigest() == self.parts[number].sha256
        except InputError:
            return False

    def prefetch(self, numbers: Iterable[int]) -> None:
        """Begin to fetch chunks, in the background."""
        self.cache.prefetch([self._wanted(number) for number in numbers])

    def _wanted(self, number: int) -> tuple[str, int, str]:
        part = self.parts[number]
        return f"{self.split}/{part.file}", part.bytes, part.sha256

    def _map(self, number: int) -> mmap.mmap:
        if self._pid != os.getpid():  # a lock that another thread held while this process was forked stays held
            self._begin()
        with self._lock:
            in_order, self._last = self._last >= 0 and number == self._last + 1, number
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number]
        if in_order:
            self.prefetch(range(number + 1, min(number + 1 + AHEAD, len(self.parts))))
        mapped = None
        while mapped is None:  # a chunk may be given up for others before it is mapped, and can be asked for again
            with suppress(FileNotFoundError), self.cache.path(*self._wanted(number)).open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with self._lock:
            self._open[number] = mapped
            while len(self._open) > OPEN:
                self._open.popitem(last=False)  # unmapped when nobody reads from it any more
        return mapped


KINDS: dict[str, type[Packed]] = {"images": Packed, "masks": PackedMasks, "labels": PackedLabels}


def is_pack(folder: Path) -> bool:
    """Whether a folder on disk holds a pack, finished or not."""
    return (folder / PACK_FILE).is_file() or (folder / UNFINISHED_FILE).is_file()


def open_pack(src: str | Path) -> tuple[str, dict[str, Dataset]]:
    """What to call the pack at a path or URL, without secrets, and its datasets by split.

    Raises InputError when there is no pack, or it is not finished, or of a version that is not known.
    """
    store = Store(src if is_remote(src) else Path(src).expanduser().resolve())
    if not store.exists(PACK_FILE):
        if store.exists(UNFINISHED_FILE):
            begun = json.loads(store.read(UNFINISHED_FILE))["from"]
            raise InputError(f"{store.shown} is not packed to its end: regard data pack {begun} {store.shown} goes on")
        raise InputError(f"there is no pack at {store.shown}: regard data pack SRC {store.shown} would make one")
    try:
        described = json.loads(store.read(PACK_FILE))
        version = described["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{store.shown}/{PACK_FILE} is broken: packing again would work") from error
    if version != VERSION:
        raise InputError(f"{store.shown} is a pack of version {version}, and this regard reads {VERSION}: update it")
    if described["kind"] not in KINDS:
        raise unknown("kind of pack", described["kind"], KINDS)
    kind = KINDS[described["kind"]]
    splits = {
        split: kind(store, split, [Chunk(**chunk) for chunk in of["chunks"]], described)
        for split, of in described["splits"].items()
    }
    return store.shown, splits  # type: ignore[return-value]


def broken_chunks(src: str | Path) -> list[tuple[str, str]]:
    """(split, file) of the chunks at `src` that have other bytes than were packed; all are read. [] for no pack."""
    if not is_remote(src) and not is_pack(Path(src).expanduser()):
        return []
    _, splits = open_pack(src)
    return [(split, file) for split, of in splits.items() if isinstance(of, Packed) for file in of.wrong_sums()]


def sums(datasets: Mapping[str, Dataset]) -> str:
    """What identifies the content of a pack: the sums of all its chunks."""
    parts = {split: [part.sha256 for part in of.parts] for split, of in datasets.items() if isinstance(of, Packed)}
    return json.dumps(parts, sort_keys=True)
