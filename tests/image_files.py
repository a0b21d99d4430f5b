"""Image files for the tests of what reads them."""

from pathlib import Path

import numpy as np
from PIL import Image


def save(path: Path, pixels: np.ndarray | Image.Image | tuple[int, ...] = (255, 0, 0), size=(6, 4), **options) -> Path:
    """An image file, of one colour where that is given, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(pixels, tuple):
        pixels = Image.new("RGB", size, pixels)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def grid(*values: int, size=(6, 4)) -> np.ndarray:
    """A mask that begins with `values`, and is filled with the last."""
    return np.array(values, np.uint8)[np.minimum(np.arange(size[0] * size[1]), len(values) - 1)].reshape(size[::-1])


def painted(*colors: tuple[int, ...]) -> Image.Image:
    """An image that begins with a pixel of each colour, and is filled with the last."""
    return Image.fromarray(np.array(colors, np.uint8)[grid(*range(len(colors)))])


def in_palette(values: np.ndarray, colors: bytes) -> Image.Image:
    """An indexed image of these values."""
    image = Image.fromarray(values).convert("P")
    image.putpalette(colors)
    return image


def noise(seed: int, height: int = 24, width: int = 30) -> np.ndarray:
    """RGB, every value as likely."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def noise_files(root: Path, count: int) -> Path:
    """PNGs that take 0.12 MB each, so that a chunk of 1 MB holds nine."""
    for i in range(count):
        save(root / f"{i:03}.png", noise(i, 160, 240), compress_level=0)
    return root
