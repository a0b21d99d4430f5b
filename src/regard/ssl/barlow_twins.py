"""Barlow Twins (Zbontar et al. 2021, https://arxiv.org/abs/2103.03230): loss, projector, training.

Departure from the published code: where the batch is smaller than the embedding, the same loss is computed from two
batch x batch Gram matrices, so that the dim x dim cross-correlation is never formed.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from regard.backbones import Backbone, normalize
from regard.settings import Amount, Share, Width
from regard.ssl.method import Pretraining, choose_optimizer
from regard.training.distributed import gather, processes
from regard.training.optimizers import LARS, adamw, parameter_groups, set_lr, split_parameters
from regard.training.schedules import warmup_cosine

RECIPES = {"lars": (0.2, 1e-6), "adamw": (5e-4, 0.05)}  # optimizer: (rate at a batch of 256, weight decay)


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
        # Products of batch x dim: 4 of batch wide with Gram matrices, 3 of dim wide without, forward and backward.
        # Measured equal at batch = 3/4 dim, as they should be (benchmarks/loss.py).
        squares = (_gram_squares if 4 * batch < 3 * dim else _correlation_squares)(z1, z2) / batch**2  # all c_ij^2
        return (1 - diagonal).square().sum(), squares - diagonal.square().sum()


def _gram_squares(z1: Float[Tensor, "batch dim"], z2: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """|Z1^T Z2|^2 as <Z1 Z1^T, Z2 Z2^T>: batch x batch instead of dim x dim."""
    return _GramSquares.apply(z1, z2)  # type: ignore[return-value]


def _correlation_squares(z1: Float[Tensor, "batch dim"], z2: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """|Z1^T Z2|^2 from the dim x dim product itself."""
    return _CorrelationSquares.apply(z1, z2)  # type: ignore[return-value]


class _GramSquares(torch.autograd.Function):
    """With its gradient, 2 Z2 Z2^T Z1 for Z1: autograd would multiply twice, not knowing that a Gram is symmetric."""

    @staticmethod
    def forward(ctx: Any, z1: Tensor, z2: Tensor) -> Tensor:
        gram1, gram2 = z1 @ z1.T, z2 @ z2.T
        ctx.save_for_backward(z1, z2, gram1, gram2)
        return (gram1 * gram2).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        z1, z2, gram1, gram2 = ctx.saved_tensors
        return (gram2 @ z1).mul_(2 * grad), (gram1 @ z2).mul_(2 * grad)


class _CorrelationSquares(torch.autograd.Function):
    """With its gradient, 2 Z2 C^T for Z1: C = Z1^T Z2 is the only dim x dim matrix; autograd would make three."""

    @staticmethod
    def forward(ctx: Any, z1: Tensor, z2: Tensor) -> Tensor:
        c = z1.T @ z2
        ctx.save_for_backward(z1, z2, c)
        return torch.linalg.vector_norm(c, dim=1).square().sum()  # not one norm: 1% off at 8192 x 8192

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        z1, z2, c = ctx.saved_tensors
        return (z2 @ c.T).mul_(2 * grad), (z1 @ c).mul_(2 * grad)


def standardize(z: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
    """Each dimension to mean 0 and variance 1 over the batch: a BatchNorm without parameters, in training mode."""
    return F.batch_norm(z, None, None, training=True)  # eps 1e-5; five times faster than from mean and variance


def projector(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers without biases through these widths; BatchNorm and ReLU after each but the last (section 2.2)."""
    layers: list[nn.Module] = []
    for i, (width_in, width_out) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(width_in, width_out, bias=False))
        if i < len(widths) - 2:
            layers += [nn.BatchNorm1d(width_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class BarlowTwins(Pretraining):
    """Trains a backbone so that two views of an image agree and the dimensions of their embedding do not repeat.

    A batch is two uint8 tensors of views, (batch, 3, h, w) each. The loss is that of the batches of all processes
    together; with `accumulate_grad_batches`, the mean of the losses of the parts, which is not that of their whole.

    lr, weight_decay: by default those of the optimizer in `RECIPES`.
    optimizer: "lars" as published (default for convnets), with `lr` for weights and `lr * bias_lr` for biases and
               norms (0.2 and 0.0048 there), each times batch / 256; or "adamw" (default for transformers), `lr` times
               batch / 256 for all.
    bias_steps: of "lars", how long steps of biases and norms are on several processes. "published": divided by their
               number, as in the authors' code, which adds the cross-correlation up over processes without its gradient
               and lets DDP divide by their number (LARS makes up for that in the weights). "whole": as long as the rate
               says, on any number of processes.
    warmup:    share of the steps before the rate peaks (10 of 1000 epochs as published); it ends at 0.001 of the peak.
    """

    correlates = True

    def __init__(
        self,
        backbone: Backbone,
        widths: Annotated[Sequence[Width], Meta(min_length=1, max_length=8)] = (8192, 8192, 8192),
        lambda_: Amount = 0.0051,
        optimizer: str | None = None,
        lr: Amount | None = None,
        bias_lr: Amount = 0.024,
        bias_steps: Literal["published", "whole"] = "published",
        weight_decay: Amount | None = None,
        batch_size: int = 256,
        warmup: Share = 0.01,
    ) -> None:
        super().__init__()
        optimizer, lr, weight_decay = choose_optimizer(RECIPES, backbone, optimizer, lr, weight_decay)
        self.save_hyperparameters(ignore="backbone")  # the values as they are now
        self.backbone = backbone
        self.projector = projector((backbone.dim, *widths))

    def training_step(self, batch: list[Tensor], batch_index: int) -> dict[str, Any]:
        """The loss of one batch of pairs."""
        settings = self.hparams
        optimizer: torch.optim.Optimizer = self.optimizers()  # type: ignore[assignment]
        peak, total = settings["lr"] * settings["batch_size"] / 256, self.total_steps
        lr = warmup_cosine(self.global_step, total, round(settings["warmup"] * total), peak, peak * 0.001)
        set_lr(optimizer, lr, lr * self.bias_factor if settings["optimizer"] == "lars" else lr)

        views, places = self.views_and_places(batch)
        features = [self.backbone(normalize(view), attention=bool(self.guidance.guided)) for view in views]
        z1, z2 = (gather(self.projector(seen.pooled)) for seen in features)
        invariance, redundancy = barlow_twins_terms(z1, z2)
        loss = invariance + settings["lambda_"] * redundancy
        added, terms = self.guide([seen.attention for seen in features], places)
        loss = loss + added
        self.record({"loss": loss, "invariance": invariance, "redundancy": redundancy})
        return {"loss": loss, "embeddings": (z1.detach(), z2.detach()), "guide": terms}

    @property
    def bias_factor(self) -> float:
        """The rate of biases and norms over that of weights, under LARS."""
        factor: float = self.hparams["bias_lr"]
        return factor / processes() if self.hparams["bias_steps"] == "published" else factor

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """No weight decay or scaling of biases and norms."""
        decay = self.hparams["weight_decay"]
        if self.hparams["optimizer"] == "lars":
            return LARS([{"params": part} for part in split_parameters(self)], weight_decay=decay)
        return adamw(parameter_groups(self, decay))
