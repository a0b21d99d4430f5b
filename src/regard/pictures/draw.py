"""Pictures of attention maps, and of other maps over a grid of patches, as uint8 RGB arrays.

A cell of a map is drawn exactly over its patch: cell (i, j) covers `stride` x `stride` pixels from (i, j) * stride on.
Cells at the right and at the bottom are cut where the image ends, as a backbone pads its images there.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont

from regard.errors import InputError
from regard.files import write_whole

Picture = UInt8[np.ndarray, "_ _ 3"]  # RGB, 0..255; each of a size of its own
Upsample = Literal["nearest", "bilinear"]

COLOURS = (colormaps["inferno"](np.arange(256))[:, :3] * 255).astype(np.uint8)
CHANNEL_COLOURS = (colormaps["viridis"](np.arange(256))[:, :3] * 255).astype(np.uint8)
OUTLINE = (255, 0, 0)  # of a mask
GAP = 4  # white pixels between the cells of a mosaic
TEXT = 13  # height of letters, pixels; labels get smaller where cells are
LEAST_TEXT = 8  # the smallest that can be read
LINE = 1.5  # of the height of letters


def enlarge(
    cells: Float[np.ndarray, "rows columns"], size: tuple[int, int], stride: int, upsample: Upsample = "nearest"
) -> Float[np.ndarray, "height width"]:
    """A value per pixel of an image of `size`, (height, width), whose patches are `stride` pixels wide.

    nearest, as published for DINO: that of the pixel's patch; bilinear: between the centres of patches, level outside.
    Raises InputError when the grid is not that of such an image.
    """
    rows, columns = cells.shape
    if (rows, columns) != tuple(-(-side // stride) for side in size):
        height, width = size
        raise InputError(
            f"a grid of {rows} x {columns} does not cover {height} x {width} pixels by patches of {stride}"
        )
    how = cv2.INTER_NEAREST if upsample == "nearest" else cv2.INTER_LINEAR
    return cv2.resize(cells, (columns * stride, rows * stride), interpolation=how)[: size[0], : size[1]]


def heat_map(
    weights: Float[np.ndarray, "rows columns"],
    size: tuple[int, int],
    stride: int,
    top: float | None = None,
    upsample: Upsample = "nearest",
) -> UInt8[np.ndarray, "height width 3"]:
    """One head's map in colours, from 0 (black) to `top` and above (yellow); its own maximum by default."""
    return COLOURS[_steps(weights, size, stride, top, upsample)]


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    weights: Float[np.ndarray, "rows columns"],
    stride: int,
    top: float | None = None,
    upsample: Upsample = "nearest",
    opacity: float = 0.65,
) -> UInt8[np.ndarray, "h w 3"]:
    """`heat_map` over the image in grey: `opacity` at the top, and half of it at 0, where the image is to be seen."""
    steps = _steps(weights, image.shape[:2], stride, top, upsample)
    heat = opacity * (0.5 + steps[..., None].astype(np.float32) / 510)
    return (heat * COLOURS[steps] + (1 - heat) * _grey(image)).astype(np.uint8)


def _steps(
    weights: Float[np.ndarray, "rows columns"],
    size: tuple[int, int],
    stride: int,
    top: float | None,
    upsample: Upsample,
) -> UInt8[np.ndarray, "height width"]:
    """Of `COLOURS`, for each pixel."""
    top = float(weights.max()) if top is None else top
    return (255 * np.clip(enlarge(weights, size, stride, upsample) / max(top, 1e-12), 0, 1)).astype(np.uint8)


def pixel_mask(
    mask: Bool[np.ndarray, "rows columns"], size: tuple[int, int], stride: int
) -> Bool[np.ndarray, "height width"]:
    """A mask of patches (such as `metrics.mass_mask`) as one of the pixels of an image of `size`."""
    return enlarge(mask.astype(np.float32), size, stride) > 0


def cut_out(
    image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "rows columns"], stride: int
) -> UInt8[np.ndarray, "h w 3"]:
    """The image in its colours where the mask of patches is; pale grey elsewhere, with a red line around the mask."""
    inside = pixel_mask(mask, image.shape[:2], stride)
    pale = 255 - (255 - _grey(image)) // np.uint8(3)  # dark scenes would hide in a darker grey
    line = cv2.dilate(inside.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & ~inside
    pale[line] = OUTLINE
    return np.where(inside[..., None], image, pale)


def channel_map(values: Float[np.ndarray, "rows columns"], factor: int) -> UInt8[np.ndarray, "height width 3"]:
    """One channel of features from its minimum (dark blue) to its maximum (yellow), `factor` pixels per position."""
    low, high = float(values.min()), float(values.max())
    steps = (255 * (values - low) / max(high - low, 1e-12)).astype(np.uint8)
    return CHANNEL_COLOURS[steps].repeat(factor, axis=0).repeat(factor, axis=1)


def titled(picture: UInt8[np.ndarray, "h w 3"], title: str) -> UInt8[np.ndarray, "height w 3"]:
    """The picture below a line of text."""
    text = _fitting([title], picture.shape[1])
    strip = Image.new("RGB", (picture.shape[1], int(LINE * text)), "white")
    ImageDraw.Draw(strip).text((strip.width // 2, 0), title, "black", _font(text), anchor="ma")
    return np.concatenate([np.asarray(strip), picture])


def with_circles(
    picture: UInt8[np.ndarray, "h w 3"], middle: tuple[float, float], radii: Sequence[float]
) -> UInt8[np.ndarray, "h w 3"]:
    """The picture with white circles of these radii around `middle`, (y, x), in pixels."""
    canvas = Image.fromarray(picture)
    y, x = middle
    for radius in radii:
        ImageDraw.Draw(canvas).ellipse((x - radius, y - radius, x + radius, y + radius), outline="white")
    return np.asarray(canvas)


def mosaic(
    rows: Sequence[Sequence[UInt8[np.ndarray, "h w 3"] | None]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    caption: str = "",
    bar: tuple[str, UInt8[np.ndarray, "256 3"], str] | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """Pictures of one size in rows and columns on white, with labels at the left and above, and a caption below.

    None leaves a place white, and so does a row that ends early. bar: what the first and the last colour stand for.
    """
    height, width = next(cell for row in rows for cell in row if cell is not None).shape[:2]
    columns = max(map(len, rows))
    text = _fitting(column_labels, width)
    left = max((_width(label, text) for label in row_labels), default=0)
    left += GAP if left else 0
    top = int(LINE * text) if column_labels else 0
    whole = left + columns * (width + GAP) - GAP
    body = top + len(rows) * (height + GAP)
    lines = _wrapped(caption, whole - left)
    line = int(LINE * TEXT)
    foot = line * (len(lines) + (bar is not None))
    canvas = Image.new("RGB", (whole, body + (foot or -GAP)), "white")
    draw = ImageDraw.Draw(canvas)
    for column, label in enumerate(column_labels):
        draw.text((left + column * (width + GAP) + width // 2, 0), label, "black", _font(text), anchor="ma")
    for row, (cells, label) in enumerate(zip(rows, row_labels, strict=True)):
        y = top + row * (height + GAP)
        draw.text((left - GAP, y + height // 2), label, "black", _font(text), anchor="rm")
        for column, cell in enumerate(cells):
            if cell is not None:
                canvas.paste(Image.fromarray(cell), (left + column * (width + GAP), y))
    for number, words in enumerate(lines):
        draw.text((left, body + number * line), words, "black", _font(TEXT))
    if bar is not None:
        low, colours, high = bar
        y, x = body + len(lines) * line, left + _width(low, TEXT) + GAP
        strip = np.broadcast_to(colours[::2], (TEXT, 128, 3))
        draw.text((left, y), low, "black", _font(TEXT))
        canvas.paste(Image.fromarray(np.ascontiguousarray(strip)), (x, y))
        draw.text((x + 128 + GAP, y), high, "black", _font(TEXT))
    return np.asarray(canvas)


def save_png(path: Path, picture: UInt8[np.ndarray, "_ _ *colours"]) -> None:
    """A PNG, in colours or grey, whole or not at all."""
    write_whole(path, lambda to: Image.fromarray(picture).save(to, format="PNG"))


def _grey(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB).astype(np.uint8, copy=False)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _width(text: str, size: int) -> int:
    return int(np.ceil(_font(size).getlength(text)))


def _fitting(labels: Sequence[str], width: int) -> int:
    """The largest size up to TEXT at which every label is within `width`."""
    sizes = range(TEXT, LEAST_TEXT, -1)
    return next((size for size in sizes if all(_width(label, size) <= width for label in labels)), LEAST_TEXT)


def _wrapped(text: str, width: int) -> list[str]:
    """Its words in lines of at most `width` pixels."""
    lines: list[str] = []
    for word in text.split():
        if lines and _width(f"{lines[-1]} {word}", TEXT) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
