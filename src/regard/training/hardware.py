"""The processes that a training needs, and those that are there."""

import os

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from regard.errors import InputError
from regard.settings import Hardware


def check_processes(hardware: Hardware) -> None:
    """InputError where this machine has fewer GPUs, or torchrun or srun has started other processes than are meant.

    Else each of them would train alone, and all would write into one folder; or one GPU would do the work of all.
    """
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
    else:  # Lightning starts them
        return
    if (int(total), here) != (hardware.processes, str(hardware.devices)):
        raise InputError(
            f"{total} processes are started, {here} on a machine, and --devices {hardware.devices} --nodes "
            f"{hardware.nodes} means {hardware.processes}, {hardware.devices} on each: {fits} equal to --devices would "
            "work"
        )
