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

With few seeds, what each pair tells of the variance of seeds is little: of 5, Holm's correction for 9 questions asks
for a difference of 5.4 standard errors. So a study also takes it from all of its configurations (`residual`, `pooled`).

Why not resample seeds too: the percentile interval of 3 resampled seeds goes from the least to the greatest of them,
and the truth is outside in a quarter of the studies (all three above it or all below), not in a twentieth.

Images are drawn once for a configuration, by the same generator for every one, so that the difference of any two is a
subtraction of what is kept of each: 8 kB a seed. Scoring one takes 48 bytes an image, seed and class, 123 MB for 5000
images, 3 seeds and 171 classes, beside the counts themselves, of which one seed at a time in memory will do.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import pearsonr
from scipy.stats import t as student

from regard.errors import InputError

LEVEL = 0.95
FEW = 8  # images, or groups: below it the bootstrap's intervals are far too narrow, and the jackknife takes its place
DRAWS = 1000  # the images' standard error then moves by about 2% from one bootstrap seed to another
BATCH = 100  # draws at a time: bounds memory at BATCH x (images + seeds x classes) numbers
OneSeed = Int[np.ndarray, "images classes classes"]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, the limits of its 95% interval, and how likely one so far from 0 is where the truth is 0.

    p is two-sided, of the same distribution as the limits: below 0.05 just where they leave out 0. p_strict has the
    fewer degrees of freedom of seeds and of images, or groups (where seeds have no chance, these), and is what a
    correction for many tests takes: it asks for the far tail, where Satterthwaite's approximation is no good. With p in
    its place, something was claimed in 27% of simulated studies of 12 equal configurations with 3 seeds that differ
    more than the images do. Of `pooled`, see there.
    """

    mean: float
    low: float
    high: float
    p: float
    p_strict: float


@dataclass(frozen=True)
class Scored:
    """The mIoU of one configuration: of each seed, and of each seed in every draw of the images."""

    miou: Float[np.ndarray, "seeds"]
    draws: Float[np.ndarray, "draws seeds"]  # of one image, which tells nothing of others: no draws
    labelled: Bool[np.ndarray, "images"]  # an image that is all void is no evidence

    @property
    def few(self) -> bool:
        """Whether there are too few images, or groups, for a verdict."""
        return int(self.labelled.sum()) < FEW

    def only(self, seeds: Sequence[int]) -> "Scored":
        """Of the seeds at these places alone: what two configurations have in common."""
        return Scored(self.miou[list(seeds)], self.draws[:, list(seeds)], self.labelled)

    def estimate(self, shared: float = 0.0) -> Estimate:
        """Dataset-level mIoU, in [0, 1].

        Of one seed, the interval is over images only: variance of seeds is not counted. shared: see `difference`.
        """
        return _estimate(self.miou, self.draws, int(self.labelled.sum()), lowest=0.0, shared=shared)


def score(counts: Iterable[OneSeed], groups: Int[np.ndarray, "images"] | None = None) -> Scored:
    """The mIoU of a configuration, from the confusion counts of its seeds, which need not all be in memory at once.

    It is that of `evaluation.scores`, the mean over the classes of the ground truth of all these images.

    groups: of each image, from 0, where images are not independent: then what is said of images holds of groups.

    Raises InputError where every pixel of the masks is void.
    """
    return score_terms(np.stack([_terms(_summed(seed, groups)) for seed in counts], axis=1))


def score_terms(terms: Float[np.ndarray, "images seeds 3 classes"]) -> Scored:
    """As `score`, from the intersections, unions and true pixels of images, or of groups of images."""
    terms = terms[..., terms[..., 2, :].any(axis=(0, 1))]
    labelled = np.asarray(terms[:, :, 2].any(axis=(1, 2)))
    if not labelled.any():
        raise InputError("no labelled pixel to score: every pixel of the masks is void")
    terms = terms[labelled]
    return Scored(_miou(terms.sum(axis=0)), _draws(terms), labelled)


def difference(a: Scored, b: Scored, shared: float = 0.0) -> Estimate:
    """mIoU of `a` minus mIoU of `b`, in [-1, 1], paired by image and by seed: the same ones in the same order.

    Of one seed, the interval is over images only: variance of seeds is not counted.

    shared: where seeds are draws of training images from one pool, the share of the pool in each, below 1. Any two
            draws share as much, so they are not independent: the variance of their mean is s²(1/S + shared/(1 -
            shared)), as of Nadeau and Bengio (2003, https://doi.org/10.1023/A:1024068626366), section 3.
    """
    assert a.miou.shape == b.miou.shape, "paired: both configurations must have the same seeds"
    assert np.array_equal(a.labelled, b.labelled), "paired: both configurations must have the same images"
    return _estimate(a.miou - b.miou, a.draws - b.draws, int(a.labelled.sum()), lowest=-1.0, shared=shared)


@dataclass(frozen=True)
class Residual:
    """The mean square of what a seed does to one configuration and not to all, and its degrees of freedom."""

    square: float
    freedom: int


def residual(scored: Sequence[Scored]) -> Residual | None:
    """Of configuration x seed, in a two-way analysis of variance of several configurations with the same seeds.

    What a seed does to all of them alike is not in it: in no paired difference either. None of one configuration or of
    one seed, and where seeds have no chance.
    """
    miou = np.stack([one.miou for one in scored])  # configurations seeds
    freedom = (miou.shape[0] - 1) * (miou.shape[1] - 1)
    if freedom == 0 or not np.ptp(miou, axis=1).any():
        return None
    left = miou - miou.mean(axis=0) - miou.mean(axis=1, keepdims=True) + miou.mean()
    return Residual(float(np.square(left).sum()) / freedom, freedom)


def pooled(a: Scored, b: Scored, found: Residual, shared: float = 0.0) -> Estimate:
    """As `difference`, but for the variance of seeds, which is that of all configurations together: 2 residuals / S.

    That is right where every configuration varies alike, and its limits assume so. p_strict does not: it takes the
    larger of this variance and the pair's own, with at most 2(S - 1) degrees of freedom. Simulated with 2, 3 and 5
    seeds (`benchmarks/pooled_seeds.py`), 3 to 14 configurations that are all equal, Holm's correction for all that is
    asked: something is claimed in at most 5% of studies, where configurations vary alike, where some have four times
    the variance of others, and where some vary together. Limits, or a p of their kind, would not do: with four times
    the variance, something is claimed in up to 14%. With 5 seeds and 4 questions it finds a difference of 3 standard
    deviations of a seed in 66% of studies (by the pair's own seeds 41%), with 9 questions in 46% (18%).
    """
    images = int(a.labelled.sum())
    return _estimate(a.miou - b.miou, a.draws - b.draws, images, lowest=-1.0, shared=shared, residual=found)


def holm(ps: Sequence[float], level: float = 1 - LEVEL) -> list[bool]:
    """Which of several hypotheses are rejected, where to reject any true one at all may happen in 5% of studies.

    Sture Holm (1979), A simple sequentially rejective multiple test procedure: the least p of m is held against
    level / m, the next against level / (m - 1), and so on up to the first that is not below its bound. It assumes
    nothing of how the p depend on each other.
    """
    rejected = [False] * len(ps)
    for place, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        if ps[i] > level / (len(ps) - place):
            break
        rejected[i] = True
    return rejected


@dataclass(frozen=True)
class Correlation:
    """Pearson's r and the limits of its 95% interval; None where they are not defined."""

    r: float | None
    low: float | None
    high: float | None


def correlate(x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"]) -> Correlation:
    """Pearson's r, with the interval of Fisher's z = artanh r, whose standard error is 1 / sqrt(n - 3).

    It assumes that the pairs are independent draws of a bivariate normal distribution. Configurations are neither drawn
    at random nor independent where they share a pre-training, so the interval is rather too narrow. Nothing is given
    below 4 pairs, where there are no limits (two pairs have |r| = 1 whatever they are), nor where one side is constant.
    """
    if len(x) < 4 or any(np.allclose(side, side[0], rtol=1e-12, atol=0) for side in (x, y)):  # equal up to rounding
        return Correlation(None, None, None)
    found: Any = pearsonr(x, y)
    low, high = found.confidence_interval(LEVEL)
    return Correlation(float(found.statistic), float(low), float(high))


def _estimate(
    per_seed: Float[np.ndarray, "seeds"],
    draws: Float[np.ndarray, "draws seeds"],
    images: int,
    lowest: float,
    shared: float = 0.0,
    residual: Residual | None = None,
) -> Estimate:
    """The mean over seeds. draws: its values in the draws of the images. lowest: what can be; the highest is 1."""
    mean, seeds = float(per_seed.mean()), len(per_seed)
    # the bootstrap's variance of a mean divides by n: n / (n - 1) makes it the unbiased one that Student's t needs
    factor = images - 1 if images < FEW else images / (images - 1)  # that of the jackknife, see `_draws`
    of_images = float(np.var(draws.mean(axis=1))) * factor if images > 1 else np.inf
    variances, freedom = [of_images], [images - 1]
    strict, strict_freedom = of_images, images - 1
    if residual or np.ptp(per_seed) > 0:  # else seeds have no chance, such as those of an answer in closed form
        of_mean = 1 / seeds + shared / (1 - shared)
        own = float(per_seed.var(ddof=1)) * of_mean
        pooled = 2 * residual.square * of_mean if residual else own
        variances.append(pooled)
        freedom.append(residual.freedom if residual else seeds - 1)
        strict, strict_freedom = of_images + max(own, pooled), min(*freedom, 2 * (seeds - 1))
    total = sum(variances)
    if total == np.inf:
        return Estimate(mean, lowest, 1.0, 1.0, 1.0)
    if total == 0:
        return Estimate(mean, mean, mean, float(mean == 0), float(mean == 0))
    satterthwaite = total**2 / sum(v**2 / df for v, df in zip(variances, freedom, strict=True))
    half = float(student.ppf((1 + LEVEL) / 2, satterthwaite) * np.sqrt(total))
    p, p_strict = (
        float(2 * student.sf(abs(mean) / np.sqrt(variance), df))
        for variance, df in ((total, satterthwaite), (strict, strict_freedom))
    )
    return Estimate(mean, max(mean - half, lowest), min(mean + half, 1.0), p, p_strict)


def _draws(terms: Float[np.ndarray, "images seeds 3 classes"]) -> Float[np.ndarray, "draws seeds"]:
    """mIoU where as many images are drawn with replacement, `DRAWS` times: each draw is the same for all seeds. Of few
    images: where each is left out in turn.

    Counts are resampled, not averages of per-image IoU: mIoU is not linear.
    """
    images, seeds = terms.shape[:2]
    if images == 1:
        return np.empty((0, seeds))
    if images < FEW:
        return _miou(terms.sum(axis=0) - terms)  # each left out in turn
    rng = np.random.default_rng(0)  # fixed: the same draws for every configuration, and the same interval each time
    flat = terms.reshape(images, -1)
    draws = []
    for _ in range(DRAWS // BATCH):
        weights = rng.multinomial(images, np.full(images, 1 / images), size=BATCH)  # how often each image is drawn
        draws.append(_miou((weights.astype(np.float64) @ flat).reshape(BATCH, *terms.shape[1:])))
    return np.concatenate(draws)


def _summed(counts: OneSeed, groups: Int[np.ndarray, "images"] | None) -> Int[np.ndarray, "groups classes classes"]:
    if groups is None:
        return counts
    summed = np.zeros((int(groups.max()) + 1, *counts.shape[1:]), counts.dtype)
    np.add.at(summed, groups, counts)
    return summed


def _terms(counts: OneSeed) -> Float[np.ndarray, "images 3 classes"]:
    """Intersection, union and true pixels, which add up over images, and are few where classes are many."""
    hits, truth = np.diagonal(counts, axis1=-2, axis2=-1).astype(np.float64), counts.sum(axis=-1)
    return np.stack([hits, truth + counts.sum(axis=-2) - hits, truth], axis=-2)


def _miou(terms: Float[np.ndarray, "*batch 3 classes"]) -> Float[np.ndarray, "*batch"]:
    """Mean IoU over the classes of the ground truth of these images."""
    hits, union, truth = (terms[..., i, :] for i in range(3))
    occurs = truth > 0
    iou = np.divide(hits, union, out=np.zeros_like(hits), where=occurs)
    return np.divide(iou.sum(axis=-1), occurs.sum(axis=-1), out=np.zeros(occurs.shape[:-1]), where=occurs.any(axis=-1))
