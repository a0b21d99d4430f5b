"""A folder of files that is on a disk, in a bucket or on a web server, and how its files get here whole, by fsspec.

There is one rule for retries: what may be over at the next try is tried again, a few times, after growing waits. A
chunk comes in blocks, each by a range request, so that what is cut short goes on from the last whole block; a server
that knows no ranges sends the whole file, and that is taken.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote

from regard.data.packs.remote import KINDS, Passing, explain, file_system, is_absent
from regard.errors import InputError, unknown
from regard.files import write_whole

TRIES = 4
WAIT = 0.5  # seconds before the second try, doubled before each further one
BLOCK = 1 << 24  # bytes asked for at once: at 100 MB/s, a request's 50 to 100 ms are up to a third of its time

Result = TypeVar("Result")


def is_remote(src: str | Path) -> bool:
    """Whether `src` is a URL (s3://, gs://, https://, ...) rather than a path; C:/ is a disk."""
    scheme, found, _ = str(src).partition("://")
    return bool(found) and len(scheme) > 1 and scheme.isalnum()


class Store:
    """A folder of files, at a path or at s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or https://HOST/FOLDER.

    shown:  its URL without user, password and query, for people, logs and files.
    remote: whether it is not on a disk of this machine.

    Credentials come from the environment (`regard.data.packs.remote`); only for https:// can they be in the URL. It
    survives pickling and forking, and any thread may use it.

    Raises InputError for a URL that can't be one, and from its methods, in one line without secrets, for what is not
    there, refused, or can't be reached, and for a package that is missing.
    """

    def __init__(self, url: str | Path) -> None:
        self.remote = is_remote(url)
        self._url = str(url).rstrip("/") or "/"
        self.shown, self._kind = self._url, "file"
        if not self.remote:
            return
        scheme = str(url).partition("://")[0].lower()
        if scheme not in KINDS:
            raise unknown("kind of URL", f"{scheme}://", [f"{scheme}://" for scheme in KINDS])
        self._kind = KINDS[scheme]
        # Nothing of a URL is shown before all of it is understood: what follows a stray # / ? or @ may be a secret.
        host = r"(\[[\da-f:]+\]:?\d*|[^/?#@\[\]]+)"
        parts = re.fullmatch(rf"\w+://([^/?#@]*@)?{host}(/[^?#@]*)?(\?[^#@]*)?", self._url)
        if parts is None or (self._kind != "http" and (parts[1] or parts[4] or ":" in parts[2])):
            more = "%40, %2F, %3F and %23 stand for further @, /, ? and #; s3:// and gs:// take no user and password"
            raise InputError(f"that {scheme}:// URL can't be read: {scheme}://NAME/FOLDER would work; {more}")
        self.shown = f"{scheme}://{parts[2]}{parts[3] or ''}"

    def path(self, name: str) -> Path:
        """Where a file of a store that is not remote is."""
        return Path(self._url) / name

    def read(self, name: str) -> bytes | None:
        """The bytes of a small file; None where there is none. InputError also for a bucket that is not there."""
        return self._ask(name, lambda files, file: files.cat_file(file), absent=None)

    def holds(self, name: str, size: int, sha256: str | None = None) -> bool:
        """Whether there is a file of `size` > 0 bytes, and of that SHA-256 where it is given: then all of it is read.

        InputError as of `read`.
        """
        end = self._ask(name, lambda files, file: files.cat_file(file, start=size - 1, end=size + 1), absent=b"")
        if len(end) not in (1, size):  # a server without ranges sends all of it
            return False
        return sha256 is None or self._copy(name, size, lambda block: None) == sha256

    def names(self) -> list[str]:
        """What lies directly in the folder; nothing where there is none."""
        return sorted(
            path.rpartition("/")[2]
            for path in self._ask("", lambda files, folder: files.ls(folder, detail=False), absent=[])
        )

    def put(self, data: bytes, name: str) -> None:
        """Write a file: whole, or not at all; in the place of one of that name."""
        if self.remote:
            # In one request: a bucket shows nothing of a file before all of it is there, and keeps no parts of one.
            self._ask(name, lambda files, file: files.pipe_file(file, data, chunksize=len(data) + 1))
        else:
            write_whole(self.path(name), lambda file: file.write(data))

    def fetch(self, name: str, to: Path, size: int, sha256: str) -> None:
        """Bring a file of `size` bytes and a known SHA-256 to `to`, whole or not at all."""

        def write(file: BinaryIO) -> None:
            if self._copy(name, size, file.write) != sha256:
                raise Passing("it is not what was packed: its SHA-256 is another")

        _patiently(lambda: write_whole(to, write), f"{self.shown}/{name}")

    def _copy(self, name: str, size: int, write: Callable[[bytes], object]) -> str:
        """Have a file of that size written block by block; its SHA-256."""
        digest, begun = hashlib.sha256(), 0
        while begun < size:
            start, end = begun, min(size, begun + BLOCK)
            block = self._ask(
                name, lambda files, file, start=start, end=end: files.cat_file(file, start=start, end=end)
            )
            if len(block) == size:  # the server knows no ranges, or the file is a block
                block = block[begun:]
            elif len(block) != end - begun:
                raise InputError(f"{self.shown}/{name} has fewer bytes than are listed: packing it again would work")
            write(block)
            digest.update(block)
            begun += len(block)
        return digest.hexdigest()

    def _ask(self, name: str, call: Callable[[Any, str], Any], absent: Any = "raise") -> Any:
        """What `call` gives of the file system and an address in it; or `absent`, if given, where there is none."""
        shown, address = f"{self.shown}/{name}", self._address(name)

        def attempt() -> Any:
            try:
                return call(file_system(self._kind, os.getpid()), address)
            except Exception as error:
                if absent != "raise" and is_absent(error):
                    return absent
                # The libraries' errors hold whole URLs, and a loader's worker sends home the text of all those linked.
                raise explain(error, self._kind, shown) from None

        return _patiently(attempt, shown)

    def _address(self, name: str) -> str:
        """Where a file is, as the file system calls it."""
        if not self.remote:
            return str(self.path(name))
        folder, mark, query = self._url.partition("?")
        file = f"{folder.rstrip('/')}/{quote(name) if self._kind == 'http' else name}"
        return f"{file}{mark}{query}" if self._kind == "http" else file.partition("://")[2]


def _patiently(attempt: Callable[[], Result], shown: str) -> Result:
    """What `attempt` gives; it is tried again as long as what stops it may pass."""
    tried = 0
    while True:
        try:
            return attempt()
        except Passing as error:
            tried += 1
            if tried == TRIES:
                raise InputError(f"{shown} can't be had after {TRIES} tries ({error})") from None
        time.sleep(WAIT * 2 ** (tried - 1))
