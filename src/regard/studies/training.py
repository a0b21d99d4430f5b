"""How every run is trained: one Lightning Trainer, what it watches, and how it goes on after it was cut short."""

import logging
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from regard.errors import InputError

CHECKPOINTS = "checkpoints"  # the folder of a run that is not finished


@dataclass(frozen=True)
class Hardware:
    """Where and how a run computes: Lightning's own words. `auto` precision is bf16 on a GPU and float32 elsewhere."""

    accelerator: str = "auto"
    precision: str = "auto"
    workers: int = 0
    bar: bool = True  # a progress bar per training
    checkpoint_minutes: float = 10.0  # how much work a killed run loses at most

    @property
    def on_gpu(self) -> bool:
        """Whether it computes on a CUDA device. InputError when one is asked for and there is none."""
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise InputError("no GPU is to be seen here: use --accelerator cpu, or auto")
        return self.accelerator != "cpu" and torch.cuda.is_available()

    @property
    def device(self) -> str:
        """Where a finished model is scored: where it was trained."""
        return "cuda" if self.on_gpu else "cpu"


class LossCurve(L.Callback):
    """The training loss, averaged over stretches, as at most `points` points of {"step", "loss"}."""

    def __init__(self, points: int) -> None:
        self.most, self.points = points, []
        self._sum: torch.Tensor | None = None
        self._steps = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Add on the device; read only at the end of a stretch, so that no step waits for the host."""
        loss = cast(dict[str, torch.Tensor], outputs)["loss"].detach()
        self._sum = loss if self._sum is None else self._sum + loss
        self._steps += 1
        total = int(trainer.estimated_stepping_batches)
        if trainer.global_step == total or self._steps >= max(1, total // self.most):
            self.points.append({"step": trainer.global_step, "loss": float(self._sum) / self._steps})
            self._sum, self._steps = None, 0

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"points": self.points, "sum": self._sum, "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.points, self._sum, self._steps = state_dict["points"], state_dict["sum"], state_dict["steps"]


class StepSeed(L.Callback):
    """Seeds torch at every step from (seed, step), so that a resumed run needs no random state but its step."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        """Dropout and stochastic depth of this step follow from it."""
        torch.manual_seed(self.seed * 1_000_003 + trainer.global_step)


class Clock(L.Callback):
    """Seconds spent training, over all the parts of a run that was cut short."""

    def __init__(self) -> None:
        self._before, self._started = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """So far."""
        return self._before + time.perf_counter() - self._started

    def state_dict(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """From a checkpoint."""
        self._before = state_dict["seconds"]


class History(L.Callback):
    """Per epoch: the mean training loss of the epoch, and the validation mIoU."""

    def __init__(self) -> None:
        self.points: list[dict[str, float]] = []
        self._losses: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Kept on the device, read at the end of the epoch."""
        self._losses.append(cast(dict[str, torch.Tensor], outputs)["loss"].detach())

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        """Lightning has validated by then."""
        loss, miou = float(torch.stack(self._losses).mean()), float(trainer.callback_metrics["val_miou"])
        self.points.append({"epoch": trainer.current_epoch + 1, "train_loss": loss, "val_miou": miou})
        self._losses = []

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"points": self.points, "losses": self._losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.points, self._losses = state_dict["points"], state_dict["losses"]


class _Progress(RichProgressBar):
    """One bar per epoch, with the run's name, on stderr; it vanishes when done."""

    def __init__(self, name: str) -> None:
        super().__init__(refresh_rate=5, leave=False, console_kwargs={"stderr": True})
        self.name = name

    def _get_train_description(self, current_epoch: int) -> str:
        return f"{self.name}, epoch {current_epoch + 1}/{self.trainer.max_epochs}"


def make_trainer(
    epochs: int, out: Path, hardware: Hardware, callbacks: Iterable[L.Callback], progress: str
) -> L.Trainer:
    """A Lightning Trainer that logs to CSV and TensorBoard in `out`, shows one bar, and says nothing else."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # As meant: small data needs no workers, a loader of lists has no batch size, a frozen backbone is in eval mode.
    # A loader that cannot resume: ours does, see `data.modules._Resumable`. best-*.ckpt of the part before stay.
    for message in (
        ".*does not have many workers.*",
        ".*number of training batches.*",
        ".*infer the `batch_size`.*",
        ".*your dataloader is not resumable.*",
        ".*in eval mode at the start of training.*",
        ".*Checkpoint directory .* exists and is not empty.*",
    ):
        warnings.filterwarnings("ignore", message)
    warnings.filterwarnings("ignore", module="lightning", category=FutureWarning)
    precision: Any = hardware.precision
    if precision == "auto":
        precision = "bf16-mixed" if hardware.on_gpu else "32-true"
    part = len(list((out / "logs").glob("part-*"))) + 1  # a resumed run logs beside the part before
    every = ModelCheckpoint(
        out / CHECKPOINTS, "resume-{step}", train_time_interval=timedelta(minutes=hardware.checkpoint_minutes)
    )
    return L.Trainer(
        accelerator="gpu" if hardware.on_gpu else "cpu",
        devices=1,
        precision=precision,
        max_epochs=epochs,
        logger=[CSVLogger(out, "logs", f"part-{part}"), TensorBoardLogger(out, "logs", f"part-{part}")],
        callbacks=[*callbacks, every, *([_Progress(progress)] if hardware.bar else [])],
        enable_progress_bar=hardware.bar,
        enable_model_summary=False,
        log_every_n_steps=25,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def fit(trainer: L.Trainer, module: L.LightningModule, data: L.LightningDataModule, out: Path) -> None:
    """Train, from the last checkpoint in `out` where there is one. A run that was cut short must not look finished."""
    checkpoints = sorted((out / CHECKPOINTS).glob("resume-*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    trainer.fit(module, data, ckpt_path=checkpoints[-1] if checkpoints else None, weights_only=True)
    if trainer.interrupted:  # Lightning swallows Ctrl-C
        raise KeyboardInterrupt
