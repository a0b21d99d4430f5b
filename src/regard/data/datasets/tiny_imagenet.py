"""Tiny ImageNet (Le and Yang 2015): train/CLASS/images/, and val/images/ with val_annotations.txt, 200 classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from regard.data.compact import Names
from regard.data.datasets.base import Source
from regard.data.datasets.folders import ClassFolders, ImageFolder
from regard.data.datasets.published import Archive, Published
from regard.data.listing import list_images
from regard.errors import InputError
from regard.files import read_text

LIST = "val/val_annotations.txt"


class TinyImageNet(ClassFolders):
    """Images, each of the class that is named for it; the classes are WordNet's ids, in order."""

    def __init__(self, root: Path, paths: Names, named: Sequence[str], classes: Sequence[str]):
        ImageFolder.__init__(self, root, paths)
        self.classes, index = tuple(classes), {name: i for i, name in enumerate(classes)}
        self.labels = np.array([index[name] for name in named])


def open_tiny_imagenet(root: Path) -> Source | None:
    """The tree at the path, or in tiny-imagenet-200/. test/ has no labels."""
    for place in (root, root / "tiny-imagenet-200"):
        if (place / LIST).is_file() and (place / "val/images").is_dir() and (place / "train").is_dir():
            train, val = list_images(place, "train"), list_images(place, "val/images")
            named = [path.split("/")[1] for path in train]
            classes = sorted(set(named))
            rows = [line.split("\t") for line in read_text(place / LIST).splitlines()]
            of = {f"val/images/{row[0]}": row[1] for row in rows if len(row) > 1}
            if wrong := next((path for path in val if of.get(path) not in classes), ""):
                raise InputError(
                    f"{place / LIST} names no class of train/ for {wrong}: the list as published would work"
                )
            splits = {
                "train": TinyImageNet(place, train, named, classes),
                "val": TinyImageNet(place, val, [of[path] for path in val], classes),
            }
            notes = ("test is left out, as it has no labels",) if (place / "test").is_dir() else ()
            return Source("tiny-imagenet", str(place), splits, notes, "Tiny ImageNet")
    return None


TINY_IMAGENET = Published(
    "https://cs231n.stanford.edu/",
    open_tiny_imagenet,
    (Archive("https://cs231n.stanford.edu/tiny-imagenet-200.zip"),),  # no published checksum
    root="tiny-imagenet-200",
)
