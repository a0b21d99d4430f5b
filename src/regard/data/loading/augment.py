"""Joint transforms of image and mask for segmentation, over uint8 arrays with OpenCV."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image as Pillow

from regard.data.loading.views import Image, draw_jitter, resize
from regard.errors import InputError
from regard.settings import MOST_PIXELS

Mask = UInt8[np.ndarray, "_ _"]  # class indices, and the dataset's ignore index

cv2.setNumThreads(0)  # workers are the parallelism; OpenCV's own threads would fight with them
TRIES = 10  # crops drawn until none of the classes has too large a share, as mmsegmentation


@dataclass(frozen=True)
class TrainTransform:
    """Image and mask together: scale jitter, square crop, flip; colours of the image alone.

    size:  side of the crop, pixels.
    scale: the image at its short side `whole` is scaled by a factor between these, uniform in its logarithm; where that
           leaves less than the crop, the rest is mean grey and void.
    short: the short side that an image is brought to before that, pixels; None for `size`.
    most:  the largest share of a crop's labelled pixels that one class may have. A crop above it, or without a labelled
           pixel, is drawn again, `TRIES` crops at most, of which the last is kept; None or 1.0 for no such limit.
           (mmsegmentation's `cat_max_ratio`, there 0.75.)
    """

    size: int
    ignore_index: int
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    jitter: float = 0.8
    strength: tuple[float, float, float, float] = (0.3, 0.3, 0.2, 0.05)
    short: int | None = None
    most: float | None = None

    @property
    def whole(self) -> int:
        """The short side of whole images, pixels: to train at before scale jitter, to validate at."""
        return self.size if self.short is None else self.short

    def __call__(self, image: Image, mask: Mask, rng: np.random.Generator) -> tuple[Image, Mask]:
        """A (size, size) pair."""
        factor = math.exp(rng.uniform(math.log(self.scale[0]), math.log(self.scale[1])))
        height, width = short_side(image.shape[:2], round(self.whole * factor))
        image, mask = resize_pair(image, mask, (height, width))
        below, right = max(0, self.size - height), max(0, self.size - width)
        if below or right:
            image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_CONSTANT, value=(124, 116, 104))
            mask = cv2.copyMakeBorder(mask, 0, below, 0, right, cv2.BORDER_CONSTANT, value=self.ignore_index)
        crop = self._crop(mask, rng)
        image, mask = image[crop], mask[crop]
        if rng.random() < self.flip:
            image, mask = image[:, ::-1], mask[:, ::-1]
        if rng.random() < self.jitter:
            image = draw_jitter(self.strength, rng)(np.ascontiguousarray(image))
        return np.ascontiguousarray(image), np.ascontiguousarray(mask)

    def _crop(self, mask: Mask, rng: np.random.Generator) -> tuple[slice, slice]:
        """Rows and columns of a crop; the same draws as ever where there is no limit."""
        down, across = (side - self.size for side in mask.shape)
        most = 1.0 if self.most is None else self.most
        is_free = most == 1 or down == across == 0
        for _ in range(1 if is_free else TRIES):
            top, left = int(rng.integers(down + 1)), int(rng.integers(across + 1))
            crop = slice(top, top + self.size), slice(left, left + self.size)
            if is_free or largest_share(mask[crop], self.ignore_index) <= most:
                break
        return crop


def largest_share(mask: Mask, ignore_index: int) -> float:
    """The share of the labelled pixels that the most frequent class has; infinite where nothing is labelled."""
    # Three times faster than NumPy's bincount; in float32, exact up to 2^24 pixels of a class.
    counts = cv2.calcHist([mask], [0], None, [256], [0, 256]).astype(np.int64)
    counts[ignore_index] = 0
    return float(counts.max() / counts.sum()) if counts.any() else math.inf


def centre_crop(image: Image, size: int) -> Image:
    """The middle square, `size` pixels wide, of the image brought to a short side of 256/224 of that."""
    height, width = short_side(image.shape[:2], round(size * 256 / 224))
    image = resize(image, (height, width))
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]


def short_side(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """(height, width) of the same aspect whose shorter side is `size`; InputError where the other is too long."""
    factor = size / min(shape)
    height, width = max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))
    if max(height, width) > MOST_PIXELS:
        what = f"{shape[1]} x {shape[0]} pixels would be {width:,} x {height:,} at a short side of {size}"
        raise InputError(f"{what}: cut into pieces that are less long, it would work")
    return height, width


def resize_pair(image: Image, mask: Mask, size: tuple[int, int]) -> tuple[Image, Mask]:
    """Image (smoothly) and mask (nearest, by pixel centres, so that no class is invented) at one (height, width)."""
    if image.shape[:2] == size:
        return image, mask
    return resize(image, size), nearest(mask, size)


def nearest(mask: Mask, size: tuple[int, int]) -> Mask:
    """A mask at another (height, width), by the nearest pixel centre: of Pillow, as some of OpenCV 4 are others."""
    return np.array(Pillow.fromarray(mask).resize((size[1], size[0]), Pillow.Resampling.NEAREST))
