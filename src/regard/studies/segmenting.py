"""Training one segmentation into a folder, which `runs.load_run` reads.

A run's description is written last and whole, so a folder that has one is finished, and one that has none is not.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import save_file

from regard.attention.guidance import Guidance
from regard.backbones import Backbone, describe, parameters
from regard.backbones.weights import MODEL_FILE
from regard.data.augment import TrainTransform
from regard.data.datasets import MaskDataset
from regard.data.modules import SegmentationData
from regard.segmentation.module import SegmentationModel, SegmentationTask
from regard.studies.curves import Clock, History
from regard.studies.folders import CHECKPOINTS, write_json
from regard.studies.runs import RUN_FILE
from regard.studies.training import Hardware, StepSeed, fit, make_trainer


@dataclass(frozen=True)
class SegmentSettings:
    """A training for segmentation. size: short side of whole images, and side of the training crops, pixels."""

    size: int = 224
    scale: tuple[float, float] = (0.5, 2.0)
    jitter: float = 0.8
    head: str = "segformer"
    head_options: dict[str, int] = field(default_factory=dict)
    freeze: bool = False
    epochs: int = 50
    batch_size: int = 16
    lr: float = 1e-3
    backbone_lr: float = 1e-4
    guidance: Guidance = Guidance()


def segment_run(
    train: MaskDataset,
    val: MaskDataset,
    backbone: Backbone,
    fusion: str,
    settings: SegmentSettings,
    out: Path,
    seed: int = 0,
    hardware: Hardware = Hardware(),
    progress: str = "training",
) -> dict[str, Any]:
    """Train a segmentation; writes the best epoch's `model.safetensors` and `run.json` into `out`, returns the latter.

    The best epoch is the one of the highest mIoU on `val`. Goes on from a checkpoint as `pretrain_run` does.
    """
    classes = len(train.classes)
    L.seed_everything(seed, verbose=False)
    model = SegmentationModel(backbone, classes, fusion, settings.head, settings.freeze, **settings.head_options)
    task = SegmentationTask(
        model, classes, train.ignore_index, settings.lr, settings.backbone_lr, guidance=settings.guidance
    )
    transform = TrainTransform(settings.size, train.ignore_index, settings.scale, jitter=settings.jitter)
    data = SegmentationData(train, val, transform, settings.batch_size, hardware.workers, seed)
    best = ModelCheckpoint(out / CHECKPOINTS, "best-{step}", monitor="val_miou", mode="max", save_weights_only=True)
    history, clock = History(), Clock()
    callbacks = [best, history, clock, StepSeed(seed)]
    trainer = make_trainer(settings.epochs, out, hardware, callbacks, progress)
    fit(trainer, task, data, out)
    task.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
    _save_model(model, out / MODEL_FILE)
    description = {
        "regard": version("regard"),
        "backbone": describe(backbone),
        "fusion": fusion,
        "settings": asdict(settings),
        "classes": list(train.classes),
        "palette": np.asarray(train.palette).tolist(),
        "ignore_index": train.ignore_index,
        "seed": seed,
        "seconds": clock.seconds,
        "best_epoch": max(history.points, key=lambda point: point["val_miou"])["epoch"],
        "curve": history.points,
        "parameters": parameters(model),
    }
    write_json(out / RUN_FILE, description)
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    return description


def _save_model(model: SegmentationModel, path: Path) -> None:
    """Whole or not at all; it says which backbone is in it, so that `build_backbone` can take that out again."""
    partial = path.with_name(path.name + ".partial")
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, partial, metadata={"regard": json.dumps(describe(model.backbone))})
    partial.replace(path)
