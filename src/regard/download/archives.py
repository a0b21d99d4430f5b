"""Unpacks zip and tar archives of others: nothing outside the folder, nothing written over, all of it or nothing.

Only files and directories are made: a link is what every way out of a folder starts with, and tarfile's own filter
against those was led astray (CVE-2025-4517).
"""

import errno
import gzip
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from regard.errors import InputError


def unpack(
    archive: Path, into: Path, scratch: Path, progress: Callable[[int, int], None] = lambda done, whole: None
) -> list[Path]:
    """Unpack into the folder `into`, by way of the folder `scratch` on the same disk; gives what is there now.

    Members come into place only when all are unpacked, so that half a tree never looks like a whole one. Who may read
    and write them is as the umask says, whatever the archive does. progress: gets the bytes of the archive that are
    done, and in all.

    Raises InputError for a broken archive; a member with an absolute path or "..", one below a file, a link of either
    kind, a device or a pipe; where something of the same name is there already; and when the disk is full.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        members = _zip if archive.suffix == ".zip" else _tar
        for done in members(archive, scratch):
            progress(done, archive.stat().st_size)
        return _in_place(scratch, into)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise _untrusted(archive, str(error.filename), "is both a file and a directory") from error
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, RuntimeError) as error:
        reason = " ".join(str(error).split())  # tarfile says in a line for each what it is not
        raise InputError(f"{archive} is broken ({reason}): delete it, and download it again") from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise InputError(f"no room left in {into} to unpack {archive.name}: make room, and try again") from error
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _zip(archive: Path, folder: Path) -> Iterator[int]:
    """Bytes of the archive that are done, member by member; zipfile compares the CRC of each."""
    with zipfile.ZipFile(archive) as opened:
        members, done = opened.infolist(), 0
        needed, free = sum(member.file_size for member in members), shutil.disk_usage(folder).free
        if needed > free:
            raise InputError(f"{archive.name} unpacks to {needed:,} bytes, and {free:,} are free: make room")
        for member in members:
            _check(archive, member.orig_filename, not stat.S_ISLNK(member.external_attr >> 16))
        for member in members:
            opened.extract(member, folder)
            done += member.compress_size
            yield done


def _tar(archive: Path, folder: Path) -> Iterator[int]:
    with archive.open("rb") as raw, tarfile.open(fileobj=raw) as opened:
        for member in opened:
            _check(archive, member.name, member.isreg() or member.isdir())
            opened.extract(member, folder, set_attrs=False, filter="data")
            yield raw.tell()


def _check(archive: Path, name: str, is_plain: bool) -> None:
    """InputError for a member that is no file or directory, or not in the folder: the libraries rename some."""
    windows = PureWindowsPath(name)  # which knows both kinds of slashes
    if PurePosixPath(name).is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        raise _untrusted(archive, name, "would be outside of the folder")
    if not is_plain:
        raise _untrusted(archive, name, "is a link, a device or a pipe")


def _untrusted(archive: Path, name: str, why: str) -> InputError:
    return InputError(f"{archive} is not to be trusted: {name!r} {why}")  # a name may hold a line break


def _in_place(scratch: Path, into: Path) -> list[Path]:
    """Rename what lies directly in `scratch`."""
    found = sorted(scratch.iterdir())
    if not found:
        raise InputError(f"nothing is in the archive for {into}")
    places = [into / path.name for path in found]
    if there := [place for place in places if os.path.lexists(place)]:
        raise InputError(f"{there[0]} is there already: move it away, or choose another folder")
    into.mkdir(parents=True, exist_ok=True)
    for path, place in zip(found, places, strict=True):
        path.rename(place)
    return places
