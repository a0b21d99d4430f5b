"""Reads one mask file: (H, W) class indices, upright as images come, or one line that names the file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Int16, UInt8
from PIL import Image, JpegImagePlugin, PngImagePlugin

from regard.data.names import UNKNOWN, VOID, Legend, pack
from regard.data.reading import check_pages, header, opened, orientation, turned
from regard.errors import InputError

# Pillow widens 2- and 4-bit grey to 0..255: class 1 of a mask that a PNG optimiser packed into 4 bits would read as 17.
GREY_STEPS = {"L;2": 85, "L;4": 17}


def read_mask(path: str | Path) -> UInt8[np.ndarray, "h w"]:
    """The class of each pixel: the index in an indexed PNG, the value in a grey one. Raises InputError for others."""
    with _mask(path) as image:
        return _values(image, path)


def read_labels(path: str | Path, legend: Legend) -> Int16[np.ndarray, "h w"]:
    """The label of each pixel of a mask, by its colours or its values as `legend` says; transparency is dropped.

    Raises InputError for a mask that can't be read, and for values or colours that `legend` doesn't have.
    """
    with _mask(path) as image:
        if not legend.colors or (_is_grey(image) and legend.values):
            return labels_of(path, _values(image, path), legend)
        if image.mode[0] in "IF":
            raise InputError(f"{path} holds {image.mode} values: 8-bit colours would work")
        image.info.pop("transparency", None)  # Pillow warns of it where it drops it
        rgb = np.array(image.convert("RGB"))
        rgb = turned(rgb, orientation(image))  # of which only a decoded image tells all
        labels = legend.by_color(rgb)
        if (labels == UNKNOWN).any():
            raise _unknown_colors(path, rgb[labels == UNKNOWN][None], legend)
        return labels


def read_palette(path: str | Path) -> UInt8[np.ndarray, "colours 3"] | None:
    """The colours of an indexed mask, RGB; None for any other mask. Raises InputError for one that can't be read."""
    with _mask(path) as image:
        flat = image.getpalette() if image.mode == "P" else None
        return None if flat is None else np.array(flat, np.uint8).reshape(-1, 3)


@contextmanager
def _mask(path: str | Path) -> Iterator[Image.Image]:
    """A mask of which the header is read; what goes wrong within is an InputError that names it."""
    with opened(path) as file:
        image = header(file, path)
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            raise InputError(f"{path} is a JPEG, which changes the values of a mask: one saved as PNG would work")
        check_pages(image, path)
        yield image


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "P") or image.mode.startswith("I")


def _values(image: Image.Image, path: str | Path) -> UInt8[np.ndarray, "h w"]:
    if not _is_grey(image):
        raise InputError(f"{path} {_what_is_wrong(image)}")
    step = GREY_STEPS.get(str(image.tile[0][3]), 1) if isinstance(image, PngImagePlugin.PngImageFile) else 1
    values = np.array(image)
    for extreme in (values.min(), values.max()):
        if not 0 <= extreme <= VOID:
            raise InputError(f"{path} holds the value {extreme}: 0 to 254, and 255 for void, would work")
    return turned((values // np.uint8(step)).astype(np.uint8), orientation(image))


def _what_is_wrong(image: Image.Image) -> str:
    """In words, of a mask that does not hold values of one channel; and what would work."""
    if image.mode == "F":
        return "holds 32-bit floats: an indexed or grey PNG would work"
    if image.mode == "LA":
        return "is grey with transparency: a grey PNG without would work"
    red, green, blue = np.moveaxis(np.array(image.convert("RGB")), -1, 0)
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return "is grey, but saved as RGB: a grey PNG would work"
    colours = "or the classes' colours in classes.json, would work"
    if not green.any() and not blue.any():
        return f"has values in its red channel alone: that channel as a grey PNG, {colours}"
    return f"is a coloured mask, and its colours are not known: an indexed or grey PNG, {colours}"


def labels_of(path: str | Path, values: UInt8[np.ndarray, "h w"], legend: Legend) -> Int16[np.ndarray, "h w"]:
    """The label of each value of a mask; InputError, which names `path`, for values that no class has."""
    labels = legend.by_value(values)
    if not (unknown := labels == UNKNOWN).any():
        return labels
    of_classes = sorted(value for value, label in legend.values.items() if label != VOID)
    void = sorted(value for value, label in legend.values.items() if label == VOID)
    gaps = ", with gaps," if len(of_classes) <= of_classes[-1] - of_classes[0] else ""
    known = f"{of_classes[0]} to {of_classes[-1]}{gaps} for the {len(legend.classes)} classes"
    known += f", and {' or '.join(map(str, void))} for void," if void else ""
    held = ", ".join(map(str, np.unique(values[unknown])[:10]))
    raise InputError(f"{path} holds the values {held}: {known} would work")


def _unknown_colors(path: str | Path, rgb: UInt8[np.ndarray, "1 n 3"], legend: Legend) -> InputError:
    """The error for colours of a mask that no class has: the most frequent first."""
    codes, counts = np.unique(pack(rgb), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    named = ", ".join(f"#{code:06x}" for code in codes[order[:3]]) + (", ..." if len(codes) > 3 else "")
    what = f"{path} has {rgb.shape[1]:,} pixels of {len(codes):,} colours that no class has ({named})"
    return InputError(f'{what}: to give these to a class, or to "void", in {legend.where} would work')
