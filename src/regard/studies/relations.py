"""Configurations beside each other: their differences, and scores of their attention heads beside mIoU."""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from regard.evaluation.statistics import Residual, Scored, correlate, difference, holm, pooled, residual
from regard.results import ConfigurationResult, Difference, HeadCorrelation, limits_of
from regard.studies.plan import Configuration, Plan

MOST_PAIRED = 40  # configurations, of which every pair is compared
HEAD_SCORES = {  # that stand beside mIoU, in words
    "beyond_position": "information about the class at a pixel where its place is known, bits",
    "information": "information about the class at a pixel, bits",
    "entropy": "entropy of a map, as a share of the most that it could be",
    "jaccard": "Jaccard index of 60% of the attention with the best class of an image",
}


def differences(plan: Plan, finished: Mapping[str, tuple[Scored, Sequence[int]]]) -> list[Difference]:
    """Every pair, over the seeds that both have; the asked questions first, with Holm's verdict over all of them.

    The variance of seeds is also pooled over the configurations that are trained alike (`_alike`), and then p_strict,
    which Holm's verdict takes, is that of `statistics.pooled`.

    Of more than `MOST_PAIRED` configurations, besides the questions only the pairs with the best.
    finished: configuration -> its scores, and the seeds that they are of.
    """
    asked = [pair for pair in plan.questions if set(pair) <= finished.keys()]
    pairs = itertools.combinations(finished, 2)
    if len(finished) > MOST_PAIRED:
        best = max(finished, key=lambda name: finished[name][0].miou.mean())
        pairs = [(best, name) for name in finished if name != best]
    other = [pair for pair in pairs if not {pair, pair[::-1]} & set(asked)]
    made, residuals = [], _residuals(plan, finished)
    fractions = {c.name: c.label_fraction for c in plan.configurations}
    for pair in [*asked, *other]:
        (one, seeds_of_one), (two, seeds_of_two) = (finished[name] for name in pair)
        common = [seed for seed in seeds_of_one if seed in seeds_of_two]
        if common:
            of_one = one.only([seeds_of_one.index(seed) for seed in common])
            of_two = two.only([seeds_of_two.index(seed) for seed in common])
            shared = shared_labels(fractions[name] for name in pair)
            found = vars(difference(of_one, of_two, shared))
            about = {"question": pair in asked, "holm": False, "seeds": len(common), "few": one.few}
            alike = residuals.get(pair[0])
            if alike is not None and alike is residuals.get(pair[1]):
                with_all = pooled(of_one, of_two, alike, shared)
                found = found | {"p_strict": with_all.p_strict, "pooled": limits_of(with_all)}
            made.append(Difference(a=pair[0], b=pair[1], **found, **about))
    questions = [d for d in made if d.question]
    for d, still in zip(questions, holm([d.p_strict for d in questions]), strict=True):
        d.holm = still
    return made


def shared_labels(fractions: Iterable[float]) -> float:
    """What any two draws of the training labels share, where seeds draw some: see `statistics.difference`."""
    return max((fraction for fraction in fractions if fraction < 1), default=0.0)


def _residuals(plan: Plan, finished: Mapping[str, tuple[Scored, Sequence[int]]]) -> dict[str, Residual]:
    """For each configuration with all seeds, that of all those which are trained alike; the same object for each."""
    families: dict[tuple, list[str]] = {}
    for c in plan.configurations:
        if c.name in finished and len(finished[c.name][1]) == len(plan.seeds):
            families.setdefault(_alike(plan, c), []).append(c.name)
    of_families = [(names, residual([finished[name][0] for name in names])) for names in families.values()]
    return {name: found for names, found in of_families if found is not None for name in names}


def _alike(plan: Plan, c: Configuration) -> tuple[float, bool, bool]:
    """What the variance of seeds must not be pooled across: fewer labels vary more, frozen backbones less, and of a
    solved head nothing varies but which labels were drawn.
    """
    settings = plan.settings(c)
    return c.label_fraction, settings.freeze, settings.head == "ridge"


def correlations(
    configurations: Sequence[ConfigurationResult], kinds: Mapping[str, str | None]
) -> list[HeadCorrelation]:
    """Head scores beside mIoU, over the configurations with the most labels; maps of different kinds are kept apart.

    kinds: configuration -> the kind of its maps; None of a convnet.
    """
    most = max(c.label_fraction for c in configurations if c.runs)
    families: dict[str, list[ConfigurationResult]] = {}
    for c in configurations:
        kind = kinds.get(c.name)
        if kind is not None and c.label_fraction == most and all(run.heads for run in c.runs):
            families.setdefault(kind, []).append(c)
    made = []
    for (kind, members), name in itertools.product(families.items(), HEAD_SCORES):
        points = {c.name: _point(c, name) for c in members}
        known = {member: point for member, point in points.items() if point is not None}
        if len(known) > 1:
            x, y = np.array([*known.values()]).T
            found = vars(correlate(x, y))
            made.append(HeadCorrelation(score=name, words=HEAD_SCORES[name], kind=kind, members=list(known), **found))
    return made


def _point(c: ConfigurationResult, score: str) -> tuple[float, float] | None:
    """The mean of a score of heads over the seeds, and mIoU; None where a seed lacks it."""
    values = [(run.heads or {}).get(score) for run in c.runs]
    known = [value for value in values if value is not None]
    return (sum(known) / len(known), c.miou.mean) if c.miou and len(known) == len(values) else None
