"""The page of a probe: one HTML file made from `probe.json` alone, which opens without a network."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from regard.files import write_whole
from regard.reports.figures import COLOURS, GREY, STYLE, Chart, chart_of
from regard.reports.page import render
from regard.results import ProbeDifference, ProbeResults, is_head, write_stored

PROBE_FILE, PAGE = "probe.json", "probe.html"


def write_probe_report(results: ProbeResults, directory: Path) -> Path:
    """Write probe.html and probe.json: each whole or not at all, the JSON last."""
    page = render_probe(results)
    write_whole(directory / PAGE, lambda file: file.write(page.encode()))
    write_stored(directory / PROBE_FILE, results)
    return directory / PAGE


def render_probe(results: ProbeResults) -> str:
    """The page."""
    fractions = list(dict.fromkeys(row.fraction for row in results.rows))
    brings = {(one.answer, one.features, one.columns, one.fraction): one for one in results.differences}
    plain = [
        one
        for one in results.differences
        if one.features and "+" in one.columns and not is_head(one) and one.answer == "ridge"
    ]
    values = {
        "r": results,
        "fractions": fractions,
        "rows": [row for row in results.rows if not is_head(row)],
        "heads": [row for row in results.rows if is_head(row)],
        "brings": brings,
        "claims": {f: _chart([one for one in plain if one.fraction == f], f) for f in fractions},
        "edges": [row for row in results.rows if row.edges],
    }
    return render("probe.html.jinja", values, {"signed": signed, "name": name, "shown": shown, "spoken": spoken})


def signed(value: float) -> str:
    """A difference in points of %."""
    return f"{100 * value:+.2f}"


def spoken(features: str, answer: str) -> str:
    """Features, and what answers from them where it is not ridge regression."""
    return features if answer == "ridge" else f"{features} ({answer})"


def name(features: str, columns: str) -> str:
    """What is answered from, in words."""
    return f"{features} {columns}".strip()


def shown(found: ProbeDifference, few: bool) -> str:
    """The verdict that the digits carry: `better`, `worse`, or `not shown`; none of too few groups."""
    low, high = round(100 * found.miou.low, 2), round(100 * found.miou.high, 2)
    return "" if few else "better" if low > 0 else "worse" if high < 0 else "not shown"


def _chart(differences: list[ProbeDifference], fraction: float) -> Chart:
    """What columns bring to the same features: points and intervals, a row each."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.9 + 0.22 * len(differences)), layout="constrained")
        axes = figure.add_subplot()
        for place, one in enumerate(differences):
            colour = GREY if "other" in one.columns else COLOURS[1] if "maps" in one.columns else COLOURS[0]
            low, mean, high = (100 * value for value in (one.miou.low, one.miou.mean, one.miou.high))
            axes.plot([low, high], [place, place], color=colour, linewidth=2)
            axes.plot(mean, place, "o", color=colour, markersize=5)
        axes.axvline(0, color=GREY, linewidth=1)
        axes.set_yticks(
            range(len(differences)),
            [f"{name(one.features, one.columns)} – {name(one.features, one.against)}" for one in differences],
        )
        axes.set_ylim(len(differences) - 0.5, -0.5)
        axes.set_xlabel("points of mIoU, 95% interval")
        return chart_of(
            f"brings-{100 * fraction:g}",
            f"What columns bring to the same features, with {100 * fraction:g}% of the masks",
            figure,
        )
