"""The command that says what frozen features and attention maps are worth: probe."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regard.errors import InputError
from regard.say import console, say
from regard.settings import Device, Model, Probing

if TYPE_CHECKING:
    from regard.data.datasets.base import Source
    from regard.results import Limits, ProbeResults


def probe(data: str, model: Model, probing: Probing, device: Device, out: str = "runs/probe") -> str:
    """Say what frozen features and attention maps are worth, by linear answers, and how sure that is.

    Args:
        data: `scenes`, a path or a pack's URL: with masks, patches are answered; of class folders, images.
        out: Folder for probe.json and probe.html.
    """
    from importlib.metadata import version

    from regard.backbones import describe
    from regard.cli.common import opened
    from regard.cli.parser import command_line
    from regard.data.groups import group_numbers, seen_groups
    from regard.data.source import check_readable, open_source
    from regard.evaluation.statistics import FEW
    from regard.reports.probe_report import write_probe_report
    from regard.results import ProbeData, ProbeResults
    from regard.scoring.chosen import Chosen
    from regard.scoring.scorecard import check_folder
    from regard.studies.environment import commit, environment, shown_path

    source = open_source(data, scenes_size=probing.size).read_as(probing.values)
    splits = _splits(source, probing.split)
    (_, train), (split, scored) = ((name, Chosen(dataset, probing.limit)) for name, dataset in splits)
    check_folder(Path(out))
    backbone = opened(model, device)
    say(source.describe())
    if source.has_masks:
        check_readable(source, probing.size)
    groups = group_numbers(scored, probing.groups)
    count = len(scored) if groups is None else int(groups.max()) + 1
    of_train = group_numbers(train, probing.groups)
    shown = {"data": shown_path(data), "model": model, "probing": probing, "device": device, "out": shown_path(out)}
    about: dict[str, Any] = {
        "regard": version("regard"),
        "commit": commit(),
        "command": command_line(probe, shown),
        "environment": environment(),
        "backbone": describe(backbone),
        "weights": Path(model.weights).name if model.weights else "timm's published" if model.pretrained else "random",
    }
    of_data: dict[str, Any] = {
        "source": source.describe().replace(source.root, shown_path(source.root)),
        "split": split,
        "train_images": len(train),
        "images": len(scored),
        "train_groups": len(train) if of_train is None else int(of_train.max()) + 1,
        "groups": count,
        "groups_said": probing.groups or "each image is one",
        "few": count < FEW,
        "seen_groups": seen_groups(train, scored, probing.groups),
        "classes": list(source.classes),
        "size": probing.size,
    }
    started = time.monotonic()
    if source.has_masks:
        from regard.scoring.probe import probe as run
        from regard.scoring.probe_logistic import PENALTIES as OF_LOGISTIC
        from regard.scoring.probe_training import PENALTIES, POWERS, RATIOS

        disk = next(path for path in (Path(out), *Path(out).absolute().parents) if path.is_dir())
        found = run(backbone, train, scored, probing, disk)
        about["grid"] = {"power": list(POWERS), "penalty": list(PENALTIES), "ratio": list(RATIOS)}
        if probing.logistic:
            about["grid"]["logistic"] = list(OF_LOGISTIC)
        about |= {"ceiling": found.ceiling, "rows": found.rows, "differences": found.differences}
        of_data |= {"stride": found.stride, "rows": found.kept, "few": found.few}
    else:
        from regard.scoring import probe_classes

        first = probe_classes.pooled(backbone, train, probing, "reading training images")
        second = probe_classes.pooled(backbone, scored, probing, "scoring")
        about["grid"] = {answer: list(grid) for answer, grid in probe_classes.PENALTIES.items()}
        about["top1"] = probe_classes.probe_classes(first, second, len(source.classes), probing)
    results = ProbeResults(**about, seconds=time.monotonic() - started, data=ProbeData(**of_data))
    (_print_classes if results.top1 else _print_patches)(results)
    if results.data.few:
        say(f"{results.data.groups} groups are too few for a verdict: the intervals are by leaving each out in turn")
    if seen := results.data.seen_groups:
        say(f"{seen} of the {results.data.groups} groups that are scored have images in train, too")
    page = write_probe_report(results, Path(out))
    return f"probe in {page}; numbers in {out}/probe.json"


def _splits(source: "Source", asked: str | None) -> list[tuple[str, Any]]:
    """(name, dataset) of what is learned from, and of what is scored: test where there is one with masks, else val."""
    from regard.data.source import require_masks
    from regard.runs.pretraining import labelled_splits

    if asked == "train":
        raise InputError("the train split is learned from: --split val, or test, would work")
    if not source.has_masks and source.has_labels:
        train, val = labelled_splits(source)
        return [("train", train), (asked, source.split(asked)) if asked else ("val", val)]
    split = asked or ("test" if "test" in require_masks(source) else "val")
    return [(name, source.split(name)) for name in ("train", split)]


def _print_patches(results: "ProbeResults") -> None:
    """What each variant reaches, and what its last part brings; single heads are on the page."""
    from rich.table import Table

    from regard.reports.probe_report import spoken
    from regard.results import is_head

    assert results.ceiling is not None
    table = Table(
        title=f"patch mIoU % on {results.data.split}, and what the last part of the columns brings; "
        f"right answers: {100 * results.ceiling.mean:.1f}",
        title_justify="left",
    )
    for heading in ("masks %", "features", "beside them", "mIoU %", "brings", "95% interval"):
        table.add_column(heading, justify="left" if heading in ("features", "beside them") else "right")
    brings = {(one.answer, one.features, one.columns, one.fraction): one.miou for one in results.differences}
    fraction = None
    for row in results.rows:
        if is_head(row):
            continue
        if fraction is not None and row.fraction != fraction:
            table.add_section()
        fraction = row.fraction
        difference = brings.get((row.answer, row.features, row.columns, row.fraction))
        cells = (f"{100 * difference.mean:+.2f}", _interval(difference)) if difference else ("", "")
        table.add_row(
            f"{100 * fraction:g}", spoken(row.features, row.answer), row.columns, f"{100 * row.miou.mean:.1f}", *cells
        )
    console().print(table)


def _interval(found: "Limits") -> str:
    return f"{100 * found.low:+.2f} to {100 * found.high:+.2f}"


def _print_classes(results: "ProbeResults") -> None:
    """Top-1 of each answer."""
    from rich.table import Table

    table = Table(title=f"top-1 % on {results.data.split}, from pooled features", title_justify="left")
    for heading in ("labels %", "answer", "top-1 %", "95% interval"):
        table.add_column(heading, justify="left" if heading == "answer" else "right")
    for row in results.top1:
        limits = f"{100 * row.top1.low:.1f} to {100 * row.top1.high:.1f}"
        table.add_row(f"{100 * row.fraction:g}", row.answer, f"{100 * row.top1.mean:.1f}", limits)
    console().print(table)
