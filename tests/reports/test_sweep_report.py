"""The page of a sweep: from its JSON alone, escaped, and honest about what the best of many trials is worth."""

import itertools
import json
import re
from typing import Any

import pytest

from regard.cli.study import report
from regard.errors import InputError
from regard.reports.page import Axis
from regard.reports.sweep_report import option_axis, read_sweep, render_sweep, write_sweep_report

NASTY = "<script>alert(1)</script>&\"'"


def plausible_sweep(complete: int = 9) -> dict[str, Any]:
    """Complete trials, a pruned one, and a failed one; the best is that before the last complete one."""
    space = {
        "lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "batch_size": [24, 8, 16],
        "loss": ["cross_entropy", NASTY],
        "backbone_lr": {"low": 0.0, "high": 1.0},
    }
    trials = []
    for number in range(complete + 2):
        options = {"lr": 1e-4 * 1.3**number, "batch_size": 8 + 8 * (number % 3), "loss": space["loss"][number % 2]}
        score = 0.9 if number == complete - 2 else 0.3 + 0.01 * number
        state = "complete" if number < complete else "pruned" if number == complete else "failed"
        trials.append(
            {
                "number": number,
                "state": state,
                "miou": score if state == "complete" else None,
                "best_epoch": 4,
                "seconds": 12.5,
                "options": options | ({"backbone_lr": 0.5} if number % 2 else {}),  # frozen ones have none
                "curve": [[e, score * e / 4] for e in range(1, 5)][: None if state == "complete" else 2],
                "error": f"diverged {NASTY}" if state == "failed" else None,
            }
        )
    return {
        "schema": 3,
        "kind": "sweep",
        "name": NASTY,
        "regard": "0.1.0",
        "commit": None,
        "created": "2026-11-23T10:00:00+00:00",
        "command": f"regard sweep --data {NASTY}",
        "seconds": 130.0,
        "complete": True,
        "environment": {"torch": "2.11"},
        "data": {
            "source": "x", "description": NASTY, "train_images": 8, "val_images": 4, "test_images": 5, "short_side": 32,
        },
        "wanted": complete + 2,
        "pruning": True,
        "space": space,
        "varied": list(space),
        "usual": {"lr": 1e-3, "batch_size": 16},
        "random": 10,
        "settings": {},
        "trials": trials,
        "importance": {"lr": 0.75, "loss": 0.25},
        "best": {
            "number": complete - 2,
            "miou": 0.9,
            "options": {"data": NASTY, **trials[complete - 2]["options"]},
            "command": "regard segment --config 'runs/a sweep/best.yaml' --out 'runs/a sweep-best'",
        },
    }  # fmt: skip


def words(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page.partition("<header>")[2].partition("<dialog")[0]))


def test_it_says_that_the_best_of_many_is_too_good_and_that_no_score_is_of_test() -> None:
    said = words(render_sweep(plausible_sweep()))
    assert "90.0% mIoU on val, the best of 9 complete trials" in said
    assert "This score is too good" in said
    assert "the highest of 9 on the same 4 images of val" in said
    assert "No score was computed on test: train the best settings again" in said
    assert "9 complete, 1 given up early, 1 failed" in said
    assert "regard segment --config &#39;runs/a sweep/best.yaml&#39; --out &#39;runs/a sweep-best&#39;" in said


def test_where_there_is_no_test_nothing_is_said_of_it() -> None:
    results = plausible_sweep()
    results["data"]["test_images"] = 0
    said = words(render_sweep(results))
    assert "on test" not in said
    assert "score them on images that are in neither train nor val" in said


def test_it_says_which_trials_were_chosen_how() -> None:
    results = plausible_sweep()
    said = words(render_sweep(results))
    assert (
        "The first has what regard segment takes by default (lr, batch_size), and the rest at random. Until 10" in said
    )
    results["usual"] = dict.fromkeys(results["varied"], 0)
    said = words(render_sweep(results))
    assert "by default. Until 10 trials are complete or given up, the next are drawn at random" in said
    results["usual"] = {}
    assert "Until 10 trials are complete or given up, settings are drawn at random" in words(render_sweep(results))


def test_everything_from_the_file_is_escaped_and_nothing_is_fetched() -> None:
    page = render_sweep(plausible_sweep())
    assert NASTY not in page
    assert page.count("<script>") == 1  # the page's own
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)


def test_it_is_made_from_the_json_alone_twice_the_same(tmp_path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(plausible_sweep()))
    first = write_sweep_report(tmp_path).read_text()
    assert write_sweep_report(tmp_path).read_text() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "results.json"]


@pytest.mark.parametrize("complete", [2, 3, 9])
def test_few_trials_make_a_page_too_and_say_that_they_are_few(complete: int) -> None:
    results = plausible_sweep(complete)
    results["importance"] = None
    assert "too few trials to say how much each option matters" in words(render_sweep(results))
    assert "too few trials" not in words(render_sweep(plausible_sweep(complete)))


def test_an_unfinished_sweep_says_so() -> None:
    results = plausible_sweep()
    assert "Not finished" not in words(render_sweep(results))
    results = plausible_sweep() | {"complete": False, "wanted": 50}
    assert "Not finished: 11 of 50 trials are over" in words(render_sweep(results))


def test_the_line_of_the_best_so_far_never_falls_and_pruned_trials_do_not_raise_it() -> None:
    page = render_sweep(plausible_sweep())
    line = re.search(r'class="line mean"[^>]*d="M([^"]*)"', page)
    assert line
    places, heights = zip(*(map(float, point.split()) for point in line[1].split("L")), strict=True)
    assert list(heights) == sorted(heights, reverse=True)  # downwards
    assert list(places) == sorted(places)
    assert len(set(places)) == 11
    assert len(set(heights)) == 8  # the eight that were each better than all before
    steps = list(zip(places, heights, strict=True))
    assert all(a[0] == b[0] or a[1] == b[1] for a, b in itertools.pairwise(steps))  # no slopes


def test_the_table_has_a_row_for_each_trial_the_best_first_with_values_to_sort_by() -> None:
    page = render_sweep(plausible_sweep())
    rows = re.findall(r"<tr><th scope=\"row\" class=\"num\" data-value=\"(\d+)\">", page)
    assert sorted(map(int, rows)) == list(range(11))
    assert int(rows[0]) == 7
    assert [int(row) for row in rows[-2:]] == [9, 10]
    assert page.count('data-value=""') == 2 + 6  # scores of two trials, backbone_lr of six
    assert page.count('<td class="num" data-value="8">8</td>') == 4  # choices that are numbers sort as numbers
    assert '<th scope="col" class="num"><button type="button"><span>batch_size' in page
    assert '<th scope="col"><button type="button"><span>loss' in page


def test_an_axis_is_that_of_the_space_not_of_what_was_drawn() -> None:
    results = plausible_sweep()
    lr = option_axis(results, "lr")
    assert lr.log
    assert lr.ticks == [1e-4, 1e-3, 1e-2]
    assert 0 < lr.at(1e-4) < lr.at(1e-3) < lr.at(1e-2) < 100
    assert lr.at(1e-3) == pytest.approx(50, abs=0.01)
    assert option_axis(results, "loss").words == ("cross_entropy", NASTY)
    narrow = results | {"space": {"lr": {"low": 0.002, "high": 0.005, "log": True}}}
    assert option_axis(narrow, "lr") == Axis(0.002 / 2.5**0.06, 0.005 * 2.5**0.06, [0.002, 0.005], log=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 1}, "was made by another version of regard"),
        ({"trials": 3}, "trials should be a list"),
        (
            {"best": {"number": 9, "miou": 0.9, "options": {}, "command": ""}},
            "the best trial, 9, is none of the trials with a score",
        ),
        ({"varied": ["head"]}, "'head' varies, but is not in the space"),
    ],
)
def test_a_file_that_is_not_right_is_one_line(change: dict, message: str, tmp_path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(plausible_sweep() | change))
    with pytest.raises(InputError, match=message) as error:
        read_sweep(path)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("run regard sweep again: what was finished is kept")
    path.write_text(json.dumps(plausible_sweep())[:-30])
    with pytest.raises(InputError, match="not a whole JSON file"):
        read_sweep(path)
    with pytest.raises(InputError, match="run the command that made it again: what was finished is kept"):
        report(str(tmp_path))
    path.unlink()
    with pytest.raises(InputError, match="there is no such file"):
        read_sweep(path)
