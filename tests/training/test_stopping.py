"""A run that is told to stop, goes wrong or meets bad files: it says so in one line, and nothing is lost."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from processes import finish, start
from regard.cli import main
from regard.data.datasets.scenes import Scenes
from regard.data.loading.modules import PretrainData
from regard.data.loading.wrapped import SkipUnreadable, skipped
from regard.errors import InputError
from regard.training.stopping import WholeFiles, checkpoints, last_checkpoint, last_whole_checkpoint
from regard.training.trainer import StepSeed
from trees import save

REGARD, SIGNALLED = ["-m", "regard"], Path(__file__).parents[1] / "signalled.py"
VIT = '{"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3, "drop_path_rate": 0.2}'
COMMAND = [
    "pretrain", "--size", "32", "--batch_size", "32", "--workers", "0", "--backbone", "vit_tiny_patch16_224",
    "--backbone_options", VIT, "--method_options", '{"widths": [32, 32]}', "--accelerator", "cpu",
]  # fmt: skip


@pytest.mark.slow
def test_a_signal_saves_the_step_and_the_same_command_goes_on_bit_for_bit(tmp_path) -> None:
    """SIGTERM, as any job manager sends; then SIGUSR1, at which a SLURM job is put back into the queue."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = ("--data", "scenes", "--epochs", 6, "--accumulate", 2, "--checkpoint_minutes")
    uninterrupted = start(*REGARD, *COMMAND, *options, 10, "--out", whole)

    first = start(SIGNALLED, "SIGTERM", 1, *COMMAND, *options, 0, "--out", cut)
    out, errors = first.communicate(timeout=60)
    assert first.returncode == 128 + signal.SIGTERM
    assert "regard pretrain: SIGTERM at step" in errors.splitlines()[-1]
    assert "the same command goes on" in errors
    assert not out
    saved = list((cut / "checkpoints").glob("resume-*.ckpt"))
    assert f"step={errors.rpartition('at step ')[2].partition(':')[0]}.ckpt" in max(path.name for path in saved)

    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/requeued\n')
    (tools / "scontrol").chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    path = f"{tools}:{os.environ['PATH']}"
    second = start(SIGNALLED, "SIGUSR1", 1, *COMMAND, *options, 0, "--out", cut, PATH=path, **slurm)
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 128 + signal.SIGUSR1, errors
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"

    third = start(*REGARD, *COMMAND, *options, 10, "--out", cut)
    finish(third, uninterrupted)
    ours, theirs = (load_file(folder / "backbone.safetensors") for folder in (cut, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    curves = [json.loads((folder / "pretrain.json").read_text())["curve"] for folder in (cut, whole)]
    assert curves[0] == curves[1]


def run(capsys, status: int, *options: object) -> str:
    """Run here; gives the one line it ends with."""
    with pytest.raises(SystemExit) as stop:
        main([*COMMAND, *map(str, options)])
    assert stop.value.code == status
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("regard")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("parts", [1, 2])
def test_a_loss_that_is_not_finite_stops_the_run_with_step_checkpoint_and_causes(parts, tmp_path, capsys) -> None:
    """The rate is 0 at step 1; steps 2 and 3 (by rounding of another CPU, and 4) blow the weights up, to where
    the loss of the next one is not finite, in its first part already.
    """
    out, accumulated = tmp_path / "out", ("--accumulate", parts)
    line = run(capsys, 1, "--data", "scenes", "--lr", 1e6, "--out", out, "--checkpoint_minutes", 0, *accumulated)
    step = int(line.partition("the loss is not finite at step ")[2][0])
    assert step in (4, 5)
    good = out / "checkpoints" / f"resume-step={step - 2}.ckpt"
    assert f"the last good checkpoint is {good}" in line
    assert "lower --lr" in line
    assert list(good.parent.iterdir()) == [good]  # the next one held the broken weights
    weights = torch.load(good, weights_only=True)["state_dict"]
    assert all(bool(value.isfinite().all()) for value in weights.values())
    assert not (out / "backbone.safetensors").exists()
    assert "was cut short" in run(
        capsys, 2, "--data", "scenes", "--lr", 1e6, "--out", out, "--resume", "never", *accumulated
    )


def test_a_bad_image_met_late_leaves_the_checkpoints_and_other_runs_alone(tmp_path, capsys) -> None:
    """One in val/, which is read when the first epoch has ended."""
    data, out = tmp_path / "data", tmp_path / "runs" / "one"
    for split in ("train", "val"):
        for name in ("a", "b"):
            folder_of_images(data / split / name, 33 if split == "train" else 101, bad=())
    (data / "val" / "b" / "7.png").write_bytes(b"no image")
    options = ["--data", data, "--epochs", 2, "--knn_every", 1, "--out", out]
    (tmp_path / "runs" / "other").mkdir(parents=True)
    line = run(capsys, 2, *options, "--checkpoint_minutes", 0)
    assert "7.png" in line
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["resume-step=1.ckpt"]
    assert (tmp_path / "runs" / "other").is_dir()
    main([*COMMAND, *map(str, options), "--on_bad_image", "skip"])
    made = json.loads((out / "pretrain.json").read_text())
    assert (made["skipped"], made["steps"]) == (["b/7.png"], 4)
    assert [score["epoch"] for score in made["scores"]] == [1, 2]


def test_a_checkpoint_is_whole_or_not_there_on_any_disk(tmp_path, monkeypatch) -> None:
    """What is written stands beside its place until the disk has it: a crash in the middle leaves no checkpoint."""
    writer, path = WholeFiles(), tmp_path / "checkpoints" / "resume-step=1.ckpt"
    writer.save_checkpoint({"step": 1}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}

    def breaks(value, file) -> None:
        file.write(b"half")
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", breaks)
        with pytest.raises(OSError, match="No space left"):
            writer.save_checkpoint({"step": 2}, path.with_name("resume-step=2.ckpt"))
    assert last_checkpoint(tmp_path) == path


def test_a_checkpoint_of_another_name_is_none_of_the_runs(tmp_path) -> None:
    for name in ("step=2", "step=10", "step=abc", "step=3-v1", "step="):
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / f"checkpoints/resume-{name}.ckpt").touch()
    assert [path.stem for path in checkpoints(tmp_path)] == ["resume-step=2", "resume-step=10"]


def test_a_damaged_checkpoint_is_left_out_for_the_one_before(tmp_path, capsys) -> None:
    folder = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        WholeFiles().save_checkpoint({"step": torch.arange(1000)}, folder / f"resume-step={step}.ckpt")
    content = bytearray((folder / "resume-step=3.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "resume-step=3.ckpt").write_bytes(content)
    (folder / "resume-step=2.ckpt").write_bytes(content[:1000])
    assert last_whole_checkpoint(tmp_path) == folder / "resume-step=1.ckpt"
    said = capsys.readouterr().err
    assert "step=3.ckpt is damaged, and left out\n" in said
    assert "step=2.ckpt is damaged, and left out\n" in said
    (folder / "resume-step=1.ckpt").write_bytes(b"")
    with pytest.raises(InputError, match="holds no checkpoint that is whole: delete it to begin again"):
        last_whole_checkpoint(tmp_path)


def folder_of_images(root: Path, count: int, bad: tuple[int, ...]) -> Path:
    save(root / "0.png", Scenes(1, size=32).image(0))
    whole = (root / "0.png").read_bytes()
    for i in range(count):
        (root / f"{i}.png").write_bytes(whole[: len(whole) // 2] if i in bad else whole)
    return root


def test_unreadable_images_are_skipped_counted_and_named(tmp_path, capsys) -> None:
    data, out = folder_of_images(tmp_path / "data", 200, bad=(17, 130)), tmp_path / "out"
    options = ["--data", str(data), "--epochs", "1", "--batch_size", "40", "--out", str(out)]  # all of them
    assert "130.png" in (line := run(capsys, 2, *options)) or "17.png" in line
    main([*COMMAND, *options, "--on_bad_image", "skip"])
    assert json.loads((out / "pretrain.json").read_text())["skipped"] == ["130.png", "17.png"]
    assert "2 images could not be read" in capsys.readouterr().err


def test_more_than_one_unreadable_image_in_a_hundred_stops_the_run(tmp_path, capsys) -> None:
    data, out = folder_of_images(tmp_path / "data", 200, bad=(17, 60, 130)), tmp_path / "out"
    options = ("--epochs", 1, "--on_bad_image", "skip", "--workers", 1, "--batch_size", 40)
    line = run(capsys, 2, "--data", data, "--out", out, *options)
    assert "3 of 200 images cannot be read, more than 1%" in line


def test_a_skipped_image_is_replaced_together_with_its_label(tmp_path) -> None:
    class Numbers:
        classes, ignore_index, palette = ("a", "b"), 255, np.zeros((2, 3), np.uint8)

        def __len__(self) -> int:
            return 300

        def name(self, i: int) -> str:
            return f"{i}.png"

        def image(self, i: int) -> np.ndarray:
            if i in (299, 0):
                raise InputError(f"{i}.png can't be read")
            return np.full((1, 1, 3), i % 256, np.uint8)

        def label(self, i: int) -> int:
            return i % 2

    dataset = SkipUnreadable(Numbers(), tmp_path / "skipped.txt")
    assert (dataset.image(299).max(), dataset.label(299)) == (1, 1)  # 299 and 0 are bad, 1 is next
    assert (dataset.image(4).max(), dataset.label(4)) == (4, 0)
    assert skipped(tmp_path / "skipped.txt") == ["0.png", "299.png"]


def test_the_loss_of_an_accumulated_step_is_the_mean_of_its_parts(tmp_path) -> None:
    """Not a part of it: DINO's loss is a mean over images; its center alone is updated after each part."""
    options = ["--data", "scenes", "--epochs", "1", "--method", "dino", "--local_crops", "0"]
    options += ["--method_options", '{"out_dim": 32, "hidden_dim": 16}']
    for parts in (1, 4):
        main([*COMMAND, *options, "--accumulate", str(parts), "--out", str(tmp_path / str(parts))])
    whole, split = (json.loads((tmp_path / parts / "pretrain.json").read_text()) for parts in "14")
    assert whole["steps"] == split["steps"] == 16
    assert split["curve"][0]["loss"] == pytest.approx(whole["curve"][0]["loss"], rel=0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_before_the_first_step_is_no_success(number, tmp_path, capsys, monkeypatch) -> None:
    """While the data is made ready; Lightning would end with status 0, or deaf to the next Ctrl-C."""
    made = PretrainData.train_dataloader

    def told(data: PretrainData) -> DataLoader:
        os.kill(os.getpid(), number)
        return made(data)

    monkeypatch.setattr(PretrainData, "train_dataloader", told)
    said = run(capsys, 128 + number, "--data", "scenes", "--epochs", 1, "--out", tmp_path / "out")
    assert ("the same command goes on" if number == signal.SIGTERM else "interrupted") in said
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_slurm_s_warning_does_not_end_what_is_about_to_finish(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FINISHING, *COMMAND, "--data", "scenes", "--epochs", "1", "--out", str(tmp_path / "out")]
    )
    assert done.returncode == 0
    assert (tmp_path / "out/backbone.safetensors").is_file()


FINISHING = """
import os, signal, sys
from regard.cli import main
from regard.runs import pretraining

save = pretraining.save_backbone

def warned(*arguments):
    os.kill(os.getpid(), signal.SIGUSR1)
    save(*arguments)

pretraining.save_backbone = warned
main(sys.argv[1:])
"""


@pytest.mark.parametrize("workers", ["0", "1"])  # which load ahead
@pytest.mark.parametrize("step", [5, 4])  # in the middle of the last epoch; at the end of the one before
@pytest.mark.parametrize("command", ["pretrain", "segment"])
def test_a_run_stopped_anywhere_in_an_epoch_has_the_scores_of_a_whole_one(
    command, step, workers, tmp_path, monkeypatch
) -> None:
    data, options = tmp_path / "data", ["--size", "32", "--epochs", "3", "--batch_size", "4", "--workers", workers]
    scenes = Scenes(12, size=32)
    for i in range(12):  # 8 train, 4 val: two steps an epoch
        split = "train" if i < 8 else "val"
        if command == "pretrain":
            files = {data / split / ("even" if i % 2 else "odd") / f"{i}.png": scenes.image(i)}
        else:
            files = {data / kind / split / f"{i}.png": array for kind, array in
                     (("images", scenes.image(i)), ("masks", scenes.mask(i)))}  # fmt: skip
        for path, array in files.items():
            save(path, array)
    options = [command, "--data", str(data), "--backbone", "resnet18", "--accelerator", "cpu", *options]
    options += ["--backbone_options", '{"channels": [8, 8, 16, 16]}']
    options += ["--method_options", '{"widths": [16, 16]}', "--knn_every", "1"] if command == "pretrain" else []
    main([*options, "--out", str(tmp_path / "whole")])

    started = StepSeed.on_train_batch_start

    def stop(self, trainer, pl_module, batch, batch_idx) -> None:
        started(self, trainer, pl_module, batch, batch_idx)
        if trainer.global_step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(StepSeed, "on_train_batch_start", stop)
        with pytest.raises(SystemExit):
            main([*options, "--out", str(tmp_path / "cut")])
    assert (tmp_path / "cut" / "checkpoints" / f"resume-step={step}.ckpt").is_file()
    main([*options, "--out", str(tmp_path / "cut")])

    name, weights = (
        ("pretrain.json", "backbone.safetensors") if command == "pretrain" else ("run.json", "model.safetensors")
    )
    ours, theirs = (load_file(tmp_path / folder / weights) for folder in ("cut", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    cut, whole = (json.loads((tmp_path / folder / name).read_text()) for folder in ("cut", "whole"))
    assert cut["curve"] == whole["curve"]
    if command == "pretrain":
        assert cut["steps"] == whole["steps"] == 6
        assert cut["scores"] == whole["scores"]
        assert [point["epoch"] for point in whole["scores"]] == [1, 2, 3]
