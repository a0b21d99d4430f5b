"""Runs the tasks of a study, each as soon as what it needs is there: here, in processes side by side, or on a cluster.

A task that fails costs itself and those that need it. What stops the whole: Ctrl-C, a signal, a full disk, `Hopeless`.
"""

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from regard.errors import Interrupted
from regard.files import write_whole
from regard.say import say
from regard.settings import Hardware
from regard.studies.cluster import Cluster
from regard.studies.places import Place, Processes, deal, visible_gpus
from regard.studies.tasks import Failure, Outcome, Task, Where, prepared


def default_jobs(hardware: Hardware) -> int:
    """One training at a time on a GPU. On a CPU one per core, four at most: tiny models leave a second thread idle."""
    return 1 if hardware.on_gpu else min(4, os.cpu_count() or 1)


def run_all(tasks: Sequence[Task], study: Any, where: Where) -> list[Failure]:
    """Run every task whose needs came well, say what came of each, and give those that failed, in the order of `tasks`.

    tasks: each after those that it needs; of those that may begin, the first does.
    study: a dataclass with `source`, `hardware` and `out`, below which failures/NAME.txt get whole tracebacks.

    Raises KeyboardInterrupt, Interrupted, Hopeless, and the OSError of a full disk, once what runs beside has saved and
    stopped; what was finished stays. InputError for more devices than there are, and a cluster that is not to be had.
    """
    left: dict[str, Task] = {}
    for task in tasks:
        assert task.name not in left, "no two tasks have one name"
        assert left.keys() >= set(task.needs), "a task comes after those that it needs"
        left[task.name] = task
    well: set[str] = set()
    errors: dict[str, str] = {}
    causes: dict[str, str] = {}  # of each that was not run, the one that failed
    tell = _teller(tasks, study.out / "failures")
    with _answer_sigterm(), _open(study, where, len(tasks)) as place:
        while left or place.running:
            for task in list(left.values()):
                need = next((need for need in task.needs if need in errors), None)
                if need is not None:
                    causes[task.name] = causes.get(need, need)
                    errors[task.name] = f"not run: {causes[task.name]} failed"
                    tell(left.pop(task.name), Outcome(error=errors[task.name]))
                elif place.free and well.issuperset(task.needs):
                    place.start(left.pop(task.name))
            for task, outcome in place.wait():
                if outcome.stop is not None:
                    raise outcome.stop
                if outcome.error:
                    errors[task.name] = outcome.error
                else:
                    well.add(task.name)
                tell(task, outcome)
    return [Failure(task.name, errors[task.name]) for task in tasks if task.name in errors]


def _teller(tasks: Sequence[Task], folder: Path) -> Callable[[Task, Outcome], None]:
    """What says what came of a task, a line each, and keeps its traceback in the folder until it comes well."""
    totals, come = Counter(task.stage for task in tasks), Counter[str]()

    def tell(task: Task, outcome: Outcome) -> None:
        come[task.stage] += 1
        said = f"{come[task.stage]}/{totals[task.stage]}  {task.name}: {outcome.error or outcome.said}"
        say(said, task.stage, "red" if outcome.error else "")
        path = folder / f"{quote(task.name, safe=' ,=')[:200]}.txt"  # a name may hold what no file name may
        if outcome.traceback:
            write_whole(path, lambda file: file.write(outcome.traceback.encode(errors="backslashreplace")))
        elif not outcome.error:
            path.unlink(missing_ok=True)
            with suppress(OSError):  # not empty, or not there
                folder.rmdir()

    return tell


@contextmanager
def _answer_sigterm() -> Iterator[None]:
    """SIGTERM stops as Ctrl-C does, instead of leaving other processes behind."""

    def stop(number: int, frame: object) -> None:
        name = signal.Signals(number).name
        raise Interrupted(f"{name}: what was finished is kept; the same command goes on", number)

    if threading.current_thread() is not threading.main_thread():  # no other may answer signals
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextmanager
def _open(study: Any, where: Where, tasks: int) -> Iterator[Place]:
    """The place for tasks that `where` names. Nothing of it runs on when it is left, for whatever reason."""
    most = max(where.jobs, where.devices)
    if where.cluster is not None:
        place = Cluster(study, where)
    elif most == 1:
        place = Place(prepared(study, 1, bar=True))
    else:
        most = min(most, max(tasks, 1))  # threads are shared out among those that work
        place = Processes(study, deal(most, where.devices, visible_gpus(study.hardware)))
    try:
        yield place
    finally:
        place.close()
