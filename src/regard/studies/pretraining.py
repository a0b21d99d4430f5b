"""One pre-training as a folder, which `build_backbone` reads.

Its description is written last and whole, so a folder that has one is finished, and one that has none is not.
"""

import inspect
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import lightning as L

from regard.backbones import Backbone, describe, save_backbone
from regard.backbones.weights import BACKBONE_FILE
from regard.data.augment import View, barlow_twins_views, dino_views
from regard.data.datasets import Dataset
from regard.data.modules import CentreCrops, PretrainData, SkipUnreadable, skipped
from regard.errors import InputError, unknown
from regard.ssl.barlow_twins import BarlowTwins
from regard.ssl.dino import DINO
from regard.ssl.pretraining import Pretraining
from regard.studies.folders import write_json
from regard.studies.training import CHECKPOINTS, Clock, Hardware, LossCurve, StepSeed, fit, make_trainer

PRETRAIN_FILE, SKIPPED_FILE = "pretrain.json", "skipped.txt"
METHODS: Mapping[str, type[Pretraining]] = {"barlow_twins": BarlowTwins, "dino": DINO}


@dataclass(frozen=True)
class PretrainSettings:
    """What a pre-training comes to: method, views, length; `options` go to the method's class.

    batch_size: images per optimizer step, over all processes and `accumulate` forward passes.
    """

    method: str = "barlow_twins"
    size: int = 224
    local_size: int = 96
    local_crops: int = 8
    epochs: int = 100
    batch_size: int = 256
    options: dict[str, Any] = field(default_factory=dict)
    accumulate: int = 1


@dataclass(frozen=True)
class Watch:
    """What is looked at while training; none of it changes what is learnt.

    loggers:      "csv", "tensorboard".
    on_bad_image: stop at an image that cannot be read, or take another one in its place and name it in skipped.txt.
    knn_every:    epochs between kNN scores, where images are labelled; None: about twenty scores in all.
    """

    loggers: Sequence[str] = ("csv", "tensorboard")
    on_bad_image: Literal["raise", "skip"] = "raise"
    knn_every: int | None = None


def pretrain_run(
    dataset: Dataset,
    backbone: Backbone,
    settings: PretrainSettings,
    out: Path,
    seed: int = 0,
    hardware: Hardware = Hardware(),
    progress: str = "pre-training",
    origin: str = "",
    watch: Watch = Watch(),
    queries: Dataset | None = None,
) -> dict[str, Any]:
    """Pre-train a backbone; writes `backbone.safetensors` and `pretrain.json` into `out` and returns the latter.

    origin:  a note on where the weights come from, kept in the description.
    queries: labelled images, whose classes kNN asks of `dataset`, then labelled too, while training.

    Where `out` holds a checkpoint of the same run, cut short, it goes on from there, as if it had not been.
    Raises InputError for an unknown method or option, or a batch that cannot be had; TrainingStopped when the loss is
    not finite; Interrupted when a signal stopped it.
    """
    _check_batch(settings, hardware, len(dataset))
    L.seed_everything(seed, verbose=False)
    if watch.on_bad_image == "skip":
        dataset = SkipUnreadable(dataset, out / SKIPPED_FILE)
    module = build_method(backbone, settings)
    data = PretrainData(
        dataset,
        build_views(settings),
        settings.batch_size,
        hardware.workers,
        seed,
        settings.accumulate,
        bank=None if queries is None else CentreCrops(dataset, range(len(dataset)), settings.size),
        queries=None if queries is None else CentreCrops(queries, range(len(queries)), settings.size),
    )
    curve, clock = LossCurve(points=40), Clock()
    trainer = make_trainer(
        settings.epochs,
        out,
        hardware,
        [curve, clock, StepSeed(seed)],
        progress,
        settings.accumulate,
        watch.knn_every or max(1, settings.epochs // 20),
        watch.loggers,
    )
    _prepare(module, hardware)
    fit(trainer, module, data, out)
    description = {
        "regard": version("regard"),
        "backbone": describe(backbone),
        "origin": origin,
        "settings": asdict(settings),
        "seed": seed,
        "images": len(dataset),
        "skipped": skipped(out / SKIPPED_FILE),
        "steps": trainer.global_step,
        "seconds": clock.seconds,
        "curve": curve.points,
    }
    if trainer.is_global_zero:
        save_backbone(module.kept, out / BACKBONE_FILE)
        write_json(out / PRETRAIN_FILE, description)
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    return description


def build_method(backbone: Backbone, settings: PretrainSettings) -> Pretraining:
    """The LightningModule of a pre-training; InputError for a method or an option that it does not have."""
    if settings.method not in METHODS:
        raise unknown("method", settings.method, METHODS)
    method = METHODS[settings.method]
    known = set(inspect.signature(method).parameters) - {"backbone", "batch_size"}
    for option in settings.options:
        if option not in known:
            raise unknown(f"option of {settings.method}", option, known)
    return method(backbone, batch_size=settings.batch_size, **settings.options)


def build_views(settings: PretrainSettings) -> tuple[View, ...]:
    """The views of an image that a method learns from."""
    if settings.method == "dino":
        return dino_views(settings.size, settings.local_size, settings.local_crops)
    return barlow_twins_views(settings.size)


def _check_batch(settings: PretrainSettings, hardware: Hardware, images: int) -> None:
    batch, parts = settings.batch_size, hardware.processes * settings.accumulate
    if batch < 2 or images < batch:
        raise InputError(
            f"a batch of {batch} cannot be had of {images} images: "
            f"both losses need a batch of at least 2, and whole batches"
        )
    if batch % parts or batch // parts < 2:
        raise InputError(
            f"a batch of {batch} does not divide among {hardware.processes} processes x {settings.accumulate} parts "
            f"of at least 2 images: take a multiple of {parts}, at least {2 * parts}"
        )


def _prepare(module: Pretraining, hardware: Hardware) -> None:
    """Compile, and save memory, as asked."""
    if hardware.checkpoint_activations:
        try:
            module.backbone.model.set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:  # timm asserts where a model has none
            raise InputError(f"{module.backbone.name} cannot checkpoint activations: leave it off") from error
    if hardware.compile:
        for child in module.children():
            child.compile()
