"""Figures of scores: a confusion matrix, a reliability diagram, the heads that a fusion uses."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Num
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from regard.evaluation.scores import expected_calibration_error
from regard.files import write_whole
from regard.results import HeadShares

NUMBERED = 25  # classes up to which cells carry their number
CELL = 0.42, 0.13  # inches of a cell's side, with a number and without
LETTERS = 9.0, 5.5  # points of a class name, with a number and without


def save_figure(path: Path, figure: Figure, dpi: int = 150) -> None:
    """A PNG of a figure, whole or not at all."""
    write_whole(path, lambda to: figure.savefig(to, dpi=dpi, format="png"))


def confusion_chart(counts: Num[np.ndarray, "classes classes"], classes: Sequence[str], title: str) -> Figure:
    """Rows are true classes: what share of their pixels, in %, is taken for each class; grey where there are none."""
    truth = counts.sum(axis=1, keepdims=True)
    shares = np.divide(100.0 * counts, truth, out=np.full(counts.shape, np.nan), where=truth > 0)
    is_numbered = len(classes) <= NUMBERED
    letters = LETTERS[0 if is_numbered else 1]
    side = len(classes) * CELL[0 if is_numbered else 1]
    names = max(map(len, classes)) * letters * 0.6 / 72  # inches: a letter is about 0.6 of its height wide
    figure = Figure(figsize=(max(5.0, side + names + 1.6), max(4.0, side + names + 1.0)), layout="constrained")
    axes = figure.add_subplot(facecolor="0.85")
    image = axes.imshow(shares, vmin=0, vmax=100, cmap="Blues")
    axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=letters)
    axes.set_yticks(range(len(classes)), classes, fontsize=letters)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(title, fontsize=10, wrap=True)
    figure.colorbar(image, ax=axes, label="% of the true class's pixels", shrink=0.6)
    if is_numbered:
        _number_cells(axes, np.where(shares >= 0.5, shares, np.nan), 100.0, 7.5)  # what would read 0 is left out
    return figure


def _number_cells(
    axes: Axes, values: Num[np.ndarray, "rows columns"], most: float, size: float, pale: str = "black"
) -> None:
    """Whole numbers over cells that go from white at 0 to dark at `most`; none where the value is nan. pale: their
    colour over what is not dark.
    """
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value > 0.55 * most else pale
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=size, color=colour)


def reliability_chart(bins: Num[np.ndarray, "bins 3"], title: str) -> Figure:
    """`scores.calibration_bins`: how often answers of a confidence are right, over how many there are."""
    pixels, confidence, right = bins.T
    used, edges = pixels > 0, np.linspace(0, 1, len(bins) + 1)
    figure = Figure(figsize=(5, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.bar(edges[:-1][used], right[used] / pixels[used], width=1 / len(bins), align="edge", edgecolor="white")
    above.plot(confidence[used] / pixels[used], right[used] / pixels[used], "o", color="black", markersize=3)
    above.plot([0, 1], [0, 1], "--", color="0.5")
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="share of right answers")
    above.set_title(f"{title}\nexpected calibration error {100 * expected_calibration_error(bins):.2f}%", fontsize=10)
    below.bar(edges[:-1], pixels / pixels.sum(), width=1 / len(bins), align="edge", color="0.6", edgecolor="white")
    below.set(xlabel="confidence (probability of the answer)", ylabel="share of pixels")
    return figure


def heads_chart(levels: Sequence[HeadShares], title: str) -> Figure:
    """The share of each attention head in a fusion, in %, a row per level, and how strongly the level is fused.

    Grey: heads that the fusion does not see, without a number, and shares of a level that it hardly uses.
    """
    most = 1 + max(max(level.heads) for level in levels)
    shares = np.full((len(levels), most), np.nan)
    for row, level in enumerate(levels):
        shares[row, level.heads] = np.array(level.weights) * 100
    figure = Figure(figsize=(3.2 + 0.55 * most, 1.6 + 0.42 * len(levels)), layout="constrained")
    axes = figure.add_subplot(facecolor="0.85")
    most_share, unused = float(np.nanmax(shares)), np.array([[level.hardly_used] for level in levels])
    image = axes.imshow(np.where(unused, np.nan, shares), vmin=0, vmax=most_share, cmap="Blues", aspect="auto")
    axes.imshow(np.where(unused, shares, np.nan), vmin=0, vmax=3 * most_share, cmap="Greys", aspect="auto")
    axes.set_xticks(range(most))
    axes.set_yticks(range(len(levels)), [_level(level) for level in levels])
    axes.set(xlabel="head")
    axes.set_title(title, fontsize=10, wrap=True)
    figure.colorbar(image, ax=axes, label="% of the mix")
    _number_cells(axes, np.where(unused, np.nan, shares), most_share, 8.0)
    _number_cells(axes, np.where(unused, shares, np.nan), 3 * most_share, 8.0, "0.5")
    return figure


def _level(level: HeadShares) -> str:
    return f"block {level.block}, strength {level.strength:.3f}{', hardly used' if level.hardly_used else ''}"
