"""What a study found, read back from the folders of what is finished, for its report: `results.StudyResults`."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from regard.data.groups import group_numbers
from regard.data.loading.augment import short_side
from regard.data.source import require_masks
from regard.data.survey import class_pixels
from regard.errors import InputError
from regard.evaluation.scores import scores
from regard.evaluation.statistics import Scored, score
from regard.files import read_json, write_json
from regard.reports.words import plain
from regard.results import (
    VERSION,
    ConfigurationResult,
    FailedPart,
    LossPoint,
    Majority,
    MeanMiou,
    PretrainDescription,
    PretrainingResult,
    RunResult,
    StudyData,
    StudyResults,
    Value,
)
from regard.runs.run import load_run
from regard.settings import FUSIONS, REFINERS, SegmentSettings, find
from regard.studies.ablate import word
from regard.studies.environment import commit, environment, shown_path
from regard.studies.examples import add_run, choose_examples
from regard.studies.plan import Configuration, Plan
from regard.studies.relations import correlations, differences, shared_labels
from regard.studies.speed import milliseconds_per_image
from regard.studies.study import COUNTS_FILE, Study
from regard.studies.tasks import Failure

CLASSES_FILE = "train_pixels.json"  # of each class
Matrix = Int[np.ndarray, "classes classes"]
Groups = Int[np.ndarray, "images"] | None


def scored_split(splits: Mapping[str, Any]) -> str:
    """The split whose scores are reported; `val`, which also chooses the epoch, only where there is no `test`."""
    return "test" if "test" in splits else "val"


class _Cells:
    """The finished cells of a configuration. scored, matrices (one a seed), per_image (of the first seed): their mIoU;
    only where there is one.
    """

    def __init__(self, study: Study, configuration: Configuration, groups: Groups) -> None:
        found = [
            (seed, study.scored(configuration, seed), study.trained(configuration, seed)) for seed in study.plan.seeds
        ]
        finished = [(seed, cell, run) for seed, cell, run in found if cell is not None and run is not None]
        self.seeds = [seed for seed, _, _ in finished]
        self.cells = [cell for _, cell, _ in finished]
        self.runs = [run for _, _, run in finished]
        self.folders = [study.cell_folder(configuration, seed) for seed in self.seeds]
        if self.folders:
            self.scored = score((self._counts(folder) for folder in self.folders), groups)
            self.matrices: list[Matrix] = [self._counts(folder).sum(axis=0) for folder in self.folders]
            self.per_image = _miou_per_image(self._counts(self.folders[0]))

    @staticmethod
    def _counts(folder: Path) -> Int[np.ndarray, "images classes classes"]:
        with np.load(folder / COUNTS_FILE) as file:
            return file["counts"]

    def results(self) -> list[RunResult]:
        """Of each seed."""
        return [
            RunResult(
                seed=run.seed,
                miou=float(miou),
                pixel_accuracy=scores(matrix).pixel_accuracy,
                iou=_iou(matrix),
                train_seconds=run.seconds,
                best_epoch=run.best_epoch,
                curve=run.curve,
                heads=cell.heads.means if cell.heads else None,
                commit=run.origin.commit,
                fused=run.head_weights,
                refined=run.refined,
            )
            for cell, run, matrix, miou in zip(self.cells, self.runs, self.matrices, self.scored.miou, strict=True)
        ]

    def peak_memory(self) -> float | None:
        """In MB; None where it was not measured."""
        return max((run.peak_memory_mb for run in self.runs if run.peak_memory_mb), default=None)


def gather(study: Study, command: str, failures: Sequence[Failure], complete: bool) -> StudyResults:
    """Everything the report needs. Forward passes are timed here, one after the other and beside no training.

    Raises InputError where nothing is finished.
    """
    plan, source = study.plan, study.source
    splits = require_masks(source)
    split = scored_split(splits)
    groups = group_numbers(splits[split], plan.groups)
    cells = {c.name: _Cells(study, c, groups) for c in plan.configurations}
    finished = {name: cell for name, cell in cells.items() if cell.seeds}
    if not finished:
        reasons = "".join(f"; {failure.name}: {failure.error}" for failure in failures[:1])
        raise InputError(f"nothing of {study.out} is finished{reasons}")
    examples = choose_examples(splits[split], {name: cell.per_image for name, cell in finished.items()})
    first = splits[split].image(0).shape[:2]
    milliseconds, kinds = {}, {}
    for name, cell in finished.items():  # one at a time: all of a large study do not fit in memory
        run = load_run(cell.folders[0], study.hardware.device)
        milliseconds[name] = milliseconds_per_image(run, short_side(first, run.size))
        kinds[name] = run.model.backbone.kind
        heads = cell.cells[0].heads
        add_run(examples, splits[split], name, run, heads.beyond_position if heads else {})
    truth = next(iter(finished.values())).matrices[0].sum(axis=1)
    root, every = shown_path(source.root), [run for cell in finished.values() for run in cell.runs]
    configurations = [_configuration(plan, c, cells[c.name], milliseconds.get(c.name)) for c in plan.configurations]
    pretraining = _pretraining_results(study)
    trained = sum(run.train_seconds for c in configurations for run in c.runs)
    return StudyResults(
        schema=VERSION,
        kind=plan.kind,
        name=plan.name,
        regard=version("regard"),
        commit=commit(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        plan=plan.text,
        note=plan.note,
        seconds=sum(p.seconds for p in pretraining) + trained,
        complete=complete,
        failed=[FailedPart(name=failure.name, error=failure.error) for failure in failures],
        seeds=list(plan.seeds),
        pretrain_each_seed=plan.own_pretrainings,
        axes={axis: [_shown(value) for value in values] for axis, values in plan.axes.items()},
        environment=_environment([run.origin.environment for run in every]),
        settings=_settings(plan),
        data=StudyData(
            source=root,
            description=source.describe().replace(source.root, root),
            classes=list(source.classes),
            palette=[(r, g, b) for r, g, b in np.asarray(source.palette).tolist()],
            class_share=(truth / truth.sum()).tolist(),
            train_images=len(splits["train"]),
            evaluated_images=len(splits[split]),
            evaluated_split=split,
            short_side=plan.segment.size,
            groups=plan.groups,
            evaluated_groups=None if groups is None else int(groups.max()) + 1,
        ),
        majority=_majority(study, truth),
        pretraining=pretraining,
        configurations=configurations,
        differences=differences(plan, {name: (cell.scored, cell.seeds) for name, cell in finished.items()}),
        correlations=correlations(configurations, kinds),
        examples=list(examples.values()),
    )


def _environment(found: Sequence[dict[str, str] | None]) -> dict[str, str]:
    """Where the cells were trained. Where that is not one place, it says so; times are then of different machines."""
    different = [dict(items) for items in dict.fromkeys(tuple(each.items()) for each in found if each)]
    if not different:
        return environment()
    note = {"cells": f"trained in {len(different)} different environments, of which this is the first"}
    return different[0] | (note if len(different) > 1 else {})


def _majority(study: Study, truth: Int[np.ndarray, "classes"]) -> Majority:
    """What always answering the most frequent class of the training masks scores, on these pixels of each class."""
    file = study.out / CLASSES_FILE  # the data of a study does not change: counted once
    if not file.is_file():
        write_json(file, class_pixels(require_masks(study.source)["train"]).tolist())
    answer = int(np.argmax(read_json(file, list[int])))
    share = float(truth[answer] / truth.sum())
    return Majority(name=study.source.classes[answer], miou=share / int(np.count_nonzero(truth)), pixel_accuracy=share)


def _miou_per_image(counts: Int[np.ndarray, "images classes classes"]) -> Float[np.ndarray, "images"]:
    """NaN for an image that is all void."""
    return np.array([scores(matrix).miou if matrix.any() else np.nan for matrix in counts])


def _iou(matrix: Matrix) -> list[float | None]:
    """Of each class; None for one that is nowhere true, which mIoU does not count (`statistics.score`)."""
    truth = matrix.sum(axis=1)
    return [float(iou) if pixels else None for iou, pixels in zip(scores(matrix).iou, truth, strict=True)]


def _configuration(
    plan: Plan, c: Configuration, cells: _Cells, times: tuple[float, float, float] | None
) -> ConfigurationResult:
    settings = plan.settings(c)
    return ConfigurationResult(
        name=c.name,
        backbone=plan.backbones[c.backbone].label,
        pretraining=c.pretraining,
        fusion=_part("fusion", settings, FUSIONS),
        head=settings.head,
        refiner=_part("refiner", settings, REFINERS),
        baseline=c.baseline,
        label_fraction=c.label_fraction,
        frozen=settings.freeze,
        at={axis: _shown(value) for axis, value in c.at.items()},
        parameters=cells.runs[0].parameters if cells.runs else None,
        milliseconds_per_image=times[0] if times else None,
        images_per_second=1000 / times[0] if times else None,
        milliseconds_range=times[1:] if times else None,
        peak_memory_mb=cells.peak_memory(),
        miou=_interval(plan, c, cells.scored) if cells.runs else None,
        runs=cells.results() if cells.runs else [],
    )


def _part(what: str, settings: SegmentSettings, known: Mapping[str, str]) -> str:
    """The fusion or the refiner, with what it sees in the place of maps."""
    name = getattr(settings, what)
    control = settings.maps != "own" and find(what, name, known).attention
    return f"{name}, {settings.maps} for maps" if control else name


def _interval(plan: Plan, c: Configuration, scored: Scored) -> MeanMiou:
    found, several = scored.estimate(shared_labels([c.label_fraction])), len(scored.miou) > 1
    units = "groups of images" if plan.groups else "images"
    return MeanMiou(
        mean=found.mean,
        std=float(np.std(scored.miou, ddof=1)) if several else None,
        low=found.low,
        high=found.high,
        interval=f"95%, over {units} and seeds" if several else f"95%, over {units}",
    )


def _pretraining_results(study: Study) -> list[PretrainingResult]:
    """Of each pre-training that is used and finished."""
    plan = study.plan
    used = [(c.pretraining, plan.pretraining_seed(seed)) for c in plan.configurations for seed in plan.seeds]
    return [
        _pretraining(study, name, seed, made)
        for name, seed in dict.fromkeys(used)
        if name and (made := study.pretrained(name, seed))
    ]


def _pretraining(study: Study, name: str, seed: int, made: PretrainDescription) -> PretrainingResult:
    plan, choice = study.plan, study.plan.pretrainings[name]
    pictures = (study.pretraining_folder(name, seed) / "pictures").glob("cross-correlation-epoch-*.png")
    last = max(pictures, key=lambda path: path.stat().st_mtime, default=None)
    return PretrainingResult(
        name=plan.weights_name(name, seed),
        method=choice.settings.method if choice.settings else "weights",
        backbone=plan.backbones[choice.backbone].label,
        origin=made.origin.said,
        seconds=made.seconds,
        curve=[LossPoint(step=int(point["step"] or 0), loss=point["loss"]) for point in made.curve],
        cross_correlation=_data_uri(last) if last else None,
    )


def _data_uri(picture: Path) -> str:
    """A chart, small: it is noise to a PNG, and a study may have many."""
    chart, buffer = Image.open(picture, formats=("PNG",)).convert("RGB"), io.BytesIO()
    chart.thumbnail((720, 720))  # twice as wide as it is shown
    chart.quantize(64).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _shown(value: Any) -> Value:
    """A value of an axis: a number, or a word."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else word(value)


def _settings(plan: Plan) -> dict[str, str]:
    """The settings, flat, for people: those of backbones and pre-trainings that are used."""
    found = {"seeds": plan.seeds, "pretrain_each_seed": plan.own_pretrainings, "cache": plan.cache}
    found |= _flat("segment", asdict(plan.segment))
    for key in sorted({c.backbone for c in plan.configurations}):
        found |= _flat(key, {"timm": plan.backbones[key].name, **plan.backbones[key].options})
    for key in sorted({c.pretraining for c in plan.configurations if c.pretraining}):
        choice = plan.pretrainings[key]
        if choice.settings is not None:
            values = asdict(choice.settings)
            found |= _flat(key, {**values, "published": choice.published}) | _flat(key, values["method_options"])
        else:
            found[f"{key}.weights"] = choice.weights
    for c in plan.configurations:
        found |= _flat(c.name, c.segment)
    return {key: plain(value) for key, value in found.items()}


def _flat(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}.{key}": value for key, value in values.items() if key != "method_options"}
