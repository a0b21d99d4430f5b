"""For a paper, from checked results: results.csv, table.tex, and figures/ as SVG and PNG.

The same results give the same bytes: figures carry no date, and the ids in an SVG come from a fixed salt. Text stays
text in SVG, so that it takes the fonts of the paper.
"""

import csv
import io
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from regard.files import write_whole

# As on the page: Okabe and Ito's, and four more
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d555e", "#b3a600"),
    *("#7b3fa0", "#8c510a", "#9e1b5b", "#6b8e23"),
)
DPI = 200  # of the PNGs: 8 inches are 1600 pixels
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "regard",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
OWN = re.compile(r"(miou|differences|curves|(axis|heads)[A-Za-z0-9-]*)\.(svg|png)")  # files of `_figures`
LATEX = {  # " as two apostrophes: \textquotedbl is not in LaTeX's own encoding of fonts
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "\"": "''", "·": r"\textperiodcentered{}", "\n": " ", "\r": " ",
}  # fmt: skip


def write_figures(results: Mapping[str, Any], drawn: Mapping[str, Any], directory: Path) -> None:
    """Write all of it into `directory`, each file whole or not at all; figures of an earlier report, which this one
    does not have, are deleted.

    drawn: the results as `report.ordered` puts them.
    """
    write_whole(directory / "results.csv", lambda file: file.write(table_csv(results).encode()))
    write_whole(directory / "table.tex", lambda file: file.write(table_latex(drawn["scored"]).encode()))
    written = set()
    for name, draw in _figures(results, drawn):
        with matplotlib.rc_context(STYLE), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # letters that the PNG's font lacks; the SVG has the text
            figure = draw()
            for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
                picture = io.BytesIO()
                figure.savefig(picture, format=kind, dpi=DPI, metadata=metadata)
                write_whole(directory / "figures" / f"{name}.{kind}", lambda file, p=picture: file.write(p.getvalue()))
                written.add(f"{name}.{kind}")
    for path in (directory / "figures").glob("*"):
        if path.name not in written and OWN.fullmatch(path.name):
            path.unlink()


def table_csv(results: Mapping[str, Any]) -> str:
    """One row a run; scores are shares in [0, 1], and empty where there is none."""
    classes = [f"iou {name}" for name in results["data"]["classes"]]
    axes, scores = list(results["axes"]), _head_scores(results["configurations"])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["configuration", "backbone", "pretraining", "fusion", "head", "label_fraction", "frozen", "baseline"]
        + [f"at {axis}" for axis in axes]
        + ["seed", "miou", "pixel_accuracy", *classes, "train_seconds", "parameters", "milliseconds_per_image"]
        + ["images_per_second", "peak_memory_mb", *(f"heads {score}" for score in scores)]
    )
    for c in results["configurations"]:
        what = [c["name"], c["backbone"], c["pretraining"] or "random", c["fusion"], c["head"]]
        what += [c["label_fraction"], c["frozen"], c["baseline"]]
        at = [_value(c["at"].get(axis)) for axis in axes]
        cost = [c[key] for key in ("parameters", "milliseconds_per_image", "images_per_second", "peak_memory_mb")]
        for run in c["runs"]:
            heads = run["heads"] or {}
            found = [run["seed"], run["miou"], run["pixel_accuracy"], *run["iou"], run["train_seconds"]]
            writer.writerow(
                [*map(_cell, what), *map(_cell, at), *found, *cost, *(heads.get(score) for score in scores)]
            )
    return text.getvalue()


def _value(value: Any) -> Any:
    """Of an axis: numbers and words as they are, a list as JSON."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def _cell(value: Any) -> Any:
    """A name that a spreadsheet would take for a formula starts with an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _head_scores(configurations: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for c in configurations for run in c["runs"] for key in run["heads"] or {}))


def table_latex(scored: Sequence[Mapping[str, Any]]) -> str:
    """A table of booktabs: mIoU in percent, its standard deviation over seeds and its interval, and the costs."""
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{tabular}{lrrrr}",
        r"\toprule",
        r"Configuration & mIoU (\%) & 95\% interval & Parameters (M) & ms per image \\",
        r"\midrule",
    ]
    for c in scored:
        m = c["miou"]
        spread = rf" $\pm$ {100 * m['std']:.1f}" if m["std"] is not None and len(c["runs"]) > 1 else ""
        time = "--" if c["milliseconds_per_image"] is None else f"{c['milliseconds_per_image']:.1f}"
        cells = [latex(c["title"]), f"{100 * m['mean']:.1f}{spread}", f"{100 * m['low']:.1f} to {100 * m['high']:.1f}"]
        lines.append(" & ".join([*cells, f"{c['parameters'] / 1e6:.1f}", time]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def latex(text: str) -> str:
    """Text with all that LaTeX takes for a command escaped."""
    return "".join(LATEX.get(letter, letter) for letter in text)


def _figures(results: Mapping[str, Any], drawn: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """The name of each figure's file, and what draws it; only those that have something to draw."""
    scored, asked, titles = drawn["scored"], drawn["asked"], drawn["titles"]
    if scored:
        yield "miou", lambda: intervals(scored)
    if asked:
        yield "differences", lambda: asked_differences(asked, titles)
    learned = [c for c in scored if any(value is not None for _, value in c["average"])]
    if learned:
        yield "curves", lambda: curves(learned)
    for a in drawn["axes"]:
        for part, lines in enumerate(a["charts"], 1):
            number = f"-{part}" if len(a["charts"]) > 1 else ""
            yield file_name(f"axis-{a['name']}{number}"), lambda a=a, lines=lines: axis_lines(a, lines)
    for f in drawn["families"]:
        if f["dots"]:
            yield file_name(f"heads-{f['score']}-{'-'.join(f['kinds'])}"), lambda f=f: beside_miou(f)


def file_name(words: str) -> str:
    """Letters that are safe in a file's name anywhere."""
    return re.sub(r"[^A-Za-z0-9]+", "-", words).strip("-")[:80]


def intervals(scored: Sequence[Mapping[str, Any]]) -> Figure:
    """mIoU of each configuration with its interval, seeds as faint dots; best on top."""
    figure, axes = _new(height=0.8 + 0.28 * len(scored))
    for row, c in enumerate(scored):
        color, m = _colour(c), c["miou"]
        axes.plot([100 * m["low"], 100 * m["high"]], [row, row], color=color, linewidth=1.8)
        axes.plot(
            [100 * run["miou"] for run in c["runs"]], [row] * len(c["runs"]), "o", color=color, alpha=0.35, markersize=4
        )
        axes.plot(100 * m["mean"], row, "o", color=color, markersize=6.5)
    _named_rows(axes, [c["title"] for c in scored])
    axes.set_xlabel("mIoU (%)")
    return figure


def asked_differences(asked: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> Figure:
    """The differences that were asked for, with their intervals; hollow where none is shown."""
    figure, axes = _new(height=0.8 + 0.3 * len(asked))
    axes.axvline(0, color="0.5", linestyle="--", linewidth=1)
    for row, d in enumerate(asked):
        axes.plot([100 * d["low"], 100 * d["high"]], [row, row], color="black" if d["shown"] else "0.55", linewidth=1.8)
        face = "black" if d["shown"] else "white"
        axes.plot(100 * d["mean"], row, "o", markerfacecolor=face, markeredgecolor="black" if d["shown"] else "0.55")
    _named_rows(axes, [f"{titles[d['a']]} minus {titles[d['b']]}" for d in asked])
    axes.set_xlabel("difference of mIoU (percentage points)")
    return figure


def curves(scored: Sequence[Mapping[str, Any]]) -> Figure:
    """Validation mIoU by epoch, mean over seeds."""
    figure, axes = _new(height=3.6)
    styles = ("-", "--", ":", "-.")  # so that the first 32 differ
    for c in scored:
        known = [(epoch, 100 * value) for epoch, value in c["average"] if value is not None]
        style = styles[c["number"] // len(COLOURS) % len(styles)]
        epochs, values = zip(*known, strict=True)
        dot = "o" if len(known) == 1 else None  # a line of one point is no line
        axes.plot(epochs, values, linestyle=style, marker=dot, color=_colour(c), label=_label(c["title"]))
    axes.set(xlabel="epoch", ylabel="validation mIoU (%)")
    _legend(axes)
    return figure


def axis_lines(a: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> Figure:
    """mIoU against the values of an axis, with intervals."""
    figure, axes = _new(height=3.4)
    for index, line in enumerate(lines):
        color = COLOURS[index % len(COLOURS)]
        at = [value for value, _ in line["drawn"]]
        means = [100 * c["miou"]["mean"] for _, c in line["drawn"]]
        below = [100 * (c["miou"]["mean"] - c["miou"]["low"]) for _, c in line["drawn"]]
        above = [100 * (c["miou"]["high"] - c["miou"]["mean"]) for _, c in line["drawn"]]
        style = "o:" if a["x"].words else "o-"
        axes.errorbar(at, means, [below, above], fmt=style, color=color, capsize=2, label=_label(line["label"]))
    if a["x"].log:
        axes.set_xscale("log")
    ticks = list(a["x"].ticks)
    axes.set_xticks(ticks, [_text(a["x"].label(tick)) for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel=_label(a["name"]), ylabel="mIoU (%)")
    _legend(axes)
    return figure


def beside_miou(f: Mapping[str, Any]) -> Figure:
    """A score of the attention heads beside mIoU; seeds as faint dots."""
    figure, axes = _new(height=3.4)
    for at, value, c in f["dots"]:
        axes.plot(at, 100 * value, "o", color=_colour(c), alpha=0.35, markersize=4)
    for c in f["members"]:
        x, y = c["heads"][f["score"]], 100 * c["miou"]["mean"]
        axes.plot(x, y, "o", color=_colour(c), markersize=7, label=_label(c["title"]))
    axes.set(xlabel=_label(f"{f['words']} ({', '.join(f['kinds'])})"), ylabel="mIoU (%)")
    axes.set_title(_text(f["sentence"]), fontsize=8, wrap=True)
    _legend(axes)
    return figure


def _colour(c: Mapping[str, Any]) -> str:
    """That of the page, in every figure."""
    return COLOURS[c["number"] % len(COLOURS)]


def _new(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, height), layout="constrained")
    return figure, figure.add_subplot()


def _named_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [_text(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def _legend(axes: Axes) -> None:
    axes.grid(color="0.92", linewidth=0.8)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=7, frameon=False)


def _label(words: str) -> str:
    """In a legend, where matplotlib leaves out what starts with an underscore."""
    return _text(f" {words}" if words.startswith("_") else words)


def _text(words: str) -> str:
    """No mathematics: a dollar is a dollar."""
    return words.replace("$", r"\$")
