"""Tasks as jobs of a cluster: SLURM through submitit, or submitit's own processes on this machine."""

import os
import sys
import time
from dataclasses import dataclass
from typing import Any

from regard.errors import InputError, Interrupted
from regard.studies.places import GPUS, POLL, Place, deal, visible_gpus
from regard.studies.tasks import Outcome, Task, Where, attempt, prepared

GRACE = 10.0  # seconds in which cancelled jobs should end
DEFAULTS = {"name": "regard", "timeout_min": 24 * 60}  # submitit's time limit is 5 minutes


class Cluster(Place):
    """A job for each task, with logs, and what submitit writes, in out/jobs.

    A job that SLURM ends at its time limit or to make room is queued again, and goes on from its last checkpoint.

    Raises InputError where submitit or the cluster is not to be had, and for options that it does not know.
    """

    def __init__(self, study: Any, where: Where) -> None:
        slots: list[str | None] = [None] * where.jobs
        if where.cluster == "local":
            gpus = visible_gpus(study.hardware)
            # submitit's local jobs see no GPU, or the first ones of the machine, whatever this process may use
            dealt = deal(max(where.jobs, where.devices), where.devices, gpus)
            slots = [",".join(gpus) if gpu is None else gpu for gpu in dealt]
        elif where.devices > 1:
            raise InputError("--devices deals out the GPUs of one machine: SLURM's option for them is gpus_per_node")
        super().__init__(study, slots)
        try:
            import submitit
        except ImportError as error:
            raise InputError("a cluster needs the package submitit: pip install 'regard[cluster]'") from error
        try:
            self.executor = submitit.AutoExecutor((study.out / "jobs").absolute(), cluster=where.cluster)
            self.executor.update_parameters(**{**DEFAULTS, **where.cluster_options})
        except RuntimeError as error:  # there is no srun
            raise InputError(f"no SLURM here ({error}): take --cluster local, or none") from error
        except (AssertionError, NameError, TypeError, ValueError) as error:
            raise InputError(f"cluster options: {' '.join(str(error).split())}") from error

    def submit(self, task: Task, slot: str | None) -> Any:
        """Hand a job in."""
        from submitit.core.utils import UncompletedJobError

        try:
            return self.executor.submit(_Job(task, self.study, slot))
        except UncompletedJobError as error:  # what submitit makes of sbatch's refusal
            raise InputError(f"the cluster took no job: {' '.join(str(error).split())}") from error

    def outcome(self, job: Any) -> Outcome:
        """What came of a job that is done, or that it was lost."""
        from submitit.core.utils import UncompletedJobError

        try:
            return job.result()
        except UncompletedJobError as error:  # also the base of the error of a job that failed outside of the task
            line = f"its job {job.job_id} was lost ({job.state}): see {job.paths.stderr}"
            return Outcome(error=line, traceback=f"{line}\n\n{error}\n")

    def close(self) -> None:
        """Cancel the jobs that are not finished."""
        for job in self.running:
            job.cancel(check=False)
        until = time.monotonic() + GRACE
        while not all(job.done() for job in self.running) and time.monotonic() < until:
            time.sleep(POLL)


@dataclass(frozen=True)
class _Job:
    """What a job calls. gpu: as CUDA_VISIBLE_DEVICES; None leaves it as the cluster sets it."""

    task: Task
    study: Any
    gpu: str | None

    def __call__(self) -> Outcome:
        if self.gpu is not None:
            os.environ[GPUS] = self.gpu  # before torch looks for GPUs
        outcome = attempt(self.task, prepared(self.study, 1, bar=False))
        if isinstance(outcome.stop, KeyboardInterrupt | Interrupted):
            sys.exit(f"{type(outcome.stop).__name__}: {outcome.stop}")  # no outcome: it was cancelled, or queued again
        return outcome

    def checkpoint(self) -> Any:
        """What submitit queues again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)
