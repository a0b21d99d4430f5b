"""Commands that train: demo, compare, ablate, pretrain, segment."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from regard.cli.common import Accelerator, Precision, table
from regard.errors import InputError, TrainingStopped, unknown
from regard.say import is_first_process, say


def demo(out: str = "runs/demo", jobs: int | None = None) -> str:
    """Run the whole path on the built-in scenes: pre-train, segment, compare, report. Minutes on two CPU cores.

    Args:
        out: Folder of the comparison; a second call goes on where the first one stopped.
        jobs: Trainings side by side; by default as many as suit this machine.
    """
    return compare("scenes", "tiny", out=out, jobs=jobs)


def compare(
    data: str,
    preset: str = "tiny",
    study: str | None = None,
    out: str = "runs/compare",
    seeds: int | None = None,
    baselines: bool = False,
    size: int | None = None,
    label_fractions: list[float] | None = None,
    frozen: Literal["no", "yes", "both"] = "no",
    pretrain_each_seed: bool = False,
    dry_run: bool = False,
    jobs: int | None = None,
    devices: int = 1,
    cluster: Literal["slurm", "local"] | None = None,
    cluster_options: dict[str, Any] | None = None,
    workers: int = 0,
    accelerator: Accelerator = "auto",
    precision: Precision = "auto",
) -> str:
    """Compare backbones, pre-trainings and attention fusions on the same images, and write a report.

    Args:
        data: `scenes`; a path: images/ + masks/, VOC 2012, COCO-Stuff, ADE20K, Oxford-IIIT Pet, CamVid; a pack's URL.
        preset: `tiny` (minutes on a CPU), `small` (for one GPU) or `full` (ResNet-50, Swin-T, ViT-S/16).
        study: A YAML file with any configurations instead of a preset's; see docs/studies.md.
        out: Folder of the comparison; a second call goes on where the first one stopped.
        seeds: How many seeds each configuration is trained with; by default the preset's.
        baselines: Also the baselines: no fusion, another fusion, random weights.
        size: Short side of the images in pixels; by default the preset's.
        label_fractions: Each configuration with these shares of the training masks, such as 1 0.1 0.01.
        frozen: Leave the backbones as they are, or compare both.
        pretrain_each_seed: A pre-training of its own for each seed, instead of one that all seeds share.
        dry_run: Only say what would be trained, and about how long it would take here.
        jobs: Trainings side by side; by default 1 for each GPU, as many as the cores suit (at most 4) on a CPU, and on
            a cluster all.
        devices: GPUs that the trainings are shared out among; each takes one.
        cluster: Send the trainings out as jobs of a `slurm` cluster; `local` is the same on this machine.
        cluster_options: For its jobs, as submitit names them, such as {"slurm_partition": "gpu", "timeout_min": 240}.
        workers: Processes that load images, per training.
        accelerator: `auto` takes a GPU where there is one.
        precision: `auto` is bf16-mixed on a GPU, else 32-true.
    """
    from dataclasses import replace

    from regard.studies.plan import spread
    from regard.studies.plan_file import read_plan
    from regard.studies.presets import preset as choose

    if study is not None:
        clash = [name for name, given in (("size", size), ("baselines", baselines)) if given]
        if clash or preset != "tiny":
            raise InputError(f"--study says what is compared: leave out --{(clash or ['preset'])[0]}, and say it there")
        plan = read_plan(study, choose, seeds)
    else:
        plan = choose(preset, size)
        kept = tuple(c for c in plan.configurations if baselines or not c.baseline)
        names = {c.name for c in kept}
        questions = tuple(pair for pair in plan.questions if names.issuperset(pair))
        plan = replace(plan, configurations=kept, questions=questions)
        plan = replace(plan, seeds=tuple(range(seeds))) if seeds else plan
    if label_fractions is not None or frozen != "no":
        if plan.axes:
            raise InputError(f"{study} varies {', '.join(plan.axes)} itself: leave out --label_fractions and --frozen")
        freezes = {"no": None, "yes": (True,), "both": (False, True)}[frozen]
        plan = spread(plan, label_fractions, freezes)
    if pretrain_each_seed:
        plan = replace(plan, pretrain_each_seed=True)
    given = {
        "--data": data, "--preset": None if study else preset, "--study": study, "--out": out, "--seeds": seeds,
        "--size": size, "--baselines": baselines, "--label_fractions": label_fractions,
        "--frozen": frozen if frozen != "no" else None, "--pretrain_each_seed": pretrain_each_seed,
    }  # fmt: skip
    return _run_study(
        "compare", plan, given, data, out, dry_run, jobs, devices, cluster, cluster_options, workers, accelerator,
        precision,
    )  # fmt: skip


def ablate(
    data: str,
    axis: list[str],
    base: str = "bt-swin-gate",
    preset: str = "tiny",
    study: str | None = None,
    out: str = "runs/ablate",
    grid: bool = False,
    seeds: int | None = None,
    size: int | None = None,
    pretrain_each_seed: bool = False,
    dry_run: bool = False,
    jobs: int | None = None,
    devices: int = 1,
    cluster: Literal["slurm", "local"] | None = None,
    cluster_options: dict[str, Any] | None = None,
    workers: int = 0,
    accelerator: Accelerator = "auto",
    precision: Precision = "auto",
) -> str:
    """Vary one configuration along axes (fusion, head, layers, label_fraction, ...), and write a report.

    Args:
        data: `scenes`; a path: images/ + masks/, VOC 2012, COCO-Stuff, ADE20K, Oxford-IIIT Pet, CamVid; a pack's URL.
        axis: What to vary: fusion, head, layers, heads_kept, guidance, pretrain_guidance, label_fraction, freeze, crop,
            projector, lambda, or a setting of segmentation such as lr; with values as in label_fraction=1,0.1,0.01.
        base: The configuration that is varied: one of the preset's, or of the study's.
        preset: `tiny` (minutes on a CPU), `small` (for one GPU) or `full` (ResNet-50, Swin-T, ViT-S/16).
        study: A YAML file with the configuration instead of a preset's; see docs/studies.md.
        out: Folder of the ablation; a second call goes on where the first one stopped.
        grid: Every combination of the values; otherwise one axis at a time, beside the base.
        seeds: How many seeds each variant is trained with; by default the preset's.
        size: Short side of the images in pixels; by default the preset's.
        pretrain_each_seed: A pre-training of its own for each seed, instead of one that all seeds share.
        dry_run: Only say what would be trained, and about how long it would take here.
        jobs: Trainings side by side; by default 1 for each GPU, as many as the cores suit (at most 4) on a CPU, and on
            a cluster all.
        devices: GPUs that the trainings are shared out among; each takes one.
        cluster: Send the trainings out as jobs of a `slurm` cluster; `local` is the same on this machine.
        cluster_options: For its jobs, as submitit names them, such as {"slurm_partition": "gpu", "timeout_min": 240}.
        workers: Processes that load images, per training.
        accelerator: `auto` takes a GPU where there is one.
        precision: `auto` is bf16-mixed on a GPU, else 32-true.
    """
    from dataclasses import replace

    from regard.studies.ablate import ablation
    from regard.studies.plan_file import read_plan
    from regard.studies.presets import preset as choose

    if study is not None and (size or preset != "tiny"):
        raise InputError(f"--study says what is varied: leave out --{'size' if size else 'preset'}, and say it there")
    plan = read_plan(study, choose, seeds) if study is not None else choose(preset, size)
    axes: dict[str, list[str] | None] = {}
    for text in axis:
        name, _, values = text.partition("=")
        if name in axes:
            raise InputError(f"axis {name} is given twice: give all of its values at once, as {name}=A,B")
        axes[name] = values.split(",") if values else None
    plan = ablation(plan, base, axes, grid)
    plan = replace(plan, seeds=tuple(range(seeds))) if seeds else plan
    plan = replace(plan, pretrain_each_seed=True) if pretrain_each_seed else plan
    given = {
        "--data": data, "--axis": axis, "--base": base, "--preset": None if study else preset, "--study": study,
        "--out": out, "--grid": grid, "--seeds": seeds, "--size": size, "--pretrain_each_seed": pretrain_each_seed,
    }  # fmt: skip
    return _run_study(
        "ablate", plan, given, data, out, dry_run, jobs, devices, cluster, cluster_options, workers, accelerator,
        precision,
    )  # fmt: skip


def _run_study(
    name: str,
    plan: Any,
    given: dict[str, Any],
    data: str,
    out: str,
    dry_run: bool,
    jobs: int | None,
    devices: int,
    cluster: Literal["slurm", "local"] | None,
    cluster_options: dict[str, Any] | None,
    workers: int,
    accelerator: Accelerator,
    precision: Precision,
) -> str:
    """What `compare` and `ablate` do with a plan. TrainingStopped, at the end, where a part of it failed."""
    from regard.data.source import check_readable, open_source
    from regard.studies.compare import compare as run
    from regard.studies.compare import open_study
    from regard.studies.estimate import estimate, show
    from regard.studies.jobs import Where, default_jobs
    from regard.training.hardware import Hardware

    if cluster_options and cluster is None:
        raise InputError("--cluster_options are for jobs of a cluster: add --cluster slurm, or leave them out")
    source = open_source(data, scenes_size=plan.segment.size)
    hardware = Hardware(accelerator, precision, workers)
    jobs = jobs or (len(plan.configurations) * len(plan.seeds) if cluster else default_jobs(hardware) * devices)
    check_readable(source)
    if dry_run:
        return show(estimate(open_study(source, plan, Path(out), hardware)), jobs)
    words = ["regard", name]
    given |= {  # what would otherwise be chosen anew where the command is repeated
        "--accelerator": accelerator if accelerator != "auto" else None,
        "--precision": precision if precision != "auto" else None,
    }
    for option, value in given.items():
        if value is True:
            words.append(option)
        elif value not in (None, False):
            words += [option, *(map(str, value) if isinstance(value, list) else [str(value)])]
    where = Where(jobs, devices, cluster, cluster_options or {})
    report, failures = run(source, plan, Path(out), where, hardware, shlex.join(words))
    if failures:
        raise TrainingStopped(
            f"{len(failures)} parts failed, the first: {failures[0].name}: {failures[0].error} (tracebacks in "
            f"{Path(out) / 'failures'}); the rest is in {report}"
        )
    return f"open {report} for the {'comparison' if name == 'compare' else 'ablation'}"


def pretrain(
    data: str,
    method: str = "barlow_twins",
    backbone: str = "resnet50",
    out: str = "runs/pretrain",
    size: int = 224,
    epochs: int = 100,
    batch_size: int = 256,
    local_size: int = 96,
    local_crops: int = 8,
    optimizer: Literal["lars", "adamw", "sgd"] | None = None,
    loss: str | None = None,
    average: Literal["none", "ema", "swa"] = "none",
    lr: float | None = None,
    tune: Literal["lr", "batch_size"] | None = None,
    weights: str | None = None,
    pretrained: bool = False,
    seed: int = 0,
    resume: Literal["auto", "never"] = "auto",
    on_bad_image: Literal["raise", "skip"] = "raise",
    knn_every: int | None = None,
    on_collapse: Literal["warn", "stop"] = "warn",
    logger: Literal["wandb"] | None = None,
    workers: int = 4,
    accelerator: Accelerator = "auto",
    precision: Precision = "auto",
    devices: int = 1,
    nodes: int = 1,
    strategy: str = "auto",
    views_on: Literal["cpu", "device"] = "cpu",
    accumulate: int = 1,
    compile: bool = False,
    checkpoint_activations: bool = False,
    checkpoint_minutes: float = 10.0,
    guide_sharpness: float = 0.0,
    guide_diversity: float = 0.0,
    guide_consistency: float = 0.0,
    backbone_options: dict[str, Any] | None = None,
    method_options: dict[str, Any] | None = None,
) -> str:
    """Train a backbone on images without labels, or, as the baseline, on class folders with them.

    Args:
        data: `scenes`, a path or a pack's URL: any folder of images will do; for `supervised`, class folders.
        method: `barlow_twins`, `dino`, or `supervised`.
        backbone: A timm model (`resnet50`, `vit_small_patch16_224`, `swin_tiny_patch4_window7_224`, ...) or a run.
        out: Folder for `backbone.safetensors` and the logs.
        size: Side of the (global) views in pixels.
        epochs: Passes over the images.
        batch_size: Images per step, over all devices and accumulated parts.
        local_size: Side of DINO's local crops in pixels.
        local_crops: How many local crops DINO takes of an image.
        optimizer: Barlow Twins' `lars` or supervised `sgd` (defaults for convnets), or `adamw` (for transformers).
        loss: Of `supervised`: cross_entropy (default), angular, arcface or subcenter_arcface.
        average: Keep an average of the weights: `ema` over the steps, `swa` over the epochs of the last quarter.
        lr: Peak rate at a batch of 256; scaled by batch / 256. By default 0.2 for LARS and 5e-4 for AdamW;
            supervised, 0.1 for SGD and 2.5e-4 for AdamW.
        tune: First choose `lr` or `batch_size` by short trials, in the place of --lr or --batch_size, and draw them.
        weights: A checkpoint file to start from.
        pretrained: Start from timm's published weights.
        seed: Of weights, order and views.
        resume: `auto` goes on with a run that was cut short in the same folder; `never` refuses such a folder.
        on_bad_image: `skip` takes another image for one that cannot be read and names it, up to 1% of the images.
        knn_every: Epochs between kNN scores of class folders; by default 20 scores or more in all; 0 for none.
        on_collapse: When the embeddings collapse, say so or stop.
        logger: `wandb` (Weights & Biases), beside CSV and TensorBoard.
        workers: Processes that load images, per device.
        accelerator: `auto` takes a GPU where there is one.
        precision: `auto` is bf16-mixed on a GPU, else 32-true.
        devices: Processes (GPUs) on each machine.
        nodes: Machines.
        strategy: How the processes are joined: `ddp`, or `fsdp` where a GPU has too little memory for the parameters.
        views_on: Where colours and blur of the views are computed: by the loading processes, or on the `device`, which
            saves a third of their work.
        accumulate: Forward passes per step; see docs/pretraining.md for what that does to Barlow Twins.
        compile: Compile the networks with torch.compile.
        checkpoint_activations: Spend time to save memory: compute activations again in the backward pass.
        checkpoint_minutes: How often to save what a killed run goes on from.
        guide_sharpness: Weight of a loss that makes each attention head look at few places; 0 for none.
        guide_diversity: Weight of a loss that makes the heads of a block look at different places.
        guide_consistency: Weight of a loss that makes a head look at the same places in both views.
        backbone_options: Passed to timm, such as {"img_size": 64, "patch_size": 8}.
        method_options: Passed to the method, such as {"lambda_": 0.0051} or {"out_dim": 4096}.
    """
    import torch

    from regard.attention.guidance import Guidance
    from regard.backbones import build_backbone
    from regard.backbones.base import weights_digest
    from regard.data.source import open_source
    from regard.runs.folders import run_folder
    from regard.runs.pretraining import (
        METHODS,
        PRETRAIN_FILE,
        PretrainSettings,
        Watch,
        labelled_splits,
        pretrain_run,
    )
    from regard.runs.tuning import tuned
    from regard.training.hardware import Hardware

    if method not in METHODS:
        raise unknown("method", method, METHODS)
    source = open_source(data, scenes_size=size)
    say(source.describe())
    queries = source.splits.get("val", source.splits.get("test")) if source.has_labels else None
    train = source.split("train")
    if method == "supervised":
        train, queries = labelled_splits(source)
        if "val" not in source.splits:
            say(f"no val/, so a fixed fifth of the images, {len(queries):,}, is held out of training")
    torch.manual_seed(seed)
    model = build_backbone(backbone, pretrained, weights, **(backbone_options or {}))
    hardware = Hardware(
        accelerator, precision, workers, checkpoint_minutes=checkpoint_minutes, devices=devices, nodes=nodes,
        strategy=strategy, compile=compile, checkpoint_activations=checkpoint_activations, views_on=views_on,
    )  # fmt: skip
    hardware.check_processes()
    options = dict(method_options or {}) | ({} if lr is None else {"lr": lr}) | ({"loss": loss} if loss else {})
    if method == "barlow_twins":
        options = {"optimizer": optimizer or ("adamw" if model.heads else "lars")} | options
    elif method == "supervised":
        options = ({"optimizer": optimizer} if optimizer else {}) | options
    elif optimizer:
        raise InputError("DINO trains with AdamW: --optimizer is for Barlow Twins")
    if tune and strategy == "fsdp":
        raise InputError("--tune makes its trials on whole networks, and fsdp cuts them: leave out one of the two")
    if tune == "lr" and lr is not None:
        raise InputError("--tune lr chooses the rate: leave out --lr, or --tune")
    guidance = Guidance(guide_sharpness, guide_diversity, guide_consistency)
    guidance.check(model)
    settings = PretrainSettings(
        method, size, local_size, local_crops, epochs, batch_size, options, accumulate, average, guidance
    )
    started = {"data": source.root, "backbone": model.name, "options": model.options, "seed": seed, **asdict(settings)}
    started["first_weights"] = weights_digest(model)
    started["tune"] = tune  # and not what it chose: a run cut short is the same run before and after the choice
    watch = Watch(logger, on_bad_image, knn_every, on_collapse)
    with run_folder(out, started, PRETRAIN_FILE, may_resume=resume == "auto" or not is_first_process()) as folder:
        if tune:
            settings = tuned(tune, train, model, settings, folder, seed, hardware, watch, say)
        made = pretrain_run(train, model, settings, folder, seed, hardware, watch=watch, queries=queries)
    if made["skipped"]:
        say(f"{len(made['skipped'])} images could not be read: they are named in {out}/pretrain.json")
    scores = ", ".join(f"{name} {score:.1f}%" for name, score in made["final"].items())
    return (
        f"pre-trained backbone in {out}{f' ({scores})' if scores else ''}: regard segment --backbone {out} --data ..."
    )


def segment(
    data: str,
    backbone: str = "resnet50",
    out: str = "runs/segment",
    fusion: str = "none",
    layers: list[int] | None = None,
    heads_kept: int | None = None,
    head: str = "segformer",
    size: int = 224,
    crop: int | None = None,
    class_share: float | None = None,
    epochs: int = 50,
    batch_size: int = 16,
    accumulate: int = 1,
    loss: str = "cross_entropy",
    class_weights: Literal["none", "balanced"] = "none",
    lr: float = 1e-3,
    backbone_lr: float | None = None,
    layer_decay: float = 1.0,
    weight_decay: float = 0.01,
    warmup: float = 0.05,
    schedule: Literal["poly", "cosine"] = "poly",
    average: Literal["none", "ema", "swa"] = "none",
    patience: int | None = None,
    freeze: bool = False,
    cache: str | None = None,
    cache_crops: int = 1,
    weights: str | None = None,
    pretrained: bool = False,
    seed: int = 0,
    logger: Literal["wandb"] | None = None,
    workers: int = 4,
    accelerator: Accelerator = "auto",
    precision: Precision = "auto",
    devices: int = 1,
    nodes: int = 1,
    strategy: str = "auto",
    compile: bool = False,
    checkpoint_activations: bool = False,
    checkpoint_minutes: float = 10.0,
    guide_sharpness: float = 0.0,
    guide_diversity: float = 0.0,
    guide_consistency: float = 0.0,
    backbone_options: dict[str, Any] | None = None,
    head_options: dict[str, int] | None = None,
) -> str:
    """Train a segmentation on images with masks, and score the best epoch.

    Args:
        data: `scenes`; a path: images/ + masks/, VOC 2012, COCO-Stuff, ADE20K, Oxford-IIIT Pet, CamVid; a pack's URL.
        backbone: A timm model, or what `regard pretrain` made (its folder or file).
        out: Folder for the run; a second call goes on with a run cut short.
        fusion: How the backbone's attention reaches the head: none, concat, gate or propagate.
        layers: The levels of the pyramid whose attention the fusion reads, such as [2, 3] or [-1]; by default all that
            the head reads.
        heads_kept: Of each level the fusion sees so many attention heads only: those that tell most about the classes
            of the training masks, beyond what the place tells, with the weights that the training starts from.
        head: linear, fcn, unet, setr_pup, segformer, upernet or deeplabv3plus.
        size: Short side of the images in pixels.
        crop: Side of the training crops in pixels; by default the short side of the images.
        class_share: Draw a crop again where one class has more of it than this, such as 0.75.
        epochs: Passes over the images.
        batch_size: Images per step, over all devices and accumulated parts.
        accumulate: Forward passes per step. Parts count alike, and a loss that is not a sum over pixels (dice, lovasz)
            is one of each part, and of each device's.
        loss: A sum of cross_entropy, dice, focal and lovasz, such as "cross_entropy + 0.5*dice".
        class_weights: `balanced` gives rare classes more weight in the loss, by their pixels in all training masks.
        lr: Peak rate of fusion and head.
        backbone_lr: Peak rate of the backbone; by default 1e-4.
        layer_decay: Each layer of the backbone learns at this many times the rate of the layer after it, such as 0.75.
        weight_decay: Of AdamW.
        warmup: Share of the steps in which the rates rise.
        schedule: How they fall then: `poly` (to the power 0.9) or `cosine`.
        average: Score and keep an average of the weights: `ema` over the steps, `swa` over the last quarter's epochs.
        patience: Stop after so many epochs without a better score.
        freeze: Leave the backbone as it is.
        cache: Folder for the features of a frozen backbone: they are computed once, for other runs too.
        cache_crops: How many crops of each image are kept there; training goes around them.
        weights: A checkpoint file for the backbone: Barlow Twins, DINO, torchvision or timm.
        pretrained: timm's published weights for the backbone.
        seed: Of weights, order and crops.
        logger: `wandb` (Weights & Biases), beside CSV and TensorBoard.
        workers: Processes that load images, per device.
        accelerator: `auto` takes a GPU where there is one.
        precision: `auto` is bf16-mixed on a GPU, else 32-true.
        devices: Processes (GPUs) on each machine.
        nodes: Machines.
        strategy: How the processes are joined: `ddp`, or `fsdp` where a GPU has too little memory for the parameters.
        compile: Compile the networks with torch.compile.
        checkpoint_activations: Spend time to save memory: compute activations again in the backward pass. Not with a
            fusion that reads attention.
        checkpoint_minutes: How often to save what a killed run goes on from.
        guide_sharpness: Weight of a loss that makes each attention head look at few places; 0 for none.
        guide_diversity: Weight of a loss that makes the heads of a block look at different places.
        guide_consistency: Weight of a loss that makes a head look at the same places when the image is flipped.
        backbone_options: Passed to timm, such as {"img_size": 64, "patch_size": 8}.
        head_options: Passed to the head, such as {"width": 128}.
    """
    import torch

    from regard.attention.guidance import Guidance
    from regard.backbones import build_backbone
    from regard.backbones.base import weights_digest
    from regard.data.source import check_readable, fingerprint, open_source, require_masks
    from regard.runs.folders import run_folder
    from regard.runs.run import RUN_FILE, load_run, summary
    from regard.runs.segmenting import Cache, SegmentSettings, check_hardware, check_settings, segment_run
    from regard.segmentation.fusions import build_fusion
    from regard.segmentation.heads import build_head
    from regard.segmentation.losses import build_loss
    from regard.training.hardware import Hardware

    build_loss(loss, None, 255)  # so that a wrong name is said before anything is read or written
    source = open_source(data, scenes_size=size)
    splits = require_masks(source)
    for split in ("train", "val"):
        source.split(split)
    torch.manual_seed(seed)
    model = build_backbone(backbone, pretrained, weights, **(backbone_options or {}))
    with torch.random.fork_rng(devices=[]):  # likewise, and without a trace in the weights to come
        levels = build_head(head, model.channels, model.strides, 2, **(head_options or {})).levels
        build_fusion(fusion, model, levels)
    guidance = Guidance(guide_sharpness, guide_diversity, guide_consistency)
    guidance.check(model)
    if guidance and freeze:
        raise InputError("guidance changes the backbone, and --freeze leaves it as it is: take one of the two")
    if freeze and backbone_lr is not None:
        raise InputError("a frozen backbone does not learn, at no rate: leave out --backbone_lr, or --freeze")
    settings = SegmentSettings(
        size, crop, most=class_share, head=head, head_options=head_options or {}, freeze=freeze, epochs=epochs,
        batch_size=batch_size, lr=lr, backbone_lr=1e-4 if backbone_lr is None else backbone_lr,
        weight_decay=weight_decay, layer_decay=layer_decay, warmup=warmup, schedule=schedule, loss=loss,
        class_weights=class_weights, accumulate=accumulate, average=average, patience=patience,
        cache_crops=cache_crops, guidance=guidance, layers=None if layers is None else tuple(layers),
        heads_kept=heads_kept,
    )  # fmt: skip
    kept = Cache(Path(cache), fingerprint(source, Path(cache), Path(out))) if cache else None
    check_settings(settings, kept, fusion, model)
    hardware = Hardware(
        accelerator, precision, workers, checkpoint_minutes=checkpoint_minutes, devices=devices, nodes=nodes,
        strategy=strategy, compile=compile, checkpoint_activations=checkpoint_activations,
    )  # fmt: skip
    hardware.check_processes()
    check_hardware(settings, hardware, len(splits["train"]), fusion, kept)
    say(source.describe())
    check_readable(source)
    origin = {"data": source.root, "backbone": backbone, "weights": weights, "pretrained": pretrained}
    begun = {"options": model.options, "first_weights": weights_digest(model), "cached": kept is not None}
    started = origin | begun | {"fusion": fusion, "seed": seed} | asdict(settings)
    with run_folder(out, started, RUN_FILE) as folder:
        made = segment_run(
            splits["train"], splits["val"], model, fusion, settings, folder, seed, hardware, cache=kept, origin=origin,
            logger=logger,
        )  # fmt: skip
    line = f"trained segmentation in {out}: regard predict --run {out} --images ... --out ..."
    if not is_first_process():
        return line
    for level in made["head_weights"]:
        heads = zip(level["heads"], level["weights"], strict=True)
        shares = ", ".join(f"{head} {100 * weight:.0f}%" for head, weight in heads)
        say(f"heads of block {level['block']} in the fusion (strength {level['strength']:.3f}): {shares}")
    run = load_run(out)
    table(summary(run, run.evaluate(splits["val"])), "val")
    return line
