"""The random views that self-supervised training learns from: what is drawn, and how it is applied on a CPU.

Distributions are those of the Barlow Twins (Zbontar et al. 2021) and DINO (Caron et al. 2021) code, which is
torchvision on PIL. A draw comes first, from the size of the image alone; it is then applied to the pixels here, over
uint8 RGB arrays in few passes, or, all but the crop and the flip, in device_views.py. Departures from PIL's pixels:
the blur rounds once where PIL rounds six times, and hue goes through 8 bits otherwise rounded.
"""

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch.nn.functional import interpolate

Image = UInt8[np.ndarray, "_ _ 3"]  # RGB, 0..255
Box = tuple[int, int, int, int]  # top, left, height, width, pixels
Strengths = tuple[float, float, float, float]  # of brightness, contrast, saturation, hue: the most each may change
Scale = tuple[float, float]  # share of an image's area that a crop takes, at least and at most; None: as published

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
PUBLISHED: Strengths = (0.4, 0.4, 0.2, 0.1)
GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL and torchvision
# PIL cuts a blend down to a whole number, and OpenCV rounds it. Just below one half, so that whole numbers stay.
CUT = 0.499
# Rows: red, green, blue of the result; columns: of the source, and what is added.
ITSELF, ITS_GREY, CUT_OFF = np.eye(3, 4), np.array([[*GREY, 0.0]] * 3), np.array([[0.0, 0.0, 0.0, CUT]] * 3)
NEGLIGIBLE = 1 / 1024  # taps of a blur below this are left out: together they move no pixel by more than 1


@dataclass(frozen=True)
class Jitter:
    """One change of colours: factors of brightness, contrast and saturation, 1 for none; hue in turns; their order."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    order: tuple[int, ...]

    def __call__(self, image: Image) -> Image:
        """The image changed in that order, as torchvision's ColorJitter, within 2 of 255 for all but the hue."""
        changes = (self._brighten, self._stretch, self._saturate, self._turn)
        for change in self.order:
            image = changes[change](image)
        return image

    @property
    def hue_steps(self) -> int:
        """The hue as torchvision adds it, in a byte that wraps around."""
        return int(self.hue * 255) % 256

    def _brighten(self, image: Image) -> Image:
        return cv2.convertScaleAbs(image, alpha=self.brightness, beta=-CUT)

    def _stretch(self, image: Image) -> Image:
        mean = math.floor(sum(weight * mean for weight, mean in zip(GREY, cv2.mean(image)[:3], strict=True)) + 0.5)
        # A sum of the image and no part of itself: OpenCV's fastest a * x + b that is clipped at both ends.
        return cv2.addWeighted(image, self.contrast, image, 0.0, mean * (1 - self.contrast) - CUT)

    def _saturate(self, image: Image) -> Image:
        return cv2.transform(image, self.saturation * ITSELF + (1 - self.saturation) * ITS_GREY - CUT_OFF)

    def _turn(self, image: Image) -> Image:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)  # hue in 0..255, so that it wraps around by itself
        steps = np.zeros_like(hsv[0])
        steps[:, 0] = self.hue_steps
        hsv += steps  # with zeros for the others: many times faster than over every third value
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def draw_jitter(strength: Strengths, rng: np.random.Generator) -> Jitter:
    """Brightness, contrast, saturation and hue, each changed by at most its strength, in random order."""
    brightness, contrast, saturation = (between(1 - s, 1 + s, rng) for s in strength[:3])
    hue = between(-strength[3], strength[3], rng)
    return Jitter(brightness, contrast, saturation, hue, tuple(map(int, rng.permutation(4))))


@dataclass(frozen=True)
class Draw:
    """All that chance decides about one view of an image of one shape; called, it makes the view.

    size:  side of the view, pixels.
    shape: (height, width) of the whole image, in which `box` is.
    sigma: standard deviation of the blur, pixels of the view; 0.0 for none.
    """

    size: int
    shape: tuple[int, int]
    box: Box
    flipped: bool
    jitter: Jitter | None
    grey: bool
    sigma: float
    solarized: bool

    def __call__(self, image: Image) -> Image:
        """The view: crop, flip, colour, blur, solarize."""
        return self.colour(self.crop(image))

    def crop(self, image: Image) -> Image:
        """The box at the view's size, flipped if it is. The image may be one that was halved while it was decoded.

        Resized as PIL's antialiased bicubic filter does it, within 2 of 255. In a halved image a box begins and ends
        at the nearest pixel: at most half a pixel away, which is no more than that of the view.
        """
        top, left, height, width = self._box_in(image.shape[:2])
        view = resize(image[top : top + height, left : left + width], (self.size, self.size))
        return cv2.flip(view, 1) if self.flipped else view

    def colour(self, view: Image) -> Image:
        """What follows the crop."""
        if self.jitter is not None:
            view = self.jitter(view)
        pixels = cv2.cvtColor(view, cv2.COLOR_RGB2GRAY) if self.grey else view  # blurred in one channel, not three
        if self.sigma:
            kernel = blur_kernel(self.sigma)
            pixels = cv2.sepFilter2D(pixels, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
        if self.solarized:
            pixels = cv2.min(pixels, cv2.bitwise_not(pixels))  # all from 128 up is inverted
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB) if self.grey else pixels

    @property
    def place(self) -> tuple[float, ...]:
        """Where the view is: top, left, height, width as shares of the image's; 1.0 if flipped, else 0.0."""
        (top, left, height, width), (rows, columns) = self.box, self.shape
        return top / rows, left / columns, height / rows, width / columns, float(self.flipped)

    @property
    def least(self) -> tuple[int, int]:
        """(height, width) that the whole image must have for a crop of as many pixels as the view, both ways."""
        return math.ceil(self.shape[0] * self.size / self.box[2]), math.ceil(self.shape[1] * self.size / self.box[3])

    def _box_in(self, shape: tuple[int, int]) -> Box:
        if shape == self.shape:
            return self.box
        divisor = round(max(self.shape) / max(shape))  # a whole number: sides are rounded up after the division
        top, left, height, width = self.box
        first, start = round(top / divisor), round(left / divisor)
        end, side = min(round((top + height) / divisor), shape[0]), min(round((left + width) / divisor), shape[1])
        return first, start, end - first, side - start


def resize(image: Image, size: tuple[int, int]) -> Image:
    """The image at another (height, width), as PIL's antialiased bicubic filter does it, within 1 of 255.

    Where it is enlarged, one value in 50,000 or fewer is 2 off: both passes round.
    """
    writable = np.array(image)  # torch warns of what is not; and a crop has to be copied anyway
    # Channels last, and the axis of the batch added by torch, as only so it takes them for that: twice as fast.
    batch = torch.from_numpy(writable)[None].permute(0, 3, 1, 2)
    return interpolate(batch, size, mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()


def least_for(drawn: tuple[Draw, ...] | list[Draw]) -> tuple[int, int]:
    """(height, width) of the whole image from which no crop is enlarged that would not be at full size."""
    heights, widths = zip(*(draw.least for draw in drawn), strict=True)
    return max(heights), max(widths)


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
    strength: Strengths = PUBLISHED
    grey: float = 0.2

    def draw(self, shape: tuple[int, int], rng: np.random.Generator) -> Draw:
        """All that chance decides about a view of an image of this (height, width)."""
        return Draw(
            size=self.size,
            shape=shape,
            box=crop_box(shape, self.scale, rng),
            flipped=rng.random() < self.flip,
            jitter=draw_jitter(self.strength, rng) if rng.random() < self.jitter else None,
            grey=rng.random() < self.grey,
            sigma=between(*self.sigma, rng) if rng.random() < self.blur else 0.0,
            solarized=rng.random() < self.solarize,
        )

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """One view: crop, flip, colour, blur, solarize."""
        return self.placed(image, rng)[0]

    def placed(self, image: Image, rng: np.random.Generator) -> tuple[Image, tuple[float, ...]]:
        """The view, and its place: top, left, height, width as shares of the image's; 1.0 if flipped, else 0.0."""
        draw = self.draw(image.shape[:2], rng)
        return draw(image), draw.place


def barlow_twins_views(
    size: int = 224, crop_scale: Scale | None = None, color_jitter: Strengths | None = None, grey: float = 0.2
) -> tuple[View, View]:
    """The two published views; for another size than 224 the blur shrinks with the view, so that it hides as much."""
    scale = crop_scale or (0.08, 1.0)
    first = _scaled_blur(View(size, scale, blur=1.0, solarize=0.0, strength=color_jitter or PUBLISHED, grey=grey), size)
    return first, replace(first, blur=0.1, solarize=0.2)


def dino_views(
    size: int = 224,
    local_size: int = 96,
    local_crops: int = 8,
    crop_scale: Scale | None = None,
    local_scale: Scale = (0.05, 0.4),
    color_jitter: Strengths | None = None,
    grey: float = 0.2,
) -> tuple[View, ...]:
    """The published multi-crop: two global crops of at least 0.4 of the image, and local ones of 0.05 to 0.4."""
    scale = crop_scale or (0.4, 1.0)
    first = _scaled_blur(View(size, scale, blur=1.0, solarize=0.0, strength=color_jitter or PUBLISHED, grey=grey), size)
    second = replace(first, blur=0.1, solarize=0.2)
    local = replace(first, size=local_size, scale=local_scale, blur=0.5)
    return first, second, *([local] * local_crops)


def supervised_views(size: int = 224, crop_scale: Scale | None = None) -> tuple[View]:
    """The one view of supervised training on ImageNet (He et al. 2016, section 3.4): random crop and flip."""
    return (View(size, crop_scale or (0.08, 1.0), blur=0.0, solarize=0.0, jitter=0.0, grey=0.0),)


def _scaled_blur(view: View, size: int) -> View:
    low, high = view.sigma
    return replace(view, sigma=(low * size / 224, high * size / 224))


def crop_box(shape: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator) -> Box:
    """(top, left, height, width) of a random crop, as torchvision's RandomResizedCrop draws it."""
    height, width = shape
    for _ in range(10):
        area = height * width * between(*scale, rng)
        aspect = math.exp(between(math.log(3 / 4), math.log(4 / 3), rng))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w, h = width, height  # as torchvision: the largest centred crop of an allowed aspect
    if width / height < 3 / 4:
        h = round(width / (3 / 4))
    elif width / height > 4 / 3:
        w = round(height * (4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


def between(low: float, high: float, rng: np.random.Generator) -> float:
    """What `rng.uniform` gives, at a third of its cost, which tells where a view has seven of them."""
    return low + (high - low) * rng.random()


def blur_kernel(sigma: float) -> Float[np.ndarray, " taps"]:
    """The taps, along one side, of PIL's GaussianBlur: three boxes one after another, whose ends count in part.

    sigma: standard deviation, pixels; a third of its square is the variance of each box. (Gwosdek et al. 2011,
    "Theoretical foundations of Gaussian convolution by extended box filtering".)
    """
    variance = sigma * sigma / 3
    whole = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)  # pixels that count in full, to each side
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    box = np.ones(2 * whole + 3)
    box[0] = box[-1] = part
    kernel = np.convolve(np.convolve(box, box), box)
    kernel = kernel[kernel >= NEGLIGIBLE * kernel.sum()]
    return (kernel / kernel.sum()).astype(np.float32)
