"""The tasks of a study, and what comes of each: never an exception, so that it crosses from process to process."""

import errno
import os
import textwrap
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from regard.data.loading.wrapped import Cached
from regard.errors import InputError, Interrupted, TrainingStopped

CACHE_BYTES = 2**31  # decoded images kept in memory by all processes together; the rest is decoded every epoch
FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk, or the user's share of it
FULL_WORDS = {os.strerror(number): number for number in FULL} | {"database or disk is full": errno.ENOSPC}  # SQLite's


class Hopeless(InputError):
    """Why the rest of a study would fail too, and is not begun."""


@dataclass(frozen=True)
class Task:
    """A part of a study: `function(study, name, *arguments)` does it, and says what came of it.

    name:     for people, and unlike that of any other task of the study.
    function: of a module's top level, so that it can be called in another process.
    needs:    names of tasks that must have come well before.
    """

    name: str
    stage: str  # "weights", "training"
    function: Callable[..., str]
    arguments: tuple[Any, ...] = ()
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Where:
    """Where tasks run.

    jobs:            how many at once, at least one a device; on a cluster, how many are queued or run at once.
    devices:         GPUs of this machine that they are dealt out to in turn.
    cluster:         "slurm", or "local": submitit's processes on this machine.
    cluster_options: submitit's: timeout_min, gpus_per_node, slurm_partition, ...
    """

    jobs: int = 1
    devices: int = 1
    cluster: Literal["slurm", "local"] | None = None
    cluster_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """A task that failed, or that was not run because one that it needs failed. error: one line."""

    name: str
    error: str


@dataclass(frozen=True)
class Outcome:
    """What a task said, or the line and the traceback of its error. stop: why nothing else may go on, to be raised."""

    said: str = ""
    error: str = ""
    traceback: str = ""
    stop: BaseException | None = None


def attempt(task: Task, study: Any) -> Outcome:
    """Do a task. All errors are the task's own, but for Ctrl-C, a signal, a full disk, and `Hopeless`."""
    try:
        return Outcome(said=task.function(study, task.name, *task.arguments))
    except (KeyboardInterrupt, Interrupted, Hopeless) as stop:
        return Outcome(stop=stop)
    except Exception as error:
        return Outcome(error=one_line(error), traceback=traceback.format_exc(), stop=full_disk(error))


def one_line(error: Exception) -> str:
    """What an error says, in one line; its type too, where it is none of ours."""
    text, ours = str(error).strip(), (InputError, TrainingStopped)
    if "Traceback (most recent call last)" in text:  # of a loading process: the last line is type and message
        text = text.splitlines()[-1].strip()
        for kind in ours:
            text = text.removeprefix(f"{kind.__module__}.{kind.__qualname__}: ")
    elif not isinstance(error, ours):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return textwrap.shorten(text, 400, placeholder=" ...")


def full_disk(error: BaseException | None, seen: tuple[BaseException, ...] = ()) -> OSError | None:
    """The error of a full disk among those that led to an error; None where there is none. seen: of them, already."""
    if error is None or any(error is other for other in seen):
        return None
    if isinstance(error, OSError) and error.errno in FULL:
        return error
    for words, number in FULL_WORDS.items():  # native code, as of safetensors and SQLite, has errors of its own
        if words in str(error):
            return OSError(number, os.strerror(number))
    seen = (*seen, error)
    return full_disk(error.__cause__, seen) or full_disk(error.__context__, seen)


def prepared(study: Any, jobs: int, bar: bool) -> Any:
    """The study for one of so many jobs: decoded images are kept in its share of the memory, by each of its loading
    processes. bar: whether it has the terminal for itself, and shows progress bars.
    """
    limit = CACHE_BYTES // (jobs * max(1, study.hardware.workers)) // len(study.source.splits)
    splits = {name: Cached(dataset, limit) for name, dataset in study.source.splits.items()}
    hardware = replace(study.hardware, bar=bar and study.hardware.bar)
    return replace(study, source=replace(study.source, splits=splits), hardware=hardware)
