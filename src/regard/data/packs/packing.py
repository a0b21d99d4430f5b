"""Packs any source into a few large chunk files, on disk or in a bucket; `packed` says what is in them, and reads them.

The layout is LitData's, so that its `StreamingDataset` reads the same files. It is written here rather than by LitData,
whose writer makes other bytes where pyarrow is installed, other file names in a process with a rank, and puts the time
into its index: a pack that is gone on with must come out as one that was never cut short.

Image files are kept as they are, masks become PNGs of class indices. The train split comes in a shuffled order, so that
each chunk is a random sample: class folders are listed by class.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import Progress

from regard.data.datasets.base import Dataset, LabelDataset, MaskDataset
from regard.data.packs.packed import (
    CHUNK_MB,
    FIELDS,
    PACK_FILE,
    UNFINISHED_FILE,
    Chunk,
    Contents,
    Split,
    finished,
    unfinished,
)
from regard.data.packs.store import Store, is_remote
from regard.data.reading import decode_image
from regard.data.source import Source, fingerprint
from regard.errors import InputError

MOST_MB = 1024  # of a chunk: its offsets are uint32, and it is made in memory
LOCK_FILE = ".packing.lock"  # while a pack is written
TYPES = {"name": "str", "image": "bytes", "mask": "bytes", "label": "int"}  # of the fields, in LitData's words
DIFFERENCES = {"content": "its files", "chunk_mb": "--chunk_mb"}  # what a pack may differ in, in people's words

# Of an image: its place in the order, its name if it is to be skipped, its record, and whether anything is labelled.
Read = tuple[int, str | None, bytes, bool]


@dataclass(frozen=True)
class Pack:
    """What was packed. skipped: images that could not be read. new: False where all of it was there before."""

    where: str
    images: int
    chunks: int
    bytes: int
    skipped: tuple[str, ...]
    new: bool


def pack(
    source: Source, to: str | Path, chunk_mb: int = CHUNK_MB, on_bad_image: Literal["raise", "skip"] = "raise"
) -> Pack:
    """Pack every split of `source` into `to`, a folder or the URL of one in a bucket; shows a progress bar.

    chunk_mb: bytes of a chunk, in units of 2**20; one image at least is in each.

    Where `to` holds the same pack or a part of it, makes those of its chunks again that are not whole, goes on behind
    the last one, and what comes out is the same to the byte. On a disk every sum is compared for that; in a bucket,
    where that would fetch all of it, every size, and the sum of each split's last chunk.

    Every image is decoded once, to see that it can be. Raises InputError for one that can't be, and for a mask that
    doesn't fit, unless they are to be skipped; where `to` holds anything else; where it can't be written to; and where
    another call writes to the same folder (in a bucket that is not noticed).
    """
    if not 1 <= chunk_mb <= MOST_MB:
        raise InputError(f"chunks of {chunk_mb} MB can't be made: 1 to {MOST_MB} would work")
    target = _Target(to)
    _check_apart(source, target)
    with target.alone():
        return _pack(source, target, chunk_mb, on_bad_image == "skip")


def _pack(source: Source, target: "_Target", chunk_mb: int, skip: bool) -> Pack:
    plan = _plan(source, chunk_mb)
    whole = finished(target.store)
    if there := whole or unfinished(target.store):
        _check_same(there, plan, target)
        splits = {split: there.splits.get(split, Split(())) for split in source.splits}
    else:
        target.check_empty(source.splits)
        splits = {split: Split(()) for split in source.splits}
        target.note(UNFINISHED_FILE, plan, splits)  # so that a folder with chunks is known for what it is
    new = whole is None
    total = sum(map(len, source.splits.values()))
    done = sum(of.chunks[-1].through for of in splits.values() if of.chunks)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("packing", total=total, completed=done)
        for split, dataset in source.splits.items():
            shuffled = np.random.default_rng(0).permutation(len(dataset))
            order = shuffled if split == "train" else np.arange(len(dataset))
            new |= _mend(dataset, order, splits[split].chunks, f"{split}/", target)
            start = splits[split].chunks[-1].through if splits[split].chunks else 0
            with closing(_records(dataset, order, start, skip)) as records:
                shown = _each(records, lambda: progress.advance(bar))
                for chunk, held in _chunks(shown, len(splits[split].chunks), chunk_mb << 20, f"{split}/", target):
                    splits[split] = _longer(splits[split], chunk, held, plan)
                    target.note(UNFINISHED_FILE, plan, splits)
            if not splits[split].chunks:
                raise InputError(f"no image of {split} of {source.root} can be read: JPEGs or PNGs would work")
            if whole is None or not target.store.exists(f"{split}/index.json"):
                target.write_json(f"{split}/index.json", _index(splits[split].chunks, plan.kind))
    if whole is None:
        target.note(PACK_FILE, replace(plan, source=""), splits)  # where it was is nobody's business
        target.remove(UNFINISHED_FILE)
    return _summary(target, splits, new)


def _plan(source: Source, chunk_mb: int) -> Contents:
    """What a pack is made of: a call goes on only with one that was begun with the same."""
    return Contents(
        kind="masks" if source.has_masks else "labels" if source.has_labels else "images",
        classes=tuple(source.classes),
        palette=tuple(map(tuple, source.palette.tolist())),
        ignore_index=source.ignore_index,
        chunk_mb=chunk_mb,
        content=fingerprint(source),
        source=source.root,
        splits={},
    )


def _check_same(there: Contents, plan: Contents, target: "_Target") -> None:
    ours, theirs = ({**vars(of), "splits": None, "source": None} for of in (plan, there))
    if differs := [DIFFERENCES.get(key, key) for key, value in ours.items() if theirs[key] != value]:
        what = f"{target.shown} holds a pack of other content or settings (it differs in {', '.join(differs)})"
        raise InputError(f"{what}: another folder would work, or this one emptied")


def _longer(of: Split, chunk: Chunk, held: Sequence[bytes], plan: Contents) -> Split:
    """A split with one more chunk, of these records."""
    if plan.kind != "labels":
        return Split((*of.chunks, chunk))
    labels = [int.from_bytes(record[-8:], "little", signed=True) for record in held]  # the last field of a record
    more = np.bincount(labels, minlength=len(plan.classes))
    return Split((*of.chunks, chunk), tuple((more + (np.array(of.holders) if of.holders else 0)).tolist()))


def _check_apart(source: Source, target: "_Target") -> None:
    """A pack within its source would be listed as a part of it."""
    if target.folder and source.layout != "scenes" and not is_remote(source.root):
        root = Path(source.root).resolve()
        if root == target.folder or root in target.folder.parents:
            raise InputError(f"{target.folder} is within {root}, which it is to be made of: one beside it would work")


def _mend(dataset: Dataset, order: np.ndarray, chunks: Sequence[Chunk], folder: str, target: "_Target") -> bool:
    """Make those chunks again that are not there as they are listed; whether there were any."""
    last, mended = len(chunks) - 1, False
    for number, chunk in enumerate(chunks):
        if target.has_whole(folder, chunk, summed=number == last):
            continue
        part = order[chunks[number - 1].through if number else 0 : chunk.through]
        content = _chunk([record for _, skipped, record, _ in _records(dataset, part, 0, skip=True) if skipped is None])
        if hashlib.sha256(content).hexdigest() != chunk.sha256:
            what = f"{target.shown}/{folder}{chunk.file} is not whole, and what was in it can't be read any more"
            raise InputError(f"{what}: the images that were packed, or another folder, would work")
        target.write(folder + chunk.file, content)
        mended = True
    return mended


def _records(dataset: Dataset, order: np.ndarray, start: int, skip: bool) -> Generator[Read, None, None]:
    """The images of the order from `start` on. InputError for one that can't be packed, unless it is to be skipped.

    Threads read and decode ahead: two images for each, so that memory does not grow with the images.
    """
    threads = 2 * (os.cpu_count() or 1)  # decoding lets go of the interpreter's lock; a network disk is waited for
    waiting = deque[tuple[int, int, Future]]()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for place in range(start, len(order) + 2 * threads):
                if place < len(order):
                    index = int(order[place])
                    waiting.append((place, index, pool.submit(_record, dataset, index)))
                if waiting and (len(waiting) >= 2 * threads or place >= len(order)):
                    at, index, future = waiting.popleft()
                    try:
                        yield at, None, *future.result()
                    except InputError:
                        if not skip:
                            raise
                        yield at, dataset.name(index), b"", False
        finally:
            pool.shutdown(cancel_futures=True)


def _each(records: Iterator[Read], then: Callable[[], None]) -> Iterator[Read]:
    """The same, and a call for each."""
    for record in records:
        then()
        yield record


def _record(dataset: Dataset, i: int) -> tuple[bytes, bool]:
    """An image's record in a chunk, and whether any pixel of its mask is labelled."""
    labelled, fields = True, [dataset.name(i).encode("utf-8", "replace"), _image_file(dataset, i)]
    if isinstance(dataset, MaskDataset):
        mask = dataset.mask(i)
        fields.append(_png(mask))
        labelled = bool((mask != dataset.ignore_index).any())
    elif isinstance(dataset, LabelDataset):
        fields.append(int(dataset.label(i)).to_bytes(8, "little", signed=True))
    return np.array([len(field) for field in fields], "<u4").tobytes() + b"".join(fields), labelled


def _image_file(dataset: Dataset, i: int) -> bytes:
    """The image's own file, which is seen to decode; a PNG where it has none, as scenes, which are drawn."""
    encoded = getattr(dataset, "encoded", None)
    if encoded is None:
        return _png(cv2.cvtColor(dataset.image(i), cv2.COLOR_RGB2BGR))
    data: bytes = encoded(i)
    decode_image(data, dataset.name(i))
    return data


def _png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def _chunks(
    records: Iterator[Read], number: int, limit: int, folder: str, target: "_Target"
) -> Iterator[tuple[Chunk, list[bytes]]]:
    """Write the records as chunks, each closed by the first record that would take it past `limit` bytes.

    number: of the first chunk. Gives each with its records, when it is written.
    """
    held: list[bytes] = []
    skipped: list[str] = []
    size, labelled, through = 0, False, 0

    def write(through: int) -> tuple[Chunk, list[bytes]]:
        content, file = _chunk(held), f"chunk-0-{number}.bin"
        target.write(folder + file, content)
        sha256 = hashlib.sha256(content).hexdigest()
        return Chunk(file, len(held), len(content), sha256, labelled, through, tuple(skipped)), held

    for place, unreadable, record, some in records:
        if unreadable is not None:
            skipped.append(unreadable)
        else:
            if held and size + len(record) > limit:
                yield write(place)
                held, skipped, size, labelled, number = [], [], 0, False, number + 1
            held.append(record)
            size, labelled = size + len(record), labelled or some
        through = place + 1
    if held:
        yield write(through)


def _chunk(records: Sequence[bytes]) -> bytes:
    """LitData's layout: the number of records, where each begins and the last one ends, and the records."""
    header = 4 * (len(records) + 2)
    offsets = header + np.cumsum([0, *map(len, records)])
    if offsets[-1] >= 2**32:
        raise InputError("an image of 4 GB or more can't be packed: smaller ones would work")
    return np.array([len(records)], "<u4").tobytes() + offsets.astype("<u4").tobytes() + b"".join(records)


def _index(chunks: Sequence[Chunk], kind: str) -> dict[str, Any]:
    """LitData's index.json. Its time of writing, which names LitData's cache of it, is a sum of the content here."""
    fields = FIELDS[kind]
    leaf = {"type": None, "context": None, "children_spec": []}
    spec = {"type": "builtins.dict", "context": json.dumps(fields), "children_spec": [leaf] * len(fields)}
    config = {
        "chunk_bytes": max(chunk.bytes for chunk in chunks),
        "chunk_size": None,
        "compression": None,
        "data_format": [TYPES[field] for field in fields],
        "data_spec": json.dumps([1, spec]),
        "encryption": None,
        "item_loader": "PyTreeLoader",
    }
    listed = [{"chunk_bytes": c.bytes, "chunk_size": c.images, "dim": None, "filename": c.file} for c in chunks]
    content = hashlib.sha256("".join(chunk.sha256 for chunk in chunks).encode()).hexdigest()
    return {"chunks": listed, "config": config, "updated_at": content[:16]}


def _summary(target: "_Target", splits: Mapping[str, Split], new: bool) -> Pack:
    chunks = [chunk for split in splits.values() for chunk in split.chunks]
    images, size = sum(chunk.images for chunk in chunks), sum(chunk.bytes for chunk in chunks)
    return Pack(target.shown, images, len(chunks), size, tuple(name for chunk in chunks for name in chunk.skipped), new)


class _Target:
    """Where a pack goes: files that are whole or not there, in a folder on disk or of a bucket."""

    def __init__(self, to: str | Path) -> None:
        if str(to).startswith(("http://", "https://")):
            raise InputError(f"{Store(to).shown} can be read from, not written to: a folder, s3:// or gs:// would work")
        self.folder = None if is_remote(to) else Path(to).expanduser().resolve()
        if self.folder and self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder} is a file: a folder would work, which is made where it isn't there")
        self.store = Store(to if self.folder is None else self.folder)
        self.shown = self.store.shown

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep others who pack out of the folder on disk. InputError where one is in it, or it can't be written to."""
        if self.folder is None:
            yield
            return
        lock = FileLock(self.folder / LOCK_FILE)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"{self.folder} is being packed into: its end, or another folder, would work") from None
        except OSError as error:
            raise InputError(f"{self.folder} can't be written: {error.strerror or type(error).__name__}") from error
        try:
            yield
        finally:
            with suppress(OSError):
                (self.folder / LOCK_FILE).unlink()
            lock.release()

    def check_empty(self, splits: Iterable[str]) -> None:
        """InputError where a folder on disk holds anything, or one of a bucket what would be written over."""
        if self.folder:
            there = sorted(set(os.listdir(self.folder)) - {LOCK_FILE})
        else:
            names = [
                UNFINISHED_FILE,
                *(f"{split}/{file}" for split in splits for file in ("index.json", "chunk-0-0.bin")),
            ]
            there = [name for name in names if self.store.exists(name)]
        if there:
            raise InputError(f"{self.shown} is no pack, and holds {there[0]}: an empty or a new folder would work")

    def has_whole(self, folder: str, chunk: Chunk, summed: bool) -> bool:
        """Whether a chunk is there: with its sum on a disk or where that is asked for, else with its size."""
        if self.folder or summed:
            return self.store.digest(folder + chunk.file, chunk.bytes) == chunk.sha256
        return self.store.holds(folder + chunk.file, chunk.bytes)

    def note(self, name: str, plan: Contents, splits: Mapping[str, Split]) -> None:
        """A list of what is packed."""
        self.write_json(name, {**vars(plan), "splits": {split: asdict(of) for split, of in splits.items()}})

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        self.write(name, json.dumps(content, separators=(",", ":")).encode() + b"\n")

    def write(self, name: str, content: bytes) -> None:
        """A file, whole or not at all; in the place of one of that name."""
        self.store.put(content, name)

    def remove(self, name: str) -> None:
        """Take a file away from disk. In a bucket it stays: it counts for nothing beside `PACK_FILE`."""
        if self.folder:
            (self.folder / name).unlink(missing_ok=True)
