"""One file over HTTP, by the standard library: gone on with where it was cut short, tried again where it broke off.

RFC 9110: a part is asked for by Range (section 14.2), on the condition (If-Range, 13.1.5) that the file on the server
is still the one that was begun. A server that knows no ranges, or has another file by now, sends the whole of it.
"""

import shutil
import ssl
import time
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from regard.data.packs.remote import PASSING
from regard.errors import InputError

TRIES = 5  # in a row in which nothing arrives
WAIT = 1.0  # seconds before the second try, doubled before each further one
SILENCE = 60.0  # seconds after which a connection counts as broken
CHUNK = 1 << 18  # bytes; a progress bar moves with each

Progress = Callable[[int, int | None], None]  # bytes that are here, and in all where that is known


def transfer(url: str, file: Path, size: int | None = None, progress: Progress = lambda done, whole: None) -> None:
    """Download to `file`, by way of FILE.partial, which stays for the next call when this one is cut short.

    size: bytes that the file should have, where that is known. urllib honours `https_proxy`.

    Raises InputError when the server does not have the file, or another of that name, or cannot be reached, and when
    the disk has no room for it.
    """
    partial, tries, furthest = partial_of(file), 0, 0
    while True:
        try:
            _receive(url, partial, size, progress)
        except HTTPError as error:
            error.close()
            if error.code < 500 and error.code not in PASSING:
                raise InputError(f"{url} answers {error.code} {error.reason}: the data set may have moved") from error
            reason = f"{error.code} {error.reason}"
        except (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        else:
            partial.replace(file)
            _tag_of(partial).unlink(missing_ok=True)
            return
        reached = _length(partial)
        tries = 1 if reached > furthest else tries + 1
        furthest = max(furthest, reached)
        if tries == TRIES:
            kept = f", and {reached:,} bytes are kept: the same command goes on from there" if reached else ""
            raise InputError(f"{url} can't be had after {TRIES} tries ({reason}){kept}")
        time.sleep(WAIT * 2 ** (tries - 1))


def partial_of(file: Path) -> Path:
    """Where a file is as long as it is not whole."""
    return file.with_name(file.name + ".partial")


def _tag_of(partial: Path) -> Path:
    """Where it is noted which file of the server was begun."""
    return partial.with_name(partial.name + ".tag")


def _length(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _receive(url: str, partial: Path, size: int | None, progress: Progress) -> None:
    """Make `partial` whole, or as much of it as one connection brings."""
    note, begun = _tag_of(partial), _length(partial)
    tag = note.read_text(encoding="utf-8") if begun and note.exists() else ""
    headers = {"User-Agent": "regard", "Accept-Encoding": "identity"}  # the bytes of the file, never packed once more
    if tag:
        headers |= {"Range": f"bytes={begun}-", "If-Range": tag}
    try:
        answer: HTTPResponse = urlopen(Request(url, headers=headers), timeout=SILENCE)
    except HTTPError as error:
        if error.code != 416:
            raise
        error.close()
        if error.headers.get("Content-Range") == f"bytes */{begun}":  # cut short between the last byte and the renaming
            return
        note.unlink(missing_ok=True)
        raise ConnectionError("the file on the server has changed") from error
    with answer:
        if answer.status != 206:
            begun = 0
        elif not answer.headers.get("Content-Range", "").startswith(f"bytes {begun}-") or _tag(answer) not in ("", tag):
            note.unlink(missing_ok=True)
            raise ConnectionError("the server sends another part, or of another file, than was asked for")
        length = answer.headers.get("Content-Length")
        whole = None if length is None else begun + int(length)
        if size is not None and whole not in (None, size):
            raise InputError(f"{url} has {whole:,} bytes, and {size:,} are published: the file there is another by now")
        if whole is not None and (free := shutil.disk_usage(partial.parent).free) < whole - begun:
            raise InputError(f"{partial.parent} has {free:,} bytes free, and {whole - begun:,} are to come: make room")
        with partial.open("ab" if begun else "wb") as stream:
            if not begun:
                note.write_text(_tag(answer), encoding="utf-8")
            while chunk := answer.read(CHUNK):
                stream.write(chunk)
                begun += len(chunk)
                progress(begun, whole)
    if whole is not None and begun < whole:  # read() takes the end of a connection for the end of the file
        raise ConnectionError(f"the connection broke off at {begun:,} of {whole:,} bytes")


def _tag(answer: HTTPResponse) -> str:
    """What a part can be asked for with later; "" where the server names nothing, and it must then start again."""
    tag = answer.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified", "")
