"""The page of a sweep: one HTML file made from `results.json` alone, which opens without a network.

Nothing is computed here that a reader could dispute; what is shown is in `sweep.html.jinja`, the plots are Optuna's.
"""

from pathlib import Path
from typing import Any

from regard.files import write_whole
from regard.reports.page import RESULTS_FILE, render
from regard.reports.words import plain
from regard.results import SweepResults, read_stored


def write_sweep_report(directory: Path) -> Path:
    """Write `directory/report.html` from `directory/results.json`: whole or not at all."""
    page = render_sweep(read_stored(directory / RESULTS_FILE, SweepResults))
    write_whole(directory / "report.html", lambda file: file.write(page.encode()))
    return directory / "report.html"


def render_sweep(results: SweepResults) -> str:
    """The page."""
    trials = results.trials
    words = {name for trial in trials for name, value in trial.options.items() if isinstance(value, str | bool)}
    values = {
        "r": results,
        "ordered": sorted(trials, key=lambda trial: (trial.state != "complete", -(trial.miou or 0), trial.number)),
        "best": next(trial for trial in trials if trial.number == results.best.number),
        "counts": {state: sum(trial.state == state for trial in trials) for state in ("complete", "pruned", "failed")},
        "numeric": results.space.keys() - words,
    }
    return render("sweep.html.jinja", values, {"setting": setting})


def setting(value: Any) -> str:
    """A value of an option as it is typed, numbers to three digits."""
    return f"{value:.3g}" if isinstance(value, float) else plain(value)
