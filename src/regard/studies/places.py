"""Where tasks run: in this process, or in several side by side, each with its GPU and its share of the threads."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from regard.errors import InputError
from regard.settings import Hardware
from regard.studies.tasks import Outcome, Task, attempt, prepared

GRACE = 60.0  # seconds that a process gets to finish its step and save it, when all is stopped
POLL = 0.1  # seconds between looks at what has come
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


class Place:
    """One task after the other, in this process. A subclass runs several at once, each in a slot of its own."""

    def __init__(self, study: Any, slots: Iterable[Any] = (None,)) -> None:
        self.study, self.free = study, list(slots)
        self.running: dict[Any, tuple[Task, Any]] = {}

    def start(self, task: Task) -> None:
        """Begin a task in a slot that is free."""
        slot = self.free.pop(0)
        self.running[self.submit(task, slot)] = task, slot

    def wait(self) -> list[tuple[Task, Outcome]]:
        """What has come by now, of one task at least where one runs."""
        ended: list[Any] = []
        while self.running and not (ended := [job for job in self.running if job.done()]):
            time.sleep(POLL)
        come = []
        for job in ended:
            task, slot = self.running.pop(job)
            self.free.append(slot)
            come.append((task, self.outcome(job)))
        return come

    def submit(self, task: Task, slot: Any) -> Any:
        """A job, which says whether it is done()."""
        job: Future[Outcome] = Future()
        job.set_result(attempt(task, self.study))
        return job

    def outcome(self, job: Any) -> Outcome:
        """What came of a job that is done."""
        return job.result()

    def close(self) -> None:
        """End what still runs."""


class Processes(Place):
    """A process for each of so many tasks at once, which keeps its decoded images from one task to the next.

    Each is a pool of its own. Where a process dies, as the system kills it where memory runs out, its pool is lost, and
    with it one task; in one pool of all it would be every task that runs. gpus: a process each.
    """

    def __init__(self, study: Any, gpus: Sequence[str | None]) -> None:
        super().__init__(study, range(len(gpus)))
        self.gpus = gpus
        self.pools: dict[int, ProcessPoolExecutor] = {}

    def submit(self, task: Task, slot: int) -> Future[Outcome]:
        """Begin it in the process of a slot."""
        try:
            return self.pools[slot].submit(_attempt, task)
        except (KeyError, BrokenProcessPool):  # there is none yet, or it died
            spawn = multiprocessing.get_context("spawn")  # a forked copy of a process that used threads can hang
            self.pools[slot] = ProcessPoolExecutor(1, spawn, _begin, (self.study, len(self.gpus), self.gpus[slot]))
            return self.pools[slot].submit(_attempt, task)

    def outcome(self, job: Future[Outcome]) -> Outcome:
        """What came of a job that is done, which may be the end of its process."""
        try:
            return job.result()
        except BrokenProcessPool:
            error = "its process died, as where memory runs out (fewer --jobs need less)"
            return Outcome(error=error, traceback=f"{error}\n")

    def close(self) -> None:
        """End all processes. A training saves its step first; a second Ctrl-C does not wait for it."""
        workers = multiprocessing.active_children() if self.running else []
        for pool in self.pools.values():
            pool.shutdown(wait=not workers, cancel_futures=True)
        try:
            for worker in workers:
                worker.terminate()
            until = time.monotonic() + GRACE
            for worker in workers:
                worker.join(max(0.0, until - time.monotonic()))
        finally:
            for worker in workers:
                worker.kill()  # nothing, where it has ended


def _begin(study: Any, jobs: int, gpu: str | None) -> None:
    """What a process does first."""
    global _study
    if gpu is not None:
        os.environ[GPUS] = gpu  # before torch looks for GPUs
    # Ctrl-C goes to all processes of a terminal; the parent answers it and asks this one to stop, which, as it raises,
    # clears up behind it. A training has answers of its own: `stopping.Checkpoints`.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    _study = prepared(study, jobs, bar=False)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    while True:  # a training saves and ends at the first; what then waits for its next task, at the second
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)


def _attempt(task: Task) -> Outcome:
    return attempt(task, _study)
