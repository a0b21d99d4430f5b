"""Averages of the weights while training, by Lightning's `WeightAveraging`; validation scores, and a run keeps, those.

ema: an exponential moving average over the steps.
swa: the equal average of the weights at the ends of the epochs of the last quarter (Izmailov et al. 2018,
     https://arxiv.org/abs/1803.05407). A departure: the rate goes on falling there; theirs is constant or cyclic.

Batch statistics are averaged along with the weights while training. At its end they are taken anew, from the data; the
best epoch of a segmentation keeps those that it was scored with.
"""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from regard.training.optimizers import move_towards

STATISTICS_BATCHES = 200  # as detectron2's PREC_BN.NUM_ITER


def make_averaging(average: str, epochs: int) -> list[WeightAveraging]:
    """The callback, if any."""
    if average == "none":
        return []
    if average == "ema":
        return [Averaging(ema_weight)]
    before = epochs - -(-epochs // 4)
    return [Averaging(lambda n: 1 / max(1, n - before + 1), each_step=False)]


def ema_weight(n: int, decay: float = 0.999) -> float:
    """The weight of the newest weights after `n` averaged ones. It starts high, so that a short run forgets its start:
    https://www.tensorflow.org/api_docs/python/tf/train/ExponentialMovingAverage (num_updates).
    """
    return 1 - min(decay, (1 + n) / (10 + n))


class Averaging(WeightAveraging):
    """The average moves towards the weights by `weight(n)`, the n-th time, n from 0: 1 makes it equal to them.

    Every process has the same weights, and so the same average.

    each_step: after each step, else after the last one of each epoch: before Lightning validates and saves.
    """

    def __init__(self, weight: Callable[[int], float], each_step: bool = True) -> None:
        super().__init__()
        self.weight, self.each_step = weight, each_step
        self._times = 0  # how often the average has moved

    def on_train_start(self, trainer, pl_module) -> None:
        """Go on counting where a checkpoint stopped."""
        super().on_train_start(trainer, pl_module)
        average: Any = self._average_model
        self._times = int(average.n_averaged)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Average, when an optimizer step was taken."""
        due = self.each_step or batch_idx + 1 == trainer.num_training_batches
        if due and trainer.global_step > self._latest_update_step:
            self._move(pl_module)
            self._latest_update_step = trainer.global_step

    @torch.no_grad()
    def _move(self, module: nn.Module) -> None:
        """`AveragedModel.update_parameters`, which asks the device how often it has moved: each step would wait."""
        average: Any = self._average_model
        averages, news = ([*model.parameters(), *model.buffers()] for model in (average.module, module))
        pairs = list(zip(averages, news, strict=True))
        moving = [(old, new) for old, new in pairs if old.is_floating_point()]
        weight = self.weight(self._times) if self._times else 1.0
        move_towards([old for old, _ in moving], [new for _, new in moving], weight)
        for old, new in pairs:
            if not old.is_floating_point():  # how many batches a batch norm has seen
                old.copy_(new)
        average.n_averaged += 1
        self._times += 1

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        """Not yet the weights in training again: the module has not computed its scores."""

    def on_validation_end(self, trainer, pl_module) -> None:
        """Now."""
        super().on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer, pl_module) -> None:
        """Leave the averaged weights in the module, with statistics of their own."""
        super().on_train_end(trainer, pl_module)
        loader: Any = trainer.train_dataloader
        loader.sampler.set_epoch(trainer.max_epochs)  # the views that would come next
        batches = (trainer.strategy.batch_to_device(batch) for batch in islice(loader, STATISTICS_BATCHES))
        with trainer.precision_plugin.forward_context():
            renew_statistics(pl_module, batches)
        self._average_model = None  # a validation from here on is of these


@torch.no_grad()
def renew_statistics(module: Any, batches: Iterable[Any]) -> None:
    """Give each batch norm in training the mean, over the batches that pass it, of their means and variances.

    module: has `pass_batch`, which sends a batch through what normalises. What is frozen, in eval mode, stays as it is.
    Where several processes train, each passes its own part of the batches through batch norms that share statistics
    (`training.distributed`), so all get those of one process. Nothing is dropped out. Leaves the module in eval mode.
    """
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.training]
    module.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.training, norm.momentum = True, None  # None: the mean of all batches
    for batch in batches:
        module.pass_batch(batch)
    module.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
