"""How long does a step take, and how does that grow with the batch, the resolution and the processes?

Barlow Twins with its published projector, our whole step through Lightning, on the same batch again and again (the data
path is benchmarks/views.py). One thread a process, so that two processes have what one has, twice. To the
seconds of a step over one process's images is fitted, by non-negative least squares on relative errors,

    ResNet: fixed + per_pixel * images * pixels
    ViT:    fixed + per_token * images * tokens + per_pair * images * tokens^2

where `fixed` is what does not depend on the images: optimizer, projector weights, callbacks. The largest point is left
out of the fit and predicted. FLOPs of an image, forward and backward of both views, are counted.

    python benchmarks/scaling.py --out results/scaling.json
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from scipy.optimize import nnls
from side_by_side import show, spread, table, write
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from regard.backbones import Backbone, build_backbone
from regard.runs.pretraining import build_method
from regard.settings import Hardware, PretrainSettings
from regard.training.trainer import StepSeed, make_trainer, prepare

BACKBONES = {"resnet50": "resnet50", "vit-s/16": "vit_small_patch16_224"}
POINTS = [(96, 4), (96, 16), (160, 4), (160, 8), (224, 4), (224, 8)]  # side, images of a process; last: held out
SHARED = [(160, 4)]  # with two processes too
WARMUP = 2


def build(name: str, size: int) -> Backbone:
    """A backbone for views of this side."""
    torch.manual_seed(0)
    return build_backbone(BACKBONES[name], **({"img_size": size} if name.startswith("vit") else {}))


class Steps(L.Callback):
    """Seconds from the start of one step to that of the next."""

    def __init__(self) -> None:
        self.started: list[float] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        """Note the time; the GPU's work is done by then."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.started.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        """Without those that warm up."""
        return [after - before for before, after in pairwise(self.started)][WARMUP:]


def measure(point: dict[str, Any], out: Path) -> None:
    """The seconds of some steps of one point, into a file; Lightning starts this again for the other processes."""
    torch.set_num_threads(1)
    size, images = point["size"], point["images"]
    settings = PretrainSettings(size=size, epochs=1, batch_size=images * point["processes"])
    hardware = Hardware(accelerator=point["accelerator"], bar=False, devices=point["processes"])
    module = build_method(build(point["backbone"], size), settings)
    prepare(module, hardware)
    views = [torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8) for _ in range(2)]
    batches = DataLoader([views] * (WARMUP + point["steps"] + 1), batch_size=None)  # type: ignore[arg-type]
    steps = Steps()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(PretrainSettings(epochs=1), Path(folder), hardware, [steps, StepSeed(0)], "")
        trainer.fit(module, batches)
        if trainer.is_global_zero:
            out.write_text(json.dumps(steps.seconds))


def measured(point: dict[str, Any]) -> list[float]:
    """The same from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "seconds.json")
        command = [sys.executable, __file__, "--measure", json.dumps(point), "--out", str(out)]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
        return json.loads(out.read_text())


def flops(name: str, size: int) -> int:
    """Of one image: both views through backbone and projector, forward and backward; a multiply-add is two."""
    module = build_method(build(name, size), PretrainSettings(size=size, batch_size=2))
    views = torch.zeros(2, 3, size, size)
    with FlopCounterMode(display=False) as counter:
        module.projector(module.backbone(views).pooled).sum().backward()  # type: ignore[operator]
    return counter.get_total_flops()


def terms(name: str, size: int, images: int) -> list[float]:
    """What the coefficients multiply."""
    if name.startswith("vit"):
        tokens = (size // 16) ** 2 + 1
        return [1.0, images * tokens, images * tokens**2]
    return [1.0, images * size**2]


def fit(name: str, seconds: dict[tuple[int, int], float]) -> np.ndarray:
    """The coefficients that make the sum of squared relative errors least."""
    rows = np.array([terms(name, *point) for point in seconds])
    times = np.array(list(seconds.values()))
    scale = rows.max(axis=0)  # of very different sizes
    return nnls(rows / scale / times[:, None], np.ones(len(times)))[0] / scale


def main() -> None:
    """Measure in turn, fit, print a table, write JSON."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--measure", type=json.loads, help="one point, as JSON; the seconds of its steps go to --out")
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.out)
        return
    accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    points = [
        {"backbone": name, "size": size, "images": images, "processes": processes}
        for name in BACKBONES
        for processes, sizes in ((1, POINTS), (2, SHARED))
        for size, images in sizes
        if processes <= (torch.cuda.device_count() if accelerator == "gpu" else 2)
    ]
    seconds: list[list[float]] = [[] for _ in points]
    for _ in range(arguments.rounds):  # rounds, so that a slow spell of the machine does not hit one point alone
        for taken, point in zip(seconds, points, strict=True):
            taken += measured(point | {"steps": arguments.steps, "accelerator": accelerator})
    results, rows = {}, []
    for name in BACKBONES:
        of = {
            (point["size"], point["images"], point["processes"]): taken
            for point, taken in zip(points, seconds, strict=True)
            if point["backbone"] == name
        }
        alone = {key[:2]: statistics.median(taken) for key, taken in of.items() if key[2] == 1}
        held_out = POINTS[-1]
        coefficients = fit(name, {point: time for point, time in alone.items() if point != held_out})
        predicted = {point: float(np.dot(terms(name, *point), coefficients)) for point in alone}
        counted = {size: flops(name, size) for size in sorted({size for size, _ in alone})}
        results[name] = {
            "points": [
                {"size": size, "images_per_process": images, "processes": processes, "seconds": spread(taken)}
                for (size, images, processes), taken in of.items()
            ],
            "coefficients": dict(
                zip(
                    ("fixed", "per_token", "per_pair") if name.startswith("vit") else ("fixed", "per_pixel"),
                    map(float, coefficients),
                    strict=True,
                )
            ),
            "largest_error_of_fit": max(abs(predicted[p] / alone[p] - 1) for p in alone if p != held_out),
            "held_out": {
                "size": held_out[0],
                "images": held_out[1],
                "predicted": predicted[held_out],
                "measured": alone[held_out],
            },
            "flops_per_image": counted,
            "two_processes_over_one": {
                f"{size}px, {images} each": statistics.median(of[size, images, 2]) / alone[size, images]
                for size, images in SHARED
                if (size, images, 2) in of
            },
        }
        for (size, images, processes), taken in of.items():
            median = statistics.median(taken)
            rows.append([
                name, str(size), str(images), str(processes), show(spread(taken), digits=2),
                f"{predicted[size, images]:.2f}" if processes == 1 else "",
                f"{median / images / processes * 1000:.0f}",
                f"{counted[size] * images / median / 1e9:.0f}",
            ])  # fmt: skip
    config = {"method": "barlow_twins", "widths": [8192] * 3, "optimizer": "lars", "threads_per_process": 1}
    write(arguments.out, ["timm", "lightning"], config, results)
    print(
        table(["backbone", "px", "images each", "processes", "s a step", "fitted", "ms an image", "GFLOP/s each"], rows)
    )


if __name__ == "__main__":
    main()
