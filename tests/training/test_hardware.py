"""What `Hardware` says reaches Lightning and the networks, and leaves what is learnt as it is."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only as fabric_rank_zero_only
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import load_file

from commands import fails, refused
from regard.backbones import build_backbone
from regard.data.datasets.scenes import Scenes
from regard.errors import InputError
from regard.runs.pretraining import pretrain_run
from regard.say import is_first_process
from regard.settings import Hardware, PretrainSettings, SegmentSettings, Watch
from regard.ssl.barlow_twins import BarlowTwins
from regard.training import hardware
from regard.training.hardware import Meeting, check_processes
from regard.training.trainer import make_trainer, prepare

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}

OPTIONS = {"vit_tiny_patch16_224": VIT, "resnet18": {"channels": (8, 8, 16, 16)}}


def losses(
    out: Path, backbone: str = "vit_tiny_patch16_224", lr: float = 1e-2, watch: Watch = Watch(), **hardware
) -> list[float]:
    """The curve of three steps of Barlow Twins."""
    torch.manual_seed(0)
    model = build_backbone(backbone, **OPTIONS.get(backbone, {}))
    method = {"widths": (32, 32), "optimizer": "adamw", "lr": lr}
    settings = PretrainSettings(size=32, epochs=3, batch_size=16, method_options=method)
    asked = Hardware(accelerator="cpu", bar=False, **hardware)
    made = pretrain_run(Scenes(16, size=32), model, settings, out, 0, asked, watch)
    return [point["loss"] for point in made.curve]


def test_the_flags_reach_lightning(tmp_path) -> None:
    hardware = Hardware(accelerator="cpu", precision="bf16-mixed", bar=False, devices=2, nodes=3)
    trainer = make_trainer(SegmentSettings(epochs=7, accumulate=4), tmp_path, hardware, [], "", unused=True)
    assert (trainer.precision, trainer.num_devices, trainer.num_nodes) == ("bf16-mixed", 2, 3)
    assert trainer.world_size == 6
    assert trainer.strategy._ddp_kwargs == {"find_unused_parameters": True}
    assert (trainer.max_epochs, trainer.accumulate_grad_batches) == (7, 4)


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "resnet18"])
def test_checkpointed_activations_leave_the_training_as_it_is(backbone: str, tmp_path) -> None:
    """Weights, and batch statistics: a block runs twice, and counts once."""
    plain, saved = tmp_path / "plain", tmp_path / "saved"
    assert losses(saved, backbone, checkpoint_activations=True) == pytest.approx(losses(plain, backbone), rel=1e-6)
    ours, theirs = (load_file(folder / "backbone.safetensors") for folder in (saved, plain))
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-5, atol=1e-6)


def test_checkpointed_activations_are_computed_twice() -> None:
    backbone = build_backbone("resnet18", channels=(8, 8, 16, 16))
    module = BarlowTwins(backbone, (16, 16))
    prepare(module, Hardware(accelerator="cpu", checkpoint_activations=True))
    module.on_fit_start()
    runs = []
    backbone.model.layer2[0].conv1.register_forward_hook(lambda *_: runs.append(1))
    backbone(torch.randn(2, 3, 32, 32)).pooled.sum().backward()
    assert len(runs) == 2
    assert backbone.model.layer2[0].bn1.num_batches_tracked == 1


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
SRUN = {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "8", "SLURM_STEP_NUM_TASKS": "8", "SLURM_JOB_NAME": "train",
        "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}  # fmt: skip
ALONE = {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_STEP_NUM_TASKS": "1"}


@pytest.mark.parametrize(
    ("started", "devices", "message"),
    [
        (
            TORCHRUN,
            1,
            "2 processes are started, 2 on a machine, and --devices 1 --nodes 1 means 1, 1 on each: torchrun",
        ),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "1"}, 2, "2 processes are started, 1 on a machine, and --devices 2"),
        (SRUN, 1, "8 processes are started, 8 on a machine, and --devices 1 --nodes 1 means 1, 1 on each: a job with"),
        (SRUN | {"SLURM_NTASKS_PER_NODE": "4"}, 8, "8 processes are started, 4 on a machine, and --devices 8"),
        (SRUN | ALONE, 8, "1 processes are started, 1 on a machine, and --devices 8"),
        (SRUN | {"SLURM_JOB_NAME": "interactive"}, 8, "srun starts 8 processes in a job named interactive"),
    ],
)
def test_as_many_processes_are_started_as_are_meant(started, devices, message, tmp_path, capsys, monkeypatch) -> None:
    """Else each would train alone, and write where the others do."""
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    command = ["--data", "scenes", "--backbone", "resnet18", "--accelerator", "cpu", "--devices", str(devices)]
    for name in ("pretrain", "segment"):
        assert message in fails(capsys, name, *command, "--out", str(tmp_path / name))
    assert not list(tmp_path.iterdir())


ALL = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29531", "NODE_RANK": "0"}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "--nodes 2, and nothing says where they meet: set MASTER_ADDR, MASTER_PORT, NODE_RANK"),
        (ALL | {"NODE_RANK": None}, "nothing says where they meet: set NODE_RANK"),
        (ALL | {"NODE_RANK": "2"}, "NODE_RANK 2 is out of bounds: take 0 or more, up to 1"),
        (ALL | {"MASTER_PORT": "x"}, "MASTER_PORT should be a whole number, not 'x'"),
    ],
)
def test_machines_that_nothing_says_how_to_meet_are_one_line(said, message, monkeypatch) -> None:
    for name in ALL:
        if said.get(name) is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, said[name])
    refused(lambda: check_processes(Hardware(accelerator="cpu", nodes=2)), message)


@pytest.mark.parametrize("machine", ["0", "1"])
def test_machines_that_do_not_come_are_waited_for_aloud_and_not_for_ever(machine, monkeypatch, capfd) -> None:
    for name, value in (ALL | {"NODE_RANK": machine}).items():
        monkeypatch.setenv(name, value)
    for module in (rank_zero_only, fabric_rank_zero_only):
        monkeypatch.setattr(module, "rank", 0, raising=False)
    monkeypatch.setattr(hardware, "WAIT", 0.02)
    meeting = Meeting(unused=False)
    meeting.cluster_environment, meeting.num_nodes = LightningEnvironment(), 2
    meeting.parallel_devices = [torch.device("cpu")]
    refused(
        meeting.setup_distributed, "2 machines do not meet at 127.0.0.1:29531 (", "NODE_RANK of its own, would work"
    )
    place = f"machine {int(machine) + 1} of 2: all 2 processes meet at 127.0.0.1:29531"
    assert f"{place}, and are waited for up to 0.02 minutes" in capfd.readouterr().err


def test_tasks_of_srun_that_are_not_so_many_a_machine_are_one_line(monkeypatch) -> None:
    for name, value in SRUN.items():
        monkeypatch.setenv(name, value)
    check_processes(Hardware(accelerator="cpu", devices=8))
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")  # as of --ntasks alone: Lightning would raise an error of its own
    with pytest.raises(InputError, match="8 processes are started, any number of them on a machine"):
        check_processes(Hardware(accelerator="cpu", devices=8))


def test_torchrun_goes_before_the_srun_that_started_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 0, raising=False)  # a Trainer sets it, for good
    two_machines = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}
    for name, value in (SRUN | TORCHRUN | two_machines).items():
        monkeypatch.setenv(name, value)
    hardware = Hardware(accelerator="cpu", bar=False, devices=2, nodes=2)
    check_processes(hardware)
    trainer = make_trainer(SegmentSettings(epochs=1), tmp_path, hardware, [], "")
    assert (trainer.world_size, trainer.global_rank, trainer.local_rank) == (4, 3, 1)
    assert not is_first_process()
    monkeypatch.setenv("RANK", "0")
    assert is_first_process()  # though srun counts its machine as the second


def test_too_little_gpu_memory_is_one_line_and_the_folder_is_free_again(tmp_path, capsys, monkeypatch) -> None:
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(BarlowTwins, "forward", full)
    monkeypatch.setattr(BarlowTwins, "training_step", full)
    command = ["pretrain", "--data", "scenes", "--backbone", "resnet18", "--accelerator", "cpu", "--workers", "0"]
    line = fails(capsys, *command, "--size", "32", "--out", str(tmp_path / "run"))
    assert "out of GPU memory: a smaller --batch_size" in line
    assert not (tmp_path / "run").exists()


def test_mixed_precision_trains_to_nearly_the_same_loss(tmp_path) -> None:
    # at ten times this rate the steps part the two: 8% by the third, in one of three seeds
    plain = losses(tmp_path / "plain", lr=1e-3)
    mixed = losses(tmp_path / "mixed", lr=1e-3, precision="bf16-mixed")
    assert mixed == pytest.approx(plain, rel=0.03)  # bfloat16 has 8 bits; measured 0.01
    assert mixed != plain


def test_views_finished_on_the_device_train_to_nearly_the_same_loss(tmp_path) -> None:
    """The same draws, whose pixels differ by a rounding here and there."""
    on_cpu = losses(tmp_path / "cpu", lr=1e-3)
    on_device = losses(tmp_path / "device", lr=1e-3, watch=Watch(views_on="device"))
    assert on_device == pytest.approx(on_cpu, rel=0.01)
    assert on_device != on_cpu


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_networks_train_to_the_same_loss(tmp_path) -> None:
    """In a process without the run-time type checks of the tests, which torch.compile cannot see through."""
    command = [
        sys.executable, "-m", "regard", "pretrain", "--data", "scenes", "--size", "32", "--batch_size", "256",
        "--epochs", "1", "--workers", "0", "--backbone", "vit_tiny_patch16_224", "--backbone_options", json.dumps(VIT),
        "--method_options", '{"widths": [32, 32]}', "--accelerator", "cpu", "--out",
    ]  # fmt: skip
    for out, flags in (("plain", []), ("compiled", ["--compile"])):
        subprocess.run([*command, tmp_path / out, *flags], check=True, stderr=subprocess.DEVNULL)
    plain, compiled = (json.loads((tmp_path / out / "pretrain.json").read_text()) for out in ("plain", "compiled"))
    for ours, theirs in zip(compiled["curve"], plain["curve"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    weights = load_file(tmp_path / "compiled" / "backbone.safetensors")
    assert weights.keys() == load_file(tmp_path / "plain" / "backbone.safetensors").keys()


def test_activations_that_cannot_be_checkpointed_are_one_line(tmp_path) -> None:
    with pytest.raises(InputError, match="cannot checkpoint activations"):
        losses(tmp_path, "selecsls42", checkpoint_activations=True)


def test_a_batch_that_does_not_divide_among_processes_is_one_line(tmp_path) -> None:
    with pytest.raises(InputError, match="does not divide among 3 processes x 1 parts"):
        losses(tmp_path, devices=3)
