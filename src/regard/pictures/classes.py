"""Classes over an image, and their legend: for the overlays of `predict`, contact sheets and sheets of predictions."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from regard.pictures.draw import Picture

NO_OBJECT = ("background", "_background_", "unlabeled", "unlabelled", "other", "rest")  # names of what is no object
LINE = 1 / 300  # width of an outline as a share of the image's shorter side
TEXT, SWATCH, ENTRY = 13, 12, 150  # pixels: height of letters, side of a colour of the legend, width of an entry


def has_background(classes: Sequence[str]) -> bool:
    """Whether the first class is what is no object."""
    return classes[0].lower() in NO_OBJECT


def class_overlay(
    image: UInt8[np.ndarray, "h w 3"],
    mask: UInt8[np.ndarray, "h w"],
    classes: Sequence[str],
    palette: UInt8[np.ndarray, "classes 3"],
    opacity: float = 0.5,
) -> UInt8[np.ndarray, "h w 3"]:
    """The classes' colours over the image, and a line around each region, white within and black without, so that it
    is seen on dark and on light. A first class that is the background, and void, leave the image as it is.
    """
    shown = mask < len(classes)
    if has_background(classes):
        shown &= mask > 0
    colours = palette[np.where(shown, mask, 0)]
    mixed = cv2.addWeighted(colours, opacity, image, 1 - opacity, 0)
    drawn = np.where(shown[..., None], mixed, image).astype(np.uint8)
    reach = max(1, round(LINE * min(mask.shape)))
    rank = np.where(mask < len(classes), mask + 1, 0).astype(np.uint8)
    square = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    highest, lowest = cv2.dilate(rank, square), cv2.erode(rank, square)
    drawn[highest > rank] = 0
    drawn[(highest == rank) & (lowest < rank)] = 255
    return drawn


def legend(
    classes: Sequence[str], palette: UInt8[np.ndarray, "classes 3"], shown: Sequence[int], width: int
) -> Picture:
    """The colours and names of the classes `shown`, in as many columns as fit into `width` pixels."""
    columns, line, font = max(1, width // ENTRY), 2 * TEXT, ImageFont.load_default(TEXT)
    canvas = Image.new("RGB", (width, line * (-(-len(shown) // columns) + 1)), "white")
    draw = ImageDraw.Draw(canvas)
    for place, number in enumerate(shown):
        x, y = ENTRY * (place % columns), line * (place // columns) + TEXT
        draw.rectangle((x, y, x + SWATCH, y + SWATCH), tuple(palette[number].tolist()), "black")
        name = classes[number]
        while font.getlength(name) > ENTRY - 2 * SWATCH:
            name = name[:-2] + "…"
        draw.text((x + SWATCH + 5, y - 2), name, "black", font)
    return np.asarray(canvas)
