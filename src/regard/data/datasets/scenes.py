"""`scenes` and `objects`: a small segmentation benchmark that is drawn, not downloaded, and images to pre-train on.

A scene is one to five objects of eight kinds over clutter that belongs to no class. A kind is a family of outlines
*and* a surface (a fish has scales, a house bricks), whose pattern is about as large as a patch; its colours say
nothing, since every object, stroke and background draws them from one distribution. So a model has to look at shape
and texture, yet learns in minutes on a laptop.

An image of `objects` is twice as wide and full of objects of one kind, which is its class, each in colours of its own,
on a plain ground. Two crops the size of a scene then share the kind and little else, so that methods which hold two
crops of an image to be alike learn kinds, and not how bright a picture is (results/README.md has what that is worth).
Nothing here needs torch.

Frame: x to the right, y down; a scene is composed in units of the image's side, (0, 0) to (1, 1), and only then drawn
at `size` pixels: the same scene at another size has the same composition. An object has a frame in which its area is 1.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from regard.data.datasets.scene_kinds import ANGLE, KINDS, TURN, polar
from regard.errors import InputError, unknown

ACROSS, LATTICE = 2, 3  # of `objects`: how many scenes an image is wide, and objects in a row
OVERSAMPLE = 4  # outlines are filled this much finer, then averaged: 17 levels of coverage at an edge


# ---- drawing: `canvas` is (3, size, size) float32 RGB, about 0..1, changed in place ---------------------------------


def _colors(rng: np.random.Generator) -> np.ndarray:
    """Two colours that one can tell apart, (2, 3) RGB 0..1: the one distribution that everything draws from."""
    drawn = rng.random((5, 3), np.float32) * 0.9 + 0.05
    brightness = drawn @ np.array([0.3, 0.6, 0.1], np.float32)
    other = np.abs(brightness - brightness[0]).argmax()
    grey = brightness[:, None]
    drawn = grey + rng.uniform(0.25, 1) * (drawn - grey)
    # Without the swap the second would be very dark or very light more often than the first.
    return drawn[[0, other] if rng.random() < 0.5 else [other, 0]]


def _noise(rng: np.random.Generator, shape: tuple[int, int], cells: tuple[int, int]) -> np.ndarray:
    """Value noise of `shape`, about 0..1: `cells` random values down and across, smoothly enlarged."""
    return cv2.resize(rng.random(cells, np.float32), shape[::-1], interpolation=cv2.INTER_CUBIC)


def _draw_plain_ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """A new canvas: two colours, mixed softly."""
    share = np.clip(_noise(rng, (size, size), (3, 4)) - 0.25, 0, 1)
    return np.stack([first + share * (second - first) for first, second in zip(*_colors(rng), strict=True)])


def _draw_ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """A new canvas: two colours mixed by noise, then blobs and strokes that belong to no class."""
    clouds = _noise(rng, (size, size), (3, 4)) + 0.5 * _noise(rng, (size, size), (9, 8))
    cells = ((40, 10), (10, 40), (32, 32))[
        rng.integers(3)
    ]  # grain stretched along an axis, as of wood and grass, or not
    grain = _noise(rng, (size, size), cells)
    share = clouds - 0.25 + rng.uniform(0.1, 0.6) * (grain - 0.5)
    if rng.random() < 0.3:  # camouflage: patches with borders
        share = np.clip((share - 0.5) * (size / 8) + 0.5, 0, 1) * 0.8 + 0.2 * grain
    share = np.clip(share, 0, 1)
    ground = cv2.merge([first + share * (second - first) for first, second in zip(*_colors(rng), strict=True)])

    for _ in range(rng.integers(2, 6)):
        color, middle = _colors(rng)[0].tolist(), rng.uniform(0, 1, 2)
        if rng.random() < 0.5:
            angle = ANGLE[::4]
            radius = 1 + 0.35 * rng.random() * np.sin(angle * rng.integers(2, 5)) + rng.uniform(-0.2, 0.2, 21)
            blob = polar(rng.uniform(0.03, 0.13) * radius, angle + rng.uniform(0, TURN)) * rng.uniform(0.5, 1.5, 2)
            cv2.fillPoly(ground, [_fixed((middle + blob) * size)], color, cv2.LINE_AA, shift=4)
        else:
            stroke = np.cumsum(rng.normal(0, 0.03, (8, 2)) + rng.normal(0, 0.06, 2), axis=0)
            width = max(1, round(rng.uniform(0.01, 0.045) * size))
            cv2.polylines(ground, [_fixed((middle + stroke) * size)], False, color, width, cv2.LINE_AA, shift=4)
    return np.ascontiguousarray(ground.transpose(2, 0, 1))  # planes: numpy is slow along an axis of three


def _fixed(points: np.ndarray) -> np.ndarray:
    """Points in pixels as cv2 wants them: in 1/16 px, counted from the centre of the first pixel."""
    return np.rint(points * 16 - 8).astype(np.int32)


class Light(NamedTuple):
    """Where the light of a scene comes from and what it does."""

    x: float  # the direction towards the light, a unit vector in the image's frame
    y: float
    shadow: float  # how far a shadow falls; 1 is the object's side
    dark: float  # 0..1, how much of the light a shadow takes


def _draw_object(
    rng: np.random.Generator,
    canvas: np.ndarray,
    mask: np.ndarray,
    label: int,
    center: np.ndarray,
    side: float,
    light: Light,
    across: int = 1,
) -> None:
    """Draws a `KINDS[label - 1]` over what is there; `center` and `side` (the root of its area) in image units.

    across: how many scenes the image is wide; the surface is as large as in one.
    """
    size, kind = len(mask), KINDS[label - 1]
    side, origin = side * size, center * size  # in pixels from here on
    outline, (first, second) = kind.outline(rng), _colors(rng)
    turn, flip = TURN * rng.uniform(-kind.tilt, kind.tilt), 2 * int(rng.integers(2)) - 1
    edge, lean = size / across * kind.period * rng.uniform(0.92, 1.1), TURN * rng.uniform(-0.04, 0.04)  # of the surface
    phase, wobble, mottle = rng.uniform(0, TURN), rng.uniform(0, 0.12), rng.uniform(0, 0.3)
    stains = rng.random((5, 5), np.float32)

    # From the outline's frame to the object's (centred, area 1), then turned and enlarged to pixels.
    areas = [cv2.contourArea(polygon.astype(np.float32)) for polygon in outline]
    unit = (2 * areas[0] - sum(areas)) ** -0.5
    middle = (outline[0].min(axis=0) + outline[0].max(axis=0)) / 2
    cos, sin = math.cos(turn), math.sin(turn)
    to_pixels = np.array([(flip * cos, flip * sin), (-sin, cos)]) * (unit * side)
    polygons = [(polygon - middle) @ to_pixels + origin for polygon in outline]

    # Only the window that holds the object and its shadow is touched.
    reach = (light.shadow + 0.1) * side + 1
    left, top = np.clip(polygons[0].min(axis=0) - reach, 0, size).astype(int).tolist()
    right, bottom = np.clip(polygons[0].max(axis=0) + reach, 0, size).astype(int).tolist()
    wide, high = right - left, bottom - top
    if min(wide, high) < 1:
        return
    window = canvas[:, top:bottom, left:right]
    filled = np.zeros((high * OVERSAMPLE, wide * OVERSAMPLE), np.uint8)
    cv2.fillPoly(filled, [_fixed((polygon - (left, top)) * OVERSAMPLE) for polygon in polygons], 255, shift=4)
    cover = cv2.resize(filled, (wide, high), interpolation=cv2.INTER_AREA) * np.float32(1 / 255)

    shift = np.array([(1, 0, -light.x * light.shadow * side), (0, 1, -light.y * light.shadow * side)])
    soft = 2 * max(1, round(0.04 * side)) + 1
    window *= 1 - light.dark * cv2.blur(cv2.warpAffine(cover, shift, (wide, high)), (soft, soft))

    x = np.arange(left, right, dtype=np.float32) + (0.5 - float(origin[0]))
    y = np.arange(top, bottom, dtype=np.float32)[:, None] + (0.5 - float(origin[1]))
    cos, sin = math.cos(lean), math.sin(lean)  # nearly the image's frame, however the object is turned
    u, v = (x * cos + y * sin) * (flip / edge), (y * cos - x * sin) / edge  # (high, wide), in periods
    u += wobble * np.sin(v + phase)  # nothing grown or built is quite straight
    share = kind.surface(u, v, edge) + mottle * (cv2.resize(stains, (wide, high), interpolation=cv2.INTER_CUBIC) - 0.5)

    # Edges are rounded: the smoothed cover is a height, and a slope towards the light is brighter.
    bevel = 2 * max(1, round(0.5 * kind.bevel * side)) + 1
    height = cv2.blur(cv2.blur(cover, (bevel, bevel)), (bevel, bevel))
    slope = light.x * cv2.Sobel(height, -1, 1, 0, ksize=1) + light.y * cv2.Sobel(height, -1, 0, 1, ksize=1)
    shade = 1 - 0.55 * np.clip(0.5 * bevel * slope, -1.2, 1.2)
    for plane, from_, to in zip(window, first.tolist(), second.tolist(), strict=True):
        plane += cover * ((from_ + share * (to - from_)) * shade - plane)
    mask[top:bottom, left:right][cover > 0.5] = label


def _place(rng: np.random.Generator, count: int) -> np.ndarray:
    """Centres, (count, 2): each the farthest of a few draws, so that objects overlap but seldom hide each other."""
    centers = rng.uniform(0.15, 0.85, (1, 2))
    for _ in range(count - 1):
        drawn = rng.uniform(0.12, 0.88, (6, 2))
        nearest = np.linalg.norm(drawn[:, None] - centers, axis=2).min(axis=1)
        centers = np.concatenate([centers, drawn[nearest.argmax()][None]])
    return centers


def _draw_light(rng: np.random.Generator) -> Light:
    angle = rng.uniform(0, TURN)
    return Light(math.cos(angle), math.sin(angle), rng.uniform(0.04, 0.2), rng.uniform(0.1, 0.55))


def _draw_scene(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The image, (size, size, 3) uint8 RGB, and the class of each pixel, (size, size) uint8."""
    canvas, mask, light = _draw_ground(rng, size), np.zeros((size, size), np.uint8), _draw_light(rng)
    count = int(rng.integers(1, 6))
    side = math.sqrt(rng.uniform(0.4, 0.65) / count)  # few objects are large, many are small: the cover varies less
    label = int(rng.integers(1, len(KINDS) + 1))
    for center in _place(rng, count):
        _draw_object(rng, canvas, mask, label, center, min(max(side * rng.uniform(0.85, 1.2), 0.27), 0.55), light)
        label = int(rng.integers(1, len(KINDS) + 1))
    return _photograph(rng, canvas, light), mask


def _draw_objects(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """As `_draw_scene`, of objects of one kind: the image is of ACROSS * `size` pixels."""
    size = ACROSS * size
    canvas, mask, light = _draw_plain_ground(rng, size), np.zeros((size, size), np.uint8), _draw_light(rng)
    label = int(rng.integers(1, len(KINDS) + 1))
    places = np.stack(np.divmod(rng.permutation(LATTICE**2), LATTICE), axis=1)  # so that every crop has some
    for place in places:
        center = (place + rng.uniform(0.2, 0.8, 2)) / LATTICE
        _draw_object(rng, canvas, mask, label, center, rng.uniform(0.22, 0.4), light, ACROSS)
    return _photograph(rng, canvas, light), mask


def _photograph(rng: np.random.Generator, canvas: np.ndarray, light: Light) -> np.ndarray:
    """The camera: light that falls off across the image, exposure, a lens not quite sharp, a sensor with noise."""
    ramp = np.linspace(-1, 1, canvas.shape[1], dtype=np.float32)
    slant, exposure = rng.uniform(0, 0.3), rng.uniform(0.8, 1.15)
    canvas *= exposure * (1 + slant * (light.x * ramp + light.y * ramp[:, None]))
    image = cv2.GaussianBlur(cv2.merge(list(canvas)), (3, 3), rng.uniform(0.2, 0.6))
    noise = rng.uniform(0.005, 0.03) * rng.standard_normal(image.shape, np.float32)  # drawn last: its length varies
    image = np.maximum(image + noise, 0)  # convertScaleAbs would mirror what is below 0; it saturates at 255
    return cv2.convertScaleAbs(image, alpha=255)


class Drawn:
    """`count` images, each a function of (seed, split, index) alone.

    The order of access, the process and `count` change nothing; splits and seeds share no image, nor do `scenes` and
    `objects`. (Another version of OpenCV or NumPy may round a pixel otherwise.)
    """

    ignore_index = 255  # no pixel has it: what is drawn has no doubt
    splits = ("train", "val", "test")
    keys = (0, 1, 2)  # of the splits' random numbers
    draw = staticmethod(_draw_scene)

    def __init__(self, count: int, size: int = 64, seed: int = 0, split: str = "train") -> None:
        if not 32 <= size <= 1024:
            raise InputError(f"scenes of {size} px: size must be 32 to 1024")
        if count < 0 or seed < 0:
            raise InputError(f"scenes with count={count}, seed={seed}: neither may be negative")
        if split not in self.splits:
            raise unknown("split of scenes", split, self.splits)
        self.count, self.size, self.seed, self.split = count, size, seed, split
        self._last: tuple[int, np.ndarray, np.ndarray] | None = None  # image(i) and mask(i) are asked for in turn

    def __len__(self) -> int:
        return self.count

    def name(self, i: int) -> str:
        """The name of image `i`, such as "train/00012"."""
        self._check(i)
        return f"{self.split}/{i:05d}"

    def image(self, i: int) -> UInt8[np.ndarray, "side side 3"]:
        """Image `i`: RGB, 0..255; the caller's to change."""
        return self._drawn(i)[1].copy()

    def _check(self, i: int) -> None:
        if not 0 <= i < self.count:
            raise IndexError(f"image {i} of {self.count}")

    def _drawn(self, i: int) -> tuple[int, np.ndarray, np.ndarray]:
        self._check(i)
        last = self._last
        if last is None or last[0] != i:
            rng = np.random.default_rng([self.seed, self.keys[self.splits.index(self.split)], i])
            last = self._last = (i, *self.draw(rng, self.size))
        return last


class Scenes(Drawn):
    """The dataset `scenes`: images of `size` x `size` pixels with objects of several kinds, and masks."""

    classes: tuple[str, ...] = ("background", *(kind.name for kind in KINDS))
    palette: UInt8[np.ndarray, "classes 3"] = np.array([(40, 40, 40), *(kind.color for kind in KINDS)], np.uint8)  # RGB

    def mask(self, i: int) -> UInt8[np.ndarray, "size size"]:
        """The class of each pixel of image `i`, an index into `classes`; the caller's to change."""
        return self._drawn(i)[2].copy()


class Objects(Drawn):
    """The dataset `objects`: images of 2 `size` x 2 `size` pixels, each of objects of one kind, which is its label."""

    classes = Scenes.classes[1:]
    palette = Scenes.palette[1:]
    keys = (3, 4, 5)
    draw = staticmethod(_draw_objects)

    def label(self, i: int) -> int:
        """The kind in image `i`, an index into `classes`."""
        return int(self._drawn(i)[2].max()) - 1
