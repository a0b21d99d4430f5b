"""Images on disk, one class per dataset: names, palette, ignore index. `layout.open_source` recognises them.

Every image comes out upright as (H, W, 3) uint8 RGB in 0..255, every mask as (H, W) uint8 class indices, 255 for void.
Nothing is resized, normalised or cached here. A file that can't be used raises `InputError`, which names it.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

from regard.errors import InputError

VOID = 255  # the label of pixels that belong to no class, in VOC and in nearly every data set since
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# Pillow widens 2- and 4-bit grey to 0..255: class 1 of a mask that a PNG optimiser packed into 4 bits would read as 17.
GREY_STEPS = {"L;2": 85, "L;4": 17}


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
        self.paths = tuple(list_images(self.root) if paths is None else paths)
        if not self.paths:
            raise InputError(f"no images in {root}, at any depth: files in {' '.join(IMAGE_SUFFIXES)} would work")

    @property
    def palette(self) -> UInt8[np.ndarray, "classes 3"]:
        """RGB, one colour per class: those of VOC, which suit any number of classes."""
        return voc_palette(len(self.classes))

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, i: int) -> str:
        """The path relative to the root."""
        return self.paths[i]

    def image(self, i: int) -> UInt8[np.ndarray, "h w 3"]:
        """Image `i`, RGB in 0..255, upright."""
        return read_image(self.root / self.paths[i])


class ClassFolders(ImageFolder):
    """root/<class>/**/image. `classes` fixes the names and their order: val must number them as train does."""

    def __init__(self, root: str | Path, classes: Sequence[str] | None = None):
        found = {folder: list_images(Path(root), folder) for folder in subfolders(root)}
        self.classes = tuple(found if classes is None else classes)
        if empty := [folder for folder, paths in found.items() if not paths]:
            raise InputError(f"no images in the class folder {Path(root, empty[0])}: add some, or remove the folder")
        if new := sorted(set(found) - set(self.classes)):
            raise InputError(
                f"{Path(root, new[0])} isn't one of the {len(self.classes)} classes: {self.classes[0]} would work"
            )
        super().__init__(root, [path for paths in found.values() for path in paths])
        index = {name: i for i, name in enumerate(self.classes)}
        self.labels = tuple(index[folder] for folder, paths in found.items() for _ in paths)

    def label(self, i: int) -> int:
        """The index into `classes` of image `i`."""
        return self.labels[i]


class PairedImages(ImageFolder):
    """Images with a mask each: `masks` maps the path of an image to that of its mask, both relative to `root`."""

    def __init__(self, root: str | Path, masks: Mapping[str, str], classes: Sequence[str]):
        super().__init__(root, tuple(masks))
        self.classes, self.masks = tuple(classes), tuple(masks.values())
        # One listing, since a look at each file is slow on network disks.
        present = set(list_images(self.root, self.masks[0].split("/")[0]))
        if missing := [path for path, mask in masks.items() if mask not in present]:
            first = f"the first is {self.root / missing[0]}: a PNG at {masks[missing[0]]} would work"
            raise InputError(f"{len(missing)} of {len(masks)} images have no mask, {first}")

    def mask(self, i: int) -> UInt8[np.ndarray, "h w"]:
        """The class index, or `ignore_index`, of each pixel; InputError if it doesn't fit the image or the classes."""
        path = self.root / self.masks[i]
        mask, size = read_mask(path), image_size(self.root / self.paths[i])
        if mask.shape != size:
            height, width = mask.shape
            raise InputError(f"{path} is {width}x{height}: {size[1]}x{size[0]}, the size of its image, would work")
        bad = mask[(mask >= len(self.classes)) & (mask != self.ignore_index)]
        if bad.size:
            known = f"0 to {len(self.classes) - 1} for the {len(self.classes)} classes, and {VOID} for void, would work"
            raise InputError(f"{path} holds the values {', '.join(map(str, np.unique(bad)[:10]))}: {known}")
        return mask


class MaskFolder(PairedImages):
    """root/images/**/name.jpg with root/masks/**/name.png, whose pixel values are the classes; see `read_mask`.

    `paths` (relative to `root`) are the images to use, all by default. Class names come from root/classes.txt, one a
    line, in order of value. Without it they are "class 0" up to the largest value in any mask: every mask is read.
    """

    def __init__(self, root: str | Path, paths: Sequence[str] | None = None, classes: Sequence[str] | None = None):
        paths = list_images(Path(root), "images") if paths is None else paths
        masks = {path: "masks/" + os.path.splitext(path.removeprefix("images/"))[0] + ".png" for path in paths}
        super().__init__(root, masks, classes or ())
        if classes is None:  # after the check that no mask is missing, since this may read them all
            self.classes = mask_classes(self.root)


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
        super().__init__(found, masks, self.names.split())


def read_image(path: str | Path) -> UInt8[np.ndarray, "h w 3"]:
    """RGB in 0..255, turned upright as EXIF says; transparency is dropped, 16-bit values keep their upper 8 bits.

    Raises InputError for a file that is missing, broken, not an image, or has 32-bit values, whose range is unknown.
    """
    with _readable(path):
        data = np.frombuffer(Path(path).read_bytes(), np.uint8)
        bgr = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
        if bgr is not None:
            return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
        with Image.open(path) as image:  # what OpenCV can't read; Pillow also knows broken from unsupported
            if image.mode[0] in "IF":
                raise InputError(f"{path} holds 32-bit values: 8- or 16-bit images would work")
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def read_mask(path: str | Path) -> UInt8[np.ndarray, "h w"]:
    """The class of each pixel: the index in an indexed PNG, the value in a grey one. Raises InputError for others."""
    with _readable(path), Image.open(path) as image:
        if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
            raise InputError(f"{path} is a coloured mask, which isn't supported: an indexed or grey PNG would work")
        step = GREY_STEPS.get(str(image.tile[0][3]), 1) if image.format == "PNG" else 1
        values = np.array(image)
        if values.max() > VOID:
            raise InputError(f"{path} holds the value {values.max()}: 0 to 254, and 255 for void, would work")
        return (values // np.uint8(step)).astype(np.uint8)


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of the upright image, from its header alone."""
    with _readable(path), Image.open(path) as image:
        # Only if the header has EXIF: Pillow decodes a whole PNG in search of it, and turns the size of a TIFF itself.
        turned = "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        width, height = image.size
        return (width, height) if turned else (height, width)


@contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, cv2.error, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "not an image, or broken: save it as JPEG or PNG, or remove it"
        raise InputError(f"{path} can't be read: {reason}") from error


def list_images(root: Path, folder: str = "") -> list[str]:
    """The images below root/folder at any depth, hidden ones left out: paths relative to `root`, with "/", sorted."""
    start = len(os.path.join(root, ""))
    found, folders, seen = [], [os.path.join(root, folder)], set()
    for here in folders:  # grows while it is walked
        if (real := os.path.realpath(here)) in seen:  # a link that leads back up
            continue
        seen.add(real)
        with _readable(here), os.scandir(here) as entries:
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
    with _readable(folder):
        return any(map(is_image, os.listdir(folder)))


def subfolders(root: str | Path) -> list[str]:
    """The names of the folders directly in `root`, hidden ones left out, sorted."""
    with _readable(root), os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def mask_classes(root: Path) -> tuple[str, ...]:
    """The class names of an images/ + masks/ tree: see `MaskFolder`."""
    file = root / "classes.txt"
    if file.is_file():
        names = tuple(line.strip() for line in file.read_text("utf-8-sig").strip().splitlines())
        if not all(names) or not 0 < len(names) <= VOID:
            raise InputError(f"{file} has {len(names)} lines: 1 to {VOID} names, one a line, none blank, would work")
        return names
    largest = 0
    for path in list_images(root, "masks"):
        mask = read_mask(root / path)
        largest = max(largest, int(mask.max(initial=0, where=mask != VOID)))
    if largest == 0:  # most often objects drawn in white: silently, all of them would be void
        raise InputError(f"{root / 'masks'} holds only 0 and {VOID}, which is void: objects as 1, 2, ... would work")
    return tuple(f"class {value}" for value in range(largest + 1))


def voc_root(root: Path) -> Path | None:
    """Where the VOC 2012 tree is: `root`, or VOC2012 or VOCdevkit/VOC2012 in it."""
    places = (root, root / "VOC2012", root / "VOCdevkit/VOC2012")
    return next((p for p in places if (p / "JPEGImages").is_dir() and (p / "SegmentationClass").is_dir()), None)


def voc_palette(count: int) -> UInt8[np.ndarray, "count 3"]:
    """The first VOC colours, RGB: bits 0, 1, 2 of the index are the top bits of R, G, B; bits 3, 4, 5 the next; ..."""
    index, palette = np.arange(count), np.zeros((count, 3), np.uint8)
    for level in range(8):
        for channel in range(3):
            palette[:, channel] |= ((index >> (3 * level + channel) & 1) << (7 - level)).astype(np.uint8)
    return palette
