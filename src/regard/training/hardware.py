"""The processes that a training needs, those that are there, and where they meet."""

import os
import socket
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.lsf import LSFEnvironment
from lightning.fabric.plugins.environments.mpi import MPIEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy

from regard.errors import InputError, first_line
from regard.say import console, shown
from regard.settings import Hardware, check_number, typed

MEETING = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")  # what Lightning reads where it starts the processes
WAIT = 30  # minutes for the processes of all machines to come, as is usual


def check_processes(hardware: Hardware) -> None:
    """InputError where this machine has fewer GPUs, or torchrun or srun has started other processes than are meant.

    Else each of them would train alone, and all would write into one folder; or one GPU would do the work of all. And
    where several machines are meant, and nothing says where they meet.
    """
    if hardware.device == "mps" and hardware.processes > 1:
        raise InputError("mps is one device: take --devices 1")
    if hardware.on_gpu and hardware.devices > torch.cuda.device_count():
        raise InputError(f"--devices {hardware.devices}, and {torch.cuda.device_count()} GPUs to be seen here")
    said = os.environ
    if TorchElasticEnvironment.detect():
        total, here, fits = said["WORLD_SIZE"], said["LOCAL_WORLD_SIZE"], "torchrun with --nproc_per_node"
    elif SLURMEnvironment.detect():
        total, fits = said["SLURM_NTASKS"], "a job with --ntasks-per-node"
        here = said.get("SLURM_NTASKS_PER_NODE", "1" if total == "1" else "any number of them")
    elif (total := said.get("SLURM_STEP_NUM_TASKS", "1")) != "1":  # Lightning takes it for somebody at a terminal
        raise InputError(f"srun starts {total} processes in a job named {said.get('SLURM_JOB_NAME')}: name it anew")
    elif hardware.nodes == 1 or any(environment.detect() for environment in (LSFEnvironment, MPIEnvironment)):
        return  # Lightning starts them, or knows who does
    elif missing := [name for name in MEETING if name not in said]:
        raise InputError(
            f"--nodes {hardware.nodes}, and nothing says where they meet: set {', '.join(missing)} (on every machine "
            "the address and a free port of the first, and its own number from 0), or start it by torchrun or srun"
        )
    else:
        for name, most in ((MEETING[1], 2**16 - 1), (MEETING[2], hardware.nodes - 1)):
            check_number(name, typed(name, int, said[name]), 0, most)
        return
    if (int(total), here) != (hardware.processes, str(hardware.devices)):
        raise InputError(
            f"{total} processes are started, {here} on a machine, and --devices {hardware.devices} --nodes "
            f"{hardware.nodes} means {hardware.processes}, {hardware.devices} on each: {fits} equal to --devices would "
            "work"
        )


class Meeting(DDPStrategy):
    """Lightning's; of several machines it says what is waited for, and for no longer than `WAIT`."""

    def __init__(self, unused: bool) -> None:
        super().__init__(find_unused_parameters=unused, timeout=timedelta(minutes=WAIT))

    def setup_distributed(self) -> None:
        """Raises InputError where they do not meet."""
        if self.num_nodes == 1:
            return super().setup_distributed()
        self.set_world_ranks()
        assert self.cluster_environment is not None
        address, port = self.cluster_environment.main_address, self.cluster_environment.main_port
        if self.local_rank == 0:
            line = (
                f"machine {self.node_rank + 1} of {self.num_nodes}: all {self.world_size} processes meet at {address}"
            )
            console().print(shown(f"{line}:{port}, and are waited for up to {WAIT} minutes"))
        try:
            if self.global_rank:
                _await(address, port)
            return super().setup_distributed()
        except (OSError, dist.DistError) as error:
            raise InputError(
                f"{self.num_nodes} machines do not meet at {address}:{port} ({first_line(error)}): the same command on "
                f"each of them within {WAIT} minutes, with a NODE_RANK of its own, would work"
            ) from error


def _await(address: str, port: int) -> None:
    """OSError where nothing answers there: torch, which would wait too, says pages on its way."""
    until = time.monotonic() + 60 * WAIT
    while True:
        try:
            return socket.create_connection((address, port), timeout=5).close()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(1)
