"""Tasks as jobs of a cluster: SLURM through submitit, or submitit's own processes on this machine."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regard.errors import InputError, Interrupted, unknown
from regard.studies.processes import GPUS, deal, visible_gpus
from regard.studies.tasks import Outcome, Task, Where, attempt, with_cache, without_bars

POLL = 0.5  # seconds between looks at files of results; submitit asks SLURM itself more seldom
GRACE = 10.0  # seconds in which cancelled jobs should end
DEFAULTS = {"name": "regard", "timeout_min": 24 * 60}  # submitit's time limit is 5 minutes


class Cluster:
    """A job for each task, with logs, and what submitit writes, in out/jobs.

    A job that SLURM ends at its time limit or to make room is queued again, and goes on from its last checkpoint.
    """

    def __init__(self, study: Any, where: Where) -> None:
        self.most = where.jobs
        self.study = without_bars(study)
        self.executor = _executor(study.out / "jobs", where)
        self.jobs: dict[Any, tuple[Task, str | None]] = {}
        self.gpus: list[str | None] = [None] * where.jobs  # of those that may be submitted yet
        if where.cluster == "local":
            gpus = visible_gpus(study.hardware)
            # submitit's local jobs see no GPU, or the first ones of the machine, whatever this process may use
            all_of_them = ",".join(gpus)
            self.most = max(where.jobs, where.devices)
            self.gpus = [all_of_them if gpu is None else gpu for gpu in deal(self.most, where.devices, gpus)]
        elif where.devices > 1:
            raise InputError("--devices deals out the GPUs of one machine: SLURM's option for them is gpus_per_node")

    def start(self, task: Task) -> None:
        """Submit a task."""
        from submitit.core.utils import UncompletedJobError

        gpu = self.gpus.pop(0)
        try:
            self.jobs[self.executor.submit(_Job(task, self.study, gpu))] = task, gpu
        except UncompletedJobError as error:  # what submitit makes of sbatch's refusal
            raise InputError(f"the cluster took no job: {' '.join(str(error).split())}") from error

    def wait(self) -> list[tuple[Task, Outcome]]:
        """What has come by now, of one task at least."""
        while not (ended := [job for job in self.jobs if job.done()]):
            time.sleep(POLL)
        come = []
        for job in ended:
            task, gpu = self.jobs.pop(job)
            self.gpus.append(gpu)
            come.append((task, _outcome(job)))
        return come

    def close(self) -> None:
        """Cancel the jobs that are not finished."""
        for job in self.jobs:
            job.cancel(check=False)
        until = time.monotonic() + GRACE
        while not all(job.done() for job in self.jobs) and time.monotonic() < until:
            time.sleep(0.1)


@dataclass(frozen=True)
class _Job:
    """What a job calls. gpu: as CUDA_VISIBLE_DEVICES; None leaves it as the cluster sets it."""

    task: Task
    study: Any
    gpu: str | None

    def __call__(self) -> Outcome:
        if self.gpu is not None:
            os.environ[GPUS] = self.gpu  # before torch looks for GPUs
        outcome = attempt(self.task, with_cache(self.study, 1))
        if isinstance(outcome.stop, KeyboardInterrupt | Interrupted):
            sys.exit(f"{type(outcome.stop).__name__}: {outcome.stop}")  # no outcome: it was cancelled, or queued again
        return outcome

    def checkpoint(self) -> Any:
        """What submitit queues again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _outcome(job: Any) -> Outcome:
    from submitit.core.utils import UncompletedJobError

    try:
        return job.result()
    except UncompletedJobError as error:  # also the base of the error of a job that failed outside of the task
        line = f"its job {job.job_id} was lost ({job.state}): see {job.paths.stderr}"
        return Outcome(error=line, traceback=f"{line}\n\n{error}\n")


def _executor(folder: Path, where: Where) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise InputError("a cluster needs the package submitit: pip install 'regard[cluster]'") from error
    try:
        executor = submitit.AutoExecutor(folder.absolute(), cluster=where.cluster)
    except RuntimeError as error:  # there is no srun
        raise InputError(f"no SLURM here ({error}): take --cluster local, or none") from error
    # Only the error of a wrong name, of many lines, lists them in public.
    known = sorted(executor._valid_parameters()) + sorted(
        f"{where.cluster}_{name}" for name in type(executor._executor)._valid_parameters()
    )
    for name in where.cluster_options:
        if name not in known:
            raise unknown("cluster option", name, known)
    try:
        executor.update_parameters(**{**DEFAULTS, **where.cluster_options})
    except (AssertionError, TypeError, ValueError) as error:
        raise InputError(f"cluster options: {' '.join(str(error).split())}") from error
    return executor
