"""Numbers and settings as people write them."""

from collections.abc import Mapping, Sequence
from typing import Any


def percent(value: float | None) -> str:
    """A share as percent with one decimal, without the sign: 0.314 -> '31.4'."""
    return "–" if value is None else f"{round(100 * value, 1) + 0.0:.1f}".replace("-", "−")  # + 0.0: -0.0 is 0.0


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign: -0.003 -> '−0.3'."""
    text = f"{100 * value:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def duration(seconds: float) -> str:
    """41.2 -> '41 s', 251.3 -> '4 min 11 s', 7500 -> '2 h 5 min'."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def short(value: int) -> str:
    """1234567 -> '1.23 M', 24100 -> '24.1 k'."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:  # what three digits round to the next unit is written in it
            return f"{value / size:.3g} {unit}"
    return f"{value:g}"


def listed(names: Sequence[str], most: int = 5) -> str:
    """Names in a sentence, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def plain(value: Any) -> str:
    """A setting as a reader would write it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(v)}" for key, v in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(plain(v) for v in value) or "–"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e6:
        return str(int(value))
    return {None: "–", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)


def minus(a: str, b: str) -> str:
    """A difference of two configurations; what both names end with is said once: ("x · 10%", "y · 10%") -> 'x minus y
    · 10%'."""
    one, two = a.split(" · "), b.split(" · ")
    same = 0
    while same < min(len(one), len(two)) - 1 and one[-1 - same] == two[-1 - same]:
        same += 1
    return f"{' · '.join(one[: len(one) - same])} minus {b}"


def spaced(name: str) -> str:
    """A key as words: label_fraction -> 'label fraction'."""
    return name.replace("_", " ")
