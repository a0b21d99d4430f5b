"""The command that searches for settings: sweep."""

import inspect
import json
import shlex
from pathlib import Path
from typing import Any

from regard.cli.common import Accelerator, Precision


def sweep(
    data: str,
    backbone: str = "resnet50",
    out: str = "runs/sweep",
    trials: int = 20,
    jobs: int = 1,
    space: str | None = None,
    head: str = "segformer",
    size: int = 224,
    epochs: int = 50,
    batch_size: int = 16,
    prune: bool = True,
    weights: str | None = None,
    pretrained: bool = False,
    seed: int = 0,
    workers: int = 4,
    accelerator: Accelerator = "auto",
    precision: Precision = "auto",
    backbone_options: dict[str, Any] | None = None,
) -> str:
    """Search for the settings of a segmentation that score best on val, and write a report and a config of the best.

    Args:
        data: `scenes`; a path: images/ + masks/, VOC 2012, COCO-Stuff, ADE20K, Oxford-IIIT Pet, CamVid; a pack's URL.
        backbone: A timm model, or what `regard pretrain` made (its folder or file).
        out: Folder of the sweep; a second call goes on, one beside the first works on the same trials.
        trials: How many in all, of all calls together.
        jobs: Trials side by side, in processes.
        space: A YAML file of options of `regard segment`, each with {low, high, log, step}, a list of choices, or one
            value; by default rates, weight decay, class weights and fusion.
        head: linear, fcn, unet, setr_pup, segformer, upernet or deeplabv3plus; the space may have it instead.
        size: Short side of the images in pixels.
        epochs: Passes over the images, of each trial.
        batch_size: Images per step; the space may have it instead.
        prune: Give up a trial that is below the median of the others at an epoch, after the first quarter.
        weights: A checkpoint file for the backbone: Barlow Twins, DINO, torchvision or timm.
        pretrained: timm's published weights for the backbone.
        seed: Of weights, order, crops, and of what is tried.
        workers: Processes that load images, per trial.
        accelerator: `auto` takes a GPU where there is one.
        precision: `auto` is bf16-mixed on a GPU, else 32-true.
        backbone_options: Passed to timm, such as {"img_size": 64, "patch_size": 8}.
    """
    command = _typed(locals())

    from regard.data.source import check_readable, open_source
    from regard.studies.space import default_space, read_space
    from regard.studies.sweep import Pretrained, Sweep, run_sweep
    from regard.studies.sweep_results import best_command
    from regard.training.hardware import Hardware

    given = read_space(space) if space else None  # what is wrong in it is said before anything is read or built
    source = open_source(data, scenes_size=size)
    chosen = Pretrained(backbone, pretrained, weights, backbone_options or {})
    fixed = {"head": head, "batch_size": batch_size}
    given = given or default_space(chosen.build(seed))
    fixed = {name: value for name, value in fixed.items() if name not in given.varied | given.fixed}
    hardware = Hardware(accelerator, precision, workers)
    check_readable(source)
    made = run_sweep(
        Sweep(source, chosen, given, Path(out), size, epochs, fixed, seed, prune, hardware), trials, jobs, command
    )
    best = made["best"]
    score = f"best on val: trial {best['number']}, mIoU {100 * best['miou']:.1f}%"
    return f"{score}; open {Path(out) / 'report.html'}; to train it again: {best_command(Path(out))}"


def _typed(options: dict[str, Any]) -> str:
    """The command with these options, without those that have their default."""
    usual = {name: parameter.default for name, parameter in inspect.signature(sweep).parameters.items()}
    words = ["regard", "sweep"]
    for name, value in options.items():
        if value != usual[name]:
            words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return shlex.join(words)
