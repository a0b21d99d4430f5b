"""A segmentation model (backbone, fusion, head) and how it is trained."""

import lightning as L
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from regard.attention.guidance import Guidance
from regard.backbones import Backbone, Features, normalize
from regard.errors import InputError
from regard.evaluation.scores import scores, torch_counts
from regard.segmentation.fusion import build_fusion
from regard.segmentation.heads import build_head
from regard.segmentation.inference import count_pixels


class SegmentationModel(nn.Module):
    """logits = head(fusion(backbone(images))), at the images' own size.

    freeze: the backbone gets no gradient and stays in evaluation mode, so that its batch statistics stay put.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        fusion: str = "none",
        head: str = "segformer",
        freeze: bool = False,
        **head_options: int,
    ) -> None:
        super().__init__()
        self.backbone, self.freeze = backbone, freeze
        # the head first: with one seed it then starts the same under every fusion
        self.head = build_head(head, backbone.channels, backbone.strides, classes, **head_options)
        self.fusion = build_fusion(fusion, backbone)
        if freeze:  # eval at once: Lightning keeps each module's mode and does not call train() before it fits
            backbone.requires_grad_(False).eval()

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes height width"]:
        """Logits of normalised images of any size."""
        return self.decode(self.features(images), (images.shape[-2], images.shape[-1]))

    def features(self, images: Float[Tensor, "batch 3 height width"], attention: bool = False) -> Features:
        """The backbone's features, with attention maps where the fusion needs them, or asked for."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            return self.backbone(images, attention=self.fusion.attention or attention, affinity=self.fusion.affinity)

    def decode(self, features: Features, size: tuple[int, int]) -> Float[Tensor, "batch classes height width"]:
        """Logits at this (height, width)."""
        logits = self.head(self.fusion(features))
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)

    def train(self, mode: bool = True) -> "SegmentationModel":
        """Training mode for what trains."""
        super().train(mode)
        if self.freeze:
            self.backbone.eval()
        return self


class SegmentationTask(L.LightningModule):
    """Cross-entropy over labelled pixels; AdamW; linear warm-up, then a polynomial decay to zero.

    guidance:        terms on the attention maps, added to the loss. For consistency the crops go through the backbone
                     a second time, flipped left to right.
    lr, backbone_lr: peak rates of fusion and head, and of the backbone.
    power:           of the decay; 0.9 as in DeepLab (Chen et al. 2017).
    Validation gives `val_miou` and `val_accuracy` over the whole set, masks at their own size.
    """

    def __init__(
        self,
        model: SegmentationModel,
        classes: int,
        ignore_index: int = 255,
        lr: float = 1e-3,
        backbone_lr: float = 1e-4,
        weight_decay: float = 0.01,
        warmup: float = 0.05,
        power: float = 0.9,
        guidance: Guidance = Guidance(),
    ) -> None:
        super().__init__()
        guidance.check(model.backbone)
        if guidance and model.freeze:
            raise InputError("guidance changes the backbone, and a frozen one stays as it is: leave out one of the two")
        self.guidance = guidance
        self.model, self.classes, self.ignore_index = model, classes, ignore_index
        self.lr, self.backbone_lr, self.weight_decay = lr, backbone_lr, weight_decay
        self.warmup, self.power = warmup, power

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        """The loss of one batch: [uint8 crops, int64 masks]."""
        images, masks = batch
        images = normalize(images)
        features = self.model.features(images, attention=bool(self.guidance))
        logits = self.model.decode(features, (masks.shape[-2], masks.shape[-1]))
        loss = segmentation_loss(logits, masks, self.ignore_index)
        if self.guidance:
            views, places = [features.attention], None
            if self.guidance.consistency:
                views.append(self.model.features(images.flip(-1), attention=True).attention)
                upright = images.new_zeros(len(images), 5)
                upright[:, 2:4] = 1
                flipped = upright.clone()
                flipped[:, 4] = 1
                places = [upright, flipped]
            terms = self.guidance.terms(views, places)
            self.log_dict({f"guide_{name}": term for name, term in terms.items()}, batch_size=len(images))
            loss = loss + self.guidance.total(terms)
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def on_validation_epoch_start(self) -> None:
        """Count from zero."""
        self.counts = torch_counts(self.classes, self.device)

    def validation_step(self, pairs: list[tuple[Tensor, Tensor]], batch_index: int) -> None:
        """Count the pixels of some whole images."""
        for counts in count_pixels(self.model, pairs, self.classes, self.ignore_index):
            self.counts += counts

    def on_validation_epoch_end(self) -> None:
        """Score the whole set."""
        result = scores(self.counts.cpu())
        self.log_dict({"val_miou": result.miou, "val_accuracy": result.pixel_accuracy})

    def configure_optimizers(self):
        """AdamW with two rates and a schedule by step."""
        backbone = [p for p in self.model.backbone.parameters() if p.requires_grad]
        rest = [*self.model.fusion.parameters(), *self.model.head.parameters()]
        groups = [{"params": rest, "lr": self.lr}, {"params": backbone, "lr": self.backbone_lr}]
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=self.weight_decay, fused=True)
        total = int(self.trainer.estimated_stepping_batches)
        warmup = max(1, round(self.warmup * total))

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / warmup) * (1 - min(step, total - 1) / total) ** self.power

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def segmentation_loss(
    logits: Float[Tensor, "batch classes h w"], masks: Tensor, ignore_index: int
) -> Float[Tensor, ""]:
    """Mean cross-entropy over the labelled pixels; 0 (not nan) where there is none."""
    total = F.cross_entropy(logits.float(), masks, ignore_index=ignore_index, reduction="sum")
    return total / (masks != ignore_index).sum().clamp(min=1)
