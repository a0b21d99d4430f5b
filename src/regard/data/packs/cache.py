"""Chunks as memory maps; those of a remote store by way of a disk: fetched once for all its processes, within a bound.

They are kept in REGARD_CACHE/chunks, or ~/.cache/regard/chunks, as many bytes of them as REGARD_CACHE_GB allows, 20 GB
by default; what was not used for longest goes first. What is being fetched counts as if it were whole, so that the
bound holds for several processes, unless what they fetch at one time is more than that. A chunk is called by its
SHA-256 and its size, so that one of a pack that was made anew is never taken for the old one.
"""

import mmap
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from threading import Thread

from filelock import FileLock

from regard.data.listing import cache_folder
from regard.data.packs.store import Store
from regard.errors import InputError

OPEN = 24  # maps that a process keeps: the 16 chunks that an epoch is shuffled within at a time, and some of the next
THREADS = 3  # that fetch ahead
ABANDONED = 600 * 10**9  # nanoseconds without a byte after which nobody fetches a chunk any more
GB = 1_000_000_000

Wanted = tuple[str, int, str]  # of a chunk: name, bytes, SHA-256


@lru_cache(OPEN)  # unmapped when nobody reads from it any more
def mapped(store: Store, name: str, size: int, sha256: str) -> mmap.mmap:
    """A chunk, read-only. InputError where it can't be had: it is not there, or other than listed, or has no room."""
    while True:  # it may be given up for others before it is open; then it stays readable
        with suppress(FileNotFoundError), _on_disk(store, name, size, sha256).open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def prefetch(store: Store, chunks: Sequence[Wanted]) -> None:
    """Have chunks fetched in the background, about in this order: as many as fit into half of the bound.

    Errors are left to `mapped`. The threads end with the process.
    """
    room, wanted = _bound() // 2, []  # the other half is what is being read
    for chunk in chunks if store.remote else ():
        if (room := room - chunk[1]) < 0:
            break
        wanted.append(chunk)
    for first in range(min(THREADS, len(wanted))):
        Thread(target=_fetch_ahead, args=(store, wanted[first::THREADS]), daemon=True).start()


def _fetch_ahead(store: Store, chunks: Sequence[Wanted]) -> None:
    for chunk in chunks:
        with suppress(Exception):  # a thread that says why would speak after the end of a process, too
            _on_disk(store, *chunk)


def _on_disk(store: Store, name: str, size: int, sha256: str) -> Path:
    """Where a chunk is on this machine, once it is there; it counts as used now."""
    if not store.remote:
        if not store.holds(name, size):
            what = f"{store.path(name)} is not there, or has not the {size:,} bytes that are listed"
            raise InputError(f"{what}: packing it again would work")
        return store.path(name)
    if size > (limit := _bound()):
        what = f"the cache of {limit / GB:g} GB can't hold {name}, which has {size / GB:g} GB"
        raise InputError(f"{what}: a larger REGARD_CACHE_GB would work")
    folder = cache_folder() / "chunks"
    file = folder / f"{sha256}-{size}"
    try:
        if not _use(file, size):
            folder.mkdir(parents=True, exist_ok=True)
            # One of 256: chunks come and go, locks stay. Made anew, as one of a parent would stay held in a fork.
            with FileLock(folder / f".{sha256[:2]}.lock"):
                if not _use(file, size):
                    store.fetch(name, file, size, sha256, lambda: _make_room(folder, limit))
    except OSError as error:
        what = f"{folder} can't be written: {error.strerror or type(error).__name__}"
        raise InputError(f"{what}; another folder in REGARD_CACHE would work") from error
    return file


def _use(file: Path, size: int) -> bool:
    """Note that a chunk is used now, if it is there and whole; whether it is."""
    try:
        now = time.time_ns()  # finer than what the kernel would note
        os.utime(file, ns=(now, now))
        return file.stat().st_size == size  # else cut short by a machine that went down
    except FileNotFoundError:
        return False


def _make_room(folder: Path, limit: int) -> None:
    """Remove what was not used for longest, until all chunks fit into the bound, those that are begun too."""
    with FileLock(folder / ".lock"):
        found = []  # (time of the last use, bytes that it has or will have, file)
        for path in folder.glob("[!.]*"):
            with suppress(FileNotFoundError, ValueError):
                found.append((path.stat().st_mtime_ns, int(path.name.partition(".")[0].rpartition("-")[2]), path))
        used = sum(size for _, size, _ in found)
        for at, size, path in sorted(found):
            if used > limit and (path.suffix != ".partial" or at < time.time_ns() - ABANDONED):
                path.unlink(missing_ok=True)
                used -= size


def _bound() -> int:
    """Bytes that the environment allows."""
    text = os.environ.get("REGARD_CACHE_GB") or "20"
    gigabytes = float(text) if re.fullmatch(r"\d*\.?\d+", text) else 0.0
    if not gigabytes:
        raise InputError(f"REGARD_CACHE_GB is {text!r}: a number of gigabytes above 0, such as 20, would work")
    return int(gigabytes * GB)
