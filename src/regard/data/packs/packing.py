"""Packs any source into a few large chunk files, on disk or in a bucket; `contents` says what is in them.

The layout is LitData's, so that its `StreamingDataset` reads the same files. Image files are kept as they are, masks
become PNGs of class indices. The train split comes in a shuffled order, so that each chunk is a random sample: class
folders are listed by class.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import cv2
import msgspec
import numpy as np
from filelock import FileLock, Timeout

from regard.data.datasets.base import Dataset, Decoded, LabelDataset, MaskDataset, Source, image_file
from regard.data.packs.contents import FIELDS, PACK_FILE, UNFINISHED_FILE, Chunk, Contents, finished, unfinished
from regard.data.packs.store import Store, is_remote
from regard.data.reading import decode_image
from regard.data.source import check_beside, fingerprint
from regard.data.threads import in_threads
from regard.errors import InputError
from regard.say import say
from regard.settings import AS_STORED

CHUNK_MB = 64  # of a chunk, by default
LOCK_FILE = ".packing.lock"  # while a pack is written
TYPES = {"name": "str", "image": "bytes", "mask": "bytes", "label": "int"}  # of the fields, in LitData's words


def pack(
    source: Source, to: str | Path, chunk_mb: int = CHUNK_MB, on_bad_image: Literal["raise", "skip"] = "raise"
) -> tuple[str, Contents, bool]:
    """Pack every split of `source` into `to`, a folder or the URL of one in a bucket; shows a progress bar.

    Gives what to call that, what is in it, and whether anything of it is new.

    chunk_mb: bytes of a chunk, in units of 2**20; one image at least is in each. 1024 at most, as offsets are uint32.

    Where `to` holds the same pack or a part of it, goes on behind the chunks of each split that are whole: on a disk
    the sum of each is compared for that; in a bucket, where that would fetch all of it, the size.

    Every image is decoded once, to see that it can be. Raises InputError for one that can't be, and for a mask that
    doesn't fit, unless they are to be skipped (then it says so); where `to` holds anything else; where it can't be
    written to; and where another call writes to the same folder (in a bucket that is not noticed).
    """
    with _target(source, to) as store:
        values = next((of.values for of in source.splits.values() if isinstance(of, Decoded)), AS_STORED)
        plan = Contents(
            kind="masks" if source.has_masks else "labels" if source.has_labels else "images",
            classes=tuple(source.classes),
            palette=tuple(map(tuple, source.palette.tolist())),
            ignore_index=source.ignore_index,
            chunk_mb=chunk_mb,
            content=fingerprint(source),
            splits=dict.fromkeys(source.splits, ()),
            channels=values.channels or msgspec.UNSET,
            range=values.range or msgspec.UNSET,
        )
        whole = finished(store)
        splits, new = _kept(store, plan, whole or unfinished(store)), whole is None
        for split, dataset in source.splits.items():
            for chunk in _packed(store, split, dataset, splits[split], chunk_mb << 20, on_bad_image == "skip"):
                splits[split], new = (*splits[split], chunk), True
                store.put(msgspec.json.encode(msgspec.structs.replace(plan, splits=splits)), UNFINISHED_FILE)
            if not splits[split]:
                raise InputError(f"no image of {split} of {source.root} can be read: JPEGs or PNGs would work")
            if new or store.read(f"{split}/index.json") is None:
                store.put(json.dumps(_index(splits[split], plan.kind)).encode(), f"{split}/index.json")
        done = msgspec.structs.replace(plan, splits=splits)
        if new:
            store.put(msgspec.json.encode(done), PACK_FILE)
            if not store.remote:  # in a bucket it counts for nothing beside the other, and nothing half-written stays
                for left in (store.path(UNFINISHED_FILE), *store.path("").rglob("*.partial")):
                    left.unlink(missing_ok=True)
        return store.shown, done, new


@contextmanager
def _target(source: Source, to: str | Path) -> Iterator[Store]:
    """Where the pack goes; others who pack are kept out of a folder on disk. InputError where it can't go there."""
    if is_remote(to):
        store = Store(to)
        if str(to).startswith(("http://", "https://")):
            raise InputError(f"{store.shown} can be read from, not written to: a folder, s3:// or gs:// would work")
        yield store
        return
    folder = Path(to).expanduser().resolve()
    check_beside(source, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_FILE, timeout=0).acquire()
    except Timeout:
        raise InputError(f"{folder} is being packed into: its end, or another folder, would work") from None
    with lock:
        yield Store(folder)
        (folder / LOCK_FILE).unlink(missing_ok=True)


def _kept(store: Store, plan: Contents, there: Contents | None) -> dict[str, tuple[Chunk, ...]]:
    """The chunks of each split that are there, up to the first that is not whole. InputError where anything else is."""
    if there is None:
        if held := set(store.names()) - {LOCK_FILE}:
            raise InputError(f"{store.shown} is no pack, and holds {min(held)}: an empty or a new folder would work")
        store.put(msgspec.json.encode(plan), UNFINISHED_FILE)  # so that a folder with chunks is known for what it is
        return dict(plan.splits)
    if msgspec.structs.replace(there, splits=plan.splits) != plan:
        options = (name for name in ("chunk_mb", "channels", "range") if getattr(there, name) != getattr(plan, name))
        differs = next((f"--{name}" for name in options), "its files")
        what = f"{store.shown} holds a pack of other content or settings (it differs in {differs})"
        raise InputError(f"{what}: another folder would work, or this one emptied")
    chunks = {split: there.splits.get(split, ()) for split in plan.splits}
    return {split: tuple(takewhile(partial(_is_whole, store, split), of)) for split, of in chunks.items()}


def _is_whole(store: Store, split: str, chunk: Chunk) -> bool:
    return store.holds(f"{split}/{chunk.file}", chunk.bytes, None if store.remote else chunk.sha256)


def _packed(
    store: Store, split: str, dataset: Dataset, before: Sequence[Chunk], limit: int, skip: bool
) -> Iterator[Chunk]:
    """Write what comes behind these chunks, each closed by the first record that would take it past `limit` bytes."""
    shuffled = np.random.default_rng(0).permutation(len(dataset))
    order = (shuffled if split == "train" else np.arange(len(dataset))).tolist()
    start, number = before[-1].through if before else 0, len(before)
    held, size = list[bytes](), 0

    def write(through: int) -> Chunk:
        content, file = _chunk(held), f"chunk-0-{number}.bin"
        store.put(content, f"{split}/{file}")
        return Chunk(file, len(held), len(content), hashlib.sha256(content).hexdigest(), through)

    for place, record in enumerate(in_threads(partial(_record, dataset), order[start:], f"packing {split}"), start):
        if isinstance(record, InputError):
            if not skip:
                raise record
            say(f"left out: {record}")
            continue
        if held and size + len(record) > limit:
            yield write(place)
            held, size, number = [], 0, number + 1
        held.append(record)
        size += len(record)
    if held:
        yield write(len(order))


def _record(dataset: Dataset, i: int) -> bytes | InputError:
    """Image `i` as it lies in a chunk, or why it can't be packed."""
    try:
        fields = [image_file(dataset, i)]
        if isinstance(dataset, Decoded):
            decode_image(fields[0], dataset.name(i), values=dataset.values)  # to see that it can be
        if isinstance(dataset, MaskDataset):
            fields.append(cv2.imencode(".png", dataset.mask(i))[1].tobytes())
        elif isinstance(dataset, LabelDataset):
            fields.append(int(dataset.label(i)).to_bytes(8, "little", signed=True))
    except InputError as error:
        return error
    fields.insert(0, dataset.name(i).encode("utf-8", "replace"))
    return np.array([len(field) for field in fields], "<u4").tobytes() + b"".join(fields)


def _chunk(records: Sequence[bytes]) -> bytes:
    """LitData's layout: the number of records, where each begins and the last one ends, and the records."""
    header = 4 * (len(records) + 2)
    offsets = header + np.cumsum([0, *map(len, records)])
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
