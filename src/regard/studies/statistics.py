"""How sure a comparison is: a bootstrap over images and seeds, of per-image confusion counts."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int

from regard.evaluation.scores import per_class_iou

DRAWS = 2000  # the 95% limits then move by about 2% of the interval's width from one bootstrap seed to another
Counts = Int[np.ndarray, "seeds images classes classes"]


def bootstrap_miou(
    counts: Mapping[str, Counts], draws: int = DRAWS, seed: int = 0
) -> dict[str, Float[np.ndarray, "draws"]]:
    """Bootstrap replicates of each configuration's dataset-level mIoU, averaged over seeds.

    Each draw takes images with replacement, the same for all configurations, so that differences are paired; and seeds
    with replacement, where there are several. Counts are resampled, not averages of per-image IoU: mIoU is not linear.
    """
    rng = np.random.default_rng(seed)
    images = {c.shape[1] for c in counts.values()}
    assert len(images) == 1, "paired by image: every configuration must be scored on the same images"
    total = images.pop()
    weights = rng.multinomial(total, np.full(total, 1 / total), size=draws)  # how often each image is drawn
    result = {}
    picks: dict[int, np.ndarray] = {}
    for name, matrix in counts.items():
        seeds, _, classes, _ = matrix.shape
        if seeds not in picks:
            picks[seeds] = rng.integers(seeds, size=(draws, seeds))
        miou = np.empty((draws, seeds))
        for s in range(seeds):
            resampled = weights @ matrix[s].reshape(total, -1).astype(np.float64)
            miou[:, s] = np.nanmean(per_class_iou(resampled.reshape(draws, classes, classes)), axis=1)
        result[name] = np.take_along_axis(miou, picks[seeds], axis=1).mean(axis=1)
    return result


def interval(replicates: Float[np.ndarray, "draws"], level: float = 0.95) -> tuple[float, float]:
    """The percentile interval."""
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
