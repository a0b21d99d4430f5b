"""Training a segmentation: what its settings promise, averages of its weights, features of a frozen backbone kept."""

import json
import os
import pickle
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from commands import fails
from regard.backbones import build_backbone, save_backbone
from regard.cli import main
from regard.data.datasets.scenes import Scenes
from regard.data.loading.augment import TrainTransform
from regard.data.loading.modules import SegmentationData
from regard.data.loading.samples import TrainPairs
from regard.data.loading.wrapped import Fraction
from regard.data.survey import class_pixels
from regard.errors import InputError, Interrupted
from regard.results import RunDescription, read_stored
from regard.runs import feature_cache, segmenting
from regard.runs.export import save_safetensors
from regard.runs.extras import Cache, Extras
from regard.runs.run import RUN_FILE, load_run, summary
from regard.runs.segmenting import segment_run
from regard.segmentation.model import SegmentationModel
from regard.segmentation.task import SegmentationTask
from regard.settings import SegmentSettings
from regard.training import trainer
from small_runs import HARDWARE, SETTINGS, TRAIN, VAL, VIT, cut, forward_passes, same, values, vit


def resnet():
    torch.manual_seed(0)
    return build_backbone("resnet18", channels=(8, 16, 16, 16))


def test_a_part_of_one_image_that_batch_norms_cannot_take_is_one_line_and_nothing_is_left(tmp_path, capsys) -> None:
    command = ["segment", "--data", "scenes", "--backbone", "resnet18", "--size", "32", "--head", "linear"]
    command += ["--batch_size", "2", "--accumulate", "2", "--workers", "0", "--accelerator", "cpu"]
    line = fails(capsys, *command, "--out", str(tmp_path / "run"))
    assert "one image in a forward pass leaves batch norms a single value: a larger --batch_size" in line
    assert not list(tmp_path.iterdir())


def test_parts_of_a_step_add_up_to_the_step(tmp_path) -> None:
    """Where each part has as many labelled pixels (no void borders here), and batch norms are out of the way."""
    settings = replace(SETTINGS, head="fcn", epochs=1, scale=(1.0, 1.2))
    gradients = []
    for accumulate in (1, 2):
        torch.manual_seed(0)
        backbone = vit().eval()
        seen = []
        step = SegmentationTask.optimizer_step

        def optimizer_step(task, *rest, into=seen, step=step, **options) -> None:
            step(task, *rest, **options)
            into.append({n: p.grad.clone() for n, p in task.model.backbone.named_parameters() if p.grad is not None})

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SegmentationTask, "optimizer_step", optimizer_step)
            patch.setattr(torch.nn.BatchNorm2d, "forward", lambda norm, x: x)
            patch.setattr(torch.nn.Dropout, "forward", lambda dropout, x: x)
            patch.setattr(torch.nn.Dropout2d, "forward", lambda dropout, x: x)
            asked = replace(settings, accumulate=accumulate)
            segment_run(TRAIN, VAL, backbone, asked, tmp_path / str(accumulate), hardware=HARDWARE)
        assert len(seen) == 2  # 8 images in steps of 4
        gradients.append(seen[0])
    for name, whole in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], whole, rtol=1e-3, atol=1e-5 * float(whole.abs().max()))


def test_the_loss_of_the_curve_is_that_of_whole_steps(tmp_path) -> None:
    """Lightning divides that of a part by the number of parts."""
    settings = replace(SETTINGS, epochs=1, lr=0.0, backbone_lr=0.0, scale=(1.0, 1.2))
    losses = []
    for accumulate in (1, 2):
        asked = replace(settings, accumulate=accumulate)
        made = segment_run(TRAIN, VAL, vit().eval(), asked, tmp_path / str(accumulate), hardware=HARDWARE)
        losses.append(made.curve[0].train_loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.05)  # the head's batch norm sees other batches


def test_patience_ends_a_training_that_gets_no_better_and_its_best_epoch_is_kept(tmp_path, monkeypatch) -> None:
    given = iter([0.1, 0.3, 0.2, 0.3, 0.29, 0.9])  # equal is not better: three epochs after the second it is enough

    def score(task) -> None:
        task.log("val_miou", next(given))

    monkeypatch.setattr(SegmentationTask, "on_validation_epoch_end", score)
    settings = replace(SETTINGS, epochs=9, patience=3)
    made = segment_run(TRAIN, VAL, vit(), settings, tmp_path, hardware=HARDWARE)
    assert [round(point.val_miou, 2) for point in made.curve] == [0.1, 0.3, 0.2, 0.3, 0.29]
    assert made.best_epoch == 2


def test_a_run_cut_short_does_not_go_on_from_other_weights(tmp_path, monkeypatch, capsys) -> None:
    """Its checkpoint would bring back the first ones without a word; a cache would hold features of the others."""
    command = ["segment", "--data", "scenes", "--backbone", "vit_tiny_patch16_224", "--size", "32", "--out"]
    command += [str(tmp_path / "out"), "--backbone_options", json.dumps(VIT), "--weights"]
    for seed in "12":
        torch.manual_seed(int(seed))
        save_backbone(build_backbone("vit_tiny_patch16_224", **VIT), tmp_path / f"{seed}.safetensors")

    def stops(*_, **__) -> None:
        raise Interrupted("told to", signal.SIGTERM)

    monkeypatch.setattr(segmenting, "segment_run", stops)
    for seed, status in (("1", 128 + signal.SIGTERM), ("1", 128 + signal.SIGTERM), ("2", 2)):
        with pytest.raises(SystemExit) as ended:
            main([*command, str(tmp_path / f"{seed}.safetensors")])
        assert ended.value.code == status
    assert "holds a run with other settings (first_weights, weights)" in capsys.readouterr().err
    (tmp_path / "out/settings.json").write_text("[]")
    with pytest.raises(SystemExit):
        main([*command, str(tmp_path / "1.safetensors")])
    assert "settings.json is damaged: choose another --out" in capsys.readouterr().err


def test_a_run_that_patience_ends_is_not_cut_short_by_a_signal_in_its_last_step(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(SegmentationTask, "on_validation_epoch_end", lambda task: task.log("val_miou", 0.5))
    settings = replace(SETTINGS, epochs=9, patience=1)
    cut(monkeypatch, 1)
    made = segment_run(TRAIN, VAL, vit(), settings, tmp_path, hardware=HARDWARE)
    assert len(made.curve) == 2


def test_a_run_whose_best_weights_were_replaced_after_its_checkpoint_ends_all_the_same(tmp_path, monkeypatch) -> None:
    given = iter([0.5, 0.4, 0.45])
    monkeypatch.setattr(SegmentationTask, "on_validation_epoch_end", lambda task: task.log("val_miou", next(given)))
    settings = replace(SETTINGS, epochs=3)
    with monkeypatch.context() as patch:
        cut(patch, 0)
        with pytest.raises(Interrupted):
            segment_run(TRAIN, VAL, vit(), settings, tmp_path, hardware=HARDWARE)
    (best,) = (tmp_path / "checkpoints").glob("best-*")
    best.unlink()
    made = segment_run(TRAIN, VAL, vit(), settings, tmp_path, hardware=HARDWARE)
    assert made.best_epoch == 3
    assert len(made.curve) == 3


@pytest.mark.parametrize("average", ["ema", "swa"])
def test_what_is_kept_and_scored_is_the_average(average: str, tmp_path, monkeypatch) -> None:
    seen, step = [], SegmentationTask.optimizer_step

    def optimizer_step(task, *rest, **options) -> None:
        step(task, *rest, **options)
        seen.append({name: p.detach().clone() for name, p in task.model.named_parameters()})

    monkeypatch.setattr(SegmentationTask, "optimizer_step", optimizer_step)
    settings = replace(SETTINGS, epochs=5, average=average)
    made = segment_run(TRAIN, VAL, resnet(), settings, tmp_path, hardware=HARDWARE)
    assert len(seen) == 10
    if average == "swa":  # the ends of epochs 4 and 5
        expected = {name: (seen[7][name] + seen[9][name]) / 2 for name in seen[0]}
        assert made.best_epoch is None
    else:
        expected = seen[0]
        for n, new in enumerate(seen[1 : 2 * made.best_epoch], 1):
            decay = min(0.999, (1 + n) / (10 + n))
            expected = {name: decay * old + (1 - decay) * new[name] for name, old in expected.items()}
    kept = values(tmp_path)
    for name, value in expected.items():
        torch.testing.assert_close(kept[name], value, rtol=1e-4, atol=1e-6)
    if average == "ema":
        run = load_run(tmp_path, "cpu")
        assert summary(run, run.evaluate(VAL)).miou == pytest.approx(made.miou, abs=1e-6)


def test_the_statistics_of_a_frozen_backbone_are_not_renewed_for_the_average(tmp_path) -> None:
    backbone = resnet()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    settings = replace(SETTINGS, epochs=5, average="swa", freeze=True)
    segment_run(TRAIN, VAL, backbone, settings, tmp_path, hardware=HARDWARE)
    assert same(before, backbone.state_dict())


def test_balanced_weights_count_every_mask() -> None:
    counts = class_pixels(TRAIN)
    expected = np.bincount(np.concatenate([TRAIN.mask(i).ravel() for i in range(8)]), minlength=len(TRAIN.classes))
    assert counts.tolist() == expected[: len(TRAIN.classes)].tolist()


# ---- features of a frozen backbone ----------------------------------------------------------------------------------


def cached(
    folder: Path, cache: Path, content: str = "a", fusion: str = "gate", crops: int = 2, seed: int = 0, **options
):
    settings = replace(SETTINGS, freeze=True, epochs=2, cache_crops=crops, **options)
    return segment_run(
        TRAIN,
        VAL,
        vit(),
        replace(settings, fusion=fusion),
        folder,
        seed,
        HARDWARE,
        extras=Extras(cache=Cache(cache, content)),
    )


@pytest.mark.parametrize(
    ("fusion", "refiner"),
    [("none", "none"), ("gate", "none"), ("propagate", "none"), ("gate", "affinity"), ("none", "upsample")],
)
def test_a_cached_training_is_the_uncached_one_as_long_as_its_crops_are_new(
    fusion: str, refiner: str, tmp_path
) -> None:
    """The same batches in the same order; a batch of features is computed alone, and rounds a little otherwise."""
    cached(tmp_path / "cached", tmp_path / "cache", fusion=fusion, refiner=refiner)
    settings = replace(SETTINGS, freeze=True, epochs=2, refiner=refiner)
    segment_run(TRAIN, VAL, vit(), replace(settings, fusion=fusion), tmp_path / "plain", 0, HARDWARE)
    ours, theirs = values(tmp_path / "cached"), values(tmp_path / "plain")
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    curves = [read_stored(tmp_path / name / RUN_FILE, RunDescription).curve for name in ("cached", "plain")]
    for a, b in zip(*curves, strict=True):
        assert vars(a) == pytest.approx(vars(b), abs=2e-3)


def test_draws_of_images_share_the_crops_of_the_whole(tmp_path, monkeypatch) -> None:
    seen, model = forward_passes(monkeypatch), SegmentationModel(vit(), len(TRAIN.classes), "none", "linear", True)
    for draw in range(2):
        part, transform = Fraction(TRAIN, 0.5, draw).once(), TrainTransform(32, 255)
        data = SegmentationData(part, VAL, transform, 4)
        pairs = feature_cache.cached_data(tmp_path, model, data, 2, "a", bar=False).train_pairs()
        whole = TrainPairs(TRAIN, transform, 0)
        assert bool(seen) == (draw == 0)
        del seen[:]
        for epoch, index in ((0, 0), (1, 3), (2, 2)):
            assert torch.equal(pairs[epoch, index][1], whole[epoch % 2, part.number(index)][1])


def test_scoring_on_kept_features_is_scoring_on_images(tmp_path, monkeypatch) -> None:
    cached(tmp_path / "out", tmp_path / "cache", fusion="propagate")
    run, test = load_run(tmp_path / "out"), Scenes(5, size=48, seed=2)
    found = feature_cache.cached_counts(tmp_path / "cache", run, test, "test")
    assert abs(found - run.evaluate(test)).sum() <= 4
    seen = forward_passes(monkeypatch)
    assert (feature_cache.cached_counts(tmp_path / "cache", run, test, "test") == found).all()
    assert seen == []


def test_a_control_sees_the_maps_of_others_with_a_cache_and_without(tmp_path) -> None:
    cached(tmp_path / "cached", tmp_path / "cache", maps="other", fusion_lr=1.0)
    plain = segment_run(
        TRAIN, VAL, vit(), replace(SETTINGS, freeze=True, epochs=2, fusion="gate", maps="other", fusion_lr=1.0),
        tmp_path / "plain", hardware=HARDWARE,
    )  # fmt: skip
    ours, theirs = values(tmp_path / "cached"), values(tmp_path / "plain")
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=1e-3)
    cached(tmp_path / "own", tmp_path / "cache", fusion_lr=1.0)  # the same folder of caches, other tensors
    assert not same(ours, values(tmp_path / "own"))

    run = load_run(tmp_path / "plain")
    best = max(point.val_miou for point in plain.curve)
    assert summary(run, run.evaluate(VAL)).miou == pytest.approx(best, abs=1e-6)
    kept = feature_cache.cached_counts(tmp_path / "cache", run, VAL, "a")
    assert abs(kept - run.evaluate(VAL)).sum() <= 4  # pixels whose two best classes are as good but for rounding
    with pytest.raises(InputError, match="this run is a control"):
        run.predict(VAL.image(0))
    with pytest.raises(InputError, match="this run is a control"):
        save_safetensors(run, tmp_path / "export")
    assert not (tmp_path / "export").exists()
    with pytest.raises(InputError, match="guidance is of an image's own maps"):
        segment_run(
            TRAIN, VAL, vit(), replace(SETTINGS, fusion="gate", maps="other", guide_sharpness=0.1),
            tmp_path / "no", hardware=HARDWARE,
        )  # fmt: skip


def test_the_backbone_runs_once_for_every_crop_and_validation_image(tmp_path, monkeypatch) -> None:
    seen = forward_passes(monkeypatch)
    cached(tmp_path / "a", tmp_path / "cache")
    assert sum(seen) == 2 * len(TRAIN) + len(VAL)
    seen.clear()
    cached(tmp_path / "b", tmp_path / "cache", lr=0.02)  # another run, another rate
    assert not seen
    assert not same(values(tmp_path / "a"), values(tmp_path / "b"))


@pytest.mark.parametrize(
    "change",
    [
        {"content": "b"},
        {"crops": 1},
        {"seed": 1},
        {"fusion": "propagate"},
        {"refiner": "affinity"},
        {"refiner": "upsample"},
        {"scale": (0.9, 1.1)},
        {"size": 40},
    ],
)
def test_a_stale_cache_is_not_used(change: dict, tmp_path, monkeypatch) -> None:
    cached(tmp_path / "a", tmp_path / "cache")
    seen = forward_passes(monkeypatch)
    cached(tmp_path / "b", tmp_path / "cache", **change)
    assert sum(seen) >= len(TRAIN)


def test_other_weights_are_another_cache(tmp_path, monkeypatch) -> None:
    cached(tmp_path / "a", tmp_path / "cache")
    seen, build = forward_passes(monkeypatch), vit

    def changed():
        backbone = build()
        with torch.no_grad():
            next(backbone.parameters()).view(-1)[0] += 1e-3
        return backbone

    monkeypatch.setitem(globals(), "vit", changed)
    cached(tmp_path / "b", tmp_path / "cache")
    assert sum(seen) == 2 * len(TRAIN) + len(VAL)


class Killed(BaseException):
    """Nobody catches it."""


def test_an_interrupted_cache_goes_on_behind_its_last_whole_sample(tmp_path, monkeypatch) -> None:
    cached(tmp_path / "whole", tmp_path / "cache")
    features, calls = SegmentationModel.features, []

    def dies(model, images, *rest, **options):
        calls.append(len(images))
        if len(calls) == 3:
            raise Killed
        return features(model, images, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationModel, "features", dies)
        with pytest.raises(Killed):
            cached(tmp_path / "cut", tmp_path / "other")
    (partial,) = (tmp_path / "other").glob("*.partial")
    with (partial / feature_cache.TENSORS_FILE).open("ab") as file:
        file.write(b"half a sample")
    with (partial / feature_cache.SAMPLES_FILE).open("a") as file:
        file.write("[12")
    seen = forward_passes(monkeypatch)
    cached(tmp_path / "on", tmp_path / "other")
    assert sum(seen) == 2 * len(TRAIN) + len(VAL) - 8  # two batches of 4 were done
    assert same(values(tmp_path / "on"), values(tmp_path / "whole"))
    for one, two in zip(
        sorted((tmp_path / "cache").glob("*/*.bin")), sorted((tmp_path / "other").glob("*/*.bin")), strict=True
    ):
        assert one.read_bytes() == two.read_bytes()


def flip(file: Path, place: int = -1) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def more(file: Path, content: bytes) -> None:
    file.write_bytes(file.read_bytes() + content)


def replace_in(file: Path, pattern: bytes, new: bytes) -> None:
    file.write_bytes(re.sub(pattern, new, file.read_bytes()))


HARMS: dict[str, Callable[[Path], object]] = {
    "a bit of the last sample": lambda folder: flip(folder / feature_cache.TENSORS_FILE),
    "a bit of the first sample": lambda folder: flip(folder / feature_cache.TENSORS_FILE, 0),
    "a bit of a line": lambda folder: flip(folder / feature_cache.SAMPLES_FILE, -3),
    "tensors cut short": lambda folder: os.truncate(folder / feature_cache.TENSORS_FILE, 1000),
    "lines cut short": lambda folder: os.truncate(folder / feature_cache.SAMPLES_FILE, 100),
    "no tensors": lambda folder: (folder / feature_cache.TENSORS_FILE).unlink(),
    "no lines": lambda folder: (folder / feature_cache.SAMPLES_FILE).unlink(),
    "lines of something else": lambda folder: (folder / feature_cache.SAMPLES_FILE).write_bytes(
        b"\xff[" * 1000 + b"\n"
    ),
    "sides below 0": lambda folder: replace_in(folder / feature_cache.SAMPLES_FILE, rb"(\d+), (\d+)\]", rb"-\1, -\2]"),
    "a side that is no number": lambda folder: replace_in(folder / feature_cache.SAMPLES_FILE, rb"(\d+)\]", rb"\1.0]"),
    "lines too many": lambda folder: more(folder / feature_cache.SAMPLES_FILE, b"[0, [], 0]\n"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_cache_is_computed_again_with_a_word(tmp_path, capsys, harm: str) -> None:
    cached(tmp_path / "one", tmp_path / "cache")
    before = {file: file.read_bytes() for file in sorted((tmp_path / "cache").glob("*/*"))}
    capsys.readouterr()
    for folder in {file.parent for file in before}:
        HARMS[harm](folder)
    cached(tmp_path / "two", tmp_path / "cache")
    assert same(values(tmp_path / "one"), values(tmp_path / "two"))
    times = 0 if harm == "lines too many" else 2  # of these nothing is computed again: they are cut off
    assert capsys.readouterr().err.count("is damaged: what is not whole is computed again") == times
    assert {file: file.read_bytes() for file in before} == before


def test_a_loading_process_gets_the_path_of_the_tensors_not_the_tensors(tmp_path) -> None:
    cached(tmp_path / "out", tmp_path / "cache")
    folder = max((tmp_path / "cache").glob("*/tensors.bin"), key=lambda path: path.stat().st_size).parent
    file = feature_cache.TensorFile(folder)
    first = file[0]
    packed = pickle.dumps(file)
    assert len(packed) < (folder / feature_cache.TENSORS_FILE).stat().st_size / 5
    assert all(np.array_equal(a, b) for a, b in zip(pickle.loads(packed)[0], first, strict=True))


def test_a_cache_needs_a_frozen_backbone_and_room(tmp_path, monkeypatch) -> None:
    with pytest.raises(InputError, match="leave out --cache_crops"):
        segment_run(TRAIN, VAL, vit(), replace(SETTINGS, cache_crops=2), tmp_path / "out")
    with pytest.raises(InputError, match="add --freeze"):
        segment_run(TRAIN, VAL, vit(), SETTINGS, tmp_path / "out", extras=Extras(cache=Cache(tmp_path / "cache", "")))
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(InputError, match=r"0\.0 GB are free in .*cache: take fewer --cache_crops"):
        cached(tmp_path / "out", tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_the_bar_shows_the_loss_and_the_last_score(tmp_path, monkeypatch) -> None:
    shown = []
    monkeypatch.setattr(
        trainer._Progress, "on_train_batch_end", lambda bar, *about: shown.append(bar.get_metrics(*about[:2]))
    )
    settings = SegmentSettings(size=32, epochs=2, batch_size=4, head="linear")
    made = segment_run(
        Scenes(8, size=32), Scenes(2, size=32, seed=1), resnet(), settings, tmp_path, 3, replace(HARDWARE, bar=True)
    )
    assert [sorted(one) for one in shown] == [["loss"]] * 2 + [["loss", "mIoU"]] * 2
    assert shown[-1]["mIoU"] == f"{100 * made.curve[0].val_miou:.1f}%"
