"""What a training runs on."""

import os
from dataclasses import dataclass
from typing import Literal

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from regard.errors import InputError, unknown

UNUSED = "ddp_find_unused_parameters"


STRATEGIES = ("auto", "ddp", f"{UNUSED}_false", f"{UNUSED}_true", "fsdp")


@dataclass(frozen=True)
class Hardware:
    """Where and how a run computes: Lightning's own words. `auto` precision is bf16 on a GPU and float32 elsewhere.

    devices, nodes: processes per machine, and machines. Batches and rates are those of all processes together, so
                    results do not depend on their number, up to rounding and to what stochastic depth draws.
    strategy:       how they are joined: one of `STRATEGIES`; with "fsdp" each keeps its part of every tensor
                    (`sharding`).
    compile:        compile backbone and heads with torch.compile.
    views_on:       where colours, blur and solarize of a pre-training's views are computed: by the loading processes,
                    on the "cpu", or in batches on the "device" that trains. Both have the same draws.
    checkpoint_activations: compute activations again in the backward pass instead of keeping them: less memory.
    """

    accelerator: str = "auto"
    precision: str = "auto"
    workers: int = 0
    bar: bool = True  # a progress bar per training
    checkpoint_minutes: float = 10.0  # how much work a killed run loses at most
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"
    compile: bool = False
    checkpoint_activations: bool = False
    views_on: Literal["cpu", "device"] = "cpu"

    def __post_init__(self) -> None:
        if self.strategy.startswith("ddp") and self.strategy not in STRATEGIES:
            raise unknown("strategy", self.strategy, STRATEGIES)
        if self.strategy not in STRATEGIES:
            raise InputError(
                f"strategy {self.strategy} takes tensors apart or together, and LARS, clipping and weight decay go by "
                "tensors: use ddp, or fsdp where a GPU has too little memory"
            )
        if self.strategy == "fsdp" and self.precision == "16-mixed":
            raise InputError("fsdp and 16-mixed precision do not go together here: take bf16-mixed, or ddp")

    @property
    def on_gpu(self) -> bool:
        """Whether it computes on a CUDA device. InputError when one is asked for and there is none."""
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise InputError("no GPU is to be seen here: use --accelerator cpu, or auto")
        return self.accelerator != "cpu" and torch.cuda.is_available()

    @property
    def chosen_precision(self) -> str:
        """What `auto` comes to."""
        if self.precision == "auto":
            return "bf16-mixed" if self.on_gpu else "32-true"
        return self.precision

    @property
    def autocast(self) -> torch.dtype | None:
        """What mixed precision computes in; None without it."""
        return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.chosen_precision)

    @property
    def device(self) -> str:
        """Where a finished model is scored: where it was trained. Of many processes, each has its own."""
        if not self.on_gpu:
            return "cpu"
        local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))  # Lightning and torchrun, SLURM
        return f"cuda:{local}" if self.processes > 1 else "cuda"

    @property
    def processes(self) -> int:
        """How many train together."""
        return self.devices * self.nodes

    def check_processes(self) -> None:
        """InputError where this machine has fewer GPUs, or torchrun or srun has started other processes than are meant.

        Else each of them would train alone, and all would write into one folder; or one GPU would do the work of all.
        """
        if self.on_gpu and self.devices > torch.cuda.device_count():
            raise InputError(f"--devices {self.devices}, and {torch.cuda.device_count()} GPUs to be seen here")
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
        if (int(total), here) != (self.processes, str(self.devices)):
            raise InputError(
                f"{total} processes are started, {here} on a machine, and --devices {self.devices} --nodes "
                f"{self.nodes} means {self.processes}, {self.devices} on each: {fits} equal to --devices would work"
            )
