"""Images on disk: plain folders, class folders, images with masks, VOC 2012. `layout.open_source` recognises them.

What an image and a mask file hold is in reading.py, which images there are in listing.py, what the classes are called
and how masks tell them in names.py; the other published data sets are in published.py. Masks come out as uint8 class
indices, 255 for void. Nothing is resized, normalised or cached here.
"""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int, Int16, UInt8
from PIL import Image

from regard.data.compact import Names, joined
from regard.data.listing import IMAGE_SUFFIXES, list_images, subfolders
from regard.data.names import (
    VOID,
    Legend,
    numbered,
    read_json,
    read_text,
    voc_palette,
)
from regard.data.reading import image_size, read_image, read_labels, read_mask, readable
from regard.errors import InputError


@runtime_checkable
class Dataset(Protocol):
    """What every dataset offers: images in a fixed order, each with a name for people."""

    classes: tuple[str, ...]  # () when nothing is labelled
    ignore_index: int

    @property
    def palette(self) -> UInt8[np.ndarray, "classes 3"]: ...  # noqa: D102
    def __len__(self) -> int: ...
    def name(self, i: int) -> str: ...  # noqa: D102
    def image(self, i: int) -> UInt8[np.ndarray, "h w 3"]: ...  # noqa: D102


@runtime_checkable
class MaskDataset(Dataset, Protocol):
    """A dataset with a class index, or `ignore_index`, for every pixel."""

    def mask(self, i: int) -> UInt8[np.ndarray, "h w"]: ...  # noqa: D102


@runtime_checkable
class LabelDataset(Dataset, Protocol):
    """A dataset with one class index per image."""

    def label(self, i: int) -> int: ...  # noqa: D102


class ImageFolder:
    """The images below `root`, at any depth: those in `paths` (relative to `root`), or all of them sorted by path."""

    classes: tuple[str, ...] = ()
    ignore_index: int = VOID

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

    def only(self, chosen: Int[np.ndarray, "chosen"] | Bool[np.ndarray, "images"]) -> "ImageFolder":
        """The images of these numbers, in their order, or those where `chosen` is true; with the classes of all."""
        part = copy.copy(self)
        part.paths = self.paths.select(chosen)
        return part

    def name(self, i: int) -> str:
        """The path relative to the root."""
        return self.paths[i]

    def image(self, i: int) -> UInt8[np.ndarray, "h w 3"]:
        """Image `i`, RGB in 0..255, upright."""
        return read_image(self.root / self.paths[i])

    def encoded(self, i: int) -> bytes:
        """The file of image `i` as it is, not decoded; InputError where it can't be read."""
        path = self.root / self.paths[i]
        with readable(path):
            return path.read_bytes()


class ClassFolders(ImageFolder):
    """root/<class>/**/image. `classes` fixes the names and their order: val must number them as train does."""

    def __init__(self, root: str | Path, classes: Sequence[str] | None = None):
        images = list_images(
            Path(root), by_class=True
        )  # at one go: a listing of each class would be too small to be kept
        found = {folder: images[images.below(folder)] for folder in subfolders(root)}
        self.classes = tuple(found if classes is None else classes)
        if empty := [folder for folder, paths in found.items() if not paths]:
            raise InputError(f"no images in the class folder {Path(root, empty[0])}: add some, or remove the folder")
        if new := sorted(set(found) - set(self.classes)):
            raise InputError(
                f"{Path(root, new[0])} isn't one of the {len(self.classes)} classes: {self.classes[0]} would work"
            )
        super().__init__(root, joined(found.values()))
        index = {name: i for i, name in enumerate(self.classes)}
        self.labels = np.repeat([index[folder] for folder in found], [len(paths) for paths in found.values()])

    def only(self, chosen: Int[np.ndarray, "chosen"] | Bool[np.ndarray, "images"]) -> "ClassFolders":
        """As of any images."""
        part = copy.copy(self)
        part.paths, part.labels = self.paths.select(chosen), self.labels[chosen]
        return part

    def label(self, i: int) -> int:
        """The index into `classes` of image `i`."""
        return int(self.labels[i])


class PairedImages(ImageFolder):
    """Images with a mask each: `masks` maps the path of an image to that of its mask, both relative to `root`.

    Raises InputError where masks are missing, which counts them; with `missing_ok`, each is an error of `mask` instead.
    """

    def __init__(self, root: str | Path, masks: Mapping[str, str], legend: Legend, *, missing_ok: bool = False):
        super().__init__(root, Names(masks))
        self.legend, self.masks = legend, Names(masks.values())
        self.classes = legend.classes
        # One listing a folder, since a look at each file is slow on network disks.
        present = {folder: _names(self.root / folder) for folder in {os.path.dirname(mask) for mask in self.masks}}
        missing = [path for path, mask in masks.items() if os.path.basename(mask) not in present[os.path.dirname(mask)]]
        if missing and not missing_ok:
            first = f"the first is {self.root / missing[0]}: {_wanted(masks[missing[0]])}"
            alone = "to learn without masks, a folder that holds images alone"
            raise InputError(f"{len(missing)} of {len(masks)} images have no mask, {first}; {alone}")
        self.missing = frozenset(missing)

    def only(self, chosen: Int[np.ndarray, "chosen"] | Bool[np.ndarray, "images"]) -> "PairedImages":
        """As of any images, each with its mask."""
        part = copy.copy(self)
        part.paths, part.masks = self.paths.select(chosen), self.masks.select(chosen)
        return part

    @property
    def palette(self) -> UInt8[np.ndarray, "classes 3"]:
        """RGB, one colour per class: those of the legend."""
        return self.legend.palette

    def mask(self, i: int) -> UInt8[np.ndarray, "h w"]:
        """The class index, or `ignore_index`, of each pixel; InputError if it doesn't fit the image or the classes."""
        if self.paths[i] in self.missing:
            raise InputError(f"{self.root / self.paths[i]} has no mask: {_wanted(self.masks[i])}")
        path = self.root / self.masks[i]
        labels, size = self.read_labels(path), image_size(self.root / self.paths[i])
        if labels.shape != size:
            height, width = labels.shape
            raise InputError(f"{path} is {width}x{height}: {size[1]}x{size[0]}, the size of its image, would work")
        return labels.astype(np.uint8)

    def read_labels(self, path: Path) -> Int16[np.ndarray, "h w"]:
        """The label of each pixel of a mask file: InputError for one that the legend doesn't have."""
        return read_labels(path, self.legend)


class MaskFolder(PairedImages):
    """root/images/**/name.jpg with root/masks/**/name.png, of class indices or of colours; see `mask_legend`.

    A mask may be of another lossless format; where there is no other, it may be a JPEG, whose colours are seldom exact.
    paths: the images to use, relative to `root`; all by default. missing_ok: as of `PairedImages`.
    """

    def __init__(
        self,
        root: str | Path,
        paths: Sequence[str] | None = None,
        legend: Legend | None = None,
        *,
        missing_ok: bool = False,
    ):
        paths = list_images(Path(root), "images") if paths is None else paths
        files = sorted(list_images(Path(root), "masks"), key=_preference)
        file_of = {os.path.splitext(file)[0]: file for file in reversed(files)}
        stems = {path: "masks/" + os.path.splitext(path.removeprefix("images/"))[0] for path in paths}
        masks = {path: file_of.get(stem, f"{stem}.png") for path, stem in stems.items()}
        super().__init__(root, masks, legend or numbered(()), missing_ok=missing_ok)
        if legend is None:  # after the check that no mask is missing, since this may read them all
            self.legend = mask_legend(self.root, self.masks[0])
            self.classes = self.legend.classes


class VOC2012(PairedImages):
    """Pascal VOC 2012 segmentation (Everingham et al. 2010), the official tree; 255 is the border around objects.

    `root` is VOC2012 itself, or holds it as VOC2012 or VOCdevkit/VOC2012. `split`: train, val or trainval.
    """

    names = "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person"
    names += " pottedplant sheep sofa train tvmonitor"

    def __init__(self, root: str | Path, split: str = "train"):
        found = voc_root(Path(root))
        if found is None:
            raise InputError(f"no VOC 2012 tree in {root}: a folder with JPEGImages/ and SegmentationClass/ would work")
        listed = found / "ImageSets/Segmentation" / f"{split}.txt"
        if not listed.is_file():
            raise InputError(f"{listed} is missing: unpack the whole of VOCtrainval_11-May-2012.tar")
        stems = listed.read_text().split()
        masks = {f"JPEGImages/{stem}.jpg": f"SegmentationClass/{stem}.png" for stem in stems}
        super().__init__(found, masks, numbered(self.names.split()))


def mask_legend(root: Path, first: str) -> Legend:
    """How the masks of an images/ + masks/ tree tell the classes: as classes.json or classes.txt says; see names.py.

    Without either the classes are "class 0" up to the largest value in any mask: every mask is read, and those that
    can't be are left to `mask` to name, unless that is all of them. Where no colours are given, those in the palette of
    the `first` mask, if it has one, are taken to draw the classes in.
    """
    if (root / "classes.json").is_file():
        legend = read_json(root / "classes.json")
    elif (root / "classes.txt").is_file():
        legend = read_text(root / "classes.txt")
    else:
        legend = numbered(_counted(root))
    return legend if legend.colors else replace(legend, shown=_own_palette(root / first, legend))


def _counted(root: Path) -> tuple[str, ...]:
    """Names for all the values up to the largest in any mask that can be read; the first error where none can be."""
    found, errors = [], []
    for path in list_images(root, "masks"):
        try:
            mask = read_mask(root / path)
            found.append(int(mask.max(initial=0, where=mask != VOID)))
        except InputError as error:
            errors.append(error)
    if errors and not found:
        raise errors[0]
    largest = max(found, default=0)
    if largest == 0:  # most often objects drawn in white: silently, all of them would be void
        raise InputError(f"{root / 'masks'} holds only 0 and {VOID}, which is void: objects as 1, 2, ... would work")
    return tuple(f"class {value}" for value in range(largest + 1))


def _own_palette(path: Path, legend: Legend) -> tuple[tuple[int, int, int], ...]:
    """The colours of the classes in the palette of an indexed mask; none where it doesn't tell them apart.

    A ramp of greys is none, either: it is what a palette is filled with when nobody has chosen colours. Nor has a mask
    that can't be read any: `mask` names it, when it is needed for more than this.
    """
    try:
        with readable(path), Image.open(path) as image:
            flat = image.getpalette() if image.mode == "P" else None
    except InputError:
        return ()
    value_of = {label: value for value, label in reversed(list(legend.values.items()))}
    entries = [(flat or ())[3 * value_of[label] : 3 * value_of[label] + 3] for label in range(len(legend.classes))]
    colors = tuple((entry[0], entry[1], entry[2]) for entry in entries if len(entry) == 3 and flat)
    told = len(set(colors)) == len(entries) and any(len(set(color)) > 1 for color in colors)
    return colors if told else ()


def _wanted(mask: str) -> str:
    """What would work where a mask is missing."""
    return f"a {os.path.splitext(mask)[1][1:].upper()} at {mask} would work"


def _preference(file: str) -> tuple[int, str]:
    """Sorts the masks of one name: a PNG before other files, and JPEGs last."""
    suffix = os.path.splitext(file)[1].lower()
    return (0 if suffix == ".png" else 2 if suffix in (".jpg", ".jpeg") else 1), file


def _names(folder: Path) -> set[str]:
    """The names of what is in a folder; none if it isn't there."""
    return set(os.listdir(folder)) if folder.is_dir() else set()


def voc_root(root: Path) -> Path | None:
    """Where the VOC 2012 tree is: `root`, or VOC2012 or VOCdevkit/VOC2012 in it."""
    places = (root, root / "VOC2012", root / "VOCdevkit/VOC2012")
    return next((p for p in places if (p / "JPEGImages").is_dir() and (p / "SegmentationClass").is_dir()), None)
