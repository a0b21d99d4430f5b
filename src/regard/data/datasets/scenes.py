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
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from regard.errors import InputError, unknown

Outline = list[np.ndarray]  # closed polygons (n, 2), combined by the even-odd rule: a polygon within another is a hole
TURN = 2 * np.pi
ANGLE = np.linspace(0, TURN, 84, endpoint=False)
ACROSS, LATTICE = 2, 3  # of `objects`: how many scenes an image is wide, and objects in a row
OVERSAMPLE = 4  # outlines are filled this much finer, then averaged: 17 levels of coverage at an edge


# ---- outlines: each family draws one of its shapes, at any scale and position ---------------------------------------


def _polar(radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _mirrored(x: np.ndarray, half_width: np.ndarray) -> np.ndarray:
    """The outline that is `half_width` on both sides of the x axis."""
    return np.stack([np.r_[x, x[::-1]], np.r_[half_width, -half_width[::-1]]], axis=1)


def _ball(rng: np.random.Generator) -> Outline:
    """Discs, eggs and pebbles."""
    egg, pebble = rng.uniform(0, 0.16), rng.uniform(0, 0.05)
    radius = 1 + egg * np.cos(ANGLE) + pebble * np.cos(3 * ANGLE + rng.uniform(0, TURN))
    return [_polar(radius, ANGLE) * (1, rng.uniform(0.75, 1))]


def _fish(rng: np.random.Generator) -> Outline:
    """A body between nose (left) and tail, slim or round, with or without a fin, the tail forked or straight."""
    along = np.linspace(0, 0.93, 24)
    body = rng.uniform(0.3, 0.52) * np.sin(np.pi * along) ** rng.uniform(0.55, 0.9)
    fin = 0.08 * rng.integers(3) * np.maximum(1 - np.abs(along - rng.uniform(0.4, 0.6)) / 0.17, 0) ** 0.5
    x, tail, spread, fork = 1.7 * along - 1, rng.uniform(0.95, 1.1), rng.uniform(0.36, 0.55), rng.uniform(0.05, 0.25)
    outline = _mirrored(x, body)
    outline[:24, 1] += fin
    return [np.insert(outline, 24, [(tail, spread), (tail - fork, 0), (tail, -spread)], axis=0)]


def _leaf(rng: np.random.Generator) -> Outline:
    """Lance-shaped with a stem, its edge smooth or serrated; heart-shaped; or lobed."""
    shape = rng.integers(3)
    if shape == 0:
        along = np.linspace(0, 1, 22)
        teeth = 1 + 0.14 * rng.integers(2) * (np.arange(22) % 2 - 0.5)
        half_width = rng.uniform(0.38, 0.6) * teeth * np.sin(np.pi * along ** rng.uniform(0.7, 1.1)) + 0.03
        return [_mirrored(np.r_[-1.35, 2 * along - 1], np.r_[0.05, half_width])]
    if shape == 1:  # the tip points to +x, the notch to -x
        bow = np.abs(1 - ANGLE / np.pi)
        bulge = rng.uniform(0.4, 0.6) * np.sin(np.pi * (1 - bow) ** 1.4)
        return [_polar(0.55 + bulge + 0.5 * np.exp(6 * bow - 6) - 0.25 * (1 - bow) ** 8, ANGLE)]
    lobes = 3 + 2 * rng.integers(3)
    radius = 0.55 + 0.45 * np.abs(np.cos(lobes * ANGLE / 2)) ** 0.7
    return [_polar(radius * (0.75 + 0.25 * np.cos(ANGLE)), ANGLE)]


def _house(rng: np.random.Generator) -> Outline:
    """A gable with or without a chimney, a lean-to, a house with a wing, or a tower with battlements."""
    shape, wide, high, roof = rng.integers(4), rng.uniform(0.65, 1), rng.uniform(0.6, 0.95), rng.uniform(0.6, 0.9)
    if shape == 0:
        chimney = [(0.4 * wide, -0.6 * roof), (0.4 * wide, -roof), (0.7 * wide, -roof), (0.7 * wide, -0.3 * roof)]
        top = [(-wide * 1.12, 0), (0, -roof), *chimney[: 4 * rng.integers(2)], (wide * 1.12, 0)]
    elif shape == 1:
        top = [(-wide, -roof), (wide, 0.1)]
    elif shape == 2:
        top = [(-wide, -0.3 * roof), (-0.5 * wide, -1.3 * roof), (0, -0.3 * roof), (0, 0.15), (wide, 0.15)]
    else:
        wide, high = 0.75 * wide, 1.2 * high
        top = [(wide * (0.4 * (i + k) - 1), -roof - 0.3 * (i % 2 == 0)) for i in range(5) for k in (0, 1)]
    return [np.array([(wide, high), (-wide, high), *top])]


def _starfish(rng: np.random.Generator) -> Outline:
    """Four to seven arms, slim or stout, straight or swirling."""
    core = rng.uniform(0.3, 0.5)
    radius = core + (1 - core) * np.abs(np.cos(rng.integers(4, 8) * ANGLE / 2)) ** rng.uniform(1.2, 2.4)
    return [_polar(radius, ANGLE + rng.uniform(-0.6, 0.6) * radius)]


def _kite(rng: np.random.Generator) -> Outline:
    """A rhombus, a kite, or a delta with or without a notch in its tail."""
    waist, wide, notch = (-0.5, -0.3, 0, 1)[rng.integers(4)], rng.uniform(0.6, 0.9), 0.25 * rng.integers(3)
    return [np.array([(0, -1), (wide, waist), (0, 1 - notch * (waist == 1)), (-wide, waist)])]


def _wheel(rng: np.random.Generator) -> Outline:
    """A ring, a gear, or a wheel with openings between its spokes: one sees through the holes."""
    shape = rng.integers(3)
    if shape < 2:
        teeth = 0.1 * shape * np.clip(3 * np.sin(rng.integers(7, 12) * ANGLE), -1, 1)
        return [_polar(1 + teeth, ANGLE), _polar(np.full(84, rng.uniform(0.3, 0.55)), ANGLE)]
    spokes, inner, outer = rng.integers(3, 6), rng.uniform(0.2, 0.3), rng.uniform(0.62, 0.72)
    arc, ones = np.linspace(0.13, 0.87, 12), np.ones(12)
    turns = [TURN / spokes * (k + arc) for k in range(spokes)]
    openings = [_polar(np.r_[outer * ones, inner * ones], np.r_[turn, turn[::-1]]) for turn in turns]
    return [_polar(np.ones(84), ANGLE), *openings]


def _candy(rng: np.random.Generator) -> Outline:
    """A thick line with round ends: a straight stick, a bow, an S or a cane."""
    along = np.linspace(-1, 1, 40)
    heading = (0 * along, 1.3 * along, 1.25 * np.cos(np.pi * along), 3.6 * np.maximum(along, 0))[rng.integers(4)]
    step = _polar(np.full(40, 0.05), heading)
    spine = np.cumsum(step, axis=0)
    taper = np.sqrt(1.02 - (np.maximum(np.abs(along) - 0.8, 0) / 0.2) ** 2)  # rounds the ends
    side = step[:, ::-1] * (-20, 20) * (rng.uniform(0.18, 0.25) * taper)[:, None]
    return [np.concatenate([spine + side, (spine - side)[::-1]])]


# ---- surfaces: (x, y) in periods of the pattern, edge = pixels a period; the share of the second colour, 0..1 -------


def _sharpen(distance: np.ndarray, edge: float) -> np.ndarray:
    """From a signed distance in periods to 0..1, one pixel wide at the border: crisp at any size, never jagged."""
    return np.minimum(np.maximum(distance * edge + 0.5, 0), 1)  # np.clip takes twice as long on small arrays


def _band(x: np.ndarray) -> np.ndarray:
    """Signed distance to bands: positive in half of each period."""
    return np.abs(x - np.floor(x) - 0.5) - 0.25


def _smooth(x: np.ndarray, y: np.ndarray, edge: float) -> np.ndarray:
    return np.clip(0.5 + 0.4 * x, 0, 1) + 0 * y


def _scales(x: np.ndarray, y: np.ndarray, edge: float) -> np.ndarray:
    row = np.floor(2 * x)
    across = y + 0.5 * row
    radius = np.hypot(x - 0.5 * row, across - np.floor(across) - 0.5)
    return _sharpen(0.38 - radius, edge) + 0.5 * _sharpen(radius - 0.5, edge)


def _veins(x: np.ndarray, y: np.ndarray, edge: float) -> np.ndarray:
    side = np.abs(y)
    return _sharpen(np.minimum(_band(x - 1.1 * side) + 0.06, side - 0.14), edge)


def _bricks(x: np.ndarray, y: np.ndarray, edge: float) -> np.ndarray:
    row = np.floor(y)
    along = 0.5 * (x + row)
    joint = np.minimum(1 - 2 * np.abs(along - np.floor(along) - 0.5), 0.5 - np.abs(y - row - 0.5))
    return _sharpen(joint - 0.13, edge)


def _dots(x: np.ndarray, y: np.ndarray, edge: float) -> np.ndarray:
    row = np.floor(y)
    across = x + 0.5 * row
    return _sharpen(0.31 - np.hypot(across - np.floor(across) - 0.5, y - row - 0.5), edge)


def _checker(x: np.ndarray, y: np.ndarray, edge: float) -> np.ndarray:
    return _sharpen(4 * _band(x) * _band(y), edge)


def _rings(x: np.ndarray, y: np.ndarray, edge: float) -> np.ndarray:
    return _sharpen(_band(np.hypot(x, y)), edge)


def _stripes(x: np.ndarray, y: np.ndarray, edge: float) -> np.ndarray:
    return _sharpen(_band(0.8 * x + 0.6 * y), edge)


class Kind(NamedTuple):
    """An object class; lengths in the object's frame."""

    name: str
    color: tuple[int, int, int]  # RGB 0..255 in drawn masks; the objects themselves have any colour
    outline: Callable[[np.random.Generator], Outline]
    surface: Callable[[np.ndarray, np.ndarray, float], np.ndarray]
    period: float  # of the surface, in sides of the image
    bevel: float  # how far in the edge is rounded
    tilt: float  # the largest rotation, in turns


KINDS = (  # periods: 5 to 10 px at 64 px, so that a patch of 8 px shows what it is of
    Kind("ball", (230, 75, 60), _ball, _smooth, 0.45, 0.8, 0.5),
    Kind("fish", (60, 140, 230), _fish, _scales, 0.11, 0.2, 0.12),
    Kind("leaf", (90, 190, 75), _leaf, _veins, 0.1, 0.15, 0.5),
    Kind("house", (240, 160, 50), _house, _bricks, 0.09, 0.1, 0.06),
    Kind("starfish", (235, 110, 200), _starfish, _dots, 0.1, 0.25, 0.5),
    Kind("kite", (245, 225, 80), _kite, _checker, 0.16, 0.1, 0.5),
    Kind("wheel", (80, 215, 215), _wheel, _rings, 0.075, 0.15, 0.5),
    Kind("candy", (145, 90, 220), _candy, _stripes, 0.12, 0.3, 0.5),
)


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
            blob = _polar(rng.uniform(0.03, 0.13) * radius, angle + rng.uniform(0, TURN)) * rng.uniform(0.5, 1.5, 2)
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
