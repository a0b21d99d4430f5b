"""What `regard score` leaves behind: one report as JSON, its rows as CSV, and two pictures."""

import csv
import io
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from regard.errors import InputError
from regard.files import write_json

SCORES = {  # a score of heads -> its title in pictures
    "entropy_share": "entropy, share of the most",
    "area": "area of the mask, share",
    "distance": "distance from other heads, bits",
    "consistency": "consistency between views",
    "consistency_elsewhere": "consistency of different images",
    "jaccard": "Jaccard of the mask",
    "information": "information on classes, bits",
    "position": "information by position alone, bits",
    "information_beyond_position": "information beyond position, bits",
    "importance": "importance: drop in mIoU",
}


def report_scores(
    given: dict[str, Any],
    baseline: dict[str, Any] | None,
    found_importance: dict[str, Any] | None,
    protocol: dict[str, Any],
) -> dict[str, Any]:
    """All of it as one value for JSON: protocol, scores, those of random weights, and importance beside its heads."""
    blocks = [dict(block) for block in given["blocks"]]
    if found_importance:
        empty = dict.fromkeys(("importance", "importance_low", "importance_high"))
        for block in blocks:
            of_head = found_importance["heads"]
            block["heads"] = [row | of_head.get((block["block"], row["head"]), empty) for row in block["heads"]]
    report: dict[str, Any] = {"regard": version("regard"), "protocol": protocol, **given, "blocks": blocks}
    if found_importance:
        report["importance"] = {key: value for key, value in found_importance.items() if key != "heads"}
    if baseline:
        about = f"random: one draw, seed {protocol['seed']}; its spread over draws is not in the standard errors"
        report["baseline"] = {"weights": about, **baseline}
    return report


def rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """One flat row per head, of the given weights and then of random ones, as in scores.csv."""
    kind = report["protocol"]["kind"]
    every = [("given", report["blocks"])]
    if "baseline" in report:
        every.append(("random", report["baseline"]["blocks"]))
    return [
        {"weights": weights, "kind": kind, "block": block["block"], "stride": block["stride"], **row}
        for weights, blocks in every
        for block in blocks
        for row in block["heads"]
    ]


def check_folder(out: Path) -> None:
    """InputError when files cannot be written there, before hours are spent on what to write."""
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"{nearest} is no folder that can be written to: choose another --out")


def write_scores(report: dict[str, Any], out: Path) -> None:
    """scores.json, scores.csv, heads.png and, for two images or more with labels, information.png: each whole, the JSON
    last.
    """
    out.mkdir(parents=True, exist_ok=True)
    flat = rows(report)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat[0]), lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(flat)
    _write(out / "heads.png", lambda path: _save(heat_maps(report), path))
    if any(row.get("jaccard") is not None and row["information_beyond_position"] is not None for row in flat):
        _write(out / "information.png", lambda path: _save(scatter(report), path))
    else:
        (out / "information.png").unlink(missing_ok=True)  # of an earlier scoring, with labels
    _write(out / "scores.csv", lambda path: path.write_text(text.getvalue()))
    write_json(out / "scores.json", report)


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    write(partial)
    partial.replace(path)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png", dpi=110)


def heat_maps(report: dict[str, Any]) -> Figure:
    """One heat map per score: blocks down, heads across, their mean map last."""
    blocks = report["blocks"]
    every = [row for block in blocks for row in block["heads"]]
    scores = [score for score in SCORES if any(row.get(score) is not None for row in every)]
    most = max(len(block["heads"]) for block in blocks)  # heads and the mean
    across = min(len(scores), 4)
    down = -(-len(scores) // across)
    width, height = max(3.2, 0.42 * most + 1.2), max(1.9, 0.3 * len(blocks) + 1.0)
    figure = Figure((across * width, down * height + 0.4), layout="constrained")
    for number, score in enumerate(scores):
        values = np.full((len(blocks), most), np.nan)
        for row, block in enumerate(blocks):
            found = [np.nan if head[score] is None else head[score] for head in block["heads"]]
            values[row, : len(found) - 1], values[row, -1] = found[:-1], found[-1]
        axes = figure.add_subplot(down, across, number + 1)
        axes.set_facecolor("0.85")  # where there is no such head
        axes.imshow(np.ma.masked_invalid(values), cmap="viridis", aspect="auto")
        middle = (np.nanmin(values) + np.nanmax(values)) / 2
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                ink = "black" if value > middle else "white"
                axes.text(column, row, f"{value:z.3f}", ha="center", va="center", fontsize=6, color=ink)
        axes.set_title(SCORES[score], fontsize=9)
        axes.set_xticks(range(most), [*map(str, range(most - 1)), "mean"], fontsize=7)
        axes.set_yticks(range(len(blocks)), [str(block["block"]) for block in blocks], fontsize=7)
        axes.set_xlabel("head", fontsize=7)
        axes.set_ylabel("block", fontsize=7)
    figure.suptitle(_title(report), fontsize=9)
    return figure


def scatter(report: dict[str, Any]) -> Figure:
    """Information beyond position, with its standard error, against Jaccard; a point per head, hollow where random."""
    figure = Figure((6.4, 4.8), layout="constrained")
    axes = figure.add_subplot()
    blocks = [block["block"] for block in report["blocks"]]
    ramp = colormaps["viridis"](np.linspace(0, 0.9, len(blocks)))  # the first block darkest
    colours = dict(zip(blocks, ramp, strict=True))
    for row in rows(report):
        hollow = row["weights"] == "random"
        value, error = (row[name] for name in ("information_beyond_position", "information_beyond_position_se"))
        if value is None:
            continue
        axes.errorbar(
            row["jaccard"],
            value,
            error or 0.0,
            fmt="D" if row["head"] == "mean" else "o",
            markerfacecolor="white" if hollow else colours[row["block"]],
            color=colours[row["block"]],
            elinewidth=0.7,
        )
    axes.axhline(0, color="0.7", linewidth=0.7, zorder=0)
    for block, colour in colours.items():
        axes.plot([], [], "o", color=colour, label=f"block {block}")
    axes.plot([], [], "D", color="grey", label="mean of a block's heads")
    if "baseline" in report:
        axes.plot([], [], "o", markerfacecolor="white", color="grey", label="random weights")
    axes.set_xlabel("Jaccard of the mask, mean over objects")
    axes.set_ylabel("information on classes beyond position, bits ± standard error")
    axes.legend(fontsize=7)
    axes.set_title(_title(report), fontsize=9)
    return figure


def _title(report: dict[str, Any]) -> str:
    protocol = report["protocol"]
    return (
        f"{protocol['backbone']}, {protocol['kind']} attention\n{report['images']} images of {protocol['split']}, "
        f"protocol {protocol['name']}, size {protocol['size']}"
    )
