"""Ablations: what each axis changes, what is held against what, and what cannot be varied."""

from dataclasses import replace

import pytest

from regard.errors import InputError
from regard.settings import options
from regard.studies.ablate import AXES, SETTINGS, USUAL, ablation, find_axis, word
from regard.studies.plan import check_plan
from regard.studies.presets import preset

PLAN = preset("tiny", 32)


def test_one_axis_at_a_time_departs_from_the_base_once() -> None:
    plan = ablation(PLAN, "bt-swin-gate", {"fusion": None, "label_fraction": ["1", "0.1"]})
    assert (plan.kind, dict(plan.axes)) == (
        "ablate",
        {"fusion": ("none", "concat", "gate", "propagate"), "label_fraction": (1.0, 0.1)},
    )
    base = plan.configurations[0]
    assert base.name == "base (bt-swin-gate)"
    assert [c.name for c in plan.configurations[1:]] == [
        "fusion none", "fusion concat", "fusion propagate", "label_fraction 0.1",
    ]  # fmt: skip
    for c in plan.configurations[1:]:
        assert sum(c.at[axis] != base.at[axis] for axis in plan.axes) == 1
    assert plan.questions == tuple((c.name, base.name) for c in plan.configurations[1:])
    check_plan(plan)


def test_a_value_of_the_base_that_is_not_among_the_others_is_one_more() -> None:
    plan = ablation(PLAN, "bt-swin-gate", {"lr": ["0.5", "0.25"]})
    own = PLAN.settings(plan.configurations[0]).lr
    assert dict(plan.axes) == {"lr": (own, 0.5, 0.25)}
    assert [c.at["lr"] for c in plan.configurations] == [own, 0.5, 0.25]


def test_a_grid_has_every_combination_held_against_the_first_value() -> None:
    plan = ablation(PLAN, "bt-swin-gate", {"fusion": ["none", "gate"], "label_fraction": ["1", "0.1", "0.01"]}, True)
    at = {(plan.settings(c).fusion, c.label_fraction): c.name for c in plan.configurations}
    assert len(at) == len(plan.configurations) == 6
    assert at["gate", 0.1] == "fusion gate, label_fraction 0.1"
    assert set(plan.questions) == {(at["gate", share], at["none", share]) for share in (1.0, 0.1, 0.01)}
    check_plan(plan)


@pytest.mark.parametrize("axis", [*USUAL, *AXES])
def test_the_usual_values_of_every_axis_can_be_trained(axis) -> None:
    plan = ablation(PLAN, "bt-swin-gate", {axis: None})
    check_plan(plan)
    assert len(plan.configurations) == len(plan.axes[axis])  # the base has one of the values


@pytest.mark.parametrize(
    ("axis", "text", "changed"),
    [
        ("fusion", "concat", lambda plan, c: plan.settings(c).fusion == "concat"),
        ("head", "linear", lambda plan, c: (plan.settings(c).head, plan.settings(c).head_options) == ("linear", {})),
        ("layers", "0+-1", lambda plan, c: plan.settings(c).layers == (0, -1)),
        ("heads_kept", "2", lambda plan, c: plan.settings(c).heads_kept == 2),
        ("guidance", "sharpness:2+diversity:0", lambda plan, c: plan.settings(c).guided == {"sharpness": 2.0}),
        ("guidance", "sharpness", lambda plan, c: plan.settings(c).guided == {"sharpness": 0.1}),
        (
            "guidance", "sharpness:2+diversity:1",
            lambda plan, c: plan.settings(c).guided == {"sharpness": 2.0, "diversity": 1.0},
        ),
        ("label_fraction", "0.25", lambda plan, c: c.label_fraction == 0.25),
        ("freeze", "yes", lambda plan, c: plan.settings(c).freeze),
        ("crop", "16", lambda plan, c: plan.settings(c).crop == 16),
        ("lr", "5e-4", lambda plan, c: plan.settings(c).lr == 5e-4),
        ("loss", "cross_entropy+dice", lambda plan, c: plan.settings(c).loss == "cross_entropy+dice"),
        (
            "pretrain_guidance", "diversity",
            lambda plan, c: plan.pretrainings[c.pretraining].settings.guided == {"diversity": 100.0},
        ),
        (
            "projector", "64",
            lambda plan, c: plan.pretrainings[c.pretraining].settings.method_options["widths"] == (64, 64, 64),
        ),
        (
            "lambda", "0.5",
            lambda plan, c: plan.pretrainings[c.pretraining].settings.method_options.get("lambda_") == 0.5,
        ),
    ],
)  # fmt: skip
def test_an_axis_changes_what_it_is_named_for_and_nothing_else(axis, text, changed) -> None:
    start = next(c for c in PLAN.configurations if c.name == "bt-swin-gate")
    found = find_axis(axis)
    plan, c = found.vary(PLAN, start, found.parse(text))
    assert changed(plan, c)
    assert not changed(PLAN, start)
    assert found.own(plan, c) == found.parse(text)
    back, same = found.vary(plan, c, found.own(PLAN, start))
    options = PLAN.settings(start).head_options  # which a head in between may not have had
    assert replace(back.settings(same), head_options=options) == PLAN.settings(start)
    assert same.label_fraction == 1.0
    assert found.parse(word(found.parse(text))) == found.parse(text)
    before = {name: choice for name, choice in plan.pretrainings.items() if name in PLAN.pretrainings}
    assert before == PLAN.pretrainings


def test_where_pretraining_is_varied_all_of_it_is_made_here_and_none_is_fetched() -> None:
    full = preset("full")
    assert full.pretrainings["dino-vit"].published
    plan = ablation(full, "dino-gate", {"pretrain_guidance": ["none", "sharpness:1"]})
    used = {c.pretraining for c in plan.configurations}
    assert len(used) == 2
    assert all(plan.pretrainings[name].published is None for name in used)
    assert ablation(full, "dino-gate", {"fusion": None}).pretrainings["dino-vit"].published


def test_every_setting_is_an_axis_or_left_out_knowingly() -> None:
    left = {option.name for option in options(type(PLAN.segment))} - {*AXES, *SETTINGS}
    assert left == {"size", "scale", "head_options", "cache_crops", "groups"}


@pytest.mark.parametrize(
    ("base", "axes", "line"),
    [
        ("bt-swn-gate", {"fusion": None}, "unknown configuration 'bt-swn-gate': did you mean 'bt-swin-gate'"),
        ("bt-swin-gate", {"fusoin": None}, "unknown axis 'fusoin': did you mean 'fusion' or 'fusion_lr'?"),
        ("bt-swin-gate", {}, "no axis to vary"),
        ("bt-swin-gate", {"fusion": ["gate"]}, "axis fusion needs two values or more"),
        ("bt-swin-gate", {"fusion": ["gate", "gte"]}, "axis fusion: unknown fusion 'gte': did you mean 'gate'"),
        ("bt-swin-gate", {"label_fraction": ["1", "2"]}, "axis label_fraction: 2 is no share"),
        ("bt-swin-gate", {"heads_kept": ["all", "0"]}, "axis heads_kept: heads_kept 0 is out of bounds"),
        (
            "bt-swin-gate",
            {"heads_kept": ["all", "x"]},
            "axis heads_kept: heads_kept should be a whole number",
        ),
        ("bt-swin-gate", {"layers": ["all", "x"]}, "axis layers: layers should be"),
        ("bt-swin-gate", {"guidance": ["none", "sharp"]}, "axis guidance: unknown value 'sharp'"),
        ("bt-swin-gate", {"lr": None}, "axis lr has no usual values"),
        ("bt-swin-gate", {"epochs": ["1", "x"]}, "axis epochs: epochs should be a whole number, not 'x'"),
        ("dino-gate", {"lambda": None}, "dino-gate is not pre-trained by Barlow Twins"),
        ("random-swin", {"lambda": None}, "random-swin has no pre-training of its own to vary"),
    ],
)
def test_what_cannot_be_varied_is_one_line(base, axes, line) -> None:
    with pytest.raises(InputError) as error:
        ablation(PLAN, base, axes)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_what_does_not_go_together_is_said_before_anything_is_trained() -> None:
    plan = ablation(PLAN, "bt-swin-gate", {"fusion": ["none", "gate"], "layers": ["all", "0"]}, True)
    with pytest.raises(InputError, match="configuration 'fusion none, layers 0'"):
        check_plan(plan)
    axes = {"lr": [f"{i}e-4" for i in range(1, 30)], "fusion": None, "head": None}
    with pytest.raises(InputError, match="a grid of 464 configurations"):
        ablation(PLAN, "bt-swin-gate", axes, True)
