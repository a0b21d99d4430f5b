"""A folder of files that is on a disk, in a bucket or on a web server, and how its files get here whole.

A chunk comes in blocks, each by a range request (RFC 9110, section 14): what is cut short goes on from the last whole
block, also in a later process. A server that knows no ranges sends the whole file, and that is taken.
"""

import hashlib
import itertools
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Lock
from typing import IO, Any, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

from regard.data.download.transfer import partial_of
from regard.data.packs.remote import KINDS, Passing, explain, is_absent, lacks_bucket, no_bucket, open_remote
from regard.errors import InputError, unknown

TRIES = 5  # of a block, or of putting a file
TRIES_TO_READ = 2  # of a small file: it is the first that is asked for, and a wrong URL should be said at once
ROUNDS = 3  # of a chunk whose sum is wrong: after that, what the store has is not what was packed
WAIT = 0.5  # seconds before the second try, doubled before each further one
BLOCK = 1 << 24  # bytes asked for at once: at 100 MB/s, a request's 50 to 100 ms are up to a third of its time
SMALLEST = 1 << 20  # bytes: each further try asks for a quarter, down to this, which comes over poor connections too

Result = TypeVar("Result")

# A fork inherits the file systems of its parent. To close them, as their finalisers would, would take the parent's
# connections out of the event queue that both share; so they are held here, and never used.
_KEPT: list[Any] = []


def is_remote(src: str | Path) -> bool:
    """Whether `src` is a URL (s3://, gs://, https://, ...) rather than a path; C:/ is a disk."""
    scheme, found, _ = str(src).partition("://")
    return bool(found) and len(scheme) > 1 and scheme.isalnum()


class Store:
    """A folder of files, at a path or at s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or https://HOST/FOLDER.

    shown:  its URL without user, password and query, for people, logs and files.
    remote: whether it is not on a disk of this machine.

    Credentials come from the environment (`regard.data.packs.remote`); only for https:// can they be in the URL. It
    survives pickling and forking: each process has connections of its own, made when first needed. Any thread may use
    it.

    Raises InputError for a URL that can't be one, and from its methods, in one line without secrets, for what is not
    there, refused, or can't be reached, and for a package that is missing.
    """

    def __init__(self, url: str | Path) -> None:
        self.remote = is_remote(url)
        self._url = str(url).rstrip("/") or "/"
        self._file_systems: dict[int, Any] = {}  # process number -> fsspec file system
        self._opening: dict[int, Lock] = {}  # likewise
        if not self.remote:
            self.shown = self._url
            return
        scheme = str(url).partition("://")[0].lower()
        if scheme not in KINDS:
            raise unknown("kind of URL", f"{scheme}://", [f"{scheme}://" for scheme in KINDS])
        self._kind = KINDS[scheme]
        try:
            parts = urlsplit(self._url)
        except ValueError:
            raise InputError(f"that {scheme}:// URL can't be read: {scheme}://NAME/FOLDER would work") from None
        user, _, host = parts.netloc.rpartition("@")
        # Before anything is shown: a secret with a / in it ends what counts as the host, and would pass for a path.
        if self._kind != "http" and ("@" in self._url or ":" in host or parts.query):
            raise InputError(f"{scheme}:// takes no user, password or query: credentials come from the environment")
        if self._url.count("@") != bool(user) or "@" in user:
            what = f"that {scheme}:// URL has an @ that does not end its user and password"
            raise InputError(f"{what}: %40 in its place, and %2F, %3F and %23 for /, ? and # in a password, would work")
        self.shown = f"{scheme}://{host}{parts.path}".rstrip("/")
        if not host:
            raise InputError(f"{self.shown} names no bucket or host: {scheme}://NAME/FOLDER would work")
        if parts.fragment:
            instead = "%23 in its place" if self._kind == "http" else "a folder without one"
            raise InputError(f"{self.shown} is followed by a #, which ends a URL: {instead} would work")

    def __repr__(self) -> str:
        return f"Store({self.shown!r})"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file_systems": {}, "_opening": {}}

    def path(self, name: str) -> Path:
        """Where a file of a store that is not remote is."""
        return Path(self._url) / name

    def read(self, name: str) -> bytes:
        """The bytes of a small file."""
        if self.remote:
            return self._patiently(lambda _: self._ask("cat_file", name), name, TRIES_TO_READ)
        return self._from_disk(name, 0, None)

    def exists(self, name: str) -> bool:
        """Whether there is such a file. InputError where it can't be known, and for a bucket that is not there."""
        if not self.remote:
            return self.path(name).is_file()
        ask = partial(self._ask, "cat_file", name, absent=b"", start=0, end=1)
        return self._patiently(lambda _: ask(), name, TRIES_TO_READ) != b""

    def digest(self, name: str, size: int) -> str | None:
        """The SHA-256 of a file of `size` bytes, which is read in blocks; None where it is not there, or of another."""
        if not self.holds(name, size):
            return None
        digest, begun = hashlib.sha256(), 0
        while begun < size:
            part = self._patiently(partial(self._part, name, begun, size), name, TRIES)
            digest.update(part)
            begun += len(part)
        return digest.hexdigest()

    def holds(self, name: str, size: int) -> bool:
        """Whether there is a file of that name and of `size` > 0 bytes. InputError as of `exists`."""
        if not self.remote:
            return self.exists(name) and self.path(name).stat().st_size == size
        ask = partial(self._ask, "cat_file", name, absent=b"", start=size - 1, end=size + 1)
        found = len(self._patiently(lambda _: ask(), name, TRIES_TO_READ))
        return found in (1, size)  # a server without ranges sends all of it

    def put(self, data: bytes, name: str) -> None:
        """Write a file: whole, or not at all; in the place of one of that name."""
        if self.remote and self._kind == "http":
            raise InputError(f"{self.shown} can only be read from: s3://, gs:// or a folder would work")
        if self.remote:
            # In one request: a bucket shows nothing of a file before all of it is there, and keeps no parts of one.
            self._patiently(lambda _: self._ask("pipe_file", name, data, chunksize=len(data) + 1), name, TRIES)
            return
        target = self.path(name)
        begun = partial_of(target)  # the same for the next call, which writes over a killed one's
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with begun.open("wb") as file:
                file.write(data)
                _to_disk(file)
            begun.replace(target)
        except OSError as error:
            raise InputError(f"{target} can't be written: {error.strerror or type(error).__name__}") from error
        finally:
            with suppress(OSError):
                begun.unlink()

    def fetch(self, name: str, to: Path, size: int, sha256: str) -> None:
        """Bring a file of `size` bytes and a known SHA-256 to `to`, by way of TO.partial, which stays if that fails.

        One process at a time may fetch to the same place (`regard.data.packs.chunk_cache` sees to that).
        """
        to.parent.mkdir(parents=True, exist_ok=True)
        begun = partial_of(to)
        try:
            with begun.open("a+b") as file:
                self._complete(name, file, size, sha256)
                _to_disk(file)
        except InputError:
            if not begun.stat().st_size:
                begun.unlink()
            raise
        begun.replace(to)

    def _complete(self, name: str, file: Any, size: int, sha256: str) -> None:
        """Append to `file` what it lacks; if the sum is wrong then, from its beginning."""
        if file.tell() > size:
            file.truncate(0)
        for _ in range(ROUNDS):
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256")
            while (begun := file.tell()) < size:
                part = self._patiently(lambda tried, begun=begun: self._part(name, begun, size, tried), name, TRIES)
                file.write(part)
                digest.update(part)
            if digest.hexdigest() == sha256:
                return
            file.truncate(0)
        what = f"{self.shown}/{name} is not what was packed (its SHA-256 is another, {ROUNDS} times)"
        raise InputError(f"{what}: to remove it there and pack again would work")

    def _part(self, name: str, begun: int, size: int, tried: int) -> bytes:
        """The bytes of a file from `begun` on: a block, or all there are where the server knows no ranges."""
        end = min(size, begun + max(BLOCK >> 2 * tried, SMALLEST))
        part = self._ask("cat_file", name, start=begun, end=end) if self.remote else self._from_disk(name, begun, end)
        if len(part) == end - begun:
            return part
        if len(part) == size:
            return part[begun:]
        raise Passing(f"{len(part):,} bytes came where {end - begun:,} were asked for")

    def _from_disk(self, name: str, start: int, end: int | None) -> bytes:
        try:
            with self.path(name).open("rb") as file:
                file.seek(start)
                return file.read(-1 if end is None else end - start)
        except OSError as error:
            raise InputError(f"{self.path(name)} can't be read: {error.strerror}") from error

    def _patiently(self, attempt: Callable[[int], Result], name: str, tries: int) -> Result:
        """What `attempt(how often it was tried)` gives; it is tried again as long as what stops it may pass."""
        for tried in itertools.count():
            try:
                return attempt(tried)
            except Passing as error:
                if tried + 1 == tries:
                    raise InputError(f"{self.shown}/{name} can't be had after {tries} tries ({error})") from None
                time.sleep(WAIT * 2**tried)
        raise AssertionError

    def _ask(self, method: str, name: str, *values: bytes, absent: bytes | None = None, **options: Any) -> Any:
        """Call a method of the file system for a file; `absent`, if given, is what to return where there is none."""
        shown = f"{self.shown}/{name}"
        files = self._file_system()
        try:
            return getattr(files, method)(self._address(name), *values, **options)
        except Exception as error:
            if is_absent(error) and lacks_bucket(files, self._kind, self._address(name)):
                raise no_bucket(shown) from None
            if is_absent(error) and absent is not None:
                return absent
            # The libraries' errors hold whole URLs, and a loader's worker sends home the text of all that are linked.
            raise explain(error, self._kind, shown) from None

    def _file_system(self) -> Any:
        """The fsspec file system of this process."""
        process = os.getpid()
        with self._opening.setdefault(process, Lock()):  # a lock of the parent's may be held for ever
            if process not in self._file_systems:
                made = open_remote(self._kind, self.shown)
                _KEPT.append(made)
                self._file_systems[process] = made
        return self._file_systems[process]

    def _address(self, name: str) -> str:
        """Where a file is, as the file system calls it."""
        parts = urlsplit(self._url)
        if self._kind != "http":
            return f"{parts.netloc}{parts.path.rstrip('/')}/{name}"
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))


def _to_disk(file: IO[bytes]) -> None:
    """Have a file's bytes on the disk before its name is: a machine that goes down leaves it whole or not there."""
    file.flush()
    os.fsync(file.fileno())
