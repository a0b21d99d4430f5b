"""A run that is killed in the middle of an epoch goes on to exactly the weights and curve of one that was not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

REGARD, SIGNALLED = ["-m", "regard"], str(Path(__file__).parents[1] / "signalled.py")
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
    ],
}  # fmt: skip


def start(program: list[str], arguments: list[str], out: Path, minutes: float) -> subprocess.Popen:
    command = [sys.executable, *program, *arguments, "--out", str(out), "--checkpoint_minutes", str(minutes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_goes_on_bit_for_bit(name: str, tmp_path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    uninterrupted = start(REGARD, RUNS[name], whole, 10)

    killed = start([SIGNALLED, "SIGKILL", "21"], RUNS[name], cut, 0)  # of 16 an epoch
    assert killed.wait(120) == -signal.SIGKILL
    assert not list(cut.glob("*.safetensors"))

    assert start(REGARD, RUNS[name], cut, 10).wait(120) == 0
    assert uninterrupted.wait(120) == 0
    file = "model.safetensors" if name == "segment" else "backbone.safetensors"
    ours, theirs = load_file(cut / file), load_file(whole / file)
    assert ours.keys() == theirs.keys()
    assert all(bool((ours[key] == theirs[key]).all()) for key in ours)
    description = "run.json" if name == "segment" else "pretrain.json"
    curves = [json.loads((folder / description).read_text())["curve"] for folder in (cut, whole)]
    assert curves[0] == curves[1]
    assert not (cut / "checkpoints").exists()
