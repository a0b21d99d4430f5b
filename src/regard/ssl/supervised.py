"""Supervised training on labelled images: the baseline that self-supervised methods are compared with.

Losses: cross-entropy of a linear classifier (He et al. 2016, https://arxiv.org/abs/1512.03385), and three of metric
learning, from pytorch-metric-learning (the extra `metric`): angular (Wang et al. 2017,
https://arxiv.org/abs/1708.01682), ArcFace (Deng et al. 2019, https://arxiv.org/abs/1801.07698) and sub-center ArcFace
(Deng et al. 2020, ECCV). Departures from He et al.: a cosine with a warm-up in the place of steps, as is usual today
(https://arxiv.org/abs/1812.01187), and no weight decay on biases and norms, as everywhere here.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from msgspec import Meta
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy

from regard.backbones import Backbone, normalize
from regard.errors import InputError, unknown
from regard.settings import Amount, PretrainSettings, Share, typed
from regard.ssl.method import Pretraining, choose_optimizer
from regard.training.distributed import gather
from regard.training.optimizers import adamw, parameter_groups, set_lr, sgd
from regard.training.schedules import warmup_cosine

# The options of each loss, as in the papers; angles in degrees, as version 2 of the library takes them.
CRITERIA: Mapping[str, Mapping[str, Any]] = {
    "cross_entropy": {"label_smoothing": 0.0},  # none in He et al.; 0.1 in DeiT and other recipes since Inception-v3
    "angular": {"alpha": 40},  # the library's
    "arcface": {"margin": 28.6, "scale": 64},  # 0.5 radians
    "subcenter_arcface": {"margin": 28.6, "scale": 64, "sub_centers": 3},
}
KINDS: Mapping[str, Any] = {  # of those options
    "label_smoothing": Share,
    "alpha": Annotated[float, Meta(gt=0, lt=90)],
    "margin": Annotated[float, Meta(ge=0, lt=180)],
    "scale": Annotated[float, Meta(gt=0, le=1000)],
    "sub_centers": Annotated[int, Meta(ge=1, le=100)],
}
RECIPES = {  # optimizer: (rate at a batch of 256, weight decay)
    "sgd": (0.1, 1e-4),  # He et al. 2016, section 3.4
    "adamw": (2.5e-4, 0.05),  # DeiT (https://arxiv.org/abs/2012.12877), table 9: 5e-4 at a batch of 512
}


class CrossEntropy(nn.Module):
    """A linear classifier and its cross-entropy, with the methods that the library's losses have."""

    def __init__(self, num_classes: int, embedding_size: int, label_smoothing: float) -> None:
        super().__init__()
        self.linear, self.label_smoothing = nn.Linear(embedding_size, num_classes), label_smoothing

    def get_logits(self, embeddings: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch classes"]:
        """One logit per class."""
        return self.linear(embeddings)

    def forward(self, embeddings: Float[Tensor, "batch dim"], labels: Int[Tensor, "batch"]) -> Float[Tensor, ""]:
        """The mean over the batch."""
        return F.cross_entropy(self.get_logits(embeddings), labels, label_smoothing=self.label_smoothing)


def build_loss(name: str, classes: int, dim: int, options: Mapping[str, Any]) -> nn.Module:
    """(embeddings (batch, dim), labels (batch,)) -> scalar; all but `angular` have weights and `get_logits`.

    What `get_logits` of the ArcFaces gives is scale * cos(theta) per class (of its nearest sub-center): no margin.
    `angular` takes embeddings of unit length; a batch without a pair of one class, and one of another, costs 0.

    Raises InputError for an unknown name or option, fewer than two classes, or when the library is not installed.
    """
    if name not in CRITERIA:
        raise unknown("loss", name, CRITERIA)
    for option, value in options.items():
        if option not in CRITERIA[name]:
            raise unknown(f"option of {name}", option, CRITERIA[name])
        typed(f"{option} of {name}", KINDS[option], value, strict=True)
    if classes < 2:
        raise InputError(f"supervised training on {classes} classes: two or more, each a folder of images, would work")
    options = {**CRITERIA[name], **options}
    if name == "cross_entropy":
        return CrossEntropy(classes, dim, **options)
    try:
        from pytorch_metric_learning.losses import AngularLoss, ArcFaceLoss, SubCenterArcFaceLoss
    except ImportError as error:
        raise InputError(f'{name} needs pytorch-metric-learning: pip install "regard[metric]"') from error
    if name == "angular":
        return AngularLoss(**options)
    arcface = ArcFaceLoss if name == "arcface" else SubCenterArcFaceLoss
    return arcface(num_classes=classes, embedding_size=dim, **options)


class Supervised(Pretraining):
    """Trains a backbone to tell the classes of labelled images apart.

    A batch is [uint8 views (batch, 3, h, w), labels (batch,)]. Validation adds `accuracy` and `accuracy_top5`, percent,
    of the classifier to kNN; `angular` has no classifier, so kNN is all there is. With fewer than five classes, top-5
    counts all of them, as kNN's. `training_step` gives no "embeddings": there is no second view to compare with.

    loss:         a key of `CRITERIA`; loss_options: any of its options there, in the place of the default.
    optimizer:    "sgd" with momentum 0.9 (default for convnets) or "adamw" (default for transformers).
    lr:           times batch / 256; lr and weight_decay are by default those of the optimizer in `RECIPES`.
    warmup:       share of the steps before the rate peaks (about 5 of 90 epochs in Goyal et al. 2017); it ends at 0.
    """

    labelled = True

    @classmethod
    def usual_options(cls, settings: PretrainSettings) -> dict[str, Any]:
        """Its warm-up does not depend on the number of epochs."""
        return {}

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        loss: str = "cross_entropy",
        loss_options: Mapping[str, Any] | None = None,
        optimizer: str | None = None,
        lr: Amount | None = None,
        weight_decay: Amount | None = None,
        batch_size: int = 256,
        warmup: Share = 0.05,
    ) -> None:
        super().__init__()
        optimizer, lr, weight_decay = choose_optimizer(RECIPES, backbone, optimizer, lr, weight_decay)
        self.save_hyperparameters(ignore="backbone")  # the values as they are now
        self.backbone = backbone
        self.criterion = build_loss(loss, classes, backbone.dim, loss_options or {})

    def training_step(self, batch: list[Tensor], batch_index: int) -> dict[str, Any]:
        """The loss of one batch."""
        settings, total = self.hparams, self.total_steps
        peak = settings["lr"] * settings["batch_size"] / 256
        lr = warmup_cosine(self.global_step, total, round(settings["warmup"] * total), peak, 0.0)
        set_lr(self.optimizers(), lr, lr)  # type: ignore[arg-type]
        images, labels = batch
        seen = self.backbone(normalize(images), attention=bool(self.guidance.guided))
        added, terms = self.guide([seen.attention], None)
        loss = self.loss(seen.pooled, labels) + added
        self.record({"loss": loss})
        return {"loss": loss, "guide": terms}

    def loss(self, pooled: Float[Tensor, "batch dim"], labels: Int[Tensor, "batch"]) -> Float[Tensor, ""]:
        """The criterion, in float32 under autocast: from half-precision input, the library casts its weights for good.

        Angular compares images with each other, so it takes the batches of all processes together. It needs unit
        length (section 3.3 of the paper): the library normalises anchors and positives, but not negatives.
        """
        with torch.autocast(pooled.device.type, enabled=False):
            pooled = pooled.float()
            if self.hparams["loss"] == "angular":
                pooled, labels = gather(F.normalize(pooled)), gather(labels)
            return self.criterion(pooled, labels)

    def on_validation_epoch_end(self) -> None:
        """The classifier's accuracy on the queries, besides kNN."""
        if hasattr(self.criterion, "get_logits"):
            features, labels = (gather(torch.cat(parts)) for parts in self._features[1])
            features, labels = self._without_padding(features, labels)
            logits: Tensor = self.criterion.get_logits(features)  # type: ignore[operator]
            classes = self.hparams["classes"]
            for name, k in (("accuracy", 1), ("accuracy_top5", min(5, classes))):
                self.log(name, 100 * multiclass_accuracy(logits, labels, classes, average="micro", top_k=k))
        super().on_validation_epoch_end()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Over the backbone and the loss's own weights; no weight decay on biases and norms."""
        groups = parameter_groups(self, self.hparams["weight_decay"])
        return sgd(groups) if self.hparams["optimizer"] == "sgd" else adamw(groups)
