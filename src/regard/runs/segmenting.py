"""Training one segmentation into a folder, which `runs.load_run` reads.

A run's description is written last and whole, so a folder that has one is finished, and one that has none is not.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from safetensors.torch import save_file

from regard.attention.guidance import Guidance
from regard.backbones import Backbone, describe, parameters
from regard.backbones.weights import MODEL_FILE
from regard.data.loading.augment import TrainTransform
from regard.data.datasets.base import MaskDataset
from regard.data.loading.modules import SegmentationData
from regard.data.survey import class_pixels
from regard.errors import InputError
from regard.pictures.charts import heads_chart
from regard.segmentation.heads import build_head
from regard.segmentation.losses import balanced_weights, build_loss
from regard.segmentation.task import SegmentationTask
from regard.segmentation.model import SegmentationModel, has_unused
from regard.training.optimizers import adamw
from regard.training.trainer import count_once
from regard.training.averaging import make_averaging
from regard.runs.choosing_heads import CHOICE_FILE, check_choice, chosen_levels, remembered_choice
from regard.training.curves import Clock, History
from regard.runs.feature_cache import cached_data
from regard.files import write_json, write_whole
from regard.training.stopping import CHECKPOINTS
from regard.training.logs import wandb_logger
from regard.runs.run import RUN_FILE
from regard.training.trainer import StepSeed, check_sharding, fit, make_trainer, prepare
from regard.training.hardware import Hardware

HEADS_PICTURE = "heads.png"


@dataclass(frozen=True)
class Cache:
    """Where features of frozen backbones are kept; content changes with the data's files: `data.layout.fingerprint`."""

    folder: Path
    content: str


@dataclass(frozen=True)
class SegmentSettings:
    """A training for segmentation; what is not said here is said in `SegmentationTask` and `TrainTransform`.

    size:          short side of whole images, pixels; crop: side of the training crops, None for `size`.
    most:          the largest share of a crop that one class may have; None for no limit.
    loss:          a formula, see `losses.build_loss`; class_weights: "balanced" by the pixels of the training masks.
    batch_size:    images per optimizer step, over all processes and `accumulate` forward passes.
    average:       "ema" or "swa": what is scored and kept is an average of the weights (`averaging`).
    patience:      stop after so many epochs without a better score; None to train on.
    cache_crops:   of a frozen backbone with a cache, how many crops of each image there are (`feature_cache`).
    layers:        pyramid levels, negative ones from the end, whose attention the fusion reads; None for all that the
                   head reads.
    heads_kept:    of each of these levels the fusion sees so many heads, the best by score (`choosing_heads`); None for
                   all.
    """

    size: int = 224
    crop: int | None = None
    scale: tuple[float, float] = (0.5, 2.0)
    jitter: float = 0.8
    most: float | None = None
    head: str = "segformer"
    head_options: dict[str, int] = field(default_factory=dict)
    freeze: bool = False
    epochs: int = 50
    batch_size: int = 16
    lr: float = 1e-3
    backbone_lr: float = 1e-4
    weight_decay: float = 0.01
    layer_decay: float = 1.0
    warmup: float = 0.05
    schedule: str = "poly"
    loss: str = "cross_entropy"
    class_weights: Literal["none", "balanced"] = "none"
    accumulate: int = 1
    average: str = "none"
    patience: int | None = None
    cache_crops: int = 1
    guidance: Guidance = Guidance()
    layers: tuple[int, ...] | None = None
    heads_kept: int | None = None


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
    cache: Cache | None = None,
    origin: Mapping[str, Any] | None = None,
    logger: Literal["wandb"] | None = None,
    callbacks: Sequence[L.Callback] = (),
) -> dict[str, Any]:
    """Train a segmentation; writes the best epoch's `model.safetensors` and `run.json` into `out`, returns the latter.

    The best epoch is the one of the highest mIoU on `val`; with the average `swa`, the last one is kept. Goes on from a
    checkpoint as `pretrain_run` does. With a cache, the features of a frozen backbone are computed once. origin: where
    data and backbone came from, kept in `run.json` for people. logger: beside CSV and TensorBoard. callbacks: called
    after the score of an epoch is in the curve.

    Raises InputError for settings that do not go together.
    """
    check_settings(settings, cache, fusion, backbone)
    check_hardware(settings, hardware, len(train), fusion, cache)
    classes = len(train.classes)
    kept = None
    if settings.layers is not None or settings.heads_kept is not None:
        reads = levels_read(settings, backbone)
        levels = chosen_levels(backbone, reads, settings.layers)
        backbone.to(hardware.device if hardware.processes == 1 else "cpu")  # where all that choose round alike
        kept = remembered_choice(out, backbone, train, reads, levels, settings.heads_kept, settings.size)
    L.seed_everything(seed, verbose=False)
    model = SegmentationModel(backbone, classes, fusion, settings.head, settings.freeze, kept, **settings.head_options)
    averaging = make_averaging(settings.average, settings.epochs)
    check_sharding(hardware, averaging)
    weights = balanced_weights(torch.from_numpy(class_pixels(train))) if settings.class_weights == "balanced" else None
    task = _task(model, classes, settings, build_loss(settings.loss, weights, train.ignore_index), train.ignore_index)
    transform = _transform(settings, train.ignore_index)
    data = SegmentationData(train, val, transform, settings.batch_size, hardware.workers, seed, settings.accumulate)
    if cache is not None:
        model.to(hardware.device)
        data = cached_data(
            cache.folder, model, data, settings.cache_crops, cache.content, hardware.autocast, hardware.bar
        )
    best = Best(
        out / CHECKPOINTS,
        "best-{step}",
        monitor="val_miou",
        mode="max",
        save_weights_only=not averaging,  # Lightning puts the average only into whole checkpoints
    )
    history, clock = History(), Clock()
    watching = [best, history, clock, StepSeed(seed), _CountOnce(), *averaging, *callbacks]
    if settings.patience is not None:
        watching.append(EarlyStopping("val_miou", mode="max", patience=settings.patience))
    config = asdict(settings) | {"backbone": describe(backbone)["name"], "fusion": fusion, "seed": seed}
    loggers = [wandb_logger(out, config)] if logger == "wandb" else []
    unused = hardware.processes > 1 and has_unused(model)
    trainer = make_trainer(
        settings.epochs, out, hardware, watching, progress, settings.accumulate, loggers=loggers, unused=unused
    )
    prepare(model, hardware)
    fit(trainer, task, data, out)
    best_epoch = None  # of `swa`, the average at the end is kept
    if settings.average != "swa":
        checkpoint = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
        best_epoch = checkpoint["epoch"] + 1
        task.load_state_dict(checkpoint["state_dict"])
    trainer.strategy.barrier()  # before the first process removes what all have read
    description = {
        "regard": version("regard"),
        "backbone": describe(backbone),
        "fusion": fusion,
        "kept": kept,
        "settings": asdict(settings),
        "classes": list(train.classes),
        "palette": np.asarray(train.palette).tolist(),
        "ignore_index": train.ignore_index,
        "seed": seed,
        "origin": dict(origin or {}),
        "cached": cache is not None,
        "seconds": clock.seconds,
        "best_epoch": best_epoch,
        "curve": history.points,
        "parameters": parameters(model),
        "head_weights": head_weights(model),
    }
    if not trainer.is_global_zero:
        return description
    _save_model(model, out / MODEL_FILE)
    if description["head_weights"]:
        chart = heads_chart(description["head_weights"], f"heads that the fusion {fusion} uses")
        write_whole(out / HEADS_PICTURE, lambda file: chart.savefig(file, dpi=120, format="png"))
    write_json(out / RUN_FILE, description)
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    (out / CHOICE_FILE).unlink(missing_ok=True)
    return description


def check_settings(
    settings: SegmentSettings, cache: Cache | None = None, fusion: str | None = None, backbone: Backbone | None = None
) -> None:
    """InputError for settings that do not go together.

    fusion, backbone: what is trained; None: not known yet, and what depends on them is not looked at.
    """
    if settings.batch_size % settings.accumulate:
        raise InputError(
            f"a step of {settings.batch_size} images is not {settings.accumulate} equal parts: take a batch size that "
            "--accumulate divides"
        )
    if cache is not None and not settings.freeze:
        raise InputError("a cache keeps the features of a backbone that does not learn: add --freeze, or leave it out")
    if cache is None and settings.cache_crops != 1:
        raise InputError("crops are kept in a cache only: add --cache and --freeze, or leave out --cache_crops")
    if settings.patience is not None and settings.average == "swa":
        raise InputError("the average swa is over the last epochs, and patience may stop before them: leave out one")
    check_choice(settings.layers, settings.heads_kept, fusion, backbone)
    if settings.layers is not None and backbone is not None:
        chosen_levels(backbone, levels_read(settings, backbone), settings.layers)


def check_hardware(
    settings: SegmentSettings, hardware: Hardware, images: int, fusion: str, cache: Cache | None = None
) -> None:
    """InputError for what so many processes, or these ways to compute, cannot do with so many training images."""
    batch, parts = settings.batch_size, hardware.processes * settings.accumulate
    share = f"{hardware.processes} processes x {settings.accumulate} parts"
    if batch % parts:
        raise InputError(f"a batch of {batch} does not divide among {share}: take a multiple of {parts}")
    if parts > 1 and images < batch:
        most = images - images % parts
        remedy = f"take a batch size of {most} or less" if most else "take fewer"
        raise InputError(f"{images} images for training do not fill a step of {batch} in {share}: {remedy}")
    if cache is not None and hardware.processes > 1:
        raise InputError("features in a cache are trained on by one process: leave out --cache, or take --devices 1")
    if hardware.checkpoint_activations and settings.freeze:
        raise InputError("a frozen backbone keeps no activations: leave out --checkpoint_activations, or --freeze")
    if hardware.checkpoint_activations and (settings.guidance or fusion != "none"):
        what = "guidance" if settings.guidance else f"fusion {fusion}"
        raise InputError(f"{what} reads attention maps, which are gone with --checkpoint_activations: leave out one")


def check_training(settings: SegmentSettings, fusion: str, backbone: Backbone) -> None:
    """InputError for whatever a training would refuse, before it begins: all of its parts are made once, for two
    classes. Leaves the backbone and the global generators as they were.
    """
    with torch.random.fork_rng(devices=[]):
        model = SegmentationModel(backbone, 2, fusion, settings.head, False, None, **settings.head_options)
    model.freeze = settings.freeze
    _transform(settings, ignore_index=255)
    make_averaging(settings.average, settings.epochs)
    _task(model, 2, settings, build_loss(settings.loss, None, 255), ignore_index=255)


def _transform(settings: SegmentSettings, ignore_index: int) -> TrainTransform:
    return TrainTransform(
        settings.crop or settings.size,
        ignore_index,
        settings.scale,
        jitter=settings.jitter,
        short=settings.size,
        most=settings.most,
    )


def _task(
    model: SegmentationModel, classes: int, settings: SegmentSettings, loss: torch.nn.Module, ignore_index: int
) -> SegmentationTask:
    return SegmentationTask(
        model,
        classes,
        loss,
        ignore_index,
        settings.lr,
        settings.backbone_lr,
        settings.weight_decay,
        settings.warmup,
        settings.schedule,
        settings.layer_decay,
        settings.guidance,
        adamw,
    )


class _CountOnce(L.Callback):
    """Where activations are computed again in the backward pass, batch norms count a batch once: as in pre-training."""

    def on_fit_start(self, trainer, pl_module) -> None:
        """Of the batch norms that train: shared ones have taken the place of others by now."""
        count_once(pl_module)


def levels_read(settings: SegmentSettings, backbone: Backbone) -> tuple[int, ...]:
    """The levels of the pyramid that the head reads. Leaves the global generators as they were."""
    with torch.random.fork_rng(devices=[]):
        return build_head(settings.head, backbone.channels, backbone.strides, 2, **settings.head_options).levels


class Best(ModelCheckpoint):
    """Of a run that was killed after it had replaced its best weights, and goes on from before that, they are gone: it
    then keeps the best of the epochs to come.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint, where what it names is still there."""
        if Path(state_dict["best_model_path"]).is_file():
            super().load_state_dict(state_dict)


def head_weights(model: SegmentationModel) -> list[dict[str, Any]]:
    """Which heads the fusion uses, as it learned, for each level that it sees heads of; see `Fusion.head_weights` and
    `Fusion.strength`.
    """
    fusion = model.fusion
    found = list(zip(model.backbone.blocks, fusion.strength(), fusion.kept, fusion.head_weights(), strict=False))
    return [
        {
            "block": block,
            "strength": strength,
            "heads": list(heads),
            "weights": [round(share, 4) for share in weights.tolist()],
        }
        for block, strength, heads, weights in (found[level] for level in sorted(fusion.reads))
    ]


def _save_model(model: SegmentationModel, path: Path) -> None:
    """Whole or not at all; it says which backbone is in it, so that `build_backbone` can take that out again."""
    partial = path.with_name(path.name + ".partial")
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, partial, metadata={"regard": json.dumps(describe(model.backbone))})
    partial.replace(path)
