"""Barlow Twins (Zbontar et al. 2021, https://arxiv.org/abs/2103.03230): loss, projector, training.

Departure from the published code: where the batch is smaller than the embedding, the same loss is computed from two
batch x batch Gram matrices, so that the dim x dim cross-correlation is never formed.
"""

from collections.abc import Sequence
from itertools import pairwise

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.backbones import Backbone, normalize
from regard.errors import unknown
from regard.ssl.optimizers import LARS, set_lr, split_parameters
from regard.ssl.schedules import warmup_cosine


def barlow_twins_loss(
    z1: Float[Tensor, "batch dim"], z2: Float[Tensor, "batch dim"], lambda_: float = 0.0051
) -> Float[Tensor, ""]:
    """Sum over i of (1 - c_ii)^2 plus lambda_ times the sum over i != j of c_ij^2 (equation 1).

    c is the cross-correlation of the two embeddings over the batch, each dimension normalised to mean 0 and (biased)
    variance 1, with the 1e-5 that BatchNorm adds to the variance. Computed in float32 under autocast.
    """
    invariance, redundancy = barlow_twins_terms(z1, z2)
    return invariance + lambda_ * redundancy


def barlow_twins_terms(
    z1: Float[Tensor, "batch dim"], z2: Float[Tensor, "batch dim"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The invariance term and the (unweighted) redundancy term of the loss."""
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = standardize(z1.float()), standardize(z2.float())
        batch, dim = z1.shape
        diagonal = (z1 * z2).sum(dim=0) / batch  # c_ii
        if batch < dim:  # |Z1^T Z2|^2 = <Z1 Z1^T, Z2 Z2^T>: batch x batch instead of dim x dim
            squares = ((z1 @ z1.T) * (z2 @ z2.T)).sum() / batch**2
        else:
            squares = (z1.T @ z2).square().sum() / batch**2
        return (1 - diagonal).square().sum(), squares - diagonal.square().sum()


def standardize(z: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
    """Each dimension to mean 0 and variance 1 over the batch: a BatchNorm without parameters, in training mode."""
    return (z - z.mean(dim=0)) / (z.var(dim=0, correction=0) + 1e-5).sqrt()


def projector(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers without biases through these widths; BatchNorm and ReLU after each but the last (section 2.2)."""
    layers: list[nn.Module] = []
    for i, (width_in, width_out) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(width_in, width_out, bias=False))
        if i < len(widths) - 2:
            layers += [nn.BatchNorm1d(width_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class BarlowTwins(L.LightningModule):
    """Trains a backbone so that two views of an image agree and the dimensions of their embedding do not repeat.

    A batch is two uint8 tensors of views, (batch, 3, h, w) each.

    optimizer: "lars" as published (for convnets), with `lr` for weights and `lr * 0.024` for biases and norms (0.2 and
               0.0048 there), each times batch / 256; or "adamw" (for transformers), `lr` times batch / 256 for all.
    warmup:    share of the steps before the rate peaks (10 of 1000 epochs as published); it ends at 0.001 of the peak.
    """

    def __init__(
        self,
        backbone: Backbone,
        widths: Sequence[int] = (8192, 8192, 8192),
        lambda_: float = 0.0051,
        optimizer: str = "lars",
        lr: float = 0.2,
        weight_decay: float = 1e-6,
        batch_size: int = 256,
        warmup: float = 0.01,
    ) -> None:
        super().__init__()
        if optimizer not in ("lars", "adamw"):
            raise unknown("optimizer", optimizer, ("lars", "adamw"))
        self.save_hyperparameters(ignore="backbone")
        self.backbone = backbone
        self.projector = projector((backbone.dim, *widths))

    def training_step(self, views: list[Tensor], batch_index: int) -> Tensor:
        """The loss of one batch of pairs."""
        settings = self.hparams
        total = int(self.trainer.estimated_stepping_batches)
        scaled = settings["lr"] * settings["batch_size"] / 256
        lr = warmup_cosine(self.global_step, total, round(settings["warmup"] * total), scaled, scaled * 0.001)
        set_lr(self.optimizers(), lr, lr * 0.024 if settings["optimizer"] == "lars" else lr)  # type: ignore[arg-type]

        z1, z2 = (self.projector(self.backbone(normalize(view)).pooled) for view in views)
        invariance, redundancy = barlow_twins_terms(z1, z2)
        loss = invariance + settings["lambda_"] * redundancy
        self.log_dict({"loss": loss, "invariance": invariance, "redundancy": redundancy}, prog_bar=False)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Two groups: weights, and the 1-D parameters, which no weight decay or scaling touches."""
        weights, biases = split_parameters(self)
        decay = self.hparams["weight_decay"]
        groups = [{"params": weights, "weight_decay": decay}, {"params": biases, "weight_decay": 0.0}]
        return LARS(groups) if self.hparams["optimizer"] == "lars" else torch.optim.AdamW(groups)
