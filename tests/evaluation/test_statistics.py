"""The intervals: they cover the truth as often as they say, pair what is paired, and agree with answers by hand."""

import itertools
import math
import tracemalloc
from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import binom, pearsonr
from scipy.stats import t as student

from regard.errors import InputError
from regard.evaluation.scores import scores
from regard.evaluation.statistics import (
    Estimate,
    Scored,
    correlate,
    difference,
    holm,
    pooled,
    residual,
    score,
)

NORMAL = np.array([NormalDist().inv_cdf((i + 0.5) / 1000) for i in range(1000)])  # seeds, evenly by their chance
IMAGES = 60


def estimate_miou(counts: np.ndarray) -> Estimate:
    return score(counts).estimate()


def estimate_difference(a: np.ndarray, b: np.ndarray) -> Estimate:
    return difference(score(a), score(b))


def symmetric(hits: np.ndarray, pixels: int) -> np.ndarray:
    """Counts of two classes of `pixels` each, with `hits` right: of both classes, or (first axis) of each."""
    a, b = np.broadcast_to(hits, (2, *hits.shape[-2:]))
    return np.stack([np.stack([a, pixels - a], -1), np.stack([pixels - b, b], -1)], -2)


def draw(rng: np.random.Generator, skill: np.ndarray, hardness: np.ndarray, pixels: int = 500) -> np.ndarray:
    """Counts whose accuracy is a skill per seed plus a hardness per image: seeds images 2 2."""
    accuracy = skill[:, None] + hardness
    return symmetric(rng.binomial(pixels, accuracy, (2, *accuracy.shape)), pixels)


def miou(accuracy: np.ndarray) -> np.ndarray:
    """The mIoU of unlimited images, when both classes are as frequent and as well found: hits p, union 2 - p."""
    return accuracy / (2 - accuracy)


@pytest.mark.slow
def test_intervals_of_three_seeds_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    sd = 0.015  # of a seed's accuracy; two thirds of the difference's variance are then seeds, one third images
    truth = miou(0.72 + sd * NORMAL).mean(), miou(0.68 + sd * NORMAL).mean()
    studies, single, paired = 300, 0, 0
    for _ in range(studies):
        shared = rng.uniform(-0.1, 0.1, IMAGES)  # images are hard for both, and a little more so for one
        a, b = (
            draw(rng, skill + rng.normal(0, sd, 3), shared + rng.uniform(-0.08, 0.08, IMAGES)) for skill in (0.72, 0.68)
        )
        found = estimate_difference(a, b)
        paired += found.low <= truth[0] - truth[1] <= found.high
        found = estimate_miou(a)
        single += found.low <= truth[0] <= found.high
    # a binomial's 99.9% range around 95% of 300: 272 to 296
    low, high = binom.interval(0.999, studies, 0.95)
    assert low <= paired <= high  # 280; a percentile bootstrap over seeds and images: 259
    assert low <= single <= high  # 276; there: 265


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
def test_seeds_alone_seldom_make_equal_configurations_differ(seeds: int) -> None:
    rng = np.random.default_rng(0)
    studies, wrong = 400, 0
    for _ in range(studies):
        hardness = rng.uniform(-0.1, 0.1, IMAGES)
        found = estimate_difference(*(draw(rng, 0.7 + rng.normal(0, 0.02, seeds), hardness) for _ in range(2)))
        wrong += not found.low <= 0 <= found.high
    # 26 with 3 seeds, 19 with 5; a percentile bootstrap over seeds and images: 112 and 54
    assert wrong <= 0.08 * studies


SHARES = np.array([0.5, 0.3, 0.15, 0.05])  # of four classes; the rarer, the harder, by:
HARDER = np.array([0.0, 0.05, 0.1, 0.15])
SD = 0.015  # of a seed's accuracy: of a difference's variance, six tenths are seeds' with 3 seeds, half with 5


def study(rng: np.random.Generator, skills: tuple[float, ...], seeds: int) -> list[Scored]:
    """A configuration a skill, on 60 images with class shares of their own, hard for all and a little more for one.

    What is not found is taken for any other class alike. Seeds and images are both drawn anew in every study.
    """
    truth = rng.multinomial(1000, rng.dirichlet(20 * SHARES, IMAGES))  # images classes
    shared, diagonal = rng.uniform(-0.1, 0.1, IMAGES), np.arange(4)
    found = []
    for skill in skills:
        hardness = shared + rng.uniform(-0.08, 0.08, IMAGES)
        accuracy = (rng.normal(skill, SD, seeds)[:, None] + hardness)[..., None] - HARDER  # seeds images classes
        predicted = np.repeat((1 - accuracy)[..., None] / 3, 4, axis=-1)
        predicted[..., diagonal, diagonal] = accuracy
        found.append(score(rng.multinomial(np.broadcast_to(truth, accuracy.shape), predicted)))
    return found


def true_miou(skill: float) -> float:
    """Over all seeds there might be, on unlimited images: hardness is 0 on average, and shares are `SHARES`."""
    accuracy = skill + SD * NORMAL[:, None] - HARDER  # seeds classes
    hits, missed = SHARES * accuracy, SHARES * (1 - accuracy) / 3
    return float((hits / (SHARES - missed + missed.sum(axis=1, keepdims=True))).mean())


@pytest.mark.parametrize("studies", [120, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("seeds", [3, 5])
def test_differences_of_simulated_studies_are_covered_and_wrongly_shown_as_often_as_said(
    seeds: int, studies: int
) -> None:
    rng = np.random.default_rng(1)
    truth = true_miou(0.7) - true_miou(0.67)
    covered = wrong = 0
    for _ in range(studies):
        better, worse, equal = study(rng, (0.7, 0.67, 0.67), seeds)
        found = difference(better, worse)
        covered += found.low <= truth <= found.high
        wrong += difference(worse, equal).p < 0.05
    # A binomial's 99.9% range, around the 95% that is meant and, towards intervals too short, around the 93% that few
    # seeds may come to. Of 2000 studies 1821 to 1931: 1883 and 1882 are covered, and 1864 and 1907 show nothing.
    low, high = binom.ppf(0.0005, studies, 0.93), binom.ppf(0.9995, studies, 0.95)
    assert low <= covered <= high
    assert low <= studies - wrong <= high


def test_one_seed_covers_what_that_seed_would_score_on_all_images() -> None:
    rng = np.random.default_rng(0)
    studies, covered = 120, 0
    for _ in range(studies):
        shared = rng.uniform(-0.1, 0.1, IMAGES)
        skills = rng.normal([0.72, 0.68], 0.03)
        a, b = (draw(rng, np.array([p]), shared + rng.uniform(-0.08, 0.08, IMAGES)) for p in skills)
        found = estimate_difference(a, b)
        truth = miou(skills)
        covered += found.low <= truth[0] - truth[1] <= found.high
    low, high = binom.interval(0.999, studies, 0.95)
    assert low <= covered <= high


def test_a_configuration_differs_from_itself_by_exactly_nothing() -> None:
    rng = np.random.default_rng(0)
    counts = draw(rng, np.array([0.6, 0.7, 0.8]), rng.uniform(-0.1, 0.1, 20))
    assert estimate_difference(counts, counts.copy()) == Estimate(0.0, 0.0, 0.0, 1.0, 1.0)
    assert estimate_difference(counts[:1], counts[:1].copy()) == Estimate(0.0, 0.0, 0.0, 1.0, 1.0)


def test_differences_are_paired_by_image_and_by_seed() -> None:
    rng = np.random.default_rng(0)
    skill, hardness = np.array([0.68, 0.7, 0.72]), rng.uniform(-0.1, 0.1, IMAGES)
    a, b = draw(rng, skill, hardness, pixels=10_000), draw(rng, skill - 0.05, hardness, pixels=10_000)
    for other in (b[::-1], b[:, rng.permutation(IMAGES)]):
        paired, broken = estimate_difference(a, b), estimate_difference(a, other)
        assert broken.mean == pytest.approx(paired.mean)
        assert broken.high - broken.low > 2 * (paired.high - paired.low)


def test_of_equal_images_it_is_the_classical_interval_of_the_seeds() -> None:
    # 50, 75 and 80 of 100 right are mIoU of 50/150, 75/125, 80/120: mean 8/15, s² 7/225; Student's t of 2 is 4.302653
    counts = symmetric(np.array([[50], [75], [80]]).repeat(10, axis=1), 100)
    half = 4.302653 * np.sqrt(7 / 225 / 3)
    found = estimate_miou(counts)
    assert (found.mean, found.low, found.high) == pytest.approx((8 / 15, 8 / 15 - half, 8 / 15 + half), abs=1e-6)
    nothing = symmetric(np.full((3, 10), 75), 100)
    found = estimate_miou(nothing)
    assert (found.mean, found.low, found.high) == pytest.approx((0.6, 0.6, 0.6), abs=1e-12)


def spread(*right: int) -> np.ndarray:
    """Counts of one seed on images of 100 pixels, all of class 0, so many of them right: mIoU is their share.

    Class 1 is only ever predicted: it does not count. Class 0's union is 100 in every image, so mIoU is linear.
    """
    hits = np.array(right)
    none = np.zeros_like(hits)
    return np.stack([np.stack([hits, 100 - hits], -1), np.stack([none, none], -1)], -2)


def test_every_configuration_is_a_mean_over_the_classes_that_are_true() -> None:
    better, worse = np.zeros((2, 1, 4, 3, 3), dtype=np.int64)  # class 2 is in none of the masks
    better[..., 0, 0], better[..., 0, 2], better[..., 1, 1] = 95, 5, 100  # a little of it is predicted
    worse[..., 0, 0], worse[..., 0, 1], worse[..., 1, 1] = 80, 20, 100
    assert estimate_miou(better).mean == pytest.approx((95 / 100 + 100 / 100) / 2)
    assert estimate_miou(worse).mean == pytest.approx((80 / 100 + 100 / 120) / 2)
    assert estimate_difference(better, worse).mean > 0


def test_of_one_seed_it_is_the_classical_interval_of_the_images_where_miou_is_linear() -> None:
    # mean 60, s² 1000 / 4, Student's t of 4 is 2.776445; 1000 draws make it some 2% off, missing n / (n - 1) 11%
    half = 2.776445 * np.sqrt(250 / 5) / 100
    found = estimate_miou(spread(40, 50, 60, 70, 80)[None])
    assert found.mean == pytest.approx(0.6)
    assert (found.low, found.high) == (
        pytest.approx(0.6 - half, abs=0.06 * half),
        pytest.approx(0.6 + half, abs=0.06 * half),
    )


def test_seeds_and_images_combine_as_welch_and_satterthwaite_say() -> None:
    # the seeds' means are 60, 64 and 71: s²/3 = 31/3; the images' means over seeds are 45 to 85: 250/5 = 50.
    # (31/3 + 50)² / ((31/3)²/2 + 50²/4) = 5.37 degrees of freedom, of which Student's t is 2.5188
    counts = np.stack([spread(30, 45, 60, 75, 90), spread(44, 54, 64, 74, 84), spread(61, 66, 71, 76, 81)])
    half = 2.5188 * np.sqrt(31 / 3 + 50) / 100
    found = estimate_miou(counts)
    assert found.mean == pytest.approx(0.65)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.06)
    t = found.mean / ((found.high - found.low) / 2 / 2.5188)
    in_closed_form = 1 - t / np.sqrt(t**2 + 2)  # Student's t of 2 degrees
    assert found.p_strict == pytest.approx(in_closed_form, rel=0.01)
    assert estimate_miou(counts[:1]).p_strict == estimate_miou(counts[:1]).p


def test_the_mean_is_that_of_the_scores_where_classes_do_not_occur() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 50, (3, 20, 5, 5)) for _ in range(2))
    for counts in (a, b):
        counts[..., 4, :] = 0  # only predicted
        counts[..., 2, :] = counts[..., :, 2] = 0  # in no truth or prediction
    b[1, 1:, 3, :] = b[1, 1:, :, 3] = 0  # in one image of one seed
    first, second = (np.mean([scores(seed).miou for seed in c.sum(axis=1)]) for c in (a, b))
    assert estimate_miou(b).mean == pytest.approx(second)
    assert estimate_difference(a, b).mean == pytest.approx(first - second)


def test_images_that_are_all_void_do_not_count() -> None:
    counts = symmetric(np.array([[50, 70, 90], [55, 72, 85]]), 100)
    void = np.concatenate([counts, np.zeros_like(counts)], axis=1)
    assert estimate_miou(void) == estimate_miou(counts)
    with pytest.raises(InputError, match="void"):
        estimate_miou(np.zeros_like(counts))


def test_limits_are_scores_that_can_be() -> None:
    counts = symmetric(np.array([[75] * 5, [99] * 5]), 100)  # Student's t of 1 is 12.7: half the width would be 2.4
    for found, limits in ((estimate_miou(counts), (0, 1)), (estimate_difference(counts, counts[::-1]), (-1, 1))):
        assert (found.low, found.high) == limits
    one = estimate_miou(counts[:1, :1])  # one image tells nothing of the others
    assert (one.low, one.high) == (0, 1)


def test_many_classes_need_little_memory() -> None:
    counts = np.random.default_rng(0).integers(0, 9, (2, 100, 171, 171), dtype=np.int32)
    tracemalloc.start()
    estimate_difference(counts, counts[:, ::-1])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6  # 1000 draws of 171 x 171 float64 would be 234 MB


def naive(signs: tuple[int, ...], *counts: np.ndarray) -> tuple[float, float, float]:
    """Mean and limits as they were defined first: whole confusion matrices, all configurations in the same draw."""
    counts = tuple(c[:, counts[0].any(axis=(0, 2, 3))] for c in counts)
    seeds, images = counts[0].shape[:2]

    def combined(weights: np.ndarray) -> list[float]:
        return [
            sum(
                sign * scores(np.tensordot(weights, c[seed], axes=1)).miou
                for sign, c in zip(signs, counts, strict=True)
            )
            for seed in range(seeds)
        ]

    rng = np.random.default_rng(0)
    draws = [
        np.mean(combined(weights))
        for _ in range(10)
        for weights in rng.multinomial(images, np.full(images, 1 / images), size=100)
    ]
    per_seed = np.array(combined(np.ones(images, np.int64)))
    variances = [np.var(draws) * images / (images - 1)]
    freedom = [images - 1]
    if seeds > 1:
        variances.append(per_seed.var(ddof=1) / seeds)
        freedom.append(seeds - 1)
    total = sum(variances)
    df = total**2 / sum(v**2 / f for v, f in zip(variances, freedom, strict=True))
    half = student.ppf(0.975, df) * np.sqrt(total)
    mean = per_seed.mean()
    return mean, max(mean - half, min(0, *signs)), min(mean + half, 1)


@pytest.mark.parametrize("seeds", [1, 2])
def test_what_is_kept_of_each_gives_what_drawing_both_at_once_gives(seeds: int) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 50, (seeds, 12, 3, 3)) + 200 * np.eye(3, dtype=int) for _ in range(2))
    a[:, 5] = b[:, 5] = 0  # all void
    # sums of counts are exact; what is left is the rounding of means of 1000 values near 1
    single, paired = naive((1,), a), naive((1, -1), a, b)
    for ours, theirs in (
        (estimate_miou(a), single),
        (score(iter(a)).estimate(), single),  # one seed after the other
        (estimate_difference(a, b), paired),
        (difference(score(a), score(b)), paired),
    ):
        assert (ours.mean, ours.low, ours.high) == pytest.approx(theirs, rel=1e-12, abs=1e-12)


def test_a_pair_with_other_seeds_is_compared_by_those_in_common() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 50, (3, 12, 3, 3)) for _ in range(2))
    assert difference(score(a).only([0, 2]), score(b[:2]).only([0, 1])) == estimate_difference(a[[0, 2]], b[:2])
    with pytest.raises(AssertionError, match="same seeds"):
        difference(score(a), score(b[:2]))
    b[:, 3] = 0
    with pytest.raises(AssertionError, match="same images"):
        difference(score(a), score(b))


def test_p_is_below_5_percent_just_where_the_interval_leaves_out_nothing() -> None:
    rng = np.random.default_rng(0)
    shown = 0
    for _ in range(100):
        seeds = int(rng.integers(1, 4))  # of two, limits are often cut off at -1 or 1
        skill, gain = rng.uniform(0.3, 0.7, (2, seeds))
        hardness = rng.uniform(-0.2, 0.2, 8)
        a, b = draw(rng, skill, hardness), draw(rng, skill + rng.choice([0, 0.1]) * gain, hardness)
        for found in (estimate_difference(a, b), estimate_miou(a)):
            assert (found.p < 0.05) == (not found.low <= 0 <= found.high)
            assert 0 <= found.p <= 1
        shown += estimate_difference(a, b).p < 0.05
    assert 20 < shown < 80  # both sides were met


def test_p_of_worked_answers() -> None:
    # the seeds of `test_of_equal_images...`: mIoU 8/15, variance 7/225/3; of Student's t of 2, p is 1 - t/sqrt(2 + t²)
    counts = symmetric(np.array([[50], [75], [80]]).repeat(10, axis=1), 100)
    t = (8 / 15) / math.sqrt(7 / 225 / 3)
    assert estimate_miou(counts).p == pytest.approx(1 - t / math.sqrt(2 + t**2), rel=1e-6)
    exact = estimate_difference(symmetric(np.full((3, 10), 75), 100), symmetric(np.full((3, 10), 50), 100))
    assert exact.p == pytest.approx(0, abs=1e-12)  # no variance at all
    assert estimate_miou(counts[:, :1]).p == 1  # one image tells nothing


def exact(*seeds: float) -> Scored:
    """Of 200 images of which every draw gives the same."""
    return Scored(np.array(seeds), np.tile(seeds, (2, 1)), np.ones(200, bool))


def test_seeds_are_pooled_as_in_a_two_way_analysis_of_variance() -> None:
    # rows 0.1 0.2 0.6, 0.3 0.6 0.6 and 0.5 0.7 0.8: means 0.3, 0.5, 2/3; of seeds 0.3, 0.5, 2/3; of all 22/45.
    # total 0.448889 - rows 0.202222 - seeds 0.202222 = residual 0.044444, of (3 - 1)(3 - 1) degrees: 0.011111
    scored = [exact(0.1, 0.2, 0.6), exact(0.3, 0.6, 0.6), exact(0.5, 0.7, 0.8)]
    found = residual(scored)
    assert found is not None
    assert (found.freedom, found.square) == (4, pytest.approx(1 / 90))
    of_pair = pooled(scored[2], scored[0], found)
    half = student.ppf(0.975, 4) * np.sqrt(2 / 90 / 3)
    assert (of_pair.mean, of_pair.low) == (pytest.approx(11 / 30), pytest.approx(11 / 30 - half))
    # its own variance, of 0.4, 0.5, 0.2, is 7/300: larger than 2/90, so that p_strict takes it
    assert of_pair.p_strict == pytest.approx(2 * student.sf(11 / 30 / np.sqrt(7 / 300 / 3), 4))
    shifted = [exact(*(one.miou + np.array([0, 0.1, -0.05]))) for one in scored]
    again = residual(shifted)  # what a seed does to all is in no difference
    assert again is not None
    assert again.square == pytest.approx(found.square)
    assert residual(scored[:1]) is None
    assert residual([exact(0.5, 0.5), exact(0.7, 0.7)]) is None  # no chance


def test_an_answer_in_closed_form_has_the_chance_of_images_alone() -> None:
    counts = draw(np.random.default_rng(0), np.full(1, 0.7), np.linspace(-0.1, 0.1, 40))
    assert estimate_miou(np.repeat(counts, 5, axis=0)) == estimate_miou(counts)


@pytest.mark.slow
@pytest.mark.parametrize("spread", [[1] * 10, [2] * 5 + [1] * 5, [2] + [1] * 9], ids=str)
def test_seeds_that_vary_unlike_seldom_make_a_study_claim_what_is_not(spread: list[int]) -> None:
    rng = np.random.default_rng(0)
    claimed = 0
    for _ in range(400):
        scored = [
            exact(*row) for row in rng.normal(0.5, 0.01, 5) + 0.01 * rng.normal(0, 1, (10, 5)) * [[s] for s in spread]
        ]
        found = residual(scored)
        assert found is not None
        claimed += any(holm([pooled(scored[0], other, found).p_strict for other in scored[1:]]))
    assert claimed <= 20  # 5%; with the residual alone, up to 55


def test_holm_of_a_worked_case() -> None:
    # sorted: 0.004 <= 0.05/4, 0.015 <= 0.05/3, 0.03 > 0.05/2, and so 0.04 is kept too, though it is <= 0.05/1
    assert holm([0.04, 0.004, 0.03, 0.015]) == [False, True, False, True]
    assert holm([0.012, 0.04, 0.026, 0.001]) == [True, False, False, True]
    assert holm([0.03]) == [True]
    assert holm([]) == []
    assert holm([0.02, 0.02, 0.02]) == [False] * 3
    assert holm([0.02, 0.02, 0.02], level=0.1) == [True] * 3


@pytest.mark.parametrize("true", [1, 2, 4])
def test_holm_rejects_a_true_hypothesis_in_5_percent_of_the_studies_at_most(true: int) -> None:
    rng = np.random.default_rng(0)
    studies, wrong = 2000, 0
    for _ in range(studies):  # the first ones are true, so their p are uniform; those of the others are near 0
        wrong += any(holm([*rng.uniform(size=true).tolist(), *[1e-6] * (4 - true)])[:true])
    low, high = binom.interval(0.999, studies, 1 - (1 - 0.05 / true) ** true)  # its level where p are independent
    assert low <= wrong <= high


def test_correlation_of_a_worked_case() -> None:
    # r = 8 / sqrt(10 x 10); artanh 0.8 = 1.098612, 1.959964 / sqrt(2) = 1.385904: tanh of -0.287291 and 2.484516
    found = correlate(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([2.0, 1.0, 4.0, 3.0, 5.0]))
    assert (found.r, found.low, found.high) == (
        pytest.approx(0.8), pytest.approx(-0.279640, abs=1e-6), pytest.approx(0.986196, abs=1e-6),
    )  # fmt: skip


def test_correlation_is_scipys_and_knows_no_units() -> None:
    rng = np.random.default_rng(0)
    for n in (4, 7, 30):
        x = rng.normal(size=n)
        y = 0.5 * x + rng.normal(size=n)
        reference = pearsonr(x, y)
        limits = reference.confidence_interval(0.95)
        for found in (correlate(x, y), correlate(y, x), correlate(1e-3 * x + 7, 100 * y)):
            assert (found.r, found.low, found.high) == pytest.approx((reference.statistic, *limits), rel=1e-9)
        assert correlate(-x, y).r == pytest.approx(-reference.statistic)


def test_correlation_says_nothing_of_what_is_not_defined() -> None:
    for n in (0, 1, 2, 3):  # of two pairs |r| is 1 by construction, and below four there are no limits
        few = correlate(np.arange(n) ** 2.0, np.arange(n) * 1.0)
        assert (few.r, few.low, few.high) == (None, None, None)
    almost = np.array([0.1 + 0.2, 0.3, 0.3, 0.3])
    for x, y in itertools.permutations((almost, np.arange(4.0))):
        assert correlate(x, y).r is None
    line = np.arange(5.0)
    assert correlate(line, 2 * line) == correlate(line, line)
    assert (correlate(line, -line).low, correlate(line, -line).high) == (-1, -1)


@pytest.mark.parametrize(("n", "rho"), [(5, 0.0), (8, 0.6), (12, 0.9)])
def test_limits_of_correlations_cover_the_truth_in_95_percent_of_the_studies(n: int, rho: float) -> None:
    rng = np.random.default_rng(0)
    studies, covered = 2000, 0
    for _ in range(studies):
        x, e = rng.normal(size=(2, n))
        found = correlate(x, rho * x + math.sqrt(1 - rho**2) * e)
        covered += found.low <= rho <= found.high
    low, high = binom.interval(0.999, studies, 0.95)  # 1867 to 1931; 1897, 1894 and 1902 are covered
    assert low <= covered <= high


FRAMES = 10  # of a group, with a difficulty in common


def clips(rng, groups: int, skill: float) -> np.ndarray:
    """Counts of one seed over frames of so many groups. What a model makes of a group is the same in all its frames."""
    spread = np.repeat(rng.normal(0, 0.08, groups), FRAMES) + rng.normal(0, 0.03, groups * FRAMES)
    right = rng.binomial(1000, np.clip(skill + spread, 0, 1))
    return symmetric(right[None], 1000)


@pytest.mark.parametrize("studies", [60, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("groups", [4, 8, 12, 30])
def test_intervals_over_groups_cover_where_those_over_frames_do_not(groups: int, studies: int) -> None:
    rng, truth = np.random.default_rng(groups), 0.7 / 1.3 - 0.65 / 1.35  # of unlimited groups: p / (2 - p)
    of_groups, covered, by_frames = np.repeat(np.arange(groups), FRAMES), 0, 0
    for _ in range(studies):
        pair = [clips(rng, groups, skill) for skill in (0.7, 0.65)]
        found = difference(*(score(one, of_groups) for one in pair))
        naive = difference(*(score(one) for one in pair))
        covered += found.low <= truth <= found.high
        by_frames += naive.low <= truth <= naive.high
    low, high = binom.ppf(0.0005, studies, 0.91), binom.ppf(0.9995, studies, 0.97)
    assert low <= covered <= high
    assert by_frames / studies < 0.65


def test_groups_are_sums_of_their_images_and_below_eight_there_is_no_verdict() -> None:
    rng = np.random.default_rng(0)
    counts = draw(rng, np.array([0.6, 0.7]), rng.uniform(-0.1, 0.1, 20))
    groups = rng.permutation(np.repeat(np.arange(5), 4))
    summed = np.stack([counts[:, groups == g].sum(axis=1) for g in range(5)], axis=1)
    assert score(counts, groups).estimate() == score(summed).estimate()
    assert score(counts, groups).few
    assert not score(counts, np.arange(20) % 8).few


def test_a_correction_for_many_tests_is_as_strict_as_few_groups_ask_for() -> None:
    """Of 8 groups and 20 seeds, it is the groups that tell little of their variance."""
    rng = np.random.default_rng(0)
    of_groups, labelled = rng.normal(0, 0.01, (100, 1)), np.ones(8, bool)
    one, two = (
        Scored(0.5 + shift + rng.normal(0, 1e-4, 20), 0.5 + shift + sign * of_groups + np.zeros(20), labelled)
        for shift, sign in ((0.03, 1), (0.0, -1))
    )
    found = difference(one, two)
    assert found.p_strict == pytest.approx(found.p, rel=0.01)
    assert pooled(one, two, residual([one, two])).p_strict == pytest.approx(found.p, rel=0.01)


def test_overlapping_draws_of_labels_are_not_taken_as_independent() -> None:
    """Each draw is half of a pool; the mean over draws is to cover what other pools would give."""
    rng, pools, draws, covered, naive = np.random.default_rng(3), 200, 8, 0, 0
    for _ in range(pools):
        skills = rng.normal(0.0, 0.08, 40)  # what an image in training brings
        chosen = np.stack([rng.permutation(40)[:20] for _ in range(draws)])
        scored = np.clip(0.6 + skills[chosen].mean(axis=1), 0, 1)
        one = score(symmetric(np.round(1e6 * scored)[:, None].repeat(30, axis=1).astype(np.int64), 10**6))
        truth = 0.6 / 1.4
        for shared in (0.5, 0.0):
            found = one.estimate(shared)
            hit = found.low <= truth <= found.high
            covered, naive = covered + hit * (shared > 0), naive + hit * (shared == 0)
    assert covered / pools > 0.9
    assert naive / pools < 0.75
