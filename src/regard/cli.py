"""The command line: a dict of typed functions. What a flag means is in its function's docstring.

torch is imported inside the functions, not here, so that `--help` answers at once.
"""

import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NoReturn

from jsonargparse import ArgumentParser, set_parsing_settings

from regard.errors import InputError, Interrupted, TrainingStopped, unknown

Accelerator = Literal["auto", "cpu", "gpu"]
Precision = Literal["auto", "32-true", "16-mixed", "bf16-mixed"]
# The least that a number may be, wherever it is an option.
LEAST = dict.fromkeys(
    ("epochs", "batch_size", "size", "local_size", "seeds", "jobs", "devices", "nodes", "accumulate"), 1
) | dict.fromkeys(("workers", "seed", "local_crops", "lr", "backbone_lr", "checkpoint_minutes", "knn_every"), 0)


def demo(out: str = "runs/demo", jobs: int | None = None) -> str:
    """Run the whole path on the built-in scenes: pre-train, segment, compare, report. Minutes on two CPU cores.

    Args:
        out: Folder of the comparison; a second call goes on where the first one stopped.
        jobs: Trainings side by side; by default as many as suit this machine.
    """
    return compare("scenes", "tiny", out, jobs=jobs)


def compare(
    data: str,
    preset: str = "tiny",
    out: str = "runs/compare",
    seeds: int | None = None,
    baselines: bool = False,
    size: int | None = None,
    jobs: int | None = None,
    workers: int = 0,
    accelerator: Accelerator = "auto",
    precision: Precision = "auto",
) -> str:
    """Compare backbones, pre-trainings and attention fusions on the same images, and write a report.

    Args:
        data: `scenes`, or a path whose layout is recognised: images/ + masks/, or VOC2012.
        preset: `tiny` (minutes on a CPU), `small` (for one GPU) or `full` (ResNet-50, Swin-T, ViT-S/16).
        out: Folder of the comparison; a second call goes on where the first one stopped.
        seeds: How many seeds each configuration is trained with; by default the preset's.
        baselines: Also the baselines: no fusion, another fusion, random weights.
        size: Short side of the images in pixels; by default the preset's.
        jobs: Trainings side by side; by default 1 on a GPU, and as many as the cores suit (at most 4) on a CPU.
        workers: Processes that load images, per training.
        accelerator: `auto` takes a GPU where there is one.
        precision: `auto` is bf16-mixed on a GPU, else 32-true.
    """
    from regard.data.layout import check_readable, open_source
    from regard.studies.compare import compare as run
    from regard.studies.jobs import default_jobs
    from regard.studies.presets import preset as choose
    from regard.studies.training import Hardware

    scenes_size = choose(preset, size).segment.size
    source = open_source(data, scenes_size=scenes_size)
    hardware = Hardware(accelerator, precision, workers)
    jobs = jobs or default_jobs(hardware)
    check_readable(source)
    command = f"regard compare --data {shlex.quote(data)} --preset {preset} --out {shlex.quote(out)}"
    command += f" --seeds {seeds}" * bool(seeds) + f" --size {size}" * bool(size) + " --baselines" * baselines
    report_path = run(source, preset, Path(out), seeds, baselines, size, jobs, hardware, command)
    return f"open {report_path} for the comparison"


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
    accumulate: int = 1,
    compile: bool = False,
    checkpoint_activations: bool = False,
    checkpoint_minutes: float = 10.0,
    backbone_options: dict[str, Any] | None = None,
    method_options: dict[str, Any] | None = None,
) -> str:
    """Train a backbone on images without labels, or, as the baseline, on class folders with them.

    Args:
        data: `scenes`, or a path: any folder of images will do; for `supervised`, class folders.
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
        strategy: How Lightning joins the processes, such as `ddp`.
        accumulate: Forward passes per step; see docs/pretraining.md for what that does to Barlow Twins.
        compile: Compile the networks with torch.compile.
        checkpoint_activations: Spend time to save memory: compute activations again in the backward pass.
        checkpoint_minutes: How often to save what a killed run goes on from.
        backbone_options: Passed to timm, such as {"img_size": 64, "patch_size": 8}.
        method_options: Passed to the method, such as {"lambda_": 0.0051} or {"out_dim": 4096}.
    """
    import torch

    from regard.backbones import build_backbone
    from regard.data.layout import open_source
    from regard.studies.folders import run_folder
    from regard.studies.pretraining import (
        METHODS,
        PRETRAIN_FILE,
        PretrainSettings,
        Watch,
        labelled_splits,
        pretrain_run,
    )
    from regard.studies.training import Hardware
    from regard.studies.tuning import tuned

    if method not in METHODS:
        raise unknown("method", method, METHODS)
    source = open_source(data, scenes_size=size)
    _say(source.describe())
    queries = source.splits.get("val", source.splits.get("test")) if source.has_labels else None
    train = source.split("train")
    if method == "supervised":
        train, queries = labelled_splits(source)
        if "val" not in source.splits:
            _say(f"no val/, so a fixed fifth of the images, {len(queries):,}, is held out of training")
    torch.manual_seed(seed)
    model = build_backbone(backbone, pretrained, weights, **(backbone_options or {}))
    hardware = Hardware(
        accelerator, precision, workers, checkpoint_minutes=checkpoint_minutes, devices=devices, nodes=nodes,
        strategy=strategy, compile=compile, checkpoint_activations=checkpoint_activations,
    )  # fmt: skip
    options = dict(method_options or {}) | ({} if lr is None else {"lr": lr}) | ({"loss": loss} if loss else {})
    if method == "barlow_twins":
        options = {"optimizer": optimizer or ("adamw" if model.heads else "lars")} | options
    elif method == "supervised":
        options = ({"optimizer": optimizer} if optimizer else {}) | options
    elif optimizer:
        raise InputError("DINO trains with AdamW: --optimizer is for Barlow Twins")
    if tune == "lr" and lr is not None:
        raise InputError("--tune lr chooses the rate: leave out --lr, or --tune")
    settings = PretrainSettings(method, size, local_size, local_crops, epochs, batch_size, options, accumulate, average)
    started = {"data": source.root, "backbone": model.name, "options": model.options, "seed": seed, **asdict(settings)}
    started["tune"] = tune  # and not what it chose: a run cut short is the same run before and after the choice
    watch = Watch(logger, on_bad_image, knn_every, on_collapse)
    with run_folder(out, started, PRETRAIN_FILE, may_resume=resume == "auto" or not _is_first_process()) as folder:
        if tune:
            settings = tuned(tune, train, model, settings, folder, seed, hardware, watch, _say)
        made = pretrain_run(train, model, settings, folder, seed, hardware, watch=watch, queries=queries)
    if made["skipped"]:
        _say(f"{len(made['skipped'])} images could not be read: they are named in {out}/pretrain.json")
    scores = ", ".join(f"{name} {score:.1f}%" for name, score in made["final"].items())
    return (
        f"pre-trained backbone in {out}{f' ({scores})' if scores else ''}: regard segment --backbone {out} --data ..."
    )


def segment(
    data: str,
    backbone: str = "resnet50",
    out: str = "runs/segment",
    fusion: str = "none",
    head: str = "segformer",
    size: int = 224,
    epochs: int = 50,
    batch_size: int = 16,
    lr: float = 1e-3,
    backbone_lr: float = 1e-4,
    freeze: bool = False,
    weights: str | None = None,
    pretrained: bool = False,
    seed: int = 0,
    workers: int = 4,
    accelerator: Accelerator = "auto",
    precision: Precision = "auto",
    checkpoint_minutes: float = 10.0,
    backbone_options: dict[str, Any] | None = None,
) -> str:
    """Train a segmentation on images with masks, and score the best epoch.

    Args:
        data: `scenes`, or a path: images/ + masks/, or VOC2012.
        backbone: A timm model, or what `regard pretrain` made (its folder or file).
        out: Folder for the run; a second call goes on with a run cut short.
        fusion: How the backbone's attention reaches the head: none, concat, gate or propagate.
        head: linear or segformer.
        size: Short side of the images, and side of the training crops, in pixels.
        epochs: Passes over the images.
        batch_size: Images per step.
        lr: Peak rate of fusion and head.
        backbone_lr: Peak rate of the backbone.
        freeze: Leave the backbone as it is.
        weights: A checkpoint file for the backbone: Barlow Twins, DINO, torchvision or timm.
        pretrained: timm's published weights for the backbone.
        seed: Of weights, order and crops.
        workers: Processes that load images.
        accelerator: `auto` takes a GPU where there is one.
        precision: `auto` is bf16-mixed on a GPU, else 32-true.
        checkpoint_minutes: How often to save what a killed run goes on from.
        backbone_options: Passed to timm, such as {"img_size": 64, "patch_size": 8}.
    """
    import torch

    from regard.backbones import build_backbone
    from regard.data.layout import check_readable, open_source, require_masks
    from regard.segmentation.fusion import build_fusion
    from regard.segmentation.heads import HEADS
    from regard.studies.folders import run_folder
    from regard.studies.runs import RUN_FILE, SegmentSettings, load_run, segment_run, summary
    from regard.studies.training import Hardware

    if head not in HEADS:
        raise unknown("head", head, HEADS)
    source = open_source(data, scenes_size=size)
    splits = require_masks(source)
    for split in ("train", "val"):
        source.split(split)
    torch.manual_seed(seed)
    model = build_backbone(backbone, pretrained, weights, **(backbone_options or {}))
    build_fusion(fusion, model)  # so that a wrong name is said before anything is read or written
    _say(source.describe())
    check_readable(source)
    settings = SegmentSettings(
        size, head=head, freeze=freeze, epochs=epochs, batch_size=batch_size, lr=lr, backbone_lr=backbone_lr
    )
    hardware = Hardware(accelerator, precision, workers, checkpoint_minutes=checkpoint_minutes)
    started = {"data": source.root, "backbone": backbone, "fusion": fusion, "seed": seed, **asdict(settings)}
    with run_folder(out, started, RUN_FILE) as folder:
        segment_run(splits["train"], splits["val"], model, fusion, settings, folder, seed, hardware)
    run = load_run(out)
    _table(summary(run, run.evaluate(splits["val"])), "val")
    return f"trained segmentation in {out}: regard predict --run {out} --images ... --out ..."


def evaluate(run: str, data: str, split: str | None = None) -> str:
    """Score a trained segmentation: dataset-level mIoU, pixel accuracy, IoU per class.

    Args:
        run: Folder of `regard segment`, or a cell of `regard compare`.
        data: `scenes`, or a path with masks of the same classes.
        split: train, val or test; by default test where there is one, else val.
    """
    from regard.data.layout import open_source, require_masks
    from regard.studies.folders import write_json
    from regard.studies.runs import load_run, summary

    loaded = load_run(run)
    source = open_source(data, scenes_size=loaded.size)
    splits = require_masks(source)
    split = split or ("test" if "test" in splits else "val")
    source.split(split)
    result = summary(loaded, loaded.evaluate(splits[split]))
    _table(result, split)
    path = Path(run) / f"evaluation-{split}.json"
    write_json(path, {"data": source.describe(), "split": split, **result})
    return f"scores in {path}"


def predict(run: str, images: list[str], out: str) -> str:
    """Segment images: an indexed PNG with the classes' colours for each, at the image's own size.

    Args:
        run: Folder of `regard segment`, or a cell of `regard compare`.
        images: Files, or folders of images at any depth.
        out: Folder for the masks.
    """
    from PIL import Image
    from rich.progress import track

    from regard.studies.runs import load_run

    loaded = load_run(run)
    files = _outputs(images, out)
    for file, path in track(files.items(), "segmenting", transient=True, console=_console()):
        mask = Image.fromarray(loaded.predict(file)).convert("P")
        mask.putpalette(loaded.palette.flatten().tolist())
        path.parent.mkdir(parents=True, exist_ok=True)
        mask.save(path)
    return f"{len(files)} masks in {out}"


def attention(
    backbone: str,
    images: list[str],
    out: str = "runs/attention",
    size: int = 224,
    weights: str | None = None,
    pretrained: bool = False,
    backbone_options: dict[str, Any] | None = None,
) -> str:
    """Draw what each attention head looks at: one mosaic per image, blocks down and heads across.

    Args:
        backbone: A timm ViT or Swin, or what `regard pretrain` made.
        images: Files, or folders of images at any depth.
        out: Folder for the pictures.
        size: Short side that images are brought to, in pixels.
        weights: A checkpoint file for the backbone: DINO or timm.
        pretrained: timm's published weights for the backbone.
        backbone_options: Passed to timm, such as {"img_size": 64, "patch_size": 8}.
    """
    import numpy as np
    import torch
    from PIL import Image
    from rich.progress import track

    from regard.attention.draw import mosaic
    from regard.backbones import build_backbone, normalize
    from regard.data.augment import resize, short_side
    from regard.data.datasets import read_image

    model = build_backbone(backbone, pretrained, weights, **(backbone_options or {})).eval()
    if not model.heads:
        raise InputError(f"{model.name} has no attention maps: use a ViT or a Swin")
    files = _outputs(images, out)
    for file, path in track(files.items(), "drawing", transient=True, console=_console()):
        pixels = read_image(file)
        pixels = resize(pixels, (0, 0, *pixels.shape[:2]), short_side(pixels.shape[:2], size))
        batch = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).unsqueeze(0)
        with torch.inference_mode():
            maps = model(normalize(batch), attention=True).attention
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mosaic(pixels, [m.weights[0].numpy() for m in maps])).save(path)
    return f"{len(files)} mosaics of {maps[0].kind} attention in {out}: levels down, heads across"


def report(directory: str) -> str:
    """Make the report of a comparison again, from its results.json alone.

    Args:
        directory: Folder of `regard compare`.
    """
    from regard.studies.report import write_report

    return f"open {write_report(Path(directory))}"


def info(source: str) -> str:
    """Say what a path holds: layout, images, classes.

    Args:
        source: A path, or `scenes`.
    """
    from regard.data.layout import open_source

    return open_source(source).describe()


COMMANDS: dict[str, Callable[..., str]] = {
    "demo": demo,
    "pretrain": pretrain,
    "attention": attention,
    "segment": segment,
    "evaluate": evaluate,
    "predict": predict,
    "compare": compare,
    "report": report,
    "data": info,
}
POSITIONAL = ("report", "data")  # `regard report DIR`, `regard data SRC`


class _Parser(ArgumentParser):
    """A wrong option is one line too."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        line = " ".join(message.split())
        print(f"regard: {line} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def build_parser() -> ArgumentParser:
    """A subcommand per function, with its arguments, `--config FILE.yaml` and `--print_config`."""
    set_parsing_settings(docstring_parse_attribute_docstrings=False)
    parser = _Parser(
        prog="regard", description="Learn from images without labels, read the attention, segment with it, and compare."
    )
    commands = parser.add_subcommands(metavar="COMMAND")
    for name, function in COMMANDS.items():
        first = (function.__doc__ or "").strip().splitlines()[0]
        command = _Parser(prog=f"regard {name}", description=first)
        command.add_argument("--config", action="config", help="A YAML file with any of these options.")
        command.add_function_arguments(function, as_positional=name in POSITIONAL)
        for action in command._actions:  # `--baselines` alone means true
            if getattr(action, "_typehint", None) is bool:
                action.nargs, action.const = "?", True
        commands.add_subcommand(name, command, help=first)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command: its last line says what was made; a wrong input is one line, and exit status 2."""
    arguments = _spread_images(list(sys.argv[1:] if argv is None else argv))
    parser = build_parser()
    if not arguments:
        parser.print_help()
        return
    options = parser.parse_args(arguments)
    values = options[options.subcommand].as_dict()
    values.pop("config", None)
    try:
        for name, value in values.items():
            if name in LEAST and value is not None and value < LEAST[name]:
                raise InputError(f"--{name} {value} is too small: take {LEAST[name]} or more")
        made = COMMANDS[options.subcommand](**values)
        if _is_first_process():
            print(made)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(f"regard {options.subcommand}: {error.strerror or error}{where}", file=sys.stderr)
        raise SystemExit(2) from None
    except InputError as error:
        # an error from a loading process comes with its traceback; the last line is the message
        line = str(error).strip().splitlines()[-1].removeprefix("regard.errors.InputError: ")
        print(f"regard {options.subcommand}: {line}", file=sys.stderr)
        raise SystemExit(2) from None
    except TrainingStopped as error:
        if _is_first_process():
            print(f"regard {options.subcommand}: {error}", file=sys.stderr)
        raise SystemExit(128 + error.signum if isinstance(error, Interrupted) else 1) from None
    except KeyboardInterrupt:
        print(f"regard {options.subcommand}: interrupted; what was finished is kept", file=sys.stderr)
        raise SystemExit(130) from None


def _spread_images(arguments: list[str]) -> list[str]:
    """`--images A B C` as one JSON list, which is how jsonargparse takes lists."""
    if "--images" not in arguments:
        return arguments
    start = arguments.index("--images") + 1
    end = next((i for i in range(start, len(arguments)) if arguments[i].startswith("--")), len(arguments))
    return [*arguments[: start - 1], f"--images={json.dumps(arguments[start:end])}", *arguments[end:]]


def _outputs(paths: Sequence[str], out: str) -> dict[Path, Path]:
    """The PNG in `out` for every image in these files and folders, under its own name.

    Raises InputError for a path that is not there, and where a PNG would take the place of an image or of another PNG.
    """
    from regard.data.datasets import list_images

    made: dict[Path, Path] = {}
    for path in map(Path, paths):
        if path.is_dir():
            made |= {path / name: (Path(out) / name).with_suffix(".png") for name in list_images(path)}
        elif path.is_file():
            made[path] = (Path(out) / path.name).with_suffix(".png")
        else:
            raise InputError(f"no file or folder at {path}")
    if not made:
        raise InputError(f"no images in {', '.join(paths)}")
    sources = {file.resolve() for file in made}
    targets: dict[Path, Path] = {}
    for file, target in made.items():
        if target.resolve() in sources:
            raise InputError(f"{target} is one of the images, and would be written over: choose another --out")
        if target in targets:
            raise InputError(f"{file} and {targets[target]} would both become {target}: do them one after the other")
        targets[target] = file
    return made


def _table(result: dict[str, Any], split: str) -> None:
    from rich.table import Table

    table = Table("class", "IoU %", title=f"{split}: {result['images']} images")
    for name, iou in result["iou"].items():
        table.add_row(name, "-" if iou is None else f"{100 * iou:.1f}")
    table.add_section()
    table.add_row("mIoU", f"{100 * result['miou']:.1f}")
    table.add_row("pixel accuracy", f"{100 * result['pixel_accuracy']:.1f}")
    _console().print(table)


def _say(line: str) -> None:
    if _is_first_process():
        _console().print(line)


def _is_first_process() -> bool:
    """Not one of the further processes that training with several devices starts: they run the same command."""
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")  # Lightning, torchrun, SLURM
    return all(int(os.environ.get(name, 0)) == 0 for name in ranks)


def _console() -> Any:
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)
