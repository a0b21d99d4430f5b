"""Trainings of a segmentation that take a second, for tests; and what is looked at in them."""

import signal
from pathlib import Path

import torch
from safetensors.torch import load_file

from regard.backbones import Backbone, build_backbone
from regard.backbones.weights import MODEL_FILE
from regard.data.datasets.scenes import Scenes
from regard.segmentation.model import SegmentationModel
from regard.settings import Hardware, SegmentSettings
from regard.training.stopping import Checkpoints

HARDWARE = Hardware(accelerator="cpu", bar=False)
SETTINGS = SegmentSettings(size=32, epochs=2, batch_size=4, head="linear", lr=0.01)
TRAIN, VAL = Scenes(8, size=32), Scenes(4, size=32, seed=1)
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3}


def vit() -> Backbone:
    torch.manual_seed(0)
    return build_backbone("vit_tiny_patch16_224", **VIT)


def values(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / MODEL_FILE)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def cut(monkeypatch, epoch: int) -> None:
    """Be told to stop in the last step of this epoch."""
    start = Checkpoints.on_train_batch_start

    def told(callback, trainer, *rest) -> None:
        start(callback, trainer, *rest)
        if trainer.current_epoch == epoch and trainer.is_last_batch:
            callback._remember(signal.SIGTERM, None)

    monkeypatch.setattr(Checkpoints, "on_train_batch_start", told)


def forward_passes(monkeypatch) -> list[int]:
    """The batch of each pass of a segmentation through its backbone, from here on."""
    seen, features = [], SegmentationModel.features

    def counting(model, images, *rest, **options):
        seen.append(len(images))
        return features(model, images, *rest, **options)

    monkeypatch.setattr(SegmentationModel, "features", counting)
    return seen
