"""One segmentation as a folder: made by `segment_run`, read by `load_run`.

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
from jaxtyping import Int, UInt8
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from regard.attention.guidance import Guidance
from regard.backbones import (
    Backbone,
    describe,
    device_of,
    from_description,
    normalize,
    parameters,
)
from regard.backbones.weights import MODEL_FILE
from regard.data.augment import TrainTransform, resize, short_side
from regard.data.datasets import MaskDataset, read_image
from regard.data.modules import SegmentationData, whole_loader
from regard.errors import InputError
from regard.evaluation.scores import scores
from regard.segmentation.module import SegmentationModel, SegmentationTask, count_pixels, predict_at
from regard.studies.curves import Clock, History
from regard.studies.folders import CHECKPOINTS, read_json, write_json
from regard.studies.training import Hardware, StepSeed, fit, make_trainer

RUN_FILE = "run.json"


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


class Run:
    """A trained segmentation: `predict(image)`, `evaluate(dataset)`."""

    def __init__(self, model: SegmentationModel, description: dict[str, Any]) -> None:
        self.model, self.description = model.eval(), description
        self.classes = tuple(description["classes"])
        self.palette = np.array(description["palette"], dtype=np.uint8)
        self.ignore_index = int(description["ignore_index"])
        self.size = int(description["settings"]["size"])

    def predict(self, image: Image.Image | UInt8[np.ndarray, "h w 3"] | str | Path) -> UInt8[np.ndarray, "h w"]:
        """Class indices at the image's own size. An array is RGB, 0..255; a path is read upright (EXIF)."""
        if isinstance(image, str | Path):
            image = read_image(Path(image))
        pixels = np.asarray(image.convert("RGB")) if isinstance(image, Image.Image) else image
        small = resize(pixels, (0, 0, *pixels.shape[:2]), short_side(pixels.shape[:2], self.size))
        batch = torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1))).unsqueeze(0)
        with torch.inference_mode():
            logits = self.model(normalize(batch.to(device_of(self.model))))[0]
            return predict_at(logits, pixels.shape[:2]).to(torch.uint8).cpu().numpy()

    def evaluate(self, dataset: MaskDataset, batch_size: int = 16) -> Int[np.ndarray, "images classes classes"]:
        """One confusion matrix per image (rows: truth), at the masks' own size."""
        if tuple(dataset.classes) != self.classes:
            raise InputError(
                f"the run knows the classes {', '.join(self.classes[:3])}, ... ({len(self.classes)}), the data has "
                f"{', '.join(dataset.classes[:3])}, ... ({len(dataset.classes)}): choose data with the same classes"
            )
        device, counts = device_of(self.model), []
        for pairs in whole_loader(dataset, self.size, batch_size):
            pairs = [(image.to(device), mask.to(device)) for image, mask in pairs]
            counts += count_pixels(self.model, pairs, len(self.classes), self.ignore_index)
        return torch.stack(counts).cpu().numpy()


def load_run(path: str | Path, device: str | None = None) -> Run:
    """A segmentation made by `regard segment` or `regard compare`, ready to predict; InputError when it is none.

    device: "cpu", "cuda", ...; by default a GPU where there is one.
    """
    path = Path(path)
    if not (path / RUN_FILE).is_file() or not (path / MODEL_FILE).is_file():
        raise InputError(
            f"{path} holds no finished segmentation ({RUN_FILE}, {MODEL_FILE}): make one with regard segment"
        )
    description = read_json(path / RUN_FILE)
    try:
        settings, classes = description["settings"], description["classes"]
        model = SegmentationModel(
            from_description(description["backbone"]),
            len(classes),
            description["fusion"],
            settings["head"],
            **settings["head_options"],
        )
        model.load_state_dict(load_file(path / MODEL_FILE))
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return Run(model.to(device), description)
    except (KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is damaged, or of another version of regard ({reason}): make it again") from error


def summary(run: Run, counts: Int[np.ndarray, "images classes classes"]) -> dict[str, Any]:
    """The scores of a run over a dataset, as JSON: classes that do not occur have no IoU (null)."""
    result = scores(counts.sum(axis=0))
    iou = {name: None if np.isnan(x) else x for name, x in zip(run.classes, result.iou, strict=True)}
    return {"miou": result.miou, "pixel_accuracy": result.pixel_accuracy, "images": len(counts), "iou": iou}


def _save_model(model: SegmentationModel, path: Path) -> None:
    """Whole or not at all; it says which backbone is in it, so that `build_backbone` can take that out again."""
    partial = path.with_name(path.name + ".partial")
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, partial, metadata={"regard": json.dumps(describe(model.backbone))})
    partial.replace(path)
