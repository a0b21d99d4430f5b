"""Findings in words: each sentence says what the numbers say, and no more."""

import itertools

import numpy as np
import pytest
from markupsafe import Markup
from plausible import correlation, difference, varied
from scipy.stats import binom, norm

from regard.reports import findings
from regard.reports.report import ordered

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
        assert text(findings.leading(rows, [d], TITLES)).endswith(
            "That difference is shown: +5.0 points, interval +2.0 to +8.0."
        )
    for d in (difference("a", "b", 0.05, -0.02, 0.08), difference("b", "a", -0.05, -0.08, 0.02)):
        assert text(findings.leading(rows, [d], TITLES)).endswith(
            "Between these two, no difference shown: +5.0 points, interval −2.0 to +8.0, contains 0."
        )


@pytest.mark.parametrize(
    ("limits", "end"), [((-0.06, -0.02), "That is shown."), ((-0.06, 0.01), "No difference is shown.")]
)
def test_the_lead_never_claims_an_order_that_the_paired_seeds_do_not_have(limits, end):
    """Means are over all seeds of each, a difference over those that both have."""
    rows, low_high = scored(a=0.5, b=0.48), limits
    for d in (
        difference("a", "b", -0.04, *low_high, seeds=2),
        difference("b", "a", 0.04, -low_high[1], -low_high[0], seeds=2),
    ):
        said = text(findings.leading(rows, [d], TITLES))
        assert "2.0 points above b. But on the 2 seeds that both have the order is another: −4.0 points" in said
        assert said.endswith(end)
        assert "difference is shown" not in said.removesuffix(end)


def test_the_lead_has_the_mean_of_the_seeds_that_both_have():
    said = text(findings.leading(scored(a=0.5, b=0.48), [difference("a", "b", 0.04, 0.02, 0.06, seeds=1)], TITLES))
    assert said.endswith("That difference is shown: +4.0 points, interval +2.0 to +6.0 on the 1 seed that both have.")


def test_the_lead_is_shown_only_after_correction_for_all_pairs_it_was_picked_from():
    rows, pair = scored(a=0.5, b=0.45, c=0.4), difference("a", "b", 0.05, 0.01, 0.09, p=0.02)  # 0.05 / 3 pairs
    assert text(findings.leading(rows, [pair], TITLES)).endswith(
        "Its interval excludes 0 (+5.0 points, interval +1.0 to +9.0), "
        "but with Holm's correction for all 3 pairs it is not shown."
    )
    assert "That difference is shown" in findings.leading(rows, [pair | {"p": 0.016}], TITLES)
    assert "That difference is shown" in findings.leading(rows[:2], [pair], TITLES)  # one pair
    assert "That difference is shown" in findings.leading(rows[:2], [pair | {"p": None}], TITLES)


def test_how_far_down_the_lead_is_shown():
    rows = scored(a=0.5, b=0.48, c=0.45, d=0.2)
    pairs = [difference("a", "b", 0.02, -0.01, 0.05), difference("d", "a", -0.3, -0.35, -0.25)]
    corrected = "with Holm's correction for all 6 pairs"
    assert text(findings.following(rows, pairs, TITLES)) == (
        f"a is shown to be better than 1 of the 3 others {corrected} (1 not tested against it). "
        "No difference is shown between it and b."
    )
    assert text(findings.following(rows, pairs[:1], TITLES)) == (
        f"a is not shown to be better than any of the 3 others {corrected} (2 not tested against it)."
    )
    worse = [difference("a", "b", -0.02, -0.03, -0.01), pairs[1]]  # on the seeds that both have
    assert "between it and" not in findings.following(rows, worse, TITLES)
    weak = [pairs[0], pairs[1] | {"p": 0.009}]  # 0.05 / 6
    assert "is not shown to be better than any" in findings.following(rows, weak, TITLES)
    assert findings.following(rows, [], TITLES) == ""
    assert findings.following(rows[:2], pairs, TITLES) == ""  # said by the lead


def test_of_equal_configurations_something_is_claimed_in_a_twentieth_of_the_studies():
    """12 equal ones with normal noise of a known size, so that every p is right; all pairs are tested."""
    rng, names, studies = np.random.default_rng(0), [f"c{i}" for i in range(12)], 400
    titles, claimed = dict(zip(names, names, strict=True)), np.zeros(3, int)
    noise = 0.01 * 2**0.5  # of a difference
    half = norm.ppf(0.975) * noise
    for _ in range(studies):
        means = dict(zip(names, 0.5 + 0.01 * rng.normal(size=12), strict=True))
        rows = scored(**dict(sorted(means.items(), key=lambda item: -item[1])))
        pairs = [(a, b, means[a] - means[b]) for a, b in itertools.combinations(names, 2)]
        tests = [difference(a, b, d, d - half, d + half, p=float(2 * norm.sf(abs(d) / noise))) for a, b, d in pairs]
        line = {"points": [(c["name"], c) for c in rows]}
        claimed += (
            "is shown to be better" in findings.following(rows, tests, titles),
            "points apart: shown" in findings.axis_effect("axis", [line], tests),
            "That difference is shown" in findings.leading(rows, tests, titles),
        )
    # at most 5%, and chance: 34 of 400 at the most in 999 of 1000 runs. Uncorrected, the first claims 71%, and with
    # correction for the pairs of the first alone 15%.
    assert claimed.max() <= binom.ppf(0.999, studies, 0.05)
    assert claimed[0] > 0  # it can claim something


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

    picked = "with Holm's correction for all {} pairs, as these were picked for being the extremes"
    start = "label fraction: best at 1 (32.0%), lowest at 0.01 (30.0%), 2.0 points apart: "
    assert effect(one) == start + "not tested."
    shown = difference(best, worst, 0.02, 0.01, 0.03)
    assert effect(one, [shown]) == start + f"shown (+2.0 points, 95% interval +1.0 to +3.0) {picked.format(3)}."
    weak = [shown | {"p": 0.02}]  # 0.05 / 3
    assert effect(one, weak) == start + f"not shown {picked.format(3)} (+2.0 points, 95% interval +1.0 to +3.0)."
    other = difference(best, worst, -0.02, -0.03, -0.01, seeds=2)
    assert effect(one, [other]) == (
        start + "on the 2 seeds that both have the order is another (−2.0 points, 95% interval −3.0 to −1.0)."
    )
    two = varied(results, {"label_fraction": [0.01, 1.0]})
    assert effect(two, [shown]).endswith("1.0 points apart: shown (+2.0 points, 95% interval +1.0 to +3.0).")
    hidden = difference(worst, best, -0.02, -0.05, 0.01)
    assert effect(one, [hidden]) == start + "no difference shown (+2.0 points, 95% interval −1.0 to +5.0)."

    grid = varied(results, {"fusion": ["none", "gate"], "crop": [32, 64]})  # 30, 31, 32 and 33%
    shown = difference("fusion gate · crop 32", "fusion none · crop 32", 0.02, 0.01, 0.03)
    assert effect(grid, [shown]) == (
        "fusion: best at gate in 2 of 2 combinations of the rest, 2.0 points above the lowest value; "
        f"shown in 1 of the 1 that were tested, {picked.format(2)}."
    )
    other = difference("fusion gate · crop 32", "fusion none · crop 32", -0.02, -0.03, -0.01)
    assert "shown in 0 of the 1" in effect(grid, [other])
    assert effect(grid).endswith("not tested.")
    for c in one["configurations"][1:]:
        c |= {"miou": None, "runs": []}
    assert effect(one) == "label fraction: fewer than two of its values have a score beside each other."


def members(*values, **other):
    """Configurations with these scores, each with a pre-training of its own."""
    return [
        {"heads": {"entropy": v}, "label_fraction": 1.0, "backbone": "vit", "pretraining": f"p{i}"} | other
        for i, v in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ((None, None, None, 1), "No correlation to speak of: 1 configuration, too few or too alike."),
        ((0.9, None, None, 3), "No correlation to speak of: 3 configurations, too few or too alike."),
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
    found = members(*np.arange(numbers[-1]) / 10)
    assert findings.correlation(correlation("entropy", ["cls"], *numbers), found, 1) == sentence


def test_what_weakens_a_correlation_is_said_beside_it():
    c = correlation("entropy", ["cls"], 0.9, 0.4, 0.98, 5)
    apart = [0.1, 0.2, 0.3, 0.4, 0.5]
    shared = findings.correlation(c, members(*apart, pretraining="dino"), 1)
    assert shared.endswith(
        " Configurations that share a pre-training are not independent, so the interval is too narrow."
    )
    assert "independent" not in findings.correlation(c, members(*apart, pretraining=None), 1)  # random each
    assert findings.correlation(c, members(*apart), 8).endswith(
        " It is one of 8 that were looked at, without correction for their number."
    )
    same = members(0.1, 0.1 + 1e-17, 0.1, 0.4, 0.5)
    assert "over 5 configurations with 3 different head scores," in findings.correlation(c, same, 1)
    fewer = members(*apart)
    fewer[0]["label_fraction"] = 0.1
    assert "The share of labels varies among them and moves mIoU by itself" in findings.correlation(c, fewer, 1)


def runs(**counts):
    return [{"name": name, "runs": [{}] * count} for name, count in counts.items()]


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"a": 3, "b": 5}, ""),
        ({}, ""),
        ({"a": 1, "b": 1}, "One seed: the interval is over images alone and holds no chance of training at all."),
        ({"a": 2, "b": 2}, "Two seeds: an interval of 95% covers the truth in 88 to 95% of studies only."),
        (
            {"a": 3, "b": 1, "c": 2},
            "One seed (b): the interval is over images alone and holds no chance of training at all. "
            "Two seeds (c): an interval of 95% covers the truth in 88 to 95% of studies only.",
        ),
    ],
)
def test_one_or_two_seeds_are_said_to_be_few(counts, said):
    assert findings.few_seeds(runs(**counts), TITLES) == said


def test_each_kind_of_interval_is_named_with_those_that_have_it():
    both, images = "95%, over images and seeds", "95%, over images"
    rows = [{"name": name, "miou": {"interval": kind}} for name, kind in zip("abc", (images, both, both), strict=True)]
    assert findings.interval_kind(rows, TITLES) == f"{both}; of a: {images}"
    assert findings.interval_kind(rows[1:], TITLES) == both
    assert findings.interval_kind([], TITLES) == ""
    three, one = difference("a", "b", 0.1, 0.0, 0.2), difference("a", "c", 0.1, 0.0, 0.2, seeds=1)
    assert findings.paired_kind([three]) == both
    assert findings.paired_kind([one]) == "95%, over images; of one seed, so without the chance of training"
    assert findings.paired_kind([three, one]) == f"{both}; over images alone where a pair has one seed in common"
