"""Writes what has masks, whatever its layout, as a tree of one's own: images/SPLIT, masks/SPLIT and classes.txt."""

import os
import shutil
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from regard.data.datasets.base import Dataset, Decoded, MaskDataset, Source, as_png, image_file
from regard.data.layouts import meaning
from regard.data.listing import is_image
from regard.data.names import VOC_BORDER, VOID
from regard.data.source import check_beside, require_masks
from regard.data.threads import in_threads
from regard.errors import InputError
from regard.files import on_disk, partial_of
from regard.settings import AS_STORED


@dataclass(frozen=True)
class _Task:
    """One image, and where it goes: `stem` + `ending`, at first its name. has_mask: whether it goes with a mask."""

    split: str
    dataset: Dataset
    number: int
    has_mask: bool
    stem: str
    ending: str = ""


def convert(source: Source, to: str | Path) -> tuple[int, int]:
    """Write a source with masks into `to`, which is there when all of it is, and not before; shows a progress bar.

    Images stay the files that they are, or become PNGs of 8 bits where it was said what of them is read; masks are PNGs
    of class indices in the classes' colours, 255 is void. Images for training that have no mask go along, and so does a
    val that was held out of them. Gives the numbers of images and of masks.

    Raises InputError where `to` is there, or within the source; for an image or a mask that can't be read; and for
    names that a tree can't have.
    """
    require_masks(source)
    folder = Path(to).expanduser().resolve()
    if os.path.lexists(folder):
        raise InputError(f"{folder} is there already: a folder that is not would work")
    check_beside(source, folder)
    made = [place for place in folder.parents if not place.exists()]  # innermost first
    if wrong := next((name for name in source.classes if [name.strip()] != name.splitlines()), None):
        raise InputError(
            f"{source.root}: {wrong!r} can't be a line of classes.txt: another name of that class would work"
        )
    part = partial_of(folder)
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed, and had the same number
    tasks = _named(source, part)
    palette = np.zeros((VOID + 1, 3), np.uint8)
    palette[: len(source.classes)], palette[VOID] = source.palette, VOC_BORDER

    def write(task: _Task) -> bool:
        image, mask = (part / top / task.split / task.stem for top in ("images", "masks"))
        image.parent.mkdir(parents=True, exist_ok=True)
        image.with_name(image.name + task.ending).write_bytes(_content(task))
        if task.has_mask:
            indexed = Image.fromarray(cast(MaskDataset, task.dataset).mask(task.number)).convert("P")
            indexed.putpalette(palette.tobytes())
            mask.parent.mkdir(parents=True, exist_ok=True)
            indexed.save(mask.with_name(f"{mask.name}.png"), format="PNG")
        return task.has_mask

    try:
        with on_disk(folder):
            masks = sum(in_threads(write, tasks, "converting"))
            (part / "classes.txt").write_bytes("".join(f"{name}\n" for name in source.classes).encode())
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)  # what is left of it where anything went wrong
        for place in made:
            with suppress(OSError):
                place.rmdir()
    return len(tasks), masks


def _content(task: _Task) -> bytes:
    """The file of an image. InputError for one that can't be read, as it would be refused later."""
    pixels = task.dataset.image(task.number)
    return as_png(pixels) if _is_chosen(task.dataset) else image_file(task.dataset, task.number)


def _is_chosen(dataset: Dataset) -> bool:
    """Whether the files alone do not say what is read of them."""
    return isinstance(dataset, Decoded) and dataset.values != AS_STORED


def _named(source: Source, part: Path) -> list[_Task]:
    """All images with the names that they get below images/SPLIT: their own, but for what all of them share at the
    beginning, and for folders that only say what is in them; or, where two would have one mask, all of it.

    InputError where they would have that all the same, and for a name that leads elsewhere.
    """
    masks, tasks = require_masks(source), list[_Task]()
    for split, dataset in masks.items():
        own = "train" if split in source.given_to_learn else split
        tasks += [_Task(own, dataset, i, True, dataset.name(i)) for i in range(len(dataset))]
    for split, every in source.every.items():
        taken = {masks[split].name(i) for i in range(len(masks[split]))} if split in masks else set()
        names = ((i, every.name(i)) for i in range(len(every)))
        tasks += [_Task(split, every, i, False, name) for i, name in names if name not in taken]
    own = [task.stem for task in tasks]
    for names in (_short(own), own):
        parts = [os.path.splitext(name) if is_image(os.path.basename(name)) else (name, ".png") for name in names]
        both = zip(tasks, parts, strict=True)
        named = [replace(t, stem=stem, ending=".png" if _is_chosen(t.dataset) else end) for t, (stem, end) in both]
        keys = [(task.split, task.stem.casefold()) for task in named]
        if len(set(keys)) == len(keys):
            break
    else:
        ((twice, _),) = Counter(keys).most_common(1)
        one, two, *_ = (name for name, key in zip(own, keys, strict=True) if key == twice)
        raise InputError(f"{source.root} has {one} and {two}, whose masks would have one name: other names would work")
    for task in named:
        if not os.path.abspath(part / task.stem).startswith(os.path.join(part, "")):
            raise InputError(f"{source.root} has an image called {task.stem}, which leads elsewhere")
    return named


def _short(paths: list[str]) -> list[str]:
    """Paths without the folders that all share at their beginning, and the next ones that say a split or images."""
    parts = [path.split("/") for path in paths]
    levels = enumerate(zip(*(one[:-1] for one in parts), strict=False))
    shared = next((n for n, level in levels if len(set(level)) > 1), min(len(one) - 1 for one in parts))
    short = []
    for one in parts:
        said = next((n for n in range(shared, len(one) - 1) if meaning(one[n]) == ("", "")), len(one) - 1)
        short.append("/".join(one[said:]))
    return short
