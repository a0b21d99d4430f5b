"""Every chart of a report, drawn once: inline in its page, and as files for a paper.

The same results give the same bytes: figures carry no date, and the ids in an SVG come from the name of the figure.
Text stays text, so that it takes the fonts of the page or the paper. On the page, colours follow its light or dark.
"""

import io
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from regard.files import write_whole
from regard.reports.arranged import Arranged, Curve, Family, Line, Shown, VariedAxis, is_numeric
from regard.reports.words import minus, percent, plain, points, spaced
from regard.results import Difference, Majority, PretrainingResult

# Okabe and Ito's, and four more. The page has them as --c0 to --c11, some of them lighter where it is dark.
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d555e", "#b3a600"),
    *("#7b3fa0", "#8c510a", "#9e1b5b", "#6b8e23"),
)
ON_THE_PAGE = {"#000000": "currentColor", "#ffffff": "var(--bg)"} | {c: f"var(--c{i})" for i, c in enumerate(COLOURS)}
GREY = "#808080"  # seen on white and on black alike
DPI = 200  # of the PNGs: 7.2 inches are 1440 pixels
ROWS, PANELS = 24, 12  # in a figure; more are drawn in another one
NAME = 46  # letters of a name in a line
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar is a dollar
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "legend.frameon": False,
}
OWN = re.compile(r"(miou|differences|curves|axis|loss|heads)(-[A-Za-z0-9-]*)?\.(svg|png)")  # files of `drawn`
Item = TypeVar("Item")


@dataclass(frozen=True)
class Chart:
    """A figure. name: of its files; title: what it shows, in words, for those who do not see it."""

    name: str
    title: str
    figure: Figure
    svg: str

    def inline(self) -> Markup:
        """The SVG as part of a page: in its colours and fonts, as wide as there is room."""
        text = self.svg[self.svg.index("<svg") :]
        text = re.sub(r"<style.*?</style>", "", text, count=1)  # it would hold for the whole page
        text = re.sub(r'<g id="[^"]*"', "<g", text)  # of no use, and the same in every chart
        text = re.sub(r" font-family: [^;\"]*;?", "", text.replace("xlink:href", "href"))
        text = re.sub(r"#[0-9a-f]{6}(?=[;\"])", lambda found: ON_THE_PAGE.get(found[0], found[0]), text)
        width, box = re.findall(r'width="([\d.]+)pt".*?viewBox="([^"]*)"', text)[0]
        # as large as the text around it where there is room: 1.42 CSS pixels are a point of the figure
        opening = f'<svg role="img" viewBox="{box}" style="max-width: {1.42 * float(width):.0f}px">'
        return Markup(f"{opening}<title>{escape(self.title)}</title>{text[text.index('>') + 1 :]}")


def draw(arranged: Arranged) -> dict[str, list[Chart]]:
    """Charts by the part of the page that they belong to; only those that have something to draw.

    results, differences, curves; axis NAME; loss NAME, of a pre-training; heads 0, heads 1, ... of the families.
    """
    charts: dict[str, list[Chart]] = {}
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # letters that matplotlib's font lacks; the SVG has the text
        for place, name, title, figure in _figures(arranged):
            charts.setdefault(place, []).append(chart_of(file_name(name), title, figure))
    return charts


def chart_of(name: str, title: str, figure: Figure) -> Chart:
    """A figure as a chart; see `Chart`."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return Chart(name, title, figure, text.getvalue())


def write_charts(charts: dict[str, list[Chart]], directory: Path) -> None:
    """Each as SVG and PNG, whole or not at all; those of an earlier report that this one does not have are deleted."""
    written = set()
    for chart in (chart for of_part in charts.values() for chart in of_part):
        with matplotlib.rc_context(STYLE), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            picture = io.BytesIO()
            chart.figure.savefig(picture, format="png", dpi=DPI, metadata={"Software": None})
        for kind, content in (("svg", chart.svg.encode()), ("png", picture.getvalue())):
            write_whole(directory / f"{chart.name}.{kind}", lambda file, c=content: file.write(c))
            written.add(f"{chart.name}.{kind}")
    for path in directory.glob("*"):
        if path.name not in written and OWN.fullmatch(path.name):
            path.unlink()


def file_name(words: str) -> str:
    """Letters that are safe in a file's name anywhere."""
    return re.sub(r"[^A-Za-z0-9]+", "-", words).strip("-")[:80]


def _figures(a: Arranged) -> Iterator[tuple[str, str, str, Figure]]:
    """The part of the page, the name of the file, what is shown in words, and the figure."""
    for number, some in _parts(a.scored, ROWS):
        words = "; ".join(f"{c.title}: mIoU {percent(c.score)}%" for c in some)
        yield "results", f"miou{number}", words, intervals(some, a.results.majority if a.majority_is_near else None)
    for number, some in _parts(a.asked, PANELS):
        words = "; ".join(f"{minus(a.titles[d.a], a.titles[d.b])}: {points(d.mean)} points" for d in some)
        yield "differences", f"differences{number}", words, differences(some, a)
    for number, some in _parts([c for c in a.scored if any(c.curves)], PANELS):
        yield "curves", f"curves{number}", "Validation mIoU in percent by epoch", curves(some, a.scored[:PANELS])
    for axis in a.axes:
        for number, lines in enumerate(axis.charts, 1):
            name = f"axis-{axis.name}" + (f"-{number}" if len(axis.charts) > 1 else "")
            words = f"mIoU in percent against {spaced(axis.name)}"
            yield f"axis {axis.name}", name, words, axis_lines(axis, lines)
    for p in a.results.pretraining:
        if p.curve:
            yield f"loss {p.name}", f"loss-{p.name}", f"Loss of {p.name} by step", loss(p)
    for number, family in enumerate(a.families):
        if family.tells:
            found = family.found
            name, words = f"heads-{found.score}-{found.kind}", f"mIoU in percent against {found.words} ({found.kind})"
            yield f"heads {number}", name, words, beside_miou(family)


def _parts(items: Sequence[Item], size: int) -> Iterator[tuple[str, Sequence[Item]]]:
    """The first ones, and then "-2" and the next ones, and so on."""
    for start in range(0, len(items), size):
        yield f"-{start // size + 1}" if start else "", items[start : start + size]


def intervals(scored: Sequence[Shown], majority: Majority | None) -> Figure:
    """mIoU of each configuration with its interval, seeds as faint dots; dashed: the majority's."""
    said = [f"{percent(m.mean)} ({percent(m.low)} to {percent(m.high)})" for m in (c.miou for c in scored) if m]
    figure, axes = _rows([c.title for c in scored], said)
    for row, c in enumerate(scored):
        color, m = _colour(c), c.miou
        assert m is not None
        axes.plot([100 * m.low, 100 * m.high], [row, row], color=color, linewidth=1.8)
        axes.plot([100 * run.miou for run in c.runs], [row] * len(c.runs), "o", color=color, alpha=0.35, markersize=4)
        axes.plot(100 * m.mean, row, "o", color=color, markersize=6.5)
    if majority:
        axes.axvline(100 * majority.miou, color=GREY, linestyle="--", linewidth=1)
    axes.set_xlabel("mIoU (%)")
    return figure


def differences(asked: Sequence[Difference], a: Arranged) -> Figure:
    """The differences that were asked for, with their intervals; hollow where none is shown."""
    names = [minus(a.titles[d.a], a.titles[d.b]) for d in asked]
    said = ["difference shown" if d.is_shown else "no difference shown" for d in asked]
    limits = [f"{points(d.mean)} ({points(d.low)} to {points(d.high)})" for d in asked]
    figure, axes = _rows(names, [f"{two}\n{one}" for one, two in zip(said, limits, strict=True)])
    axes.axvline(0, color=GREY, linestyle="--", linewidth=1)
    for row, d in enumerate(asked):
        ink = "black" if d.is_shown else GREY
        axes.plot([100 * d.low, 100 * d.high], [row, row], color=ink, linewidth=1.8)
        axes.plot(100 * d.mean, row, "o", color=ink, markerfacecolor="black" if d.is_shown else "white", markersize=6.5)
    axes.set_xlabel("difference of mIoU (percentage points)")
    return figure


def curves(shown: Sequence[Shown], others: Sequence[Shown]) -> Figure:
    """Validation mIoU by epoch, a panel each: the mean over seeds thick, seeds thin, the means of others faint."""
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(2.4 * columns, 0.3 + 1.7 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, c in zip(panels, shown, strict=False):
        for other in others:
            if other.number != c.number:
                _line(axes, [*other.average], {"color": GREY, "linewidth": 0.8, "alpha": 0.4})
        for curve in c.curves:
            _line(axes, curve, {"color": _colour(c), "linewidth": 0.8, "alpha": 0.6})
        _line(axes, [*c.average], {"color": _colour(c), "linewidth": 2})
        axes.set_title(textwrap.fill(c.title, 26), color=_colour(c))
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        _grid(axes)
    for axes in panels[len(shown) :]:
        axes.remove()
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel("validation mIoU (%)", fontsize=9)
    return figure


def _line(axes: Axes, curve: Curve, look: Mapping[str, Any], unit: float = 100.0) -> None:
    """Of the points that are known."""
    known = [(at, unit * value) for at, value in curve if value is not None]
    if known:
        axes.plot(*zip(*known, strict=True), marker="o" if len(known) == 1 else None, **look)  # one point is no line


def axis_lines(axis: VariedAxis, lines: Sequence[Line]) -> Figure:
    """mIoU against the values of an axis, with intervals, seeds as faint dots. Numbers over a decade: logarithmic."""
    figure = Figure(figsize=(4.8, 2.9 + 0.16 * len(lines)), layout="constrained")
    axes, values = figure.add_subplot(), axis.values
    numbers = [value for value in values if not isinstance(value, str)] if is_numeric(values) else []
    is_log = bool(numbers) and min(numbers) > 0 and max(numbers) / min(numbers) >= 10
    for index, line in enumerate(lines):
        color, beside = COLOURS[index], (index - (len(lines) - 1) / 2) / 60  # so that whiskers do not hide each other
        at = [float(values.index(value)) + 5 * beside for value, _ in line.points]
        if numbers:
            low, high = min(numbers), max(numbers)
            own = [value for value, _ in line.points if not isinstance(value, str)]
            at = [x * (high / low) ** beside if is_log else x + (high - low) * beside for x in own]
        mious = [c.miou for _, c in line.points if c.miou]
        means = [100 * m.mean for m in mious]
        limits = [[100 * (m.mean - m.low) for m in mious], [100 * (m.high - m.mean) for m in mious]]
        seeds = [(x, 100 * run.miou) for x, (_, c) in zip(at, line.points, strict=True) for run in c.runs]
        axes.plot(*zip(*seeds, strict=True), "o", color=color, alpha=0.35, markersize=4)
        style = "o-" if numbers else "o:"
        axes.errorbar(at, means, limits, fmt=style, color=color, capsize=2, label=_label(line.label))
    if is_log:
        axes.set_xscale("log")
    if numbers:
        axes.set_xticks(sorted(numbers), [f"{value:.4g}".replace("-", "−") for value in sorted(numbers)])
    else:
        axes.set_xticks(range(len(values)), [textwrap.fill(plain(value), 14) for value in values])
    axes.minorticks_off()
    axes.set(xlabel=spaced(axis.name) + (", logarithmic" if is_log else ""), ylabel="mIoU (%)")
    _grid(axes)
    figure.legend(loc="outside lower center", fontsize=8)
    return figure


def loss(p: PretrainingResult) -> Figure:
    """The loss of a pre-training by step."""
    figure = Figure(figsize=(3, 2), layout="constrained")
    axes = figure.add_subplot()
    _line(axes, [(point.step, point.loss) for point in p.curve], {"color": "black"}, unit=1.0)
    axes.set(xlabel="step", ylabel="loss")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    _grid(axes)
    return figure


def beside_miou(family: Family) -> Figure:
    """A score of the attention heads beside mIoU; seeds as faint dots."""
    figure = Figure(figsize=(4.8, 2.9 + 0.16 * len(family.members)), layout="constrained")
    axes, found = figure.add_subplot(), family.found
    for at, value, c in family.dots:
        axes.plot(at, 100 * value, "o", color=_colour(c), alpha=0.35, markersize=4)
    for c in family.members:
        x = c.mean_heads[found.score]
        assert x is not None  # as of all members
        axes.plot(x, 100 * c.score, "o", color=_colour(c), markersize=7, label=_label(c.title))
    axes.set(xlabel=textwrap.fill(f"{found.words} ({found.kind})", 60), ylabel="mIoU (%)")
    _grid(axes)
    figure.legend(loc="outside lower center", fontsize=8)
    return figure


def _colour(c: Shown) -> str:
    """That of the page, in every figure."""
    return COLOURS[c.number % len(COLOURS)]


def _rows(names: Sequence[str], said: Sequence[str]) -> tuple[Figure, Axes]:
    """A row for each name, the first on top: the name and what is said of it, and room for a line below."""
    names = [textwrap.fill(name, NAME) for name in names]
    lines = max(text.count("\n") for text in (*names, *said)) + 1
    height = 0.22 + 0.15 * lines  # inches of a row
    figure = Figure(figsize=(4.8, 0.55 + height * len(names)), layout="constrained")
    axes = figure.add_subplot()
    above = -0.13 / height  # from the line of a row to the words over it
    for row, (name, words) in enumerate(zip(names, said, strict=True)):
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # under the words, so that no line crosses them
        place = {"transform": axes.get_yaxis_transform(), "va": "bottom", "bbox": paper}
        axes.text(0, row + above, name, **place)
        axes.text(1, row + above, words, ha="right", fontsize=8, **place)
    axes.set_ylim(len(names) - 1 + 0.15 / height, -(height - 0.1) / height)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _grid(axes: Axes) -> None:
    axes.grid(color=GREY, alpha=0.25, linewidth=0.8)
    axes.set_axisbelow(True)


def _label(words: str) -> str:
    """In a legend, where matplotlib leaves out what starts with an underscore."""
    return textwrap.fill(f" {words}" if words.startswith("_") else words, 60, drop_whitespace=False)
