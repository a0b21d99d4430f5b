"""Images in plain folders and in class folders. Nothing is resized, normalised or cached here.

What an image file holds is in reading.py, which images there are in listing.py.
"""

import copy
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Int, UInt8

from regard.data.compact import Names, joined
from regard.data.listing import IMAGE_SUFFIXES, list_images, subfolders
from regard.data.names import VOID, voc_palette
from regard.data.reading import Least, decode_image, opened
from regard.errors import InputError
from regard.settings import AS_STORED, Values

Images = TypeVar("Images", bound="ImageFolder")


class ImageFolder:
    """The images below `root`, at any depth: those in `paths` (relative to `root`), or all of them sorted by path."""

    classes: tuple[str, ...] = ()
    ignore_index: int = VOID
    values: Values = AS_STORED  # of its images, that are read
    of_each: tuple[str, ...] = ("paths",)  # the attributes that hold something of each image

    def __init__(self, root: str | Path, paths: Sequence[str] | None = None):
        self.root = Path(root)
        self.paths = Names.of(list_images(self.root) if paths is None else paths)
        if not self.paths:
            raise InputError(f"no images in {root}, at any depth: files in {' '.join(IMAGE_SUFFIXES)} would work")

    @property
    def palette(self) -> UInt8[np.ndarray, "classes 3"]:
        """RGB, one colour per class: those of VOC, which suit any number of classes."""
        return voc_palette(len(self.classes))

    def __len__(self) -> int:
        return len(self.paths)

    def only(self: Images, chosen: Int[np.ndarray, "chosen"] | Bool[np.ndarray, "images"]) -> Images:
        """The images of these numbers, in their order, or those where `chosen` is true; with the classes of all."""
        part = copy.copy(self)
        for name in self.of_each:
            setattr(part, name, getattr(self, name)[chosen])
        return part

    def with_others(self: Images, other: Images) -> Images:
        """These images and other ones of the same folder, in the order of their paths."""
        both = copy.copy(self)
        for name in self.of_each:
            setattr(both, name, joined([getattr(self, name), getattr(other, name)]))
        return both.only(np.argsort(both.paths.encoded(), kind="stable"))

    def name(self, i: int) -> str:
        """The path relative to the root."""
        return self.paths[i]

    def image(self, i: int) -> UInt8[np.ndarray, "h w 3"]:
        """Image `i`, RGB in 0..255, upright."""
        return self.decoded(i)

    def decoded(self, i: int, least: Least | None = None) -> UInt8[np.ndarray, "h w 3"]:
        """As `image`, or fewer pixels of it where `least` says that they are enough: see `decode_image`."""
        return decode_image(self.encoded(i), self.root / self.paths[i], least, self.values)

    def encoded(self, i: int) -> bytes:
        """The file of image `i` as it is, not decoded; InputError where it can't be read."""
        with opened(self.root / self.paths[i]) as file:
            return file.read()


class ClassFolders(ImageFolder):
    """root/<class>/**/image. `classes` fixes the names and their order: val must number them as train does."""

    of_each = ("paths", "labels")

    def __init__(self, root: str | Path, classes: Sequence[str] | None = None):
        images = list_images(Path(root), by_class=True)  # at one go
        found = {folder: images[images.below(folder)] for folder in subfolders(root)}
        names = {folder: unicodedata.normalize("NFC", folder) for folder in found}  # macOS writes others
        self.classes = tuple(dict.fromkeys(names.values()) if classes is None else classes)
        if empty := [folder for folder, paths in found.items() if not paths]:
            raise InputError(f"no images in the class folder {Path(root, empty[0])}: add some, or remove the folder")
        if new := sorted(folder for folder in found if names[folder] not in self.classes):
            raise InputError(
                f"{Path(root, new[0])} isn't one of the {len(self.classes)} classes: {self.classes[0]} would work"
            )
        super().__init__(root, joined(found.values()))
        index = {name: i for i, name in enumerate(self.classes)}
        self.labels = np.repeat([index[names[folder]] for folder in found], [len(paths) for paths in found.values()])

    def label(self, i: int) -> int:
        """The index into `classes` of image `i`."""
        return int(self.labels[i])
