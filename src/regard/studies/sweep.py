"""`regard sweep`: many trainings of one segmentation, with settings that Optuna chooses by how those before came out.

TPE: Bergstra et al. 2011, https://papers.nips.cc/paper/4443; a trial below the median of the others is given up early:
Golovin et al. 2017, https://doi.org/10.1145/3097983.3098043. Scored on `val` alone; no score is computed on `test`.

The folder of a sweep:

    settings.json                what is swept; a folder belongs to one sweep
    sweep.db, sweep.lock         the trials, by all processes that work on them: `trials.Trials`
    trials/N/                    a complete trial: `segmenting.segment_run`; only the best one keeps its model
    failures/                    the tracebacks of what failed
    results.json, report.html    all of it, and the page made from it
    best.yaml                    the best trial, for `regard segment --config`
"""

import math
import shutil

from regard.backbones.weights import MODEL_FILE
from regard.data.source import require_masks
from regard.errors import InputError, TrainingStopped
from regard.reports.sweep_report import RESULTS_FILE, write_sweep_report
from regard.results import SweepResults, write_stored
from regard.runs.extras import Extras
from regard.runs.segmenting import segment_run
from regard.say import counted, say
from regard.settings import SegmentSettings, changed
from regard.studies.jobs import run_all
from regard.studies.space import check_space
from regard.studies.sweep_plan import Sweep, claim
from regard.studies.sweep_results import collect, write_best
from regard.studies.tasks import Task, Where
from regard.studies.trials import TRIALS, Pruning, Trial, Trials, TrialState


def run_sweep(sweep: Sweep, trials: int, jobs: int = 1, command: str = "regard.studies.sweep") -> SweepResults:
    """Run what is not finished yet of so many trials; write results.json, best.yaml and report.html; returns the first.

    jobs: processes side by side; the same call in another process works on the same trials too.

    Raises InputError for data without masks or val, a space that cannot be used, a folder that holds something else, or
    where the first trials all fail; Interrupted when a signal stopped it; OSError where the disk is full.
    """
    splits = require_masks(sweep.source)
    for split in ("train", "val"):
        sweep.source.split(split)
    backbone = sweep.build()
    check_space(sweep.space, backbone, sweep.settings)
    claim(sweep, backbone)
    book = _open(sweep)
    book.check_hope()
    say(sweep.source.describe(), "data")
    on = f"scored on {len(splits['val'])} images of val, into {sweep.out}"
    say(f"{counted(trials, 'trial')} of {', '.join(sweep.space.varied)}, {on}", "sweep")
    over = {trial.number for trial in book.over()}
    tasks = [Task(f"trial {n}", "trials", _trial, (n,)) for n in range(trials) if n not in over]
    results = None
    try:
        run_all(tasks, sweep, Where(jobs))
    finally:
        _tidy(sweep, book)
        if book.best():
            results = collect(sweep, book, trials, command)
            write_stored(sweep.out / RESULTS_FILE, results)
            write_best(sweep.out, results, sweep.source.root)
            write_sweep_report(sweep.out)
    if results is not None and results.complete:
        return results
    if len(book.over()) >= trials:
        raise InputError(f"the first {trials} trials all failed: {book.over()[0].user_attrs['error']}")
    raise TrainingStopped("trials are left to another process, or their process ended: the same command goes on")


def _open(sweep: Sweep) -> Trials:
    return Trials(sweep.out, sweep.settings.epochs, sweep.seed, sweep.prune)


def _trial(sweep: Sweep, name: str, number: int) -> str:
    """Run one trial; says what came."""
    book = _open(sweep)
    try:
        return book.run(number, lambda trial: _score(sweep, name, trial), sweep.space.usual())
    finally:
        _tidy(sweep, book)


def _score(sweep: Sweep, name: str, trial: Trial) -> float:
    """The mIoU on val of the model that a training with these settings keeps."""
    splits = require_masks(sweep.source)
    settings = changed(SegmentSettings(), sweep.space.suggest(trial, sweep.fixed))
    backbone, extras = sweep.build(), Extras(name, callbacks=(Pruning(trial),))
    folder = sweep.out / TRIALS / str(trial.number)
    made = segment_run(
        splits["train"], splits["val"], backbone, settings, folder, sweep.seed, sweep.hardware, extras
    )  # fmt: skip
    miou = made.miou
    if miou is None or not math.isfinite(miou):
        raise TrainingStopped(f"its mIoU on val is {miou}")
    return miou


def _tidy(sweep: Sweep, book: Trials) -> None:
    """The best trial keeps its model, other complete ones their run.json, the rest nothing."""
    with book.lock:
        best = book.best()
        for trial in book.over():
            folder = sweep.out / TRIALS / str(trial.number)
            if trial.state != TrialState.COMPLETE:
                shutil.rmtree(folder, ignore_errors=True)
            elif best is not None and trial.number != best.number:
                (folder / MODEL_FILE).unlink(missing_ok=True)
