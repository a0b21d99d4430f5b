"""For a paper: the runs of a study as CSV, its configurations as a table of LaTeX."""

import csv
import io
from collections.abc import Sequence

from regard.reports.arranged import COLUMNS, Shown
from regard.results import StudyResults

COSTS = ("parameters", "milliseconds_per_image", "images_per_second", "peak_memory_mb")
LATEX = {  # " as two apostrophes: \textquotedbl is not in LaTeX's own encoding of fonts
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "\"": "''", "·": r"\textperiodcentered{}", "\n": " ", "\r": " ",
}  # fmt: skip


def table_csv(results: StudyResults) -> str:
    """One row a run; scores are shares in [0, 1], and empty where there is none."""
    runs = [(c, run) for c in results.configurations for run in c.runs]
    scores = list(dict.fromkeys(key for _, run in runs for key in run.heads or {}))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["configuration", *COLUMNS, "baseline"]
        + [f"at {axis}" for axis in results.axes]
        + [
            "seed",
            "miou",
            "pixel_accuracy",
            *(f"iou {name}" for name in results.data.classes),
            "train_seconds",
            "strength",
            "refiner strength",
        ]
        + [*COSTS, *(f"heads {score}" for score in scores)]
    )
    for c, run in runs:
        what = [c.name, c.backbone, c.pretraining or "random", c.fusion, c.head, c.refiner]
        what += [c.label_fraction, c.frozen, c.baseline]
        at = [c.at.get(axis) for axis in results.axes]
        found = [run.seed, run.miou, run.pixel_accuracy, *run.iou, run.train_seconds, run.strength]
        found.append(run.refined.get("strength"))
        cost = [getattr(c, key) for key in COSTS]
        heads = [(run.heads or {}).get(score) for score in scores]
        writer.writerow([*map(_cell, what), *map(_cell, at), *found, *cost, *heads])
    return text.getvalue()


def _cell(value: object) -> object:
    """A name that a spreadsheet would take for a formula starts with an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def table_latex(scored: Sequence[Shown]) -> str:
    """A table of booktabs: mIoU in percent, its standard deviation over seeds and its interval, the strength of
    fusion and refiner where there are any (grey where it is hardly used), and the costs.
    """
    fused = any(c.strength is not None for c in scored)
    refined = any(c.refiner_strength is not None for c in scored)
    strengths = " & Strength" * fused + " & Refiner" * refined
    lines = [
        r"% needs \usepackage{booktabs,xcolor}" if strengths else r"% needs \usepackage{booktabs}",
        rf"\begin{{tabular}}{{lrrrr{'r' * (fused + refined)}}}",
        r"\toprule",
        rf"Configuration & mIoU (\%) & 95\% interval{strengths} & Parameters (M) & ms per image \\",
        r"\midrule",
    ]
    for c in scored:
        m = c.miou
        assert m is not None
        assert c.parameters is not None
        spread = "" if m.std is None else rf" $\pm$ {100 * m.std:.1f}"
        time = "--" if c.milliseconds_per_image is None else f"{c.milliseconds_per_image:.1f}"
        cells = [latex(c.title), f"{100 * m.mean:.1f}{spread}", f"{100 * m.low:.1f} to {100 * m.high:.1f}"]
        cells += [_strength(c.strength, c.hardly_used)] * fused
        cells += [_strength(c.refiner_strength, c.hardly_refined)] * refined
        lines.append(" & ".join([*cells, f"{c.parameters / 1e6:.1f}", time]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _strength(value: float | None, hardly: bool) -> str:
    text = "--" if value is None else f"{value:.2f}"
    return rf"\textcolor{{gray}}{{{text}}}" if hardly else text


def latex(text: str) -> str:
    """Text with all that LaTeX takes for a command escaped."""
    return "".join(LATEX.get(letter, letter) for letter in text)
