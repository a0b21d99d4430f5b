"""Segmentation in two real processes (gloo) is that in one, at sizes that do not divide; how it computes is all one."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from regard.backbones import build_backbone
from regard.data.datasets.scenes import Scenes
from regard.data.loading.modules import whole_loader
from regard.errors import InputError, Interrupted
from regard.runs import segmenting
from regard.runs.extras import Cache, Extras
from regard.runs.segmenting import segment_run
from regard.segmentation.model import SegmentationModel, has_unused
from regard.settings import Hardware
from small_runs import SETTINGS, TRAIN, VAL, VIT, vit

REGARD, SIGNALLED = ("-m", "regard"), Path(__file__).parents[1] / "signalled.py"
CONVNEXT = {"dims": [8, 16, 16, 24], "depths": [1, 1, 1, 1]}
RESNET = {"channels": [8, 16, 16, 24]}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """images/ + masks/: 33 to train on and 7 to validate with, of three sizes, and each with more of it void."""
    root = tmp_path_factory.mktemp("data")
    for split, count, seed in (("train", 33, 0), ("val", 7, 1)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            scenes = Scenes(count, size=32 + 8 * (i % 3), seed=seed)
            mask = scenes.mask(i).astype(np.uint8)
            mask[: i % 20] = 255
            Image.fromarray(scenes.image(i)).save(root / "images" / split / f"{i}.png")
            Image.fromarray(mask).save(root / "masks" / split / f"{i}.png")
    return root


def start(
    data: Path, out: Path, devices: int, backbone: str, options: dict, *more: object, program: Sequence = REGARD
) -> subprocess.Popen:
    command = [
        sys.executable, *program, "segment", "--data", data, "--backbone", backbone,
        "--backbone_options", json.dumps(options), "--head", "linear", "--size", 32, "--batch_size", 8, "--epochs", 3,
        "--workers", 0, "--accelerator", "cpu", "--devices", devices, "--out", out, *more,
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen, status: int = 0) -> str:
    _, errors = process.communicate(timeout=400)
    assert process.returncode == status, errors[-3000:]
    return errors


def run_of(out: Path) -> dict:
    return json.loads((out / "run.json").read_text())


def assert_near(ours: Path, theirs: Path) -> None:
    """Float32, and sums in another order. Adam divides a gradient by its size, so that where that is small, rounding
    moves a weight by a part of the step: 12 steps of 1e-3 at most. Measured: 4e-6. Where a gradient is all rounding, it
    moves by whole steps: the bias before a batch norm, which takes it out again, and that of keys, which no softmax
    feels. Those are left out.
    """
    one, two = (load_file(out / "model.safetensors") for out in (theirs, ours))
    assert one.keys() == two.keys()
    for name, expected in one.items():
        if name.endswith(("model.norm.bias", "qkv.bias")):
            continue
        torch.testing.assert_close(two[name], expected, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(data: Path, tmp_path) -> None:
    """Batch statistics, and a loss of parts that do not have as many labelled pixels, or as much weight."""
    balanced = ["--class_weights", "balanced", "--loss", "cross_entropy + 0.5*focal"]
    runs = [start(data, tmp_path / str(n), n, "resnet18", RESNET, *balanced) for n in (1, 2)]
    for run in runs:
        finish(run)
    assert_near(tmp_path / "2", tmp_path / "1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("average", "backbone", "options"), [("none", "vit_tiny_patch16_224", VIT), ("ema", "convnext_atto", CONVNEXT)]
)
def test_scores_of_equal_weights_are_equal_to_the_last_bit(
    average: str, backbone: str, options: dict, data: Path, tmp_path
) -> None:
    """And so is what follows from them: the best epoch, and when to stop. Seven images in batches of two: four and
    three of them. (The head's batch statistics, which differ by rounding, turn no pixel.)
    """
    still = ["--lr", 0, "--backbone_lr", 0, "--batch_size", 2, "--average", average, "--patience", 1]
    runs = [start(data, tmp_path / str(n), n, backbone, options, *still) for n in (1, 2)]
    for run in runs:
        finish(run)
    one, two = run_of(tmp_path / "1"), run_of(tmp_path / "2")
    assert [point["val_miou"] for point in one["curve"]] == [point["val_miou"] for point in two["curve"]]
    assert one["best_epoch"] == two["best_epoch"]
    accuracies = [read_metric(tmp_path / n, "val_accuracy") for n in "12"]
    assert accuracies[0] == accuracies[1] != []
    assert sorted(path.name for path in (tmp_path / "2").iterdir()) == sorted(
        path.name for path in (tmp_path / "1").iterdir()
    )


def read_metric(out: Path, name: str) -> list[str]:
    (file,) = out.rglob("metrics.csv")
    heading, *lines = (line.split(",") for line in file.read_text().splitlines())
    return [line[heading.index(name)] for line in lines if line[heading.index(name)]]


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_with_one(data: Path, tmp_path) -> None:
    """Stopped by a signal in the middle of an epoch; the head sees two heads of each level, as was chosen before."""
    options = ["--fusion", "gate", "--heads_kept", 2, "--batch_size", 2, "--epochs", 2]
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    signalled = [SIGNALLED, "SIGTERM", 10]
    options_of_cut = [*options, "--checkpoint_minutes", 0]
    stopped = start(data, cut, 2, "vit_tiny_patch16_224", VIT, *options_of_cut, program=signalled)
    assert "at step 10: saved; the same command goes on" in finish(stopped, 128 + signal.SIGTERM)
    assert not (cut / "model.safetensors").exists()
    finish(start(data, cut, 1, "vit_tiny_patch16_224", VIT, *options))
    finish(start(data, whole, 1, "vit_tiny_patch16_224", VIT, *options))
    assert_near(cut, whole)
    losses = [[point["train_loss"] for point in run_of(out)["curve"]] for out in (cut, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert run_of(cut)["kept"] == run_of(whole)["kept"] is not None


@pytest.mark.parametrize(("images", "world"), [(7, 2), (7, 3), (1, 4), (16, 2)])
def test_every_validation_image_has_one_process(images: int, world: int) -> None:
    """And the lists are those of one process, so that its forward passes are too; nobody is without a list."""
    scenes = Scenes(images, size=32)
    alone = [len(batch) for batch in whole_loader(scenes, 32, 3)]
    parts = [list(whole_loader(scenes, 32, 3, rank=rank, world=world)) for rank in range(world)]
    assert all(parts)
    found = {rank + world * k: batch for rank, part in enumerate(parts) for k, batch in enumerate(part) if batch}
    assert [len(found[i]) for i in sorted(found)] == alone
    masks = [mask for i in sorted(found) for _, mask in found[i]]
    assert len(masks) == images
    for i, mask in enumerate(masks):
        np.testing.assert_array_equal(mask.numpy(), scenes.mask(i))


def build(name: str, **options: object):
    torch.manual_seed(0)
    return build_backbone(name, **options)


@pytest.mark.parametrize(
    ("hardware", "settings", "cached", "line"),
    [
        (
            {"devices": 2},
            {"batch_size": 5},
            False,
            "5 does not divide among 2 processes x 1 parts: take a multiple of 2",
        ),
        (
            {"nodes": 3},
            {"batch_size": 9},
            False,
            "8 images .* do not fill a step of 9 .* take a batch size of 6 or less",
        ),
        ({"checkpoint_activations": True}, {"freeze": True}, False, "leave out --checkpoint_activations, or --freeze"),
        ({"devices": 2}, {"freeze": True}, True, "take --devices 1"),
        (
            {"checkpoint_activations": True},
            {"fusion": "gate"},
            False,
            "fusion gate reads attention maps, which are gone",
        ),
    ],
)
def test_what_cannot_be_is_one_line(hardware: dict, settings: dict, cached: bool, line: str, tmp_path) -> None:
    asked = Hardware(accelerator="cpu", bar=False, **hardware)
    extras = Extras(cache=Cache(tmp_path, "") if cached else None)
    with pytest.raises(InputError, match=line):
        segment_run(TRAIN, VAL, vit(), replace(SETTINGS, **settings), tmp_path, hardware=asked, extras=extras)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "resnet18"])
def test_checkpointed_activations_leave_the_training_as_it_is(backbone: str, tmp_path) -> None:
    """Weights, and batch statistics: a block runs twice, and counts once."""
    options = VIT if backbone.startswith("vit") else {"channels": (8, 8, 16, 16)}
    for name, save in (("plain", False), ("saved", True)):
        hardware = Hardware(accelerator="cpu", bar=False, checkpoint_activations=save)
        segment_run(TRAIN, VAL, build(backbone, **options), SETTINGS, tmp_path / name, hardware=hardware)
    assert_near(tmp_path / "saved", tmp_path / "plain")
    counts = [
        value for name, value in load_file(tmp_path / "saved" / "model.safetensors").items() if "num_batches" in name
    ]
    assert all(int(count) == 2 * run_of(tmp_path / "saved")["best_epoch"] for count in counts)


class Layout(L.Callback):
    """Whether the first convolution, and what its optimizer knows of it, lie in channels_last."""

    def __init__(self) -> None:
        self.last: set[bool] = set()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        weight = pl_module.model.backbone.model.conv1.weight
        state = trainer.optimizers[0].state[weight]
        tensors = (weight, state["exp_avg"], state["exp_avg_sq"])
        self.last |= {tensor.is_contiguous(memory_format=torch.channels_last) for tensor in tensors}


def test_a_convnet_is_channels_last_and_goes_on_from_a_contiguous_state(tmp_path, monkeypatch) -> None:
    """A run that was begun in another layout, as by an earlier version, ends as one that was not."""
    hardware, data = Hardware(accelerator="cpu", bar=False, checkpoint_minutes=0.0), (TRAIN, VAL)

    def train(out: Path, *callbacks: L.Callback) -> None:
        backbone = build("resnet18", channels=(8, 8, 16, 16))
        segment_run(*data, backbone, SETTINGS, out, hardware=hardware, extras=Extras(callbacks=callbacks))

    class Stop(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if trainer.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    layout, resumed = Layout(), Layout()
    train(tmp_path / "whole", layout)
    with monkeypatch.context() as patched:
        patched.setattr(segmenting, "prepare", lambda model, hardware: None)
        with pytest.raises(Interrupted):
            train(tmp_path / "cut", Stop())
    train(tmp_path / "cut", resumed)
    assert layout.last == resumed.last == {True}
    name = "backbone.model.layer1.0.conv1.weight"
    cut, whole = (load_file(tmp_path / run / "model.safetensors")[name] for run in ("cut", "whole"))
    # A fifth of one step of 1e-4. Other kernels round otherwise, which Adam enlarges where a gradient is small; moments
    # that are paired with the wrong weights move most of them further.
    far = ((cut - whole).abs() > 2e-5).float().mean()
    assert far < 0.05


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_networks_train_to_the_same_loss(data: Path, tmp_path) -> None:
    """In a process without the run-time type checks of the tests, which torch.compile cannot see through."""
    runs = [
        start(data, tmp_path / out, 1, "vit_tiny_patch16_224", VIT, "--fusion", "gate", "--epochs", 1, *flags)
        for out, flags in (("plain", []), ("compiled", ["--compile"]))
    ]
    for run in runs:
        finish(run)
    plain, compiled = run_of(tmp_path / "plain")["curve"], run_of(tmp_path / "compiled")["curve"]
    assert [p["train_loss"] for p in compiled] == pytest.approx([p["train_loss"] for p in plain], rel=1e-3)
    assert_near(tmp_path / "compiled", tmp_path / "plain")


def test_a_parameter_that_no_logit_depends_on_is_found() -> None:
    """DDP must be told of them: a ConvNeXt's last norm is for its pooled vector alone; a ResNet has none."""
    convnext, resnet = build("convnext_atto", **CONVNEXT), build("resnet18", channels=(8, 8, 16, 16))
    assert has_unused(SegmentationModel(convnext, 3, head="linear"))
    assert not has_unused(SegmentationModel(resnet, 3, head="linear"))
