"""The page of `regard sweep`: one HTML file made from `results.json` alone, which opens without a network.

As in `report.py`, nothing is computed here that a reader could dispute; the drawing is in `sweep.html.jinja`.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regard.files import write_whole
from regard.reports.page import Axis, Number, counted, is_numeric, plain, render
from regard.reports.schema import MAYBE, read_checked

RESULTS_FILE = "results.json"

# What results.json must hold, as in `schema.SCHEMA`.
SCHEMA = {
    "name": str,
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
        "train_images": int,
        "val_images": int,
        "test_images": int,  # on which no score was computed
        "short_side": int,
    },
    "wanted": int,
    "pruning": bool,
    "space": {str: object},
    "varied": [str],
    "usual": {str: object},  # of the options that vary, those that are tried first
    "random": int,  # complete or pruned trials before the search looks at scores
    "settings": {str: object},
    "trials": [
        {
            "number": int,
            "state": str,
            "miou": MAYBE,
            "seconds": float,
            "options": {str: object},
            "curve": [[MAYBE]],
            "error": (str, None),
        }
    ],
    "importance": ({str: float}, None),
    "best": {"number": int, "miou": float, "options": {str: object}, "command": str},
}
COLOURS = {"complete": "var(--c0)", "pruned": "var(--c1)", "failed": "var(--muted)"}


def write_sweep_report(directory: Path) -> Path:
    """Write `directory/report.html` from `directory/results.json`: whole or not at all."""
    page = render_sweep(read_sweep(directory / RESULTS_FILE))
    write_whole(directory / "report.html", lambda file: file.write(page.encode()))
    return directory / "report.html"


def read_sweep(path: Path) -> dict[str, Any]:
    """The content of a sweep's `results.json`: see `schema.read_checked`."""
    return read_checked(path, SCHEMA, _inconsistency, "sweep")


def _inconsistency(results: dict[str, Any]) -> str | None:
    """What the shapes cannot say."""
    for trial in results["trials"]:
        if trial["state"] not in COLOURS:
            return f"trial {trial['number']} should be {', '.join(COLOURS)}, not {trial['state']!r}"
        if any(len(point) != 2 for point in trial["curve"]):
            return f"the curve of trial {trial['number']} should be pairs of epoch and score"
    if results["best"]["number"] not in [trial["number"] for trial in results["trials"] if trial["miou"] is not None]:
        return f"the best trial, {results['best']['number']}, is none of the trials with a score"
    for name in results["varied"]:
        if name not in results["space"]:
            return f"{name!r} varies, but is not in the space"
    return None


def render_sweep(results: dict[str, Any]) -> str:
    """The page, from checked results."""
    trials = results["trials"]
    best = next(trial for trial in trials if trial["number"] == results["best"]["number"])
    for trial in trials:
        trial["color"] = COLOURS[trial["state"]]
        trial["curve"] = [(epoch, score) for epoch, score in trial["curve"]]
        last = trial["curve"][-1][1] if trial["curve"] else None
        trial["score"] = {"complete": trial["miou"], "pruned": last, "failed": None}[trial["state"]]
    complete = [trial for trial in trials if trial["state"] == "complete"]
    scores = sorted(trial["miou"] for trial in complete)
    for trial in complete:  # 0 for the worst, 1 for the best
        below = sum(score < trial["miou"] for score in scores)
        trial["rank"] = below / max(1, len(scores) - 1)
    axes = {name: option_axis(results, name) for name in results["varied"]}
    shares = results["importance"] or {}
    return render(
        "sweep.html.jinja",
        {"setting": setting, "counted": counted},
        r=results,
        trials=trials,
        complete=complete,
        ordered=sorted(trials, key=lambda t: (t["state"] != "complete", -(t["miou"] or 0), t["number"])),
        best=best,
        counts={state: sum(trial["state"] == state for trial in trials) for state in COLOURS},
        so_far=_best_so_far(trials),
        axes=axes,
        numeric={name for name in results["varied"] if _is_numeric(results["space"][name])},
        places={t["number"]: {n: _place(axes[n], v) for n, v in t["options"].items() if n in axes} for t in trials},
        shares=sorted(shares.items(), key=lambda item: -item[1]),
        colors=COLOURS,
    )


def _best_so_far(trials: Sequence[dict[str, Any]]) -> list[tuple[int, float]]:
    """(number, the best score up to it), from the first complete trial on, as steps: level up to a better one."""
    found: list[tuple[int, float]] = []
    for trial in trials:
        if found:
            found.append((trial["number"], found[-1][1]))
        if trial["state"] == "complete" and (not found or trial["miou"] > found[-1][1]):
            found.append((trial["number"], trial["miou"]))
    return found


def _is_numeric(among: Any) -> bool:
    """Whether the values of an option are numbers, of a range or of a list of choices."""
    return isinstance(among, dict) or is_numeric(value for value in among if value is not None)


def option_axis(results: dict[str, Any], name: str) -> Axis:
    """Over all that an option could be: a range with a few ticks, or the choices as words, in their order."""
    among = results["space"][name]
    if not isinstance(among, dict):
        words = tuple(plain(value) for value in among)
        return Axis(-0.5, len(words) - 0.5, range(len(words)), words=words)
    low, high = among["low"], among["high"]
    if not among.get("log"):
        around = Axis.around((low, high), bins=4)
        return Axis(around.low, around.high, around.ticks)
    decades = [
        10.0**power for power in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    ]
    spare = (high / low) ** 0.06
    return Axis(low / spare, high * spare, decades if len(decades) > 1 else [low, high], log=True)


def _place(axis: Axis, value: Any) -> Number | None:
    """Where a value lies on the axis; None for one that is not on it."""
    if axis.words:
        word = plain(value)
        return axis.words.index(word) if word in axis.words else None
    return value


def setting(value: Any) -> str:
    """A value of an option as it is typed, numbers to three digits."""
    return f"{value:.3g}" if isinstance(value, float) else plain(value)
