"""A segmentation model (backbone, fusion, head, refiner) and how it is trained."""

from typing import Any, cast

import lightning as L
import torch
from jaxtyping import Int64
from timm.models import group_parameters
from torch import Tensor, nn

from regard.attention.guidance import check_guidance, guidance_terms, weighted
from regard.backbones import Backbone, Features, eval_mode, normalize
from regard.errors import InputError
from regard.evaluation.scores import scores, torch_counts
from regard.segmentation.inference import count_cached, count_pixels
from regard.segmentation.model import SegmentationModel
from regard.settings import SegmentSettings
from regard.training.distributed import mean_over_processes, processes, sum_over_processes
from regard.training.optimizers import adamw, parameter_groups
from regard.training.schedules import rate_factor


class SegmentationTask(L.LightningModule):
    """A loss over labelled pixels; AdamW; linear warm-up, then a polynomial or cosine decay to zero.

    loss:     a module of (logits, masks), as `losses.build_loss` makes it.
    settings: the rates, their schedule, and guidance are read; the model is made already. For consistency the crops go
              through the backbone a second time, flipped left to right. `layer_decay` is that of Clark et al. 2020
              (https://arxiv.org/abs/2003.10555, appendix A; Bao et al. 2022 for ViTs). What has no weight decay:
              `optimizers.without_decay`. The schedule "poly" is DeepLab's (Chen et al. 2017).

    Training batches are [uint8 crops, or the tensors of their features from a cache; int64 masks].
    Validation gives `val_miou` and `val_accuracy` over the whole set, masks at their own size.

    Of many processes, each has a part of every batch and of the validation set. Validation sums their counts, so that
    its scores are those of one process, to the last bit. A step goes by the mean of their losses, each counting by its
    labelled pixels (times class weights): of cross_entropy and focal that is the loss of the whole batch; of dice and
    lovasz, which are no means over pixels, it is the mean of one of each part.

    Raises InputError for guidance of a backbone without attention, and layer decay where layers are not known.
    """

    def __init__(
        self,
        model: SegmentationModel,
        classes: int,
        loss: nn.Module,
        settings: SegmentSettings = SegmentSettings(),
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        check_guidance(settings, model.backbone)
        decays = settings.layer_decay < 1
        if decays and not hasattr(model.backbone.model, "group_matcher"):
            raise InputError(f"timm does not say what the layers of {model.backbone.name} are: leave out layer_decay")
        self.model, self.classes, self.loss, self.settings = model, classes, loss, settings
        self.ignore_index = ignore_index
        self.reached = reached(model.backbone) if decays else []

    def training_step(self, batch: list[Any], batch_index: int) -> Tensor:
        """The loss of one batch."""
        images, masks = batch
        features = self._features(images)
        read = self.model.refiner.read(features)
        logits = self.model.decode(features, (masks.shape[-2], masks.shape[-1]), read)
        loss = self.loss(logits, masks) * self._counts_for(masks)
        pairs = self.model.refiner.loss(read, masks, self.ignore_index)
        if pairs is not None:
            self.log("affinity_loss", pairs, batch_size=len(masks))
            loss = loss + self.settings.affinity_weight * pairs
        if self.settings.guided:
            views, places = [features.attention], None
            if self.settings.guide_consistency:
                views.append(self._features(images.flip(-1)).attention)
                upright = torch.zeros(len(images), 5, device=images.device)
                upright[:, 2:4] = 1
                flipped = upright.clone()
                flipped[:, 4] = 1
                places = [upright, flipped]
            terms = guidance_terms(self.settings, views, places)
            self.log_dict({f"guide_{name}": term for name, term in terms.items()}, batch_size=len(images))
            loss = loss + weighted(self.settings, terms)
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(masks), sync_dist=True)
        return loss

    def _counts_for(self, masks: Int64[Tensor, "batch h w"]) -> Tensor | float:
        """How much the loss of this process's part counts, 1 on average: DDP takes the mean over processes."""
        if processes() == 1:
            return 1.0
        labelled, weights = masks != self.ignore_index, getattr(self.loss, "class_weights", None)
        total = (labelled if weights is None else weights[masks.where(labelled, 0)] * labelled).sum(dtype=torch.float64)
        mean = mean_over_processes(total)
        return torch.where(mean > 0, total / mean, 1.0).float()

    def _features(self, images: Tensor | list[Tensor]) -> Features:
        if isinstance(images, Tensor):
            return self.model.features(normalize(images), attention=bool(self.settings.guided))
        return self.model.from_tensors(images)

    def pass_batch(self, batch: list[Any]) -> None:
        """Send a training batch through the model, for its batch statistics."""
        images, masks = batch
        self.model.decode(self._features(images), (masks.shape[-2], masks.shape[-1]))

    def on_validation_epoch_start(self) -> None:
        """Count from zero."""
        self.counts = torch_counts(self.classes, self.device)

    def validation_step(self, samples: list[Any], batch_index: int) -> None:
        """Count the pixels of some whole images: (uint8 image, mask), or (tensors of its features, its size, mask)."""
        if not samples:  # more processes than batches
            return
        count = count_pixels if len(samples[0]) == 2 else count_cached
        for counts in count(self.model, samples, self.classes, self.ignore_index):
            self.counts += counts

    def on_validation_epoch_end(self) -> None:
        """Score the whole set: the counts of all processes."""
        result = scores(sum_over_processes(self.counts).cpu())
        self.log_dict({"val_miou": result.miou, "val_accuracy": result.pixel_accuracy})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW with a peak rate for each part."""
        return adamw(parameter_groups(self.model, self.settings.weight_decay, self._rates()))

    def on_train_batch_start(self, batch: list[Any], batch_idx: int) -> None:
        """The rates of this step.

        Not by a scheduler of torch, which must know the number of steps as soon as there is an optimizer. To ask
        Lightning for that makes it begin to load an epoch, and of a run that goes on it does not know yet which.
        """
        total = int(self.trainer.estimated_stepping_batches)
        factor = rate_factor(
            self.global_step, total, max(1, round(self.settings.warmup * total)), self.settings.schedule
        )
        for group in cast(torch.optim.Optimizer, self.optimizers()).param_groups:
            group["lr"] = group["peak"] * factor

    def _rates(self) -> dict[str, float]:
        """The peak rate of each parameter that trains, by name."""
        rates = {name: self.settings.lr for name, _ in self.model.named_parameters()}
        model = self.model
        for prefix, part in (("fusion", model.fusion), ("head", model.head), ("refiner", model.refiner)):
            own = [name for name, _ in part.named_parameters(prefix=prefix) if name.rpartition(".")[2] in part.scalars]
            rates |= dict.fromkeys(own, self.settings.fusion_lr)
        return rates | {f"backbone.model.{name}": rate for name, rate in self._backbone_rates().items()}

    def _backbone_rates(self) -> dict[str, float]:
        model, rate, decay = self.model.backbone.model, self.settings.backbone_lr, self.settings.layer_decay
        if decay == 1:
            return {name: rate for name, _ in model.named_parameters()}
        matcher = model.group_matcher(coarse=False)
        layers = cast(dict[str, int], group_parameters(model, matcher, reverse=True))  # of each parameter, by name
        last = max(layers[name] for name in self.reached)  # a ConvNeXt's last is a norm that only classifying needs
        return {name: rate * decay ** max(0, last - layers[name]) for name in layers}


def reached(backbone: Backbone) -> list[str]:
    """Names of the parameters of timm's model that the pyramid depends on; found by one small backward pass."""
    named = {name: p for name, p in backbone.model.named_parameters() if p.requires_grad}
    side = 2 * max(backbone.strides)
    images = torch.zeros(1, 3, side, side, device=next(backbone.parameters()).device)
    with eval_mode(backbone), torch.enable_grad():
        total = torch.stack([level.float().sum() for level in backbone(images).pyramid]).sum()
        gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return [name for name, gradient in zip(named, gradients, strict=True) if gradient is not None]
