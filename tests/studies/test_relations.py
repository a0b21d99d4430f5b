"""Differences between configurations: whose seeds are pooled."""

from dataclasses import replace

import numpy as np

from regard.evaluation.statistics import Scored
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
