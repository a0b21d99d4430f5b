"""The head `ridge`: an ordinary run, solved at once, that answers what the probe's algebra says."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from commands import fails
from regard.backbones import build_backbone, normalize
from regard.cli import main
from regard.data.datasets.scenes import Scenes
from regard.data.loading.wrapped import Fraction
from regard.errors import InputError
from regard.evaluation.scores import scores
from regard.pictures.contact_sheet import SHEET
from regard.results import RunDescription, read_stored
from regard.runs.checks import check_settings
from regard.runs.extras import Cache, Extras
from regard.runs.run import RUN_FILE, load_run, summary
from regard.runs.segmenting import segment_run
from regard.scoring import probe_training
from regard.segmentation.heads import RidgeHead
from regard.settings import SegmentSettings
from small_runs import HARDWARE, TRAIN, VAL, VIT, forward_passes, same, values, vit
from trees import mask_tree, save

RIDGE = SegmentSettings(size=32, head="ridge", freeze=True)


def test_it_is_ridge_regression_of_the_shares_of_classes_and_an_ordinary_run(tmp_path) -> None:
    made = segment_run(TRAIN, VAL, vit(), RIDGE, tmp_path, hardware=HARDWARE)
    assert made.solved is not None
    assert read_stored(tmp_path / RUN_FILE, RunDescription) == made
    run = load_run(tmp_path)
    assert made.miou == pytest.approx(summary(run, run.evaluate(VAL)).miou, abs=1e-6)
    images = torch.stack([torch.from_numpy(TRAIN.image(i).transpose(2, 0, 1).copy()) for i in range(len(TRAIN))])
    masks = torch.from_numpy(np.stack([TRAIN.mask(i) for i in range(len(TRAIN))])).long()
    with torch.inference_mode():
        features = run.model.backbone(normalize(images))
        logits = run.model.head(features.pyramid).permute(0, 2, 3, 1).flatten(0, 2)
        x = torch.cat(features.pyramid, dim=1).permute(0, 2, 3, 1).flatten(0, 2).double()
    known = F.one_hot(masks.where(masks != 255, len(TRAIN.classes)), len(TRAIN.classes) + 1)[..., :-1].double()
    pixels = F.avg_pool2d(known.permute(0, 3, 1, 2), 8).permute(0, 2, 3, 1).flatten(0, 2) * 64
    frequency = pixels.sum(dim=0) / pixels.sum()
    w = (pixels * frequency.clamp(min=1e-12).pow(-made.solved.power)).sum(dim=1)
    y, w = pixels / pixels.sum(dim=1, keepdim=True).clamp(min=1), w / w.sum()
    mean, mean_y = w @ x, w @ y
    deviation = (w @ (x - mean).square()).sqrt()
    z = (x - mean) / deviation
    slopes = torch.linalg.solve(
        (z.T * w) @ z + made.solved.penalty * torch.eye(z.shape[1]).double(), (z.T * w) @ (y - mean_y)
    )
    assert torch.allclose(logits.double(), mean_y + z @ slopes, atol=1e-4)


def some(numbers: list[int]) -> Fraction:
    part = Fraction(TRAIN, 1.0, 0)
    part.numbers = numbers
    return part.once()


def test_without_val_each_image_is_answered_by_a_head_of_the_others(tmp_path, monkeypatch) -> None:
    for name, value in (("POWERS", (0.0,)), ("MIDDLE", 0.0), ("PENALTIES", (0.1,))):  # nothing is left to choose
        monkeypatch.setattr(probe_training, name, value)
    made = segment_run(TRAIN, None, vit(), RIDGE, tmp_path / "crossed", hardware=HARDWARE)
    segment_run(TRAIN, VAL, vit(), RIDGE, tmp_path / "whole", hardware=HARDWARE)
    assert same(values(tmp_path / "crossed"), values(tmp_path / "whole"))  # solved of all images in the end
    fold_of, counts = probe_training.folds(range(len(TRAIN)), probe_training.FOLDS).numpy(), []
    for fold in range(probe_training.FOLDS):
        others, held_out = (some(np.flatnonzero(chosen).tolist()) for chosen in (fold_of != fold, fold_of == fold))
        segment_run(others, VAL, vit(), RIDGE, tmp_path / str(fold), hardware=HARDWARE)
        counts.append(load_run(tmp_path / str(fold)).evaluate(held_out).sum(axis=0))
    found = made.cross_validated
    assert found is not None
    assert made.miou == found.miou == pytest.approx(scores(sum(counts)).miou, abs=1e-4)
    assert found.low < found.miou < found.high
    assert (found.images, found.folds, found.groups) == (8, 5, None)
    assert read_stored(tmp_path / "crossed" / RUN_FILE, RunDescription) == made


def unsplit(root: Path, videos: int) -> str:
    """Twelve labelled images of so many videos, and no val/."""
    mask_tree(root, train=12)
    for kind in ("images", "masks"):
        for i in range(12):
            (root / kind / "train" / f"{i}.png").rename(root / kind / f"v{i % videos}_{i:03}.png")
        (root / kind / "train").rmdir()
    return str(root)


def test_a_folder_without_val_is_cross_validated_by_whole_groups(tmp_path, capsys) -> None:
    words = ["segment", "--data", unsplit(tmp_path / "data", 3), "--backbone", "vit_tiny_patch16_224", "--size", "32"]
    words += ["--backbone_options", json.dumps(VIT), "--accelerator", "cpu", "--workers", "0"]
    main([*words, "--head", "ridge", "--freeze", "--groups", "^[^_]*", "--out", str(tmp_path / "run")])
    said = capsys.readouterr().err
    made = read_stored(tmp_path / "run" / RUN_FILE, RunDescription)
    found = made.cross_validated
    assert found is not None
    assert (found.images, found.folds, found.groups, len(made.trained_on)) == (12, 3, 3, 12)
    assert "12 train images" in said
    assert "no val, so the score is cross-validated over the images for training" in said
    assert f"mIoU {100 * found.miou:.1f}% (95%: " in said
    assert "for other images, with these labels), cross-validated over 12 images in 3 groups" in said
    assert (tmp_path / "run" / SHEET).is_file()
    main([*words, "--head", "linear", "--groups", "^[^_]*", "--epochs", "1", "--out", str(tmp_path / "trained")])
    said = capsys.readouterr().err
    assert "8 train, 4 val images" in said
    assert "no val, so val is whole groups of the images for training, about a fifth" in said
    assert (
        "the score rests on 4 images, held out; head ridge, with all labels of a folder, is cross-validated over all"
        in said
    )
    one_group = fails(capsys, *words, "--head", "linear", "--groups", "v", "--out", str(tmp_path / "one"))
    assert "all 12 images are of one group by 'v': other --groups, or val/, would work" in one_group
    words[2] = str(mask_tree(tmp_path / "one", train=1))
    assert "has one image with a mask, and none to score on: a second one" in fails(capsys, *words, "--head", "linear")


def test_classes_that_cannot_be_learned_are_named(tmp_path, capsys) -> None:
    data = Path(unsplit(tmp_path / "data", 3))
    for i in range(12):
        save(data / "masks" / f"v{i % 3}_{i:03}.png", np.full((32, 32), int(i == 4), np.uint8))
    words = ["segment", "--data", str(data), "--backbone", "vit_tiny_patch16_224", "--size", "32", "--freeze"]
    words += ["--backbone_options", json.dumps(VIT), "--accelerator", "cpu", "--workers", "0", "--head", "ridge"]
    main([*words, "--out", str(tmp_path / "run")])
    said, second = capsys.readouterr().err, Scenes.classes[1]
    assert "no training mask has a pixel of " in said
    assert f"images with '{second}' are held out all at once, so no answer to them knows of it" in said
    main([*words, "--label_fraction", "0.1", "--out", str(tmp_path / "share")])
    said = capsys.readouterr().err
    assert f"of the share that is drawn, no training mask has a pixel of '{second}'" in said
    assert "the score rests on 2 images, held out; head ridge, with all labels of a folder" in said


def test_maps_are_columns_that_the_fusion_adds_as_they_are(tmp_path) -> None:
    settings = replace(RIDGE, fusion="concat")
    made = segment_run(TRAIN, VAL, vit(), settings, tmp_path / "own", hardware=HARDWARE)
    assert made.solved is not None
    assert made.solved.ratio is not None
    assert [len(level.heads) for level in made.head_weights] == [3] * 4
    run = load_run(tmp_path / "own")
    images = normalize(torch.from_numpy(TRAIN.image(0).transpose(2, 0, 1).copy())[None])
    model, fusion = run.model, run.model.fusion
    assert isinstance(model.head, RidgeHead)
    with torch.inference_mode():
        features = model.features(images)
        maps = torch.cat(fusion.saliences(features), dim=1)
        added = model.head(fusion(features)) - model.head(features.pyramid)
        flat, answer = maps.flatten(2)[0].T.double(), added.flatten(2)[0].T.double()
    flat = torch.cat([flat, torch.ones(len(flat), 1).double()], dim=1)
    residual = answer - flat @ torch.linalg.lstsq(flat, answer).solution
    assert residual.abs().max() < 1e-4  # linear in the maps
    assert answer.std() > 1e-3  # and not nothing
    control = segment_run(
        TRAIN, VAL, vit(), replace(settings, maps="position"), tmp_path / "position", hardware=HARDWARE
    )
    few = segment_run(
        TRAIN, VAL, vit(), replace(settings, heads_kept=1, layers=(-1,)), tmp_path / "few", hardware=HARDWARE
    )
    assert [len(level.heads) for level in few.head_weights] == [1]
    assert control.solved != made.solved or control.miou != made.miou


def test_a_cache_is_read_once_for_all_draws_of_labels(tmp_path, monkeypatch) -> None:
    seen, extras = forward_passes(monkeypatch), Extras(cache=Cache(tmp_path / "features", "data"))
    segment_run(TRAIN, VAL, vit(), RIDGE, tmp_path / "cached", hardware=HARDWARE, extras=extras)
    assert sum(seen) == len(TRAIN) + len(VAL)
    segment_run(TRAIN, VAL, vit(), RIDGE, tmp_path / "plain", hardware=HARDWARE)
    assert same(values(tmp_path / "cached"), values(tmp_path / "plain"))
    del seen[:]
    for seed in range(3):
        part = Fraction(TRAIN, 0.4, seed)
        segment_run(part, VAL, vit(), RIDGE, tmp_path / f"part-{seed}", seed, HARDWARE, extras)
    assert seen == []
    segment_run(part.once(), VAL, vit(), RIDGE, tmp_path / "once", 5, HARDWARE)  # nothing of the seed is in it
    assert same(values(tmp_path / "once"), values(tmp_path / "part-2"))
    assert len({tuple(values(tmp_path / f"part-{seed}")["head.classify.bias"].tolist()) for seed in range(3)}) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"freeze": False}, "head ridge is solved for features that stay as they are: add --freeze"),
        ({"fusion": "gate"}, "head ridge is solved, and fusion gate is trained: take fusion none or concat"),
        ({"refiner": "upsample"}, "head ridge is solved, and refiner upsample is trained: take refiner none"),
        ({"head_options": {"width": 8}}, "head ridge has no options"),
    ],
)
def test_what_is_not_to_be_solved_is_one_line(change: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_settings(replace(RIDGE, **change), vit(), cached=False)


def test_more_maps_than_fit_through_the_fusion_are_one_line() -> None:
    wide = build_backbone("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=40, depth=4, num_heads=40)
    with pytest.raises(InputError, match="head ridge would read 40: add --heads_kept 32"):
        check_settings(replace(RIDGE, fusion="concat"), wide, cached=False)
    check_settings(replace(RIDGE, fusion="concat", heads_kept=32), wide, cached=False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--head", "ridge", "--freeze", "--epochs", "3"], "head ridge is solved, not trained: leave out --epochs"),
        (["--head", "ridge"], "add --freeze"),
        (["--head", "ridge", "--freeze", "--guide_sharpness", "1"], "guidance"),
        (["--groups", "folder"], "leave out --groups"),
    ],
)
def test_what_does_not_go_with_it_is_one_line_on_the_command_line(options, said, tmp_path, capsys) -> None:
    asked = ["segment", "--data", "scenes", "--size", "32", "--backbone", "vit_tiny_patch16_224"]
    assert said in fails(capsys, *asked, "--out", str(tmp_path / "run"), *options)
    assert not (tmp_path / "run").exists()
