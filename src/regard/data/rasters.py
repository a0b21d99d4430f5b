"""Images that do not say by themselves what is to be seen: TIFFs of other than 1 or 3 channels of 8 or 16 bits, read by
rasterio, and DICOM, read by pydicom; and how values become bytes.

Each is one image of a file in memory, whose size is judged by its header first. Nothing else is opened: of GDAL's
drivers only that of TIFF, and of what DICOM can hold only what is decoded here.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from regard.errors import InputError
from regard.settings import Ends, Values, most_megapixels

TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
WIDTH, HEIGHT, BITS, PHOTOMETRIC, ORIENTATION, SAMPLES = 256, 257, 258, 262, 274, 277
TILE_WIDTH, TILE_HEIGHT, EXTRA, FORMAT = 322, 323, 338, 339
RGB = 2
COLOURS = {RGB: 3, 5: 4, 6: 3, 8: 3}  # channels of a photometric interpretation (RGB, CMYK, YCbCr, Lab); 1 of others
ALPHA = (1, 2)  # what an extra channel may be that is dropped
# What ties pixels to the ground (pixel scale, tie points, transformation, GeoKeys with numbers and words, rational
# polynomials), by the types of TIFF: 2 text, 3 short, 12 double.
GROUND = {33550: 12, 33922: 12, 34264: 12, 34735: 3, 34736: 12, 34737: 2, 50844: 12}
KINDS = {1: "whole numbers", 2: "whole numbers below 0 too", 3: "floats", 5: "complex", 6: "complex"}
# What Pillow raises of broken files.
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, OverflowError, struct.error, zlib.error)
DICM = slice(128, 132)
DEFLATED = b"1.2.840.10008.1.2.1.99"  # of any size once it is not
BY_PILLOW = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")  # JPEG, JPEG 2000
RLE = "1.2.840.10008.1.2.5"


def check_size(width: int, height: int, name: str | Path, channels: int = 1) -> None:
    """InputError for more pixels than are read: memory is not taken at the word of whatever a header says.

    channels: of which four count as a pixel.
    """
    megapixels = width * height * max(1, channels / 4) / 1e6
    if megapixels > (most := most_megapixels()):
        of = f" of {channels} channels" if channels > 4 else ""
        what = f"{name} is {width} x {height}{of}, {megapixels:,.1f} megapixels, and {most:g} at most are read"
        raise InputError(f"{what}: a smaller copy, or --max_megapixels {megapixels + 0.5:.0f}, would work")


def as_bytes(
    values: Shaped[np.ndarray, "h w *channels"],
    ends: Ends | None,
    missing: Bool[np.ndarray, "h w *channels"] | None = None,
) -> UInt8[np.ndarray, "h w *channels"]:
    """0 from the one end down, 255 from the other up, 256 steps between; None, for 16 bits: all of them.

    A percentage is a percentile of the channel. What is missing, or no number, is 0, and counts for no percentile.
    """
    if values.ndim == 3:
        parts = [(values[..., i], None if missing is None else missing[..., i]) for i in range(values.shape[2])]
        return np.stack([as_bytes(part, ends, lost) for part, lost in parts], axis=2)
    if ends is None:
        return (values >> 8).astype(np.uint8)
    known = np.isfinite(values) if missing is None else np.isfinite(values) & ~missing
    low, high = (_end(values, known, *end) for end in ends)
    if low > high:
        raise InputError(f"the range goes from {low:g} to {high:g} in an image: two numbers would work")
    scaled = _table(low, high)[values] if values.dtype == np.uint16 else _scaled(values, low, high)
    return scaled if known.all() else np.where(known, scaled, np.uint8(0))


def _end(values: np.ndarray, known: np.ndarray, number: float, is_percent: bool) -> float:
    if not is_percent:
        return number
    return float(np.percentile(values[known], number)) if known.any() else 0.0


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Of many whole numbers the highest is a step of its own, so that 0,65535 are the upper 8 of 16 bits."""
    many = np.issubdtype(values.dtype, np.integer) and high - low >= 255
    steps = max(high - low + many, np.finfo(np.float32).tiny)
    with np.errstate(all="ignore"):  # what is no number
        exact = (values.astype(np.result_type(values.dtype, np.float32)) - low) * (256 / steps)
        return np.nan_to_num(exact.clip(0, 255)).astype(np.uint8)


@lru_cache(maxsize=16)
def _table(low: float, high: float) -> np.ndarray:
    """The byte of each of 16 bits: faster than computing it."""
    return _scaled(np.arange(2**16, dtype=np.int32), low, high)


@dataclass(frozen=True)
class Tiff:
    """What the first list of tags in a TIFF says; `usual` is what Pillow and OpenCV read."""

    width: int
    height: int
    channels: int
    usual: bool
    block: tuple[int, int]  # that is decoded at once, at the least
    turn: int  # as EXIF's orientation
    kind: str  # of its values, in words

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the upright image."""
        return (self.width, self.height) if 5 <= self.turn <= 8 else (self.height, self.width)


def tags_of(file: Any) -> ImageFileDirectory_v2 | None:
    """The first list of tags in a TIFF; None where it can't be read."""
    file.seek(0)
    start = file.read(16)
    try:
        tags = ImageFileDirectory_v2(start[:16] if b"+" in start[:4] else start[:8])
        file.seek(tags.next)
        tags.load(file)
    except DAMAGE:
        return None
    return tags


def tiff_of(file: Any) -> Tiff | None:
    """What a TIFF says of itself; None where that can't be read."""
    tags = tags_of(file)
    if tags is None or not {WIDTH, HEIGHT} <= tags.keys():
        return None
    channels, bits, kinds = tags.get(SAMPLES, 1), tags.get(BITS, (1,)), tags.get(FORMAT, (1,))
    more = channels - COLOURS.get(tags.get(PHOTOMETRIC, 1), 1)
    if tags.get(PHOTOMETRIC) == RGB:
        is_alpha = more == 1 and tags.get(EXTRA, ALPHA)[0] in ALPHA  # not said, it is taken for that
    else:
        is_alpha = more == 1 and tags.get(EXTRA, (0,))[0] in ALPHA and set(bits) == {8}
    is_plain = set(bits) <= {1, 2, 4, 8, 16} and set(kinds) <= {1, 4}  # whole numbers from 0 on, or not said
    block = tags.get(TILE_WIDTH, 1), tags.get(TILE_HEIGHT, 1)
    turn = tags.get(ORIENTATION, 1)
    kind = KINDS.get(kinds[0], "unknown")
    return Tiff(
        tags[WIDTH], tags[HEIGHT], channels, is_plain and (not more or is_alpha), block, turn, f"{bits[0]}-bit {kind}"
    )


def read_tiff(data: bytes, name: str | Path, tiff: Tiff, chosen: Values) -> UInt8[np.ndarray, "h w channels"]:
    """The chosen channels, as stored: not turned."""
    check_size(tiff.width, tiff.height, name, tiff.channels)
    check_size(*tiff.block, name, tiff.channels)
    is_bytes = tiff.kind == f"8-bit {KINDS[1]}"
    wanted = ["--channels 0,1,2"] if chosen.channels is None and tiff.channels > 1 else []
    wanted += ["--range LOW,HIGH (or 1%,99%)"] if chosen.range is None and not is_bytes else []
    if wanted:
        number = f"{tiff.channels} channels" if tiff.channels > 1 else "a channel"
        raise InputError(f"{name} holds {number} of {tiff.kind}: {' '.join(wanted)}, for example, would work")
    channels = chosen.channels or (0,)
    check_channels(channels, tiff.channels, name)
    with _library(name, "rasterio", "geo") as rasterio:
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        alone = rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_CACHEMAX=64)
        with alone, rasterio.MemoryFile(data) as memory, memory.open(driver="GTiff") as image:
            if image.subdatasets:
                kinds = set[tuple[tuple[int, int], int]]()
                for page in image.subdatasets:
                    with rasterio.open(page) as part:
                        kinds.add((part.shape, part.count))
                raise several_pages(name, len(image.subdatasets), kinds)
            values = np.moveaxis(image.read([channel + 1 for channel in channels]), 0, 2)
            nothing = [image.nodatavals[channel] for channel in channels]
    if np.iscomplexobj(values):
        raise InputError(f"{name} holds complex numbers: their magnitudes, as a file of their own, would work")
    if values.dtype == np.uint8:
        return values
    missing = np.stack(
        [np.full(values.shape[:2], False) if n is None else values[..., i] == n for i, n in enumerate(nothing)], 2
    )
    return as_bytes(values, chosen.ends, missing)


def several_pages(name: str | Path, count: int, kinds: Collection[tuple[tuple[int, int], int]] = ()) -> InputError:
    """What is said of several pages. kinds: of their sizes and numbers of channels; where all are one, of a channel
    each, they may be the channels of an image, as tifffile writes an array of (channels, h, w) by default.
    """
    line = f"{name} holds {count} pages or frames: one of them, as a file of its own, would work"
    if [channels for _, channels in kinds] == [1]:
        line += (
            "; if they are channels, these in one page (tifffile: photometric='minisblack', planarconfig='separate')"
        )
    return InputError(line)


def check_channels(channels: Sequence[int], there: int, name: str | Path) -> None:
    """InputError for a channel that there is not."""
    if max(channels) >= there:
        which = f"channels 0 to {there - 1}" if there > 1 else "channel 0 alone"
        raise InputError(f"{name} has {which}, and --channels {','.join(map(str, channels))} is asked for")


def is_dicom(data: bytes) -> bool:
    """By its mark, behind 128 bytes that may be anything."""
    return data[DICM] == b"DICM"


@contextmanager
def _library(name: str | Path, module: str, extra: str) -> Iterator[Any]:
    """A library that is needed for a file; whatever it says of it is an InputError, in one line."""
    try:
        found = import_module(module)
    except ImportError as error:
        raise InputError(f"{name} needs {module}: pip install 'regard[{extra}]' would work") from error
    try:
        yield found
    except (InputError, MemoryError):
        raise
    except Exception as error:  # each part of these raises its own
        raise InputError(f"{name} can't be read: broken, or of a kind that {module} doesn't read") from error


def dicom_size(data: bytes, name: str | Path) -> tuple[int, int]:
    """(height, width)."""
    with _library(name, "pydicom", "dicom") as pydicom:
        return _size(_opened(pydicom, data, name), name)


def _opened(pydicom: Any, data: bytes, name: str | Path) -> Any:
    warnings.filterwarnings("ignore", module="pydicom")  # what it makes of what is not quite as it should be
    if DEFLATED in data:
        raise InputError(f"{name} is a DICOM file that is deflated as a whole: one that is not would work")
    return pydicom.dcmread(io.BytesIO(data))


def _size(image: Any, name: str | Path) -> tuple[int, int]:
    if "PixelData" not in image:
        raise InputError(f"{name} is a DICOM file without an image: leave it out")
    if (frames := int(image.get("NumberOfFrames") or 1)) > 1:
        raise several_pages(name, frames)
    check_size(int(image.Columns), int(image.Rows), name)
    return int(image.Rows), int(image.Columns)


def read_dicom(data: bytes, name: str | Path, chosen: Values) -> UInt8[np.ndarray, "h w *channels"]:
    """RGB, or grey as it is to be displayed: by the chosen range, of values such as Hounsfield units; else by the first
    window that the file itself names; 8 bits without one as they are. InputError for others.
    """
    with _library(name, "pydicom", "dicom") as pydicom:
        image = _opened(pydicom, data, name)
        size = _size(image, name)
        _check_compression(pydicom, image, size, name)
        pixels = pydicom.pixels.pixel_array(image)
        if image.PhotometricInterpretation == "PALETTE COLOR":
            pixels = pydicom.pixels.apply_color_lut(pixels, image)
        is_grey = pixels.ndim == 2
        values = pydicom.pixels.apply_modality_lut(pixels, image) if is_grey and _is_rescaled(image) else pixels
        padding = image.get("PixelPaddingValue")
        missing = None if padding is None or not is_grey else pixels == padding
        ends = chosen.ends or (_window(image) if is_grey else None)
    if values.dtype == np.uint8 and ends is None:
        shown = values
    elif ends is None and is_grey:
        raise InputError(f"{name} is a DICOM file that names no window: --range LOW,HIGH (or 1%,99%) would work")
    else:
        shown = as_bytes(values, ends, missing)
    return 255 - shown if image.PhotometricInterpretation == "MONOCHROME1" else shown


def _is_rescaled(image: Any) -> bool:
    """Whether its values stand for others."""
    plain = (image.get("RescaleSlope", 1), image.get("RescaleIntercept", 0)) == (1, 0)
    return not plain or "ModalityLUTSequence" in image


def _check_compression(pydicom: Any, image: Any, size: tuple[int, int], name: str | Path) -> None:
    """InputError for what isn't decoded, and for a JPEG of another size than is said."""
    syntax = image.file_meta.TransferSyntaxUID
    if not syntax.is_compressed or syntax == RLE:
        return
    if syntax not in BY_PILLOW:
        raise InputError(
            f"{name} is compressed as {syntax.name}: one that is not, or as RLE, JPEG or JPEG 2000, would work"
        )
    frame = pydicom.encaps.get_frame(image.PixelData, 0, number_of_frames=1)
    with Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000")) as inside:
        if inside.size[::-1] != size:
            raise InputError(
                f"{name} is broken: it is {size[1]} x {size[0]}, and its JPEG {inside.width} x {inside.height}"
            )


def _window(image: Any) -> Ends | None:
    """The values that become black and white by the first window, as DICOM (PS3.3, C.11.2.1.2) has it."""
    function = image.get("VOILUTFunction") or "LINEAR"
    first = [image.get(key) for key in ("WindowCenter", "WindowWidth")]
    if any(value is None or value == "" for value in first) or function == "SIGMOID":
        return None
    centre, width = (float(value[0] if hasattr(value, "__iter__") else value) for value in first)
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    return ((centre - width / 2, False), (centre + width / 2, False)) if width > 0 else None


def ground_of(file: Any) -> ImageFileDirectory_v2 | None:
    """The tags of a TIFF that tie its pixels to the ground, for another of the same size; None of others, and where its
    orientation turns the image, which GDAL and others do not.
    """
    if file.read(4) not in TIFFS or (tags := tags_of(file)) is None or tags.get(ORIENTATION, 1) != 1:
        return None
    kept = ImageFileDirectory_v2()
    for tag in GROUND.keys() & tags.keys():
        kept.tagtype[tag] = GROUND[tag]
        kept[tag] = tags[tag]
    return kept if len(kept) else None
