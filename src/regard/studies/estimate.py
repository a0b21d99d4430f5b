"""`--dry-run`: what a study would still train, and about how long that takes here, without writing anything of it.

A part that is like one that is finished takes as long as that one took. Otherwise a short training of the same kind is
timed: real steps on a few real images, with small batches, in a folder of its own that is removed. The time of a step
is taken to grow with its images; what fits into memory at the full batch, it does not tell.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from regard.backbones import build_backbone
from regard.data.datasets.base import Dataset
from regard.data.source import require_masks
from regard.runs.pretraining import pretrain_run
from regard.runs.segmenting import segment_run
from regard.say import console, shown
from regard.scoring.chosen import Chosen
from regard.studies.compare import tasks_of
from regard.studies.plan import Configuration
from regard.studies.study import Study

BATCH, STEPS = 8, 3  # of an epoch of what is timed
VALIDATED = 4  # images
FORWARD = 1 / 3  # a forward pass beside forward and backward: what a validated image costs beside one trained on


@dataclass(frozen=True)
class Cost:
    """What a task would take. seconds: None where it is finished; measured: on a finished task, or in a short trial."""

    name: str
    stage: str
    seconds: float | None
    measured: str = ""


def estimate(study: Study) -> list[Cost]:
    """The cost of every task of a study, in order. Trains a little, with random weights, where nothing is finished."""
    quiet = replace(study, hardware=replace(study.hardware, bar=False))
    known: dict[Any, tuple[float, str]] = {}
    costs = []
    for task in tasks_of(study):
        about, seed = task.arguments
        is_cell = isinstance(about, Configuration)
        if study.scored(about, seed) if is_cell else study.pretrained(about, seed):
            costs.append(Cost(task.name, task.stage, None))
            continue
        kind = study.plan.cell_key(about) if is_cell else about
        if kind not in known:
            known[kind] = _cell(quiet, about) if is_cell else _pretraining(quiet, about)
        costs.append(Cost(task.name, task.stage, *known[kind]))
    return costs


def show(costs: list[Cost], jobs: int) -> str:
    """Print the plan as a table; returns the sum in words."""
    table = Table("", "part", Column("about", justify="right"), "measured on")
    for cost in costs:
        table.add_row(
            cost.stage, shown(cost.name), "finished" if cost.seconds is None else spoken(cost.seconds), cost.measured
        )
    console().print(table)
    left = [cost.seconds for cost in costs if cost.seconds is not None]
    if not left:
        return f"all of the {len(costs)} parts are finished: only the report would be made again"
    wall = max(*left, sum(left) / jobs)
    beside = f", {jobs} side by side: {spoken(wall)}" if jobs > 1 else ""
    return (
        f"{len(left)} of {len(costs)} parts are to be done; about {spoken(sum(left))} of training{beside} (an "
        "estimate, good to a factor of two; nothing was written)"
    )


def spoken(seconds: float) -> str:
    """0.4 s, 41 s, 4 min, 2.1 h, 3.5 days."""
    if seconds < 90:
        return f"{seconds:.{0 if seconds >= 10 else 1}f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def _pretraining(study: Study, name: str) -> tuple[float, str]:
    plan, choice = study.plan, study.plan.pretrainings[name]
    for seed in plan.seeds:
        if made := study.pretrained(name, seed):
            return made.seconds, f"seed {seed}"
    if choice.settings is None:
        return 0.0, "weights of a file"
    train = study.source.images("train")
    batch = min(BATCH, choice.settings.batch_size, len(train))
    part: Dataset = Chosen(train, STEPS * batch)
    short = replace(choice.settings, batch_size=batch, accumulate=1, average="none")

    def trial(epochs: int, folder: Path) -> float:
        backbone = plan.backbones[choice.backbone].build()
        return pretrain_run(part, backbone, replace(short, epochs=epochs), folder, 0, study.hardware).seconds

    seconds = _epoch(trial) / len(part) * len(train) * choice.settings.epochs
    unless = f", if {choice.published} is not to be had" if choice.published else ""
    return seconds, f"{STEPS} steps of {batch} images{unless}"


def _cell(study: Study, c: Configuration) -> tuple[float, str]:
    plan, settings = study.plan, study.plan.settings(c)
    for seed in plan.seeds:
        if study.scored(c, seed) and (made := study.trained(c, seed)):
            return made.seconds, f"seed {seed}"
    splits = require_masks(study.source)
    train, val = splits["train"], splits["val"]
    batch = min(BATCH, settings.batch_size, len(train))
    choice = plan.backbones[c.backbone]
    few, some = Chosen(train, STEPS * batch), Chosen(val, VALIDATED)
    short = replace(settings, batch_size=batch, accumulate=1, average="none", patience=None, cache_crops=None)

    def trial(epochs: int, folder: Path) -> float:
        backbone = build_backbone(choice.name, **choice.options)
        return segment_run(few, some, backbone, replace(short, epochs=epochs), folder, 0, study.hardware).seconds

    solved = settings.head == "ridge"  # each image passes forward once
    each = (len(few) + len(some), len(train) + len(val))
    if not solved:
        each = (len(few) + FORWARD * len(some), len(train) + FORWARD * len(val))
    seconds = _epoch(trial) / each[0] * each[1] * (1 if solved else settings.epochs)
    return seconds, f"{len(few)} images" if solved else f"{STEPS} steps of {batch} images"


def _epoch(trial: Callable[[int, Path], float]) -> float:
    """Seconds of one more epoch, without what a training takes to begin and to end."""
    seconds = []
    for epochs in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            seconds.append(trial(epochs, Path(folder)))
    one, two = seconds
    return two - one if two > one else one
