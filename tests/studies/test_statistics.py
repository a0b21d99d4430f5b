"""The intervals: they cover the truth as often as they say, pair what is paired, and agree with answers by hand."""

import tracemalloc
from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import binom

from regard.errors import InputError
from regard.evaluation.scores import scores
from regard.studies.statistics import Estimate, estimate_difference, estimate_miou

NORMAL = np.array([NormalDist().inv_cdf((i + 0.5) / 1000) for i in range(1000)])  # seeds, evenly by their chance
IMAGES = 60


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


def test_intervals_of_three_seeds_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    sd = 0.015  # of a seed's accuracy; two thirds of the difference's variance are then seeds, one third images
    truth = miou(0.72 + sd * NORMAL).mean(), miou(0.68 + sd * NORMAL).mean()
    studies, single, difference = 300, 0, 0
    for _ in range(studies):
        shared = rng.uniform(-0.1, 0.1, IMAGES)  # images are hard for both, and a little more so for one
        a, b = (
            draw(rng, skill + rng.normal(0, sd, 3), shared + rng.uniform(-0.08, 0.08, IMAGES)) for skill in (0.72, 0.68)
        )
        found = estimate_difference(a, b)
        difference += found.low <= truth[0] - truth[1] <= found.high
        found = estimate_miou(a)
        single += found.low <= truth[0] <= found.high
    # a binomial's 99.9% range around 95% of 300: 272 to 296
    low, high = binom.interval(0.999, studies, 0.95)
    assert low <= difference <= high  # 280; a percentile bootstrap over seeds and images: 259
    assert low <= single <= high  # 276; there: 265


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


def test_one_seed_covers_what_that_seed_would_score_on_all_images() -> None:
    rng = np.random.default_rng(0)
    studies, covered = 300, 0
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
    assert estimate_difference(counts, counts.copy()) == Estimate(0.0, 0.0, 0.0)
    assert estimate_difference(counts[:1], counts[:1].copy()) == Estimate(0.0, 0.0, 0.0)


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
    """Counts of one seed on images of 100 pixels, all of class 0, so many of them right: mIoU is half their share.

    Class 1 is only ever predicted: its IoU is 0. Class 0's union is 100 in every image, so mIoU is linear.
    """
    hits = np.array(right)
    none = np.zeros_like(hits)
    return np.stack([np.stack([hits, 100 - hits], -1), np.stack([none, none], -1)], -2)


def test_of_one_seed_it_is_the_classical_interval_of_the_images_where_miou_is_linear() -> None:
    # mean 60, s² 1000 / 4, Student's t of 4 is 2.776445; 1000 draws make it some 2% off, missing n / (n - 1) 11%
    half = 2.776445 * np.sqrt(250 / 5) / 200
    found = estimate_miou(spread(40, 50, 60, 70, 80)[None])
    assert found.mean == pytest.approx(0.3)
    assert (found.low, found.high) == (
        pytest.approx(0.3 - half, abs=0.06 * half),
        pytest.approx(0.3 + half, abs=0.06 * half),
    )


def test_seeds_and_images_combine_as_welch_and_satterthwaite_say() -> None:
    # the seeds' means are 60, 64 and 71: s²/3 = 31/3; the images' means over seeds are 45 to 85: 250/5 = 50.
    # (31/3 + 50)² / ((31/3)²/2 + 50²/4) = 5.37 degrees of freedom, of which Student's t is 2.5188
    counts = np.stack([spread(30, 45, 60, 75, 90), spread(44, 54, 64, 74, 84), spread(61, 66, 71, 76, 81)])
    half = 2.5188 * np.sqrt(31 / 3 + 50) / 200
    found = estimate_miou(counts)
    assert found.mean == pytest.approx(0.325)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.06)


def test_the_mean_is_that_of_the_scores_where_classes_do_not_occur() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 50, (3, 20, 5, 5)) for _ in range(2))
    for counts in (a, b):
        counts[..., 4, :] = counts[..., :, 4] = 0  # in no truth or prediction
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
