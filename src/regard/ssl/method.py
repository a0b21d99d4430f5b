"""What the methods share: which backbone is kept, how a rate is scheduled, and kNN as validation."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from regard.attention.guidance import guidance_terms, weighted
from regard.backbones import AttentionMap, Backbone, normalize
from regard.errors import unknown
from regard.evaluation.probes import knn
from regard.settings import Guidance, PretrainSettings
from regard.training.distributed import gather
from regard.training.trainer import count_once


def choose_optimizer(
    recipes: Mapping[str, tuple[float, float]],
    backbone: Backbone,
    optimizer: str | None,
    lr: float | None,
    weight_decay: float | None,
) -> tuple[str, float, float]:
    """The optimizer, its rate and its weight decay: those given, else AdamW for transformers and the first of the
    recipes for convnets, with its usual rate and decay. InputError for an optimizer that has no recipe.

    recipes: optimizer -> (rate at a batch of 256, weight decay).
    """
    optimizer = optimizer or ("adamw" if backbone.heads else next(iter(recipes)))
    if optimizer not in recipes:
        raise unknown("optimizer", optimizer, recipes)
    usual_lr, usual_decay = recipes[optimizer]
    return optimizer, usual_lr if lr is None else lr, usual_decay if weight_decay is None else weight_decay


class Pretraining(L.LightningModule):
    """A LightningModule that trains `backbone`.

    `training_step` returns {"loss": scalar, "embeddings": (of one view, of another), "guide": terms of guidance}, the
    embeddings without gradient, for `monitors`; DINO adds what its teacher said. Validation batches are (images,
    labels): first all of the bank, then the queries; they give `knn_top1` and `knn_top5`, percent
    (`evaluation.probes.knn`, k = 20 or all of the bank).

    labelled: whether it learns from labels, which then come after the views of a batch.
    correlates: whether it makes the embeddings of two views agree dimension by dimension.
    averages: whether it keeps an average of the weights of its own.
    guidance: terms on the attention maps that are added to the loss. With `consistency`, batches say where the views
              are in their images: (batch, views, 5) comes after the views.
    """

    backbone: Backbone
    labelled = averages = correlates = False
    guidance: Guidance = Guidance()

    @classmethod
    def usual_options(cls, settings: PretrainSettings) -> dict[str, Any]:
        """Options that depend on the length or the batch, where nothing else is said: ten epochs of warm-up."""
        return {"warmup": min(0.1, 10 / settings.epochs)}

    def views_and_places(self, batch: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor] | None]:
        """The views of a batch, and the places of each, (batch, 5), where the batch has them."""
        if not self.guidance.guide_consistency:
            return list(batch), None
        *views, places = batch
        return views, list(places.unbind(dim=1))

    def guide(
        self, views: Sequence[Sequence[AttentionMap]], places: Sequence[Tensor] | None
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """What guidance adds to the loss, and its terms by name, which are logged too.

        views: for each of the views compared, its maps by level.

        It is the mean over this process's images: the mean over processes of its gradient is that of all images.
        """
        terms = guidance_terms(self.guidance, views, places)
        named = {f"guide_{name}": term.detach() for name, term in terms.items()}
        self.record(named)
        return weighted(self.guidance, terms), named

    def record(self, values: Mapping[str, Tensor | float]) -> None:
        """Log values of this step, if the Trainer writes this step down: Lightning takes 0.7 ms for each, and copies a
        number to the device.
        """
        trainer: Any = self.trainer
        every = trainer.log_every_n_steps
        if every and (self.global_step + 1) % every == 0:
            self.log_dict(values)

    def pass_batch(self, batch: Sequence[Tensor]) -> None:
        """Send the views of a batch through backbone and projector, for their batch statistics."""
        projector = getattr(self, "projector", nn.Identity())
        for view in batch:
            if view.ndim == 4:  # not the labels
                projector(self.backbone(normalize(view)).pooled)

    @property
    def kept(self) -> Backbone:
        """The backbone to keep after training."""
        return self.backbone

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return int(self.trainer.estimated_stepping_batches)

    def on_fit_start(self) -> None:
        """Batches count once."""
        count_once(self)

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
