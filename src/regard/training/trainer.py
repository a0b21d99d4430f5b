"""How every run is trained: where and how it computes, and the one Lightning Trainer that does."""

import logging
import signal
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.markup import escape
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from regard.backbones import Backbone
from regard.errors import InputError, Interrupted, TrainingStopped
from regard.say import shown
from regard.settings import Hardware, PretrainSettings, SegmentSettings
from regard.training.distributed import SharedBatchStatistics
from regard.training.hardware import Meeting
from regard.training.logs import make_loggers
from regard.training.stopping import (
    CHECKPOINTS,
    Checkpoints,
    FiniteLoss,
    WholeFiles,
    ignore_time_limit,
    last_whole_checkpoint,
)


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


SCORES = {"val_miou": ("mIoU", 100), "knn_top1": ("kNN", 1), "accuracy": ("accuracy", 1)}  # in the bar: name and factor


class _Progress(RichProgressBar):
    """One bar per epoch, with the run's name, on stderr; it vanishes when done."""

    def __init__(self, name: str) -> None:
        super().__init__(refresh_rate=5, leave=False, console_kwargs={"stderr": True})
        self.name = escape(shown(name))  # the bar reads markup
        self.scores: dict[str, str] = {}  # of the last validation

    def _get_train_description(self, current_epoch: int) -> str:
        return f"{self.name}, epoch {current_epoch + 1}/{self.trainer.max_epochs}"

    def get_metrics(self, trainer, pl_module) -> dict[str, str]:
        """The loss, as it was last read: to read it here, steps would wait; and the scores of the last validation."""
        loss = next((one.last for one in cast(Any, trainer).callbacks if isinstance(one, FiniteLoss)), None)
        return ({} if loss is None else {"loss": f"{loss:.4g}"}) | self.scores

    def on_validation_end(self, trainer, pl_module) -> None:
        """Keep its scores."""
        found = trainer.callback_metrics
        self.scores = {
            word: f"{factor * float(found[key]):.1f}%" for key, (word, factor) in SCORES.items() if key in found
        }
        super().on_validation_end(trainer, pl_module)


def make_trainer(
    settings: PretrainSettings | SegmentSettings,
    out: Path,
    hardware: Hardware,
    callbacks: Iterable[L.Callback],
    title: str,
    validate_every: int = 1,
    loggers: Sequence[Logger] = (),
    unused: bool = False,
) -> L.Trainer:
    """A Lightning Trainer that logs into `out`, shows one bar, saves and stops as it should, and says nothing else.

    settings:       of which `epochs` and `accumulate` are read.
    title:          of its bar.
    validate_every: epochs between validations, where the data has a validation loader.
    loggers:        beside CSV files and, where installed, TensorBoard.
    unused:         parameters may be without a gradient, which DDP has to look for in every step.
    """
    for chatty in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # As meant: small data needs no workers, a loader of lists has no batch size, a frozen backbone is in eval mode.
    # A loader that cannot resume: ours does, see `_Resumable` in `data.loading.modules`. best-*.ckpt of the part before
    # stay.
    for message in (
        ".*does not have many workers.*",
        ".*number of training batches.*",
        ".*infer the `batch_size`.*",
        ".*your dataloader is not resumable.*",
        ".*in eval mode at the start of training.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*total length of `list` across ranks is zero.*",
        ".*recommended to use .*sync_dist=True.*",  # losses are means over the batch: rank 0's is a fair sample
    ):
        warnings.filterwarnings("ignore", message)
    warnings.filterwarnings("ignore", module="lightning", category=FutureWarning)
    precision: Any = hardware.chosen_precision
    many = hardware.processes > 1
    plugins: list[Any] = [WholeFiles(), *([SharedBatchStatistics(hardware.on_gpu)] if many else [])]
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():  # srun may start one torchrun a machine
        plugins.append(SLURMEnvironment(auto_requeue=False))  # `Checkpoints` does
    bar = [_Progress(title)] if hardware.bar else []
    return L.Trainer(
        accelerator="gpu" if hardware.on_gpu else hardware.device,
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        # not static_graph for unused parameters: it knows no parts of a step
        strategy=Meeting(unused) if many else "auto",
        plugins=plugins,
        precision=precision,
        max_epochs=settings.epochs,
        accumulate_grad_batches=settings.accumulate,
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


def fit(trainer: L.Trainer, module: L.LightningModule, data: L.LightningDataModule, out: Path) -> None:
    """Train, from the last checkpoint in `out` where there is one. A run that was cut short must not look finished.

    Raises InputError where a GPU has too little memory for it, where batch norms have one value of a channel, and where
    no checkpoint is whole.
    """
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, data, ckpt_path=last_whole_checkpoint(out), weights_only=True)
    except SIGTERMException as stop:
        raise Interrupted("SIGTERM while the data was made ready: the same command goes on", signal.SIGTERM) from stop
    except SystemExit as stop:  # what Lightning makes of Ctrl-C, deaf to the next one
        signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt from stop
    except torch.OutOfMemoryError as error:
        raise InputError(
            "out of GPU memory: a smaller --batch_size, a larger --accumulate or --checkpoint_activations would work"
        ) from error
    except ValueError as error:  # in the first step, as all have as many images
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            "one image in a forward pass leaves batch norms a single value: a larger --batch_size, a smaller "
            "--accumulate or larger crops would work"
        ) from error
    except RuntimeError as error:
        if trainer.world_size > 1 and ("Connection closed by peer" in str(error) or isinstance(error, dist.DistError)):
            raise TrainingStopped("another process of this run ended; what it said comes before this") from error
        raise
    ignore_time_limit()


def count_once(networks: nn.Module) -> None:
    """Where activations are computed again in the backward pass, batch norms must not count those batches twice."""
    if any(getattr(module, "grad_checkpointing", False) for module in networks.modules()):
        for norm in networks.modules():
            if isinstance(norm, _BatchNorm):
                norm.register_forward_pre_hook(_pause_statistics)
                norm.register_forward_hook(_go_on_with_statistics)


def _pause_statistics(norm: Any, inputs: tuple[Tensor, ...]) -> None:
    if torch._C._current_graph_task_id() != -1:  # in a backward pass, as torch.utils.checkpoint asks itself
        norm.paused_momentum, norm.momentum = norm.momentum, 0.0  # to leave them out would save other tensors


def _go_on_with_statistics(norm: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    if hasattr(norm, "paused_momentum"):
        norm.momentum = norm.paused_momentum
        del norm.paused_momentum
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.sub_(1)
