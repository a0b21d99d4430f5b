"""How sure a comparison is: 95% intervals of dataset-level mIoU, over the two sources of chance, images and seeds.

The estimate is the mean over seeds of each seed's mIoU, or of the difference of two configurations' mIoU. Its variance
is the sum of two. Seeds: s²/S, of S seeds with sample variance s², with S - 1 degrees of freedom. Images: the variance
of the seeds' mean under a bootstrap, with images - 1. An interval of the sum takes Student's t with the degrees of
freedom of Welch and Satterthwaite (Satterthwaite 1946, https://doi.org/10.2307/3002019).

All seeds are scored on the same images, so s² is the variance of training alone, without that of drawing the images:
adding the images' variance does not count it twice. Only what is peculiar to one seed on one image is in both, which
errs towards wide intervals.

How far to trust it: simulated with normal noise, 5 seeds or more cover 94 to 95%, 3 seeds 92 to 95%, 2 seeds 88 to 95%;
least where seeds make nine tenths of the variance.

Why not resample seeds too: the percentile interval of 3 resampled seeds goes from the least to the greatest of them,
and the truth is outside in a quarter of the studies (all three above it or all below), not in a twentieth.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import t as student

from regard.errors import InputError

LEVEL = 0.95
DRAWS = 1000  # the images' standard error then moves by about 2% from one bootstrap seed to another
BATCH = 100  # draws at a time: bounds memory at BATCH x (images + seeds x classes) numbers
Counts = Int[np.ndarray, "seeds images classes classes"]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and the limits of its 95% interval."""

    mean: float
    low: float
    high: float


def estimate_miou(counts: Counts) -> Estimate:
    """Dataset-level mIoU, in [0, 1].

    Of one seed, the interval is over images only: variance of seeds is not counted.
    """
    return _estimate((1,), counts)


def estimate_difference(a: Counts, b: Counts) -> Estimate:
    """mIoU of `a` minus mIoU of `b`, in [-1, 1], paired by image and by seed: both must be given in the same order.

    Of one seed, the interval is over images only: variance of seeds is not counted.
    """
    assert a.shape == b.shape, "paired: both configurations must have the same seeds, images and classes"
    return _estimate((1, -1), a, b)


def _estimate(signs: tuple[int, ...], *counts: Counts) -> Estimate:
    """The estimate of the configurations' mIoU, added with `signs`."""
    terms = np.stack([_terms(c) for c in counts], axis=1)  # images configurations seeds 2 classes
    terms = terms[terms.any(axis=(1, 2, 3, 4))]  # an image that is all void is no evidence
    images, _, seeds, _, _ = terms.shape
    if images == 0:
        raise InputError("no labelled pixel to score: every pixel of the masks is void")
    per_seed = np.tensordot(signs, _miou(terms.sum(axis=0)), axes=(0, 0))  # seeds
    mean = float(per_seed.mean())
    variances = [_variance_of_images(signs, terms)]
    freedom = [images - 1]
    if seeds > 1:
        variances.append(float(per_seed.var(ddof=1)) / seeds)
        freedom.append(seeds - 1)
    half = _half_width(variances, freedom)
    lowest, highest = sum(s for s in signs if s < 0), sum(s for s in signs if s > 0)  # mIoU itself is in [0, 1]
    return Estimate(mean, max(mean - half, float(lowest)), min(mean + half, float(highest)))


def _half_width(variances: list[float], freedom: list[int]) -> float:
    """Student's quantile times the standard error: the root of a sum of variances, each with degrees of freedom."""
    total = sum(variances)
    if total in (0, np.inf):
        return total
    satterthwaite = total**2 / sum(v**2 / df for v, df in zip(variances, freedom, strict=True))
    return float(student.ppf((1 + LEVEL) / 2, satterthwaite) * np.sqrt(total))


def _variance_of_images(
    signs: tuple[int, ...], terms: Float[np.ndarray, "images configurations seeds 2 classes"]
) -> float:
    """Variance of the seeds' mean from drawing the images, by bootstrap; a draw is the same for all that is paired.

    Counts are resampled, not averages of per-image IoU: mIoU is not linear. One image tells nothing: infinite.
    """
    images = len(terms)
    if images == 1:
        return np.inf
    rng = np.random.default_rng(0)  # fixed: the same counts give the same interval
    flat = terms.reshape(images, -1)
    replicates = []
    for _ in range(DRAWS // BATCH):
        weights = rng.multinomial(images, np.full(images, 1 / images), size=BATCH)  # how often each image is drawn
        resampled = (weights.astype(np.float64) @ flat).reshape(BATCH, *terms.shape[1:])
        replicates.append(np.tensordot(_miou(resampled).mean(axis=2), signs, axes=(1, 0)))
    # the bootstrap's variance of a mean divides by n: n / (n - 1) makes it the unbiased one that Student's t needs
    return float(np.var(replicates)) * images / (images - 1)


def _terms(counts: Counts) -> Float[np.ndarray, "images seeds 2 classes"]:
    """The two terms of IoU, intersection and union: they add up over images, and are few where classes are many."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1).astype(np.float64)
    union = counts.sum(axis=-1) + counts.sum(axis=-2) - hits
    return np.stack([hits, union], axis=-2).swapaxes(0, 1)


def _miou(terms: Float[np.ndarray, "*batch 2 classes"]) -> Float[np.ndarray, "*batch"]:
    """Mean IoU over the classes that occur, as `evaluation.scores`."""
    hits, union = terms[..., 0, :], terms[..., 1, :]
    occurs = union > 0
    return np.divide(hits, union, out=np.zeros_like(hits), where=occurs).sum(axis=-1) / occurs.sum(axis=-1)
