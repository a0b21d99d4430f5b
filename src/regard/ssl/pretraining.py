"""What the methods share: which backbone is kept, how a rate is scheduled, and kNN as validation."""

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from regard.backbones import Backbone, normalize
from regard.evaluation.probes import knn
from regard.ssl.distributed import gather


class Pretraining(L.LightningModule):
    """A LightningModule that trains `backbone`.

    `training_step` returns {"loss": scalar, "embeddings": (of one view, of another)}, the latter without gradient, for
    `monitors`; DINO adds what its teacher said. Validation batches are (images, labels): first all of the bank, then
    the queries; they give `knn_top1` and `knn_top5`, percent (`evaluation.probes.knn`, k = 20 or all of the bank).

    fixed_lr: leave the rates of the optimizer as they are: the search for one sets them.
    """

    backbone: Backbone
    fixed_lr: bool = False

    @property
    def kept(self) -> Backbone:
        """The backbone to keep after training."""
        return self.backbone

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return int(self.trainer.estimated_stepping_batches)

    def on_fit_start(self) -> None:
        """Where activations are computed again in the backward pass, batch norms must not count those batches twice."""
        if any(getattr(module, "grad_checkpointing", False) for module in self.modules()):
            for norm in self.modules():
                if isinstance(norm, _BatchNorm):
                    norm.register_forward_pre_hook(_pause_statistics)
                    norm.register_forward_hook(_go_on_with_statistics)

    def on_validation_epoch_start(self) -> None:
        """No features yet."""
        self._features: list[tuple[list[Tensor], list[Tensor]]] = [([], []), ([], [])]

    def validation_step(self, batch: list[Tensor], batch_index: int, dataloader_idx: int) -> None:
        """Keep the features of the bank (loader 0) and of the queries (loader 1)."""
        images, labels = batch
        features, kept_labels = self._features[dataloader_idx]
        features.append(self.kept(normalize(images)).pooled.float())
        kept_labels.append(labels)

    def on_validation_epoch_end(self) -> None:
        """kNN over what all processes saw."""
        top1, top5 = self.knn_of_features()
        self.log_dict({"knn_top1": top1, "knn_top5": top5})

    def knn_of_features(self) -> tuple[float, float]:
        """(top-1, top-5) in percent of the features kept since validation started."""
        (bank, bank_labels), (queries, query_labels) = (
            self._without_padding(gather(torch.cat(features)), gather(torch.cat(labels)))
            for features, labels in self._features
        )
        self._features = []
        return knn(bank, bank_labels, queries, query_labels, k=min(20, len(bank)))

    @staticmethod
    def _without_padding(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return features[labels >= 0], labels[labels >= 0]


def _pause_statistics(norm: Any, inputs: tuple[Tensor, ...]) -> None:
    if torch._C._current_graph_task_id() != -1:  # in a backward pass, as torch.utils.checkpoint asks itself
        norm.paused_momentum, norm.momentum = norm.momentum, 0.0  # to leave them out would save other tensors


def _go_on_with_statistics(norm: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    if hasattr(norm, "paused_momentum"):
        norm.momentum = norm.paused_momentum
        del norm.paused_momentum
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.sub_(1)
