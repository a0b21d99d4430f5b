"""The report of `regard compare` and `regard ablate`: one HTML file made from `results.json` alone, which opens without
a network, and the table and figures for a paper beside it (`figures.py`).

Nothing is computed here that a reader could dispute: scores and intervals come from the JSON (`schema.py`); this module
orders them, `findings.py` puts them into words, `report.html.jinja` draws them.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from PIL import Image

from regard.errors import InputError
from regard.files import write_whole
from regard.reports import findings, page
from regard.reports.figures import write_figures
from regard.reports.page import Axis, Number, colour, mean, plain
from regard.reports.schema import read_results

SHOWN_CLASSES = 24  # more are folded away, the most frequent ones first
SHOWN = 12  # configurations, answers or examples in a row; more are folded away
LINES = 8  # in a chart: as many as there are colours
COLUMNS = ("backbone", "pretraining", "fusion", "head", "label_fraction", "frozen")  # of the table, where they vary
SAME = {"backbone": "backbone", "pretraining": "weights", "fusion": "fusion", "head": "head"}  # said where they do not
GREY = 128  # of an attention value that is missing: no colour of the map of colours is grey
METHODS = {"barlow_twins": "Barlow Twins", "dino": "DINO"}


def write_report(directory: Path) -> Path:
    """From `directory/results.json`: `report.html`, whose path comes back, results.csv, table.tex and figures/.

    Each is written whole or not at all. Raises InputError, before anything is written, where the results are wrong.
    """
    results = read_results(directory / "results.json")
    drawn = ordered(results)
    html = render(results, drawn)
    write_figures(results, drawn, directory)
    write_whole(directory / "report.html", lambda file: file.write(html.encode()))
    return directory / "report.html"


def render(results: Mapping[str, Any], drawn: Mapping[str, Any]) -> str:
    """The page, from checked results and how `ordered` puts them."""
    filters = {"heat": heat, "under": under, "spaced": spaced}
    return page.render("report.html.jinja", filters, r=results, METHODS=METHODS, **drawn)


def ordered(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the template draws, in its order: configurations with a score, best first, and all that is made of them."""
    configurations = [described(c, i, results) for i, c in enumerate(results["configurations"])]
    by_name = {c["name"]: c for c in configurations}
    titles = {c["name"]: c["title"] for c in configurations}
    scored = sorted((c for c in configurations if c["miou"] and c["runs"]), key=lambda c: -c["miou"]["mean"])
    differences = [{**d, "shown": findings.is_shown(d)} for d in results["differences"]]
    asked = [d for d in differences if d["question"]]
    for d in differences:
        d["verdict"] = findings.verdict(d)
        d["answer"] = findings.answer(d, titles)
        d["caution"] = findings.caution(d, len(asked))
    seeds = results["settings"].get("seeds")
    if not isinstance(seeds, list):
        seeds = sorted({run["seed"] for c in configurations for run in c["runs"]})
    shares = results["data"]["class_share"]
    classes = list(range(len(shares)))
    if len(classes) > SHOWN_CLASSES:
        classes.sort(key=lambda k: shares[k], reverse=True)
    varying = [key for key in COLUMNS if len({c[key] for c in scored}) > 1]
    attention = [a for example in results["examples"] for a in example["attention"].values()]
    families = [family(c, scored, len(results["correlations"])) for c in results["correlations"]]
    most_labels = all(len({m["label_fraction"] for m in f["members"]}) < 2 for f in families)
    gaps = [(d, class_differences(by_name[d["a"]], by_name[d["b"]])) for d in asked]
    axes = [axis_of(name, results, scored, differences) for name, values in results["axes"].items() if len(values) > 1]
    return {
        "scored": scored,
        "waiting": [c for c in configurations if c not in scored],
        "by_name": by_name,
        "titles": titles,
        "seeds": seeds,
        "order": classes,
        "shown_classes": SHOWN_CLASSES,
        "shown": SHOWN,
        "few_seeds": findings.few_seeds(scored, titles),
        "interval": findings.interval_kind(scored, titles),
        "paired_interval": findings.paired_kind(differences),
        "trained_by": commits(results),
        "attention_gaps": any(None in row for a in attention for head in a["heads"] for row in head),
        "spread": [v for c in scored for v in (c["miou"]["low"], c["miou"]["high"], *(r["miou"] for r in c["runs"]))],
        "curves": [point for c in scored for curve in c["curves"] for point in curve],
        "varies": {key: key in varying for key in COLUMNS},
        "same": [(word, scored[0][key] or "random") for key, word in SAME.items() if scored and key not in varying],
        "measured": {
            key: any(c[key] is not None for c in scored)
            for key in ("peak_memory_mb", "milliseconds_per_image", "images_per_second")
        },
        "differences": differences,
        "asked": asked,
        "leading": findings.leading(scored, differences, titles) if scored else "",
        "following": findings.following(scored, differences, titles),
        "axes": axes,
        "by_class": [(d, values) for d, values in gaps if any(value is not None for value in values)],
        "head_scores": list(dict.fromkeys(key for c in scored for key in c["heads"])),
        "families": families,
        "most_labels": most_labels and "label_fraction" in varying,
    }


def described(configuration: Mapping[str, Any], index: int, results: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with its colour, its name in full, and means over its seeds."""
    runs = configuration["runs"]
    curves = [[(p["epoch"], p["val_miou"]) for p in run["curve"]] for run in runs]
    known = [found for curve in curves if (found := {epoch: value for epoch, value in curve if value is not None})]
    together = sorted(set(known[0]).intersection(*known[1:])) if known else []  # with some of the seeds it would jump
    heads = [run["heads"] or {} for run in runs]
    tags = _tags(configuration, results)
    return {
        **configuration,
        "number": index,
        "color": colour(index),
        "tags": tags,
        "title": f"{configuration['name']} ({', '.join(tags)})" if tags else configuration["name"],
        "iou": [mean(values) for values in zip(*(run["iou"] for run in runs), strict=True)],
        "curves": curves,
        "average": [(epoch, mean(curve[epoch] for curve in known)) for epoch in together],
        "heads": {key: mean(h.get(key) for h in heads) for key in dict.fromkeys(k for h in heads for k in h)},
    }


def commits(results: Mapping[str, Any]) -> list[tuple[str | None, list[str]]]:
    """Which commits trained which runs; none where all were trained by the commit that made the results."""
    found: dict[str | None, list[str]] = {}
    for c in results["configurations"]:
        for run in c["runs"]:
            if "commit" in run:
                found.setdefault(run["commit"], []).append(f"{c['name']}, seed {run['seed']}")
    return list(found.items()) if set(found) - {results["commit"]} else []


def _tags(configuration: Mapping[str, Any], results: Mapping[str, Any]) -> list[str]:
    """What a name leaves unsaid: the share of labels, and frozen, where they vary. Of an axis the name tells it."""

    def varies(key: str) -> bool:
        return key not in results["axes"] and len({c[key] for c in results["configurations"]}) > 1

    tags = [f"{100 * configuration['label_fraction']:g}% of labels"] if varies("label_fraction") else []
    return tags + ([("frozen" if configuration["frozen"] else "fine-tuned")] if varies("frozen") else [])


def axis_of(
    name: str,
    results: Mapping[str, Any],
    scored: Sequence[Mapping[str, Any]],
    differences: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """mIoU against the values of an axis: one line for each combination of the rest that has two values or more.

    Of an ablation one axis at a time that is one line, through the base: the others depart elsewhere.
    """
    values = results["axes"][name]
    groups: dict[str, dict[str, Any]] = {}
    for c in scored:
        if name in c["at"]:
            rest = {key: value for key, value in c["at"].items() if key != name}
            if results["kind"] == "compare":  # the name goes on after " · " with what is varied: see `plan.spread`
                rest["configuration"] = c["name"].split(" · ")[0]
            line = groups.setdefault(json.dumps(rest, sort_keys=True), {"rest": rest, "points": []})
            line["points"].append((c["at"][name], c))
    lines = [line for line in groups.values() if len({json.dumps(value) for value, _ in line["points"]}) > 1]
    x = Axis.of(values)
    told = [key for key in dict.fromkeys(k for line in lines for k in line["rest"]) if _differs(key, lines)]
    for index, line in enumerate(lines):
        line["points"].sort(key=lambda point: values.index(point[0]))
        line["color"] = colour(index)
        words = [
            plain(line["rest"].get(k)) if k == "configuration" else f"{spaced(k)} {plain(line['rest'].get(k))}"
            for k in told
        ]
        line["label"] = ", ".join(words) or line["rest"].get("configuration") or "all else as in the base"
        beside = (index % LINES - (min(len(lines), LINES) - 1) / 2) * 0.08  # so that whiskers do not hide each other
        line["drawn"] = [(values.index(v) + beside if x.words else v, c) for v, c in line["points"]]
    return {
        "name": spaced(name),
        "x": x,
        "charts": [lines[start : start + LINES] for start in range(0, len(lines), LINES)],
        "spread": [v for line in lines for _, c in line["points"] for v in _scores(c)],
        "effect": findings.axis_effect(spaced(name), lines, differences),
    }


def _differs(key: str, lines: Sequence[Mapping[str, Any]]) -> bool:
    return len({json.dumps(line["rest"].get(key)) for line in lines}) > 1


def _scores(c: Mapping[str, Any]) -> list[Number]:
    return [c["miou"]["low"], c["miou"]["high"], *(run["miou"] for run in c["runs"])]


def class_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[Number, Number, Number] | None]:
    """Per class IoU of `a` minus `b`: mean, lowest and highest over the seeds that both have; None: an absent class."""
    pairs = [(x["iou"], y["iou"]) for x in a["runs"] for y in b["runs"] if x["seed"] == y["seed"]]
    made: list[tuple[Number, Number, Number] | None] = []
    for k in range(len(pairs[0][0]) if pairs else 0):
        gaps = [x[k] - y[k] for x, y in pairs if x[k] is not None and y[k] is not None]
        made.append((sum(gaps) / len(gaps), min(gaps), max(gaps)) if gaps else None)
    return made


def family(c: Mapping[str, Any], scored: Sequence[Mapping[str, Any]], looked: int) -> dict[str, Any]:
    """A correlation, one of so many on the page, with the configurations that are in it."""
    members = [s for s in scored if s["name"] in c["members"] and s["heads"].get(c["score"]) is not None]
    dots = [
        (run["heads"][c["score"]], run["miou"], s)
        for s in members
        for run in s["runs"]
        if run["heads"] and run["heads"].get(c["score"]) is not None
    ]
    return {**c, "members": members, "dots": dots, "sentence": findings.correlation(c, members, looked)}


def spaced(name: str) -> str:
    """A key as words: label_fraction -> 'label fraction'."""
    return name.replace("_", " ")


def heat(head: Sequence[Sequence[Number | None]]) -> str:
    """One head's map, scaled to its own maximum, in magma, one pixel a position, grey where missing."""
    weights = np.array(head, dtype=np.float64)  # None reads as NaN
    missing = np.isnan(weights)
    weights[missing] = 0
    colours = np.round(255 * colormaps["magma"](weights / max(weights.max(), 1e-12))[..., :3]).astype(np.uint8)
    colours[missing] = GREY
    return page.data_uri(colours)


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
    return f"--image: url('{page.data_uri(np.asarray(image))}'); --aspect: {aspect}"
