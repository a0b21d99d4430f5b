"""Findings in words: each sentence says what the numbers say, and no more."""

import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
from markupsafe import Markup
from scipy.stats import binom, norm

from plausible import correlation, difference, varied
from regard.reports import findings
from regard.reports.arranged import Family, Line, Shown, VariedAxis, arrange
from regard.results import ConfigurationResult, MeanMiou, RunResult

TITLES = {name: name for name in ("a", "b", "c", "d")}


def text(markup):
    return Markup(markup).striptags()


def shown(name, mean, low=None, high=None, seeds=3, interval="95%, over images and seeds", **about):
    """A configuration as a report shows it, with a score and nothing else; `about` may say more."""
    miou = MeanMiou(mean=mean, std=0.01, low=low or mean - 0.02, high=high or mean + 0.02, interval=interval)
    nothing = dict.fromkeys(field.name for field in fields(ConfigurationResult))
    run = RunResult(
        seed=0, miou=mean, pixel_accuracy=mean, iou=[], train_seconds=1.0, best_epoch=1, curve=[], heads=None,
        commit=None,
    )  # fmt: skip
    own = {"name": name, "backbone": "vit", "fusion": "none", "refiner": "none", "head": "linear"}
    own |= {"baseline": False, "frozen": False}
    own |= {"label_fraction": 1.0, "at": {}, "parameters": 1, "miou": miou, "runs": [run] * seeds, "tags": []}
    return Shown(**nothing | own | about, number=0)


def scored(**mious):
    return [shown(name, miou) for name, miou in mious.items()]


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
        (True, False, 3, "The interval leaves out 0, but not after Holm's correction for 7 questions."),
        (False, False, 3, ""),  # no question: Holm's correction is not about it
        (True, True, 1, "One seed: the interval says nothing of what another seed would have given."),
    ],
)
def test_a_caution_where_holm_or_one_seed_weakens_an_answer(question, holm, seeds, notes):
    d = difference("a", "b", 0.03, 0.01, 0.05, question, holm, seeds)
    assert findings.caution(d, 7) == notes


@pytest.mark.parametrize(("low", "verdict"), [(0.0004, "no difference shown"), (0.0006, "first is better")])
def test_no_verdict_that_the_shown_digits_do_not_carry(low, verdict):
    d = difference("a", "b", 0.003, low, 0.006)
    assert findings.verdict(d) == verdict
    assert ("by less than the digits show" in findings.caution(d, 1)) == (low == 0.0004)


def test_no_caution_of_holm_where_nothing_was_shown():
    assert findings.caution(difference("a", "b", 0.03, -0.01, 0.05, True, False), 7) == ""


def test_the_lead_says_whether_it_is_shown():
    rows = scored(a=0.5, b=0.45)
    assert text(findings.leading(rows[:1], [])).endswith("is alone: there is nothing to compare it with.")
    untested = text(findings.leading(rows, []))
    assert untested.startswith("a came first with 50.0% mIoU (interval 48.0 to 52.0), 5.0 points above b.")
    assert untested.endswith("not tested, so the order of the two may be chance.")
    for d in (difference("a", "b", 0.05, 0.02, 0.08), difference("b", "a", -0.05, -0.08, -0.02)):
        assert text(findings.leading(rows, [d])).endswith(
            "That difference is shown: +5.0 points, interval +2.0 to +8.0."
        )
    for d in (difference("a", "b", 0.05, -0.02, 0.08), difference("b", "a", -0.05, -0.08, 0.02)):
        assert text(findings.leading(rows, [d])).endswith(
            "Between these two, no difference shown: +5.0 points, interval −2.0 to +8.0."
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
        said = text(findings.leading(rows, [d]))
        assert "2.0 points above b. But on the 2 seeds that both have the order is another: −4.0 points" in said
        assert said.endswith(end)
        assert "difference is shown" not in said.removesuffix(end)


def test_the_lead_has_the_mean_of_the_seeds_that_both_have():
    said = text(findings.leading(scored(a=0.5, b=0.48), [difference("a", "b", 0.04, 0.02, 0.06, seeds=1)]))
    assert said.endswith("That difference is shown: +4.0 points, interval +2.0 to +6.0 on the 1 seed that both have.")


def test_the_lead_is_shown_only_after_correction_for_all_pairs_it_was_picked_from():
    rows, pair = scored(a=0.5, b=0.45, c=0.4), difference("a", "b", 0.05, 0.01, 0.09, p=0.02)  # 0.05 / 3 pairs
    assert text(findings.leading(rows, [pair])).endswith(
        "Its interval excludes 0 (+5.0 points, interval +1.0 to +9.0), "
        "but with Holm's correction for all 3 pairs it is not shown."
    )
    assert "That difference is shown" in findings.leading(rows, [replace(pair, p_strict=0.016)])
    assert "That difference is shown" in findings.leading(rows[:2], [pair])  # one pair


def test_how_far_down_the_lead_is_shown():
    rows = scored(a=0.5, b=0.48, c=0.45, d=0.2)
    pairs = [difference("a", "b", 0.02, -0.01, 0.05), difference("d", "a", -0.3, -0.35, -0.25)]
    corrected = "with Holm's correction for all 6 pairs"
    assert text(findings.following(rows, pairs)) == (
        f"a is shown to be better than 1 of the 3 others {corrected} (1 not tested against it). "
        "No difference is shown between it and b."
    )
    assert text(findings.following(rows, pairs[:1])) == (
        f"a is not shown to be better than any of the 3 others {corrected} (2 not tested against it)."
    )
    worse = [difference("a", "b", -0.02, -0.03, -0.01), pairs[1]]  # on the seeds that both have
    assert "between it and" not in findings.following(rows, worse)
    weak = [pairs[0], replace(pairs[1], p_strict=0.009)]  # 0.05 / 6
    assert "is not shown to be better than any" in findings.following(rows, weak)
    assert findings.following(rows, []) == ""
    assert findings.following(rows[:2], pairs) == ""  # said by the lead


def test_of_equal_configurations_something_is_claimed_in_a_twentieth_of_the_studies():
    """12 equal ones with normal noise of a known size, so that every p is right; all pairs are tested."""
    rng, names, studies = np.random.default_rng(0), [f"c{i}" for i in range(12)], 400
    claimed = np.zeros(3, int)
    noise = 0.01 * 2**0.5  # of a difference
    half = norm.ppf(0.975) * noise
    for _ in range(studies):
        means = dict(zip(names, 0.5 + 0.01 * rng.normal(size=12), strict=True))
        rows = scored(**dict(sorted(means.items(), key=lambda item: -item[1])))
        pairs = [(a, b, means[a] - means[b]) for a, b in itertools.combinations(names, 2)]
        tests = [difference(a, b, d, d - half, d + half, p=float(2 * norm.sf(abs(d) / noise))) for a, b, d in pairs]
        axis = VariedAxis("axis", names, [Line({}, [(c.name, c) for c in rows])])
        claimed += (
            "is shown to be better" in findings.following(rows, tests),
            "points apart: shown" in findings.axis_effect(axis, tests),
            "That difference is shown" in findings.leading(rows, tests),
        )
    # at most 5%, and chance: 34 of 400 at the most in 999 of 1000 runs. Uncorrected, the first claims 71%, and with
    # correction for the pairs of the first alone 15%.
    assert claimed.max() <= binom.ppf(0.999, studies, 0.05)
    assert claimed[0] > 0  # it can claim something


def test_names_in_sentences_are_escaped():
    titles = {"a": "<i>a</i>", "b": "b & c", "c": "c"}
    rows = [shown(name, miou, tags=["<i>"]) for name, miou in (("a", 0.5), ("b", 0.45), ("c", 0.4))]
    pairs = [difference("a", "b", 0.05, 0.02, 0.08), difference("a", "c", 0.05, -0.02, 0.08)]
    sentences = [findings.answer(d, titles) for d in pairs]
    sentences += [findings.leading(rows, pairs), findings.following(rows, pairs)]
    assert all("<i>" not in sentence and "&lt;i&gt;" in sentence for sentence in sentences)
    assert "<i>" not in findings.axis_effect(VariedAxis("<i>", [], []), [])


def test_what_an_axis_did(results):
    one = varied(results, {"label_fraction": [0.01, 0.1, 1.0]})  # 30, 31 and 32%
    best, worst = "label_fraction 1.0", "label_fraction 0.01"

    def effect(study, differences=()):
        return text(findings.axis_effect(arrange(study).axes[0], differences))

    picked = "with Holm's correction for all {} pairs, as these were picked for being the extremes"
    start = "label fraction: best at 1 (32.0%), lowest at 0.01 (30.0%), 2.0 points apart: "
    assert effect(one) == start + "not tested."
    shown = difference(best, worst, 0.02, 0.01, 0.03)
    assert effect(one, [shown]) == start + f"shown (+2.0 points, 95% interval +1.0 to +3.0) {picked.format(3)}."
    weak = [replace(shown, p_strict=0.02)]  # 0.05 / 3
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
    for c in one.configurations[1:]:
        c.miou, c.runs = None, []
    assert effect(one) == "label fraction: fewer than two of its values have a score beside each other."


def family(numbers, values, **about):
    """Configurations with these scores of heads, each with a pre-training of its own."""
    names = [f"c{i}" for i in range(len(values))]
    members = [shown(name, 0.5, **{"pretraining": name} | about) for name in names]
    for member, value in zip(members, values, strict=True):
        member.mean_heads = {"entropy": value}
    return Family(correlation("entropy", "cls", *numbers, names), members, [])


@pytest.mark.parametrize(
    ("numbers", "count", "sentence"),
    [
        ((None, None, None), 1, "No correlation to speak of: 1 configuration, too few or too alike."),
        ((0.9, None, None), 3, "No correlation to speak of: 3 configurations, too few or too alike."),
        ((0.71, -0.5, 0.98), 4, "r = 0.71 over 4 configurations, 95% interval −0.50 to 0.98: no correlation shown."),
        (
            (0.9, 0.4, 0.98),
            9,
            "r = 0.90 over 9 configurations, 95% interval 0.40 to 0.98: "
            "configurations with more of it segment better here.",
        ),
        (
            (-0.9, -0.98, -0.4),
            9,
            "r = −0.90 over 9 configurations, 95% interval −0.98 to −0.40: "
            "configurations with more of it segment worse here.",
        ),
    ],
)
def test_a_correlation_is_claimed_exactly_where_its_interval_excludes_zero(numbers, count, sentence):
    assert findings.correlation(family(numbers, [i / 10 for i in range(count)]), 1) == sentence


def test_what_weakens_a_correlation_is_said_beside_it():
    c, apart = (0.9, 0.4, 0.98), [0.1, 0.2, 0.3, 0.4, 0.5]
    assert findings.correlation(family(c, apart, pretraining="dino"), 1).endswith(
        " Configurations that share a pre-training are not independent, so the interval is too narrow."
    )
    assert "independent" not in findings.correlation(family(c, apart, pretraining=None), 1)  # random each
    assert findings.correlation(family(c, apart), 8).endswith(
        " It is one of 8 that were looked at, without correction for their number."
    )
    same = family(c, [0.1, 0.1 + 1e-17, 0.1, 0.4, 0.5])
    assert "over 5 configurations with 3 different head scores," in findings.correlation(same, 1)
    fewer = family(c, apart)
    fewer.members[0].label_fraction = 0.1
    assert "The share of labels varies among them and moves mIoU by itself" in findings.correlation(fewer, 1)


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
    assert findings.few_seeds([shown(name, 0.5, seeds=count) for name, count in counts.items()]) == said


def test_each_kind_of_interval_is_named_with_those_that_have_it():
    both, images = "95%, over images and seeds", "95%, over images"
    rows = [shown(name, 0.5, interval=kind) for name, kind in zip("abc", (images, both, both), strict=True)]
    assert findings.interval_kind(rows) == f"{both}; of a: {images}"
    assert findings.interval_kind(rows[1:]) == both
    assert findings.interval_kind([]) == ""
    three, one = difference("a", "b", 0.1, 0.0, 0.2), difference("a", "c", 0.1, 0.0, 0.2, seeds=1)
    assert findings.paired_kind([three]) == both
    assert findings.paired_kind([one]) == "95%, over images; of one seed, so without the chance of training"
    assert findings.paired_kind([three, one]) == f"{both}; over images alone where a pair has one seed in common"
