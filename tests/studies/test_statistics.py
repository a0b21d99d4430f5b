"""The bootstrap: it covers the truth as often as it says, and pairs what is paired."""

import numpy as np
import pytest

from regard.studies.statistics import bootstrap_miou, interval


def draw_counts(rng: np.random.Generator, images: int, skill: np.ndarray) -> np.ndarray:
    """One seed's counts of images of 100 pixels each, two classes, each image with its own accuracy."""
    accuracy = np.clip(skill + rng.normal(0, 0.1, images), 0, 1)
    truth = rng.binomial(100, 0.5, images)
    hits0, hits1 = rng.binomial(truth, accuracy), rng.binomial(100 - truth, accuracy)
    return np.stack([np.stack([hits0, truth - hits0], -1), np.stack([100 - truth - hits1, hits1], -1)], -2)[None]


def test_intervals_cover_the_true_difference_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    population = 200_000
    hard = rng.normal(0, 0.1, population)  # images are hard or easy for both configurations

    def miou(counts: np.ndarray) -> float:
        total = counts.sum(axis=(0, 1))
        hits = np.diagonal(total)
        return float((hits / (total.sum(0) + total.sum(1) - hits)).mean())

    truth = miou(draw_counts(rng, population, 0.75 + hard)) - miou(draw_counts(rng, population, 0.70 + hard))
    covered = 0
    for study in range(200):
        some = hard[rng.integers(population, size=60)]
        counts = {"a": draw_counts(rng, 60, 0.75 + some), "b": draw_counts(rng, 60, 0.70 + some)}
        samples = bootstrap_miou(counts, draws=300, seed=study)
        low, high = interval(samples["a"] - samples["b"])
        covered += low <= truth <= high
    # 95% of 200 is 190; a binomial's 99.9% range around it is 179 to 199
    assert 179 <= covered <= 199


def test_a_configuration_differs_from_itself_by_exactly_nothing() -> None:
    counts = draw_counts(np.random.default_rng(0), 20, np.full(20, 0.7)).repeat(3, axis=0)
    samples = bootstrap_miou({"a": counts, "b": counts.copy()}, draws=100)
    assert (samples["a"] == samples["b"]).all()


def test_seeds_are_a_source_of_spread() -> None:
    rng = np.random.default_rng(0)
    same = draw_counts(rng, 200, np.full(200, 0.7))
    apart = np.concatenate([draw_counts(rng, 200, np.full(200, skill)) for skill in (0.5, 0.7, 0.9)])
    narrow, wide = bootstrap_miou({"same": same.repeat(3, axis=0), "apart": apart}, draws=500).values()
    assert wide.std() > 5 * narrow.std()
    assert interval(np.arange(1001.0)) == (pytest.approx(25), pytest.approx(975))
