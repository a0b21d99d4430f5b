"""Training one segmentation into a folder, which `runs.run.load_run` reads.

A run's description is written last and whole, so a folder that has one is finished, and one that has none is not.
"""

import json
import math
import shutil
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from safetensors.torch import save

from regard.backbones import Backbone, describe, parameters
from regard.backbones.weights import MODEL_FILE
from regard.data.datasets.base import MaskDataset, read_as, values_of
from regard.data.loading.augment import TrainTransform
from regard.data.loading.modules import SegmentationData
from regard.data.loading.wrapped import WithOthers
from regard.data.survey import class_pixels
from regard.files import write_whole
from regard.pictures.charts import heads_chart
from regard.results import CrossValidated, EpochScore, HeadShares, RunDescription, Solved, write_stored
from regard.runs.checks import check_hardware, check_settings, levels_read
from regard.runs.choosing_heads import CHOICE_FILE, chosen_levels, remembered_choice
from regard.runs.extras import Extras
from regard.runs.feature_cache import cached_data
from regard.runs.run import RUN_FILE, name_digests
from regard.runs.solving import Images, solve_head, validate
from regard.say import is_first_process, say
from regard.segmentation.losses import balanced_weights, build_loss
from regard.segmentation.model import SegmentationModel, has_unused
from regard.segmentation.task import SegmentationTask
from regard.settings import Hardware, SegmentSettings
from regard.training.averaging import make_averaging
from regard.training.curves import Clock, History
from regard.training.logs import wandb_logger
from regard.training.stopping import CHECKPOINTS, is_whole
from regard.training.trainer import StepSeed, count_once, fit, make_trainer, prepare

HEADS_PICTURE = "heads.png"


def segment_run(
    train: MaskDataset,
    val: MaskDataset | None,
    backbone: Backbone,
    settings: SegmentSettings,
    out: Path,
    seed: int = 0,
    hardware: Hardware = Hardware(),
    extras: Extras = Extras(),
) -> RunDescription:
    """Train a segmentation; writes the best epoch's `model.safetensors` and `run.json` into `out`, returns the latter.

    The head `ridge` is solved instead (`runs.solving`), and cross-validated without a `val`. The best epoch is the one
    of the highest mIoU on `val`; with the average `swa`, the last one is kept. Goes on from a checkpoint as
    `pretrain_run` does. With a cache, the features of a frozen backbone are computed once.

    Raises InputError for settings that do not go together.
    """
    check_settings(settings, backbone, cached=extras.cache is not None, grouped=True)
    assert val is not None or settings.head == "ridge", "a training chooses its epoch on val"
    check_hardware(settings, hardware, len(train), cached=extras.cache is not None)
    train, val = read_as(train, settings.values), val and read_as(val, settings.values)
    seen = values_of(train)  # a pack has its own, and what is predicted later is to be read alike
    settings = replace(settings, channels=seen.channels, range=seen.range)
    classes = len(train.classes)
    kept = None
    if settings.layers is not None or settings.heads_kept is not None:
        reads = levels_read(settings, backbone)
        levels = chosen_levels(backbone, reads, settings.layers)
        backbone.to(hardware.device if hardware.processes == 1 else "cpu")  # where all that choose round alike
        kept = remembered_choice(out, backbone, train, reads, levels, settings)
    L.seed_everything(seed, verbose=False)
    model = SegmentationModel(
        backbone, classes, settings.fusion, settings.head, settings.freeze, kept, settings.head_options,
        settings.maps, settings.refiner,
    )  # fmt: skip
    made = (_solve if settings.head == "ridge" else _train)(model, train, val, settings, out, seed, hardware, extras)
    description = RunDescription(
        regard=version("regard"),
        backbone=describe(backbone),
        kept=kept,
        settings=settings,
        classes=list(train.classes),
        palette=[(r, g, b) for r, g, b in np.asarray(train.palette).tolist()],
        ignore_index=train.ignore_index,
        head_weights=head_weights(model),
        refined=refined(model),
        seed=seed,
        origin=extras.origin,
        cached=extras.cache is not None,
        peak_memory_mb=torch.cuda.max_memory_allocated() / 2**20 if hardware.on_gpu else None,
        parameters=parameters(model),
        trained_on=name_digests(train),
        **vars(made),
    )
    if not is_first_process():
        return description
    _save_model(model, out / MODEL_FILE)
    if description.head_weights:
        chart = heads_chart(description.head_weights, f"heads that the {settings.listener} uses")
        write_whole(out / HEADS_PICTURE, lambda file: chart.savefig(file, dpi=120, format="png"))
    write_stored(out / RUN_FILE, description)
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    (out / CHOICE_FILE).unlink(missing_ok=True)
    return description


@dataclass(frozen=True)
class _Made:
    """How it came to be: as `RunDescription` has it."""

    seconds: float
    best_epoch: int | None
    curve: list[EpochScore]
    solved: Solved | None = None
    cross_validated: CrossValidated | None = None


def _train(
    model: SegmentationModel,
    train: MaskDataset,
    val: MaskDataset | None,
    settings: SegmentSettings,
    out: Path,
    seed: int,
    hardware: Hardware,
    extras: Extras,
) -> _Made:
    """Train it; it then has the weights that are kept."""
    assert val is not None
    cache, averaging = extras.cache, make_averaging(settings.average, settings.epochs)
    weights = balanced_weights(torch.from_numpy(class_pixels(train))) if settings.class_weights == "balanced" else None
    loss = build_loss(settings.loss, weights, train.ignore_index)
    task = SegmentationTask(model, len(train.classes), loss, settings, train.ignore_index)
    transform = TrainTransform(
        settings.crop or settings.size,
        train.ignore_index,
        settings.scale,
        jitter=settings.jitter,
        short=settings.size,
        most=settings.class_share,
    )
    if settings.maps == "other":
        train, val = (WithOthers(dataset, settings.groups) for dataset in (train, val))
    data = SegmentationData(train, val, transform, settings.batch_size, hardware.workers, seed, settings.accumulate)
    if cache is not None:
        model.to(hardware.device)
        content = cache.content_of(settings.values)
        crops = settings.cache_crops or 1
        data = cached_data(cache.folder, model, data, crops, content, hardware.autocast, hardware.bar)
    best = Best(
        out / CHECKPOINTS,
        "best-{step}",
        monitor="val_miou",
        mode="max",
        save_weights_only=not averaging,  # Lightning puts the average only into whole checkpoints
    )
    history, clock = History(), Clock()
    watching = [best, history, clock, StepSeed(seed), _CountOnce(), *extras.callbacks, *averaging]
    if settings.patience is not None:
        watching.append(EarlyStopping("val_miou", mode="max", patience=settings.patience))
    config = asdict(settings) | {"backbone": describe(model.backbone)["name"], "seed": seed}
    trainer = make_trainer(
        settings,
        out,
        hardware,
        watching,
        extras.title or "training",
        loggers=[wandb_logger(out, config)] if extras.logger == "wandb" else [],
        unused=hardware.processes > 1 and has_unused(model),
    )
    prepare(model, hardware)
    if hardware.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    fit(trainer, task, data, out)
    best_epoch = None  # of `swa`, the average at the end is kept
    if settings.average != "swa":
        checkpoint = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
        best_epoch = checkpoint["epoch"] + 1
        task.load_state_dict(checkpoint["state_dict"])
    trainer.strategy.barrier()  # before the first process removes what all have read
    return _Made(clock.seconds, best_epoch, [EpochScore(**point) for point in history.points])


def _solve(
    model: SegmentationModel,
    train: MaskDataset,
    val: MaskDataset | None,
    settings: SegmentSettings,
    out: Path,
    seed: int,
    hardware: Hardware,
    extras: Extras,
) -> _Made:
    """Solve its head in closed form, at once: there are no steps to go on from, and nothing of the seed is in it."""
    started = time.perf_counter()
    prepare(model, hardware)
    model.to(hardware.device).eval()
    cache = extras.cache and replace(extras.cache, content=extras.cache.content_of(settings.values))
    images = Images(model, settings.size, hardware, cache)
    out.mkdir(parents=True, exist_ok=True)
    solved, crossed = solve_head(model, images, train, settings, out, crossed=val is None)
    say(f"head ridge: {solved.said}")
    miou = validate(model, images, val) if val is not None else None
    curve = [EpochScore(epoch=1, train_loss=None, val_miou=miou)]
    return _Made(time.perf_counter() - started, 1, curve, solved, crossed)


class _CountOnce(L.Callback):
    """Where activations are computed again in the backward pass, batch norms count a batch once: as in pre-training."""

    def on_fit_start(self, trainer, pl_module) -> None:
        """Of the batch norms that train: shared ones have taken the place of others by now."""
        count_once(pl_module)


class Best(ModelCheckpoint):
    """Of a run that was killed after it had replaced its best weights, and goes on from before that, they are gone: it
    then keeps the best of the epochs to come.
    """

    def load_state_dict(self, state_dict) -> None:
        """From a checkpoint, where what it names is still there, and whole."""
        if is_whole(Path(state_dict["best_model_path"])):
            super().load_state_dict(state_dict)


def head_weights(model: SegmentationModel) -> list[HeadShares]:
    """Which attention heads the fusion uses, or without one a head that takes maps: for each level that it sees heads
    of; of weights that diverged, none.
    """
    part: Any = model.head if model.head.attention and not model.fusion.attention else model.fusion
    made = []
    found = list(zip(model.backbone.blocks, part.strength(), part.kept, part.head_weights(), strict=False))
    for level in sorted(part.reads):
        block, strength, heads, weights = found[level]
        if not math.isfinite(strength) or not weights.isfinite().all():
            return []
        shares = [round(share, 4) for share in weights.tolist()]
        is_factor = part is model.fusion and any(n.endswith(".strength") for n, _ in part.named_parameters())
        made.append(HeadShares(block=block, strength=strength, heads=list(heads), weights=shares, is_factor=is_factor))
    return made


def refined(model: SegmentationModel) -> dict[str, float]:
    """What the refiner came to do; of weights that diverged, nothing."""
    found = model.refiner.used()
    return {name: round(value, 4) for name, value in found.items()} if all(map(math.isfinite, found.values())) else {}


def _save_model(model: SegmentationModel, path: Path) -> None:
    """It says which backbone is in it, so that `build_backbone` can take that out again."""
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    said = {"regard": json.dumps(describe(model.backbone))}
    write_whole(path, lambda file: file.write(save(tensors, metadata=said)))
