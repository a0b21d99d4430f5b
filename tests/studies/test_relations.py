"""Differences between configurations: whose seeds are pooled."""

from dataclasses import replace

import numpy as np

from regard.evaluation.statistics import Scored, difference
from regard.studies.presets import preset
from regard.studies.relations import differences


def scored(rng: np.random.Generator, seeds: int = 3) -> Scored:
    miou = rng.uniform(0.4, 0.6, seeds)
    return Scored(miou, miou + rng.normal(0, 0.01, (20, 1)), np.ones(30, bool))


def test_seeds_are_pooled_over_what_is_trained_alike_with_all_seeds() -> None:
    plan, rng = preset("tiny"), np.random.default_rng(0)
    few, frozen, *alike = plan.configurations[:6]
    few, frozen = replace(few, label_fraction=0.1), replace(frozen, segment={"freeze": True})
    plan = replace(plan, configurations=(few, frozen, *alike), seeds=(0, 1, 2))
    seeds = {c.name: [0, 1, 2] for c in plan.configurations} | {alike[-1].name: [0, 2]}
    found = differences(plan, {name: (scored(rng, len(some)), some) for name, some in seeds.items()})
    pooled = {c.name for c in alike[:-1]}
    assert len(found) == 15
    assert all((d.pooled is not None) == ({d.a, d.b} <= pooled) for d in found)
    assert all(d.pooled is None or d.pooled.mean == d.mean for d in found)


def test_draws_of_labels_that_overlap_are_less_sure_than_seeds() -> None:
    plan, rng = preset("tiny"), np.random.default_rng(0)
    names = [c.name for c in plan.configurations[:2]]
    finished = {name: (scored(rng), [0, 1, 2]) for name in names}
    found = {}
    for share in (1.0, 0.5):
        some = tuple(replace(c, label_fraction=share) for c in plan.configurations[:2])
        (found[share],) = differences(replace(plan, configurations=some, seeds=(0, 1, 2)), finished)
    for share, shared in ((1.0, 0.0), (0.5, 0.5)):
        expected = difference(*(finished[name][0] for name in (found[share].a, found[share].b)), shared)
        assert (found[share].low, found[share].high, found[share].p) == (expected.low, expected.high, expected.p)
    assert found[0.5].pooled.high - found[0.5].pooled.low > found[1.0].pooled.high - found[1.0].pooled.low
    assert found[0.5].p_strict > found[1.0].p_strict
