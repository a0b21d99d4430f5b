"""The report of `regard compare`: one HTML file made from `results.json` alone, which opens without a network.

Nothing is computed here that a reader could dispute: scores and intervals come from the JSON; this module orders them,
puts them into words and draws them. The drawing is inline SVG and CSS in `report.html.jinja`, so that text stays text,
colours follow the page (light, dark, print) and no two charts can share an id.
"""

import base64
import io
import json
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import UInt8
from matplotlib import colormaps
from matplotlib.ticker import MaxNLocator
from PIL import Image

from regard.errors import InputError

# What results.json must hold; other keys are let through.
# (shape, None): may be null. [shape]: a list. {str: shape}: any keys.
MAYBE = (float, None)
SCHEMA = {
    "regard": str,
    "commit": (str, None),
    "created": str,
    "command": str,
    "seconds": float,
    "complete": bool,
    "environment": {str: object},
    "data": {
        "source": str,
        "description": str,
        "classes": [str],
        "palette": [[int]],
        "train_images": int,
        "evaluated_images": int,
        "evaluated_split": str,
        "short_side": int,
        "class_share": [float],
    },
    "preset": str,
    "preset_note": str,
    "settings": {str: object},
    "majority": {"class": str, "miou": float, "pixel_accuracy": float},
    "pretraining": [
        {"name": str, "method": str, "backbone": str, "origin": str, "curve": [{"step": float, "loss": MAYBE}]},
    ],
    "configurations": [
        {
            "name": str,
            "backbone": str,
            "pretraining": (str, None),
            "fusion": str,
            "head": str,
            "baseline": bool,
            "parameters": int,
            "milliseconds_per_image": MAYBE,
            "peak_memory_mb": MAYBE,
            "miou": ({"mean": float, "std": MAYBE, "low": float, "high": float, "interval": str}, None),
            "runs": [
                {
                    "seed": int,
                    "miou": float,
                    "pixel_accuracy": float,
                    "iou": [MAYBE],
                    "train_seconds": float,
                    "curve": [{"epoch": float, "train_loss": MAYBE, "val_miou": MAYBE}],
                }
            ],
        }
    ],
    "differences": [{"a": str, "b": str, "mean": float, "low": float, "high": float}],
    "examples": [
        {
            "name": str,
            "image": str,
            "truth": str,
            "predictions": {str: {"png": str, "miou": MAYBE}},
            "attention": {str: {"kind": str, "level": int, "heads": [[[float]]]}},
        }
    ],
}
PICTURE = re.compile(r"data:image/(png|jpeg|webp);base64,[A-Za-z0-9+/]+=*")
PALETTE_SIZE = 8  # Okabe and Ito's colours, as --c0 to --c7 in the template
SHOWN_CLASSES = 24  # more are folded away, the most frequent ones first
Number = int | float  # JSON tells no 1 from 1.0
METHODS = {"barlow_twins": "Barlow Twins", "dino": "DINO"}


def write_report(directory: Path) -> Path:
    """Write `directory/report.html` from `directory/results.json`: whole or not at all."""
    results = read_results(directory / "results.json")
    page = render(results)
    handle, temporary = tempfile.mkstemp(dir=directory, prefix=".report-", suffix=".html")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page)
        os.chmod(temporary, 0o644)  # mkstemp makes it private; a report is to be shared
        os.replace(temporary, directory / "report.html")
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return directory / "report.html"


def read_results(path: Path) -> dict[str, Any]:
    """The content of `results.json`, checked; NaN and infinities (a diverged run) read as missing."""
    wrong, results = None, {}
    try:
        results = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except OSError as error:
        wrong = "there is no such file" if isinstance(error, FileNotFoundError) else str(error.strerror)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        wrong = f"not a whole JSON file ({' '.join(str(error).split())})"
    wrong = wrong or _problem(results, SCHEMA, "") or _inconsistency(results)
    if wrong:
        raise InputError(f"{path}: {wrong}; run regard compare again: finished cells are kept")
    return results


def _problem(value: Any, shape: Any, where: str) -> str | None:
    """The first place where `value` departs from `shape`, in words; None where it does not."""
    here = where or "the file"
    if isinstance(shape, tuple):
        return None if value is None else _problem(value, shape[0], where)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{here} should be a list"
        return _first(_problem(item, shape[0], f"{where}[{i}]") for i, item in enumerate(value))
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{here} should be an object with named values"
        keys = value if str in shape else shape
        return _first(
            _problem(value[key], shape.get(str, shape.get(key)), f"{where}.{key}".lstrip("."))
            if key in value
            else f"{here} lacks {key!r}"
            for key in keys
        )
    right = isinstance(value, (int, float) if shape is float else shape) and (
        shape in (bool, object) or not isinstance(value, bool)
    )
    return None if right else f"{here} should be of type {shape.__name__}, not {type(value).__name__}"


def _inconsistency(results: dict[str, Any]) -> str | None:
    """What the shapes cannot say: lengths that must agree, and pictures that must be inside the file."""
    data, count = results["data"], len(results["data"]["classes"])
    if len(data["palette"]) < count or any(len(c) != 3 or not all(0 <= v < 256 for v in c) for c in data["palette"]):
        return f"data.palette should hold an (r, g, b) of 0 to 255 for each of the {count} classes"
    if len(data["class_share"]) != count:
        return f"data.class_share should hold {count} shares, not {len(data['class_share'])}"
    for configuration in results["configurations"]:
        for run in configuration["runs"]:
            if len(run["iou"]) != count:
                where = f"configuration {configuration['name']!r}, seed {run['seed']}"
                return f"{where}: iou should hold {count} values, not {len(run['iou'])}"
    for example in results["examples"]:
        pictures = [example["image"], example["truth"], *(p["png"] for p in example["predictions"].values())]
        if not all(PICTURE.fullmatch(picture) for picture in pictures):
            return f"example {example['name']!r} holds a picture that is not a base64 data: URI"
        for name, attention in example["attention"].items():
            if len({(len(head), len(row)) for head in attention["heads"] for row in head}) != 1:
                return f"example {example['name']!r}: the attention of {name!r} should be heads of one size, h x w"
    return None


def _first(problems: Iterable[str | None]) -> str | None:
    return next((problem for problem in problems if problem), None)


def render(results: dict[str, Any]) -> str:
    """The page, from checked results."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (percent, points, duration, short, plain, mean, heat, under, zip)
    environment.filters.update({function.__name__: function for function in filters})
    environment.globals.update(axis=Axis.around, path=polyline, METHODS=METHODS)
    return environment.get_template("report.html.jinja").render(r=results, **_ordered(results))


def _ordered(results: dict[str, Any]) -> dict[str, Any]:
    """Configurations with a score, best first, each with its colour; those without; differences with their verdict."""
    for index, configuration in enumerate(results["configurations"]):
        configuration["color"] = f"var(--c{index % PALETTE_SIZE})"
        configuration["iou"] = [mean(values) for values in zip(*(r["iou"] for r in configuration["runs"]), strict=True)]
        curves = [[(p["epoch"], p["val_miou"]) for p in run["curve"]] for run in configuration["runs"]]
        epochs = sorted({epoch for curve in curves for epoch, _ in curve})
        configuration["curves"] = curves
        configuration["average"] = [(e, mean(v for c in curves for epoch, v in c if epoch == e)) for e in epochs]
    scored = [c for c in results["configurations"] if c["miou"] and c["runs"]]
    scored.sort(key=lambda c: c["miou"]["mean"], reverse=True)
    shares = results["data"]["class_share"]
    order = list(range(len(shares)))
    if len(order) > SHOWN_CLASSES:
        order.sort(key=lambda k: shares[k], reverse=True)
    differences = [d | {"shown": not d["low"] <= 0 <= d["high"]} for d in results["differences"]]
    seeds = results["settings"].get("seeds")
    if not isinstance(seeds, list):
        seeds = sorted({run["seed"] for c in results["configurations"] for run in c["runs"]})
    lead = None  # the first against the second, where that pair was compared; oriented first minus second
    if len(scored) > 1:
        first, second = scored[0]["name"], scored[1]["name"]
        for d in differences:
            if (d["a"], d["b"]) == (first, second):
                lead = d
            elif (d["b"], d["a"]) == (first, second):
                lead = d | {"a": first, "b": second, "mean": -d["mean"], "low": -d["high"], "high": -d["low"]}
    return {
        "scored": scored,
        "spread": [v for c in scored for v in (c["miou"]["low"], c["miou"]["high"], *(r["miou"] for r in c["runs"]))],
        "curves": [point for c in scored for curve in c["curves"] for point in curve],
        "order": order,
        "shown_classes": SHOWN_CLASSES,
        "seeds": seeds,
        "waiting": [c for c in results["configurations"] if c not in scored],
        "colors": {c["name"]: c["color"] for c in results["configurations"]},
        "differences": differences,
        "lead": lead,
    }


@dataclass(frozen=True)
class Axis:
    """A linear axis: where a value lies on it, in percent of its length, and the values worth a tick."""

    low: Number
    high: Number
    ticks: list[float]

    @classmethod
    def around(cls, values: Iterable[Number | None], zero: bool = False, bins: int = 5, margin: float = 0.05) -> "Axis":
        """An axis that holds all `values`, with `margin` of its length to spare at both ends (only above, from 0)."""
        known = [v for v in values if v is not None] + ([0.0] if zero else [])
        low, high = (min(known), max(known)) if known else (0.0, 1.0)
        spare = margin * (high - low) or 0.01
        low, high = (low if zero and low == 0 else low - spare), high + spare
        ticks = MaxNLocator(bins, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        return cls(low, high, [float(t) for t in ticks if low <= t <= high])

    def at(self, value: Number) -> float:
        """Percent of the axis' length, 0 at the low end."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)


def polyline(points: Iterable[tuple[Number | None, Number | None]], x: Axis, y: Axis) -> str:
    """The path data of a curve in a box of 100 x 100, y downwards; missing points are left out."""
    known = [(x.at(a), round(100 - y.at(b), 2)) for a, b in points if a is not None and b is not None]
    return "M" + "L".join(f"{a:g} {b:g}" for a, b in known) if known else ""


def mean(values: Iterable[Number | None]) -> Number | None:
    """The mean of the values that are there."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def percent(value: Number | None) -> str:
    """A share as percent with one decimal, without the sign: 0.314 -> '31.4'."""
    return "–" if value is None else f"{100 * value:.1f}".replace("-", "−")


def points(value: Number) -> str:
    """A difference of shares in percentage points, with its sign: -0.003 -> '−0.3'."""
    text = f"{100 * value:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def duration(seconds: Number) -> str:
    """41.2 -> '41 s', 251.3 -> '4 min 11 s', 7500 -> '2 h 5 min'."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def short(value: Number) -> str:
    """1234567 -> '1.23 M', 24100 -> '24.1 k'."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:g}"


def plain(value: Any) -> str:
    """A setting as a reader would write it."""
    if isinstance(value, list | tuple):
        return ", ".join(plain(v) for v in value)
    return {None: "–", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else str(value)


def heat(head: Sequence[Sequence[Number]]) -> str:
    """One head's map, scaled to its own maximum, in magma, one pixel a position; the page enlarges it."""
    weights = np.asarray(head, dtype=np.float64)
    colours = colormaps["magma"](weights / max(weights.max(), 1e-12))[..., :3]
    return _data_uri(np.round(255 * colours).astype(np.uint8))


def under(picture: str) -> str:
    """CSS properties that lay a picture, in grey and at most 256 pixels wide, under the heat maps: once for all heads.

    The browser blends: with one blended picture a head, 576 heads would weigh more than the rest of the page together.
    """
    try:
        image = Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))).convert("L")
    except (OSError, ValueError) as error:
        raise InputError("results.json holds a picture that cannot be read: run regard compare again") from error
    aspect = f"{image.width} / {image.height}"
    image.thumbnail((256, 256))
    return f"--image: url('{_data_uri(np.asarray(image))}'); --aspect: {aspect}"


def _data_uri(pixels: UInt8[np.ndarray, "h w *c"]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
