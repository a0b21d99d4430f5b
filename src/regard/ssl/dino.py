"""DINO (Caron et al. 2021, https://arxiv.org/abs/2104.14294): head, loss, training with a momentum teacher."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from regard.backbones import AttentionMap, Backbone, normalize
from regard.settings import MOST, Amount, PretrainSettings, Share, Width
from regard.ssl.method import Pretraining
from regard.training.distributed import mean_over_processes
from regard.training.optimizers import adamw, clip_each, move_towards, parameter_groups, set_lr
from regard.training.schedules import cosine, dino_warmup_cosine, teacher_temperature

PAIR = Meta(min_length=2, max_length=2)  # from, to


class DINOHead(nn.Module):
    """Three-layer GELU MLP to a bottleneck, L2 norm, then prototypes of unit norm (appendix C).

    The published head keeps the prototypes' norm as a parameter frozen at 1; so do we, under torch's newer
    parametrisation (`last_layer.parametrizations.weight.original0` is `weight_g`, `original1` is `weight_v`).

    norm_last_layer: keep that norm at 1; False lets it be learnt, which the authors did for their best ViT-S.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int = 65536,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        norm_last_layer: bool = True,
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, bottleneck_dim),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = weight_norm(nn.Linear(bottleneck_dim, out_dim, bias=False))
        norm = dict(self.last_layer.named_parameters())["parametrizations.weight.original0"]
        norm.data.fill_(1)
        norm.requires_grad = not norm_last_layer

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch out_dim"]:
        """Logits over the prototypes: cosine similarities, times the prototypes' norms where those are learnt."""
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))


def dino_loss(
    student: Float[Tensor, "student_rows dim"],
    teacher: Float[Tensor, "teacher_rows dim"],
    center: Float[Tensor, "1 dim"],
    crops: int,
    teacher_temp: float,
    student_temp: float = 0.1,
) -> Float[Tensor, ""]:
    """Cross-entropy from the teacher's view of a global crop to the student's of every other crop (equation 3).

    student: logits of all crops, crop by crop: (crops * batch, dim), the two global crops first.
    teacher: logits of the two global crops, (2 * batch, dim); no gradient flows into them.
    """
    log_student = F.log_softmax(student.float() / student_temp, dim=-1).unflatten(0, (crops, -1))
    target = F.softmax((teacher.detach().float() - center) / teacher_temp, dim=-1).chunk(2)
    # A global crop has one target for all the others: their logarithms are added up first, so that there are two
    # products of batch x dim, and not one for each pair of crops.
    local = log_student[2:].sum(dim=0)
    products = [(target[t] * (log_student[1 - t] + local)).sum(dim=-1).mean() for t in range(2)]
    return -(products[0] + products[1]) / (2 * (crops - 1))


def update_center(
    center: Float[Tensor, "1 dim"], teacher: Float[Tensor, "rows dim"], momentum: float = 0.9
) -> Float[Tensor, "1 dim"]:
    """The center after a batch: a running mean of the teacher's logits (equation 4); called after the loss.

    The mean is over the batches of all processes.
    """
    mean = mean_over_processes(teacher.detach().float().mean(dim=0, keepdim=True))
    return center * momentum + mean * (1 - momentum)


class DINO(Pretraining):
    """Trains a student to predict, from any crop, what its momentum teacher says of the global crops.

    A batch is a list of uint8 tensors of crops, (batch, 3, h, w) each: the two global crops first.
    `backbone` is the student; `teacher_backbone` is the one to keep (section 3.1). Stochastic depth, if any, must be
    set on `backbone` (`drop_path_rate`); the teacher runs without it.

    lr:              for a batch of 256; scaled by batch / 256. Warm-up takes the share `warmup` of the steps.
    teacher_warmup:  epochs over which the teacher's temperature goes from `teacher_temp[0]` to `teacher_temp[1]`.
    freeze_epochs:   epochs in which the prototypes stay as they are (section 5.4).
    """

    averages = True  # the teacher is one
    decayed = ("pos_embed", "cls_token")  # as published, where only biases and what is 1-D do not decay

    @classmethod
    def usual_options(cls, settings: PretrainSettings) -> dict[str, Any]:
        """Its authors' advice for the batch: the teacher is slower where batches are small."""
        momentum = 0.9995 if settings.batch_size <= 256 else 0.996
        return super().usual_options(settings) | {"momentum": momentum}

    def __init__(
        self,
        backbone: Backbone,
        out_dim: Annotated[int, Meta(ge=1, le=2**18)] = 65536,
        hidden_dim: Width = 2048,
        bottleneck_dim: Width = 256,
        norm_last_layer: bool = True,
        lr: Amount = 5e-4,
        final_lr: Amount = 1e-6,
        weight_decay: Annotated[Sequence[Amount], PAIR] = (0.04, 0.4),
        momentum: Share = 0.996,
        teacher_temp: Annotated[Sequence[Annotated[float, Meta(gt=0, le=100)]], PAIR] = (0.04, 0.04),
        teacher_warmup: Annotated[int, Meta(ge=0, le=MOST)] = 0,
        freeze_epochs: Annotated[int, Meta(ge=0, le=MOST)] = 1,
        clip: Amount = 3.0,
        batch_size: int = 1024,
        warmup: Share = 0.1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="backbone")
        backbone.prefer_dinos_positions()  # as published: for local crops they differ most
        self.backbone = backbone
        self.head = DINOHead(backbone.dim, out_dim, hidden_dim, bottleneck_dim, norm_last_layer)
        self.teacher_backbone = _without_drop_path(copy.deepcopy(backbone)).requires_grad_(False)
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.register_buffer("center", torch.zeros(1, out_dim))
        self.center: Tensor

    @property
    def kept(self) -> Backbone:
        """The teacher's: better than the student throughout training (section 5.2)."""
        return self.teacher_backbone

    def training_step(self, batch: list[Tensor], batch_index: int) -> dict[str, Any]:
        """The loss of one batch of crops."""
        settings, step, total = self.hparams, self.global_step, self.total_steps
        optimizer: torch.optim.Optimizer = self.optimizers()  # type: ignore[assignment]
        peak = settings["lr"] * settings["batch_size"] / 256
        lr = dino_warmup_cosine(step, total, round(settings["warmup"] * total), peak, settings["final_lr"])
        set_lr(optimizer, lr, lr)
        optimizer.param_groups[0]["weight_decay"] = cosine(step, total, *settings["weight_decay"])
        temperature = teacher_temperature(
            self.current_epoch, *settings["teacher_temp"], warmup_epochs=settings["teacher_warmup"]
        )
        crops, places = self.views_and_places(batch)
        images = [normalize(crop) for crop in crops]
        with torch.no_grad():
            teacher = self.teacher_head(self.teacher_backbone(torch.cat(images[:2])).pooled)
        runs = _by_size(images)
        seen = self.backbone(runs[0], attention=bool(self.guidance.guided))  # the student's; global crops come first
        pooled = torch.cat([seen.pooled, *(self.backbone(run).pooled for run in runs[1:])])
        loss = dino_loss(self.head(pooled), teacher, self.center, len(crops), temperature)
        added, terms = self.guide(_global_maps(seen.attention, len(crops[0])), places)
        loss = loss + added
        said = {"logits": teacher, "center": self.center.clone(), "temperature": temperature}
        self.center.copy_(update_center(self.center, teacher))
        self.record({"loss": loss, "temperature": temperature})
        first, second = pooled.detach().split(len(crops[0]))[:2]
        return {"loss": loss, "embeddings": (first, second), "teacher": said, "guide": terms}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip, and hold the prototypes still in the first epoch."""
        if self.hparams["clip"]:
            clip_each((p for group in optimizer.param_groups for p in group["params"]), self.hparams["clip"])
        if self.current_epoch < self.hparams["freeze_epochs"]:
            for parameter in self.head.last_layer.parameters():
                parameter.grad = None

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move the teacher towards the student.

        Here, and not at the end of the batch: there a checkpoint would be written between the two.
        """
        momentum = cosine(self.global_step, self.total_steps, self.hparams["momentum"], 1.0)
        super().optimizer_step(*args, **kwargs)
        self.move_teacher(momentum)

    @torch.no_grad()
    def move_teacher(self, momentum: float) -> None:
        """Each weight of the teacher keeps this share; its BatchNorm statistics are its own, as published."""
        for student, teacher in ((self.backbone, self.teacher_backbone), (self.head, self.teacher_head)):
            move_towards(list(teacher.parameters()), list(student.parameters()), 1 - momentum)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over the student; what has no weight decay: `optimizers.without_decay`, but for `decayed`."""
        # A fused step would unscale gradients (16-mixed) itself, after they were clipped.
        unscaled = getattr(self.trainer.precision_plugin, "scaler", None) is None
        groups = parameter_groups(self, self.hparams["weight_decay"][0], decayed=self.decayed)
        return adamw(groups, fused=unscaled)


def _by_size(images: list[Tensor]) -> list[Tensor]:
    """Runs of crops of one size, concatenated: each run is one forward pass."""
    runs: list[list[Tensor]] = []
    for image in images:
        if runs and runs[-1][0].shape[-2:] == image.shape[-2:]:
            runs[-1].append(image)
        else:
            runs.append([image])
    return [torch.cat(run) for run in runs]


def _global_maps(attention: Sequence[AttentionMap], batch: int) -> list[list[AttentionMap]]:
    """The maps of the first and of the second global crops, each by level."""
    return [
        [replace(level, weights=level.weights[start : start + batch], prefix=None) for level in attention]
        for start in (0, batch)
    ]


def _without_drop_path(backbone: Backbone) -> Backbone:
    """The teacher sees whole networks: stochastic depth off, whatever mode it is in."""
    for module in backbone.modules():
        if hasattr(module, "drop_prob"):
            setattr(module, "drop_prob", 0.0)  # noqa: B010 (a plain attribute, which nn.Module's types do not know)
    return backbone
