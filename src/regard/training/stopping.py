"""How a run saves what it needs to go on, and stops: at a signal, or at a loss that is not finite."""

import math
import os
import shutil
import signal
import subprocess
import threading
import zipfile
import zlib
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, cast

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from regard.errors import InputError, Interrupted, TrainingStopped
from regard.files import write_whole
from regard.say import say

CHECKPOINTS = "checkpoints"  # the folder in that of a run that is not finished


class FiniteLoss(L.Callback):
    """Stops a training whose loss is not finite: before anything is saved, and naming the step.

    every: steps between readings; None: 25 on a GPU, so that steps do not wait for the host, and 1 elsewhere.
    """

    def __init__(self, every: int | None = None) -> None:
        self.every = every
        self._unread: list[tuple[int, torch.Tensor]] = []
        self.last: float | None = None  # the loss that was read last

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Remember; read now and then."""
        loss = cast(dict[str, torch.Tensor], outputs)["loss"].detach()
        is_whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0  # else the step is still to be taken
        self._unread.append((trainer.global_step + (not is_whole), loss))
        if len(self._unread) >= (self.every or (25 if loss.is_cuda else 1)):
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
        losses = losses.tolist()
        self.last = losses[-1]
        bad = [step for (step, _), loss in zip(unread, losses, strict=True) if not math.isfinite(loss)]
        if not bad:
            return
        # The loss of a step is that of the weights before it: those saved one step earlier made the bad loss.
        good = [path for path in checkpoints(Path(trainer.default_root_dir)) if step_of(path) < bad[0] - 1]
        if trainer.is_global_zero:
            for path in checkpoints(Path(trainer.default_root_dir))[len(good) :]:
                path.unlink()
        state = f"the last good checkpoint is {good[-1]}" if good else "there is no good checkpoint yet"
        raise TrainingStopped(
            f"the loss is not finite at step {bad[0]}; {state}. Likely causes: too high a rate (lower --lr, or a "
            "longer warm-up), 16-mixed precision (take bf16-mixed or 32-true), or broken images"
        )


class WholeFiles(TorchCheckpointIO):
    """Checkpoints that are whole or not there, on any disk: written beside their place, then renamed.

    (Lightning writes in the temporary folder and moves; from another disk that is a copy, which a kill cuts short.)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write, have the disk confirm, rename."""

        def write(file: BinaryIO) -> None:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())

        write_whole(Path(path), write)


class Checkpoints(ModelCheckpoint):
    """Saves what a run goes on from: every so many minutes, and when a signal asks the run to stop.

    Ctrl-C, SIGTERM, and SIGUSR1 (which SLURM sends ahead of a time limit, where asked to): the step is finished, the
    checkpoint written, and `Interrupted` raised; at SIGUSR1 a SLURM job asks to be queued again. A second Ctrl-C does
    not wait. Nothing is saved between the parts of an accumulated step. The last two are kept: see `FiniteLoss`.

    every: with several processes, steps between looks at clock and signals: all must agree, so each look waits.
    """

    def __init__(self, folder: Path, minutes: float, every: int = 10) -> None:
        super().__init__(folder, "resume-{step}", train_time_interval=timedelta(minutes=minutes), save_top_k=-1)
        self.every = every
        self._signal = 0
        self._handlers: dict[int, Any] = {}

    @property
    def state_key(self) -> str:
        """One name, so that a run may go on with another interval."""
        return "Checkpoints"

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
        looks = trainer.world_size == 1 or trainer.global_step % self.every == 0
        if whole_step and looks and not trainer.is_last_batch:
            self._save_or_stop(trainer, pl_module)

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        """Save or stop after an epoch's last step too: not before, as a resumed run would leave out its validation.

        After the very last one, of all or by early stopping, the run is about to finish: from a checkpoint of that, it
        would not.
        """
        if trainer.current_epoch + 1 < (trainer.max_epochs or 0) and not trainer.should_stop:
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
        """Leave the signals as they were; a broken run is not saved."""
        self._forget()

    def _save_checkpoint(self, trainer, filepath) -> None:
        super()._save_checkpoint(trainer, filepath)
        if trainer.is_global_zero:
            for path in checkpoints(Path(trainer.default_root_dir))[:-2]:
                path.unlink()

    def _remember(self, number: int, frame: object) -> None:
        if number == self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number

    def _forget(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())


def ignore_time_limit() -> None:
    """From here on SLURM's signal ahead of a time limit does not end the process: what is about to finish may finish.

    To be called after the training, as Lightning puts all signals back at its end.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and hasattr(signal, "SIGUSR1") and signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def requeue() -> None:
    """Put this SLURM job back into its queue; nothing where there is none."""
    job = os.environ.get("SLURM_JOB_ID")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if job and shutil.which("scontrol"):
        subprocess.run(["scontrol", "requeue", job], check=False)


def checkpoints(out: Path) -> list[Path]:
    """The checkpoints of an unfinished run, in the order of their steps."""
    named = [
        path for path in (out / CHECKPOINTS).glob("resume-step=*.ckpt") if path.stem.rpartition("=")[2].isdecimal()
    ]
    return sorted(named, key=step_of)


def step_of(checkpoint: Path) -> int:
    """How many steps were taken by then."""
    return int(checkpoint.stem.rpartition("=")[2])


def last_checkpoint(out: Path) -> Path | None:
    """What a run goes on from."""
    return next(reversed(checkpoints(out)), None)


def last_whole_checkpoint(out: Path) -> Path | None:
    """The last checkpoint that is not damaged; those that are, are said. InputError where all of them are."""
    found = checkpoints(out)
    for path in reversed(found):
        if is_whole(path):
            return path
        say(f"{path} is damaged, and left out")
    if found:
        raise InputError(f"{out} holds no checkpoint that is whole: delete it to begin again, or choose another --out")
    return None


def is_whole(checkpoint: Path) -> bool:
    """Whether a file of torch.save has all its bytes, by the sums in it."""
    try:
        with zipfile.ZipFile(checkpoint) as file:
            return file.testzip() is None
    except (OSError, ValueError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error):
        return False
