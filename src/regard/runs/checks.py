"""What a training would refuse, said before it begins."""

import torch

from regard.backbones import Backbone
from regard.errors import InputError
from regard.runs.choosing_heads import check_choice, chosen_levels
from regard.segmentation.fusions import CONCAT_WIDTH
from regard.segmentation.heads import build_head
from regard.segmentation.losses import build_loss
from regard.segmentation.model import SegmentationModel
from regard.segmentation.task import SegmentationTask
from regard.settings import REFINERS, Hardware, PretrainSettings, SegmentSettings, find


def check_settings(settings: SegmentSettings, backbone: Backbone, cached: bool, grouped: bool = False) -> None:
    """InputError for a segmentation that cannot be trained: all of its parts are made once, for two classes.

    grouped: whether groups of images may have been held out as val.

    Leaves the backbone and the global generators as they were.
    """
    if cached and not settings.freeze:
        raise InputError("a cache keeps the features of a backbone that does not learn: add --freeze, or leave it out")
    if not cached and settings.cache_crops is not None:
        raise InputError("crops are kept in a cache only: add --cache and --freeze, or leave out --cache_crops")
    if settings.maps == "other" and settings.guided:
        raise InputError("guidance is of an image's own maps: leave it out, or maps other")
    loss = build_loss(settings.loss, None, 255)
    with torch.random.fork_rng(devices=[]):
        model = SegmentationModel(
            backbone, 2, settings.fusion, settings.head, False, None, settings.head_options, settings.maps,
            settings.refiner,
        )  # fmt: skip
        SegmentationTask(model, 2, loss, settings)
    check_choice(settings, backbone)
    if settings.groups is not None and not (grouped or settings.reads_groups):
        raise InputError(
            "groups are for what --heads_kept and head ridge choose, for maps other, and where there is no val: leave "
            "out --groups, or add one of them"
        )
    if settings.head == "ridge":
        _check_ridge(settings, model)
    if settings.layers is not None:
        chosen_levels(backbone, model.head.levels, settings.layers)


OF_TRAINING = (
    "crop", "scale", "jitter", "class_share", "epochs", "batch_size", "accumulate", "loss", "class_weights", "lr",
    "fusion_lr", "affinity_weight", "backbone_lr", "layer_decay", "weight_decay", "warmup", "schedule", "average",
    "patience",
)  # fmt: skip


def check_said(settings: SegmentSettings) -> None:
    """InputError for what is said of a training where there is none."""
    said = [name for name in OF_TRAINING if getattr(settings, name) != getattr(SegmentSettings, name)]
    if settings.head == "ridge" and said:
        raise InputError(f"head ridge is solved, not trained: leave out --{said[0]}, or take head linear")


def _check_ridge(settings: SegmentSettings, model: SegmentationModel) -> None:
    """InputError for what is not to be solved in closed form."""
    if not settings.freeze:
        raise InputError("head ridge is solved for features that stay as they are: add --freeze, or take head linear")
    if settings.guided:
        raise InputError("guidance trains a backbone, and head ridge is solved: leave it out, or take head linear")
    if settings.fusion not in ("none", "concat"):
        raise InputError(f"head ridge is solved, and fusion {settings.fusion} is trained: take fusion none or concat")
    if settings.refiner != "none":
        raise InputError(f"head ridge is solved, and refiner {settings.refiner} is trained: take refiner none")
    most = max(model.backbone.heads, default=0) if settings.heads_kept is None else settings.heads_kept
    if settings.fusion == "concat" and most > CONCAT_WIDTH:
        raise InputError(
            f"fusion concat passes {CONCAT_WIDTH} maps of a level on as they are, and head ridge would read {most}: "
            f"add --heads_kept {CONCAT_WIDTH}, or less"
        )


def levels_read(settings: SegmentSettings, backbone: Backbone) -> tuple[int, ...]:
    """The levels of the pyramid that the head reads. Leaves the global generators as they were."""
    with torch.random.fork_rng(devices=[]):
        sizes = backbone.channels, backbone.strides
        return build_head(settings.head, *sizes, 2, settings.head_options, backbone.heads).levels


def check_hardware(settings: SegmentSettings, hardware: Hardware, images: int, cached: bool) -> None:
    """InputError for what so many processes, or these ways to compute, cannot do with so many training images."""
    if settings.head == "ridge":
        if hardware.processes > 1:
            raise InputError("head ridge is solved by one process: take --devices 1, or another head")
        if hardware.accelerator == "mps":
            raise InputError("head ridge is solved in float64, which mps does not have: use --accelerator cpu, or auto")
        return
    batch, parts = settings.batch_size, hardware.processes * settings.accumulate
    share = f"{hardware.processes} processes x {settings.accumulate} parts"
    if batch % parts:
        raise InputError(f"a batch of {batch} does not divide among {share}: take a multiple of {parts}")
    if parts > 1 and images < batch:
        most = images - images % parts
        remedy = f"take a batch size of {most} or less" if most else "take fewer"
        raise InputError(f"{images} images for training do not fill a step of {batch} in {share}: {remedy}")
    if cached and hardware.processes > 1:
        raise InputError("features in a cache are trained on by one process: leave out --cache, or take --devices 1")
    if hardware.checkpoint_activations and settings.freeze:
        raise InputError("a frozen backbone keeps no activations: leave out --checkpoint_activations, or --freeze")
    refines = find("refiner", settings.refiner, REFINERS).attention
    if hardware.checkpoint_activations and (settings.guided or settings.listener or refines):
        what = "guidance" if settings.guided else settings.listener or f"refiner {settings.refiner}"
        raise InputError(f"{what} reads attention maps, which are gone with --checkpoint_activations: leave out one")


def check_pretraining(settings: PretrainSettings, hardware: Hardware, images: int) -> None:
    """InputError for a batch that cannot be had of so many images, and for maps whose activations would be gone."""
    batch, parts = settings.batch_size, hardware.processes * settings.accumulate
    if batch < 2 or images < batch:
        raise InputError(f"a batch of {batch} cannot be had of {images} images: it takes at least 2, and whole batches")
    if batch % parts or batch // parts < 2:
        raise InputError(
            f"a batch of {batch} does not divide among {hardware.processes} processes x {settings.accumulate} parts "
            f"of at least 2 images: take a multiple of {parts}, at least {2 * parts}"
        )
    if hardware.checkpoint_activations and settings.guided:
        raise InputError("guidance reads attention maps, which are gone with checkpointed activations: leave it off")
