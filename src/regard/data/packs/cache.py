"""Chunks as memory maps; those of a remote store by way of a disk: fetched once for all its processes, within a bound.

They are kept in REGARD_CACHE/chunks, or ~/.cache/regard/chunks, as many bytes of them as REGARD_CACHE_GB allows, 20 GB
by default; what was not used for longest goes first. What is being fetched counts as if it were whole, so that the
bound holds for several processes at any time. A chunk is called by its SHA-256 and its size, so that one of a pack that
was made anew is never taken for the old one.
"""

import hashlib
import mmap
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from threading import Thread

import numpy as np
from filelock import FileLock, Timeout

from regard.data.packs.store import Store
from regard.errors import InputError
from regard.say import say

OPEN = 24  # maps that a process keeps: the 16 chunks that an epoch is shuffled within at a time, and some of the next
THREADS = 3  # that fetch ahead
POLL = 0.05  # seconds between looks for room
GB = 1_000_000_000

Wanted = tuple[str, int, str]  # of a chunk: name, bytes, SHA-256


_sound: set[tuple[str, str]] = set()  # stores and sums of chunks whose bytes this process has seen to be theirs


@lru_cache(OPEN)  # unmapped when nobody reads from it any more
def mapped(store: Store, name: str, size: int, sha256: str) -> mmap.mmap:
    """A chunk, read-only; its sum is compared where a process maps it first, and what was fetched is fetched again
    where it is another. InputError where it can't be had: it is not there, or other than listed, or has no room.
    """
    while True:  # it may be given up for others before it is open; then it stays readable
        with suppress(FileNotFoundError), _on_disk(store, name, size, sha256).open("rb") as file:
            chunk = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if (store.shown, sha256) in _sound or hashlib.sha256(chunk).hexdigest() == sha256:
                _sound.add((store.shown, sha256))
                return chunk
            if not store.remote:
                raise InputError(f"{store.path(name)} is damaged: its SHA-256 is another; packing it again would work")
            say(f"{file.name} is damaged: {name} is fetched again")
            Path(file.name).unlink(missing_ok=True)


def prefetch(store: Store, chunks: Sequence[Wanted]) -> None:
    """Have chunks fetched in the background, in this order: as many as fit into half of the bound.

    Errors are left to `mapped`. The threads end with the process.
    """
    ends = np.cumsum([size for _, size, _ in chunks])
    wanted = list(chunks[: int(np.searchsorted(ends, _bound() // 2, side="right"))])  # the other half is being read

    def fetch() -> None:
        while wanted:
            with suppress(Exception):  # a thread that says why would speak after the end of a process, too
                _on_disk(store, *wanted.pop(0))

    for _ in range(min(THREADS, len(wanted)) if store.remote else 0):
        Thread(target=fetch, daemon=True).start()


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
    folder = chunk_folder()
    file = folder / f"{sha256}-{size}"
    try:
        if not _use(file, size):
            folder.mkdir(parents=True, exist_ok=True)
            with _lock_of(file):
                if not _use(file, size):
                    begun = file.with_name(f"{file.name}.begun")
                    while not _reserve(begun, size, limit):
                        time.sleep(POLL)
                    try:
                        store.fetch(name, file, size, sha256)
                    finally:
                        begun.unlink(missing_ok=True)
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


def _reserve(begun: Path, size: int, limit: int) -> bool:
    """Take room for a chunk, if need be by removing what was not used for longest; whether there is any."""
    folder = begun.parent
    with FileLock(folder / ".lock"):
        found = []  # of other chunks, whole or begun: (time of the last use, bytes, file)
        for path in folder.glob("[!.]*"):
            with suppress(FileNotFoundError):
                if path.suffix != ".partial" and path != begun:
                    found.append((path.stat().st_mtime_ns, int(path.stem.rpartition("-")[2]), path))
        room = limit - size - sum(bytes_ for _, bytes_, _ in found)
        for _, bytes_, path in sorted(found):
            if room < 0 and (path.suffix != ".begun" or _is_abandoned(path, begun)):
                for file in folder.glob(f"{path.stem}*"):
                    file.unlink(missing_ok=True)
                room += bytes_
        if room >= 0:
            begun.touch()
        return room >= 0


def _is_abandoned(other: Path, begun: Path) -> bool:
    """Whether the process that began another chunk was killed, as nobody holds its lock, or we do."""
    if _lock_of(other).lock_file == _lock_of(begun).lock_file:
        return True
    with suppress(Timeout), _lock_of(other).acquire(timeout=0):
        return True
    return False


def _lock_of(file: Path) -> FileLock:
    """One of 256, as chunks come and go; a new one each time, as that of a parent would stay held in a fork."""
    return FileLock(file.with_name(f".{file.name[:2]}.lock"))


def chunk_folder() -> Path:
    """Where the chunks of all stores are kept."""
    return Path(os.environ.get("REGARD_CACHE") or "~/.cache/regard").expanduser() / "chunks"


def _bound() -> int:
    """Bytes that the environment allows."""
    text = os.environ.get("REGARD_CACHE_GB") or "20"
    gigabytes = float(text) if re.fullmatch(r"\d*\.?\d+", text) else 0.0
    if not gigabytes:
        raise InputError(f"REGARD_CACHE_GB is {text!r}: a number of gigabytes above 0, such as 20, would work")
    return int(gigabytes * GB)
