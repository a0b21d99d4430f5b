"""A run that is killed in the middle of an epoch goes on to exactly the weights and curve of one that was not."""

import json
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from processes import finish, start

SIGNALLED = Path(__file__).parents[1] / "signalled.py"
VIT = '{"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3, "drop_path_rate": 0.2}'
PRETRAIN = [
    "pretrain", "--data", "scenes", "--size", "32", "--local_size", "16", "--local_crops", "2", "--batch_size", "32",
    "--epochs", "3", "--workers", "1", "--seed", "1", "--backbone", "vit_tiny_patch16_224", "--backbone_options", VIT,
]  # fmt: skip
RUNS = {
    "barlow_twins": [*PRETRAIN, "--method", "barlow_twins", "--method_options", '{"widths": [32, 32]}'],
    "dino": [*PRETRAIN, "--method", "dino", "--method_options", '{"out_dim": 64, "hidden_dim": 32}'],
    "segment": [
        "segment", "--data", "scenes", "--size", "32", "--batch_size", "32", "--epochs", "3", "--workers", "1",
        "--backbone", "vit_tiny_patch16_224", "--backbone_options", VIT, "--fusion", "gate",
        "--refiner", "affinity",
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_goes_on_bit_for_bit(name: str, tmp_path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    uninterrupted = start("-m", "regard", *RUNS[name], "--out", whole)

    options = (*RUNS[name], "--out", cut, "--checkpoint_minutes", 0)
    killed = start(SIGNALLED, "SIGKILL", 21, *options)  # of 16 an epoch
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert not list(cut.glob("*.safetensors"))

    finish(start("-m", "regard", *RUNS[name], "--out", cut), uninterrupted)
    file = "model.safetensors" if name == "segment" else "backbone.safetensors"
    ours, theirs = load_file(cut / file), load_file(whole / file)
    assert ours.keys() == theirs.keys()
    assert all(bool((ours[key] == theirs[key]).all()) for key in ours)
    description = "run.json" if name == "segment" else "pretrain.json"
    curves = [json.loads((folder / description).read_text())["curve"] for folder in (cut, whole)]
    assert curves[0] == curves[1]
    assert not (cut / "checkpoints").exists()
