"""What a study would take: finished parts take nothing, measured ones as long as they did, and nothing is written."""

import json
from dataclasses import replace

import pytest

from regard.data.source import open_source
from regard.settings import Hardware
from regard.studies.compare import compare, open_study
from regard.studies.estimate import Cost, estimate, show, spoken
from regard.studies.plan import Configuration
from regard.studies.presets import preset

QUIET = Hardware(bar=False)


@pytest.fixture
def source():
    return open_source("scenes", scenes_size=32, scenes_count={"train": 16, "val": 4, "test": 6})


def plan():
    tiny = preset("tiny", 32)
    return replace(
        tiny,
        segment=replace(tiny.segment, epochs=1, head_options={"width": 8}),
        configurations=(Configuration("a", "resnet"), Configuration("b", "vit", segment={"fusion": "gate"})),
        questions=(),
        seeds=(0,),
    )


def test_what_is_finished_is_known_and_what_is_like_it_takes_as_long(source, tmp_path) -> None:
    out = tmp_path / "study"
    two = replace(plan(), seeds=(0, 1))
    before = estimate(open_study(source, two, out, QUIET))
    assert [cost.name for cost in before] == ["a, seed 0", "b, seed 0", "a, seed 1", "b, seed 1"]
    assert all(cost.seconds and cost.seconds > 0 for cost in before)
    assert before[0].seconds == before[2].seconds  # one trial for both
    assert not out.exists()
    compare(source, plan(), out, hardware=QUIET)
    after = estimate(open_study(source, two, out, QUIET))
    assert [cost.seconds is None for cost in after] == [True, True, False, False]
    assert [cost.measured for cost in after[2:]] == ["seed 0", "seed 0"]


@pytest.mark.slow
def test_an_estimate_is_of_the_size_of_what_it_takes(source, tmp_path) -> None:
    longer = replace(plan(), segment=replace(plan().segment, epochs=12), configurations=plan().configurations[1:])
    source = open_source("scenes", scenes_size=32, scenes_count={"train": 96, "val": 8, "test": 6})
    (said,) = estimate(open_study(source, longer, tmp_path / "study", QUIET))
    compare(source, longer, tmp_path / "study", hardware=QUIET)
    took = sum(json.loads(path.read_text())["seconds"] for path in tmp_path.rglob("run.json"))
    assert said.seconds is not None
    assert took / 5 < said.seconds < 5 * took  # a factor of two is promised; the machine may be busy with other things


def test_the_sum_is_shared_out_among_those_side_by_side(capsys) -> None:
    costs = [Cost("a", "training", 100.0), Cost("b", "training", 20.0), Cost("c", "training", None)]
    assert "2 of 3 parts are to be done; about 2 min of training (an estimate" in show(costs, 1)
    assert "2 side by side: 2 min" in show(costs, 2)  # no shorter than the longest


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.42, "0.4 s"), (41.3, "41 s"), (250.0, "4 min"), (7500.0, "2.1 h"), (3e5, "3.5 days")]
)
def test_durations_in_words(seconds, words) -> None:
    assert spoken(seconds) == words
