"""Trains two steps in one or several processes, and records what each did.

`python record_steps.py METHOD DEVICES OUT PRECISION`, run by test_distributed.py; Lightning starts the further
processes by running this file again.
"""

import sys
from pathlib import Path

import lightning as L
import torch

from regard.backbones import build_backbone
from regard.data.datasets.scenes import Scenes
from regard.data.loading.modules import PretrainData
from regard.data.loading.samples import Views
from regard.runs.pretraining import build_method, build_views
from regard.settings import Hardware, PretrainSettings
from regard.ssl.dino import DINO
from regard.training.trainer import StepSeed, make_trainer

OPTIONS = {
    "barlow_twins": {"widths": (32, 32), "optimizer": "adamw", "lr": 1e-3},
    "dino": {"out_dim": 64, "hidden_dim": 32, "bottleneck_dim": 16, "freeze_epochs": 0, "clip": 0.0},
}


class Record(L.Callback):
    """Losses, the first step's gradients, and the batch statistics and center after it."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if trainer.global_step == 0:
            grads = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}
            buffers = {n: b.clone() for n, b in pl_module.named_buffers()}
            self.found |= {f"gradient {n}": g for n, g in grads.items()}
            self.found |= {f"buffer {n}": b for n, b in buffers.items() if b.is_floating_point()}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.found[f"loss {batch_idx}"] = trainer.strategy.reduce(outputs["loss"].detach(), reduce_op="mean")

    def on_train_end(self, trainer, pl_module) -> None:
        self.found |= {f"weight {n}": p.detach().clone() for n, p in pl_module.named_parameters()}


def main(method: str, devices: int, out: Path, precision: str) -> None:
    """Two steps of 16 images. METHOD "guided" is Barlow Twins of a ViT with guidance."""
    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)
    guidance = {}
    if method == "guided":
        method, guidance = "barlow_twins", {"guide_sharpness": 5.0, "guide_diversity": 5.0, "guide_consistency": 5.0}
        backbone = build_backbone("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2)
    else:
        backbone = build_backbone("resnet18", channels=(8, 16, 16, 24))  # batch statistics in every layer
    settings = PretrainSettings(
        method=method,
        size=32,
        local_size=16,
        local_crops=2,
        epochs=1,
        batch_size=16,
        method_options=OPTIONS[method],
        **guidance,
    )
    module, record = build_method(backbone, settings), Record()
    if isinstance(module, DINO):
        module.center.normal_()
    data = PretrainData(Views(Scenes(32, size=32), build_views(settings), placed=settings.placed), 16)
    hardware = Hardware(accelerator="cpu", precision=precision, bar=False, devices=devices)
    trainer = make_trainer(settings, out, hardware, [record, StepSeed(0)], "")
    trainer.fit(module, data)
    assert trainer.world_size == devices
    if trainer.is_global_zero:
        torch.save(record.found, out / f"{devices}.pt")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
