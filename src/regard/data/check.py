"""Reads a whole source and lists everything that is wrong with it, so that it can be mended at one go."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from regard.data.datasets import Dataset, MaskDataset, image_size, list_images, read_image
from regard.data.layout import Source, open_source
from regard.data.survey import in_threads
from regard.errors import InputError


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. name: that of the image, or the path of a file. what: in words, and what would work."""

    split: str
    name: str
    what: str


@dataclass(frozen=True)
class Checked:
    """What a check found. data: what the source is. count: the images that were checked. paired: with a mask each."""

    data: str
    count: int
    paired: bool
    problems: tuple[Problem, ...]

    @property
    def wrong(self) -> int:
        """How many images have something wrong with them or with their mask."""
        return len({(problem.split, problem.name) for problem in self.problems})


def check(src: str) -> Checked:
    """Read every image and mask of every split at `src`; shows a progress bar.

    Wrong are: an image or a mask that can't be read; a mask that is missing, has another size than its image, values
    that are no class, or only void; and an image of a later split that has the very pixels of one in an earlier split,
    so that a score would be of what was trained on.

    An images/ + masks/ tree that can't be opened at all, as where a mask is missing, is checked file by file: its masks
    are read and their sizes compared, but not their values. Other trees that can't be opened raise InputError.
    """
    try:
        source = open_source(src)
    except InputError:
        root = Path(src).expanduser().resolve()
        is_tree = (root / "images").is_dir() and (root / "masks").is_dir()
        if is_tree and (checked := _check_files(root)).problems:
            return checked
        raise
    return check_source(source)


def check_source(source: Source) -> Checked:
    """`check` of what was opened."""
    splits = [(split, dataset, i) for split, dataset in source.splits.items() for i in range(len(dataset))]
    read = in_threads(_read, [(dataset, i) for _, dataset, i in splits], "checking")
    problems: list[Problem] = []
    first: dict[bytes, tuple[str, str]] = {}
    for (split, dataset, i), (digest, faults) in zip(splits, read, strict=True):
        name = dataset.name(i)
        problems += [Problem(split, name, fault.replace(f"{source.root}{os.sep}", "")) for fault in faults]
        if digest:
            where, twin = first.setdefault(digest, (split, name))
            if where != split:
                problems.append(Problem(split, name, f"the same image as {twin} of {where}: keep one of the two"))
    return Checked(source.describe(), len(splits), source.has_masks, tuple(problems))


def _read(task: tuple[Dataset, int]) -> tuple[bytes | None, list[str]]:
    """A digest of the image's pixels, None where it can't be read; and what is wrong with it and its mask."""
    dataset, i = task
    digest, faults = None, []
    try:
        image = dataset.image(i)
        digest = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()
    except InputError as error:
        faults.append(str(error))
    if isinstance(dataset, MaskDataset):
        try:
            if (dataset.mask(i) == dataset.ignore_index).all():
                faults.append("every pixel of its mask is void: label some, or leave it out")
        except InputError as error:
            faults.append(str(error))
    return digest, list(dict.fromkeys(faults))  # where the image can't be read, its mask may say so once more


def _check_files(root: Path) -> Checked:
    """Of each image below images/: whether it and a mask of its name can be read, and have one size."""
    masks = {os.path.splitext(path)[0]: path for path in list_images(root, "masks")}

    def faults(path: str) -> list[str]:
        mask = masks.get("masks/" + os.path.splitext(path.removeprefix("images/"))[0])
        found, sizes = [], []
        for file in (path, mask) if mask else (path,):
            try:
                read_image(root / file)
                sizes.append(image_size(root / file))
            except InputError as error:
                found.append(str(error).replace(f"{root}{os.sep}", ""))
        if not mask:
            found.append("it has no mask: one of the same name in masks/ would work")
        elif len(sizes) == 2 and sizes[0] != sizes[1]:
            (height, width), (rows, columns) = sizes
            found.append(f"{mask} is {columns}x{rows}: {width}x{height}, the size of its image, would work")
        return found

    paths = list_images(root, "images")
    found = zip(paths, in_threads(faults, paths, "checking"), strict=True)
    problems = tuple(Problem("-", path, fault) for path, listed in found for fault in listed)
    return Checked(f"images/ + masks/ tree at {root}", len(paths), True, problems)
