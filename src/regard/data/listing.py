"""Which images there are below a folder, by their names alone.

A large folder is slow to list, above all on a network disk, so its listing is kept, in $REGARD_CACHE or ~/.cache/regard
as listings/*.npz, to be deleted at will. It is used again only while each folder below has the times of change that it
had, which takes one look a folder: a file that comes, goes or is renamed changes the times of its folder. There are two
of them, since rsync, tar and cp set the first (mtime) back to what they copied, and none can set the second (ctime).
Some mounts of object stores keep no such times; where they give 0, the folder is listed each time.
"""

import hashlib
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64

from regard.data.compact import Names
from regard.data.reading import readable

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
LEAST_KEPT = 10_000  # images of a listing that is kept: a smaller one takes less than a tenth of a second
FRESH = 2 * 10**9  # nanoseconds: a folder may change again, after it was listed, in the same tick of its disk's clock
FORMAT = 2  # of a kept listing


@dataclass(frozen=True)
class Listing:
    """What was found below a folder: paths relative to it, with "/"; the folder itself is "".

    folders: it and those below it, hidden ones left out; times: when each had last changed, mtime and ctime, as it was
             listed, in ns.
    images:  sorted.
    """

    folders: Names
    times: Int64[np.ndarray, "folders 2"]
    images: Names


def list_images(root: Path, folder: str = "", by_class: bool = False) -> Names:
    """The images below root/folder at any depth: paths relative to `root`, with "/", sorted.

    Hidden files and folders are left out. Folders that are links are followed, but what was met before isn't listed
    again; a link with the name of an image counts as one. Of a large folder it is what was kept, if still right.

    by_class: what was met below another of the folders directly in root/folder is: they may share images by links.
    """
    top = root / folder
    file = kept_listing(top, by_class)
    kept = _read(file)
    if kept is None or not _unchanged(top, kept):
        now = time.time_ns()
        kept = _listed(top, by_class)
        if len(kept.images) >= LEAST_KEPT and kept.times.min() > 0 and kept.times.max() < now - FRESH:
            _write(file, kept)
    return kept.images.prefixed(folder)


def _listed(root: Path, by_class: bool) -> Listing:
    """From the disk: each folder is read once, and its files not looked at."""
    found: list[str] = []
    times: list[tuple[int, int]] = []
    top = os.path.realpath(root)
    folders, reals = [""], [top]
    met: dict[str, set[str]] = {}  # by the folder directly in `root`, or all together
    for folder, real in zip(folders, reals, strict=False):  # both grow while they are walked
        here, below = (os.path.join(root, folder), f"{folder}/") if folder else (os.fspath(root), "")
        with readable(here):
            times.append(_times(here))
            with os.scandir(here) as entries:
                inner = []
                for entry in entries:
                    name = entry.name
                    if name.startswith("."):
                        continue
                    is_named_so = name.lower().endswith(IMAGE_SUFFIXES)  # then what a link leads to isn't looked at
                    if entry.is_dir(follow_symlinks=not is_named_so):
                        inner.append((name, entry.is_symlink()))
                    elif is_named_so:
                        found.append(below + name)
        for name, is_link in sorted(inner):
            path = os.path.join(real, name)
            path = os.path.realpath(path) if is_link else path  # of others it is known without a look at the disk
            seen = met.setdefault((below + name).partition("/")[0] if by_class else "", {top})
            if path not in seen:  # else a link that leads back up, or to what is listed elsewhere
                seen.add(path)
                folders.append(below + name)
                reals.append(path)
    return Listing(Names(folders), np.array(times, np.int64), Names(sorted(found)))


def _times(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_mtime_ns, status.st_ctime_ns


def cache_folder() -> Path:
    """Where listings, and the chunks of packs, are kept: $REGARD_CACHE or ~/.cache/regard."""
    return Path(os.environ.get("REGARD_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "regard"))


def kept_listing(root: Path, by_class: bool = False) -> Path:
    """The file that the listing of a folder is kept in, whether it is there or not."""
    about = repr((FORMAT, IMAGE_SUFFIXES, by_class, os.fsencode(os.path.realpath(root))))
    return Path(cache_folder(), "listings", f"{hashlib.sha256(about.encode()).hexdigest()[:32]}.npz")


def _read(file: Path) -> Listing | None:
    """A kept listing; None where there is none, or it is broken: a file is only a short cut."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as kept:
            folders, images = (Names.held(kept[name].tobytes()) for name in ("folders", "images"))
            listing = Listing(folders, kept["times"], images)
    except Exception:  # NumPy and zipfile raise whatever they meet in a broken file
        return None
    return listing if listing.times.shape == (len(folders), 2) else None


def _unchanged(root: Path, kept: Listing) -> bool:
    """Whether each folder has the times that it had: any change in one gives it others."""
    with suppress(OSError):
        return all(
            _times(os.path.join(root, folder)) == tuple(at)
            for folder, at in zip(kept.folders, kept.times.tolist(), strict=True)
        )
    return False


def _write(file: Path, listing: Listing) -> None:
    """Whole or not at all; a cache that can't be written is none."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    folders, images = (np.frombuffer(names.data, np.uint8) for names in (listing.folders, listing.images))
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as opened:
                np.savez(opened, folders=folders, times=listing.times, images=images)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def holds_images(folder: str | Path) -> bool:
    """Whether there are images directly in `folder`: no more of it is read than up to the first."""
    with readable(folder), os.scandir(folder) as entries:
        return any(is_image(entry.name) for entry in entries)


def subfolders(root: str | Path) -> list[str]:
    """The names of the folders directly in `root`, hidden ones left out, sorted."""
    with readable(root), os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def hold_out(paths: Sequence[str]) -> tuple[Names, Names]:
    """(train, val): a fifth of the images for val, the same on every machine and in whatever order they are listed.

    The lowest hashes of the paths are chosen, so that an image more or less moves at most one of the others.
    """
    names, val = Names.of(paths), held_out(paths)
    return names.select(~val), names.select(val)


def held_out(paths: Sequence[str]) -> Bool[np.ndarray, " paths"]:
    """Which of the images `hold_out` takes for val."""
    digests = [hashlib.sha256(name).digest() for name in Names.of(paths).encoded()]
    last = sorted(digests)[max(1, len(digests) // 5) - 1]
    return np.array([digest <= last for digest in digests])
