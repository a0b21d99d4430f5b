"""Commands that train: pretrain, segment."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from regard.errors import InputError
from regard.results import LEAST_STRENGTH
from regard.say import counted, is_first_process, say
from regard.settings import Hardware, ModelToTrain, PretrainSettings, SegmentSettings, Watch

FEW = 10  # images: a score of fewer is no more than a hint


def pretrain(
    data: str,
    model: ModelToTrain,
    settings: PretrainSettings,
    watch: Watch,
    hardware: Hardware,
    out: str = "runs/pretrain",
    seed: int = 0,
    resume: Literal["auto", "never"] = "auto",
) -> str:
    """Train a backbone on images without labels, or, as the baseline, on class folders with them.

    Args:
        data: `scenes`, a path or a pack's URL: any folder of images will do; for `supervised`, class folders.
        out: Folder for the backbone, curves and pictures; a second call goes on with a run cut short.
        seed: Of weights, order and views.
        resume: `auto` goes on with a run that was cut short in the same folder; `never` refuses such a folder.
    """
    from regard.backbones.base import weights_digest
    from regard.cli.common import built
    from regard.data.source import open_source
    from regard.runs.extras import Extras
    from regard.runs.folders import data_settings, run_folder
    from regard.runs.pretraining import PRETRAIN_FILE, check_options, labelled_splits, pretrain_run
    from regard.training.hardware import check_processes

    method = check_options(settings)
    source = open_source(data, scenes_size=settings.size)
    say(source.describe())
    queries = source.splits.get("val", source.splits.get("test")) if source.has_labels else None
    train = source.images("train")
    if method.labelled:
        train, queries = labelled_splits(source)
        if "val" not in source.splits:
            say(f"no val/, so a fixed fifth of the images, {len(queries):,}, is held out of training")
    backbone = built(model, seed)
    check_processes(hardware)
    started = {"data": source.root, "backbone": backbone.name, "options": backbone.options, "seed": seed}
    started |= asdict(settings) | {"first_weights": weights_digest(backbone)} | data_settings(source, Path(out))
    with run_folder(out, started, PRETRAIN_FILE, may_resume=resume == "auto" or not is_first_process()) as folder:
        extras = Extras(queries=queries)
        made = pretrain_run(train, backbone, settings, folder, seed, hardware, watch, extras)
    if made.skipped:
        say(f"{counted(len(made.skipped), 'image')} could not be read: see {out}/pretrain.json")
    scores = ", ".join(f"{name} {score:.1f}%" for name, score in made.final.items())
    reached = f" ({scores})" if scores else ""
    return f"pre-trained backbone in {out}{reached}: regard segment --backbone {shlex.quote(out)} --data ..."


def segment(
    data: str,
    model: ModelToTrain,
    settings: SegmentSettings,
    hardware: Hardware,
    out: str = "runs/segment",
    cache: str | None = None,
    seed: int = 0,
    logger: Literal["wandb"] | None = None,
    label_fraction: float = 1.0,
) -> str:
    """Train a segmentation on images with masks, and score the best epoch.

    Without a val/, a fixed fifth of the images is held out, and whole `--groups` of them; head ridge is cross-validated
    over all of them instead (not in a pack, which has its val, nor with a share of the labels).

    Args:
        data: `scenes`; a path: images/ + masks/, VOC 2012, COCO-Stuff, ADE20K, Oxford-IIIT Pet, CamVid; a pack's URL.
        out: Folder for the run; a second call goes on with a run cut short.
        cache: Folder for the features of a frozen backbone: they are computed once, for other runs too.
        seed: Of weights, order and crops.
        logger: `wandb` (Weights & Biases), beside CSV files and, where installed, TensorBoard.
        label_fraction: Share of the training masks to learn from, such as 0.1; as many steps are taken as with all.
    """
    from regard.backbones.base import weights_digest
    from regard.cli.common import built, table
    from regard.data.groups import held_out_anew
    from regard.data.loading.wrapped import Fraction, check_share
    from regard.data.source import check_readable, held_by_all, open_source, require_masks, unseen
    from regard.pictures.contact_sheet import SHEET, prediction_sheet
    from regard.pictures.draw import save_png
    from regard.results import Origin
    from regard.runs.checks import check_hardware, check_said, check_settings
    from regard.runs.extras import Cache, Extras
    from regard.runs.folders import data_settings, run_folder
    from regard.runs.run import RUN_FILE, load_run, summary
    from regard.runs.segmenting import segment_run
    from regard.runs.snapshots import PredictionSnapshots
    from regard.training.hardware import check_processes

    no_strength = not settings.listener and settings.refiner == "none"
    if no_strength and settings.fusion_lr != SegmentSettings.fusion_lr:
        raise InputError("fusion none has no strength to learn: leave out --fusion_lr, or take another --fusion")
    if settings.refiner != "affinity" and settings.affinity_weight != SegmentSettings.affinity_weight:
        raise InputError("only the refiner affinity learns of pairs: leave out --affinity_weight, or take it")
    if settings.freeze and settings.backbone_lr != SegmentSettings.backbone_lr:
        raise InputError("a frozen backbone does not learn, at no rate: leave out --backbone_lr, or --freeze")
    check_said(settings)
    check_share(label_fraction)
    source = open_source(data, scenes_size=settings.size).read_as(settings.values)
    require_masks(source)
    held_out = source.held_out
    crossed = held_out and settings.head == "ridge" and label_fraction == 1
    if crossed or (held_out and settings.groups):
        source = held_out_anew(source, settings.groups, crossed)
    splits = require_masks(source)
    if "val" not in splits and len(splits.get("train", ())) == 1:
        raise InputError(f"{source.root} has one image with a mask, and none to score on: a second one would work")
    for split in ("train",) if crossed else ("train", "val"):
        source.split(split)
    backbone = built(model, seed)
    check_settings(settings, backbone, cached=cache is not None, grouped=held_out)
    check_processes(hardware)
    check_hardware(settings, hardware, len(splits["train"]), cached=cache is not None)
    files = data_settings(source, Path(out), *([Path(cache)] if cache else []))
    kept = Cache(Path(cache), files["files"]) if cache else None
    say(source.describe())
    check_readable(source, settings.largest)
    asked = {"backbone": model.backbone, "weights": model.weights, "pretrained": model.pretrained}
    origin = Origin(data=source.root, label_fraction=label_fraction, **asked)
    train = splits["train"]
    if label_fraction < 1:
        train = Fraction(train, label_fraction, seed)
        if line := unseen(source.classes, held_by_all(train.once())):
            say(f"of the share that is drawn, {line}")
    started = {"data": source.root, "seed": seed, "cached": kept is not None, **asdict(model), **asdict(settings)}
    started |= {"backbone_options": backbone.options, "first_weights": weights_digest(backbone)} | files
    started |= {"label_fraction": label_fraction} if label_fraction < 1 else {}
    with run_folder(out, started, RUN_FILE) as folder:
        watched = settings.head != "ridge" and settings.maps != "other"  # which is not trained; has no answer alone
        watching = [PredictionSnapshots(folder / "pictures", splits["val"], settings)] if watched else []
        extras = Extras(origin=origin, logger=logger, callbacks=watching, cache=kept)
        made = segment_run(train, splits.get("val"), backbone, settings, folder, seed, hardware, extras)
    line = f"trained segmentation in {out}: regard predict --run {shlex.quote(out)} --images ... --out ..."
    if not is_first_process():
        return line
    for level in made.head_weights:
        heads = zip(level.heads, level.weights, strict=True)
        shares = ", ".join(f"{head} {100 * weight:.0f}%" for head, weight in heads)
        shares = f"hardly used, below {LEAST_STRENGTH:g}" if level.hardly_used else shares
        part = settings.listener.split()[0]
        say(f"heads of block {level.block} in the {part} (strength {level.strength:.3f}): {shares}")
    if made.refined:
        more = [f"{name} {value:.2f}" for name, value in made.refined.items() if name != "strength"]
        used = f"hardly used, below {LEAST_STRENGTH:g}" if made.hardly_refined else ", ".join(more) or "used"
        say(f"refiner {settings.refiner} (strength {made.refined['strength']:.3f}): {used}")
    if made.cross_validated:
        table(made.cross_validated, "cross-validated")
        say(made.cross_validated.said)
    else:
        run = load_run(out)
        table(summary(run, run.evaluate(splits["val"])), "val")
        if (count := len(splits["val"])) < FEW:
            more = (
                ", held out; head ridge, with all labels of a folder, is cross-validated over all" if held_out else ""
            )
            say(f"the score rests on {counted(count, 'image')}{more}")
        if settings.maps == "other":  # a control has no answer for an image alone
            return line
        save_png(Path(out) / SHEET, prediction_sheet(run.seen(splits["val"]), run.predict))
    return f"{line}; some predictions are in {out}/{SHEET}"
