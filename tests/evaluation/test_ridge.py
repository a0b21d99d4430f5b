"""Ridge regression in closed form is scikit-learn's, sums add up, and what is added costs no more than itself."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as Reference

from regard.evaluation.ridge import Ridge, Sums, answers, total

ROWS, COLUMNS, TARGETS = 200, 9, 4


@pytest.fixture
def rows():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, COLUMNS, generator=random, dtype=torch.float64) @ torch.randn(
        COLUMNS, COLUMNS, generator=random, dtype=torch.float64
    )
    x = 3 * x + 5
    y = torch.randn(ROWS, TARGETS, generator=random, dtype=torch.float64)
    return x, y, torch.rand(ROWS, generator=random, dtype=torch.float64)


def summed(x, y, weights) -> Sums:
    sums = Sums.zeros(x.shape[1], y.shape[1])
    sums.add(x, y, weights)
    return sums


@pytest.mark.parametrize("penalty", [1e-4, 0.1, 10.0])
def test_it_is_scikit_learns_ridge_on_standardised_columns(rows, penalty) -> None:
    x, y, weights = rows
    mean = (weights[:, None] * x).sum(0) / weights.sum()
    scale = ((weights[:, None] * (x - mean) ** 2).sum(0) / weights.sum()).sqrt()
    reference = Reference(alpha=penalty * float(weights.sum()))
    reference.fit(((x - mean) / scale).numpy(), y.numpy(), sample_weight=weights.numpy())
    expected = reference.predict(((x - mean) / scale).numpy())
    ridge = Ridge(summed(x, y, weights), torch.arange(COLUMNS), torch.full((COLUMNS,), penalty, dtype=torch.float64))
    np.testing.assert_allclose(answers(x, ridge.solve()), expected, rtol=1e-9, atol=1e-9)  # float64 both


def test_sums_of_shards_are_the_whole_and_parts_of_columns_their_own(rows) -> None:
    x, y, weights = rows
    shards = [summed(x[part], y[part], weights[part]) for part in (slice(0, 50), slice(50, 51), slice(51, ROWS))]
    whole, some = summed(x, y, weights), torch.tensor([7, 2, 3])
    for found, expected in (
        (total(shards), whole),
        (whole.without(shards[0]), total(shards[1:])),
        (whole.of(some), summed(x[:, some], y, weights)),
    ):
        torch.testing.assert_close(found.xx, expected.xx)
        torch.testing.assert_close(found.xy, expected.xy)


def test_columns_added_to_a_base_are_as_if_solved_at_once(rows) -> None:
    sums, base, added = summed(*rows), torch.tensor([4, 0, 1, 6]), torch.tensor([2, 3, 8])
    ridge = Ridge(sums, base, torch.full((4,), 0.2), added)
    torch.testing.assert_close(ridge.solve(), Ridge(sums, base, torch.full((4,), 0.2)).solve())
    for some in ([1], [0, 2]):
        columns = torch.cat([base, added[some]])
        for penalty, found in zip((3.0, 0.01), ridge.beside(torch.tensor(some), (3.0, 0.01)), strict=True):
            penalties = torch.cat([torch.full((4,), 0.2), torch.full((len(some),), penalty)])
            torch.testing.assert_close(found, Ridge(sums, columns, penalties).solve())


def test_a_constant_column_and_a_doubled_one_do_no_harm(rows) -> None:
    x, y, weights = rows
    penalty = torch.full((COLUMNS,), 0.1, dtype=torch.float64)
    expected = answers(x, Ridge(summed(x, y, weights), torch.arange(COLUMNS), penalty).solve())
    odd = torch.cat([x, x[:, :1], torch.full((ROWS, 1), 7.0)], dim=1)
    # a column twice, each at twice the penalty, is the column once: a^2 + a^2 at 2p is (2a)^2 at p
    penalty = torch.cat([penalty, torch.tensor([0.2, 0.1])])
    penalty[0] = 0.2
    found = answers(odd, Ridge(summed(odd, y, weights), torch.arange(COLUMNS + 2), penalty).solve())
    torch.testing.assert_close(found, expected)
