"""The trials of a sweep: an Optuna study in one SQLite file, which any number of processes work on side by side.

A trial has its number from the start, and a lock that whatever ends its process releases: so none is run twice, and one
whose process is gone is found out at once and goes on. (Optuna's journal needs no database, but cannot be read again
once a process was killed while it wrote a line.) What is tried follows from the seed, the number, and the trials that
are over, not from which process asks.
"""

import math
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import numpy as np
from filelock import FileLock, Timeout

from regard.errors import InputError, Interrupted, TrainingStopped, first_line
from regard.studies.tasks import Hopeless, full_disk, one_line

try:
    import optuna
    from optuna.exceptions import ExperimentalWarning, OptunaError, StorageInternalError
    from optuna.trial import FrozenTrial, Trial, TrialState
    from sqlalchemy.exc import SQLAlchemyError  # it comes with Optuna
    from sqlalchemy.pool import NullPool
except ImportError as error:
    raise InputError("a sweep needs the package optuna: pip install 'regard[sweep]'") from error

DATABASE, LOCK, STUDY = "sweep.db", "sweep.lock", "sweep"
TRIALS = "trials"  # the folder of their folders and locks
MOST_KILLED = 3  # a trial whose process was killed so often, as for want of memory, counts as failed
FIRST = 3  # if so many trials all fail, so will the rest
RANDOM = 10  # complete or pruned trials before the sampler looks at scores: until then it draws at random
STARTUP = 5  # finished trials before one is pruned: the median of fewer says little
optuna.logging.set_verbosity(optuna.logging.ERROR)  # what came of a trial is said here


class Trials:
    """The trials in a folder. epochs: of each; the first quarter is never pruned.

    Raises InputError for a file that cannot be used; OSError where the disk is full.
    """

    def __init__(self, folder: Path, epochs: int, seed: int, prune: bool = True) -> None:
        self.folder, self.seed = folder, seed
        self.lock = FileLock(folder / LOCK)
        warm = max(1, math.ceil(epochs / 4))
        pruner = optuna.pruners.MedianPruner(STARTUP, n_warmup_steps=warm + 1) if prune else optuna.pruners.NopPruner()
        path = (folder / DATABASE).resolve()
        try:
            with self.lock:
                # a file of any name, which its URL would read otherwise; it waits, in seconds, while others write
                connect = partial(sqlite3.connect, path, timeout=60, check_same_thread=False)
                engine = {"creator": connect, "poolclass": NullPool}  # no connection is kept, so none is left open
                self.storage = optuna.storages.RDBStorage(f"sqlite:///{DATABASE}", engine_kwargs=engine)
                self.study = optuna.create_study(
                    storage=self.storage, study_name=STUDY, direction="maximize", load_if_exists=True, pruner=pruner
                )
        except (SQLAlchemyError, StorageInternalError, RuntimeError) as error:
            if full := full_disk(error):
                raise full from error
            line = first_line(error)
            raise InputError(f"cannot use the trials in {path}: {line}; choose another --out, or delete it") from error

    def run(self, number: int, objective: Callable[[Trial], float], first: dict[str, Any]) -> str:
        """Run the trial of this number, unless it is over or another process is at it; says what came.

        objective: its error is that of the trial, which counts as failed; one that Ctrl-C, a signal, a full disk or the
        file of trials stopped waits to be run again. first: values for trial 0.

        Raises the error of the trial; Hopeless in its place where all of the first trials failed.
        """
        lock = FileLock(self.folder / TRIALS / f"{number}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return "left to another process"
        try:
            trial = self._begin(number, first)
            return self._run(trial, objective) if trial else "over before"
        finally:
            lock.release()

    def _begin(self, number: int, first: dict[str, Any]) -> Trial | None:
        with self.lock:
            while (there := len(self.study.trials)) <= number:
                self.study.enqueue_trial({} if there else first)
        before = self.study.trials[number]
        if before.state.is_finished():
            return None
        seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0])
        self.study.sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM, seed=seed, constant_liar=True)
        trial = Trial(self.study, before._trial_id)
        if before.state == TrialState.RUNNING:
            trial.set_user_attr("killed", before.user_attrs.get("killed", 0) + 1)
        self.storage.set_trial_state_values(before._trial_id, TrialState.RUNNING)
        return trial

    def _run(self, trial: Trial, objective: Callable[[Trial], float]) -> str:
        if trial.user_attrs.get("killed", 0) >= MOST_KILLED:
            reason = f"its process ended before it did, {MOST_KILLED} times, as happens for want of memory"
            self._fail(trial, TrainingStopped(reason))
        try:
            score = objective(trial)
        except optuna.TrialPruned as pruned:
            self.study.tell(trial, state=TrialState.PRUNED)
            return f"given up after {pruned}: below the median"
        except BaseException as error:
            if not isinstance(error, Exception) or isinstance(error, Interrupted | OptunaError) or full_disk(error):
                with suppress(StorageInternalError):  # of a full disk
                    self.storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
                raise
            self._fail(trial, error)
        self.study.tell(trial, score)
        return f"mIoU {100 * score:.1f}%"

    def _fail(self, trial: Trial, error: Exception) -> NoReturn:
        trial.set_user_attr("error", one_line(error))
        self.study.tell(trial, state=TrialState.FAIL)
        self.check_hope()
        raise error

    def over(self) -> list[FrozenTrial]:
        """The trials that are complete, pruned or failed, in their order."""
        return [trial for trial in self.study.trials if trial.state.is_finished()]

    def best(self) -> FrozenTrial | None:
        """The trial of the highest score, the first of equals; None before one is complete."""
        complete = [trial for trial in self.over() if trial.state == TrialState.COMPLETE]
        return max(complete, key=lambda trial: (trial.value, -trial.number), default=None)

    def check_hope(self) -> None:
        """Hopeless, with the reason of the first failure, where the first trials all failed."""
        first = self.over()[:FIRST]
        if len(first) == FIRST and all(trial.state == TrialState.FAIL for trial in first):
            raise Hopeless(f"the first {FIRST} trials all failed: {first[0].user_attrs['error']}")


class Pruning(L.Callback):
    """Tells a trial its score after each epoch, and ends one that is below the median of the others at that epoch."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        """Lightning has validated by then. A trial that has got to its end stays."""
        epoch = trainer.current_epoch + 1
        with quiet():
            self.trial.report(float(trainer.callback_metrics["val_miou"]), epoch)
        if epoch < (trainer.max_epochs or 0) and self.trial.should_prune():
            raise optuna.TrialPruned(f"epoch {epoch}")


def importance(study: optuna.Study, least: int = 8) -> dict[str, float] | None:
    """The share of each option in what tells the best quarter of the complete trials from all; None of too few trials,
    or where all came out the same.

    PED-ANOVA: Watanabe et al. 2023, https://arxiv.org/abs/2304.10255.
    """
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    if len(complete) < least or len({trial.value for trial in complete}) == 1:
        return None
    with quiet():
        judge = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
        return optuna.importance.get_param_importances(study, evaluator=judge)


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's warnings that a part of it may change, and that the score of an epoch was known before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", "The reported value is ignored")
        yield
