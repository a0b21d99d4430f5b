"""Trains two steps in one or several processes, and records what each did.

`python record_steps.py METHOD DEVICES OUT PRECISION STRATEGY`, run by test_distributed.py and test_fsdp.py; Lightning
starts the further processes by running this file again.
"""

import sys
from pathlib import Path

import lightning as L
import torch
from torch.distributed.tensor import DTensor

from regard.attention.guidance import Guidance
from regard.backbones import build_backbone
from regard.data.datasets.scenes import Scenes
from regard.data.loading.modules import PretrainData
from regard.runs.pretraining import PretrainSettings, build_method, build_views
from regard.ssl.dino import DINO
from regard.training.hardware import Hardware
from regard.training.trainer import StepSeed, make_trainer

OPTIONS = {
    "barlow_twins": {"widths": (32, 32), "optimizer": "adamw", "lr": 1e-3},
    "lars": {"widths": (32, 32), "optimizer": "lars", "lr": 8.0},  # of which LARS takes a thousandth
    "clipped": {"out_dim": 64, "hidden_dim": 32, "bottleneck_dim": 16, "freeze_epochs": 0, "clip": 0.01},  # all are
    "dino": {"out_dim": 64, "hidden_dim": 32, "bottleneck_dim": 16, "freeze_epochs": 0, "clip": 0.0},
}


class Record(L.Callback):
    """Losses, the first step's gradients, and the batch statistics and center after it."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if trainer.global_step == 0:
            grads = {n: whole(p.grad) for n, p in pl_module.named_parameters() if p.grad is not None}
            buffers = {n: b.clone() for n, b in pl_module.named_buffers()}
            self.found |= {f"gradient {n}": g for n, g in grads.items()}
            self.found |= {f"buffer {n}": b for n, b in buffers.items() if b.is_floating_point()}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.found[f"loss {batch_idx}"] = trainer.strategy.reduce(outputs["loss"].detach(), reduce_op="mean")

    def on_train_end(self, trainer, pl_module) -> None:
        self.found |= {f"weight {n}": whole(p.detach()) for n, p in pl_module.named_parameters()}
        parts = [p.to_local() if isinstance(p, DTensor) else p for p in pl_module.parameters()]
        self.kept = sum(p.numel() for p in parts) / sum(p.numel() for p in pl_module.parameters())


def whole(x: torch.Tensor) -> torch.Tensor:
    """A copy; of a tensor that is cut, of all its parts."""
    return x.full_tensor() if isinstance(x, DTensor) else x.clone()


def main(method: str, devices: int, out: Path, precision: str, strategy: str) -> None:
    """Two steps of 16 images. METHOD "guided" is Barlow Twins of a ViT with guidance; "lars" is it with LARS; "clipped"
    is DINO with clipping.
    """
    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)
    guidance = Guidance()
    if method == "guided":
        method, guidance = "barlow_twins", Guidance(5.0, 5.0, 5.0)
        backbone = build_backbone("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2)
    else:
        backbone = build_backbone("resnet18", channels=(8, 16, 16, 24))  # batch statistics in every layer
    options, name = OPTIONS[method], {"lars": "barlow_twins", "clipped": "dino"}.get(method, method)
    settings = PretrainSettings(name, 32, 16, 2, epochs=1, batch_size=16, options=options, guidance=guidance)
    module, record = build_method(backbone, settings), Record()
    if isinstance(module, DINO):
        module.center.normal_()
    data = PretrainData(Scenes(32, size=32), build_views(settings), 16, placed=settings.placed)
    hardware = Hardware("cpu", precision, bar=False, devices=devices, strategy=strategy)
    trainer = make_trainer(1, out, hardware, [record, StepSeed(0)], "", loggers=())
    trainer.fit(module, data)
    assert trainer.world_size == devices
    if trainer.is_global_zero:
        torch.save(record.found, out / f"{devices}.pt")
        (out / f"{devices}-kept.txt").write_text(str(record.kept))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
