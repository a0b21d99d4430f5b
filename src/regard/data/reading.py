"""Reads one image file: pixels as the datasets promise them, or one line that names the file. Masks: reading_masks.py.

Every image comes out upright as (H, W, 3) uint8 RGB in 0..255. A file is opened as what its first bytes say, of the
formats in `KINDS` and no other, and its size is judged by its header, before anything is decoded.
"""

import io
import os
import re
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeGuard

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from regard.data.rasters import (
    DAMAGE,
    DICM,
    TIFFS,
    Tiff,
    as_bytes,
    check_channels,
    check_size,
    dicom_size,
    is_dicom,
    read_dicom,
    read_tiff,
    several_pages,
    tiff_of,
)
from regard.errors import InputError
from regard.settings import AS_STORED, Values

File = io.BytesIO | io.BufferedReader
Least = Callable[[tuple[int, int]], tuple[int, int]]

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
# By the first bytes: Pillow's own `open` would start Ghostscript where a file asks for it.
KINDS: dict[bytes, Callable[[File], ImageFile.ImageFile]] = {
    JPEG: JpegImagePlugin.JpegImageFile,
    PNG: PngImagePlugin.PngImageFile,
    b"BM": BmpImagePlugin.BmpImageFile,
    b"GIF8": GifImagePlugin.GifImageFile,  # as there are in Oxford-IIIT Pet, named .jpg
    b"RIFF": WebPImagePlugin.WebPImageFile,
    **dict.fromkeys(TIFFS, TiffImagePlugin.TiffImageFile),
}
# What libjpeg warns of in whole files, too: odd headers, and a few bytes too many, as cameras pad their pictures.
HARMLESS = re.compile(r"Invalid SOS parameters|unknown JFIF|Unknown Adobe|bad ICC marker|(\d+) extraneous bytes before")
PADDING = 64, 0.01  # bytes, or a share of the file; more of it is what could not be decoded
NO_PAGE = 1 | 4  # bits of a TIFF's NewSubfileType: a smaller copy of another page, its transparency
# Of EXIF's orientations, as OpenCV calls them; from 5 on, transposed first.
FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}
REMEDY = "save it as JPEG or PNG, or remove it"
ANY_DEPTH = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH

# What OpenCV says of a broken file would come beside our line.
if hasattr(cv2, "setLogLevel"):  # before OpenCV 5
    cv2.setLogLevel(0)  # type: ignore[attr-defined]
else:
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def read_image(path: str | Path, values: Values = AS_STORED) -> UInt8[np.ndarray, "h w 3"]:
    """RGB in 0..255, turned upright as EXIF says; transparency is dropped; for `values` see `decode_image`.

    Raises InputError for a file that is missing, damaged, not an image, of several pages or frames, of more pixels than
    `settings.Reading` allows, or that does not say what is to be seen: see `rasters`.
    """
    with opened(path) as file:
        return decode_image(file.read(), path, values=values)


@contextmanager
def opened(path: str | Path) -> Iterator[File]:
    """A file to read from; what goes wrong within is an InputError that names it. So is a pipe: it may never end."""
    with readable(path), open(path, "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise InputError(f"{path} is a pipe or a device, not a file: remove it")
        yield file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # as a pipe would be waited for; Windows has none


def decode_image(
    data: bytes, name: str | Path, least: Least | None = None, values: Values = AS_STORED
) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels that an image file of these bytes holds, as `read_image` gives them, with its errors for `name`.

    least: gives the (height, width) that are enough of an image of this (height, width), for pixels that are resampled
           anyway; asked of a JPEG. One of twice that or more is halved while it is decoded, up to three times, which
           skips most of the work: its sides are then divided by 2, 4 or 8, rounded up. And colours are repeated where
           they are stored at half the resolution, rather than interpolated, which saves 7% of the time. It moves a
           value of a smooth photo by 0.15 of 255 in the mean, one of the built-in scenes (flat colours, sharp edges) by
           1.3, one of coloured noise by 6, and at an edge between colours by up to 60. All else comes whole and
           interpolated: other formats, JPEGs that EXIF turns, and those of CMYK.
    values: those that are read; by default the upper 8 of 16 bits.
    """
    with readable(name):
        if data.startswith(JPEG) and (pixels := _decode_jpeg(data, name, least)) is not None:
            return picked(pixels, values, name)
        if is_dicom(data):
            return picked(read_dicom(data, name, values), values, name)
        if tiff := _other_tiff(data, values):
            return _rgb(turned(read_tiff(data, name, tiff, values), tiff.turn))
        image = header(io.BytesIO(data), name)
        check_pages(image, name, as_channels=True)
        flags = cv2.IMREAD_ANYDEPTH if image.mode.startswith("I;16") else ANY_DEPTH  # grey stays so: half the time
        if _is_lossless_tiff(image):
            found = np.array(image)
        elif _is_tiff(image) and image.mode == "RGBA" and _depth(image) == 8:  # OpenCV would darken it by its alpha
            found = np.array(image.convert("RGB"))
        elif (found := imdecode(data, flags)) is not None:
            found = cv2.cvtColor(found, cv2.COLOR_BGR2RGB) if found.ndim == 3 else found
        else:  # what OpenCV can't read; Pillow also knows broken from unsupported
            rgb = np.array(image.convert("RGB"))
            found = turned(rgb, orientation(image))
        if found.dtype == np.uint16:
            found = as_bytes(found, values.ends)
        return picked(found.astype(np.uint8, copy=False), values, name)


def picked(pixels: UInt8[np.ndarray, "h w *channels"], values: Values, name: str | Path) -> UInt8[np.ndarray, "h w 3"]:
    """The chosen channels of RGB; of grey, which is all three of them."""
    if values.channels is None:
        return _rgb(pixels)
    check_channels(values.channels, 3, name)
    return _rgb(_rgb(pixels)[..., values.channels])


def _rgb(pixels: UInt8[np.ndarray, "h w *channels"]) -> UInt8[np.ndarray, "h w 3"]:
    return pixels if pixels.shape[2:] == (3,) else cv2.merge([pixels.reshape(pixels.shape[:2])] * 3)


def _other_tiff(data: bytes, values: Values = AS_STORED) -> Tiff | None:
    """What a TIFF says of itself that Pillow and OpenCV do not read, or not what is chosen of it; None of others."""
    tiff = tiff_of(io.BytesIO(data)) if data.startswith(TIFFS) else None
    return None if tiff is None or (tiff.usual and max(values.channels or (0,)) < 3) else tiff


def imdecode(data: bytes, flags: int) -> np.ndarray | None:
    """What OpenCV makes of a file; None where it can't read it.

    It isn't asked to read a PNG with a chunk that would be longer than the file, for which it takes as much memory.
    """
    at = 8 if data.startswith(PNG) else len(data)
    while at < len(data) and data[at + 4 : at + 8] != b"IEND":
        at += 12 + int.from_bytes(data[at : at + 4])
        if at > len(data):
            return None
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def _is_lossless_tiff(image: Image.Image) -> bool:
    """Whether Pillow reads it: a TIFF of 8 bits, compressed without loss, of which OpenCV takes damage for pixels."""
    is_compressed = image.info.get("compression") not in (None, "raw", "jpeg")
    return is_compressed and _is_tiff(image) and image.mode in ("L", "RGB") and _depth(image) == 8


def bits_in_use(data: bytes, name: str | Path) -> int | None:
    """How many bits the values of an image use, if it has 16; None for others. InputError for a broken one."""
    with readable(name):
        if data.startswith(JPEG) or is_dicom(data) or _other_tiff(data):
            return None
        if _depth(header(io.BytesIO(data), name)) != 16:
            return None
        values = imdecode(data, ANY_DEPTH)
        return int(values.max()).bit_length() if values is not None and values.dtype == np.uint16 else None


def _depth(image: Image.Image) -> int:
    """Bits of a value in a PNG or a TIFF, of which Pillow keeps 8 where there are several channels; 8 of others."""
    if _is_tiff(image):
        return image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))[0]
    return 16 if isinstance(image, PngImagePlugin.PngImageFile) and "16" in str(image.tile[0][3]) else 8


def _decode_jpeg(data: bytes, name: str | Path, least: Least | None) -> UInt8[np.ndarray, "h w 3"] | None:
    """None for a JPEG of another kind than simplejpeg decodes to RGB. InputError for one of which a part is lost."""
    try:
        *sides, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except ValueError:
        return None
    height, width = (int(side) for side in sides)
    check_size(width, height, name)
    turn = _orientation(data[: data.find(b"\xff\xda")])  # in the header; a thumbnail within EXIF is behind the mark
    is_rgb = colours in ("YCbCr", "Gray", "RGB")
    least = least if is_rgb and turn == 1 else None
    halvings = 0 if least is None else _halvings((height, width), least((height, width)))
    scaled = {"min_height": -(-height >> halvings), "min_width": -(-width >> halvings)} if halvings else {}
    to = "RGB" if is_rgb else "CMYK"
    decode = partial(simplejpeg.decode_jpeg, data, to, fastupsample=least is not None, **scaled)
    try:
        pixels = decode(strict=True)
    except ValueError as error:
        found = HARMLESS.search(str(error))
        if found is None or int(found[1] or 0) > max(PADDING[0], PADDING[1] * len(data)):
            raise InputError(f"{name} can't be read: a JPEG that is damaged or cut off: {REMEDY}") from error
        pixels = decode(strict=False)
    return turned(pixels, turn) if is_rgb else None  # OpenCV knows what CMYK looks like


def _halvings(size: tuple[int, int], least: tuple[int, int]) -> int:
    """How often both sides can be halved and still be `least`; three times at most, as libjpeg's blocks have 8 px.

    Of libjpeg's other scales, all eighths, none is faster than decoding at full size.
    """
    enough = (times for times in range(4) if all(side >> times >= low for side, low in zip(size, least, strict=True)))
    return max(enough, default=0)


def header(file: File, name: str | Path) -> Image.Image:
    """An image of which only the header is read. InputError for what is none, and for one of too many pixels."""
    start = file.read(16)
    kind = next((kind for mark, kind in KINDS.items() if start.startswith(mark)), None)
    file.seek(0)
    if kind is None:
        what = "HEIC, AVIF or a video" if start[4:8] == b"ftyp" else "not an image, or broken" if start else "empty"
        raise InputError(f"{name} can't be read: {what}: {REMEDY}")
    try:
        image = kind(file)
    except DAMAGE as error:
        if kind is TiffImagePlugin.TiffImageFile and (tiff := tiff_of(file)) and not tiff.usual:
            what = f"{name} is a TIFF of {tiff.channels} channels of {tiff.kind}"
            raise InputError(f"{what}: 1 or 3 of 8-bit whole numbers would work") from error
        raise InputError(f"{name} can't be read: not an image, or broken: {REMEDY}") from error
    check_size(*image.size, name)
    return image


def _is_tiff(image: Image.Image) -> TypeGuard[TiffImagePlugin.TiffImageFile]:
    return isinstance(image, TiffImagePlugin.TiffImageFile)


def check_pages(image: Image.Image, name: str | Path, as_channels: bool = False) -> None:
    """InputError for several pages or frames: which of them is meant is not known. as_channels: they might be that."""
    kinds = set[tuple[tuple[int, int], int]]()
    count = getattr(image, "n_frames", 1)
    if count > 1 and _is_tiff(image):
        pages = range(count)
        count = 0
        for page in pages:
            image.seek(page)
            if not image.tag_v2.get(254, 0) & NO_PAGE:
                count += 1
                kinds.add((image.size, image.tag_v2.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)))
        image.seek(0)
    if count > 1 and not isinstance(image, JpegImagePlugin.JpegImageFile):
        raise several_pages(name, count, kinds if as_channels else ())


def orientation(image: Image.Image) -> int:
    """How a decoded image is to be turned: see `turned`. Pillow has done it to a TIFF."""
    is_tiff = _is_tiff(image)
    return 1 if is_tiff else _orientation(b"Exif\0\0" + image.info.get("exif", b"").removeprefix(b"Exif\0\0"))


def _orientation(data: bytes) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none; 0 where it can't be read."""
    start = data.find(b"Exif\0\0") + 6
    if start < 6 or start == len(data):
        return 1
    order = {b"II": "<", b"MM": ">"}.get(data[start : start + 2])
    try:
        if order is None:
            return 0
        (first,) = struct.unpack_from(f"{order}I", data, start + 4)
        (count,) = struct.unpack_from(f"{order}H", data, start + first)
        for entry in range(start + first + 2, start + first + 2 + 12 * count, 12):
            if struct.unpack_from(f"{order}H", data, entry)[0] == ExifTags.Base.Orientation:
                return struct.unpack_from(f"{order}H", data, entry + 8)[0]
    except struct.error:
        return 0
    return 1


def turned(pixels: UInt8[np.ndarray, "h w *channels"], turn: int) -> UInt8[np.ndarray, "_ _ *channels"]:
    """Upright, as EXIF's orientation 1 to 8 asks for; the same for any other number."""
    if 5 <= turn <= 8:
        pixels = cv2.transpose(pixels)
    return cv2.flip(pixels, FLIPS[turn]) if turn in FLIPS else pixels


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of the upright image, from its header alone."""
    with opened(path) as file:
        start = file.read(DICM.stop)
        if is_dicom(start):
            return dicom_size(start + file.read(), path)
        tiff = tiff_of(file) if start.startswith(TIFFS) else None
        if tiff and not tiff.usual:
            check_size(tiff.width, tiff.height, path)
            return tiff.size
        file.seek(0)
        # Only if the header has EXIF: Pillow decodes a whole PNG in search of it, and turns the size of a TIFF itself.
        image = header(file, path)
        width, height = image.size
        return (width, height) if 5 <= orientation(image) <= 8 else (height, width)


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Turns what goes wrong while a file or folder is read into an InputError that names it."""
    try:
        yield
    except InputError:
        raise
    except (Image.DecompressionBombError, MemoryError) as error:  # a GIF tells the size of its frames late
        raise InputError(f"{path} can't be read: it would take too much memory: a smaller copy would work") from error
    except (*DAMAGE, cv2.error) as error:
        reason = getattr(error, "strerror", None) or f"not an image, or broken: {REMEDY}"
        raise InputError(f"{path} can't be read: {reason}") from error
