"""Which images there are below a folder, by their names alone."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from regard.data.reading import readable

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def list_images(root: Path, folder: str = "") -> list[str]:
    """The images below root/folder at any depth, hidden ones left out: paths relative to `root`, with "/", sorted."""
    start = len(os.path.join(root, ""))
    found, folders, seen = [], [os.path.join(root, folder)], set()
    for here in folders:  # grows while it is walked
        if (real := os.path.realpath(here)) in seen:  # a link that leads back up
            continue
        seen.add(real)
        with readable(here), os.scandir(here) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_dir() and not entry.name.startswith("."):
                    folders.append(entry.path)
                elif is_image(entry.name):
                    found.append(entry.path[start:].replace(os.sep, "/"))
    return sorted(found)


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def holds_images(folder: str | Path) -> bool:
    """Whether there are images directly in `folder`."""
    with readable(folder):
        return any(map(is_image, os.listdir(folder)))


def subfolders(root: str | Path) -> list[str]:
    """The names of the folders directly in `root`, hidden ones left out, sorted."""
    with readable(root), os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def hold_out(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """(train, val): a fifth of the images for val, the same on every machine and in whatever order they are listed.

    The lowest hashes of the paths are chosen, so that an image more or less moves at most one of the others.
    """
    ranked = sorted(paths, key=lambda path: hashlib.sha256(os.fsencode(path)).digest())
    val = set(ranked[: max(1, len(paths) // 5)])
    return [path for path in paths if path not in val], [path for path in paths if path in val]
