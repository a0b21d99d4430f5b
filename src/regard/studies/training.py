"""How every run is trained: one Lightning Trainer, what it watches, and how it goes on after it was cut short."""

import logging
import os
import shutil
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import Logger

from regard.errors import InputError, Interrupted, TrainingStopped
from regard.ssl.distributed import SharedBatchStatistics
from regard.studies.logs import make_loggers

CHECKPOINTS = "checkpoints"  # the folder of a run that is not finished


@dataclass(frozen=True)
class Hardware:
    """Where and how a run computes: Lightning's own words. `auto` precision is bf16 on a GPU and float32 elsewhere.

    devices, nodes: processes per machine, and machines; strategy: how Lightning joins them. Results do not depend on
                    them, up to rounding: batches and rates are those of all processes together.
    compile:        compile backbone and heads with torch.compile.
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

    @property
    def processes(self) -> int:
        """How many train together."""
        return self.devices * self.nodes


class LossCurve(L.Callback):
    """The training loss, averaged over stretches, as at most `points` points of {"step", "loss"}."""

    def __init__(self, points: int) -> None:
        self.most, self.points = points, []
        self._sum: torch.Tensor | None = None
        self._steps = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Add on the device; read only at the end of a stretch, so that no step waits for the host."""
        loss = cast(dict[str, torch.Tensor], outputs)["loss"].detach() * trainer.accumulate_grad_batches  # undivided
        self._sum = loss if self._sum is None else self._sum + loss
        self._steps += 1
        total = int(trainer.estimated_stepping_batches)
        if trainer.global_step == total or self._steps >= trainer.accumulate_grad_batches * max(1, total // self.most):
            mean = trainer.strategy.reduce(self._sum / self._steps, reduce_op="mean")
            self.points.append({"step": trainer.global_step, "loss": float(mean)})
            self._sum, self._steps = None, 0

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"points": self.points, "sum": self._sum, "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.points, self._sum, self._steps = state_dict["points"], state_dict["sum"], state_dict["steps"]


class StepSeed(L.Callback):
    """Seeds torch before every batch from (seed, batch, rank), so that a resumed run needs no random state."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        """Dropout and stochastic depth of this batch follow from it."""
        number = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        key = np.random.SeedSequence((self.seed, number, trainer.global_rank))
        torch.manual_seed(int(key.generate_state(1)[0]))


class FiniteLoss(L.Callback):
    """Stops a training whose loss is not finite: before anything is saved, and naming the step.

    On a GPU, losses are read every `every` steps only, so that no step waits for the host.
    """

    def __init__(self, every: int = 25) -> None:
        self.every = every
        self._unread: list[tuple[int, torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Remember; read now and then."""
        loss = cast(dict[str, torch.Tensor], outputs)["loss"].detach()
        self._unread.append((trainer.global_step, loss))
        if not loss.is_cuda or len(self._unread) >= self.every:
            self._read(trainer)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        """No checkpoint of a broken model."""
        self._read(trainer)

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        """Nor a finished one."""
        self._read(trainer)

    def _read(self, trainer) -> None:
        unread, self._unread = self._unread, []
        if not unread:
            return
        losses = trainer.strategy.reduce(torch.stack([loss for _, loss in unread]), reduce_op="mean")  # all ranks stop
        bad = [step for (step, _), loss in zip(unread, losses, strict=True) if not bool(torch.isfinite(loss))]
        if bad:
            folder = Path(trainer.default_root_dir)
            last = last_checkpoint(folder)
            state = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
            raise TrainingStopped(
                f"the loss is not finite at step {bad[0]}; {state}. Likely causes: too high a rate (lower --lr, or a "
                "longer warm-up), 16-mixed precision (take bf16-mixed or 32-true), or broken images"
            )


class Checkpoints(ModelCheckpoint):
    """Saves what a run goes on from: every so many minutes, and when a signal asks the run to stop.

    Ctrl-C, SIGTERM, and SIGUSR1 (which SLURM sends ahead of a time limit, where asked to): the step is finished, the
    checkpoint written, and `Interrupted` raised; at SIGUSR1 a SLURM job asks to be queued again. A second Ctrl-C does
    not wait. Nothing is saved between the parts of an accumulated step.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        super().__init__(folder, "resume-{step}", train_time_interval=timedelta(minutes=minutes))
        self._signal = 0
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer, pl_module) -> None:
        """Answer the signals from here on, also in place of Lightning's own handlers."""
        super().on_train_start(trainer, pl_module)
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
                if hasattr(signal, name):
                    number = getattr(signal, name)
                    self._handlers[number] = signal.signal(number, self._remember)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Save when it is time; stop when a process of the run was told to."""
        whole_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if whole_step and not trainer.is_last_batch:
            self._save_or_stop(trainer, pl_module)

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        """Likewise after an epoch's last step: not before, as a resumed run would leave out its validation."""
        self._save_or_stop(trainer, pl_module)

    def _save_or_stop(self, trainer, pl_module) -> None:
        super().on_train_batch_end(trainer, pl_module, None, None, 0)  # of which it only looks at the clock
        if trainer.world_size > 1:  # all stop at one step, so all must know
            number = torch.tensor(float(self._signal), device=pl_module.device)
            self._signal = int(trainer.strategy.reduce(number, reduce_op="max"))
        if self._signal:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
            self._forget()
            if trainer.is_global_zero and self._signal == getattr(signal, "SIGUSR1", None):
                requeue()
            name = signal.Signals(self._signal).name
            raise Interrupted(f"{name} at step {trainer.global_step}: saved; the same command goes on", self._signal)

    def on_train_end(self, trainer, pl_module) -> None:
        """Leave the signals as they were."""
        super().on_train_end(trainer, pl_module)
        self._forget()

    def on_exception(self, trainer, pl_module, exception) -> None:
        """Likewise; a broken run is not saved."""
        self._forget()

    def _remember(self, number: int, frame: object) -> None:
        if number == self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number

    def _forget(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())


def requeue() -> None:
    """Put this SLURM job back into its queue; nothing where there is none."""
    job = os.environ.get("SLURM_JOB_ID")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if job and shutil.which("scontrol"):
        subprocess.run(["scontrol", "requeue", job], check=False)


def last_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint of an unfinished run."""
    checkpoints = (out / CHECKPOINTS).glob("resume-*.ckpt")
    return max(checkpoints, key=lambda path: path.stat().st_mtime_ns, default=None)


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


class Scores(L.Callback):
    """What each validation of a pre-training gave, in percent: {"epoch", "knn_top1", ...}, those of `names` it has."""

    names = ("knn_top1", "knn_top5", "accuracy", "accuracy_top5")

    def __init__(self) -> None:
        self.points: list[dict[str, float]] = []

    @property
    def final(self) -> dict[str, float]:
        """The last scores; {} where nothing was validated."""
        return {name: score for name, score in self.points[-1].items() if name != "epoch"} if self.points else {}

    def on_validation_end(self, trainer, pl_module) -> None:
        """The module has logged them by then."""
        scores = {
            name: float(trainer.callback_metrics[name]) for name in self.names if name in trainer.callback_metrics
        }
        self.points.append({"epoch": trainer.current_epoch + 1, **scores})

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"points": self.points}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.points = state_dict["points"]


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
) -> L.Trainer:
    """A Lightning Trainer that logs into `out`, shows one bar, saves and stops as it should, and says nothing else.

    accumulate:     forward passes per optimizer step.
    validate_every: epochs between validations, where the data has a validation loader.
    loggers:        beside CSV and TensorBoard.
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
        ".*recommended to use .*sync_dist=True.*",  # losses are means over the batch: rank 0's is a fair sample
    ):
        warnings.filterwarnings("ignore", message)
    warnings.filterwarnings("ignore", module="lightning", category=FutureWarning)
    precision: Any = hardware.precision
    if precision == "auto":
        precision = "bf16-mixed" if hardware.on_gpu else "32-true"
    many = hardware.processes > 1
    plugins: list[Any] = [SharedBatchStatistics()] if many else []
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))  # `Checkpoints` does
    bar = [_Progress(progress)] if hardware.bar else []
    return L.Trainer(
        accelerator="gpu" if hardware.on_gpu else "cpu",
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        strategy=hardware.strategy if hardware.strategy != "auto" else "ddp" if many else "auto",
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


def fit(trainer: L.Trainer, module: L.LightningModule, data: L.LightningDataModule, out: Path) -> None:
    """Train, from the last checkpoint in `out` where there is one. A run that was cut short must not look finished."""
    trainer.fit(module, data, ckpt_path=last_checkpoint(out), weights_only=True)
    if trainer.interrupted:  # Lightning swallows Ctrl-C
        raise KeyboardInterrupt
