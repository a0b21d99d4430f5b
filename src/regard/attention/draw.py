"""Pictures of attention maps, as uint8 RGB arrays."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import colormaps

COLOURS = (colormaps["inferno"](np.arange(256))[:, :3] * 255).astype(np.uint8)
GAP = 4  # white pixels between the cells of a mosaic


def heat_map(weights: Float[np.ndarray, "h w"], size: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    """One head's map in colours, black to yellow, scaled to its own maximum.

    size: (height, width) of the picture; the grid is up-sampled nearest, as published for DINO.
    """
    scaled = (255 * weights / max(float(weights.max()), 1e-12)).astype(np.uint8)
    return COLOURS[np.asarray(cv2.resize(scaled, size[::-1], interpolation=cv2.INTER_NEAREST), dtype=np.uint8)]


def overlay(
    image: UInt8[np.ndarray, "h w 3"], weights: Float[np.ndarray, "rows columns"], opacity: float = 0.65
) -> UInt8[np.ndarray, "h w 3"]:
    """A heat map over the image in grey."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(heat_map(weights, image.shape[:2]), opacity, grey, 1 - opacity, 0)


def mosaic(
    image: UInt8[np.ndarray, "h w 3"], levels: Sequence[Float[np.ndarray, "heads rows columns"]]
) -> UInt8[np.ndarray, "height width 3"]:
    """The image, then a row of overlays per level, one per head; rows with fewer heads end white."""
    height, width = image.shape[:2]
    columns = 1 + max(len(level) for level in levels)
    canvas = np.full(((height + GAP) * len(levels) - GAP, (width + GAP) * columns - GAP, 3), 255, dtype=np.uint8)
    canvas[:height, :width] = image
    for row, level in enumerate(levels):
        for head, weights in enumerate(level):
            top, left = row * (height + GAP), (head + 1) * (width + GAP)
            canvas[top : top + height, left : left + width] = overlay(image, weights)
    return canvas
