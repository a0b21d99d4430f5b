"""The command that says what frozen features and attention maps are worth: probe."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from regard.errors import InputError
from regard.say import console, say
from regard.settings import Device, Model, Probing

if TYPE_CHECKING:
    from regard.results import Limits, ProbeResults


def probe(data: str, model: Model, probing: Probing, device: Device, out: str = "runs/probe") -> str:
    """Say in closed form what frozen features and attention maps are worth to a segmentation, and how sure that is.

    Args:
        data: `scenes`, a path or a pack's URL, with masks.
        out: Folder for probe.json and probe.html.
    """
    from importlib.metadata import version

    from regard.backbones import describe
    from regard.cli.common import opened
    from regard.cli.parser import command_line
    from regard.data.groups import group_numbers
    from regard.data.source import check_readable, open_source, require_masks
    from regard.evaluation.statistics import FEW
    from regard.reports.probe_report import write_probe_report
    from regard.results import ProbeData, ProbeResults
    from regard.scoring.chosen import Chosen
    from regard.scoring.probe import probe as run
    from regard.scoring.probe_training import PENALTIES, POWERS, RATIOS
    from regard.scoring.scorecard import check_folder
    from regard.studies.environment import commit, environment, shown_path

    source = open_source(data, scenes_size=probing.size).at_bits(probing.image_bits)
    splits = require_masks(source)
    split = probing.split or ("test" if "test" in splits else "val")
    train, scored = (Chosen(source.split(name), probing.limit) for name in ("train", split))
    if split == "train":
        raise InputError("the train split is learned from: --split val, or test, would work")
    check_folder(Path(out))
    backbone = opened(model, device)
    say(source.describe())
    check_readable(source, probing.size)
    group_numbers(scored, probing.groups)
    started = time.monotonic()
    disk = next(path for path in (Path(out), *Path(out).absolute().parents) if path.is_dir())
    found = run(backbone, train, scored, probing, disk)
    results = ProbeResults(
        regard=version("regard"),
        commit=commit(),
        command=command_line(
            probe,
            {"data": shown_path(data), "model": model, "probing": probing, "device": device, "out": shown_path(out)},
        ),
        environment=environment(),
        backbone=describe(backbone),
        weights=(model.weights and Path(model.weights).name) or ("timm's published" if model.pretrained else "random"),
        seconds=time.monotonic() - started,
        data=ProbeData(
            source=source.describe().replace(source.root, shown_path(source.root)),
            split=split,
            train_images=len(train),
            images=len(scored),
            train_groups=found.train_groups,
            groups=found.groups,
            groups_said=probing.groups or "each image is one",
            few=found.groups < FEW,
            classes=list(train.classes),
            size=probing.size,
            stride=found.stride,
            rows=found.kept,
        ),
        grid={"power": list(POWERS), "penalty": list(PENALTIES), "ratio": list(RATIOS)},
        ceiling=found.ceiling,
        rows=found.rows,
        differences=found.differences,
    )
    _print_tables(results)
    page = write_probe_report(results, Path(out))
    return f"probe in {page}; numbers in {out}/probe.json"


def _print_tables(results: "ProbeResults") -> None:
    """What each variant reaches, and what its last part brings; single heads are on the page."""
    from rich.table import Table

    from regard.results import is_head

    table = Table(
        title=f"patch mIoU % on {results.data.split}, and what the last part of the columns brings; "
        f"right answers: {100 * results.ceiling.mean:.1f}",
        title_justify="left",
    )
    for heading in ("masks %", "features", "beside them", "mIoU %", "brings", "95% interval"):
        table.add_column(heading, justify="left" if heading in ("features", "beside them") else "right")
    brings = {(one.features, one.columns, one.fraction): one.miou for one in results.differences}
    fraction = None
    for row in results.rows:
        if is_head(row):
            continue
        if fraction is not None and row.fraction != fraction:
            table.add_section()
        fraction = row.fraction
        difference = brings.get((row.features, row.columns, row.fraction))
        cells = (f"{100 * difference.mean:+.2f}", _interval(difference)) if difference else ("", "")
        table.add_row(f"{100 * fraction:g}", row.features, row.columns, f"{100 * row.miou.mean:.1f}", *cells)
    console().print(table)
    if results.data.few:
        say(f"{results.data.groups} groups are too few for a verdict: the intervals are by leaving each out in turn")


def _interval(found: "Limits") -> str:
    return f"{100 * found.low:+.2f} to {100 * found.high:+.2f}"
