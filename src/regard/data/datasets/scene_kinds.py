"""The kinds of objects in `scenes`: a family of outlines, and a surface whose pattern is about as large as a patch.

Outlines and surfaces are in an object's own frame, in which its area is 1; x to the right, y down.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Outline = list[np.ndarray]  # closed polygons (n, 2), combined by the even-odd rule: a polygon within another is a hole
TURN = 2 * np.pi
ANGLE = np.linspace(0, TURN, 84, endpoint=False)


# ---- outlines: each family draws one of its shapes, at any scale and position ---------------------------------------


def polar(radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Points (n, 2) at these radii and angles (radians)."""
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _mirrored(x: np.ndarray, half_width: np.ndarray) -> np.ndarray:
    """The outline that is `half_width` on both sides of the x axis."""
    return np.stack([np.r_[x, x[::-1]], np.r_[half_width, -half_width[::-1]]], axis=1)


def _ball(rng: np.random.Generator) -> Outline:
    """Discs, eggs and pebbles."""
    egg, pebble = rng.uniform(0, 0.16), rng.uniform(0, 0.05)
    radius = 1 + egg * np.cos(ANGLE) + pebble * np.cos(3 * ANGLE + rng.uniform(0, TURN))
    return [polar(radius, ANGLE) * (1, rng.uniform(0.75, 1))]


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
        return [polar(0.55 + bulge + 0.5 * np.exp(6 * bow - 6) - 0.25 * (1 - bow) ** 8, ANGLE)]
    lobes = 3 + 2 * rng.integers(3)
    radius = 0.55 + 0.45 * np.abs(np.cos(lobes * ANGLE / 2)) ** 0.7
    return [polar(radius * (0.75 + 0.25 * np.cos(ANGLE)), ANGLE)]


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
    return [polar(radius, ANGLE + rng.uniform(-0.6, 0.6) * radius)]


def _kite(rng: np.random.Generator) -> Outline:
    """A rhombus, a kite, or a delta with or without a notch in its tail."""
    waist, wide, notch = (-0.5, -0.3, 0, 1)[rng.integers(4)], rng.uniform(0.6, 0.9), 0.25 * rng.integers(3)
    return [np.array([(0, -1), (wide, waist), (0, 1 - notch * (waist == 1)), (-wide, waist)])]


def _wheel(rng: np.random.Generator) -> Outline:
    """A ring, a gear, or a wheel with openings between its spokes: one sees through the holes."""
    shape = rng.integers(3)
    if shape < 2:
        teeth = 0.1 * shape * np.clip(3 * np.sin(rng.integers(7, 12) * ANGLE), -1, 1)
        return [polar(1 + teeth, ANGLE), polar(np.full(84, rng.uniform(0.3, 0.55)), ANGLE)]
    spokes, inner, outer = rng.integers(3, 6), rng.uniform(0.2, 0.3), rng.uniform(0.62, 0.72)
    arc, ones = np.linspace(0.13, 0.87, 12), np.ones(12)
    turns = [TURN / spokes * (k + arc) for k in range(spokes)]
    openings = [polar(np.r_[outer * ones, inner * ones], np.r_[turn, turn[::-1]]) for turn in turns]
    return [polar(np.ones(84), ANGLE), *openings]


def _candy(rng: np.random.Generator) -> Outline:
    """A thick line with round ends: a straight stick, a bow, an S or a cane."""
    along = np.linspace(-1, 1, 40)
    heading = (0 * along, 1.3 * along, 1.25 * np.cos(np.pi * along), 3.6 * np.maximum(along, 0))[rng.integers(4)]
    step = polar(np.full(40, 0.05), heading)
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
