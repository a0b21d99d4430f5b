"""Runs the parts of a study one after the other, or several side by side in processes of their own."""

import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from regard.data.samples import Cached
from regard.studies.training import Hardware

CACHE_BYTES = 2**31  # decoded images kept in memory by all processes together; the rest is decoded every epoch
console = Console(stderr=True, highlight=False, soft_wrap=True)
Task = tuple[Callable[..., str], str, tuple[Any, ...]]  # (function of (study, title, *arguments), title, arguments)


def default_jobs(hardware: Hardware) -> int:
    """One training at a time on a GPU. On a CPU one per core, four at most: tiny models leave a second thread idle."""
    return 1 if hardware.on_gpu else min(4, os.cpu_count() or 1)


def run_all(stages: Mapping[str, Sequence[Task]], study: Any, jobs: int) -> None:
    """Run the tasks of each stage, one stage after the other, and say what came of each task.

    jobs: how many tasks at once; the machine's threads are shared out among them.
    A task that raises ends the whole, after those that run beside it; what was finished stays.
    """
    if jobs == 1:
        study = _with_cache(study, jobs)
        for stage, tasks in stages.items():
            for number, (function, title, arguments) in enumerate(tasks, 1):
                _say(stage, number, len(tasks), title, function(study, title, *arguments))
        return
    # `spawn`: a forked copy of a process that has used torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Progress(*columns, console=console, transient=True) as progress,
        ProcessPoolExecutor(jobs, context, _start, (study, jobs)) as pool,
    ):
        for stage, tasks in stages.items():
            bar = progress.add_task(stage, total=len(tasks))
            futures = {pool.submit(_run, *task): task[1] for task in tasks}
            try:
                for number, future in enumerate(as_completed(futures), 1):
                    _say(stage, number, len(tasks), futures[future], future.result())
                    progress.advance(bar)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _say(word: str, number: int, total: int, title: str, outcome: str) -> None:
    console.print(f"[bold]{word:8}[/] {number}/{total}  {title}: {outcome}")


_study: Any = None  # of this worker process: opened once, so that decoded images serve all of its tasks


def _start(study: Any, jobs: int) -> None:
    global _study
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    _study = _with_cache(replace(study, hardware=replace(study.hardware, bar=False)), jobs)


def _run(function: Callable[..., str], title: str, arguments: tuple[Any, ...]) -> str:
    return function(_study, title, *arguments)


def _with_cache(study: Any, jobs: int) -> Any:
    limit = CACHE_BYTES // jobs // len(study.source.splits)
    splits = {name: Cached(dataset, limit) for name, dataset in study.source.splits.items()}
    return replace(study, source=replace(study.source, splits=splits))
