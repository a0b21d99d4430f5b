"""The trials of a sweep: an Optuna study in one SQLite file, which any number of processes work on side by side.

What Optuna leaves to its user is here: the number of trials is that of all processes together, none is begun beyond it,
a trial whose process was killed or interrupted is tried again, and what is sampled follows from the seed and the trials
before, not from which process asks.
"""

import errno
import math
import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
from filelock import FileLock

from regard.errors import InputError, Interrupted

DATABASE, LOCK = "sweep.db", "sweep.lock"
HEARTBEAT, GRACE = 10, 60  # seconds between signs of life of a trial, and without one until it is given up
MOST_KILLED = 3  # a trial whose process was killed so often, as for want of memory, counts as failed
FIRST = 3  # if so many trials all fail, so will the rest
RANDOM = 10  # complete or pruned trials before the sampler looks at scores: until then it draws at random
STARTUP = 5  # finished trials before one is pruned: the median of fewer says little
FULL = "database or disk is full"  # SQLite's words for it
Outcome = Literal["ran", "wait", "done"]


class TrialFailed(Exception):
    """A trial that cannot be trained, with its reason; the sweep goes on."""


class Trials:
    """wanted: how many, finished, pruned or failed. epochs: of each; the first quarter is never pruned."""

    def __init__(self, folder: Path, wanted: int, epochs: int, seed: int, prune: bool = True) -> None:
        optuna = import_optuna()
        from sqlalchemy.exc import SQLAlchemyError  # it comes with Optuna

        self.wanted, self.seed = wanted, seed
        self.lock = FileLock(folder / LOCK)
        warm = max(1, math.ceil(epochs / 4))
        pruner = optuna.pruners.MedianPruner(STARTUP, n_warmup_steps=warm + 1) if prune else optuna.pruners.NopPruner()
        self.path = path = (folder / DATABASE).resolve()
        try:
            with self.lock, _quiet(), _full_disk_said(path):
                storage = optuna.storages.RDBStorage(
                    f"sqlite:///{path}",
                    engine_kwargs={"connect_args": {"timeout": 60}},  # others may be writing
                    heartbeat_interval=HEARTBEAT,
                    grace_period=GRACE,
                )
                storage.record_heartbeat = _forgiving(storage.record_heartbeat)
                self.study = optuna.create_study(
                    storage=storage, study_name="sweep", direction="maximize", load_if_exists=True, pruner=pruner
                )
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
            line = str(error).strip().splitlines()[0]
            raise InputError(f"cannot use the trials in {path}: {line}; choose another --out, or delete it") from error

    def enqueue_first(self, options: dict[str, Any]) -> None:
        """Values to begin with; nothing where the sweep has begun."""
        with self.lock, _full_disk_said(self.path):
            if not self.study.trials:
                self.study.enqueue_trial(options)

    def run_next(self, objective: Callable[[Any], float]) -> Outcome:
        """Run one trial where one is still to be run. `wait`: the last ones are running, and may have to be run again.

        objective: of Optuna's trial; it may raise TrialFailed or TrialPruned. Other errors get out, and the trial is
        tried again.

        Raises OSError where the disk is full; the trials are as they were.
        """
        optuna = import_optuna()
        given_up = False  # by the others while this process slept, and tried again by one of them

        def begin(trial: Any) -> float:
            nonlocal given_up
            trial.set_user_attr("begun", True)
            self.lock.release()
            try:
                return objective(trial)
            except optuna.exceptions.UpdateFinishedTrialError:
                given_up = True
                raise
            except TrialFailed as failure:
                trial.set_user_attr("error", str(failure))
                raise
            except (Interrupted, KeyboardInterrupt, OSError):
                with suppress(optuna.exceptions.StorageInternalError):  # of a full disk
                    trial.set_user_attr("interrupted", True)
                raise

        with _quiet(), _full_disk_said(self.path):
            self.lock.acquire()
            try:
                self._try_lost_ones_again()
                counted, running = len(self.counted()), len(self.running())
                if counted >= self.wanted or self.hopeless:
                    return "done"
                if counted + running >= self.wanted:
                    return "wait"
                seed = int(np.random.SeedSequence((self.seed, counted + running)).generate_state(1)[0])
                self.study.sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM, seed=seed, constant_liar=True)
                self.study.optimize(begin, n_trials=1, catch=(TrialFailed,))
            except ValueError:  # Optuna will not hear of it
                if not given_up:
                    raise
            finally:
                if self.lock.is_locked:
                    self.lock.release()
        return "ran"

    def counted(self) -> list[Any]:
        """The trials that are over for good, in their order."""
        return [trial for trial in self.study.trials if state_of(trial) in ("complete", "pruned", "failed")]

    def running(self) -> list[Any]:
        """Those that some process is at."""
        return [trial for trial in self.study.trials if state_of(trial) == "running"]

    @property
    def best(self) -> Any | None:
        """The trial of the highest score, the first of equals; None before one is complete."""
        complete = [trial for trial in self.counted() if state_of(trial) == "complete"]
        return max(complete, key=lambda trial: (trial.value, -trial.number), default=None)

    @property
    def hopeless(self) -> str | None:
        """The reason of the first failure, where all of the first trials failed."""
        first = self.counted()[:FIRST]
        if len(first) < min(FIRST, self.wanted) or any(state_of(trial) != "failed" for trial in first):
            return None
        return reason_of(first[0])

    def _try_lost_ones_again(self) -> None:
        """Those whose process is gone, and those that were interrupted, with the values that they had."""
        optuna = import_optuna()
        optuna.storages.fail_stale_trials(self.study)
        for trial in self.running():  # killed before its first sign of life, so Optuna does not miss it
            if "begun" not in trial.user_attrs and datetime.now() - trial.datetime_start > timedelta(seconds=GRACE):
                self.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        trials = self.study.trials
        known = {trial.user_attrs.get("again") for trial in trials}
        for trial in trials:
            if state_of(trial) == "lost" and trial.number not in known:
                killed = trial.user_attrs.get("killed", 0) + ("interrupted" not in trial.user_attrs)
                self.study.enqueue_trial(trial.params, user_attrs={"again": trial.number, "killed": killed})


def state_of(trial: Any) -> str:
    """complete, pruned, failed, running, waiting; or lost: to be tried again, and not counted."""
    state = trial.state.name.lower()
    if state != "fail":
        return state
    return "failed" if reason_of(trial) else "lost"


def reason_of(trial: Any) -> str | None:
    """Why a trial failed, in one line."""
    if "error" in trial.user_attrs:
        return trial.user_attrs["error"]
    if "interrupted" not in trial.user_attrs and trial.user_attrs.get("killed", 0) + 1 >= MOST_KILLED:
        return f"its process ended before it did, {MOST_KILLED} times, as happens for want of memory"
    return None


class Pruning(L.Callback):
    """Tells a trial its score after each epoch, and ends one that is below the median of the others at that epoch."""

    def __init__(self, trial: Any) -> None:
        self.trial = trial

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        """Lightning has validated by then. A trial that has got to its end stays."""
        epoch = trainer.current_epoch + 1
        self.trial.report(float(trainer.callback_metrics["val_miou"]), epoch)
        if epoch < (trainer.max_epochs or 0) and self.trial.should_prune():
            raise import_optuna().TrialPruned(f"epoch {epoch}")


def importance(study: Any, least: int = 8) -> dict[str, float] | None:
    """The share of each option in what tells the best quarter of the complete trials from all; None of too few trials.

    PED-ANOVA: Watanabe et al. 2023, https://arxiv.org/abs/2304.10255.
    """
    optuna = import_optuna()
    if sum(trial.state.name == "COMPLETE" for trial in study.trials) < least:
        return None
    with _quiet():
        found = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25).evaluate(study)
    total = sum(found.values())
    return {name: float(share / total) for name, share in found.items()} if total > 0 else None


def import_optuna() -> Any:
    """Optuna; InputError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise InputError("a sweep needs the package optuna: pip install 'regard[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what came of a trial is said here
    return optuna


@contextmanager
def _full_disk_said(path: Path) -> Iterator[None]:
    """Within: where SQLite finds the disk full, an OSError in the place of what Optuna makes of that."""
    try:
        yield
    except Exception as error:
        if any(FULL in line for line in traceback.format_exception(error)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def _forgiving(record: Callable[[int], None]) -> Callable[[int], None]:
    """Signs of life that go on after one that could not be written; Optuna's thread would end with a traceback."""

    def tried(trial_id: int) -> None:
        with suppress(import_optuna().exceptions.StorageInternalError):
            record(trial_id)

    return tried


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's warnings that heartbeats and PED-ANOVA may change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", import_optuna().exceptions.ExperimentalWarning)
        yield
