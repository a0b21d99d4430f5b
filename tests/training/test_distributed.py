"""Two real processes (gloo) do what one does with the whole batch."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from processes import finish, start
from regard.training.distributed import SharedBatchStatistics
from trees import class_folders

SCRIPT = Path(__file__).with_name("record_steps.py")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["barlow_twins", "dino", "guided"])
def test_two_processes_equal_one_with_the_whole_batch(method: str, tmp_path) -> None:
    runs = [start(SCRIPT, method, devices, tmp_path, "32-true") for devices in (1, 2)]
    finish(*runs)
    one, two = (torch.load(tmp_path / f"{devices}.pt", weights_only=True) for devices in (1, 2))
    assert one.keys() == two.keys()
    gradients = [name for name in one if name.startswith("gradient")]
    assert len(gradients) > (20 if method == "guided" else 60)
    assert "buffer center" in one or method != "dino"
    largest = max(float(one[name].norm()) for name in gradients)
    for name, expected in one.items():
        # float32, and sums in another order through 20 batch norms over as few as 16 values each: 1e-4 of a tensor's
        # norm; a gradient that is zero but for rounding (a weight before a batch norm has none along itself) is
        # measured against the largest one. Adam then divides by its size, so weights agree to a part of the step, but
        # where a value of the gradient is all rounding (measured: two of 9408, at 4e-7 of the norm), which goes either
        # way by whole steps; and not a ViT's, of which that is true of whole tensors (the bias of keys: no softmax
        # feels it). There the loss of the second step tells.
        if name.startswith("weight"):
            if method == "guided":
                continue
            gradient = one.get(name.replace("weight", "gradient", 1), torch.ones_like(expected))  # a teacher has none
            told = gradient.abs() > 1e-6 * gradient.norm()
            assert told.float().mean() > 0.9 or gradient.norm() < 1e-3 * largest
            torch.testing.assert_close(
                two[name][told], expected[told], rtol=0, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
            )
            continue
        scale = max(float(expected.norm()), 1e-3 * largest if name in gradients else 0.0)
        assert float((two[name] - expected).norm()) <= 1e-4 * scale, name


@pytest.mark.slow
def test_two_processes_equal_one_in_mixed_precision_too(tmp_path) -> None:
    runs = [start(SCRIPT, "barlow_twins", devices, tmp_path, "bf16-mixed") for devices in (1, 2)]
    finish(*runs)
    one, two = (torch.load(tmp_path / f"{devices}.pt", weights_only=True) for devices in (1, 2))
    assert float(two["loss 0"]) == pytest.approx(float(one["loss 0"]), rel=0.03)  # bfloat16 has 8 bits
    for name, expected in one.items():
        if name.startswith("buffer"):
            torch.testing.assert_close(two[name], expected, rtol=0.03, atol=0.01)


def test_shared_batch_statistics_are_torchs_own_on_gpus() -> None:
    """Chosen by where the model will be: Lightning moves it there only afterwards."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    assert isinstance(SharedBatchStatistics(on_gpu=True).apply(model)[1], torch.nn.SyncBatchNorm)


@pytest.mark.slow
def test_the_command_with_two_processes_learns_what_it_learns_with_one(tmp_path) -> None:
    """Batches, order and views are those of one process; a share of every batch each. kNN is asked by both."""
    for split in ("train", "val"):
        class_folders(tmp_path / "data" / split, {"even": 17, "odd": 16})
    command = [
        "-m", "regard", "pretrain", "--data", tmp_path / "data", "--method", "barlow_twins", "--backbone", "resnet18",
        "--backbone_options", '{"channels": [8, 16, 16, 24]}', "--method_options", '{"widths": [32, 32]}',
        "--optimizer", "adamw", "--size", 32, "--batch_size", 16, "--epochs", 2, "--workers", 0, "--accelerator", "cpu",
    ]  # fmt: skip
    runs = [start(*command, "--out", tmp_path / str(devices), "--devices", devices) for devices in (1, 2)]
    finish(*runs)
    one, two = (load_file(tmp_path / devices / "backbone.safetensors") for devices in "12")
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=1e-3, atol=2e-4)
    made = [json.loads((tmp_path / devices / "pretrain.json").read_text()) for devices in "12"]
    assert made[0]["steps"] == made[1]["steps"] == 4
    assert [p["loss"] for p in made[0]["curve"]] == pytest.approx([p["loss"] for p in made[1]["curve"]], rel=1e-4)


@pytest.mark.slow
def test_knn_of_equal_weights_is_equal_in_two_processes(tmp_path) -> None:
    """No image counts twice where 33 do not divide by two. A ViT has no batch statistics, and at a rate of 0 it stays
    as it is.
    """
    for split in ("train", "val"):
        class_folders(tmp_path / "data" / split, {"even": 17, "odd": 16})
    vit = json.dumps({"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2})
    command = [
        "-m", "regard", "pretrain", "--data", tmp_path / "data", "--backbone", "vit_tiny_patch16_224",
        "--backbone_options", vit, "--method_options", '{"widths": [16, 16]}', "--lr", 0, "--size", 32,
        "--batch_size", 16, "--epochs", 1, "--workers", 0, "--accelerator", "cpu",
    ]  # fmt: skip
    runs = [start(*command, "--out", tmp_path / str(devices), "--devices", devices) for devices in (1, 2)]
    finish(*runs)
    one, two = (load_file(tmp_path / devices / "backbone.safetensors") for devices in "12")
    assert all(torch.equal(one[name], two[name]) for name in one)
    made = [json.loads((tmp_path / devices / "pretrain.json").read_text()) for devices in "12"]
    assert made[0]["scores"] == made[1]["scores"]
    assert 0 < made[0]["final"]["knn_top1"] < 100  # a score that could differ
