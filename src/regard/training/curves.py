"""What a run records while it trains, through all the parts of one that was cut short."""

import time
from typing import Any, cast

import lightning as L
import torch

from regard.training.distributed import mean_over_processes


class _Losses(L.Callback):
    """Means of the training loss, and of the terms of guidance in it, over stretches of steps. points: what came of it.

    Sums stay on the device, and are read only at the end of a stretch, so that no step waits for the host.
    """

    def __init__(self) -> None:
        self.points: list[dict[str, Any]] = []
        self._sum: dict[str, torch.Tensor] = {}
        self._steps = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Add."""
        outputs = cast(dict[str, Any], outputs)
        loss = outputs["loss"].detach() * trainer.accumulate_grad_batches  # undivided
        for name, value in {"loss": loss, **outputs.get("guide", {})}.items():
            self._sum[name] = value + self._sum.get(name, 0.0)
        self._steps += 1

    def _read(self, trainer) -> dict[str, float]:
        """The means over the processes, by name; a new stretch begins."""
        means = trainer.strategy.reduce(torch.stack(list(self._sum.values())) / self._steps, reduce_op="mean")
        found = dict(zip(self._sum, means.tolist(), strict=True))
        self._sum, self._steps = {}, 0
        return found

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint, of which there is one for all processes: each goes on from their mean."""
        means = {name: mean_over_processes(value) for name, value in self._sum.items()}
        return {"points": self.points, "sum": means, "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.points, self._sum, self._steps = state_dict["points"], state_dict["sum"], state_dict["steps"]


class LossCurve(_Losses):
    """About `points` points of {"step", "loss", "guide_sharpness", ...}, each over a stretch of the same length."""

    def __init__(self, points: int) -> None:
        super().__init__()
        self.most = points

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Add, and read where a stretch ends."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        total = int(trainer.estimated_stepping_batches)
        if trainer.global_step == total or self._steps >= trainer.accumulate_grad_batches * max(1, total // self.most):
            self.points.append({"step": trainer.global_step, **self._read(trainer)})


class History(_Losses):
    """Per epoch: the mean training loss of the epoch, and the validation mIoU."""

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        """Lightning has validated by then."""
        loss, miou = self._read(trainer)["loss"], float(trainer.callback_metrics["val_miou"])
        self.points.append({"epoch": trainer.current_epoch + 1, "train_loss": loss, "val_miou": miou})


class Scores(L.Callback):
    """What each validation of a pre-training gave, in percent: {"epoch", "knn_top1", ...}, those of `names` it has."""

    names = ("knn_top1", "knn_top5", "accuracy", "accuracy_top5")

    def __init__(self) -> None:
        self.points: list[dict[str, float]] = []

    @property
    def epoch(self) -> int:
        """Of the last scores; 0 where nothing was validated."""
        return int(self.points[-1]["epoch"]) if self.points else 0

    @property
    def final(self) -> dict[str, float]:
        """The last scores; {} where nothing was validated."""
        return {name: score for name, score in self.points[-1].items() if name != "epoch"} if self.points else {}

    def on_validation_end(self, trainer, pl_module) -> None:
        """The module has logged them by then."""
        scores = {
            name: float(trainer.callback_metrics[name]) for name in self.names if name in trainer.callback_metrics
        }
        epoch = min(trainer.current_epoch + 1, trainer.max_epochs or 0)
        if self.epoch == epoch:  # the finished backbone, scored again
            self.points.pop()
        self.points.append({"epoch": epoch, **scores})

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"points": self.points}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.points = state_dict["points"]


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
