"""Runs the tasks of a study, each as soon as what it needs is there: here, in processes side by side, or on a cluster.

A task that fails costs itself and those that need it. Three things stop the whole: Ctrl-C, a signal, and a full disk.
"""

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from regard.errors import Interrupted
from regard.files import write_whole
from regard.settings import Hardware
from regard.studies.cluster import Cluster
from regard.studies.processes import Processes, deal, visible_gpus
from regard.studies.tasks import Failure, Outcome, Task, Where, attempt, with_cache

console = Console(stderr=True, highlight=False, soft_wrap=True)


def default_jobs(hardware: Hardware) -> int:
    """One training at a time on a GPU. On a CPU one per core, four at most: tiny models leave a second thread idle."""
    return 1 if hardware.on_gpu else min(4, os.cpu_count() or 1)


def run_all(tasks: Sequence[Task], study: Any, where: Where) -> list[Failure]:
    """Run every task whose needs came well, say what came of each, and give those that failed, in the order of `tasks`.

    study: a dataclass with `source`, `hardware` and `out`, below which failures/NAME.txt get whole tracebacks. Of the
    tasks that may begin, the first one in `tasks` does.

    Raises KeyboardInterrupt, Interrupted, and the OSError of a full disk, once what runs beside has saved and stopped;
    what was finished stays. InputError for more devices than there are, and a cluster that is not to be had.
    """
    named = {task.name: task for task in tasks}
    assert len(named) == len(tasks), "no two tasks have one name"
    assert all(need in named for task in tasks for need in task.needs), "a task needs one that is not there"
    order = TopologicalSorter({task.name: task.needs for task in tasks})
    order.prepare()  # raises CycleError
    rank = {name: i for i, name in enumerate(named)}
    ready: list[str] = []
    errors: dict[str, str] = {}
    causes: dict[str, str] = {}  # of each that was not run, the one that failed
    running = 0
    with _answer_sigterm(), _open(study, where, len(tasks)) as place, _Report(tasks, study.out, where) as report:
        while order.is_active():
            ready = sorted([*ready, *order.get_ready()], key=rank.__getitem__)
            blocked = {name: need for name in ready for need in reversed(named[name].needs) if need in errors}
            for name, need in blocked.items():
                causes[name] = causes.get(need, need)
                errors[name] = f"not run: {causes[name]} failed"
                report.add(named[name], Outcome(error=errors[name]))
                order.done(name)
            ready = [name for name in ready if name not in blocked]
            while ready and running < place.most:
                place.start(named[ready.pop(0)])
                running += 1
            for task, outcome in place.wait() if running else ():
                running -= 1
                if outcome.stop is not None:
                    raise outcome.stop
                if outcome.error:
                    errors[task.name] = outcome.error
                report.add(task, outcome)
                order.done(task.name)
    return [Failure(name, errors[name]) for name in named if name in errors]


class _Report:
    """Says what came of each task, a line each, and keeps the tracebacks of failures in out/failures.

    Beside other processes' work a bar shows how far each stage is; a task in this process has bars of its own.
    """

    def __init__(self, tasks: Sequence[Task], out: Path, where: Where) -> None:
        self.folder = out / "failures"
        self.totals, self.come = Counter(task.stage for task in tasks), Counter[str]()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=console, transient=True, disable=_is_here(where))
        self.bars = {stage: self.progress.add_task(stage, total=total) for stage, total in self.totals.items()}

    def __enter__(self) -> "_Report":
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def add(self, task: Task, outcome: Outcome) -> None:
        """The outcome of one more task."""
        stage = task.stage
        self.come[stage] += 1
        came = f"[red]{escape(outcome.error)}[/]" if outcome.error else escape(outcome.said)
        console.print(f"[bold]{stage:8}[/] {self.come[stage]}/{self.totals[stage]}  {escape(task.name)}: {came}")
        self.progress.advance(self.bars[stage])
        path = self.folder / f"{quote(task.name, safe=' ,=')[:200]}.txt"  # a name may hold what no file name may
        if outcome.traceback:
            write_whole(path, lambda file: file.write(outcome.traceback.encode(errors="backslashreplace")))
        elif not outcome.error:
            path.unlink(missing_ok=True)
            with suppress(OSError):  # not empty, or not there
                self.folder.rmdir()


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


class _Place(Protocol):
    """Somewhere that up to `most` tasks run at once."""

    most: int

    def start(self, task: Task) -> None: ...

    def wait(self) -> list[tuple[Task, Outcome]]: ...

    def close(self) -> None: ...


def _is_here(where: Where) -> bool:
    return where.cluster is None and max(where.jobs, where.devices) == 1


@contextmanager
def _open(study: Any, where: Where, tasks: int) -> Iterator[_Place]:
    """The place for tasks that `where` names. Nothing of it runs on when it is left, for whatever reason."""
    place: _Place
    if where.cluster is not None:
        place = Cluster(study, where)
    elif _is_here(where):
        place = _Here(study)
    else:
        most = min(max(where.jobs, where.devices), max(tasks, 1))  # threads are shared out among those that work
        place = Processes(study, deal(most, where.devices, visible_gpus(study.hardware)))
    try:
        yield place
    finally:
        place.close()


class _Here:
    """One task after the other, in this process."""

    most = 1

    def __init__(self, study: Any) -> None:
        self.study = with_cache(study, 1)

    def start(self, task: Task) -> None:
        """It runs when it is waited for."""
        self.task = task

    def wait(self) -> list[tuple[Task, Outcome]]:
        """Run it."""
        return [(self.task, attempt(self.task, self.study))]

    def close(self) -> None:
        """Nothing runs."""
