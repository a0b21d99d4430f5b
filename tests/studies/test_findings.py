"""Findings in words: each sentence says what the numbers say, and no more."""

import pytest
from markupsafe import Markup
from plausible import correlation, difference, varied

from regard.studies import findings
from regard.studies.report import ordered

TITLES = {name: name for name in ("a", "b", "c", "d")}


def text(markup):
    return Markup(markup).striptags()


def scored(**mious):
    return [{"name": n, "miou": {"mean": m, "low": m - 0.02, "high": m + 0.02}} for n, m in mious.items()]


@pytest.mark.parametrize(
    ("mean", "low", "high", "sentence"),
    [
        (0.031, 0.008, 0.055, "a is better than b by 3.1 points (95% interval 0.8 to 5.5)."),
        (-0.146, -0.171, -0.12, "b is better than a by 14.6 points (95% interval 12.0 to 17.1)."),
        (0.006, -0.013, 0.025, "a and b: no difference shown (+0.6 points, 95% interval −1.3 to +2.5)."),
        (0.003, 0.0, 0.021, "a and b: no difference shown (+0.3 points, 95% interval 0.0 to +2.1)."),
    ],
)
def test_an_answer_names_the_better_one_exactly_where_the_interval_excludes_zero(mean, low, high, sentence):
    d = difference("a", "b", mean, low, high)
    assert text(findings.answer(d, TITLES)) == sentence
    mirrored = difference("b", "a", -mean, -high, -low)
    same = sentence.startswith(text(findings.answer(mirrored, TITLES))[:10])
    assert same == ("better" in sentence)  # who is better does not depend on the order of the pair


@pytest.mark.parametrize(
    ("question", "holm", "seeds", "notes"),
    [
        (True, True, 3, ""),
        (True, False, 3, "Not shown any more after Holm's correction for 7 questions."),
        (False, False, 3, ""),  # no question: Holm's correction is not about it
        (True, True, 1, "One seed: the interval says nothing of what another seed would have given."),
    ],
)
def test_a_caution_where_holm_or_one_seed_weakens_an_answer(question, holm, seeds, notes):
    d = difference("a", "b", 0.03, 0.01, 0.05, question, holm, seeds)
    assert findings.caution(d, 7) == notes


def test_no_caution_of_holm_where_nothing_was_shown():
    assert findings.caution(difference("a", "b", 0.03, -0.01, 0.05, True, False), 7) == ""


def test_the_lead_says_whether_it_is_shown():
    rows = scored(a=0.5, b=0.45)
    assert text(findings.leading(rows[:1], [], TITLES)).endswith("is alone: there is nothing to compare it with.")
    untested = text(findings.leading(rows, [], TITLES))
    assert untested.startswith("a came first with 50.0% mIoU (interval 48.0 to 52.0), 5.0 points above b.")
    assert untested.endswith("not tested, so the order of the two may be chance.")
    for d in (difference("a", "b", 0.05, 0.02, 0.08), difference("b", "a", -0.05, -0.08, -0.02)):
        assert "That difference is shown: its interval, +2.0 to +8.0 points" in findings.leading(rows, [d], TITLES)
    for d in (difference("a", "b", 0.05, -0.02, 0.08), difference("b", "a", -0.05, -0.08, 0.02)):
        assert "no difference shown: the interval, −2.0 to +8.0" in findings.leading(rows, [d], TITLES)


def test_how_far_down_the_lead_is_shown():
    rows = scored(a=0.5, b=0.48, c=0.45, d=0.2)
    pairs = [difference("a", "b", 0.02, -0.01, 0.05), difference("d", "a", -0.3, -0.35, -0.25)]
    assert text(findings.following(rows, pairs, TITLES)) == (
        "a is shown to be better than 1 of the 3 others (1 not tested against it). "
        "No difference is shown between it and b."
    )
    assert text(findings.following(rows, pairs[:1], TITLES)) == (
        "a is not shown to be better than any of the 3 others (2 not tested against it)."
    )
    worse = [difference("a", "b", -0.02, -0.03, -0.01), pairs[1]]  # on the seeds that both have
    assert "between it and" not in findings.following(rows, worse, TITLES)
    assert findings.following(rows, [], TITLES) == ""
    assert findings.following(rows[:2], pairs, TITLES) == ""  # said by the lead


def test_names_in_sentences_are_escaped():
    titles = {"a": "<i>a</i>", "b": "b & c", "c": "c"}
    rows = scored(a=0.5, b=0.45, c=0.4)
    pairs = [difference("a", "b", 0.05, 0.02, 0.08), difference("a", "c", 0.05, -0.02, 0.08)]
    sentences = [findings.answer(d, titles) for d in pairs]
    sentences += [findings.leading(rows, pairs, titles), findings.following(rows, pairs, titles)]
    assert all("<i>" not in s and "&lt;i&gt;a" in s for s in sentences)
    assert "<i>" not in findings.axis_effect("<i>", [], [])


def test_what_an_axis_did(results):
    one = varied(results, {"label_fraction": [0.01, 0.1, 1.0]})  # 30, 31 and 32%
    best, worst = "label_fraction 1.0", "label_fraction 0.01"

    def effect(study, differences=()):
        return text(ordered(study | {"differences": list(differences)})["axes"][0]["effect"])

    start = "label fraction: best at 1 (32.0%), lowest at 0.01 (30.0%), 2.0 points apart: "
    assert effect(one) == start + "not tested."
    shown = difference(best, worst, 0.02, 0.01, 0.03)
    assert effect(one, [shown]) == start + "shown (95% interval +1.0 to +3.0)."
    hidden = difference(worst, best, -0.02, -0.05, 0.01)
    assert effect(one, [hidden]) == start + "no difference shown (95% interval −1.0 to +5.0)."

    grid = varied(results, {"fusion": ["none", "gate"], "crop": [32, 64]})  # 30, 31, 32 and 33%
    shown = difference("fusion gate · crop 32", "fusion none · crop 32", 0.02, 0.01, 0.03)
    assert effect(grid, [shown]) == (
        "fusion: best at gate in 2 of 2 combinations of the rest, 2.0 points above the lowest value; "
        "shown in 1 of the 1 that were tested."
    )
    assert effect(grid).endswith("not tested.")
    for c in one["configurations"][1:]:
        c |= {"miou": None, "runs": []}
    assert effect(one) == "label fraction: fewer than two of its values have a score beside each other."


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ((None, None, None, 1), "No correlation to speak of: 1 configuration, too few or too alike."),
        ((0.9, None, None, 3), "r = 0.90 over 3 configurations: too few for an interval, so nothing is shown."),
        ((0.71, -0.5, 0.98, 4), "r = 0.71 over 4 configurations, 95% interval −0.50 to 0.98: no correlation shown."),
        (
            (0.9, 0.4, 0.98, 9),
            "r = 0.90 over 9 configurations, 95% interval 0.40 to 0.98: "
            "configurations with more of it segment better here.",
        ),
        (
            (-0.9, -0.98, -0.4, 9),
            "r = −0.90 over 9 configurations, 95% interval −0.98 to −0.40: "
            "configurations with more of it segment worse here.",
        ),
    ],
)
def test_a_correlation_is_claimed_exactly_where_its_interval_excludes_zero(numbers, sentence):
    assert findings.correlation(correlation("entropy", ["cls"], *numbers)) == sentence
