"""The heads that a fusion sees: which are chosen, that the choice leaves the training alone, and runs that carry it."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from commands import refused
from regard.backbones import AttentionMap, Backbone, Features
from regard.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from regard.backbones.weights import MODEL_FILE
from regard.cli import main
from regard.data.loading.wrapped import Fraction
from regard.errors import InputError, Interrupted
from regard.files import read_json, write_json
from regard.results import RunDescription
from regard.runs import choosing_heads, segmenting
from regard.runs.checks import check_settings
from regard.runs.choosing_heads import CHOICE_FILE, best_heads, choose_heads
from regard.runs.export import save_safetensors
from regard.runs.extras import Cache, Extras
from regard.runs.run import RUN_FILE, load_run, summary
from regard.runs.segmenting import segment_run
from small_runs import HARDWARE, SETTINGS, TRAIN, VAL, VIT, cut, forward_passes, same, values, vit

CELL, SIDE = 8, 4  # pixels of a cell, and cells of a side


class Cells:
    """Images of 4 x 4 cells: the upper half is class 2, the lower half 0 or 1 by chance. Pixels show the class."""

    classes, ignore_index = ("no", "yes", "above"), 255
    palette = np.eye(3, dtype=np.uint8)

    def __init__(self, count: int) -> None:
        self.cells = np.random.default_rng(0).integers(0, 2, (count, SIDE, SIDE)).astype(np.uint8)
        self.cells[:, : SIDE // 2] = 2

    def __len__(self) -> int:
        return len(self.cells)

    def name(self, i: int) -> str:
        return str(i)

    def mask(self, i: int) -> np.ndarray:
        return self.cells[i].repeat(CELL, axis=0).repeat(CELL, axis=1)

    def image(self, i: int) -> np.ndarray:
        return np.stack([self.mask(i) * 100] * 3, axis=-1)


class Planted(Backbone):
    """Two levels of attention that is made up. A head looks at cells of class 1, at the upper half, or at random.

    The upper half tells 1 bit about the class, and all of it goes with the place. Cells of class 1 tell less, 0.8 bits;
    but half a bit of that is of the image.
    """

    name, options = "planted", {}
    channels, strides, heads, blocks = (4, 4), (CELL, CELL), (3, 4), (1, 2)
    block_heads, block_strides, kinds, dim, multiple = (2, 3, 4), (CELL,) * 3, ("cls",), 4, CELL
    looks_at_yes, looks_above = {1: 2, 2: 1}, {1: 0, 2: 3}

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Conv2d(3, 4, kernel_size=CELL, stride=CELL)

    def forward(self, images, attention=False, affinity=False, blocks: Sequence[int] | None = None) -> Features:
        red = (images[:, 0] * IMAGENET_STD[0] + IMAGENET_MEAN[0])[:, ::CELL, ::CELL] * 255
        generator, maps = torch.Generator().manual_seed(len(images)), []
        for block in self.chosen_blocks(blocks):
            looks = torch.rand(len(images), self.block_heads[block], SIDE, SIDE, generator=generator)
            looks[:, self.looks_at_yes[block]] = 0.1 + 5 * ((red > 50) & (red < 150)).float()
            looks[:, self.looks_above[block]] = torch.tensor([5.0, 5.0, 0.1, 0.1]).unsqueeze(1)
            maps.append(AttentionMap(looks / looks.sum(dim=(-2, -1), keepdim=True), "cls"))
        return Features((self.model(images),) * 2, tuple(maps), torch.zeros(len(images), 4))


def test_the_head_that_tells_most_beyond_position_is_chosen_in_each_level() -> None:
    chosen = choose_heads(Planted(), Cells(24), (0, 1), (0, 1), 1, SIDE * CELL)
    assert chosen == ((2,), (1,))


def test_of_a_single_image_plain_information_decides() -> None:
    """There is no other image to say what the place alone tells."""
    chosen = choose_heads(Planted(), Cells(1), (0, 1), (0, 1), 1, SIDE * CELL)
    assert chosen == ((0,), (3,))


def test_of_a_share_of_the_images_each_counts_once(monkeypatch) -> None:
    """A share is repeated to the length of the whole; what an image repeats is no evidence beyond it."""
    seen, score = [], choosing_heads.score_levels

    def look(backbone, train, *rest):
        seen.append(len(train))
        return score(backbone, train, *rest)

    monkeypatch.setattr(choosing_heads, "score_levels", look)
    few = Fraction(Cells(48), 0.25, seed=0)
    assert choose_heads(Planted(), few, (0, 1), (0, 1), 1, SIDE * CELL) == ((2,), (1,))
    assert seen == [12]
    choose_heads(Planted(), Fraction(Cells(48), 0.02, seed=0), (0, 1), (0, 1), 1, SIDE * CELL)
    assert seen == [12, 1]


def test_a_level_that_is_not_chosen_keeps_no_head_and_a_small_one_all() -> None:
    assert choose_heads(Planted(), Cells(24), (0, 1), (1,), 2, SIDE * CELL)[0] == ()
    assert len(choose_heads(Planted(), Cells(24), (0, 1), (1,), 2, SIDE * CELL)[1]) == 2
    assert choose_heads(Planted(), Cells(24), (0, 1), (0, 1), 3, SIDE * CELL)[0] == (0, 1, 2)
    assert choose_heads(Planted(), Cells(24), (0, 1), (0,), None, SIDE * CELL) == ((0, 1, 2), ())


def test_all_heads_of_all_levels_that_are_read_are_no_choice() -> None:
    assert choose_heads(Planted(), Cells(2), (0, 1), (0, 1), 4, SIDE * CELL) is None
    assert choose_heads(Planted(), Cells(2), (1,), (1,), None, SIDE * CELL) is None


def test_equal_scores_go_by_index() -> None:
    assert best_heads([0.2, 0.5, 0.5, -0.1, 0.5], 2) == (1, 2)
    assert best_heads([0.0, 0.0, 0.1], 2) == (0, 2)


def test_choosing_leaves_random_numbers_modes_and_weights_as_they_were() -> None:
    backbone = vit().train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    state = torch.get_rng_state()
    assert choose_heads(backbone, TRAIN, range(4), range(4), 1, 32) is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in backbone.modules())
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())


# ---- trainings ------------------------------------------------------------------------------------------------------


def train(folder: Path, fusion: str = "gate", cache: Cache | None = None, **options) -> RunDescription:
    settings = replace(SETTINGS, **options)
    return segment_run(
        TRAIN, VAL, vit(), replace(settings, fusion=fusion), folder, hardware=HARDWARE, extras=Extras(cache=cache)
    )


def test_to_keep_more_heads_than_there_are_is_to_keep_all_bit_for_bit(tmp_path, monkeypatch) -> None:
    plain = train(tmp_path / "plain")
    many = train(tmp_path / "many", heads_kept=3, layers=(0, 1, 2, -1))
    assert many.kept is plain.kept is None
    assert many.curve == plain.curve
    assert same(values(tmp_path / "plain"), values(tmp_path / "many"))

    def looked_and_kept_all(*arguments):  # scores are computed, and what comes of them is not taken
        assert choose_heads(*arguments[:4], 1, *arguments[5:]) is not None

    monkeypatch.setattr(choosing_heads, "choose_heads", looked_and_kept_all)
    train(tmp_path / "looked", heads_kept=3)
    assert same(values(tmp_path / "plain"), values(tmp_path / "looked"))


@pytest.mark.parametrize("fusion", ["concat", "gate", "propagate"])
def test_a_run_of_some_heads_is_read_again(fusion: str, tmp_path) -> None:
    made = train(tmp_path / "run", fusion, layers=(1, -1), heads_kept=2)
    kept = made.kept
    assert [len(heads) for heads in kept] == [0, 2, 0, 2]
    assert [(level.block, tuple(level.heads)) for level in made.head_weights] == [(1, kept[1]), (3, kept[3])]
    assert not (tmp_path / "run" / CHOICE_FILE).exists()
    run = load_run(tmp_path / "run", "cpu")
    assert run.description == made
    assert run.model.fusion.kept == kept
    assert summary(run, run.evaluate(VAL)).miou == pytest.approx(made.miou, abs=1e-6)  # float32 sums in another order
    save_safetensors(run, tmp_path / "exported")
    again = load_run(tmp_path / "exported", "cpu")
    assert np.array_equal(again.predict(VAL.image(0)), run.predict(VAL.image(0)))
    assert again.description.kept == kept


def test_an_average_of_the_weights_goes_with_some_heads(tmp_path) -> None:
    made = train(tmp_path / "run", average="ema", heads_kept=1)
    assert [len(heads) for heads in made.kept] == [1, 1, 1, 1]
    load_run(tmp_path / "run", "cpu")


def test_a_run_that_goes_on_has_the_heads_that_it_began_with(tmp_path, monkeypatch) -> None:
    whole = train(tmp_path / "whole", heads_kept=1)
    with monkeypatch.context() as patch:
        cut(patch, 0)
        with pytest.raises(Interrupted):
            train(tmp_path / "cut", heads_kept=1)
    # what another device could make of the scores
    monkeypatch.setattr(choosing_heads, "best_heads", lambda scores, count: (len(scores) - 1,))
    others = train(tmp_path / "others", heads_kept=1)
    assert others.kept != whole.kept
    assert train(tmp_path / "cut", heads_kept=1).kept == whole.kept
    assert same(values(tmp_path / "whole"), values(tmp_path / "cut"))


def test_a_note_that_is_no_choice_is_one_line(tmp_path) -> None:
    write_json(tmp_path / CHOICE_FILE, [[0], 3])
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/resume-step=1.ckpt").touch()
    refused(lambda: train(tmp_path, heads_kept=1), CHOICE_FILE, "Expected `array`, got `int` - at `$[1]`")


def test_a_note_without_a_checkpoint_is_of_another_run(tmp_path) -> None:
    write_json(tmp_path / "run" / CHOICE_FILE, [[], [], [], [2]])
    made = train(tmp_path / "run", epochs=1, heads_kept=2)
    assert [len(heads) for heads in made.kept] == [2, 2, 2, 2]


def test_runs_of_different_heads_share_a_cache_which_holds_the_maps_of_all(tmp_path, monkeypatch) -> None:
    cache, cached = Cache(tmp_path / "cache", "content"), {"freeze": True, "cache_crops": 2}
    train(tmp_path / "all", cache=cache, **cached)
    seen = forward_passes(monkeypatch)
    few = train(tmp_path / "few", cache=cache, heads_kept=1, layers=(-1,), **cached)
    assert not seen
    plain = train(tmp_path / "plain", heads_kept=1, layers=(-1,), freeze=True)
    assert few.kept == plain.kept
    ours, theirs = values(tmp_path / "few"), values(tmp_path / "plain")
    for name, value in theirs.items():  # a batch of features is computed alone, and rounds a little otherwise
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)


# ---- run folders, wrong input ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(folder, epochs=1)
    return folder


def with_kept(finished: Path, folder: Path, kept) -> Path:
    folder.mkdir()
    (folder / MODEL_FILE).write_bytes((finished / MODEL_FILE).read_bytes())
    write_json(folder / RUN_FILE, read_json(finished / RUN_FILE) | {"kept": kept})
    return folder


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([[0, 1, 2]], "heads to keep are given for 1 levels, and vit_tiny_patch16_224 has 4"),
        ([[0, 1, 7], [], [], []], "level 0 of vit_tiny_patch16_224 has no head 7: it has 0 to 2"),
        ([[0, "1"], [], [], []], r"run.json: Expected `int`, got `str` - at `\$\.kept\[0\]\[1\]`; make it again"),
        (3, r"run.json: Expected `array | null`, got `int` - at `\$\.kept`; make it again"),
        (
            [[0], [0], [0], [0]],
            r"run is damaged, or of another version of regard \(.*\): make it again",
        ),  # other weights
    ],
)
def test_heads_that_a_run_cannot_have_kept_are_one_line(finished, tmp_path, kept, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        load_run(with_kept(finished, tmp_path / "run", kept), "cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fusion", "options", "message"),
    [
        ("none", {"layers": (0,)}, "fusion none sees no attention heads: leave out --layers, or take another fusion"),
        (
            "none",
            {"heads_kept": 1},
            "fusion none sees no attention heads: leave out --heads_kept, or take another fusion",
        ),
        ("gate", {"heads_kept": 99}, "--heads_kept 99 of 3 heads of vit_tiny_patch16_224: take 1 to 3"),
        ("gate", {"layers": (4,)}, "has no level 4: take --layers from 0 to 3, or below 0"),
        ("gate", {"layers": (0, -5)}, "has no level -5: take --layers from 0 to 3, or below 0"),
        ("gate", {"layers": (3, -1)}, "a level is named twice in --layers: 3, -1"),
        (
            "gate",
            {"layers": ()},
            "--layers names no level: leave it out for all that the head reads, or take fusion none",
        ),
        ("gate", {"layers": (1,), "head": "fcn"}, "the head does not read level 1: take --layers from 3"),
    ],
)
def test_a_choice_that_cannot_be_is_one_line(fusion: str, options: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        check_settings(replace(SETTINGS, fusion=fusion, **options), vit(), cached=False)
    assert str(error.value).endswith(message)


def test_the_command_line_names_the_heads_that_the_fusion_sees(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(choosing_heads, "best_heads", lambda scores, count: (1, 2)[:count])
    command = ["segment", "--data", "scenes", "--backbone", "vit_tiny_patch16_224", "--size", "32", "--head", "linear"]
    command += ["--backbone_options", json.dumps(VIT), "--accelerator", "cpu", "--workers", "0", "--fusion", "gate"]
    monkeypatch.setattr(segmenting, "SegmentationData", small_data(segmenting.SegmentationData))
    main([*command, "--epochs", "1", "--layers", "[-1]", "--heads_kept", "2", "--out", str(tmp_path / "run")])
    printed = " ".join("".join(capsys.readouterr()).split())
    assert "heads of block 3 in the fusion" in printed
    assert "): hardly used, below 0.1" in printed or "): 1 " in printed
    assert read_json(tmp_path / "run" / RUN_FILE)["kept"] == [[], [], [], [1, 2]]


def small_data(cls):
    return lambda train, val, *rest: cls(TRAIN, VAL, *rest)
