"""The page of a sweep: from its JSON alone, escaped, and honest about what the best of many trials is worth."""

import base64
import json
import re
from dataclasses import replace

import pytest

from regard.cli.study import report
from regard.errors import InputError
from regard.reports.sweep_report import render_sweep, write_sweep_report
from regard.results import BestTrial, SweepData, SweepResults, TrialResult, read_stored, write_stored

NASTY = "<script>alert(1)</script>&\"'"
PICTURE = "data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode()


def plausible_sweep(complete: int = 9, test_images: int = 5) -> SweepResults:
    """Complete trials, a pruned one, and a failed one; the best is that before the last complete one."""
    losses, trials = ["cross_entropy", NASTY], []
    for number in range(complete + 2):
        options = {"lr": 1e-4 * 1.3**number, "batch_size": 8 + 8 * (number % 3), "loss": losses[number % 2]}
        score = 0.9 if number == complete - 2 else 0.3 + 0.01 * number
        state = "complete" if number < complete else "pruned" if number == complete else "failed"
        trials.append(
            TrialResult(
                number=number,
                state=state,
                miou=score if state == "complete" else None,
                seconds=12.5,
                options=options | ({"backbone_lr": 0.5} if number % 2 else {}),  # frozen ones have none
                curve=[(e, score * e / 4) for e in range(1, 5)][: None if state == "complete" else 2],
                error=f"diverged {NASTY}" if state == "failed" else None,
            )
        )
    return SweepResults(
        name=NASTY,
        regard="0.1.0",
        commit=None,
        created="2026-11-23T10:00:00+00:00",
        command=f"regard sweep --data {NASTY}",
        seconds=130.0,
        complete=True,
        environment={"torch": "2.11"},
        data=SweepData(
            source="x", description=NASTY, train_images=8, val_images=4, test_images=test_images, short_side=32
        ),
        wanted=complete + 2,
        pruning=True,
        space={"lr": "0.0001 to 0.01, logarithmic", "batch_size": "24, 8, 16", "loss": NASTY, "backbone_lr": "0 to 1"},
        usual=["lr", "batch_size"],
        random=10,
        trials=trials,
        importance={"lr": 0.75, "loss": 0.25},
        best=BestTrial(
            number=complete - 2,
            miou=0.9,
            options={"data": NASTY, **trials[complete - 2].options},
            command="regard segment --config 'runs/a sweep/best.yaml' --out 'runs/a sweep-best'",
        ),
        pictures=dict.fromkeys(("history", "slice", "parallel", "curves"), PICTURE),
    )


def words(results: SweepResults) -> str:
    page = render_sweep(results)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page.partition("<header>")[2].partition("<dialog")[0]))


def test_it_says_that_the_best_of_many_is_too_good_and_that_no_score_is_of_test() -> None:
    said = words(plausible_sweep())
    assert "90.0% mIoU on val, the best of 9 complete trials" in said
    assert "This score is too good" in said
    assert "the highest of 9 on the same 4 images of val" in said
    assert "No score was computed on test: train the best settings again" in said
    assert "9 complete, 1 given up early, 1 failed" in said
    assert "regard segment --config &#39;runs/a sweep/best.yaml&#39; --out &#39;runs/a sweep-best&#39;" in said
    without = words(plausible_sweep(test_images=0))
    assert "on test" not in without
    assert "score them on images that are in neither train nor val" in without


@pytest.mark.parametrize(
    ("usual", "sentence"),
    [
        (["lr", "batch_size"], "by default (lr, batch_size), and the rest at random. Until 10"),
        (["lr", "batch_size", "loss", "backbone_lr"], "by default. Until 10 trials are complete or given up, the next"),
        ([], "Until 10 trials are complete or given up, settings are drawn at random"),
    ],
)
def test_it_says_which_trials_were_chosen_how(usual: list[str], sentence: str) -> None:
    assert sentence in words(replace(plausible_sweep(), usual=usual))


def test_everything_from_the_file_is_escaped_and_nothing_is_fetched() -> None:
    page = render_sweep(plausible_sweep())
    assert NASTY not in page
    assert page.count("<script>") == 1  # the page's own
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)
    assert page.count(PICTURE) == 4


def test_it_is_made_from_the_json_alone_twice_the_same(tmp_path) -> None:
    write_stored(tmp_path / "results.json", plausible_sweep())
    assert read_stored(tmp_path / "results.json", SweepResults) == plausible_sweep()
    first = write_sweep_report(tmp_path).read_text()
    assert report(str(tmp_path)) == f"open {tmp_path / 'report.html'}"  # which tells by the file what it is of
    assert (tmp_path / "report.html").read_text() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "results.json"]


@pytest.mark.parametrize("complete", [2, 3, 9])
def test_few_trials_make_a_page_too_and_say_that_they_are_few(complete: int) -> None:
    few = replace(plausible_sweep(complete), importance=None)
    assert "too few trials to say how much each option matters" in words(few)
    assert "too few trials" not in words(plausible_sweep(complete))


def test_an_unfinished_sweep_says_so() -> None:
    assert "Not finished" not in words(plausible_sweep())
    assert "Not finished: 11 of 50 trials are over" in words(replace(plausible_sweep(), complete=False, wanted=50))


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trials": 3}, r"Expected `array`.* `\$.trials`"),
        (
            {"best": {"number": 9, "miou": 0.9, "options": {}, "command": ""}},
            "the best trial, 9, is none of the trials with a score",
        ),
        ({"pictures": {"history": "https://elsewhere"}}, r"matching regex .* `\$.pictures"),
    ],
)
def test_a_file_that_is_not_right_is_one_line(change: dict, message: str, tmp_path) -> None:
    path = tmp_path / "results.json"
    write_stored(tmp_path / "results.json", plausible_sweep())
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message) as error:
        read_stored(tmp_path / "results.json", SweepResults)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("what was finished is kept")
