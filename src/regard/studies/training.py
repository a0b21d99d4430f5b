"""How every run is trained: where and how it computes, and the one Lightning Trainer that does."""

import logging
import os
import signal
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from regard.backbones import Backbone
from regard.errors import InputError, Interrupted, TrainingStopped, unknown
from regard.ssl.distributed import SharedBatchStatistics
from regard.studies.folders import CHECKPOINTS
from regard.studies.logs import make_loggers
from regard.studies.sharding import FullySharded
from regard.studies.stopping import Checkpoints, FiniteLoss, WholeFiles, ignore_time_limit, last_checkpoint

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


def check_sharding(hardware: Hardware, averaging: Sequence[L.Callback]) -> None:
    """InputError where an average of the weights is asked for and no process has them whole."""
    if averaging and hardware.strategy == "fsdp":
        raise InputError("an average is of whole weights, and fsdp cuts them: leave out --average, or take ddp")


def prepare(networks: nn.Module, hardware: Hardware) -> None:
    """Lay out convolutions as kernels take them; compile, and save memory, as asked. networks: has a `backbone`."""
    backbone = cast(Backbone, networks.backbone)
    if not backbone.heads:  # a convnet; transformers have one convolution, and gain nothing
        networks.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if hardware.checkpoint_activations:
        try:
            cast(Any, backbone.model).set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:  # timm asserts where a model has none
            raise InputError(f"{backbone.name} cannot checkpoint activations: leave it off") from error
    if hardware.compile:
        for child in networks.children():
            child.compile()


class StepSeed(L.Callback):
    """Seeds torch before every batch from (seed, batch, rank), so that a resumed run needs no random state."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        """Dropout and stochastic depth of this batch follow from it."""
        number = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        key = np.random.SeedSequence((self.seed, number, trainer.global_rank))
        torch.manual_seed(int(key.generate_state(1)[0]))


class _Progress(RichProgressBar):
    """One bar per epoch, with the run's name, on stderr; it vanishes when done."""

    def __init__(self, name: str) -> None:
        super().__init__(refresh_rate=5, leave=False, console_kwargs={"stderr": True})
        self.name = name

    def _get_train_description(self, current_epoch: int) -> str:
        return f"{self.name}, epoch {current_epoch + 1}/{self.trainer.max_epochs}"


def make_trainer(
    epochs: int,
    out: Path,
    hardware: Hardware,
    callbacks: Iterable[L.Callback],
    progress: str,
    accumulate: int = 1,
    validate_every: int = 1,
    loggers: Sequence[Logger] = (),
    unused: bool = False,
) -> L.Trainer:
    """A Lightning Trainer that logs into `out`, shows one bar, saves and stops as it should, and says nothing else.

    accumulate:     forward passes per optimizer step.
    validate_every: epochs between validations, where the data has a validation loader.
    loggers:        beside CSV and TensorBoard.
    unused:         parameters may be without a gradient, which DDP has to look for in every step.
    """
    for chatty in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # As meant: small data needs no workers, a loader of lists has no batch size, a frozen backbone is in eval mode.
    # A loader that cannot resume: ours does, see `data.modules._Resumable`. best-*.ckpt of the part before stay.
    for message in (
        ".*does not have many workers.*",
        ".*number of training batches.*",
        ".*infer the `batch_size`.*",
        ".*your dataloader is not resumable.*",
        ".*in eval mode at the start of training.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*total length of `list` across ranks is zero.*",
        # Nothing adds to a backbone's features in their place.
        ".*FSDP2-wrapped module .* returned a view tensor.*",
        ".*recommended to use .*sync_dist=True.*",  # losses are means over the batch: rank 0's is a fair sample
    ):
        warnings.filterwarnings("ignore", message)
    warnings.filterwarnings("ignore", module="lightning", category=FutureWarning)
    precision: Any = hardware.chosen_precision
    many = hardware.processes > 1
    plugins: list[Any] = [WholeFiles(), *([SharedBatchStatistics(hardware.on_gpu)] if many else [])]
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():  # srun may start one torchrun a machine
        plugins.append(SLURMEnvironment(auto_requeue=False))  # `Checkpoints` does
    bar = [_Progress(progress)] if hardware.bar else []
    return L.Trainer(
        accelerator="gpu" if hardware.on_gpu else "cpu",
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        strategy=_strategy(hardware, unused),
        plugins=plugins,
        precision=precision,
        max_epochs=epochs,
        accumulate_grad_batches=accumulate,
        check_val_every_n_epoch=validate_every,
        default_root_dir=out,
        logger=[*make_loggers(out), *loggers],
        callbacks=[*callbacks, FiniteLoss(), Checkpoints(out / CHECKPOINTS, hardware.checkpoint_minutes), *bar],
        enable_progress_bar=hardware.bar,
        enable_model_summary=False,
        log_every_n_steps=25,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def _strategy(hardware: Hardware, unused: bool) -> str | FullySharded:
    """Lightning's name of it, or ours. Not static_graph for unused parameters: it knows no parts of a step."""
    if hardware.strategy == "fsdp":
        return FullySharded()
    if hardware.strategy not in ("auto", "ddp"):
        return hardware.strategy
    if hardware.processes == 1:
        return hardware.strategy
    return f"{UNUSED}_true" if unused else "ddp"


def fit(trainer: L.Trainer, module: L.LightningModule, data: L.LightningDataModule, out: Path) -> None:
    """Train, from the last checkpoint in `out` where there is one. A run that was cut short must not look finished.

    Raises InputError where a GPU has too little memory for it.
    """
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, data, ckpt_path=last_checkpoint(out), weights_only=True)
    except SIGTERMException as stop:
        raise Interrupted("SIGTERM while the data was made ready: the same command goes on", signal.SIGTERM) from stop
    except SystemExit as stop:  # what Lightning makes of Ctrl-C, deaf to the next one
        signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt from stop
    except torch.OutOfMemoryError as error:
        raise InputError(
            "out of GPU memory: a smaller --batch_size, a larger --accumulate or --checkpoint_activations would work"
        ) from error
    except RuntimeError as error:
        if trainer.world_size > 1 and ("Connection closed by peer" in str(error) or isinstance(error, dist.DistError)):
            raise TrainingStopped("another process of this run ended; what it said comes before this") from error
        raise
    ignore_time_limit()
