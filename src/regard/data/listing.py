"""Which images there are below a folder, by their names alone."""

import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from regard.data.compact import Names
from regard.data.reading import readable
from regard.results import RUN_FILE, SETTINGS_FILE
from regard.say import say_once

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".dcm")
UNREAD = (".heic", ".heif", ".avif", ".jp2", ".dng", ".cr2", ".nef", ".arw")  # pictures all the same, as of phones
HELD_OUT = "no val, so val is a fixed fifth of the images for training"
OF_RUNS = (SETTINGS_FILE, RUN_FILE)  # what a run wrote lies beside one of them
# What systems put beside pictures: Synology's folders hold small copies of each.
OF_SYSTEMS = frozenset(
    ["__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information", "Thumbs.db", "desktop.ini"]
)


def list_images(
    root: Path, folder: str = "", by_class: bool = False, endings: tuple[str, ...] = IMAGE_SUFFIXES
) -> Names:
    """The images below root/folder at any depth: paths relative to `root`, with "/", sorted.

    Hidden files and folders are left out, and those of systems; pictures of formats that aren't read are said. Folders
    that are links are followed, but what was met before isn't listed again; a link with the name of an image counts as
    one. Each folder is read once, and its files not looked at. What a run wrote below root/folder is left out.

    endings: of other files, which are then listed in their place.
    by_class: what was met below another of the folders directly in root/folder is: they may share images by links.
    """
    found: list[str] = []
    top = os.path.realpath(root / folder)
    folders, unread = [(folder, top)], set[str]()
    met: dict[str, set[str]] = {}  # by the folder directly in root/folder, or all together
    for below, real in folders:  # which grow while they are walked
        here, start = (os.path.join(root, below), f"{below}/") if below else (os.fspath(root), "")
        inner, images, of_run = [], [], []
        with readable(here), os.scandir(here) as entries:
            for entry in entries:
                name = entry.name
                if is_hidden(name):
                    continue
                if _is_folder(entry):
                    inner.append((name, entry.is_symlink()))
                elif name.lower().endswith(endings):
                    images.append(start + name)
                elif name in OF_RUNS:
                    of_run.append(name)
                elif name.lower().endswith(UNREAD):
                    unread.add(os.path.splitext(name)[1])
        if below != folder and is_runs_own(here, of_run):
            continue
        found += images
        for name, is_link in sorted(inner):
            path = os.path.join(real, name)
            path = os.path.realpath(path) if is_link else path  # of others it is known without a look at the disk
            group = (start + name).removeprefix(f"{folder}/").partition("/")[0] if by_class else ""
            seen = met.setdefault(group, {top})
            if path not in seen:  # else a link that leads back up, or to what is listed elsewhere
                seen.add(path)
                folders.append((start + name, path))
    if unread:
        kinds = " and ".join(sorted(unread))
        say_once(f"{root} also holds {kinds} files, which are not read: copies as JPEG or PNG would be")
    return Names(sorted(found))


def is_runs_own(folder: str, files: Collection[str]) -> bool:
    """Whether these files of a folder say that it is a run's, and is left out: that is said."""
    is_run = not set(OF_RUNS).isdisjoint(files)
    if is_run:  # whose pictures are nothing to learn from
        say_once(f"{folder} is a run's own folder, and left out of the images")
    return is_run


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's own."""
    return name.startswith(".") or name in OF_SYSTEMS


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Also by a link; but what one with the name of an image leads to isn't looked at. A loop of links is named."""
    with readable(entry.path):
        return entry.is_dir(follow_symlinks=not is_image(entry.name))


def is_lossy(name: str) -> bool:
    """Whether a file is of a format that changes pixels."""
    return name.lower().endswith((".jpg", ".jpeg", ".jfif"))


def holds_images(folder: str | Path) -> bool:
    """Whether there are images directly in `folder`: no more of it is read than up to the first."""
    with readable(folder), os.scandir(folder) as entries:
        return any(is_image(entry.name) for entry in entries)


def subfolders(root: str | Path) -> list[str]:
    """The names of the folders directly in `root`, sorted. Hidden ones are left out, and those of runs, with a word."""
    with readable(root), os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries if not is_hidden(entry.name) and _is_folder(entry))
    kept = []
    for name in names:
        folder = os.path.join(root, name)
        if not is_runs_own(folder, [file for file in OF_RUNS if os.path.exists(os.path.join(folder, file))]):
            kept.append(name)
    return kept


def with_val(paths: Mapping[str, Sequence[str]]) -> tuple[dict[str, Sequence[str]], tuple[str, ...]]:
    """The splits that hold anything, in order, with a val held out of train where there is none, and a note of it."""
    splits, notes = {split: of for split, of in paths.items() if of}, ()
    if "val" not in splits and len(splits.get("train", ())) > 1:
        splits["train"], splits["val"] = hold_out(splits["train"])
        notes = (HELD_OUT,)
    return {split: splits[split] for split in ("train", "val", "test") if split in splits}, notes


def hold_out(paths: Sequence[str]) -> tuple[Names, Names]:
    """(train, val): a fifth of the images for val, the same on every machine and in whatever order they are listed.

    The lowest hashes of the paths are chosen, so that an image more or less moves at most one of the others.
    """
    names, val = Names.of(paths), held_out(paths)
    return names[~val], names[val]


def held_out(paths: Sequence[str]) -> Bool[np.ndarray, " paths"]:
    """Which of the images `hold_out` takes for val."""
    digests = [hashlib.sha256(name).digest() for name in Names.of(paths).encoded()]
    last = sorted(digests)[max(1, len(digests) // 5) - 1]
    return np.array([digest <= last for digest in digests])
