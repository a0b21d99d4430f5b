"""What `regard score` leaves behind: one report as JSON, its rows as CSV, and two pictures."""

import csv
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from regard.errors import InputError
from regard.evaluation.statistics import Estimate
from regard.files import write_whole
from regard.results import (
    VERSION,
    BlockRow,
    HeadRow,
    ImportanceSetting,
    ScoredHeads,
    ScoreReport,
    ScoreSetting,
    write_stored,
)

SCORES = {  # a score of heads -> its title in pictures
    "entropy_share": "entropy, share of the most",
    "area": "area of the mask, share",
    "distance": "distance from other heads, bits",
    "cls_mass": "attention to CLS, share",
    "register_mass": "attention to registers, share",
    "consistency": "consistency between views",
    "consistency_elsewhere": "consistency of different images",
    "jaccard": "Jaccard of the mask",
    "information": "information on classes, bits",
    "position": "information by position alone, bits",
    "information_beyond_position": "information beyond position, bits",
    "importance": "importance: drop in mIoU",
}


def report_scores(
    given: ScoredHeads,
    random: ScoredHeads | None,
    importance: tuple[ImportanceSetting, Mapping[tuple[int, int], Estimate]] | None,
    setting: ScoreSetting,
) -> ScoreReport:
    """All of it, with the importance of (block, head) beside the other scores of that head."""
    measured = None
    if importance:
        measured, drops = importance
        for block in given.blocks:
            for head, row in enumerate(block.heads[:-1]):  # the mean map is no head
                drop = drops[block.block, head]
                row.importance, row.importance_low, row.importance_high = drop.mean, drop.low, drop.high
    return ScoreReport(
        schema=VERSION, regard=version("regard"), protocol=setting, given=given, random=random, importance=measured
    )


def rows(report: ScoreReport) -> Iterator[tuple[str, BlockRow, HeadRow]]:
    """Whose ("given" or "random" weights), of which block, and the scores of a head."""
    for weights, scored in (("given", report.given), ("random", report.random)):
        for block in scored.blocks if scored else ():
            for row in block.heads:
                yield weights, block, row


def present(report: ScoreReport) -> list[str]:
    """The scores of heads that there are, with their errors."""
    names = [field.name for field in fields(HeadRow) if field.name != "head"]
    return [name for name in names if any(getattr(row, name) is not None for _, _, row in rows(report))]


def check_folder(out: Path) -> None:
    """InputError when files cannot be written there, before hours are spent on what to write."""
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"{nearest} is no folder that can be written to: choose another --out")


def write_scores(report: ScoreReport, out: Path) -> None:
    """scores.json, scores.csv, heads.png and, for two images or more with labels, information.png: each whole, the JSON
    last.
    """
    text, names = io.StringIO(), present(report)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["weights", "kind", "block", "stride", "head", *names])
    for weights, block, row in rows(report):
        about = [weights, report.protocol.kind, block.block, block.stride, row.head]
        writer.writerow([*about, *(getattr(row, name) for name in names)])
    _save(head_table(report), out / "heads.png")
    if {"jaccard", "information_beyond_position"} <= set(names):
        _save(scatter(report), out / "information.png")
    else:
        (out / "information.png").unlink(missing_ok=True)  # of an earlier scoring, with labels
    write_whole(out / "scores.csv", lambda file: file.write(text.getvalue().encode()))
    write_stored(out / "scores.json", report)


def _save(figure: Figure, path: Path) -> None:
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=110))


def head_table(report: ScoreReport) -> Figure:
    """A row for each head, and for the mean map of its block in grey; a column for each score, with a bar from 0."""
    listed = [(block.block, row) for block in report.given.blocks for row in block.heads]
    scores, places = [score for score in SCORES if score in present(report)], range(len(listed))
    figure = Figure((1.3 * len(scores) + 1.2, 0.19 * len(listed) + 1.3), layout="constrained")
    for axes, score in zip(figure.subplots(1, len(scores), sharey=True, squeeze=False)[0], scores, strict=True):
        values = np.array([getattr(row, score) for _, row in listed], dtype=np.float64)  # None is NaN: no bar
        colours = ["0.7" if row.head == "mean" else "tab:blue" for _, row in listed]
        axes.barh(places, values, 0.75, color=colours, alpha=0.6)
        low, high = (float(end(values, initial=0, where=np.isfinite(values))) for end in (np.min, np.max))
        axes.set_xlim(low, max(low + 2 * (high - low), 1e-9))  # the right half is for the numbers
        for place, value in zip(places, values, strict=True):
            number = f"{value:z.3f}" if np.isfinite(value) else "–"
            axes.text(1, place, number, ha="right", va="center", fontsize=7, transform=axes.get_yaxis_transform())
        axes.axvline(0, color="0.5", linewidth=0.7)
        axes.set_title(fill(SCORES[score], 16), fontsize=8, loc="left")
        axes.set_xticks([])
        axes.set_yticks(places, [f"block {block}, {_head(row)}" for block, row in listed], fontsize=7)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_ylim(len(listed) - 0.5, -0.5)
        for place in places:
            if listed[place][1].head == "mean" and place < places[-1]:
                axes.axhline(place + 0.5, color="0.8", linewidth=0.7)
    figure.suptitle(_title(report), fontsize=9, x=0.01, ha="left")
    return figure


def _head(row: HeadRow) -> str:
    return "mean map" if row.head == "mean" else f"head {row.head}"


def scatter(report: ScoreReport) -> Figure:
    """Information beyond position, with its standard error, against Jaccard; a point per head, hollow where random."""
    figure = Figure((6.4, 4.8), layout="constrained")
    axes = figure.add_subplot()
    blocks = [block.block for block in report.given.blocks]
    ramp = colormaps["viridis"](np.linspace(0, 0.9, len(blocks)))  # the first block darkest
    colours = dict(zip(blocks, ramp, strict=True))
    for weights, block, row in rows(report):
        color, value = colours[block.block], row.information_beyond_position
        if row.jaccard is None or value is None:
            continue
        axes.errorbar(
            row.jaccard,
            value,
            row.information_beyond_position_se or 0.0,
            fmt="D" if row.head == "mean" else "o",
            markerfacecolor="white" if weights == "random" else color,
            color=color,
            elinewidth=0.7,
        )
    axes.axhline(0, color="0.7", linewidth=0.7, zorder=0)
    for block, colour in colours.items():
        axes.plot([], [], "o", color=colour, label=f"block {block}")
    axes.plot([], [], "D", color="grey", label="mean of a block's heads")
    if report.random:
        axes.plot([], [], "o", markerfacecolor="white", color="grey", label="random weights")
    axes.set_xlabel("Jaccard of the mask, mean over objects")
    axes.set_ylabel("information on classes beyond position, bits ± standard error")
    axes.legend(fontsize=7)
    axes.set_title(_title(report), fontsize=9)
    return figure


def _title(report: ScoreReport) -> str:
    protocol = report.protocol
    few = ", too few groups for errors" if protocol.few_groups else ""
    return (
        f"{protocol.backbone}, {protocol.kind} attention\n{report.given.images} images of {protocol.split}, "
        f"protocol {protocol.name}, size {protocol.size}{few}"
    )
