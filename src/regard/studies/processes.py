"""Tasks in processes of their own on this machine, several at once, each with its GPU and its share of the threads."""

import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from typing import Any

import torch

from regard.errors import InputError
from regard.settings import Hardware
from regard.studies.tasks import Outcome, Task, attempt, with_cache, without_bars

GRACE = 60.0  # seconds that a process gets to finish its step and save it, when all is stopped
POLL = 0.5  # seconds between looks at whether a process has died
ATTEMPTS = 2  # of a task whose process died: where memory ran out, a neighbour may have been the cause
GPUS = "CUDA_VISIBLE_DEVICES"


def visible_gpus(hardware: Hardware) -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none where it computes on the CPU."""
    count = torch.cuda.device_count() if hardware.on_gpu else 0
    listed = os.environ.get(GPUS)
    return [str(i) for i in range(count)] if listed is None else [name.strip() for name in listed.split(",")][:count]


def deal(jobs: int, devices: int, gpus: Sequence[str]) -> list[str | None]:
    """The GPU of each of so many jobs side by side, in turn; None where one device is used, and so nothing is dealt.

    Raises InputError where there are fewer GPUs than `devices`.
    """
    if devices == 1:
        return [None] * jobs
    if devices > len(gpus):
        raise InputError(f"{devices} devices, and {len(gpus)} GPUs to be seen here: take --devices {max(len(gpus), 1)}")
    return [gpus[i % devices] for i in range(jobs)]


class Processes:
    """A process for each of so many tasks at once, which keeps its decoded images from one task to the next.

    It is not one pool of them: where one dies, as the system kills where memory runs out, `concurrent.futures` ends its
    neighbours too. Here it costs one task, and that only if it happens twice.

    gpus: a process each.
    """

    def __init__(self, study: Any, gpus: Sequence[str | None]) -> None:
        self.most = len(gpus)
        self.free = [_Worker(without_bars(study), self.most, gpu) for gpu in gpus]
        self.busy: dict[_Worker, Task] = {}
        self.deaths: Counter[str] = Counter()

    def start(self, task: Task) -> None:
        """Begin a task in a process that is free."""
        worker = self.free.pop(0)
        self.busy[worker] = task
        worker.start(task)

    def wait(self) -> list[tuple[Task, Outcome]]:
        """What has come by now, of one task at least."""
        come: list[tuple[Task, Outcome]] = []
        while not come:
            wait_for_any([worker.connection for worker in self.busy], POLL)
            for worker, task in list(self.busy.items()):
                alive = worker.process.is_alive()  # asked first: the last thing that it says may come between
                outcome = worker.outcome() or (None if alive else self._again(worker, task))
                if outcome is not None:
                    come.append((task, outcome))
                    del self.busy[worker]
                    self.free.append(worker)
        return come

    def _again(self, worker: "_Worker", task: Task) -> Outcome | None:
        """Begin a task again whose process has died; the outcome, where it died every time."""
        died = worker.end()
        self.deaths[task.name] += 1
        if self.deaths[task.name] < ATTEMPTS:
            worker.start(task)
            return None
        error = f"its process died, {ATTEMPTS} times: {died}"
        return Outcome(error=error, traceback=f"{error}\n")

    def close(self) -> None:
        """End all processes. A training saves its step first; a second Ctrl-C does not wait for it."""
        workers = [worker for worker in (*self.free, *self.busy) if worker.is_there]
        try:
            for worker in workers:
                if worker in self.busy:
                    worker.process.terminate()
                worker.connection.close()
            until = time.monotonic() + GRACE
            for worker in workers:
                worker.process.join(max(0.0, until - time.monotonic()))
        finally:
            for worker in workers:
                worker.end()


class _Worker:
    """One process, there from its first task on, and the connection to it."""

    process: Any
    connection: Connection

    def __init__(self, study: Any, jobs: int, gpu: str | None) -> None:
        self.about = study, jobs, gpu
        self.is_there = False

    def start(self, task: Task) -> None:
        """Do a task."""
        if not self.is_there:
            context = multiprocessing.get_context("spawn")  # a forked copy of a process that used threads can hang
            self.connection, theirs = context.Pipe()
            self.process = context.Process(target=_serve, args=(theirs, *self.about))
            self.process.start()
            self.is_there = True
            theirs.close()  # so that its end is seen here
        with suppress(BrokenPipeError):  # it died while idle, which is found out by waiting for it
            self.connection.send(task)

    def outcome(self) -> Outcome | None:
        """What has come, if anything has."""
        try:
            return self.connection.recv() if self.connection.poll() else None
        except (EOFError, OSError):  # it died, perhaps in the middle of a word
            return None

    def end(self) -> str:
        """Leave nothing of the process; says what it died of."""
        self.process.kill()  # nothing, where it has ended
        self.process.join()
        code = self.process.exitcode
        self.process.close()
        self.connection.close()
        self.is_there = False
        if code == -signal.SIGKILL:
            return "SIGKILL, which the system sends where memory runs out (fewer --jobs need less)"
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def _serve(connection: Connection, study: Any, jobs: int, gpu: str | None) -> None:
    """What a process does: task after task, until the connection ends, as it also does when the parent is no more."""
    if gpu is not None:
        os.environ[GPUS] = gpu  # before torch looks for GPUs
    # Ctrl-C goes to all processes of a terminal; the parent answers it and asks this one to stop, which, as it raises,
    # clears up behind it. A training has answers of its own: `stopping.Checkpoints`.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    study = with_cache(study, jobs)
    with suppress(EOFError, ConnectionError):
        while True:
            connection.send(attempt(connection.recv(), study))
