"""What the pages of studies share: filling a template, numbers in words, axes. The look is in `page.html.jinja`.

Charts are inline SVG and CSS, drawn by the macros of `pieces.html.jinja`, so that text stays text, colours follow the
page (light, dark, paper) and no two charts can share an id.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import UInt8
from matplotlib.ticker import MaxNLocator
from PIL import Image

from regard.reports.arranged import mean
from regard.reports.words import counted, duration, percent, plain, points, short, spaced

Number = int | float  # JSON tells no 1 from 1.0
COLOURS = 12  # Okabe and Ito's and four more, as --c0 to --c11 in page.html.jinja
LETTERS = 10  # of a word on an axis that fit into a line, where there are few


def render(template: str, filters: Mapping[str, Any] | None = None, **values: Any) -> str:
    """The page of a template that lies beside this file; every value is escaped, and a missing one is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    own = (percent, points, duration, short, counted, plain, spaced, mean, zip)
    environment.filters.update({function.__name__: function for function in own} | dict(filters or {}))
    environment.globals.update(axis=Axis.around, path=polyline)
    return environment.get_template(template).render(**values)


def colour(index: int) -> str:
    """The CSS colour of the so-manieth line or configuration; they repeat."""
    return f"var(--c{index % COLOURS})"


@dataclass(frozen=True)
class Axis:
    """Where a value lies on an axis, in percent of its length, and the values worth a tick.

    log:   the axis is logarithmic; low and high are values, and above 0.
    words: the values are 0, 1, ... and stand for these words.
    """

    low: Number
    high: Number
    ticks: Sequence[Number]
    log: bool = False
    words: tuple[str, ...] = ()

    @classmethod
    def around(
        cls,
        values: Iterable[Number | None],
        zero: bool = False,
        bins: int = 5,
        margin: float = 0.05,
        whole: bool = False,
    ) -> "Axis":
        """An axis that holds all `values`, with `margin` of its length to spare at both ends (only above, from 0).

        whole: only whole numbers are ticks.
        """
        known = [v for v in values if v is not None] + ([0.0] if zero else [])
        low, high = (min(known), max(known)) if known else (0.0, 1.0)
        spare = margin * (high - low) or (0.5 if whole else 0.01)
        low, high = (low if zero and low == 0 else low - spare), high + spare
        ticks = MaxNLocator(bins, steps=[1, 2, 2.5, 5, 10], integer=whole).tick_values(low, high)
        fit = [float(t) for t in ticks if low <= t <= high]
        return cls(low, high, [round(t) for t in fit if abs(t - round(t)) < 1e-6] if whole else fit)

    @classmethod
    def of(cls, values: Sequence[Any], margin: float = 0.08) -> "Axis":
        """The axis of a setting's values: a tick for each. Numbers by their size, logarithmic over a decade or more;
        other values evenly, in their order.
        """
        if not is_numeric(values):
            return cls(-0.5, len(values) - 0.5, range(len(values)), words=tuple(plain(v) for v in values))
        low, high = min(values), max(values)
        log = low > 0 and high / low >= 10
        if log:
            spare = (high / low) ** margin
            return cls(low / spare, high * spare, sorted(values), log=True)
        spare = margin * (high - low) or 0.5
        return cls(low - spare, high + spare, sorted(values))

    def at(self, value: Number) -> float:
        """Percent of the axis' length, 0 at the low end."""
        low, high, value = np.log([self.low, self.high, value]) if self.log else (self.low, self.high, value)
        return round(float(100 * (value - low) / (high - low)), 2)

    def label(self, tick: Number) -> str:
        """What to write at a tick."""
        return self.words[int(tick)] if self.words else f"{tick:.4g}".replace("-", "−")

    @property
    def slot(self) -> float:
        """Percent of the axis' length that a word has."""
        return round(100 / max(len(self.words), 1), 2)

    @property
    def lines(self) -> float:
        """Height to leave for the words, in em."""
        longest = max((len(word) for word in self.words), default=0)
        return 0.6 + 1.3 * min(4, -(-longest * max(len(self.words), 3) // (3 * LETTERS)))


def is_numeric(values: Iterable[Any]) -> bool:
    """Whether all are numbers; True and False are words."""
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def polyline(points: Iterable[tuple[Number | None, Number | None]], x: Axis, y: Axis) -> str:
    """The path data of a curve in a box of 100 x 100, y downwards; missing points are left out.

    A single point is a line of no length, which round caps make a dot.
    """
    known = [(x.at(a), round(100 - y.at(b), 2)) for a, b in points if a is not None and b is not None]
    return "M" + "L".join(f"{a:g} {b:g}" for a, b in known) + "h0" * (len(known) == 1) if known else ""


def data_uri(pixels: UInt8[np.ndarray, "h w *c"]) -> str:
    """A PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
