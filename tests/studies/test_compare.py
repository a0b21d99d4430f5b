"""Studies: resumable, shared pre-trainings, honest numbers, failures that stay alone; real steps at full size."""

import json
import multiprocessing
import resource
from dataclasses import replace
from pathlib import Path

import filelock
import numpy as np
import pytest
from PIL import Image

from regard.backbones import build_backbone
from regard.cli import main
from regard.data.datasets.scenes import Scenes
from regard.data.source import open_source
from regard.errors import InputError, TrainingStopped
from regard.evaluation.scores import scores
from regard.evaluation.statistics import difference, score
from regard.runs.pretraining import pretrain_run
from regard.runs.run import load_run
from regard.runs.segmenting import segment_run
from regard.scoring.cell_scores import head_scores
from regard.settings import Hardware
from regard.studies import compare as module
from regard.studies.ablate import ablation
from regard.studies.compare import compare, open_study, tasks_of
from regard.studies.plan import Configuration
from regard.studies.presets import CONFIGURATIONS, QUESTIONS, preset
from regard.studies.study import Study
from regard.studies.tasks import Where

QUIET = Hardware(bar=False)


def micro(*names: str, seeds: int = 1):
    """Configurations of the tiny preset at 32 px, an epoch each; all but the baselines where none are named."""
    tiny = preset("tiny", 32)
    short = {
        key: replace(choice, settings=replace(choice.settings, epochs=1, batch_size=8))
        for key, choice in tiny.pretrainings.items()
    }
    wanted = tuple(c for c in tiny.configurations if (c.name in names if names else not c.baseline))
    kept = {c.name for c in wanted}
    return replace(
        tiny,
        name="micro",
        pretrainings=short,
        segment=replace(tiny.segment, epochs=1, head_options={"width": 8}),
        configurations=wanted,
        questions=tuple(pair for pair in QUESTIONS if kept.issuperset(pair)),
        seeds=tuple(range(seeds)),
        pretrain_each_seed=False,
    )


@pytest.fixture
def source():
    return open_source("scenes", scenes_size=32, scenes_count={"train": 16, "val": 4, "test": 6})


def stamps(out: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}


def read(out: Path):
    return json.loads((out / "results.json").read_text())


def cell(study: Study, name: str, seed: int) -> Path:
    return study.cell_folder(next(c for c in study.plan.configurations if c.name == name), seed)


@pytest.mark.slow
def test_a_comparison_from_start_to_report(source, tmp_path) -> None:
    out, plan = tmp_path / "study", micro(seeds=2)
    report, failures = compare(source, plan, out, hardware=QUIET)
    assert failures == []
    results = read(out)
    names = [c.name for c in plan.configurations]
    assert [c["name"] for c in results["configurations"]] == names
    assert all(name in report.read_text() for name in names)
    made = sorted(path.name.rpartition("-")[0] for path in (out / "pretraining").iterdir())
    assert made == ["barlow_twins-resnet", "barlow_twins-swin", "dino-vit"]

    # every number of the report can be had again from the parts
    study, counts = open_study(source, plan, out, QUIET), {}
    for configuration in results["configurations"]:
        name = configuration["name"]
        for run in configuration["runs"]:
            folder = cell(study, name, run["seed"])
            with np.load(folder / "counts.npz") as file:
                counts[name, run["seed"]] = file["counts"]
            matrix = counts[name, run["seed"]].sum(axis=0)
            true = matrix.sum(axis=1) > 0
            expected = [iou if occurs else None for iou, occurs in zip(scores(matrix).iou, true, strict=True)]
            assert run["iou"] == pytest.approx(expected)
            assert run["miou"] == pytest.approx(np.mean([iou for iou in expected if iou is not None]))
            again = load_run(folder).evaluate(source.split("test"))
            assert (again == counts[name, run["seed"]]).all()
            assert (run["heads"] is None) == ("resnet" in name)
        assert configuration["miou"]["mean"] == pytest.approx(np.mean([r["miou"] for r in configuration["runs"]]))
        assert configuration["miou"]["low"] <= configuration["miou"]["high"]
    pairs = {(d["a"], d["b"]) for d in results["differences"]}
    assert len(pairs) == len(names) * (len(names) - 1) // 2
    assert {(d["a"], d["b"]) for d in results["differences"] if d["question"]} == set(plan.questions)
    for d in results["differences"]:
        a, b = (np.stack([counts[d[side], seed] for seed in (0, 1)]) for side in "ab")
        expected = difference(score(a), score(b))
        assert (d["mean"], d["low"], d["high"], d["p"]) == pytest.approx(
            (expected.mean, expected.low, expected.high, expected.p)
        )
    truth = np.bincount(np.concatenate([source.split("test").mask(i).ravel() for i in range(6)]), minlength=9)
    assert results["majority"]["pixel_accuracy"] == pytest.approx(truth.max() / truth.sum())  # background in train, too
    assert results["majority"]["miou"] == pytest.approx(truth.max() / truth.sum() / np.count_nonzero(truth))
    assert results["data"]["evaluated_split"] == "test"
    example = results["examples"][0]
    assert set(example["predictions"]) == set(names)
    assert set(example["attention"]) == {name for name in names if "resnet" not in name}
    assert all(p["cross_correlation"] for p in results["pretraining"] if p["method"] == "barlow_twins")

    before = stamps(out)
    compare(source, plan, out, hardware=QUIET)  # a second call does nothing again
    assert stamps(out) == before


def test_a_cell_that_is_damaged_or_was_cut_short_is_mended_alone(source, tmp_path) -> None:
    out, plan = tmp_path / "study", micro("random-resnet50", "random-vit-gate")
    compare(source, plan, out, hardware=QUIET)
    study, before, results = open_study(source, plan, out, QUIET), stamps(out), read(out)
    gate = cell(study, "random-vit-gate", 0)

    def changed() -> set[str]:
        compare(source, plan, out, hardware=QUIET)
        again = read(out)
        for old, new in zip(results["configurations"], again["configurations"], strict=True):
            assert [run["miou"] for run in old["runs"]] == [run["miou"] for run in new["runs"]]
        return {path for path, stamp in stamps(out).items() if before[path] != stamp}

    for file in ("cell.json", "counts.npz"):  # trained, and not scored: only scored
        (gate / file).unlink()
        assert changed() == set()
        (gate / file).write_bytes((gate / file).read_bytes()[:100])
        assert changed() == set()
    model = gate / "model.safetensors"
    model.write_bytes(model.read_bytes()[:2000])
    assert changed() == {str(model)}


def test_a_changed_plan_does_again_what_depends_on_the_change(source, tmp_path) -> None:
    out, plan = tmp_path / "study", micro("bt-resnet50", "random-resnet50")
    compare(source, plan, out, hardware=QUIET)
    before = stamps(out)

    random = next(c for c in plan.configurations if c.name == "random-resnet50")
    renamed = replace(random, name="scratch")
    flatter = replace(plan.configurations[0], segment={"head": "linear", "head_options": {}})
    other = replace(plan, configurations=(flatter, renamed), questions=(), seeds=(0,))
    compare(source, other, out, hardware=QUIET)
    after = stamps(out)
    assert {path: after[path] for path in before} == before
    new = {Path(path).relative_to(out).parts[:2] for path in after.keys() - before.keys()}
    assert [(part, name.rpartition("-")[0]) for part, name in new] == [("cells", "bt-resnet50")]
    assert [c["name"] for c in read(out)["configurations"]] == ["bt-resnet50", "scratch"]

    compare(source, plan, out, hardware=QUIET)  # back again: nothing is left to do
    assert stamps(out) == after


def test_data_that_changed_is_another_study(tmp_path) -> None:
    scenes, data = Scenes(12, size=32), tmp_path / "data"
    for split in ("train", "val"):
        for kind, pixels in (("images", scenes.image), ("masks", scenes.mask)):
            (data / kind / split).mkdir(parents=True)
            for i in range(12):
                Image.fromarray(pixels(i)).save(data / kind / split / f"{i}.png")
    out = data / "runs" / "study"  # below the data itself: what is written there is no change
    plan = micro("random-resnet50")
    compare(open_source(data), plan, out, hardware=QUIET)
    compare(open_source(data), plan, out, hardware=QUIET)
    with pytest.raises(InputError, match=r"holds another study \(name differ\)"):
        compare(open_source(data), replace(plan, name="other"), out, hardware=QUIET)
    Image.fromarray(scenes.mask(1)).save(data / "masks" / "val" / "0.png")
    with pytest.raises(InputError, match=r"holds another study \(data differ\)"):
        compare(open_source(data), plan, out, hardware=QUIET)


def test_a_folder_of_another_version_is_left_alone(source, tmp_path) -> None:
    (tmp_path / "study.json").write_text(json.dumps({"preset": "tiny", "source": "scenes"}))
    with pytest.raises(InputError, match="holds a study that regard an unknown version began"):
        compare(source, micro("random-resnet50"), tmp_path, hardware=QUIET)
    (tmp_path / "study.json").write_text('{"schema"')
    with pytest.raises(InputError, match="cannot read"):
        compare(source, micro("random-resnet50"), tmp_path, hardware=QUIET)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == ["study.json"]


def test_two_processes_do_not_write_into_one_folder(source, tmp_path) -> None:
    tmp_path.joinpath("study").mkdir()
    with (
        filelock.FileLock(tmp_path / "study" / ".lock"),
        pytest.raises(InputError, match="another process is writing into"),
    ):
        compare(source, micro("random-resnet50"), tmp_path / "study", hardware=QUIET)


@pytest.mark.slow
def test_side_by_side_gives_what_one_after_the_other_gives(source, tmp_path) -> None:
    plan = micro("bt-resnet50", "bt-swin")
    for jobs in (1, 2):
        compare(source, plan, tmp_path / str(jobs), Where(jobs), QUIET)
    one, two = (read(tmp_path / str(jobs)) for jobs in (1, 2))
    for a, b in zip(one["configurations"], two["configurations"], strict=True):
        assert a["runs"][0]["miou"] == pytest.approx(b["runs"][0]["miou"], abs=1e-6)


@pytest.mark.slow
def test_a_cluster_gives_what_this_process_gives(source, tmp_path) -> None:
    plan = micro("bt-resnet50")
    compare(source, plan, tmp_path / "here", hardware=QUIET)
    compare(source, plan, tmp_path / "there", Where(2, cluster="local"), QUIET)
    here, there = (read(tmp_path / name)["configurations"][0]["runs"][0] for name in ("here", "there"))
    assert there["miou"] == pytest.approx(here["miou"], abs=1e-6)


def test_a_cell_that_fails_is_reported_and_the_others_go_on(source, tmp_path, monkeypatch, capsys) -> None:
    train, plan = segment_run, micro("bt-resnet50", "random-resnet50", "random-vit-gate", seeds=2)

    def diverge(*args, **kwargs):
        if args[3].fusion == "gate" and args[5] == 0:
            raise TrainingStopped("the loss is not finite <b>")
        return train(*args, **kwargs)

    def no_pretraining(*args, **kwargs):
        raise TrainingStopped("it collapsed")

    monkeypatch.setattr(module, "segment_run", diverge)
    monkeypatch.setattr(module, "pretrain_run", no_pretraining)
    report, failures = compare(source, plan, tmp_path / "study", hardware=QUIET)
    assert {failure.name for failure in failures} == {
        "weights barlow_twins-resnet", "bt-resnet50, seed 0", "bt-resnet50, seed 1", "random-vit-gate, seed 0",
    }  # fmt: skip
    results = read(tmp_path / "study")
    runs = {c["name"]: [run["seed"] for run in c["runs"]] for c in results["configurations"]}
    assert runs == {"bt-resnet50": [], "random-resnet50": [0, 1], "random-vit-gate": [1]}
    assert not results["complete"]
    assert [d["seeds"] for d in results["differences"]] == [1]  # over the seed that both have
    assert "it collapsed" in report.read_text()
    assert "&lt;b&gt;" in report.read_text()
    assert len(list((tmp_path / "study" / "failures").iterdir())) >= 2

    monkeypatch.undo()  # mended: only what failed is done
    before = stamps(tmp_path / "study")
    _, failures = compare(source, plan, tmp_path / "study", hardware=QUIET)
    assert failures == []
    assert read(tmp_path / "study")["complete"]
    assert all(stamps(tmp_path / "study")[path] == stamp for path, stamp in before.items())


def test_a_run_whose_attention_is_lost_counts_all_the_same(source, tmp_path, monkeypatch) -> None:
    def lost(*args, **options):
        raise InputError("attention is not finite")

    monkeypatch.setattr(module, "head_scores", lost)
    _, failures = compare(source, micro("random-vit-gate"), tmp_path / "study", hardware=QUIET)
    assert failures == []
    (run,) = read(tmp_path / "study")["configurations"][0]["runs"]
    assert run["heads"] is None
    assert run["miou"] >= 0


def test_a_frozen_backbone_is_scored_once_for_all_cells(source, tmp_path, monkeypatch) -> None:
    """Its features of the test images, and its heads; the scores are those without a cache."""
    plan = replace(micro("dino-gate", seeds=2), pretrain_each_seed=False)
    plan = replace(plan, segment=replace(plan.segment, freeze=True, cache_crops=1))
    found, scored = [], []
    monkeypatch.setattr(
        module, "head_scores", lambda *args, **options: scored.append(1) or head_scores(*args, **options)
    )
    for cache in (True, False):
        out = tmp_path / str(cache)
        _, failures = compare(source, replace(plan, cache=cache), out, hardware=QUIET)
        assert failures == []
        (one,) = read(out)["configurations"]
        found.append([(run["miou"], run["heads"]) for run in one["runs"]])
        assert len(list((out / "heads").iterdir())) == 1
    assert len(scored) == 2
    for kept, plain in zip(*found, strict=True):
        assert kept[0] == pytest.approx(plain[0], abs=2e-3)
        assert kept[1] == plain[1]


def test_solved_cells_stand_beside_trained_ones(source, tmp_path) -> None:
    plan = micro("random-vit-gate", seeds=2)
    (one,) = plan.configurations
    trained = replace(one, name="trained", label_fraction=0.5, segment={"freeze": True, "head": "segformer"})
    solved = {"freeze": True, "head": "ridge", "head_options": {}}
    rows = [replace(trained, name=name, segment={**solved, "fusion": name}) for name in ("none", "concat")]
    plan = replace(plan, configurations=(trained, *rows), questions=(("concat", "none"),), cache=True)
    _, failures = compare(source, plan, tmp_path / "study", hardware=QUIET)
    assert failures == []
    results = read(tmp_path / "study")
    assert [c["head"] for c in results["configurations"]] == ["segformer", "ridge", "ridge"]
    pooled = {(d["a"], d["b"]): d["pooled"] is not None for d in results["differences"]}
    assert pooled == {("concat", "none"): True, ("trained", "none"): False, ("trained", "concat"): False}
    first = {run["miou"] for run in results["configurations"][1]["runs"]}
    assert len(first) == 2  # each seed has labels of its own


def test_a_name_may_be_that_of_a_pretraining(source, tmp_path) -> None:
    plan = micro("bt-resnet50")
    (one,) = plan.configurations
    renamed = replace(one, name="barlow_twins-resnet")
    each = replace(plan, configurations=(renamed,), questions=(), pretrain_each_seed=True)
    _, failures = compare(source, each, tmp_path / "study", hardware=QUIET)
    assert failures == []


def test_where_nothing_comes_the_reason_is_said(source, tmp_path, monkeypatch) -> None:
    def fail(*args, **kwargs):
        raise TrainingStopped("no luck")

    monkeypatch.setattr(module, "segment_run", fail)
    with pytest.raises(InputError, match=r"nothing of .* is finished; random-resnet50, seed 0: .*no luck"):
        compare(source, micro("random-resnet50"), tmp_path / "study", hardware=QUIET)


def test_an_interrupted_study_reports_and_keeps_what_is_finished(source, tmp_path, monkeypatch) -> None:
    train, plan, out = segment_run, micro("bt-resnet50", seeds=2), tmp_path / "study"

    def interrupt_the_second(*args, **kwargs):
        if args[5] == 1:
            raise KeyboardInterrupt
        return train(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, "segment_run", interrupt_the_second)
        with pytest.raises(KeyboardInterrupt):
            compare(source, plan, out, hardware=QUIET)
    results = read(out)
    assert not results["complete"]
    assert [run["seed"] for run in results["configurations"][0]["runs"]] == [0]
    before = stamps(out)
    compare(source, plan, out, hardware=QUIET)
    assert all(stamps(out)[path] == stamp for path, stamp in before.items())
    assert [run["seed"] for run in read(out)["configurations"][0]["runs"]] == [0, 1]


def test_an_interruption_before_anything_is_finished_is_still_one(source, tmp_path, monkeypatch) -> None:
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "segment_run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compare(source, micro("random-resnet50"), tmp_path / "study", hardware=QUIET)


def test_a_folder_with_something_else_in_it_is_left_alone(source, tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="is not empty and holds no study"):
        compare(source, micro(), tmp_path, hardware=QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def _write_with_little_room(out: Path, room: int) -> None:
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that a write past the limit fails, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    source = open_source("scenes", scenes_size=32, scenes_count={"train": 16, "val": 4, "test": 6})
    compare(source, micro("random-resnet50"), out, hardware=QUIET)


def test_a_file_that_cannot_be_written_to_its_end_corrupts_nothing(source, tmp_path) -> None:
    out, plan = tmp_path / "study", micro("random-resnet50")
    process = multiprocessing.get_context("spawn").Process(target=_write_with_little_room, args=(out, 20_000))
    process.start()
    process.join()
    assert process.exitcode == 1
    assert not list(out.rglob("model.safetensors"))
    assert not list(out.rglob("cell.json"))
    compare(source, plan, out, hardware=QUIET)  # with room, it goes on
    assert read(out)["complete"]


def test_published_weights_that_cannot_be_fetched_are_replaced_and_it_is_said(source, tmp_path, monkeypatch) -> None:
    def offline(name, pretrained=False, **options):
        if pretrained:
            raise InputError("timm cannot build it: no network")
        return build_backbone(name, **options)

    plan = micro("dino-gate")
    published = replace(plan.pretrainings["dino-vit"], published="vit_small_patch16_224.dino")
    plan = replace(plan, pretrainings={**plan.pretrainings, "dino-vit": published})
    monkeypatch.setattr(module, "build_backbone", offline)
    compare(source, plan, tmp_path / "study", hardware=QUIET)
    origin = read(tmp_path / "study")["pretraining"][0]["origin"]
    assert "pre-trained here" in origin
    assert "vit_small_patch16_224.dino could not be fetched" in origin


def test_a_share_of_the_labels_and_a_frozen_backbone_reach_the_training(source, tmp_path, monkeypatch) -> None:
    seen = {}

    def look(train, val, backbone, settings, out, seed, hardware, extras):
        images = sorted({train.name(i) for i in range(len(train))})
        seen[settings.freeze, len(images)] = (len(train), images, extras.cache is not None)
        return segment_run(train, val, backbone, settings, out, seed, hardware, extras)

    monkeypatch.setattr(module, "segment_run", look)
    few = Configuration("few", "resnet", label_fraction=0.25)
    fewer = Configuration("fewer", "resnet", label_fraction=0.1)
    frozen = Configuration("frozen", "resnet", segment={"freeze": True})
    plan = replace(micro("random-resnet50"), configurations=(few, fewer, frozen), questions=(), cache=True)
    compare(source, plan, tmp_path / "study", hardware=QUIET)
    assert {key: (value[0], value[2]) for key, value in seen.items()} == {
        (False, 4): (16, False), (False, 2): (16, False), (True, 16): (16, True),
    }  # fmt: skip
    assert set(seen[False, 2][1]) < set(seen[False, 4][1])  # 10% is part of 25%
    by_name = {c["name"]: c for c in read(tmp_path / "study")["configurations"]}
    assert by_name["few"]["label_fraction"] == 0.25
    assert by_name["frozen"]["frozen"]
    assert (tmp_path / "study" / "features").is_dir()


def test_each_seed_may_have_a_pretraining_of_its_own(source, tmp_path) -> None:
    plan = replace(micro("bt-resnet50", "random-resnet50", seeds=2), pretrain_each_seed=True)
    names = [task.name for task in tasks_of(open_study(source, plan, tmp_path / "study", QUIET))]
    assert names == [
        "weights barlow_twins-resnet, seed 0", "weights barlow_twins-resnet, seed 1",
        "bt-resnet50, seed 0", "random-resnet50, seed 0", "bt-resnet50, seed 1", "random-resnet50, seed 1",
    ]  # fmt: skip
    compare(source, plan, tmp_path / "study", hardware=QUIET)
    first, second = sorted((tmp_path / "study" / "pretraining").iterdir())
    assert (first / "backbone.safetensors").read_bytes() != (second / "backbone.safetensors").read_bytes()
    assert [f"weights {p['name']}" for p in read(tmp_path / "study")["pretraining"]] == names[:2]


@pytest.mark.slow
def test_an_ablation_runs_by_the_same_means(source, tmp_path) -> None:
    plan = ablation(
        micro("bt-swin-gate"), "bt-swin-gate", {"fusion": ["none", "gate"], "label_fraction": ["1", "0.2"]}, True
    )
    report, failures = compare(source, plan, tmp_path / "study", hardware=QUIET)
    assert failures == []
    results = read(tmp_path / "study")
    assert results["kind"] == "ablate"
    assert results["axes"] == {"fusion": ["none", "gate"], "label_fraction": [1.0, 0.2]}
    assert [c["at"] for c in results["configurations"]] == [
        {"fusion": fusion, "label_fraction": share} for fusion in ("none", "gate") for share in (1.0, 0.2)
    ]
    assert "label_fraction" in report.read_text()


@pytest.mark.slow
def test_the_command_line_plans_and_reports(tmp_path, monkeypatch, capsys) -> None:
    def few(data, scenes_size):
        return open_source(data, scenes_size=scenes_size, scenes_count={"train": 16, "val": 4, "test": 6})

    monkeypatch.setattr("regard.data.source.open_source", few)
    (tmp_path / "study.yaml").write_text(
        "preset: tiny\nsize: 32\nseeds: 1\nsegment: {epochs: 1, head_options: {width: 8}}\n"
        "configurations: {a: {backbone: resnet}, b: {backbone: vit}}\nquestions: [[b, a]]\n"
    )
    out = tmp_path / "out"
    given = ["compare", "--data", "scenes", "--study", str(tmp_path / "study.yaml"), "--out", str(out)]
    main([*given, "--dry_run"])
    said = capsys.readouterr()
    assert "2 of 2 parts are to be done" in said.out
    assert "a, seed 0" in said.err
    assert not out.exists()
    main([*given, "--jobs", "1"])
    assert f"open {out / 'report.html'}" in capsys.readouterr().out
    assert read(out)["command"] == f"regard compare --data scenes --study {tmp_path / 'study.yaml'} --out {out}"
    main([*given, "--dry-run"])
    assert "all of the 2 parts are finished" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*given, "--dry-run", "--precision", "bf16-mixed"])
    assert "holds another study (precision differ)" in capsys.readouterr().err
    assert read(out)["plan"] == (tmp_path / "study.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["compare", "--study", "none.yaml"], "regard compare: none.yaml: there is no such file"),
        (["compare", "--study", "x.yaml", "--size", "64"], "--study says what is trained: leave out --size"),
        (["compare", "--seeds", "0"], "seeds 0 is out of bounds: take 1 or more"),
        (["compare", "--label_fractions", "1", "0"], "label_fraction 0 is no share"),
        (["compare", "--cluster_options", "{timeout_min: 3}"], "add --cluster slurm"),
        (["ablate", "--axis", "fusoin"], "regard ablate: unknown axis 'fusoin': did you mean 'fusion' or 'fusion_lr'?"),
        (["ablate", "--axis", "fusion", "--axis", "fusion=gate,none"], "axis fusion is given twice"),
        (["ablate", "--axis", "fusion", "--base", "x"], "unknown configuration 'x'"),
    ],
)
def test_a_wrong_command_is_one_line(arguments, line, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--data", "scenes"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert line in said.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_every_configuration_and_question_is_known_to_every_preset() -> None:
    names = {c.name for c in CONFIGURATIONS}
    assert all(a in names and b in names for a, b in QUESTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("key", preset("full").pretrainings)
def test_a_real_pretraining_step_of_the_full_preset(key: str, tmp_path) -> None:
    full = preset("full")
    choice = full.pretrainings[key]
    settings = replace(choice.settings, epochs=1, batch_size=2)
    made = pretrain_run(
        Scenes(2, size=256), full.backbones[choice.backbone].build(), settings, tmp_path, hardware=QUIET
    )
    assert made.steps == 1
    assert np.isfinite(made.curve[0]["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("configuration", [c for c in CONFIGURATIONS if not c.baseline], ids=lambda c: c.name)
def test_a_real_training_step_of_the_full_preset(configuration, tmp_path) -> None:
    full = preset("full")
    settings = replace(full.segment, epochs=1, batch_size=2)
    scenes = Scenes(2, size=256)
    backbone = full.backbones[configuration.backbone].build()
    made = segment_run(scenes, scenes, backbone, settings, tmp_path, hardware=QUIET)
    assert np.isfinite(made.curve[0].train_loss)
    assert made.settings.size == 224
