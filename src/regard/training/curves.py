"""What a run records while it trains, through all the parts of one that was cut short."""

import time
from typing import Any, cast

import lightning as L
import torch

from regard.training.distributed import processes, sum_over_processes


def _mean(x: torch.Tensor) -> torch.Tensor:
    """The mean over the processes that train together; all of them must ask."""
    return sum_over_processes(x) / processes()


class LossCurve(L.Callback):
    """The training loss and the terms of guidance in it, averaged over stretches, as about `points` points of {"step",
    "loss", "guide_sharpness", ...}.
    """

    def __init__(self, points: int) -> None:
        self.most, self.points = points, []
        self._sum: dict[str, torch.Tensor] = {}
        self._steps = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Add on the device; read only at the end of a stretch, so that no step waits for the host."""
        outputs = cast(dict[str, Any], outputs)
        loss = outputs["loss"].detach() * trainer.accumulate_grad_batches  # undivided
        for name, value in {"loss": loss, **outputs.get("guide", {})}.items():
            self._sum[name] = value + self._sum.get(name, 0.0)
        self._steps += 1
        total = int(trainer.estimated_stepping_batches)
        if trainer.global_step == total or self._steps >= trainer.accumulate_grad_batches * max(1, total // self.most):
            means = trainer.strategy.reduce(torch.stack(list(self._sum.values())) / self._steps, reduce_op="mean")
            self.points.append({"step": trainer.global_step, **dict(zip(self._sum, means.tolist(), strict=True))})
            self._sum, self._steps = {}, 0

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint, of which there is one for all processes: each goes on from their mean."""
        return {"points": self.points, "sum": {k: _mean(v) for k, v in self._sum.items()}, "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.points, self._sum, self._steps = state_dict["points"], state_dict["sum"], state_dict["steps"]


class History(L.Callback):
    """Per epoch: the mean training loss of the epoch, and the validation mIoU."""

    def __init__(self) -> None:
        self.points: list[dict[str, float]] = []
        self._sum: torch.Tensor | None = None
        self._steps = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Added on the device, read at the end of the epoch."""
        loss = cast(dict[str, torch.Tensor], outputs)["loss"].detach() * trainer.accumulate_grad_batches  # undivided
        self._sum = loss if self._sum is None else self._sum + loss
        self._steps += 1

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        """Lightning has validated by then."""
        total = trainer.strategy.reduce(cast(torch.Tensor, self._sum), reduce_op="mean")
        loss, miou = float(total) / self._steps, float(trainer.callback_metrics["val_miou"])
        self.points.append({"epoch": trainer.current_epoch + 1, "train_loss": loss, "val_miou": miou})
        self._sum, self._steps = None, 0

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint, of which there is one for all processes: each goes on from their mean."""
        return {
            "points": self.points,
            "sum": None if self._sum is None else _mean(self._sum),
            "steps": self._steps,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.points, self._sum, self._steps = state_dict["points"], state_dict["sum"], state_dict["steps"]


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
