"""What a sweep may choose: read as written, refused at once where it could not be used."""

import ast
import random
from pathlib import Path

import pytest
import torch
import yaml

from regard.backbones import build_backbone
from regard.errors import InputError
from regard.settings import SegmentSettings
from regard.studies.space import OPTIONS, Range, check_space, default_space, parse_space, read_space

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3}


class Dice:
    """An Optuna trial as far as a space needs it, which draws evenly; it keeps what was asked of it."""

    def __init__(self, seed: int, **given) -> None:
        self.random, self.given, self.asked = random.Random(seed), given, {}

    def suggest_categorical(self, name, choices):
        self.asked[name] = choices
        return self.given.get(name, self.random.choice(choices))

    def suggest_int(self, name, low, high, log, step):
        self.asked[name] = (low, high, log, step)
        return self.random.randrange(low, high + 1, step)

    def suggest_float(self, name, low, high, log, step):
        self.asked[name] = (low, high, log, step)
        return self.random.uniform(low, high)


def test_a_file_says_ranges_choices_and_what_is_fixed(tmp_path) -> None:
    (tmp_path / "space.yaml").write_text(
        "lr: {low: 1e-4, high: 1e-2, log: true}\nbatch_size: {low: 8, high: 30, step: 8}\nfusion: [none, gate]\n"
        "freeze: [true, false]\ncrop: [null, 24]\nloss: cross_entropy + dice\nweight_decay: [1e-3]\n"
    )
    space = read_space(tmp_path / "space.yaml")
    assert space.varied == {
        "lr": Range(1e-4, 1e-2, log=True),
        "batch_size": Range(8, 24, step=8),  # 30 is not in the steps from 8
        "fusion": ("none", "gate"),
        "freeze": (True, False),
        "crop": (None, 24),
    }
    assert space.fixed == {"loss": "cross_entropy + dice", "weight_decay": 0.001}
    trial = Dice(0)
    chosen = space.suggest(trial)
    assert trial.asked["lr"] == (1e-4, 1e-2, True, None)
    assert trial.asked["batch_size"] == (8, 24, False, 8)
    assert chosen.keys() == space.varied.keys() | space.fixed.keys()


def test_a_space_reads_back_what_it_says_of_itself() -> None:
    written = {
        "lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "batch_size": {"low": 8, "high": 24, "step": 8},
        "fusion": ["none", "gate"],
        "freeze": False,
    }
    space = parse_space(written)
    assert space.described() == written
    assert parse_space(yaml.safe_load(yaml.safe_dump(space.described()))) == space


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"fusoin": ["none", "gate"]}, r"unknown option of the space 'fusoin': did you mean 'fusion' or 'fusion_lr'\?"),
        ({"epochs": [1, 2]}, "epochs cannot be swept: trials of other lengths .*: give --epochs"),
        ({"lr": {"low": 1, "high": 0.1}}, "the range of lr is empty: low 1 is not below high 0.1"),
        ({"lr": {"low": 1, "high": 1}}, "the range of lr is empty"),
        ({"lr": {"low": 0, "high": 1, "log": True}}, "no logarithm at 0: take a low above 0"),
        ({"lr": {"low": 0.1, "high": 1, "log": True, "step": 0.1}}, "log and step of lr do not go together"),
        ({"lr": {"low": 0.1, "high": 1, "log": "yes"}}, "log of lr should be true or false, not 'yes'"),
        ({"lr": {"low": 0.1, "high": 1, "step": 2}}, "the step of lr is 2: take one above 0, up to 0.9"),
        ({"lr": {"low": 0.1, "hihg": 1}}, r"unknown key of lr 'hihg': did you mean 'high'\?"),
        ({"lr": {"low": 0.1}}, "the range of lr needs low and high"),
        ({"lr": {"low": "small", "high": 1}}, "lr should be a number, not 'small'"),
        ({"lr": [0.1, -0.1]}, "lr -0.1 is out of bounds: take 0 or more"),
        ({"warmup": [0.1, 1.5]}, "warmup 1.5 is out of bounds: take 0 or more, below 1"),
        ({"lr": [0.1, ".inf", float("inf")]}, "lr should be a number, not '.inf'"),
        ({"lr": [0.1, True]}, "lr should be a number, not True"),
        ({"lr": [0.1, None]}, "lr should be a number, not None"),
        ({"batch_size": {"low": 4, "high": 8.5}}, "batch_size should be a whole number, not 8.5"),
        ({"fusion": {"low": 1, "high": 2}}, "fusion is no number, so it has no range"),
        ({"fusion": ["none", "gat"]}, r"unknown fusion 'gat': did you mean .*'gate'"),
        ({"freeze": ["yes", "no"]}, "freeze should be true or false, not 'yes'"),
        ({"head": [3, "fcn"]}, "head should be a word, not 3"),
        ({"loss": ["cross_entropy", "dize"]}, "dize"),
        ({"lr": []}, "lr has no choices"),
        ({"lr": [0.1, 0.1]}, "lr has a choice twice: 0.1, 0.1"),
        ({"lr": [0.1], "head": "fcn"}, "nothing varies in this space"),
        ({"freeze": True, "backbone_lr": [0.1, 0.2]}, "a frozen backbone has no backbone_lr"),
    ],
)
def test_what_could_not_be_used_is_said_at_once(written: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        parse_space(written)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["- lr", "", "lr: {low: 1", "\x00"])
def test_a_file_that_is_no_space_is_one_line(text: str, tmp_path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"space\.yaml") as error:
        read_space(path)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="there is no such file"):
        read_space(tmp_path / "none.yaml")


def test_a_frozen_backbone_is_given_no_rate() -> None:
    space = parse_space(
        {
            "backbone_lr": {"low": 1e-5, "high": 1e-3},
            "guide_sharpness": [0.0, 1.0],
            "freeze": [True, False],
            "layer_decay": 0.75,
        }
    )
    learning, frozen = (space.suggest(Dice(0, freeze=freeze)) for freeze in (False, True))
    assert learning.keys() == {"backbone_lr", "freeze", "layer_decay", "guide_sharpness"}
    assert frozen.keys() == {"freeze"}


def test_the_fusion_none_is_given_no_heads() -> None:
    written = {"heads_kept": {"low": 1, "high": 2}, "fusion": ["none", "gate"]}
    space = parse_space(written)
    for fusion, keys in (("none", {"fusion"}), ("gate", {"fusion", "heads_kept"})):
        assert space.suggest(Dice(0, fusion=fusion)).keys() == keys
    fixed = parse_space({"heads_kept": 2, "fusion": ["none", "gate"]})
    assert fixed.whole({"fusion": "none"}) == {"fusion": "none"}
    assert SegmentSettings(**fixed.whole({"fusion": "gate"})).heads_kept == 2

    backbone = build_backbone("vit_tiny_patch16_224", **VIT)
    check_space(space, backbone, SegmentSettings(head="linear"))
    for nothing in ({"heads_kept": [1, 2]}, {"heads_kept": 1, "fusion": "none", "lr": [0.1, 0.2]}):
        with pytest.raises(
            InputError, match="fusion none sees no attention heads: leave out heads_kept, or add fusion"
        ):
            check_space(parse_space(nothing), backbone, SegmentSettings(head="linear"))


def test_the_options_come_to_the_settings_of_segment() -> None:
    options = {"fusion": "gate", "lr": 0.1, "class_share": 0.7, "guide_diversity": 0.5, "head": "fcn"}
    expected = SegmentSettings(
        size=32, epochs=3, fusion="gate", lr=0.1, class_share=0.7, head="fcn", guide_diversity=0.5
    )
    assert SegmentSettings(**options, size=32, epochs=3) == expected


def test_the_default_space_holds_the_defaults_and_fusions_only_where_there_is_attention() -> None:
    vit = default_space(build_backbone("vit_tiny_patch16_224", **VIT))
    resnet = default_space(build_backbone("resnet18", channels=(8, 16, 16, 16)))
    assert vit.varied.keys() - resnet.varied.keys() == {"fusion"}
    for space in (vit, resnet):
        assert space.usual() == {name: OPTIONS[name].default for name in space.varied}


def test_what_is_said_of_all_trials_gives_way_to_what_one_chose() -> None:
    """A frozen backbone has no rate, and the fusion none no heads, whoever said so."""
    backbone = build_backbone("vit_tiny_patch16_224", **VIT)
    assert "backbone_lr" not in default_space(backbone, SegmentSettings(freeze=True)).varied
    space = parse_space({"freeze": [True, False], "fusion": ["none", "gate"]})
    said = {"layer_decay": 0.5, "guide_sharpness": 1.0, "layers": (0,), "heads_kept": 1}
    frozen, learning = (space.suggest(Dice(0, freeze=freeze, fusion=fusion), said) for freeze, fusion in
                        ((True, "none"), (False, "gate")))  # fmt: skip
    assert frozen == {"freeze": True, "fusion": "none"}
    assert learning == said | {"freeze": False, "fusion": "gate"}
    rates = parse_space({"backbone_lr": [1e-3, 1e-4], "lr": [0.1, 0.2]})
    assert "backbone_lr" not in rates.suggest(Dice(0), {"freeze": True})


def test_what_is_said_is_not_varied_too() -> None:
    backbone, said = build_backbone("resnet18", channels=(8, 16, 16, 16)), SegmentSettings(lr=0.02)
    assert default_space(backbone).varied.keys() - default_space(backbone, said).varied.keys() == {"lr"}
    for space, settings, message in (
        (parse_space({"lr": [0.1, 0.2]}), said, "the space says what lr is"),
        (parse_space({"lr": [0.1, 0.2]}), SegmentSettings(cache_crops=2), "trials have no cache"),
    ):
        with pytest.raises(InputError, match=message):
            check_space(space, backbone, settings)


def test_only_defaults_that_a_trial_could_have_are_tried_first() -> None:
    space = parse_space(
        {"lr": {"low": 0.1, "high": 1}, "batch_size": {"low": 4, "high": 20, "step": 6}, "head": ["segformer", "fcn"]}
    )
    assert space.usual() == {"batch_size": 16, "head": "segformer"}
    assert parse_space({"batch_size": {"low": 4, "high": 20, "step": 8}}).usual() == {}  # 4, 12 or 20


@pytest.mark.parametrize(
    ("written", "fixed", "message"),
    [
        ({"fusion": ["none", "gate"]}, {}, "attention"),
        ({"lr": [0.1, 0.2]}, {"head": "segfromer"}, r"did you mean 'segformer'\?"),
        ({"guide_sharpness": [0.0, 1.0]}, {}, "guid"),
    ],
)
def test_choices_that_do_not_fit_the_backbone_are_said_before_any_trial(written, fixed, message) -> None:
    backbone = build_backbone("resnet18", channels=(8, 16, 16, 16))
    before = torch.random.get_rng_state()
    with pytest.raises(InputError, match=message):
        check_space(parse_space(written), backbone, SegmentSettings(**{"epochs": 4} | fixed))
    check_space(parse_space({"lr": [0.1, 0.2], "head": ["fcn", "unet"]}), backbone, SegmentSettings())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_documented_example_works(tmp_path: Path) -> None:
    from regard.studies import space

    opening = ast.get_docstring(ast.parse(Path(space.__file__).read_text()), clean=False) or ""
    (tmp_path / "space.yaml").write_text(opening.split("\n\n")[1])
    assert read_space(tmp_path / "space.yaml").varied.keys() == {"lr", "batch_size", "fusion"}
