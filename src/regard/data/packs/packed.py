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
import re
import shlex
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from jaxtyping import UInt8

from regard.data.datasets.base import Dataset
from regard.data.packs.chunk_cache import ChunkCache
from regard.data.packs.store import Store, is_remote
from regard.data.reading import decode_image
from regard.data.threads import in_threads
from regard.errors import InputError

VERSION = 2
PACK_FILE = "regard.json"
UNFINISHED_FILE = "packing.json"
FIELDS = {"images": ("name", "image"), "masks": ("name", "image", "mask"), "labels": ("name", "image", "label")}
OPEN = 24  # maps that a process keeps: the 16 chunks that an epoch is shuffled within at a time, and some of the next
AHEAD = 2  # chunks that are fetched ahead where a split is read in order
IN_ORDER = 8  # images read in a row, each in the chunk of the one before or in the next: so it is no shuffled window
CHUNK_MB = 64  # of a chunk, by default

Result = TypeVar("Result")


@dataclass(frozen=True)
class Chunk:
    """One chunk file of a split.

    labelled: whether any pixel of its masks is, where it has masks. through: how many images of the order in which the
    split was packed are in it and before it. skipped: the names of those that were left out of it.

    Raises ValueError for what can't be: a list may come from a stranger, and file and sha256 become parts of paths.
    """

    file: str
    images: int
    bytes: int
    sha256: str
    labelled: bool
    through: int
    skipped: tuple[str, ...]

    def __post_init__(self) -> None:
        if not (re.fullmatch(r"chunk-\d+-\d+\.bin", self.file, re.ASCII) and re.fullmatch("[0-9a-f]{64}", self.sha256)):
            raise ValueError("no name and sum of a chunk")
        if {type(self.images), type(self.bytes), type(self.through)} != {int} or type(self.labelled) is not bool:
            raise ValueError("a number is something else")
        if not (0 < self.images < self.bytes < 2**32 and self.images <= self.through):
            raise ValueError("a number can't be")


@dataclass(frozen=True)
class Split:
    """What a list says of a split. holders: how many images each class has, where images have classes."""

    chunks: tuple[Chunk, ...]
    holders: tuple[int, ...] = ()


@dataclass(frozen=True)
class Contents:
    """What PACK_FILE says of a pack, and UNFINISHED_FILE of as much as there is of one.

    content: the fingerprint of what it is packed from. source: where that was.
    """

    kind: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore_index: int
    chunk_mb: int
    content: str
    source: str
    splits: Mapping[str, Split]
    version: int = VERSION


def parse(data: bytes) -> Contents:
    """What a PACK_FILE or UNFINISHED_FILE says. ValueError for anything else; InputError for one of another version."""
    try:
        said = json.loads(data)
        if {"kind", "splits"} <= set(said) and type(said["version"]) is int and said["version"] != VERSION:
            what = f"a pack of version {said['version']}, and this regard reads {VERSION}"
            raise InputError(f"{what}: packing again, or the newest regard, would work")
        colours = np.array(said["palette"], object).reshape(-1, 3).tolist()
        parts = {"classes": _names(said["classes"]), "palette": tuple(map(tuple, colours))}
        found = Contents(**said | parts | {"splits": {name: _split(**of) for name, of in said["splits"].items()}})
        counts = [count for of in found.splits.values() for count in of.holders]
        numbers = [found.ignore_index, found.chunk_mb, *counts, *(value for colour in colours for value in colour)]
        if not all(type(number) is int and number >= 0 for number in numbers) or np.max(colours, initial=0) > 255:
            raise ValueError("a number can't be")
        for of in found.splits.values():
            images = sum(chunk.images for chunk in of.chunks)
            if sum(of.holders) != images * (found.kind == "labels") or len(of.holders) not in (0, len(found.classes)):
                raise ValueError("the counts can't be")
        if len(colours) != len(found.classes) or not all(re.fullmatch(r"\w+", name) for name in found.splits):
            raise ValueError("the palette or the splits can't be")
        if not _names((found.content, found.source)) or found.kind not in FIELDS:
            raise ValueError("the kind can't be")
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError("no list of a pack") from error
    return found


def _split(chunks: list[dict[str, Any]], holders: list[int]) -> Split:
    skipped = [_names(chunk.pop("skipped")) for chunk in chunks]
    return Split(tuple(Chunk(**of, skipped=names) for of, names in zip(chunks, skipped, strict=True)), tuple(holders))


def _names(texts: Any) -> tuple[str, ...]:
    """The same; ValueError where they are no list of texts."""
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ValueError("no list of texts")
    return tuple(texts)


class Packed:
    """One split of a pack: a `Dataset`, whose images are found by number in its chunks."""

    fields: tuple[str, ...] = FIELDS["images"]

    def __init__(self, store: Store, split: str, contents: Contents) -> None:
        self.where, self.parts = f"{store.shown}/{split}", contents.splits[split].chunks
        self.holders = np.array(contents.splits[split].holders, np.int64)  # images of each class, where they have one
        self.classes: tuple[str, ...] = contents.classes
        self.ignore_index: int = contents.ignore_index
        self.palette: UInt8[np.ndarray, "classes 3"] = np.array(contents.palette, np.uint8).reshape(-1, 3)
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
        return self._mending(i, lambda: decode_image(self.encoded(i), f"{self.where}: {self.name(i)}"))

    def prefetch(self, numbers: Iterable[int]) -> None:
        """Begin to fetch these chunks, in the background, where they are remote."""
        self._maps.prefetch(numbers)

    def is_whole(self, part: Chunk) -> bool:
        """Whether a chunk is where it was packed, and has the sum that was noted then; reads all of it, uncached."""
        return self._maps.cache.store.digest(f"{self._maps.split}/{part.file}", part.bytes) == part.sha256

    def _mending(self, i: int, read: Callable[[], Result]) -> Result:
        """What `read` gives of image `i`; once more where it fails since its chunk went bad on this machine."""
        try:
            return read()
        except InputError:
            if not self._maps.renew(self._place(i)[0]):
                raise
            return read()

    def _place(self, i: int) -> tuple[int, int]:
        """The chunk of image `i`, and its number in that."""
        i = range(len(self))[i]
        number = int(np.searchsorted(self._ends, i, side="right"))
        return number, i - int(self._ends[number]) + self.chunks[number]

    def _field(self, i: int, field: str) -> bytes:
        return self._mending(i, lambda: self._read(i, field))

    def _read(self, i: int, field: str) -> bytes:
        number, within = self._place(i)
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
        return self._mending(i, lambda: self._mask(i))

    def _mask(self, i: int) -> UInt8[np.ndarray, "h w"]:
        data = np.frombuffer(self._field(i, "mask"), np.uint8)
        mask = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if len(data) else None
        if mask is None:
            raise self._maps.broken(self._place(i)[0])
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
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._last, self._in_a_row = (-1, -1), 0  # the image read last: (chunk, place in it); how many came in order
        self._open: OrderedDict[int, mmap.mmap] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"cache": self.cache, "split": self.split, "parts": self.parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def record(self, number: int, within: int) -> memoryview:
        """The bytes of a record: a view into the map."""
        chunk = memoryview(self._map(number, self._is_in_order(number, within)))
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
        return InputError(f"{name} is broken: to remove it and pack again, or a whole copy of it, would work")

    def renew(self, number: int) -> bool:
        """Whether a remote chunk, as it is mapped, has other bytes than were packed: then it will be fetched again."""
        with self._lock:
            mapped = self._open.get(number)  # nothing, where it could not be had: that was said after enough tries
        if mapped is None or not self.cache.store.remote:
            return False
        if hashlib.sha256(mapped).hexdigest() == self.parts[number].sha256:
            return False
        self.cache.discard(*self._wanted(number)[1:])
        with self._lock:
            self._open.pop(number, None)
        return True

    def prefetch(self, numbers: Iterable[int]) -> None:
        """Begin to fetch chunks, in the background."""
        self.cache.prefetch([self._wanted(number) for number in numbers])

    def _wanted(self, number: int) -> tuple[str, int, str]:
        part = self.parts[number]
        return f"{self.split}/{part.file}", part.bytes, part.sha256

    def _is_in_order(self, number: int, within: int) -> bool:
        """Whether images are read in order up to this one. Neighbours may change places, as threads read them."""
        if (number, within) != self._last:  # else another field of the same image
            step = number - self._last[0]
            self._in_a_row = self._in_a_row + 1 if step in (0, 1) else 0
            self._last = number, within
        return self._in_a_row >= IN_ORDER

    def _map(self, number: int, in_order: bool = False) -> mmap.mmap:
        if self._pid != os.getpid():  # a lock that another thread held while this process was forked stays held
            self._begin()
        with self._lock:
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
    """Whether a folder on disk holds a pack, finished or not: others may have a packing.json of their own."""
    return (folder / PACK_FILE).is_file() or unfinished(Store(folder)) is not None


def unfinished(store: Store) -> Contents | None:
    """What there is of a pack that was begun; None where none was."""
    if not store.exists(UNFINISHED_FILE):
        return None
    data = store.read(UNFINISHED_FILE)
    with suppress(ValueError):
        return parse(data)
    return None


def finished(store: Store) -> Contents | None:
    """What a pack holds; None where there is no finished one. InputError for one that can't be read."""
    if not store.exists(PACK_FILE):
        return None
    data = store.read(PACK_FILE)
    try:
        contents = parse(data)
        if not contents.splits or not all(of.chunks for of in contents.splits.values()):
            raise ValueError("it holds no images")
        return contents
    except InputError as error:
        raise InputError(f"{store.shown} is {error}") from error
    except ValueError as error:
        raise InputError(f"{store.shown}/{PACK_FILE} is broken: to pack into another folder would work") from error


def open_pack(src: str | Path) -> tuple[str, dict[str, Dataset]]:
    """What to call the pack at a path or URL, without secrets, and its datasets by split.

    Raises InputError when there is no pack, or it is not finished, or of a version that is not known.
    """
    store = Store(src if is_remote(src) else Path(src).expanduser().resolve())
    if (contents := finished(store)) is None:
        to = shlex.quote(store.shown)
        if begun := unfinished(store):
            size = "" if begun.chunk_mb == CHUNK_MB else f" --chunk_mb {begun.chunk_mb}"
            command = f"regard data pack {shlex.quote(begun.source)} {to}{size}"
            raise InputError(f"{store.shown} is not packed to its end: {command} goes on")
        raise InputError(f"there is no pack at {store.shown}: regard data pack SRC {to} would make one")
    kind = KINDS[contents.kind]
    return store.shown, {split: kind(store, split, contents) for split in contents.splits}


def broken_chunks(src: str | Path) -> tuple[list[tuple[str, str]], int]:
    """(split, file) of the chunks at `src` that have other bytes than were packed, and of how many; all are read.

    ([], 0) for no pack. Raises InputError where a chunk can't be had for another reason than that it is not there.
    """
    if not is_remote(src) and not is_pack(Path(src).expanduser()):
        return [], 0
    _, splits = open_pack(src)
    chunks = [(split, of, part) for split, of in splits.items() if isinstance(of, Packed) for part in of.parts]
    whole = in_threads(lambda chunk: chunk[1].is_whole(chunk[2]), chunks, "summing chunks")
    return [(split, part.file) for (split, _, part), right in zip(chunks, whole, strict=True) if not right], len(chunks)


def sums(datasets: Mapping[str, Dataset]) -> str:
    """What identifies the content of a pack: the sums of all its chunks."""
    parts = {split: [part.sha256 for part in of.parts] for split, of in datasets.items() if isinstance(of, Packed)}
    return json.dumps(parts, sort_keys=True)
