"""The report of `regard compare` and `regard ablate`: one HTML file made from `results.json` alone, which opens without
a network, and the tables and figures for a paper beside it.

Scores and intervals come from the JSON; `arranged` puts them in order, `findings` into words, `figures` draws them, and
`report.html.jinja` is the page.
"""

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from html import unescape
from pathlib import Path
from urllib.parse import quote

import numpy as np
from matplotlib import colormaps
from PIL import Image

from regard.errors import InputError
from regard.files import write_whole
from regard.pictures.pages import data_uri
from regard.reports import findings
from regard.reports.arranged import Arranged, Shown, arrange
from regard.reports.figures import Chart, draw, write_charts
from regard.reports.page import RESULTS_FILE
from regard.reports.page import render as render_page
from regard.reports.tables import table_csv, table_latex
from regard.results import LEAST_STRENGTH, Example, HeadMaps, StudyResults, read_stored

SHOWN_CLASSES = 24  # more are folded away, the most frequent ones first
SHOWN = 12  # configurations or answers in a row; more are folded away
SHOWN_EXAMPLES = 3  # images; the others are folded away
BESIDE = 3  # heads beside an image
SAME = {
    "backbone": "backbone",
    "pretraining": "weights",
    "fusion": "fusion",
    "head": "head",
    "refiner": "refiner",
}  # where they do not
GREY = 128  # of an attention value that is missing: no colour of the map of colours is grey
METHOD_NAMES = {"barlow_twins": "Barlow Twins", "dino": "DINO", "supervised": "supervised training"}


def write_report(directory: Path) -> Path:
    """From `directory/results.json`: `report.html`, whose path comes back, results.csv, table.tex and figures/.

    Pages that lie in folders beside it, such as an explorer's, are linked. Each is written whole or not at all. Raises
    InputError, before anything is written, where the results are wrong.
    """
    arranged = arrange(read_stored(directory / RESULTS_FILE, StudyResults))
    charts = draw(arranged)
    html = render(arranged, charts, beside(directory))
    write_whole(directory / "results.csv", lambda file: file.write(table_csv(arranged.results).encode()))
    write_whole(directory / "table.tex", lambda file: file.write(table_latex(arranged.scored).encode()))
    write_charts(charts, directory / "figures")
    write_whole(directory / "report.html", lambda file: file.write(html.encode()))
    return directory / "report.html"


def beside(directory: Path) -> dict[str, str]:
    """The pages in the folders of a study's folder, other studies aside: where, and what they are called."""
    found = {}
    for page in sorted(page for page in directory.glob("*/*.html") if not (page.parent / RESULTS_FILE).is_file()):
        title = re.search("<title>(.*?)</title>", page.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
        found[quote(page.relative_to(directory).as_posix())] = (
            unescape(title[1]).partition(" – ")[0] if title else page.name
        )
    return found


def render(a: Arranged, charts: dict[str, list[Chart]], pages: Mapping[str, str] = {}) -> str:
    """The page. pages: others to link, where and what they are called."""
    r, scored, varying = a.results, a.scored, a.varying
    shares = r.data.class_share
    classes = list(range(len(shares)))
    if len(classes) > SHOWN_CLASSES:
        classes.sort(key=lambda k: -shares[k])
    maps = [head for e in r.examples for found in e.attention.values() for head in found.heads]
    costs = ("peak_memory_mb", "milliseconds_per_image")
    alike = {word: getattr(scored[0], key) or "random" for key, word in SAME.items() if scored and key not in varying}
    same = [pair for pair in alike.items() if pair != ("refiner", "none")]
    equal_labels = all(len({c.label_fraction for c in family.members}) < 2 for family in a.families)
    values = {
        **{"a": a, "r": r, "charts": charts, "scored": scored, "by_name": a.by_name, "titles": a.titles},
        **{
            "order": classes,
            "shown_classes": SHOWN_CLASSES,
            "shown": SHOWN,
            "shown_examples": SHOWN_EXAMPLES,
            "METHODS": METHOD_NAMES,
            "varies": varying,
        },
        "same": same,
        "measured": [key for key in costs if any(getattr(c, key) is not None for c in scored)],
        "few_seeds": findings.few_seeds(scored),
        "interval": findings.interval_kind(scored),
        "paired_interval": findings.paired_kind(r.differences, "groups of images" if r.data.groups else "images"),
        "pooled": any(d.pooled for d in r.differences),
        "leading": findings.leading(scored, r.differences) if scored else "",
        "following": findings.following(scored, r.differences),
        "effects": {axis.name: findings.axis_effect(axis, r.differences) for axis in a.axes},
        "head_scores": list(dict.fromkeys(key for c in scored for key in c.mean_heads)),
        "heads_known": any(maps.beyond_position for e in r.examples for maps in e.attention.values()),
        "most_labels": "label_fraction" in varying and equal_labels,
        "fused": any(c.strength is not None for c in scored),
        "refined": any(c.refiner_strength is not None for c in scored),
        "least_strength": LEAST_STRENGTH,
        "pages": pages,
        "attention_gaps": any(None in row for head in maps for row in head),
    }
    filters = (findings.answer, findings.caution, findings.correlation, findings.verdict, heat, telling, shared, under)
    return render_page("report.html.jinja", values, {function.__name__: function for function in filters})


def heat(head: Sequence[Sequence[float | None]]) -> str:
    """One head's map, scaled to its own maximum, in magma, one pixel a position, grey where missing; the less there is,
    the more of the image below is to be seen.
    """
    weights = np.array(head, dtype=np.float64)  # None reads as NaN
    missing = np.isnan(weights)
    weights[missing] = 0
    share = weights / max(weights.max(), 1e-12)
    colours = colormaps["magma"](share)
    colours[missing, :3] = GREY / 255
    colours[..., 3] = 0.35 + 0.35 * share
    return data_uri(np.round(255 * colours).astype(np.uint8))


def telling(example: Example, scored: Sequence[Shown]) -> tuple[str, list[int]] | None:
    """Whose heads stand beside an image, and which: those that know most of its classes beyond position.

    Not the sharpest: a head that looks at one corner, whatever the image, is sharp. Where no head was scored they are
    the first ones of the first configuration with attention; None where there is none.
    """
    looking = [c.name for c in scored if c.name in example.attention]
    if not looking:
        return None
    name = max(looking, key=lambda name: example.attention[name].knows)
    maps = example.attention[name]
    bits = [-math.inf if known is None else known for known in maps.beyond_position]
    order = sorted(range(len(maps.heads)), key=lambda head: -bits[head] if bits else 0)
    return name, order[:BESIDE]


def shared(example: Example, scored: Sequence[Shown]) -> list[tuple[list[str], HeadMaps]]:
    """The different maps of an example, best configuration first, each with all that have it: they share a backbone."""
    found: list[tuple[list[str], HeadMaps]] = []
    for name in (c.name for c in scored if c.name in example.attention):
        maps = example.attention[name]
        names = next((names for names, seen in found if seen == maps), None)
        found.append(([name], maps)) if names is None else names.append(name)
    return found


def under(picture: str) -> str:
    """CSS properties that lay a picture, in grey and at most 256 pixels wide, under the heat maps: once for all heads.

    The browser blends: with one blended picture a head, 576 heads would weigh more than the rest of the page together.
    """
    try:
        image = Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2])), formats=("PNG",)).convert("L")
    except (OSError, ValueError) as error:
        raise InputError("results.json holds a picture that cannot be read: run regard compare again") from error
    aspect = f"{image.width} / {image.height}"
    image.thumbnail((256, 256))
    return f"--image: url('{data_uri(np.asarray(image))}'); --aspect: {aspect}"
