"""The comparison: resumable, shared pre-trainings, honest numbers; and the full preset takes real steps."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regard.backbones import build_backbone
from regard.data.layout import open_source
from regard.data.scenes import Scenes
from regard.errors import InputError
from regard.evaluation.scores import scores
from regard.studies import compare as module
from regard.studies.compare import compare
from regard.studies.presets import CONFIGURATIONS, PRESETS, QUESTIONS, preset
from regard.studies.pretraining import pretrain_run
from regard.studies.runs import load_run
from regard.studies.segmenting import segment_run
from regard.studies.training import Hardware

QUIET = Hardware(bar=False)


def micro(size: int = 32):
    """The tiny preset at 32 px, an epoch each."""
    tiny = PRESETS["tiny"](size)
    shorter = {key: replace(settings, epochs=1, batch_size=8) for key, settings in tiny.pretrainings.items()}
    return replace(tiny, pretrainings=shorter, segment=replace(tiny.segment, epochs=1, head_options={"width": 8}))


@pytest.fixture
def source():
    return open_source("scenes", scenes_size=32, scenes_count={"train": 16, "val": 4, "test": 6})


def stamps(out: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}


@pytest.mark.slow
def test_a_comparison_from_start_to_report(source, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(PRESETS, "micro", micro)
    out = tmp_path / "study"
    report = compare(source, "micro", out, seeds=2, hardware=QUIET)
    results = json.loads((out / "results.json").read_text())
    names = [c.name for c in CONFIGURATIONS if not c.baseline]
    assert [c["name"] for c in results["configurations"]] == names
    assert all(name in report.read_text() for name in names)
    assert sorted(path.name for path in (out / "pretraining").iterdir()) == [
        "barlow_twins-resnet", "barlow_twins-swin", "dino-vit",
    ]  # fmt: skip

    # every number of the report can be had again from the parts
    for configuration in results["configurations"]:
        for run in configuration["runs"]:
            folder = out / "cells" / configuration["name"] / f"seed-{run['seed']}"
            with np.load(folder / "counts.npz") as file:
                assert run["miou"] == pytest.approx(scores(file["counts"].sum(axis=0)).miou)
            again = load_run(folder).evaluate(source.split("test"))
            assert run["miou"] == pytest.approx(scores(again.sum(axis=0)).miou)
        assert configuration["miou"]["mean"] == pytest.approx(np.mean([r["miou"] for r in configuration["runs"]]))
        assert configuration["miou"]["low"] <= configuration["miou"]["high"]
    truth = np.bincount(np.concatenate([source.split("test").mask(i).ravel() for i in range(6)]), minlength=9)
    assert results["majority"]["pixel_accuracy"] == pytest.approx(truth.max() / truth.sum())
    assert results["data"]["evaluated_split"] == "test"
    example = results["examples"][0]
    assert set(example["predictions"]) == set(names)
    assert set(example["attention"]) == {name for name in names if "resnet" not in name}

    # a second call does nothing again; a cell that was cut short is done again, alone
    before = stamps(out)
    (out / "cells" / "bt-swin" / "seed-1" / "cell.json").unlink()
    compare(source, "micro", out, seeds=2, hardware=QUIET)
    changed = {path for path, stamp in stamps(out).items() if before[path] != stamp}
    assert changed == {str(out / "cells" / "bt-swin" / "seed-1" / "model.safetensors")}
    assert json.loads((out / "results.json").read_text())["configurations"][1]["runs"] is not None

    with pytest.raises(InputError, match="holds another comparison"):
        compare(source, "tiny", out, hardware=QUIET)


def test_data_that_changed_is_another_comparison(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(PRESETS, "micro", micro)
    monkeypatch.setattr(module, "CONFIGURATIONS", CONFIGURATIONS[:1])
    scenes, data = Scenes(12, size=32), tmp_path / "data"
    for split in ("train", "val"):
        for kind, pixels in (("images", scenes.image), ("masks", scenes.mask)):
            (data / kind / split).mkdir(parents=True)
            for i in range(12):
                Image.fromarray(pixels(i)).save(data / kind / split / f"{i}.png")
    out = data / "runs" / "study"  # below the data itself: what is written there is no change
    compare(open_source(data), "micro", out, seeds=1, hardware=QUIET)
    compare(open_source(data), "micro", out, seeds=1, hardware=QUIET)
    Image.fromarray(scenes.mask(1)).save(data / "masks" / "val" / "0.png")
    with pytest.raises(InputError, match=r"holds another comparison \(data differ\)"):
        compare(open_source(data), "micro", out, seeds=1, hardware=QUIET)


@pytest.mark.slow
def test_side_by_side_gives_what_one_after_the_other_gives(source, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(PRESETS, "micro", micro)
    monkeypatch.setattr(module, "CONFIGURATIONS", CONFIGURATIONS[:2])
    for jobs in (1, 2):
        compare(source, "micro", tmp_path / str(jobs), seeds=1, jobs=jobs, hardware=QUIET)
    one, two = (json.loads((tmp_path / str(jobs) / "results.json").read_text()) for jobs in (1, 2))
    for a, b in zip(one["configurations"], two["configurations"], strict=True):
        assert a["runs"][0]["miou"] == pytest.approx(b["runs"][0]["miou"], abs=1e-6)


def test_an_interrupted_comparison_reports_the_seeds_that_are_whole(source, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(PRESETS, "micro", micro)
    monkeypatch.setattr(module, "CONFIGURATIONS", CONFIGURATIONS[:1])
    train = segment_run

    def interrupt_the_second(*args, **kwargs):
        if args[6] == 1:
            raise KeyboardInterrupt
        return train(*args, **kwargs)

    monkeypatch.setattr(module, "segment_run", interrupt_the_second)
    with pytest.raises(KeyboardInterrupt):
        compare(source, "micro", tmp_path / "study", seeds=2, hardware=QUIET)
    results = json.loads((tmp_path / "study" / "results.json").read_text())
    assert not results["complete"]
    assert [run["seed"] for run in results["configurations"][0]["runs"]] == [0]


def test_an_interrupted_comparison_keeps_what_is_finished(source, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(PRESETS, "micro", micro)
    monkeypatch.setattr(module, "CONFIGURATIONS", CONFIGURATIONS[:1])

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "segment_run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            compare(source, "micro", tmp_path / "study", seeds=1, hardware=QUIET)
    before = stamps(tmp_path / "study")
    assert len(before) == 1
    compare(source, "micro", tmp_path / "study", seeds=1, hardware=QUIET)
    assert all(stamps(tmp_path / "study")[path] == stamp for path, stamp in before.items())


def test_a_folder_with_something_else_in_it_is_left_alone(source, tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="is not empty and holds no comparison"):
        compare(source, "tiny", tmp_path, hardware=QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_published_weights_that_cannot_be_fetched_are_replaced_and_it_is_said(source, tmp_path, monkeypatch) -> None:
    def with_published(size: int = 32):
        return replace(micro(size), published={"dino-vit": "vit_small_patch16_224.dino"})

    def offline(name, pretrained=False, **options):
        if pretrained:
            raise InputError("timm cannot build it: no network")
        return build_backbone(name, **options)

    monkeypatch.setitem(PRESETS, "micro", with_published)
    monkeypatch.setattr(module, "CONFIGURATIONS", [c for c in CONFIGURATIONS if c.name == "dino-gate"])
    monkeypatch.setattr(module, "build_backbone", offline)
    compare(source, "micro", tmp_path / "study", seeds=1, hardware=QUIET)
    results = json.loads((tmp_path / "study" / "results.json").read_text())
    assert "pre-trained here" in results["pretraining"][0]["origin"]
    assert "vit_small_patch16_224.dino could not be fetched" in results["pretraining"][0]["origin"]


def test_every_configuration_and_question_is_known_to_every_preset() -> None:
    names = {c.name for c in CONFIGURATIONS}
    assert all(a in names and b in names for a, b in QUESTIONS)
    for name in PRESETS:
        chosen = preset(name)
        for configuration in CONFIGURATIONS:
            assert configuration.backbone in chosen.backbones
            assert configuration.pretraining in {None, *chosen.pretrainings}


@pytest.mark.slow
@pytest.mark.parametrize("key", preset("full").pretrainings)
def test_a_real_pretraining_step_of_the_full_preset(key: str, tmp_path) -> None:
    full = preset("full")
    settings = replace(full.pretrainings[key], epochs=1, batch_size=2)
    made = pretrain_run(
        Scenes(2, size=256), full.backbones[key.rsplit("-", 1)[1]].build(), settings, tmp_path, hardware=QUIET
    )
    assert made["steps"] == 1
    assert np.isfinite(made["curve"][0]["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("configuration", [c for c in CONFIGURATIONS if not c.baseline], ids=lambda c: c.name)
def test_a_real_training_step_of_the_full_preset(configuration, tmp_path) -> None:
    full = preset("full")
    settings = replace(full.segment, epochs=1, batch_size=2)
    scenes = Scenes(2, size=256)
    backbone = full.backbones[configuration.backbone].build()
    made = segment_run(scenes, scenes, backbone, configuration.fusion, settings, tmp_path, hardware=QUIET)
    assert np.isfinite(made["curve"][0]["train_loss"])
    assert made["settings"]["size"] == 224
