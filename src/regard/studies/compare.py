"""`regard compare` and `regard ablate`: the configurations of a plan on the same images, with seeds and intervals.

The folder of a study, every part of which is written whole or not at all, so that a second call goes on where the first
one stopped:

    study.json                  which study the folder belongs to
    pretraining/NAME-KEY/       a pre-training, done once and shared: `pretraining.pretrain_run`
    cells/NAME-KEY/seed-N/      one training: `segmenting.segment_run`; counts.npz, its confusion counts per image, and
                                cell.json, its scores
    features/                   features of frozen backbones, where the plan keeps them
    heads/                      scores of the attention heads of frozen backbones
    failures/                   the tracebacks of what failed
    results.json, report.html   all of it, and the page made from it

KEY changes with everything that the part depends on (`Plan.cell_key`). So where a plan changes, only what depends on
the change is done again, and what was done before stays for a plan that changes back.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch

from regard.backbones import Backbone, build_backbone, describe, save_backbone
from regard.backbones.base import weights_digest
from regard.backbones.weights import BACKBONE_FILE
from regard.data.datasets.base import MaskDataset, read_as
from regard.data.loading.wrapped import Fraction
from regard.data.source import Source, fingerprint, require_masks
from regard.errors import InputError, Interrupted
from regard.files import read_json, write_json, write_whole
from regard.reports.report import RESULTS_FILE, write_report
from regard.results import VERSION, CellHeads, CellResult, Origin, PretrainDescription, write_stored
from regard.runs.extras import Cache, Extras
from regard.runs.feature_cache import cached_counts
from regard.runs.pretraining import PRETRAIN_FILE, pretrain_run
from regard.runs.run import RUN_FILE, Run, load_run, summary
from regard.runs.segmenting import segment_run
from regard.say import counted, say
from regard.scoring.cell_scores import head_scores
from regard.settings import Hardware
from regard.studies.environment import commit, environment
from regard.studies.gather import gather, scored_split
from regard.studies.jobs import run_all
from regard.studies.plan import Configuration, Plan, check_plan
from regard.studies.study import CELL_FILE, COUNTS_FILE, Study
from regard.studies.tasks import Failure, Task, Where

MIN_IMAGES = 8  # a batch that batch statistics can be taken over
STUDY_FILE, LOCK_FILE = "study.json", ".lock"


def compare(
    source: Source,
    plan: Plan,
    out: Path,
    where: Where = Where(),
    hardware: Hardware = Hardware(),
    command: str = "regard.studies.compare",
) -> tuple[Path, list[Failure]]:
    """Run what is not finished yet of a study, write `results.json` and `report.html`; returns the latter, and what
    failed: a part that fails is reported, and the others go on.

    The best epoch of each training is chosen on `val`; the scores are those on `test` where there is one.
    Raises InputError for data without masks, a plan that cannot work, or a folder that another study or another process
    writes into. What is interrupted leaves a report of what is finished.
    """
    study = open_study(source, plan, out, hardware)
    tasks = tasks_of(study)
    with _claimed(study):
        say(source.describe(), "data")
        made_of = (
            f"{counted(len(plan.configurations), 'configuration')} x {counted(len(plan.seeds), 'seed')} ({plan.name})"
        )
        say(f"{made_of}, into {out}", plan.kind)
        if "test" not in source.splits:
            say("no test split: scores are those on val, which also chose each epoch", "note")
        try:
            failures = run_all(tasks, study, where)
        except (KeyboardInterrupt, Interrupted, OSError):  # a signal; a full disk, on which there may be no room for it
            with suppress(InputError, OSError):  # where nothing is finished yet
                _report(study, command, [], complete=False)
            raise
        return _report(study, command, failures, complete=not failures), failures


def open_study(source: Source, plan: Plan, out: Path, hardware: Hardware) -> Study:
    """The study of a plan on data, and the folder, checked: nothing is trained or written yet."""
    splits = require_masks(source)
    for split in ("train", "val"):
        source.split(split)
    images = len(splits["train"])
    if images < MIN_IMAGES:
        raise InputError(f"{images} training images are too few to compare anything: take {MIN_IMAGES} or more")
    check_plan(plan)
    study = Study(source, plan, out, hardware, fingerprint(source, out))
    _check_folder(study)
    return study


def tasks_of(study: Study) -> list[Task]:
    """Every pre-training and every cell, in the order in which they should come: whole seeds first."""
    plan, tasks, named = study.plan, [], set()
    for seed in plan.seeds:
        for configuration in plan.configurations:
            if configuration.pretraining:
                start = plan.pretraining_seed(seed)
                name = plan.weights_name(configuration.pretraining, start)
                if name not in named:
                    named.add(name)
                    tasks.append(Task(f"weights {name}", "weights", _pretrain, (configuration.pretraining, start)))
    tasks.sort(key=lambda task: _is_barlow_twins(plan, task.arguments[0]))  # DINO, the longest, first
    for seed in plan.seeds:
        for configuration in plan.configurations:
            needs = ()
            if configuration.pretraining:
                needs = (f"weights {plan.weights_name(configuration.pretraining, plan.pretraining_seed(seed))}",)
            name = f"{configuration.name}, seed {seed}"
            tasks.append(Task(name, "training", _cell, (configuration, seed), needs))
    return tasks


def _is_barlow_twins(plan: Plan, key: str) -> bool:
    settings = plan.pretrainings[key].settings
    return settings is not None and settings.method == "barlow_twins"


@contextmanager
def _claimed(study: Study) -> Iterator[None]:
    """A folder belongs to one study, and to one process at a time: cells must not mix."""
    study.out.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(study.out / LOCK_FILE, timeout=0):
            _check_folder(study)
            write_json(study.out / STUDY_FILE, _described(study))
            yield
    except filelock.Timeout as error:
        raise InputError(
            f"another process is writing into {study.out}: wait for it, or choose another --out"
        ) from error


def _check_folder(study: Study) -> None:
    """InputError where the folder holds another study, one of another version, or something else."""
    out, described = study.out, _described(study)
    if not (out / STUDY_FILE).is_file():
        if out.is_dir() and any(path.name != LOCK_FILE for path in out.iterdir()):
            raise InputError(f"{out} is not empty and holds no study: choose another --out")
        return
    there = read_json(out / STUDY_FILE)
    if not isinstance(there, dict) or any(there.get(key) != described[key] for key in ("schema", "regard")):
        made = there.get("regard", "an unknown version") if isinstance(there, dict) else "an unknown version"
        raise InputError(
            f"{out} holds a study that regard {made} began, and this is {described['regard']}, of another format "
            "or version: go on with that one, or choose another --out"
        )
    differs = [key for key in described if there.get(key) != described[key]]
    if differs:
        raise InputError(f"{out} holds another study ({', '.join(differs)} differ): choose another --out, or delete it")


def _described(study: Study) -> dict[str, Any]:
    """What makes a study the same one. On a cluster, `auto` is whatever its machines have."""
    return {
        "schema": VERSION,
        "regard": version("regard"),
        "kind": study.plan.kind,
        "name": study.plan.name,
        "source": study.source.root,
        "data": study.content,
        "precision": [study.hardware.accelerator, study.hardware.precision],
    }


def _report(study: Study, command: str, failures: list[Failure], complete: bool) -> Path:
    """Write what is finished down. InputError where nothing is."""
    write_stored(study.out / RESULTS_FILE, gather(study, command, failures, complete))
    return write_report(study.out)


def _pretrain(study: Study, title: str, name: str, seed: int) -> str:
    """Make a pre-training, from published weights where the plan names some and they come. Says what came."""
    folder = study.pretraining_folder(name, seed)
    if study.pretrained(name, seed):
        return "finished before"
    choice = study.plan.pretrainings[name]
    backbone = study.plan.backbones[choice.backbone]
    if choice.weights:
        made = build_backbone(backbone.name, weights=choice.weights, **backbone.options)
        return _keep(folder, made, f"weights of {choice.weights}")
    assert choice.settings is not None  # checked with the plan
    train = study.source.images("train")
    settings = replace(choice.settings, batch_size=min(choice.settings.batch_size, len(train)))
    reason = ""
    if choice.published:
        try:
            made = build_backbone(choice.published, pretrained=True, **backbone.options)
        except InputError as error:
            reason = f"published weights {choice.published} could not be fetched: {error}"
        else:
            return _keep(folder, made, f"published weights: timm {choice.published}")
    origin = f"pre-trained here: {counted(settings.epochs, 'epoch')} of {len(train)} images, without labels"
    origin += f" ({reason})" if reason else ""
    torch.manual_seed(seed)
    extras = Extras(title, Origin(said=origin))
    made = pretrain_run(train, backbone.build(), settings, folder, seed, study.hardware, extras=extras)
    return f"{origin}, {made.seconds:.0f} s"


def _keep(folder: Path, backbone: Backbone, origin: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    save_backbone(backbone, folder / BACKBONE_FILE)
    kept = PretrainDescription(regard=version("regard"), backbone=describe(backbone), origin=Origin(said=origin))
    write_stored(folder / PRETRAIN_FILE, kept)
    return origin


def _cell(study: Study, title: str, configuration: Configuration, seed: int) -> str:
    """Train and score one configuration with one seed; `cell.json` comes last. Says what came.

    One that was trained, and not scored, is not trained again; what is damaged is.
    """
    folder = study.cell_folder(configuration, seed)
    if study.scored(configuration, seed):
        return "finished before"
    if not study.trained(configuration, seed):
        (folder / RUN_FILE).unlink(missing_ok=True)
        _train(study, title, configuration, seed)
    splits = require_masks(study.source)
    run, cache = load_run(folder, study.hardware.device), _cache(study, configuration)
    settings = run.description.settings
    scored = read_as(splits[scored_split(splits)], settings.values)
    if cache:
        content = cache.content_of(settings.values)
        counts = cached_counts(cache.folder, run, scored, content, study.hardware.workers, study.hardware.bar)
    else:
        counts = run.evaluate(scored)
    write_whole(folder / COUNTS_FILE, lambda file: np.savez_compressed(file, counts=counts))
    cell = CellResult(**vars(summary(run, counts)))
    try:
        cell.heads = _head_scores(study, run, scored)
    except InputError as error:  # of a run that diverged, attention is not finite: its mIoU counts all the same
        cell.heads_lost = str(error)
    write_stored(folder / CELL_FILE, cell)
    return f"mIoU {100 * cell.miou:.1f}%"


def _head_scores(study: Study, run: Run, scored: MaskDataset) -> CellHeads | None:
    """`scoring.cell_scores.head_scores`; of a frozen backbone once for all cells."""
    backbone, levels = run.model.backbone, run.model.head.levels
    values = run.description.settings.values
    kept = [weights_digest(backbone), list(levels), run.size, study.plan.groups, values.channels, values.range]
    about = json.dumps(kept)
    file = study.out / "heads" / f"{hashlib.sha256(about.encode()).hexdigest()[:32]}.json"
    frozen = run.description.settings.freeze
    with suppress(InputError):  # damaged: computed again
        if frozen and file.is_file():
            return read_json(file, CellHeads | None)
    found = head_scores(backbone, scored, levels, run.size, groups=study.plan.groups)
    if frozen:
        file.parent.mkdir(exist_ok=True)
        write_json(file, asdict(found) if found else None)
    return found


def _train(study: Study, title: str, configuration: Configuration, seed: int) -> None:
    plan, folder = study.plan, study.cell_folder(configuration, seed)
    splits, settings = require_masks(study.source), plan.settings(configuration)
    train, share = splits["train"], configuration.label_fraction
    if share < 1:
        train = Fraction(train, share, seed)
    torch.manual_seed(seed)
    if configuration.pretraining:
        backbone = build_backbone(study.pretraining_folder(configuration.pretraining, plan.pretraining_seed(seed)))
    else:
        backbone = plan.backbones[configuration.backbone].build()
    origin = Origin(
        data=study.source.root,
        pretraining=configuration.pretraining,
        label_fraction=share,
        commit=commit(),
        environment=environment() | {"precision": study.hardware.chosen_precision},
    )
    extras = Extras(title, origin, cache=_cache(study, configuration))
    segment_run(train, splits["val"], backbone, settings, folder, seed, study.hardware, extras)


def _cache(study: Study, configuration: Configuration) -> Cache | None:
    """Where the features of a configuration are kept; None where they are not."""
    keeps = study.plan.caches(study.plan.settings(configuration))
    return Cache(study.out / "features", study.content) if keeps else None
