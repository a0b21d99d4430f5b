"""Images with a mask each, and the images/ + masks/ tree. Masks come out as uint8 class indices, 255 for void.

What the classes are called, and how masks tell them, is in names.py.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int16, UInt8

from regard.data.compact import Names
from regard.data.datasets.folders import ImageFolder
from regard.data.layouts import Pairs, check_fits, find_pairs, no_masks
from regard.data.listing import is_image
from regard.data.names import VOID, Color, Legend, numbered, read_json, read_names
from regard.data.reading import image_size
from regard.data.reading_masks import read_labels, read_mask, read_palette
from regard.errors import InputError


class PairedImages(ImageFolder):
    """Images with a mask each: `masks` maps the path of an image to that of its mask, both relative to `root`.

    Raises InputError where masks are missing, which counts them; with `missing_ok`, each is an error of `mask` instead.
    """

    of_each = ("paths", "masks")

    def __init__(self, root: str | Path, masks: Mapping[str, str], legend: Legend, *, missing_ok: bool = False):
        super().__init__(root, Names(masks))
        self.legend, self.masks = legend, Names(masks.values())
        self.classes = legend.classes
        # One listing a folder, since a look at each file is slow on network disks.
        present = {folder: _names(self.root / folder) for folder in {os.path.dirname(mask) for mask in self.masks}}
        missing = [path for path, mask in masks.items() if os.path.basename(mask) not in present[os.path.dirname(mask)]]
        if missing and not missing_ok:
            raise no_masks(self.root / missing[0], masks[missing[0]], len(missing), len(masks))
        self.missing = frozenset(missing)

    @property
    def palette(self) -> UInt8[np.ndarray, "classes 3"]:
        """RGB, one colour per class: those of the legend."""
        return self.legend.palette

    def mask(self, i: int) -> UInt8[np.ndarray, "h w"]:
        """The class index, or `ignore_index`, of each pixel; InputError if it doesn't fit the image or the classes."""
        path = self.mask_file(i)
        labels, size = self.read_labels(path), image_size(self.root / self.paths[i])
        if labels.shape != size:
            height, width = labels.shape
            raise InputError(f"{path} is {width}x{height}: {size[1]}x{size[0]}, the size of its image, would work")
        return labels.astype(np.uint8)

    def mask_file(self, i: int) -> Path:
        """The file that tells the mask; InputError where it is missing."""
        if self.paths[i] in self.missing:
            suffix = os.path.splitext(self.masks[i])[1][1:].upper()
            raise InputError(f"{self.root / self.paths[i]} has no mask: a {suffix} at {self.masks[i]} would work")
        return self.root / self.masks[i]

    def colors(self, i: int) -> dict[int, Color]:
        """What colours an indexed mask gives the values in it; nothing of other masks, and of those read by colour."""
        path = self.root / self.masks[i]
        if self.legend.colors or not is_image(path.name) or (palette := read_palette(path)) is None:
            return {}
        red, green, blue = palette.T
        return {
            v: (int(red[v]), int(green[v]), int(blue[v])) for v in np.unique(read_mask(path)).tolist() if v < len(red)
        }

    def read_labels(self, path: Path) -> Int16[np.ndarray, "h w"]:
        """The label of each pixel of a mask file: InputError for one that the legend doesn't have."""
        return read_labels(path, self.legend)


class MaskFolder(PairedImages):
    """A tree of one's own, such as root/images/**/name.jpg with root/masks/**/name.png (see layouts.py), of class
    indices or of colours; see `mask_legend`. Images without a mask are left out.

    A mask may be of another lossless format; a JPEG is refused when it is read, unless there is another of its name.
    found: what `find_pairs` says of the root. missing_ok: take images without a mask, too; each is an error of `mask`.
    """

    def __init__(
        self, root: str | Path, found: Pairs | None = None, legend: Legend | None = None, *, missing_ok: bool = False
    ):
        found = found or find_pairs(Path(root))
        if found is None:
            raise InputError(f"{root} has no masks: images/ and masks/ would work")
        if not missing_ok:
            check_fits(found)
        taken = np.full(len(found.images), True) if missing_ok else found.has_mask
        self.orphans, self.left_out = found.orphans, found.images[~taken]  # without an image, without a mask
        masks = dict(zip(found.images[taken], found.masks[taken], strict=True))
        super().__init__(root, masks, legend or numbered(()), missing_ok=missing_ok)
        if legend is None:  # after the check that no mask is missing, since this may read them all
            there = Names(sorted([*found.masks[found.has_mask], *found.orphans]))
            self.legend = mask_legend(self.root, found.masks[0], there)
            self.classes = self.legend.classes


def mask_legend(root: Path, first: str, masks: Names) -> Legend:
    """How the masks of an images/ + masks/ tree tell the classes: as classes.json or classes.txt says; see names.py.

    Without either the classes are "class 0" up to the largest value in any mask: every mask is read, and those that
    can't be are left to `mask` to name, unless that is all of them. Where no colours are given, those in the palette of
    the `first` mask, if it has one, are taken to draw the classes in.
    """
    if (root / "classes.json").is_file():
        legend = read_json(root / "classes.json")
    elif (root / "classes.txt").is_file():
        legend = read_names(root / "classes.txt")
    else:
        legend = numbered(_counted(root, masks))
    return legend if legend.colors else replace(legend, shown=_own_palette(root / first, legend))


def _counted(root: Path, masks: Names) -> tuple[str, ...]:
    """Names for all values up to the largest in any mask that can be read; the first error where none can be."""
    found, errors = [], []
    for path in masks:
        try:
            mask = read_mask(root / path)
            found.append(int(mask.max(initial=0, where=mask != VOID)))
        except InputError as error:
            errors.append(error)
    if errors and not found:
        raise errors[0]
    largest = max(found, default=0)
    if largest == 0:  # most often objects drawn in white: silently, all of them would be void
        raise InputError(
            f"{(root / masks[0]).parent} holds only 0 and {VOID}, which is void: objects as 1, 2, ..., "
            f"or 255 as the value of a class in classes.json, would work"
        )
    return tuple(f"class {value}" for value in range(largest + 1))


def _own_palette(path: Path, legend: Legend) -> tuple[tuple[int, int, int], ...]:
    """The colours of the classes in the palette of an indexed mask; none where it doesn't tell them apart.

    A ramp of greys is none, either: it is what a palette is filled with when nobody has chosen colours. Nor has a mask
    that can't be read any: `mask` names it, when it is needed for more than this.
    """
    try:
        palette = read_palette(path)
    except InputError:
        palette = None
    if palette is None:
        return ()
    value_of = {label: value for value, label in reversed(list(legend.values.items()))}
    entries = [
        palette[value_of[label]].tolist() for label in range(len(legend.classes)) if value_of[label] < len(palette)
    ]
    colors = tuple((red, green, blue) for red, green, blue in entries)
    told = len(set(colors)) == len(legend.classes) and any(len(set(color)) > 1 for color in colors)
    return colors if told else ()


def _names(folder: Path) -> set[str]:
    """The names of what is in a folder; none if it isn't there."""
    return set(os.listdir(folder)) if folder.is_dir() else set()
