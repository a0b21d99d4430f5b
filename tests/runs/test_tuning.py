"""Tuning leaves nothing behind but its choice, which is then what the same option would have been."""

import copy
import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import regard.runs.tuning as tuning
from regard.backbones import Backbone, build_backbone, normalize
from regard.cli import main
from regard.data.loading.modules import PretrainData
from regard.data.datasets.scenes import Scenes
from regard.errors import InputError
from regard.ssl.barlow_twins import BarlowTwins, barlow_twins_loss
from regard.runs.pretraining import PretrainSettings, Watch, build_method, build_views
from regard.training.trainer import StepSeed
from regard.training.hardware import Hardware
from regard.runs.tuning import draw_batches, draw_rates, smallest_near_best, steepest, tuned

VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 1}
OPTIONS: dict[str, dict[str, Any]] = {
    "barlow_twins": {"widths": (16, 16), "optimizer": "adamw"},
    "dino": {"out_dim": 16, "hidden_dim": 8, "bottleneck_dim": 8},
}


class Blobs:
    """Images with something in them to learn."""

    classes, palette, ignore_index = (), (), 255

    def __init__(self, count: int = 40) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def name(self, i: int) -> str:
        return str(i)

    def image(self, i: int) -> np.ndarray:
        rng = np.random.default_rng(i)
        return np.asarray(Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)).resize((24, 24)))


def tiny() -> Backbone:
    return build_backbone("vit_tiny_patch16_224", False, None, **VIT)


def settings_of(method: str = "barlow_twins", **changed: Any) -> PretrainSettings:
    usual: dict[str, Any] = {
        "size": 16,
        "local_size": 8,
        "local_crops": 1,
        "batch_size": 16,
        "options": OPTIONS[method],
    }
    return PretrainSettings(method, **(usual | changed))


def tune(what: Any, out: Path, backbone: Backbone | None = None, settings: PretrainSettings | None = None, **changed):
    said: list[str] = []
    hardware = Hardware("cpu", bar=False, **changed.pop("hardware", {}))
    chosen = tuned(
        what,
        changed.pop("dataset", Blobs()),
        backbone or tiny(),
        settings or settings_of(),
        out,
        0,
        hardware,
        Watch(),
        said.append,
    )
    return chosen, said


@pytest.fixture(autouse=True)
def _short(monkeypatch) -> None:
    """A few steps of a tiny model on noise: what it would choose is chance, so a fixed choice."""
    monkeypatch.setattr(tuning, "RATE_STEPS", 30)
    monkeypatch.setattr(tuning, "steepest", lambda rates, losses: float(rates[20]))


@pytest.mark.parametrize("method", OPTIONS)
def test_the_search_for_a_rate_leaves_everything_as_it_was(method: str, tmp_path) -> None:
    backbone = tiny()
    before = copy.deepcopy(backbone.state_dict())
    random_states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    settings = settings_of(method)
    chosen, said = tune("lr", tmp_path, backbone, settings)

    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert backbone.training
    assert all(p.grad is None for p in backbone.parameters())
    assert random_states[:2] == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    assert torch.equal(random_states[2], torch.get_rng_state())
    assert {path.name for path in tmp_path.iterdir()} == {"tuning-lr.json", "tuning-lr.png"}
    made = json.loads((tmp_path / "tuning-lr.json").read_text())
    assert settings.options == OPTIONS[method]
    assert chosen.options["lr"] == made["choice"]
    assert f"--lr {made['choice']:g}," in said[0]
    assert made["rate"] == pytest.approx(made["choice"] * 16 / 256)
    assert 1e-6 < made["rate"] < 1


def test_the_losses_are_those_of_the_batches_at_rates_that_grow_exponentially(tmp_path) -> None:
    """Not Lightning's running mean; and one point per optimizer step, whatever the parts."""
    backbone = tiny()
    settings = settings_of(accumulate=2)
    tune("lr", tmp_path, backbone, settings)
    points = json.loads((tmp_path / "tuning-lr.json").read_text())["points"]
    assert len(points) == 30
    rates = np.array([point["rate"] for point in points])
    assert rates[0] == pytest.approx(1e-6)
    np.testing.assert_allclose(np.diff(np.log(rates[1:])), np.log(1e6) / 30, rtol=1e-6)

    L.seed_everything(0, verbose=False)
    module = build_method(backbone, settings)
    assert isinstance(module, BarlowTwins)
    batches = iter(PretrainData(Blobs(), build_views(settings), 16, accumulate=2).train_dataloader())
    next(batches)
    views = next(batches)  # the second part of the first step
    z1, z2 = (module.projector(module.backbone(normalize(view.permute(0, 3, 1, 2))).pooled) for view in views)
    assert points[0]["loss"] == pytest.approx(float(barlow_twins_loss(z1, z2).detach()), rel=1e-4)


def test_the_steepest_fall_is_found_where_it_was_put() -> None:
    rates = np.geomspace(1e-6, 1, 100)
    fall = 10 / (1 + np.exp(3 * np.log(rates / 1e-3)))
    assert steepest(rates, fall) == pytest.approx(1e-3, rel=0.2)
    jump = fall + 100 * np.exp(-(np.log(rates / 0.1) ** 2))  # falls back from it much faster
    assert steepest(rates, jump) == pytest.approx(1e-3, rel=0.2)
    assert steepest(rates, rates) is None
    assert steepest(rates[:30], fall[:30]) is None


def test_no_choice_of_a_rate_is_one_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tuning, "RATE_STEPS", 5)
    monkeypatch.setattr(tuning, "steepest", steepest)
    with pytest.raises(InputError, match="did not fall at any rate from 1e-06 to 1 in 5 steps: pass --lr"):
        tune("lr", tmp_path)
    assert not list(tmp_path.iterdir())


def test_batches_double_up_to_the_images_and_divide_into_parts(tmp_path) -> None:
    chosen, said = tune("batch_size", tmp_path, settings=settings_of(accumulate=3), dataset=Blobs(100))
    made = json.loads((tmp_path / "tuning-batch_size.json").read_text())
    assert [trial["batch_size"] for trial in made["points"]] == [48, 96]
    assert all(trial["images_per_second"] > 0 for trial in made["points"])
    assert chosen.batch_size == made["choice"]
    assert chosen.batch_size in (48, 96)
    assert "there are 100 images" in said[0]
    assert {path.name for path in tmp_path.iterdir()} == {"tuning-batch_size.json", "tuning-batch_size.png"}


def test_a_batch_that_does_not_fit_ends_the_search(tmp_path, monkeypatch) -> None:
    def fits(most: int) -> None:
        def step(self, views, batch_index):
            if len(views[0]) > most:
                raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
            return whole(self, views, batch_index)

        monkeypatch.setattr(BarlowTwins, "training_step", step)

    whole = BarlowTwins.training_step
    for most, tried in ((40, [16, 32]), (10, [8])):
        out = tmp_path / str(most)
        out.mkdir()
        fits(most)
        chosen, said = tune("batch_size", out, dataset=Blobs(70))
        made = json.loads((out / "tuning-batch_size.json").read_text())
        assert [trial["batch_size"] for trial in made["points"]] == tried
        assert chosen.batch_size <= most
        assert f"{2 * tried[-1]} does not fit into memory" in said[0]
    fits(1)
    with pytest.raises(InputError, match="a batch of 4 does not fit into memory"):
        tune("batch_size", tmp_path / "none", dataset=Blobs(70))
    assert not (tmp_path / "none").exists() or not list((tmp_path / "none").iterdir())


def test_the_smallest_batch_within_five_percent_of_the_best_is_chosen() -> None:
    speeds = {16: 50.0, 32: 94.0, 64: 96.0, 128: 100.0, 256: 99.0}
    trials = [{"batch_size": size, "images_per_second": speed} for size, speed in speeds.items()]
    choice, best = smallest_near_best(trials)
    assert (choice["batch_size"], best["batch_size"]) == (64, 128)


def test_pictures_name_choice_and_units() -> None:
    trials = [{"batch_size": 2**k, "images_per_second": 9.0 * k, "peak_bytes": 2**30 * k} for k in range(4, 8)]
    figure = draw_batches({"choice": 128, "points": trials})
    assert [axes.get_ylabel() for axes in figure.axes] == ["images/s", "peak GPU memory, GiB"]
    assert "128" in figure.get_suptitle()
    points = [{"rate": 10.0 ** (k / 8), "loss": 10.0 - k} for k in range(-40, 1)]
    figure = draw_rates({"choice": 0.1, "rate": 0.05, "batch_size": 128, "points": points})
    assert "--lr 0.1" in figure.get_suptitle()
    assert "128 / 256" in figure.axes[0].get_xlabel()


def test_several_processes_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="--tune works with one process"):
        tune("lr", tmp_path, hardware={"devices": 2})


def test_trials_make_views_where_the_run_will(tmp_path: Path) -> None:
    """What a batch takes, of time and of memory, depends on it."""
    settings = PretrainSettings(size=32, batch_size=8, options={"widths": (16, 16), "optimizer": "adamw"})
    backbone = build_backbone("resnet18", channels=(8, 8, 16, 16))
    for where in ("cpu", "device"):
        hardware = Hardware("cpu", bar=False, views_on=where)
        _, data, _ = tuning._start(Scenes(16, size=32), backbone, settings, tmp_path, 0, hardware, 3)
        assert data.on_device == (where == "device")


def test_ctrl_c_leaves_nothing_and_the_next_call_starts_again(tmp_path) -> None:
    class Interrupted(Blobs):
        left = 60

        def image(self, i: int) -> np.ndarray:
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGINT)
            return super().image(i)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        tune("lr", tmp_path, dataset=Interrupted())
    assert signal.getsignal(signal.SIGINT) is handler
    assert not list(tmp_path.iterdir())
    tune("lr", tmp_path)


@pytest.fixture
def command(tmp_path) -> list[str]:
    (tmp_path / "images").mkdir()
    for i in range(40):
        Image.fromarray(Blobs().image(i)).save(tmp_path / "images" / f"{i}.png")
    return [
        "pretrain", "--data", str(tmp_path / "images"), "--backbone", "vit_tiny_patch16_224", "--backbone_options",
        json.dumps(VIT | {"drop_path_rate": 0.2}), "--method_options", '{"widths": [16, 16]}', "--size", "16",
        "--epochs", "2", "--batch_size", "16", "--workers", "0", "--accelerator", "cpu",
    ]  # fmt: skip


def test_a_tuned_run_is_that_with_the_choice_passed_and_goes_on_after_a_cut(command, tmp_path, monkeypatch) -> None:
    whole, passed, cut = (tmp_path / name for name in ("whole", "passed", "cut"))
    main([*command, "--out", str(whole), "--tune", "lr"])
    chosen = json.loads((whole / "tuning-lr.json").read_text())["choice"]
    main([*command, "--out", str(passed), "--lr", f"{chosen:g}"])
    ours, theirs = (load_file(folder / "backbone.safetensors") for folder in (whole, passed))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    seed_step = StepSeed.on_train_batch_start

    def stop_at_step(self, trainer, pl_module, batch, batch_idx) -> None:
        seed_step(self, trainer, pl_module, batch, batch_idx)
        if trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(StepSeed, "on_train_batch_start", stop_at_step)
        with pytest.raises(SystemExit):
            main([*command, "--out", str(cut), "--tune", "lr"])
    assert list((cut / "checkpoints").glob("*.ckpt"))
    monkeypatch.setattr(tuning, "_try_rates", None)  # the choice is read, not made again
    main([*command, "--out", str(cut), "--tune", "lr"])
    resumed = load_file(cut / "backbone.safetensors")
    assert all(torch.equal(ours[name], resumed[name]) for name in ours)
    described = [json.loads((folder / "pretrain.json").read_text()) for folder in (whole, cut)]
    assert described[0]["settings"] == described[1]["settings"]
    assert described[0]["settings"]["options"]["lr"] == chosen


def test_a_rate_that_is_passed_is_not_tuned(command, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        main([*command, "--out", str(tmp_path / "out"), "--tune", "lr", "--lr", "0.1"])
    assert "leave out --lr" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
