"""How often does a study claim a difference, where there is none and where there is one? By whose seeds vary.

Simulated mIoU of configurations x seeds, with a shift of each seed that all share, and errors of images. `pair`: a
question's p from the pair's own seeds; `guarded`: `statistics.pooled`, as reports have it; `plain`: from the residual
mean square alone, which is not used. Each with Holm's correction, and where the pair's own interval leaves out 0.

    python benchmarks/pooled_seeds.py
"""

import itertools
from argparse import ArgumentParser
from collections.abc import Iterator

import numpy as np

from regard.evaluation.statistics import Scored, difference, holm, pooled, residual

DRAWS = 50  # of the bootstrap: few, as only their variance is read
Questions = list[tuple[int, int]]


def spreads(count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Factors of seeds' chance: how each configuration takes independent standard normal numbers."""
    numbers, every = np.arange(count), np.eye(count)
    yield "all alike", every
    yield "half fourfold", every * np.where(numbers < count // 2, 2, 1)
    yield "one fourfold", every * np.where(numbers == 0, 2, 1)
    yield "threes share three quarters", np.hstack([every, np.sqrt(3) * np.eye(count)[numbers // 3]])


def questions(kind: str, count: int) -> Questions:
    """What is asked: each against the first, or each against the next."""
    return [(0 if kind == "first" else i, i + 1) for i in range(count - 1)]


def study(
    rng: np.random.Generator, spread: np.ndarray, seeds: int, of_images: float, gain: float, groups: int = 200
) -> list[Scored]:
    """mIoU in units of 1/100 of what it can be, so that no limit is cut off. gain: of the first configuration.

    groups: of images, of which the bootstrap knows the variance as well as groups - 1 numbers tell it.
    """
    count = len(spread)
    error = rng.normal(0, np.sqrt(of_images), (1 + DRAWS, count)) / np.sqrt(2)
    error[1:] *= np.sqrt(rng.chisquare(groups - 1) / (groups - 1))
    chance = spread @ rng.normal(0, 1, (spread.shape[1], seeds)) + rng.normal(0, 2, seeds)
    miou = (chance + error[:1].T + np.where(np.arange(count) == 0, gain, 0)[:, None]) / 100
    labelled = np.ones(groups, bool)
    return [Scored(miou[i], np.repeat(error[1:, i, None], seeds, 1) / 100, labelled) for i in range(count)]


def claims(scored: list[Scored], asked: Questions) -> dict[str, list[bool]]:
    """Which questions are answered, by each rule."""
    found = residual(scored)
    assert found is not None
    own = [difference(scored[a], scored[b]) for a, b in asked]
    with_all = [pooled(scored[a], scored[b], found) for a, b in asked]
    ps = {
        "pair": [one.p_strict for one in own],
        "guarded": [one.p_strict for one in with_all],
        "plain": [one.p for one in with_all],
    }
    return {
        rule: [still and one.p < 0.05 for still, one in zip(holm(of_rule), own, strict=True)]
        for rule, of_rule in ps.items()
    }


def main(studies: int) -> None:
    """Print shares of studies, in percent: with any claim, or, of a gain, with the claim that is true."""
    rng = np.random.default_rng(0)
    print("seeds configurations asked images' variance: pair, guarded, plain, % of studies with a false claim")
    for seeds, count, kind, of_images in itertools.product((2, 3, 5), (3, 10), ("first", "next"), (0, 1)):
        for name, spread in spreads(count):
            asked = questions(kind, count)
            each = [claims(study(rng, spread, seeds, of_images, 0), asked) for _ in range(studies)]
            shares = [100 * np.mean([any(one[rule]) for one in each]) for rule in each[0]]
            print(seeds, count, kind, of_images, f"{name}:", *(f"{share:.1f}" for share in shares), flush=True)
    print("groups seeds configurations: pair, guarded, plain, % of studies with a false claim, mostly images' variance")
    for groups, seeds, count in itertools.product((8, 12, 30), (5, 20), (3, 10)):
        asked = questions("first", count)
        each = [claims(study(rng, np.eye(count), seeds, 4, 0, groups), asked) for _ in range(studies)]
        shares = [100 * np.mean([any(one[rule]) for one in each]) for rule in each[0]]
        print(groups, seeds, count, *(f"{share:.1f}" for share in shares), flush=True)
    print("seeds configurations gain: pair, guarded, plain, % of studies that find a gain of the first")
    for seeds, count, gain in itertools.product((3, 5), (5, 10), (2, 3, 4)):
        asked = questions("next", count)
        each = [claims(study(rng, np.eye(count), seeds, 0.2, gain), asked) for _ in range(studies)]
        shares = [100 * np.mean([one[rule][0] for one in each]) for rule in each[0]]
        print(seeds, count, gain, *(f"{share:.1f}" for share in shares), flush=True)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=2000)
    main(parser.parse_args().studies)
