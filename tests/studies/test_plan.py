"""Plans: what a file may say, what it changes, and what depends on what."""

from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest

from regard.errors import InputError
from regard.settings import PRESETS, PretrainSettings, SegmentSettings
from regard.studies.plan import Configuration, PretrainingChoice, check_plan, spread
from regard.studies.plan_file import read_plan
from regard.studies.presets import preset


def written(folder: Path, text: str, start: str = "preset: tiny\n") -> Path:
    path = folder / "study.yaml"
    path.write_text(start + dedent(text))
    return path


def test_a_file_changes_what_it_says_and_nothing_else(tmp_path) -> None:
    plan = read_plan(
        written(
            tmp_path,
            """
            size: 32
            seeds: [3, 5]
            cache: true
            backbones:
              vit: {label: Thin}
              small: {name: resnet18, options: {channels: [8, 8, 8, 8]}}
            pretrainings:
              barlow_twins-swin: {epochs: 7, method_options: {lr: 1e-3}}
              bt-vit: {backbone: vit, method: barlow_twins, optimizer: adamw}
              dino-small: {backbone: small, method: dino}
            segment: {lr: 2e-3, weight_decay: 0.5}
            configurations:
              bt-swin-gate:
              dino: {fusion: concat, baseline: false}
              mine: {pretraining: bt-vit, label_fraction: 0.1, segment: {head: fcn, freeze: true}}
              random: {backbone: small}
            questions: [[mine, dino]]
            """,
        )
    )
    tiny = preset("tiny", 32)
    assert (plan.name, plan.seeds, plan.cache) == ("study", (3, 5), True)
    assert plan.backbones["vit"] == replace(tiny.backbones["vit"], label="Thin")
    assert plan.backbones["small"].label == "small"
    before, after = (p.pretrainings["barlow_twins-swin"].settings for p in (tiny, plan))
    assert after == replace(before, epochs=7, method_options=before.method_options | {"lr": 1e-3})
    ours = PretrainSettings(size=32, local_size=32, optimizer="adamw")  # the study's size
    assert plan.pretrainings["bt-vit"] == PretrainingChoice("vit", ours)
    assert plan.segment.lr == 2e-3
    assert plan.segment.weight_decay == 0.5
    assert replace(plan.segment, lr=tiny.segment.lr, weight_decay=tiny.segment.weight_decay) == tiny.segment
    gate, dino, mine, random = plan.configurations
    assert gate == next(c for c in tiny.configurations if c.name == "bt-swin-gate")
    assert dino == Configuration("dino", "vit", "dino-vit", segment={"fusion": "concat"})
    assert mine == Configuration("mine", "vit", "bt-vit", label_fraction=0.1, segment={"head": "fcn", "freeze": True})
    cached = {"cache_crops": plan.segment.epochs}  # frozen: the crops that it would see without a cache
    assert plan.settings(mine) == replace(plan.segment, head="fcn", freeze=True, **cached)
    one = replace(mine, segment={**mine.segment, "cache_crops": 1})
    assert plan.settings(one).cache_crops == 1
    assert replace(plan, cache=False).settings(mine) == replace(plan.segment, head="fcn", freeze=True)
    assert random == Configuration("random", "small")
    assert plan.questions == (("mine", "dino"),)


def test_the_note_of_a_preset_is_said_of_its_backbones_alone(tmp_path) -> None:
    assert "Preset tiny" in read_plan(written(tmp_path, "configurations: {bt-swin: {}}")).note
    own = "backbones: {b: {name: resnet10t}}\nconfigurations: {mine: {backbone: b}}\nquestions: []\n"
    assert read_plan(written(tmp_path, own)).note == ""
    assert read_plan(written(tmp_path, f"{own}note: mine")).note == "mine"


def test_without_configurations_a_file_has_those_of_its_preset(tmp_path) -> None:
    plan = read_plan(written(tmp_path, "seeds: 1"))
    assert plan.configurations == tuple(c for c in preset("tiny").configurations if not c.baseline)
    assert all({a, b} <= {c.name for c in plan.configurations} for a, b in plan.questions)
    check_plan(plan)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("segmnt: {}", "unknown key 'segmnt': did you mean 'segment'"),
        ("segment: {epohcs: 3}", "segment: unknown setting 'epohcs': did you mean 'epochs'?"),
        ("segment: {epochs: 2.5}", "segment: epochs should be a whole number, not 2.5"),
        ("segment: {epochs: 0}", "segment: epochs 0 is out of bounds: take 1 or more"),
        ("segment: {average: 3}", "segment: average should be none or ema or swa, not 3"),
        ("seeds: many", "seeds should be a whole number or a list"),
        ("seeds: 1000000000", "seeds: more than 1,000 are asked for: 3 to 10 are usual"),
        ("seeds: [0, 4294967296]", "a seed 4,294,967,296 is out of bounds: take 0 or more, up to 4,294,967,295"),
        ("seeds: [-1]", "a seed -1 is out of bounds"),
        ("segment: {head_options: {width: 1000000000}}", "width of head segformer 1,000,000,000 is out of bounds"),
        ("pretrainings: {barlow_twins-swin: {method_options: {widths: [8, -1]}}}", "widths of barlow_twins should be"),
        ("seeds: 0", "are not different numbers from 0"),
        ("backbones: {x: {nam: resnet18}}", "backbones.x: unknown key 'nam': did you mean 'name'?"),
        ("backbones: {x: {label: A}}", "backbones.x: it has no name"),
        ("pretrainings: {x: {method: dino}}", "pretrainings.x: it has no backbone"),
        ("pretrainings: {x: {backbone: vit, metod: dino}}", "unknown key 'metod': did you mean 'method'"),
        ("pretrainings: {x: {backbone: vt, method: dino}}", "unknown backbone of pretrainings.x 'vt'"),
        ("pretrainings: {x: {backbone: vit, method: dno}}", "pretrainings.x: unknown method 'dno'"),
        ("pretrainings: {x: {backbone: vit}}", "pretrainings.x needs either a method, or weights: FILE"),
        ("pretrainings: {x: {backbone: vit, weights: none.pth}}", "pretrainings.x: no file at none.pth"),
        ("pretrainings: {dino-vit: {method_options: {lamda: 1}}}", "dino-vit: unknown option of dino 'lamda'"),
        ("configurations: {x: {fusoin: gate}}", "configurations.x: unknown key 'fusoin': did you mean 'fusion'?"),
        ("configurations: {x: {fusion: gate}}", "configurations.x: it needs a backbone"),
        ("configurations: {x: {pretraining: y}}", "configurations.x: unknown pretraining 'y'"),
        ("configurations: {x: {backbone: resnet, fusion: gate}}", "configuration 'x': fusion gate needs attention"),
        ("configurations: {x: {backbone: vit, fusion: gat}}", "configurations.x: segment: unknown fusion 'gat'"),
        ("configurations: {x: {backbone: vit, pretraining: barlow_twins-swin}}", "is of backbone swin, not of vit"),
        ("configurations: {x: {backbone: vit, label_fraction: 2}}", "label_fraction 2 is no share"),
        ("configurations: {x: {backbone: vit, segment: {head: fnc}}}", "configurations.x: segment: unknown head 'fnc'"),
        ("configurations: {x: {backbone: vit}, y: {backbone: vit}}", "'x' and 'y' are the same in all but name"),
        ("configurations: {}", "the study has no configurations"),
        ("configurations:", "configurations is empty: give it a value"),
        ("segment: {lr: .nan}", "segment: lr nan is out of bounds"),
        ("segment: {loss: cros_entropy}", "unknown loss 'cros_entropy'"),
        ("segment: {schedule: cosin}", "schedule should be poly or cosine, not 'cosin'"),
        ("segment: {average: emma}", "average should be none or ema or swa, not 'emma'"),
        ("segment: {class_share: 0.0}", "class_share 0 is out of bounds: take a number above 0, up to 1"),
        ("segment: {warmup: 3.0}", "warmup 3 is out of bounds"),
        ("segment: {layer_decay: 0.0}", "layer_decay 0 is out of bounds"),
        ("segment: {scale: [2.0, 0.5]}", "a scale from 2 to 0.5 is none"),
        ("segment: {jitter: 5.0}", "jitter 5 is out of bounds"),
        ("configurations: {x: {backbone: vit, label_fraction: 0.1}}\nlabel_fractions: [1.0, 0.5]", "of its own"),
        ("configurations: {x: {backbone: vit, segment: {freeze: true}}}\nfrozen: [true, false]", "says freeze itself"),
        ("questions: [[bt-swin, bt-swin]]", "is asked twice, or of one configuration"),
        ("questions: [[bt-swin, bt-swin-gate], [bt-swin-gate, bt-swin]]", "is asked twice"),
        (
            "configurations: {x: {backbone: vit, fusion: gate}, "
            "y: {backbone: vit, fusion: gate, segment: {heads_kept: 3, layers: [0, 1, 2, -1]}}}",
            "'x' and 'y' are the same in all but name",
        ),
        ("questions: [[bt-swin, bt-swn]]", "unknown configuration in questions 'bt-swn': did you mean 'bt-swin'"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_line(text, line, tmp_path) -> None:
    with pytest.raises(InputError) as error:
        check_plan(read_plan(written(tmp_path, text)))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


PATCH_14 = {"img_size": 56, "patch_size": 14, "embed_dim": 12, "depth": 4, "num_heads": 3}
OWN = f"""
    backbones: {{vit: {{name: vit_tiny_patch16_224, options: {PATCH_14}}}, cnn: {{name: resnet10t}}}}
    pretrainings: {{mine: {{backbone: vit, method: dino}}}}
    configurations: {{a: {{pretraining: mine}}, b: {{backbone: cnn}}}}
"""


def test_a_file_without_a_preset_inherits_nothing(tmp_path) -> None:
    plan = read_plan(written(tmp_path, f"size: 224\n{dedent(OWN)}", start=""))
    assert plan.segment == SegmentSettings(size=224)
    assert plan.pretrainings["mine"].settings == PretrainSettings(method="dino", size=224, local_size=98)  # of 14
    assert (plan.note, plan.questions, {*plan.backbones}) == ("", (), {"vit", "cnn"})
    check_plan(plan)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("- a", "should hold keys with values"),
        ("a: [", "is not YAML"),
        ("preset: huge", "unknown preset 'huge'"),
        ("seeds: 1", "it compares nothing: give it configurations, or those of a preset (tiny, small, full)"),
        ("configurations: {bt-swin: {}}", "it needs a backbone"),
        (f"size: 64\n{dedent(OWN)}", "size 64 is no multiple of every patch (vit 14): take 56 or 70"),
        (f"size: 10\n{dedent(OWN)}", "size 10 is no multiple of every patch (vit 14): take 14"),
    ],
)
def test_a_wrong_file_without_a_preset_is_one_line(text, line, tmp_path) -> None:
    with pytest.raises(InputError) as error:
        check_plan(read_plan(written(tmp_path, text, start="")))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        read_plan(tmp_path / "none.yaml")


def test_weights_of_a_file_take_the_place_of_a_pretraining(tmp_path) -> None:
    (tmp_path / "w.pth").write_bytes(b"weights")
    plan = read_plan(written(tmp_path, f"pretrainings: {{barlow_twins-resnet: {{weights: {tmp_path / 'w.pth'}}}}}"))
    choice = plan.pretrainings["barlow_twins-resnet"]
    assert (choice.settings, choice.weights) == (None, str(tmp_path / "w.pth"))
    check_plan(plan)
    key = plan.pretraining_key("barlow_twins-resnet", 0)
    (tmp_path / "w.pth").write_bytes(b"other weights")
    assert plan.pretraining_key("barlow_twins-resnet", 0) != key


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_plan_that_works(name) -> None:
    plan = preset(name)
    assert plan.name == name
    check_plan(plan)


def test_a_key_changes_with_what_it_depends_on_and_with_nothing_else() -> None:
    plan = replace(preset("tiny"), pretrain_each_seed=False)
    gate, resnet = (next(c for c in plan.configurations if c.name == name) for name in ("bt-swin-gate", "bt-resnet50"))

    def keys(other) -> tuple[str, str]:
        return other.cell_key(gate), other.cell_key(resnet)

    before = keys(plan)
    assert keys(replace(plan, seeds=(0,), note="other", questions=(), name="x", axes={"a": (1,)})) == before
    assert plan.cell_key(replace(gate, name="renamed", baseline=True, at={"a": 1})) == before[0]
    swin = plan.pretrainings["barlow_twins-swin"]
    longer = replace(swin, settings=replace(swin.settings, epochs=99))
    changed = keys(replace(plan, pretrainings={**plan.pretrainings, "barlow_twins-swin": longer}))
    assert (changed[0] != before[0], changed[1] == before[1]) == (True, True)
    wider = replace(plan.backbones["swin"], options={**plan.backbones["swin"].options, "embed_dim": 64})
    changed = keys(replace(plan, backbones={**plan.backbones, "swin": wider}))
    assert (changed[0] != before[0], changed[1] == before[1]) == (True, True)
    for other in (
        replace(plan, segment=replace(plan.segment, lr=1.0)),
        replace(plan, pretrain_each_seed=True),
    ):
        assert all(a != b for a, b in zip(keys(other), before, strict=True))
    random = next(c for c in plan.configurations if c.name == "random-swin")
    assert replace(plan, pretrain_each_seed=True).cell_key(random) == plan.cell_key(random)
    frozen = replace(gate, segment={**gate.segment, "freeze": True})
    assert plan.cell_key(replace(frozen, segment={**frozen.segment, "backbone_lr": 0.5})) == plan.cell_key(frozen)
    assert (
        plan.cell_key(replace(gate, segment={**gate.segment, "crop": 64})) == before[0]
    )  # as without: the images' size
    fewer = replace(plan, backbones={("thin" if k == "swin" else k): v for k, v in plan.backbones.items()})
    other = {k: replace(p, backbone="thin") if p.backbone == "swin" else p for k, p in plan.pretrainings.items()}
    assert replace(fewer, pretrainings=other).cell_key(replace(gate, backbone="thin")) == plan.cell_key(gate)
    for other in (
        replace(gate, segment={"fusion": "concat"}),
        replace(gate, label_fraction=0.5),
        replace(gate, segment={**gate.segment, "head": "fcn"}),
        replace(gate, pretraining=None),
    ):
        assert plan.cell_key(other) != before[0]


@pytest.mark.parametrize(
    ("questions", "said", "own"),
    [
        ([("bt-swin", "bt-resnet50")], None, True),
        ([("bt-swin", "random-swin")], None, True),
        ([("bt-swin", "bt-swin-gate"), ("random-swin", "random-resnet50")], None, False),
        ([("dino-gate", "random-vit-gate")], None, False),  # of a file
        ([("bt-swin", "bt-resnet50")], False, False),
        ([("bt-swin", "bt-swin-gate")], True, True),
    ],
)
def test_each_seed_has_a_pretraining_of_its_own_where_a_question_compares_pretrainings(questions, said, own) -> None:
    plan = preset("tiny")
    file = replace(plan.pretrainings["dino-vit"], settings=None, weights="file.pth")
    plan = replace(plan, pretrainings={**plan.pretrainings, "dino-vit": file}, questions=tuple(questions))
    plan = replace(plan, pretrain_each_seed=said)
    assert (plan.own_pretrainings, plan.pretraining_seed(3)) == (own, 3 if own else 0)
    assert len(plan.seeds) == 5


def test_a_pretraining_is_shared_by_all_seeds_unless_each_has_its_own() -> None:
    plan = replace(preset("tiny"), pretrain_each_seed=False)
    assert plan.pretraining_key("dino-vit", 0) == plan.pretraining_key("dino-vit", 1)
    each = replace(plan, pretrain_each_seed=True)
    assert each.pretraining_key("dino-vit", 0) != each.pretraining_key("dino-vit", 1)
    assert each.pretraining_key("dino-vit", 0) == plan.pretraining_key("dino-vit", 0)


def test_every_configuration_is_spread_over_labels_and_freezing() -> None:
    plan = replace(
        preset("tiny"),
        configurations=(
            Configuration("a", "vit"),
            Configuration("b", "vit", segment={"fusion": "gate", "head": "fcn"}),
        ),
        questions=(("b", "a"),),
    )
    wide = spread(plan, [1.0, 0.1], [False, True])
    assert wide.axes == {"label_fraction": (1.0, 0.1), "frozen": (False, True)}
    assert [c.name for c in wide.configurations if wide.settings(c).fusion == "none"] == [
        "a · 100% of labels · fine-tuned", "a · 100% of labels · frozen",
        "a · 10% of labels · fine-tuned", "a · 10% of labels · frozen",
    ]  # fmt: skip
    last = wide.configurations[-1]
    assert (last.label_fraction, dict(last.segment)) == (0.1, {"fusion": "gate", "head": "fcn", "freeze": True})
    assert last.at == {"label_fraction": 0.1, "frozen": True}
    assert len(wide.questions) == 4
    assert all(a.partition(" · ")[2] == b.partition(" · ")[2] for a, b in wide.questions)
    assert spread(plan, [1.0]).configurations == plan.configurations
    own = replace(plan, configurations=(Configuration("a", "vit", segment={"freeze": True}, label_fraction=0.5),))
    assert all(c.segment["freeze"] for c in spread(replace(own, questions=()), None, None).configurations)
    only = spread(plan, [1.0], [True])
    assert (only.axes, [c.name for c in only.configurations]) == ({}, ["a", "b"])
    assert all(only.settings(c).freeze for c in only.configurations)
