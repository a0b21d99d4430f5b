"""Random views of images, and joint transforms of image and mask, on CPU, over uint8 RGB arrays with OpenCV.

Distributions are those of the Barlow Twins and DINO code (torchvision on PIL); a departure: shrinking uses area
averaging, where PIL uses an antialiased bicubic filter.

Nothing here keeps a random state: all draws come from a generator that the caller makes with `draws`, out of (seed,
epoch, image, view). So the number of workers, of ranks, or a restart changes nothing.
"""

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import UInt8

from regard.errors import InputError

Image = UInt8[np.ndarray, "_ _ 3"]  # RGB, 0..255
Mask = UInt8[np.ndarray, "_ _"]  # class indices, and the dataset's ignore index

cv2.setNumThreads(0)  # workers are the parallelism; OpenCV's own threads would fight with them
ORDER, VIEW, CROP, LABELS = 1, 2, 3, 4  # purposes of a draw
TRIES = 10  # crops drawn until none of the classes has too large a share, as mmsegmentation
GREY = np.array([[0.299, 0.587, 0.114]], dtype=np.float32)  # ITU-R 601, as PIL and torchvision


def draws(*key: int) -> np.random.Generator:
    """The generator of one key, such as (PURPOSE, seed, epoch, image, view).

    Keys of different length are told apart only by their purpose: NumPy takes (1, 2) and (1, 2, 0) for the same.
    """
    return np.random.default_rng(key)


@dataclass(frozen=True)
class View:
    """The distribution of one view.

    size:     side of the square view, pixels.
    scale:    share of the image's area that a crop takes, at least and at most; its aspect is in (3/4, 4/3).
    blur:     probability of a Gaussian blur with a standard deviation drawn from `sigma`, pixels of the view.
    solarize: probability of inverting all values from 128 up.
    jitter:   probability of changing brightness, contrast, saturation and hue, in random order, by at most `strength`.
    """

    size: int
    scale: tuple[float, float]
    blur: float
    solarize: float
    sigma: tuple[float, float] = (0.1, 2.0)
    flip: float = 0.5
    jitter: float = 0.8
    strength: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    grey: float = 0.2

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """One view: crop, flip, colour, blur, solarize."""
        return self.placed(image, rng)[0]

    def placed(self, image: Image, rng: np.random.Generator) -> tuple[Image, tuple[float, ...]]:
        """The view, and its place: top, left, height, width as shares of the image's; 1.0 if flipped, else 0.0."""
        (top, left, height, width), (rows, columns) = crop_box(image.shape[:2], self.scale, rng), image.shape[:2]
        view = resize(image, (top, left, height, width), (self.size, self.size))
        flipped = rng.random() < self.flip
        if flipped:
            view = view[:, ::-1]
        if rng.random() < self.jitter:
            view = jitter_colour(view, self.strength, rng)
        if rng.random() < self.grey:
            view = cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        if rng.random() < self.blur:
            view = cv2.GaussianBlur(view, (0, 0), rng.uniform(*self.sigma))
        if rng.random() < self.solarize:
            view = np.where(view < 128, view, 255 - view)
        place = (top / rows, left / columns, height / rows, width / columns, float(flipped))
        return np.ascontiguousarray(view), place


def barlow_twins_views(size: int = 224) -> tuple[View, View]:
    """The two published views; for another size than 224 the blur shrinks with the view, so that it hides as much."""
    first = _scaled_blur(View(size, (0.08, 1.0), blur=1.0, solarize=0.0), size)
    return first, replace(first, blur=0.1, solarize=0.2)


def dino_views(size: int = 224, local_size: int = 96, local_crops: int = 8) -> tuple[View, ...]:
    """The published multi-crop: two global crops of at least 0.4 of the image, and local ones of 0.05 to 0.4."""
    first = _scaled_blur(View(size, (0.4, 1.0), blur=1.0, solarize=0.0), size)
    second = replace(first, blur=0.1, solarize=0.2)
    local = replace(first, size=local_size, scale=(0.05, 0.4), blur=0.5)
    return first, second, *([local] * local_crops)


def supervised_views(size: int = 224) -> tuple[View]:
    """The one view of supervised training on ImageNet (He et al. 2016, section 3.4): random crop and flip."""
    return (View(size, (0.08, 1.0), blur=0.0, solarize=0.0, jitter=0.0, grey=0.0),)


def _scaled_blur(view: View, size: int) -> View:
    low, high = view.sigma
    return replace(view, sigma=(low * size / 224, high * size / 224))


def crop_box(shape: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random crop, as torchvision's RandomResizedCrop draws it."""
    height, width = shape
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w, h = width, height  # as torchvision: the largest centred crop of an allowed aspect
    if width / height < 3 / 4:
        h = round(width / (3 / 4))
    elif width / height > 4 / 3:
        w = round(height * (4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


def resize(image: Image, box: tuple[int, int, int, int], size: tuple[int, int]) -> Image:
    """A box of the image at another (height, width): area averaging to shrink, bicubic to enlarge."""
    top, left, height, width = box
    part = image[top : top + height, left : left + width]
    shrinks = size[0] * size[1] < height * width
    return cv2.resize(part, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def jitter_colour(image: Image, strength: tuple[float, float, float, float], rng: np.random.Generator) -> Image:
    """Brightness, contrast, saturation and hue changed in random order, as torchvision's ColorJitter."""
    brightness, contrast, saturation = (rng.uniform(1 - s, 1 + s) for s in strength[:3])
    hue = rng.uniform(-strength[3], strength[3])  # in turns
    ramp = np.arange(256, dtype=np.float32)
    for change in rng.permutation(4):
        if change == 0:
            image = cv2.LUT(image, _bytes(ramp * brightness))
        elif change == 1:
            mean = round(float(cv2.transform(image, GREY).mean()))
            image = cv2.LUT(image, _bytes(ramp * contrast + mean * (1 - contrast)))
        elif change == 2:
            grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            image = cv2.addWeighted(image, saturation, grey, 1 - saturation, 0)
        else:
            hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)  # hue in 0..255, so that it wraps around by itself
            hsv[..., 0] += np.uint8(round(hue * 255) % 256)
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    return image


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 255).astype(np.uint8)  # truncates, as PIL does


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

    Raises InputError for sides below a pixel, scales that do not rise, and shares outside their range.
    """

    size: int
    ignore_index: int
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    jitter: float = 0.8
    strength: tuple[float, float, float, float] = (0.3, 0.3, 0.2, 0.05)
    short: int | None = None
    most: float | None = None

    def __post_init__(self) -> None:
        if self.size < 1 or self.whole < 1:
            raise InputError(f"crops of {self.size} px of images of {self.whole} px: take 1 or more for both")
        if self.most is not None and not 0 < self.most <= 1:
            raise InputError(f"a class cannot have at most {self.most} of a crop: take a share above 0, up to 1")
        if not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise InputError(f"a scale from {self.scale[0]:g} to {self.scale[1]:g} is none: take two rising factors")
        if not 0 <= self.jitter <= 1:
            raise InputError(f"colours change with a probability, and {self.jitter:g} is none: take one from 0 to 1")

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
            image = jitter_colour(np.ascontiguousarray(image), self.strength, rng)
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
    image = resize(image, (0, 0, *image.shape[:2]), (height, width))
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]


def short_side(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """(height, width) of the same aspect whose shorter side is `size`."""
    factor = size / min(shape)
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def resize_pair(image: Image, mask: Mask, size: tuple[int, int]) -> tuple[Image, Mask]:
    """Image (smoothly) and mask (nearest, by pixel centres, so that no class is invented) at one (height, width)."""
    if image.shape[:2] == size:
        return image, mask
    whole = (0, 0, *image.shape[:2])
    return resize(image, whole, size), cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
