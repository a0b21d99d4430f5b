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
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from rich.console import Console
from rich.progress import Progress

from regard.data.datasets import Dataset, LabelDataset, MaskDataset
from regard.data.layout import Source, fingerprint
from regard.data.packed import FIELDS, PACK_FILE, UNFINISHED_FILE, VERSION, Chunk
from regard.data.reading import decode_image
from regard.data.store import Store, is_remote
from regard.errors import InputError

MOST_MB = 1024  # of a chunk: its offsets are uint32, and it is made in memory
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


@dataclass(frozen=True)
class _Step:
    """A chunk that is written, how many images of the order are behind it, and those that were skipped for it."""

    chunk: Chunk
    through: int
    skipped: list[str]


def pack(source: Source, to: str | Path, chunk_mb: int = 64, on_bad_image: Literal["raise", "skip"] = "raise") -> Pack:
    """Pack every split of `source` into `to`, a folder or the URL of one in a bucket; shows a progress bar.

    chunk_mb: bytes of a chunk, in units of 2**20; one image at least is in each.

    Where `to` holds a part of the same pack, goes on behind its last whole chunk, and what comes out is the same to the
    byte. Every image is decoded once, to see that it can be. Raises InputError for one that can't be, and for a mask
    that doesn't fit, unless they are to be skipped; where `to` holds anything else; and where it can't be written to.
    """
    if not 1 <= chunk_mb <= MOST_MB:
        raise InputError(f"chunks of {chunk_mb} MB can't be made: 1 to {MOST_MB} would work")
    target = _Target(to)
    _check_apart(source, target)
    plan = _plan(source, target, chunk_mb)
    if (finished := target.read_json(PACK_FILE)) is not None:
        _check_same(finished, plan, target)
        return _summary(target, finished, new=False)
    if (begun := target.read_json(UNFINISHED_FILE)) is None:
        target.check_empty()
        begun = plan | {"from": source.root, "splits": {}}
    _check_same(begun, plan, target)
    steps = {split: _whole(begun["splits"].get(split, ()), f"{split}/", target) for split in source.splits}

    def note() -> None:
        so_far = {split: [asdict(step) for step in of] for split, of in steps.items()}
        target.write_json(UNFINISHED_FILE, begun | {"splits": so_far})

    note()  # before the first chunk, so that a folder with chunks is known for what it is
    total, done = sum(map(len, source.splits.values())), sum(of[-1].through for of in steps.values() if of)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("packing", total=total, completed=done)
        for split, dataset in source.splits.items():
            shuffled = np.random.default_rng(0).permutation(len(dataset))
            order = shuffled if split == "train" else np.arange(len(dataset))
            with closing(_records(dataset, order, steps[split], on_bad_image == "skip")) as records:
                shown = _each(records, lambda: progress.advance(bar))
                for step in _chunks(shown, steps[split], chunk_mb << 20, f"{split}/", target):
                    steps[split].append(step)
                    note()
            if not steps[split]:
                raise InputError(f"no image of {split} of {source.root} can be read: JPEGs or PNGs would work")
            target.write_json(f"{split}/index.json", _index([step.chunk for step in steps[split]], plan["kind"]))
    described = plan | {"splits": {split: _described(of) for split, of in steps.items()}}
    target.write_json(PACK_FILE, described)
    target.remove(UNFINISHED_FILE)
    return _summary(target, described, new=True)


def _plan(source: Source, target: "_Target", chunk_mb: int) -> dict[str, Any]:
    """What a pack is made of: a call goes on only with one that was begun with the same."""
    return {
        "version": VERSION,
        "kind": "masks" if source.has_masks else "labels" if source.has_labels else "images",
        "classes": list(source.classes),
        "palette": source.palette.tolist(),
        "ignore_index": source.ignore_index,
        "chunk_mb": chunk_mb,
        "content": fingerprint(source),
    }


def _check_same(there: dict[str, Any], plan: dict[str, Any], target: "_Target") -> None:
    if differs := [DIFFERENCES.get(key, key) for key, value in plan.items() if there.get(key) != value]:
        what = f"{target.shown} holds a pack of other content or settings (it differs in {', '.join(differs)})"
        raise InputError(f"{what}: another folder would work, or this one emptied")


def _check_apart(source: Source, target: "_Target") -> None:
    """A pack within its source would be listed as a part of it."""
    if target.folder and source.layout != "scenes" and not is_remote(source.root):
        root = Path(source.root).resolve()
        if root == target.folder or root in target.folder.parents:
            raise InputError(f"{target.folder} is within {root}, which it is to be made of: one beside it would work")


def _whole(noted: Sequence[dict[str, Any]], folder: str, target: "_Target") -> list[_Step]:
    """The steps up to the last one whose chunk is there as it was noted."""
    steps = [_Step(Chunk(**step["chunk"]), step["through"], step["skipped"]) for step in noted]
    while steps and not target.holds(folder + steps[-1].chunk.file, steps[-1].chunk.sha256):
        steps.pop()
    return steps


def _records(dataset: Dataset, order: np.ndarray, steps: list[_Step], skip: bool) -> Generator[Read, None, None]:
    """The images of the order behind `steps`. InputError for one that can't be packed, unless it is to be skipped.

    Threads read and decode ahead: no further than their number, so that memory does not grow with the images.
    """
    threads = 2 * (os.cpu_count() or 1)  # decoding lets go of the interpreter's lock; a network disk is waited for
    start, waiting = steps[-1].through if steps else 0, deque[tuple[int, int, Future]]()
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
    records: Iterator[Read],
    steps: Sequence[_Step],
    limit: int,
    folder: str,
    target: "_Target",
) -> Iterator[_Step]:
    """Write the records as chunks, each closed by the first record that would take it past `limit` bytes."""
    held: list[bytes] = []
    skipped: list[str] = []
    size, labelled, number, through = 0, False, len(steps), 0

    def write(through: int) -> _Step:
        content, file = _chunk(held), f"chunk-0-{number}.bin"
        target.write(folder + file, content)
        return _Step(
            Chunk(file, len(held), len(content), hashlib.sha256(content).hexdigest(), labelled), through, skipped
        )

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


def _described(steps: Sequence[_Step]) -> dict[str, Any]:
    """A split in regard.json."""
    return {
        "images": sum(step.chunk.images for step in steps),
        "skipped": [name for step in steps for name in step.skipped],
        "chunks": [asdict(step.chunk) for step in steps],
    }


def _summary(target: "_Target", described: dict[str, Any], new: bool) -> Pack:
    splits = described["splits"].values()
    chunks = [chunk for split in splits for chunk in split["chunks"]]
    skipped = tuple(name for split in splits for name in split["skipped"])
    images, size = sum(split["images"] for split in splits), sum(chunk["bytes"] for chunk in chunks)
    return Pack(target.shown, images, len(chunks), size, skipped, new)


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

    def check_empty(self) -> None:
        """InputError where the folder on disk holds anything: it may be somebody's."""
        if self.folder and self.folder.is_dir() and (there := sorted(os.listdir(self.folder))):
            raise InputError(f"{self.folder} is no pack, and holds {there[0]}: an empty or a new folder would work")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """What a file holds; None where there is none."""
        try:
            return json.loads(self.store.read(name)) if self.store.exists(name) else None
        except ValueError as error:
            raise InputError(f"{self.shown}/{name} is broken: packing into another folder would work") from error

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        self.write(name, json.dumps(content, separators=(",", ":")).encode() + b"\n")

    def write(self, name: str, content: bytes) -> None:
        """A file, whole or not at all; in the place of one of that name."""
        if self.folder is None:
            with tempfile.TemporaryDirectory(prefix="regard-") as scratch:
                file = Path(scratch) / "chunk"
                file.write_bytes(content)
                self.store.put(file, name)
            return
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")  # the same for the next call, which writes over a killed one's
        try:
            partial.write_bytes(content)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def holds(self, name: str, sha256: str) -> bool:
        """Whether a file is there, and is of that sum."""
        return self.store.exists(name) and hashlib.sha256(self.store.read(name)).hexdigest() == sha256

    def remove(self, name: str) -> None:
        """Take a file away from disk. In a bucket it stays: it counts for nothing beside `PACK_FILE`."""
        if self.folder:
            (self.folder / name).unlink(missing_ok=True)
