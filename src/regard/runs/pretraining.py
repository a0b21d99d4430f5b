"""One pre-training as a folder, which `build_backbone` reads.

Its description is written last and whole, so a folder that has one is finished, and one that has none is not.
"""

import inspect
import shutil
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_type_hints

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from regard.attention.guidance import check_guidance
from regard.backbones import Backbone, describe, save_backbone
from regard.backbones.weights import BACKBONE_FILE
from regard.data.datasets.base import Chunked, Dataset, LabelDataset, Source, read_as
from regard.data.datasets.folders import ClassFolders
from regard.data.listing import held_out
from regard.data.loading.modules import PretrainData
from regard.data.loading.samples import CentreCrops, Views
from regard.data.loading.views import View
from regard.data.loading.wrapped import SkipUnreadable, skipped
from regard.errors import InputError, unknown
from regard.results import PretrainDescription, write_stored
from regard.runs.checks import check_pretraining
from regard.runs.extras import Extras
from regard.runs.folders import SKIPPED_FILE
from regard.runs.snapshots import AttentionSnapshots
from regard.say import say
from regard.settings import METHODS, VIEWS, Hardware, PretrainSettings, Watch, find, typed
from regard.ssl.method import Pretraining
from regard.ssl.monitors import CollapseMonitor, Pictures
from regard.training.averaging import make_averaging
from regard.training.curves import Clock, LossCurve, Scores
from regard.training.logs import wandb_logger
from regard.training.stopping import CHECKPOINTS
from regard.training.trainer import StepSeed, fit, make_trainer, prepare

PRETRAIN_FILE = "pretrain.json"
SKIPPED_QUERIES_FILE = "skipped-val.txt"
BANK = 100_000  # images that kNN asks while training, and asks for, at most: their features are kept in memory


def pretrain_run(
    dataset: Dataset,
    backbone: Backbone,
    settings: PretrainSettings,
    out: Path,
    seed: int = 0,
    hardware: Hardware = Hardware(),
    watch: Watch = Watch(),
    extras: Extras = Extras(),
) -> PretrainDescription:
    """Pre-train a backbone; writes `backbone.safetensors` and `pretrain.json` into `out` and returns the latter.

    dataset: labelled, for `supervised`.

    Where `out` holds a checkpoint of the same run, cut short, it goes on from there, as if it had not been.
    Raises InputError for an unknown method or option, or a batch that cannot be had; TrainingStopped when the loss is
    not finite; Interrupted when a signal stopped it.
    """
    check_pretraining(settings, hardware, len(dataset))
    method = check_options(settings)
    L.seed_everything(seed, verbose=False)
    dataset = read_as(dataset, settings.values)
    classes = len(dataset.classes) if isinstance(dataset, LabelDataset) else 0
    if watch.on_bad_image == "skip":
        dataset = SkipUnreadable(dataset, out / SKIPPED_FILE)
    queries = None if watch.knn_every == 0 and not method.labelled else extras.queries
    queries = queries and read_as(queries, settings.values)
    if queries and watch.on_bad_image == "skip":
        queries = SkipUnreadable(queries, out / SKIPPED_QUERIES_FILE)
    module = build_method(backbone, settings, classes)
    averaging = make_averaging(settings.average, settings.epochs)
    loggers = [wandb_logger(out, asdict(settings) | {"seed": seed})] if watch.logger == "wandb" else []
    on_device = watch.views_on == "device"
    views = Views(dataset, build_views(settings), seed, module.labelled, settings.placed, on_device)
    bank, asked = None, None
    if queries is not None:
        bank = CentreCrops(dataset, _probed(dataset, isinstance(dataset, Chunked)), settings.size)
        asked = CentreCrops(queries, _probed(queries), settings.size)
    data = PretrainData(views, settings.batch_size, hardware.workers, settings.accumulate, bank, asked)
    curve, clock, scores = LossCurve(points=40), Clock(), Scores()
    # A classifier has one view of an image, and labels to tell how it does.
    monitors = [] if module.labelled else [CollapseMonitor(_warn, watch.on_collapse)]
    folder, often = out / "pictures", max(1, settings.epochs // 10)
    pictures: list[L.Callback] = [Pictures(folder, often)]
    if backbone.heads:
        pictures.append(AttentionSnapshots(folder, often, dataset, settings.size))
    trainer = make_trainer(
        settings,
        out,
        hardware,
        [curve, clock, scores, StepSeed(seed), *averaging, *monitors, *pictures],
        extras.title or "pre-training",
        watch.knn_every or scoring_interval(settings.epochs),
        loggers,
    )
    prepare(module, hardware)
    fit(trainer, module, data, out)
    if queries is not None and (averaging or scores.epoch != settings.epochs):
        trainer.validate(module, data, verbose=False)  # what is kept: it was not scored yet
    description = PretrainDescription(
        regard=version("regard"),
        backbone=describe(backbone),
        origin=extras.origin,
        settings=settings,
        seed=seed,
        images=len(dataset),
        skipped=skipped(out / SKIPPED_FILE) + skipped(out / SKIPPED_QUERIES_FILE),
        steps=trainer.global_step,
        seconds=clock.seconds,
        curve=curve.points,
        monitor=[dict(point) for point in monitors[0].points] if monitors else [],
        scores=[dict(point) for point in scores.points],
        final=dict(scores.final),
    )
    if trainer.is_global_zero:
        save_backbone(module.kept, out / BACKBONE_FILE)
        write_stored(out / PRETRAIN_FILE, description)
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
        say(line, "warning")


def scoring_interval(epochs: int) -> int:
    """The largest part of the epochs, up to a twentieth, that divides them: so the finished backbone is scored too."""
    return next(part for part in range(max(1, epochs // 20), 0, -1) if epochs % part == 0)


def labelled_splits(source: Source) -> tuple[Dataset, Dataset]:
    """(train, val) of class folders; without a val/, val is a fixed fifth of train. InputError without labels."""
    if not source.has_labels:
        needs = "it needs class folders: DATA/CLASS/IMAGE, with or without train/ and val/ above the classes"
        raise InputError(f"{source.root} ({source.words}) has no classes for supervised training: {needs}")
    train = source.split("train")
    if "val" in source.splits:
        return train, source.splits["val"]
    if not isinstance(train, ClassFolders):
        raise InputError(f"{source.root} has no val: a pack of class folders with train/ and val/ would work")
    of_val = held_out(train.paths)
    return train.only(~of_val), train.only(of_val)


def build_method(backbone: Backbone, settings: PretrainSettings, classes: int = 0) -> Pretraining:
    """The LightningModule of a pre-training; InputError for an option that its method does not have.

    classes: of the labelled images that `supervised` learns from.
    """
    method, given = check_options(settings), {"batch_size": settings.batch_size}
    if method.labelled:
        given["classes"] = classes
    check_guidance(settings, backbone)
    module = method(backbone, **given, **(method.usual_options(settings) | chosen_options(settings)))
    module.guidance = settings
    return module


def chosen_options(settings: PretrainSettings) -> dict[str, Any]:
    """What is said of the method's own options."""
    said = {name: getattr(settings, name) for name in ("optimizer", "loss", "lr")}
    return {name: value for name, value in said.items() if value is not None} | settings.method_options


def check_options(settings: PretrainSettings) -> type[Pretraining]:
    """The method's class; InputError for an option that it does not have, or what it cannot do."""
    method: type[Pretraining] = find("method", settings.method, METHODS)
    kinds = get_type_hints(method.__init__, include_extras=True)
    known = set(inspect.signature(method).parameters) - {"backbone", "batch_size", "classes"}
    for option, value in chosen_options(settings).items():
        if option not in known and option not in settings.method_options:
            raise InputError(f"{settings.method} has no choice of {option}: leave out --{option}")
        if option not in known:
            raise unknown(f"option of {settings.method}", option, sorted(known))
        typed(f"{option} of {settings.method}", kinds[option], value, strict=True)
    if method.averages and settings.average != "none":
        raise InputError(f"{settings.method} keeps an average of the weights already: leave out average")
    if method.labelled and settings.guide_consistency:
        raise InputError(f"guide_consistency compares two views, and {settings.method} has one: leave it out")
    return method


def build_views(settings: PretrainSettings) -> tuple[View, ...]:
    """The views of an image that a method learns from."""
    views = find("method", settings.method, {**dict.fromkeys(METHODS, VIEWS["barlow_twins"]), **VIEWS})
    return views(**{name: getattr(settings, name) for name in inspect.signature(views).parameters})
