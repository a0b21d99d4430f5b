"""Reads one image or one mask file: pixels as the datasets promise them, or one line that names the file.

Every image comes out upright as (H, W, 3) uint8 RGB in 0..255, every mask as (H, W) class indices.
"""

import io
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Int16, UInt8
from PIL import ExifTags, Image, ImageOps

from regard.data.names import UNKNOWN, VOID, Legend, pack
from regard.errors import InputError

# Pillow widens 2- and 4-bit grey to 0..255: class 1 of a mask that a PNG optimiser packed into 4 bits would read as 17.
GREY_STEPS = {"L;2": 85, "L;4": 17}
MOST_PIXELS = 2**30  # as OpenCV's; simplejpeg has no limit, and allocates whatever a forged header says


def read_image(path: str | Path) -> UInt8[np.ndarray, "h w 3"]:
    """RGB in 0..255, turned upright as EXIF says; transparency is dropped, 16-bit values keep their upper 8 bits.

    Raises InputError for a file that is missing, broken, not an image, or has 32-bit values, whose range is unknown.
    """
    with readable(path):
        return decode_image(Path(path).read_bytes(), path)


def decode_image(
    data: bytes, name: str | Path, least: Callable[[tuple[int, int]], tuple[int, int]] | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels that an image file of these bytes holds, as `read_image` gives them, with its errors for `name`.

    least: gives the (height, width) that are enough of an image of this (height, width), for pixels that are resampled
           anyway; asked of a JPEG. One of twice that or more is halved while it is decoded, up to three times, which
           skips most of the work: its sides are then those of `jpeg_size` divided by 2, 4 or 8, rounded up. And colours
           are repeated where they are stored at half the resolution, rather than interpolated, which saves 7% of the
           time. It moves a value of a smooth photo by 0.15 of 255 in the mean, one of the built-in scenes (flat
           colours, sharp edges) by 1.3, one of coloured noise by 6, and at an edge between colours by up to 50. All
           else, and a JPEG that `jpeg_size` does not know, comes whole and interpolated.
    """
    with readable(name):
        if (size := jpeg_size(data)) is not None:
            halvings = 0 if least is None else _halvings(size, least(size))
            scaled = tuple(-(-side >> halvings) for side in size) if halvings else (0, 0)
            try:
                return simplejpeg.decode_jpeg(
                    data, "RGB", fastupsample=least is not None, min_height=scaled[0], min_width=scaled[1]
                )
            except ValueError:  # damaged: OpenCV says whether anything can be had of it
                pass
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
        if bgr is not None:
            return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
        with Image.open(io.BytesIO(data)) as image:  # what OpenCV can't read; Pillow also knows broken from unsupported
            if image.mode[0] in "IF":
                raise InputError(f"{name} holds 32-bit values: 8- or 16-bit images would work")
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of an upright JPEG of RGB or grey values, from its header alone.

    None for all other files, and for more than `MOST_PIXELS`.
    """
    if not data.startswith(b"\xff\xd8\xff") or _is_turned(data):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    size = int(height), int(width)
    return size if colours in ("YCbCr", "Gray", "RGB") and size[0] * size[1] <= MOST_PIXELS else None


def _is_turned(data: bytes) -> bool:
    """Whether the EXIF data of a JPEG asks for a turn or a flip; also where they cannot be read."""
    # No further than to the first scan: EXIF is in the header, and the pixels are long. A thumbnail inside EXIF has
    # scans of its own, behind that mark.
    start = data.find(b"Exif\0\0", 0, data.find(b"\xff\xda")) + 6
    if start < 6:
        return False
    order = {b"II": "<", b"MM": ">"}.get(data[start : start + 2])
    try:
        if order is None:
            return True
        (first,) = struct.unpack_from(f"{order}I", data, start + 4)
        (count,) = struct.unpack_from(f"{order}H", data, start + first)
        entries = range(start + first + 2, start + first + 2 + 12 * count, 12)
        orientations = [
            struct.unpack_from(f"{order}H", data, entry + 8)[0]
            for entry in entries
            if struct.unpack_from(f"{order}H", data, entry)[0] == ExifTags.Base.Orientation
        ]
    except struct.error:
        return True
    return any(orientation != 1 for orientation in orientations)


def _halvings(size: tuple[int, int], least: tuple[int, int]) -> int:
    """How often both sides can be halved and still be `least`; three times at most, as libjpeg's blocks have 8 px.

    Of libjpeg's other scales, all eighths, none is faster than decoding at full size.
    """
    enough = (times for times in range(4) if all(side >> times >= low for side, low in zip(size, least, strict=True)))
    return max(enough, default=0)


def read_mask(path: str | Path) -> UInt8[np.ndarray, "h w"]:
    """The class of each pixel: the index in an indexed PNG, the value in a grey one. Raises InputError for others."""
    with readable(path), Image.open(path) as image:
        if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
            fits = "an indexed or grey PNG, or the classes' colours in classes.json, would work"
            raise InputError(f"{path} is a coloured mask, and its colours are not known: {fits}")
        step = GREY_STEPS.get(str(image.tile[0][3]), 1) if image.format == "PNG" else 1
        values = np.array(image)
        if values.max() > VOID:
            raise InputError(f"{path} holds the value {values.max()}: 0 to 254, and 255 for void, would work")
        return (values // np.uint8(step)).astype(np.uint8)


def read_labels(path: str | Path, legend: Legend) -> Int16[np.ndarray, "h w"]:
    """The label of each pixel of a mask, by its colours or its values as `legend` says; transparency is dropped.

    Raises InputError for a mask that can't be read, and for values or colours that `legend` doesn't have.
    """
    with readable(path), Image.open(path) as image:
        grey = image.mode in ("1", "L", "P") or image.mode.startswith("I")
        if legend.colors and not (grey and legend.values):
            if image.mode[0] in "IF":
                raise InputError(f"{path} holds {image.mode} values: 8-bit colours would work")
            image.info.pop("transparency", None)  # Pillow warns of it where it drops it
            rgb = np.array(image.convert("RGB"))
            labels = legend.by_color(rgb)
            if (labels == UNKNOWN).any():
                raise _unknown_colors(path, rgb[labels == UNKNOWN][None], legend)
            return labels
    return labels_of(path, read_mask(path), legend)


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
    if str(path).lower().endswith((".jpg", ".jpeg")):
        return InputError(f"{what}: JPEG changes colours, so masks saved as PNG from the start would work")
    return InputError(f'{what}: to give these to a class, or to "void", in {legend.where} would work')


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of the upright image, from its header alone."""
    with readable(path), Image.open(path) as image:
        # Only if the header has EXIF: Pillow decodes a whole PNG in search of it, and turns the size of a TIFF itself.
        turned = "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        width, height = image.size
        return (width, height) if turned else (height, width)


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Turns what goes wrong while a file or folder is read into an InputError that names it."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, cv2.error, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "not an image, or broken: save it as JPEG or PNG, or remove it"
        raise InputError(f"{path} can't be read: {reason}") from error
