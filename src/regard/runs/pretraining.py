"""One pre-training as a folder, which `build_backbone` reads.

Its description is written last and whole, so a folder that has one is finished, and one that has none is not.
"""

import inspect
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from regard.attention.guidance import Guidance
from regard.backbones import Backbone, describe, save_backbone
from regard.backbones.weights import BACKBONE_FILE
from regard.data.datasets.base import ClassFolders, Dataset, LabelDataset
from regard.data.source import WORDS, Source
from regard.data.listing import held_out
from regard.data.loading.modules import PretrainData
from regard.data.packs.packed import Chunked
from regard.data.loading.samples import CentreCrops, SkipUnreadable, skipped
from regard.data.loading.views import View, barlow_twins_views, dino_views, supervised_views
from regard.errors import InputError, unknown
from regard.ssl.barlow_twins import BarlowTwins
from regard.ssl.dino import DINO
from regard.ssl.monitors import CollapseMonitor, Pictures
from regard.ssl.method import Pretraining
from regard.ssl.supervised import Supervised
from regard.training.averaging import make_averaging
from regard.training.curves import Clock, LossCurve, Scores
from regard.files import write_json
from regard.runs.folders import SKIPPED_FILE
from regard.training.stopping import CHECKPOINTS
from regard.training.logs import wandb_logger
from regard.training.trainer import StepSeed, check_sharding, fit, make_trainer, prepare
from regard.training.hardware import Hardware

PRETRAIN_FILE = "pretrain.json"
SKIPPED_QUERIES_FILE = "skipped-val.txt"
BANK = 100_000  # images that kNN asks while training, and asks for, at most: their features are kept in memory
METHODS: Mapping[str, type[Pretraining]] = {
    "barlow_twins": BarlowTwins,
    "dino": DINO,
    "supervised": Supervised,
}


@dataclass(frozen=True)
class PretrainSettings:
    """What a pre-training comes to: method, views, length; `options` go to the method's class.

    batch_size: images per optimizer step, over all processes and `accumulate` forward passes.
    average:    what is kept: the last weights, or an average over the training (`averaging`).
    guidance:   terms on the attention maps, added to the method's loss.
    """

    method: str = "barlow_twins"
    size: int = 224
    local_size: int = 96
    local_crops: int = 8
    epochs: int = 100
    batch_size: int = 256
    options: dict[str, Any] = field(default_factory=dict)
    accumulate: int = 1
    average: Literal["none", "ema", "swa"] = "none"
    guidance: Guidance = Guidance()

    @property
    def placed(self) -> bool:
        """Whether the method must know where its views are in their images."""
        return bool(self.guidance.consistency)


@dataclass(frozen=True)
class Watch:
    """What is looked at while training, and what a bad image does; none of it changes what is learnt from good ones.

    logger:       beside CSV and TensorBoard.
    on_bad_image: stop at an image that cannot be read, or take another one in its place and name it in skipped.txt.
    knn_every:    epochs between scores, where images are labelled; None: twenty scores or more in all; 0: never.
    on_collapse:  say that embeddings collapse, or stop (`ssl.monitors`).
    """

    logger: Literal["wandb"] | None = None
    on_bad_image: Literal["raise", "skip"] = "raise"
    knn_every: int | None = None
    on_collapse: Literal["warn", "stop"] = "warn"


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

    dataset: labelled, for `supervised`.
    origin:  a note on where the weights come from, kept in the description.
    queries: labelled images, whose classes kNN asks of `dataset`, then labelled too, while training.

    Where `out` holds a checkpoint of the same run, cut short, it goes on from there, as if it had not been.
    Raises InputError for an unknown method or option, or a batch that cannot be had; TrainingStopped when the loss is
    not finite; Interrupted when a signal stopped it.
    """
    check_batch(settings, hardware, len(dataset))
    if watch.knn_every == 0 and settings.method != "supervised":
        queries = None
    L.seed_everything(seed, verbose=False)
    classes = len(dataset.classes) if isinstance(dataset, LabelDataset) else 0
    if watch.on_bad_image == "skip":
        dataset = SkipUnreadable(dataset, out / SKIPPED_FILE)
        queries = queries and SkipUnreadable(queries, out / SKIPPED_QUERIES_FILE)
    module = build_method(backbone, settings, classes)
    averaging = make_averaging(settings.average, settings.epochs)
    if averaging and isinstance(module, DINO):
        raise InputError(
            f"--average {settings.average} is not for DINO: its teacher is an average of the weights already"
        )
    check_sharding(hardware, averaging)
    loggers = [wandb_logger(out, asdict(settings) | {"seed": seed})] if watch.logger == "wandb" else []
    data = PretrainData(
        dataset,
        build_views(settings),
        settings.batch_size,
        hardware.workers,
        seed,
        settings.accumulate,
        labelled=settings.method == "supervised",
        bank=None
        if queries is None
        else CentreCrops(dataset, _probed(dataset, isinstance(dataset, Chunked)), settings.size),
        queries=None if queries is None else CentreCrops(queries, _probed(queries), settings.size),
        placed=settings.placed,
        on_device=hardware.views_on == "device",
    )
    curve, clock, scores = LossCurve(points=40), Clock(), Scores()
    # A classifier has one view of an image, and labels to tell how it does.
    monitors = [] if settings.method == "supervised" else [CollapseMonitor(_warn, watch.on_collapse)]
    pictures = Pictures(out / "pictures", max(1, settings.epochs // 10))
    trainer = make_trainer(
        settings.epochs,
        out,
        hardware,
        [curve, clock, scores, StepSeed(seed), *averaging, *monitors, pictures],
        progress,
        settings.accumulate,
        watch.knn_every or scoring_interval(settings.epochs),
        loggers,
    )
    check_activations(module, hardware)
    prepare(module, hardware)
    fit(trainer, module, data, out)
    if queries is not None and (averaging or scores.epoch != settings.epochs):
        trainer.validate(module, data, verbose=False)  # what is kept: it was not scored yet
    description = {
        "regard": version("regard"),
        "backbone": describe(backbone),
        "origin": origin,
        "settings": asdict(settings),
        "seed": seed,
        "images": len(dataset),
        "skipped": skipped(out / SKIPPED_FILE) + skipped(out / SKIPPED_QUERIES_FILE),
        "steps": trainer.global_step,
        "seconds": clock.seconds,
        "curve": curve.points,
        "monitor": monitors[0].points if monitors else [],
        "scores": scores.points,
        "final": scores.final,
    }
    if trainer.is_global_zero:
        save_backbone(module.kept, out / BACKBONE_FILE)
        write_json(out / PRETRAIN_FILE, description)
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    return description


def _probed(dataset: Dataset, shuffled: bool = False) -> range:
    """`BANK` images at most, evenly spaced: class folders are in order of class, and of each this takes its share.

    shuffled: they are in a random order, as the train split of a pack is: the first, which are in the fewest chunks.
    """
    if shuffled:
        return range(min(len(dataset), BANK))
    return range(0, len(dataset), -(-len(dataset) // BANK))


def _warn(line: str) -> None:
    if rank_zero_only.rank == 0:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold]warning[/]  {line}")


def scoring_interval(epochs: int) -> int:
    """The largest part of the epochs, up to a twentieth, that divides them: so the finished backbone is scored too."""
    return next(part for part in range(max(1, epochs // 20), 0, -1) if epochs % part == 0)


def labelled_splits(source: Source) -> tuple[Dataset, Dataset]:
    """(train, val) of class folders; without a val/, val is a fixed fifth of train. InputError without labels."""
    if not source.has_labels:
        needs = "it needs class folders: DATA/CLASS/IMAGE, with or without train/ and val/ above the classes"
        raise InputError(f"{source.root} ({WORDS[source.layout]}) has no classes for supervised training: {needs}")
    train = source.split("train")
    if "val" in source.splits:
        return train, source.splits["val"]
    if not isinstance(train, ClassFolders):
        raise InputError(f"{source.root} has no val: a pack of class folders with train/ and val/ would work")
    of_val = held_out(train.paths)
    return train.only(~of_val), train.only(of_val)


def build_method(backbone: Backbone, settings: PretrainSettings, classes: int = 0) -> Pretraining:
    """The LightningModule of a pre-training; InputError for a method or an option that it does not have.

    classes: of the labelled images that `supervised` learns from.

    DINO's momentum is by default what its authors advise for the batch; both methods warm up for 10 epochs.
    """
    check_options(settings)
    method = METHODS[settings.method]
    given: dict[str, Any] = {"batch_size": settings.batch_size}
    if settings.method == "supervised":
        given["classes"] = classes
    usual = {} if settings.method == "supervised" else {"warmup": min(0.1, 10 / settings.epochs)}
    if settings.method == "dino":
        usual["momentum"] = 0.9995 if settings.batch_size <= 256 else 0.996
    settings.guidance.check(backbone)
    if settings.method == "supervised" and settings.guidance.consistency:
        raise InputError("guide_consistency compares two views, and supervised has one: leave it out")
    module = method(backbone, **given, **(usual | settings.options))
    module.guidance = settings.guidance
    return module


def check_options(settings: PretrainSettings) -> None:
    """InputError for a method, or an option of it, that there is not."""
    if settings.method not in METHODS:
        raise unknown("method", settings.method, METHODS)
    known = set(inspect.signature(METHODS[settings.method]).parameters) - {"backbone", "batch_size", "classes"}
    for option in settings.options:
        if option not in known:
            raise unknown(f"option of {settings.method}", option, sorted(known))


def build_views(settings: PretrainSettings) -> tuple[View, ...]:
    """The views of an image that a method learns from."""
    if settings.method == "dino":
        return dino_views(settings.size, settings.local_size, settings.local_crops)
    if settings.method == "supervised":
        return supervised_views(settings.size)
    return barlow_twins_views(settings.size)


def check_batch(settings: PretrainSettings, hardware: Hardware, images: int) -> None:
    """InputError for a batch that cannot be had of so many images."""
    batch, parts = settings.batch_size, hardware.processes * settings.accumulate
    if batch < 2 or images < batch:
        raise InputError(f"a batch of {batch} cannot be had of {images} images: it takes at least 2, and whole batches")
    if batch % parts or batch // parts < 2:
        raise InputError(
            f"a batch of {batch} does not divide among {hardware.processes} processes x {settings.accumulate} parts "
            f"of at least 2 images: take a multiple of {parts}, at least {2 * parts}"
        )


def check_activations(module: Pretraining, hardware: Hardware) -> None:
    """InputError where attention maps are needed whose activations would be gone."""
    if hardware.checkpoint_activations and module.guidance:
        raise InputError("guidance reads attention maps, which are gone with checkpointed activations: leave it off")
