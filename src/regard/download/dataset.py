"""Gets a published data set onto a disk: its archives fetched, compared and unpacked.

An archive with a published checksum is compared with it. Of one without, the size is compared where that is known, and
zip files carry a CRC of each member; the SHA-256 of what came is noted in `downloads.json` beside the data, for people
to compare, and a later download of the same archive into the same folder must have it too.
"""

import hashlib
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from regard.data.datasets.published import Archive, Published
from regard.download.archives import unpack
from regard.download.transfer import partial_of, transfer
from regard.errors import InputError
from regard.files import read_json, write_json
from regard.say import console, say

NOTES = "downloads.json"
CHUNK = 1 << 20  # bytes read at a time for a checksum


@dataclass(frozen=True)
class Downloaded:
    """What is on the disk now. root: the folder to open. new: the archives that were unpacked just now."""

    root: Path
    new: tuple[str, ...]


def download(data: Published, out: Path, keep_archives: bool = False) -> Downloaded:
    """Download and unpack what is not in `out` yet, with a progress bar; what was cut short goes on.

    keep_archives: leave the archives in `out` when they are unpacked.

    Raises InputError when an archive can't be had, isn't what was published, or can't be unpacked (`transfer`,
    `unpack`), and when the disk has too little room. An archive with a wrong checksum is deleted.
    """
    if not data.archives:
        raise InputError(f"it has no lasting address to download it from: {data.home} may say where it is")
    made = [folder for folder in (out, *out.parents) if not folder.exists()]  # innermost first
    out.mkdir(parents=True, exist_ok=True)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    try:
        missing = [archive for archive in data.archives if not _is_there(archive, out)]
        _check_room(missing, out, keep_archives)
        with Progress(*columns, TimeRemainingColumn(), console=console(), transient=True) as progress:
            for archive in missing:
                _get(archive, out, keep_archives, progress)
    finally:
        for folder in made:  # which stay, unless nothing came
            with suppress(OSError):
                folder.rmdir()
    return Downloaded(out / data.root, tuple(archive.name for archive in missing))


def _is_there(archive: Archive, out: Path) -> bool:
    note = _notes(out).get(archive.name, {})
    return note.get("url") == archive.url and all((out / path).exists() for path in note["unpacked"])


def _notes(out: Path) -> dict[str, Any]:
    """What is noted of each archive that was unpacked: its url, size, SHA-256, and what it made."""
    return read_json(out / NOTES) if (out / NOTES).exists() else {}


def _check_room(archives: list[Archive], out: Path, keep_archives: bool) -> None:
    """Images hardly shrink in an archive: what is unpacked is taken to be as large as that."""
    sizes = [archive.size or 0 for archive in archives]
    here = sum(
        path.stat().st_size for a in archives for path in (out / a.name, partial_of(out / a.name)) if path.exists()
    )
    needed = sum(sizes) + (sum(sizes) if keep_archives else max(sizes, default=0)) - here
    if needed > (free := shutil.disk_usage(out).free):
        raise InputError(f"about {needed / 1e9:.1f} GB are needed, and {out} has {free / 1e9:.1f} GB free: make room")


def _get(archive: Archive, out: Path, keep_archives: bool, progress: Progress) -> None:
    """Download, compare, unpack, note."""
    file, task = out / archive.name, progress.add_task(archive.name)

    def show(doing: str) -> Callable[[int, int | None], None]:
        progress.reset(task, description=f"{doing} {archive.name}", total=archive.size)
        return lambda done, whole: progress.update(task, completed=done, total=whole)

    if not file.exists():
        transfer(archive.url, file, archive.size, show("downloading"))
    sha256 = _verified(archive, file, out, show("checking"))
    if archive.checksum is None:
        say(f"{archive.name} has no published checksum; the SHA-256 of this one, in {out / NOTES}: {sha256}")
    made = unpack(file, out / archive.into, out / f".{archive.name}.unpacking", show("unpacking"))
    unpacked = [path.relative_to(out).as_posix() for path in made]
    note = {"url": archive.url, "size": file.stat().st_size, "sha256": sha256, "unpacked": unpacked}
    write_json(out / NOTES, _notes(out) | {archive.name: note})
    if not keep_archives:
        file.unlink()
    progress.remove_task(task)


def _verified(archive: Archive, file: Path, out: Path, show: Callable[[int, int | None], None]) -> str:
    """The SHA-256 of the file; InputError, and the file deleted, when it isn't the one that was published."""
    before = _notes(out).get(archive.name, {}).get("sha256")
    expected = archive.checksum or (before and f"sha256:{before}") or "sha256:"
    kind, _, published = expected.partition(":")
    sums, done = {"sha256": hashlib.sha256(), kind: hashlib.new(kind)}, 0
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            for checksum in sums.values():
                checksum.update(chunk)
            done += len(chunk)
            show(done, file.stat().st_size)
    found = sums[kind].hexdigest()
    if published and found != published:
        file.unlink()
        whose = "published" if archive.checksum else f"noted of an earlier download in {out / NOTES}"
        raise InputError(f"{archive.url} has the {kind} {found}, and {published} is {whose}: it was deleted, try again")
    return sums["sha256"].hexdigest()
