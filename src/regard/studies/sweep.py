"""`regard sweep`: many trainings of one segmentation, with settings that Optuna chooses by how those before came out.

TPE: Bergstra et al. 2011, https://papers.nips.cc/paper/4443; a trial below the median of the others is given up early:
Golovin et al. 2017, https://doi.org/10.1145/3097983.3098043. Scored on `val` alone; no score is computed on `test`.

The folder of a sweep:

    settings.json                what is swept; a folder belongs to one sweep
    sweep.db, sweep.lock         the trials, by all processes that work on them: `trials.Trials`
    trials/N/                    a complete trial: `segmenting.segment_run`; only the best one keeps its model
    results.json, report.html    all of it, and the page made from it
    best.yaml                    the best trial, for `regard segment --config`
"""

import math
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from rich.console import Console
from rich.markup import escape

from regard.backbones import Backbone, build_backbone
from regard.backbones.base import weights_digest
from regard.backbones.weights import MODEL_FILE
from regard.data.source import Source, fingerprint, require_masks
from regard.errors import InputError, Interrupted, TrainingStopped
from regard.files import read_json, write_json
from regard.reports.sweep_report import RESULTS_FILE, write_sweep_report
from regard.runs.extras import Extras
from regard.runs.folders import SETTINGS_FILE
from regard.runs.segmenting import segment_run
from regard.settings import Hardware
from regard.studies.plan import plain
from regard.studies.space import Space, Value, build_settings, check_space
from regard.studies.sweep_results import BEST_FILE, collect, write_best
from regard.studies.tasks import FULL, full_disk, one_line, with_cache
from regard.studies.trials import DATABASE, GRACE, LOCK, Pruning, TrialFailed, Trials, import_optuna, state_of

TRIALS = "trials"  # the folder of their folders
POLL = 2.0  # seconds between looks at whether the last trials are over
PATIENCE, TIMES = 10.0, 6  # seconds that a process gets to save and end, and how often it is asked to
console = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Pretrained:
    """A backbone as `regard segment` is told of it."""

    name: str
    pretrained: bool = False
    weights: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, seed: int) -> Backbone:
        """The same one in every trial."""
        torch.manual_seed(seed)
        return build_backbone(self.name, self.pretrained, self.weights, **self.options)


@dataclass(frozen=True)
class Sweep:
    """What is swept. fixed: options that are the same in all trials, where the space does not have them."""

    source: Source
    backbone: Pretrained
    space: Space
    out: Path
    size: int = 224
    epochs: int = 50
    fixed: dict[str, Value] = field(default_factory=dict)
    seed: int = 0
    prune: bool = True
    hardware: Hardware = Hardware()

    def options(self, chosen: dict[str, Value]) -> dict[str, Any]:
        """Those of `regard segment` that train what a trial of these values trained; `out` is left to the user."""
        backbone = self.backbone
        given = {
            "data": self.source.root,
            "backbone": backbone.name,
            "pretrained": backbone.pretrained,
            "weights": backbone.weights,
            "backbone_options": backbone.options,
            "size": self.size,
            "epochs": self.epochs,
            "seed": self.seed,
            "accelerator": self.hardware.accelerator,
            "precision": self.hardware.precision,
            "workers": self.hardware.workers,
        }
        return {name: value for name, value in given.items() if value or name in ("seed", "workers")} | chosen


def run_sweep(sweep: Sweep, trials: int, jobs: int = 1, command: str = "regard.studies.sweep") -> dict[str, Any]:
    """Run what is not finished yet of so many trials; write results.json, best.yaml and report.html; returns the first.

    jobs: processes side by side; the same call in another process works on the same trials too.

    Raises InputError for data without masks or val, a space that cannot be used, a folder that holds something else, or
    where the first trials all fail; Interrupted when a signal stopped it; OSError where the disk is full.
    """
    import_optuna()
    splits = require_masks(sweep.source)
    for split in ("train", "val"):
        sweep.source.split(split)
    backbone = sweep.backbone.build(sweep.seed)
    check_space(sweep.space, backbone, sweep.fixed, sweep.epochs)
    _claim(sweep, backbone)
    book = Trials(sweep.out, trials, sweep.epochs, sweep.seed, sweep.prune)
    book.enqueue_first(sweep.space.usual())
    console.print(f"[bold]data[/]   {sweep.source.describe()}")
    console.print(
        f"[bold]sweep[/]  {trials} trials of {', '.join(sweep.space.varied)}, scored on {len(splits['val'])} images of "
        f"val, into {sweep.out}"
    )
    try:
        with _stoppable():
            _side_by_side(sweep, trials, jobs) if jobs > 1 else _work(sweep, book, 1)
    finally:
        _tidy(sweep, book)
        results = _write(sweep, book, command) if book.best else None
    if reason := book.hopeless:
        raise InputError(f"the first {len(book.counted()[:3])} trials all failed: {reason}")
    if results is None or not results["complete"]:
        raise TrainingStopped("a process of the sweep ended; what it said comes before this. The same command goes on")
    return results


def _write(sweep: Sweep, book: Trials, command: str) -> dict[str, Any]:
    results = collect(sweep, book, command)
    write_json(sweep.out / RESULTS_FILE, results)
    write_best(sweep.out / BEST_FILE, results, sweep.source.root)
    write_sweep_report(sweep.out)
    return results


def _claim(sweep: Sweep, backbone: Backbone) -> None:
    """A folder belongs to one sweep: its trials must not mix with those of another."""
    out = sweep.out
    settings = {
        "kind": "sweep",
        "source": sweep.source.root,
        "data": fingerprint(sweep.source, out),
        "backbone": [sweep.backbone.name, backbone.options, weights_digest(backbone)],
        "space": sweep.space.described(),
        "fixed": sweep.fixed | {"size": sweep.size, "epochs": sweep.epochs},
        "seed": sweep.seed,
        "prune": sweep.prune,
        "precision": [sweep.hardware.device, sweep.hardware.chosen_precision],
    }
    _check_claim(out, settings)  # before a lock file is left in a folder of something else
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / LOCK):  # another sweep may have been started at the same time
        if not _check_claim(out, settings):
            write_json(out / SETTINGS_FILE, settings)


def _check_claim(out: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder is this sweep's already; InputError where it is not, and cannot be."""
    if not (out / SETTINGS_FILE).is_file():
        if out.is_dir() and {path.name for path in out.iterdir()} - {LOCK, DATABASE}:
            raise InputError(f"{out} is not empty and holds no sweep: choose another --out")
        return False
    before = read_json(out / SETTINGS_FILE)
    if not isinstance(before, dict) or before.get("kind") != "sweep":
        raise InputError(f"{out} holds something else than a sweep: choose another --out")
    differs = [key for key, value in settings.items() if before.get(key) != plain(value)]
    if "seed" in differs and "backbone" in differs:  # whose random weights follow from the seed
        differs.remove("backbone")
    if differs:
        raise InputError(f"{out} holds another sweep ({', '.join(differs)} differ): choose another --out, or delete it")
    return True


def _side_by_side(sweep: Sweep, trials: int, jobs: int) -> None:
    """Until the trials are over, in processes; a signal to this one goes on to them, a full disk comes back."""
    # `spawn`: a forked copy of a process that has used torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_worker, args=(sweep, trials, jobs, job == 0)) for job in range(jobs)]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    except BaseException:
        _stop([worker for worker in workers if worker.pid is not None])  # those that were started
        raise
    for worker in workers:
        if worker.exitcode in FULL:
            raise OSError(worker.exitcode, os.strerror(worker.exitcode), str(sweep.out))


def _worker(sweep: Sweep, trials: int, jobs: int, speaks: bool) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    sweep = replace(sweep, hardware=replace(sweep.hardware, bar=False))
    try:
        with _stoppable():
            _work(sweep, Trials(sweep.out, trials, sweep.epochs, sweep.seed, sweep.prune), jobs, speaks)
    except (Interrupted, KeyboardInterrupt):
        raise SystemExit(130) from None  # the process that started this one says so
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise SystemExit(error.errno) from None  # likewise


def _work(sweep: Sweep, book: Trials, jobs: int, speaks: bool = True) -> None:
    """Run trials until so many are over, by whichever process. speaks: says what is waited for."""
    sweep = with_cache(sweep, jobs)
    parent, waited = multiprocessing.parent_process(), False
    while (outcome := book.run_next(partial(_train, sweep))) != "done":
        if parent is not None and not parent.is_alive():
            return
        if outcome == "ran":
            _tidy(sweep, book)
        elif not waited and speaks:
            numbers = ", ".join(str(trial.number) for trial in book.running())
            console.print(
                f"waiting for the last trials ({numbers}), which other processes run: one that stopped is run again "
                f"{GRACE} s after its last sign of life"
            )
        waited = outcome == "wait"
        if waited:
            time.sleep(POLL)


def _train(sweep: Sweep, trial: Any) -> float:
    """`_score`; says what came. Whatever a training stops at is its trial's failure, but for a full disk."""
    optuna = import_optuna()
    try:
        miou = _score(sweep, trial)
    except optuna.TrialPruned as error:
        console.print(f"[bold]trial {trial.number}[/]  given up after {error}: below the median")
        raise
    except (Interrupted, optuna.exceptions.OptunaError):  # the latter: of the file of trials
        raise
    except Exception as error:
        if full := full_disk(error):
            raise full from error
        reason = one_line(error)
        console.print(f"[bold]trial {trial.number}[/]  failed: {escape(reason)}")
        raise TrialFailed(reason) from error
    console.print(f"[bold]trial {trial.number}[/]  mIoU {100 * miou:.1f}%")
    return miou


def _score(sweep: Sweep, trial: Any) -> float:
    """The mIoU on val of the model that a training with these settings keeps."""
    folder = sweep.out / TRIALS / str(trial.number)
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    splits = require_masks(sweep.source)
    settings = build_settings(sweep.fixed | sweep.space.suggest(trial), sweep.size, sweep.epochs)
    backbone, extras = sweep.backbone.build(sweep.seed), Extras(f"trial {trial.number}", callbacks=(Pruning(trial),))
    made = segment_run(
        splits["train"], splits["val"], backbone, settings, folder, sweep.seed, sweep.hardware, extras
    )  # fmt: skip
    kept = made["best_epoch"] or made["curve"][-1]["epoch"]
    miou = next(point["val_miou"] for point in made["curve"] if point["epoch"] == kept)
    if not math.isfinite(miou):
        raise TrainingStopped(f"its mIoU on val is {miou}")
    for name in ("best_epoch", "seconds", "parameters"):
        trial.set_user_attr(name, made[name])
    return miou


def _tidy(sweep: Sweep, book: Trials) -> None:
    """The best trial keeps its model, other complete ones their run.json, the rest nothing."""
    with book.lock:
        best, states = book.best, {str(trial.number): state_of(trial) for trial in book.study.trials}
        for folder in (sweep.out / TRIALS).glob("*"):
            state = states.get(folder.name)
            if state == "complete" and best is not None and folder.name != str(best.number):
                (folder / MODEL_FILE).unlink(missing_ok=True)
            elif state in ("pruned", "failed", "lost"):
                shutil.rmtree(folder, ignore_errors=True)


def _stop(workers: Sequence[BaseProcess]) -> None:
    """Ask them to end, and see to it. A signal that comes at an odd moment is lost, as where Python swallows what is
    raised while an object is collected: it is sent again.
    """
    for _ in range(TIMES):
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
        deadline = time.monotonic() + PATIENCE
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        if not any(worker.is_alive() for worker in workers):
            return
    for worker in workers:
        worker.kill()
        worker.join()


@contextmanager
def _stoppable() -> Iterator[None]:
    """Within: SIGTERM ends a trial as it should be ended, also before and after its training."""

    def stop(number: int, frame: object) -> None:
        raise Interrupted("SIGTERM: finished trials are kept; the same command goes on", number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
