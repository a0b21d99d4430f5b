"""Chunks of a remote store on a disk of this machine: fetched once for all its processes, the oldest ones given up.

A chunk is kept under its SHA-256 and its size, so that chunks of the same content are one, wherever they come from,
and a chunk of a pack that was made anew is never taken for the old one. What is being fetched counts as if it were
whole, so the bound holds for several processes at any time.
"""

import hashlib
import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from math import inf
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from filelock import FileLock, Timeout

from regard.data.download.transfer import partial_of
from regard.data.packs.store import Store
from regard.errors import InputError

THREADS = 3  # that fetch ahead
POLL = 0.05  # seconds between looks for room
GB = 1_000_000_000
GIGABYTES = 20.0

Chunk = tuple[str, int, str]  # name, bytes, SHA-256


class ChunkCache:
    """The chunks of a store as files of this machine. A local store's own files are given, and nothing is copied.

    folder: holds the chunks of all stores; by default REGARD_CACHE/chunks, or ~/.cache/regard/chunks.
    limit:  bytes that all files in it may have; by default REGARD_CACHE_GB gigabytes, or 20.

    It survives pickling and forking, and any thread may use it.

    Raises InputError for a REGARD_CACHE_GB that is no positive number.
    """

    def __init__(self, store: Store, folder: Path | None = None, limit: int | None = None) -> None:
        self.store = store
        self._chosen = folder
        self.limit = _bound() if limit is None else limit
        self._ahead: tuple[int, SimpleQueue[Chunk]] | None = None  # the process it is of, what is to be fetched

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ahead": None}

    @cached_property
    def folder(self) -> Path:
        """Where the chunks are. InputError where nothing says: of a local store, nobody asks."""
        if self._chosen:
            return self._chosen
        try:
            root = Path(os.environ.get("REGARD_CACHE") or "~/.cache/regard").expanduser()
        except RuntimeError as error:
            raise InputError("this user has no home folder for chunks: a folder in REGARD_CACHE would work") from error
        return root / "chunks"

    def path(self, name: str, size: int, sha256: str) -> Path:
        """Where a chunk is on this machine, once it is there; it counts as used now.

        Open or map it at once: it may be removed when others come. A file that is open or mapped stays readable then;
        where opening it finds it gone, ask again.

        Raises InputError when it can't be had, when the bound is below its size, and when the folder can't be written.
        """
        if not self.store.remote:
            return _of_size(self.store.path(name), size)
        file = self.folder / f"{sha256}-{size}"
        try:
            while not _use(file, size):
                self._bring(name, file, size, sha256)
        except OSError as error:
            what = f"{self.folder} can't be written: {error.strerror or type(error).__name__}"
            raise InputError(f"{what}; another folder in REGARD_CACHE would work") from error
        return file

    def discard(self, size: int, sha256: str) -> None:
        """Remove a chunk of a remote store if it has other bytes by now than were fetched, for `path` to bring anew."""
        file = self.folder / f"{sha256}-{size}"
        with suppress(FileNotFoundError), _lock_of(file), file.open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != sha256:
                file.unlink()

    def prefetch(self, chunks: Iterable[Chunk]) -> None:
        """Have chunks fetched in the background, in this order: as many as fit into half of the bound.

        Errors are left to `path`. The threads end with the process, and what they had begun is gone on with later.
        """
        if not self.store.remote:
            return
        if self._ahead is None or self._ahead[0] != os.getpid():  # a fork has none of its parent's threads
            self._ahead = os.getpid(), SimpleQueue()
            for _ in range(THREADS):
                threading.Thread(target=self._fetch_ahead, args=(self._ahead[1],), daemon=True).start()
        room = self.limit // 2  # the other half is what is being read
        for chunk in chunks:
            room -= chunk[1]
            if room < 0:
                break
            self._ahead[1].put(chunk)

    def _fetch_ahead(self, chunks: "SimpleQueue[Chunk]") -> None:
        while True:
            with suppress(Exception):  # a thread that says why would speak after the end of a process, too
                self.path(*chunks.get())

    def _bring(self, name: str, file: Path, size: int, sha256: str) -> None:
        """Fetch a chunk, unless another thread or process has it by then."""
        if size > self.limit:
            what = f"the cache of {self.limit / GB:g} GB can't hold {name}, which has {size / GB:g} GB"
            raise InputError(f"{what}: a larger REGARD_CACHE_GB would work")
        self.folder.mkdir(parents=True, exist_ok=True)
        with _lock_of(file):
            if not _use(file, size):
                file.unlink(missing_ok=True)  # cut short by a full disk, or by a machine that went down
                while not self._reserve(file, size):
                    time.sleep(POLL)
                self.store.fetch(name, file, size, sha256)

    def _reserve(self, file: Path, size: int) -> bool:
        """Begin `file`, if there is room, after removing what was not used for longest; whether it was."""
        partial = partial_of(file)
        with FileLock(self.folder / ".lock"):
            others = [(path, *rest) for path, *rest in self._entries() if path != partial]
            used = size + sum(bytes_ for _, bytes_, _ in others)
            for path, bytes_, _ in sorted(others, key=lambda entry: entry[2]):
                if used <= self.limit:
                    break
                if _remove(path):
                    used -= bytes_
            if used <= self.limit:
                partial.touch()
                return True
            partial.unlink(missing_ok=True)  # of an earlier process: two that wait with one each would do so for ever
            return False

    def _entries(self) -> list[tuple[Path, int, int]]:
        """(file, bytes that it has or will have, time of its last use in ns) of each chunk."""
        entries = []
        with os.scandir(self.folder) as found:
            for entry in found:
                size = entry.name.removesuffix(".partial").rpartition("-")[2]
                if size.isdigit():
                    with suppress(FileNotFoundError):
                        entries.append((Path(entry.path), int(size), entry.stat().st_mtime_ns))
        return entries


def _use(file: Path, size: int) -> bool:
    """Note that a chunk is used now, if it is there and whole; whether it is."""
    try:
        if file.stat().st_size != size:
            return False
        now = time.time_ns()  # finer than what the kernel would note
        os.utime(file, ns=(now, now))
    except FileNotFoundError:
        return False
    return True


def _remove(path: Path) -> bool:
    """Whether a chunk is deleted, with its lock: not while it is being fetched; what a killed process had begun is."""
    lock = _lock_of(path.with_suffix(""))
    try:
        with lock.acquire(timeout=0):
            path.unlink(missing_ok=True)
            Path(lock.lock_file).unlink(missing_ok=True)  # only while it is held: who waits for it sees it gone
            return True
    except Timeout:
        return False


def _lock_of(file: Path) -> FileLock:
    """A new lock each time: one that was held while the process forked would stay so in the child."""
    return FileLock(file.with_name(file.name + ".lock"))


def _of_size(file: Path, size: int) -> Path:
    """The file itself; InputError if it isn't there, or has another size."""
    try:
        found = file.stat().st_size
    except OSError as error:
        raise InputError(f"{file} can't be read: {error.strerror}") from error
    if found != size:
        raise InputError(f"{file} has {found:,} bytes, and {size:,} are listed: packing it again would work")
    return file


def _bound() -> int:
    """Bytes that the environment allows."""
    text = os.environ.get("REGARD_CACHE_GB") or str(GIGABYTES)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = 0.0
    if not 0 < gigabytes < inf:
        raise InputError(
            f"REGARD_CACHE_GB is {text!r}: a number of gigabytes above 0, such as {GIGABYTES:g}, would work"
        )
    return int(gigabytes * GB)
