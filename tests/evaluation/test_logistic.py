"""Logistic regression is scikit-learn's at its minimum."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from regard.evaluation.logistic import logistic
from regard.evaluation.ridge import answers


@pytest.mark.parametrize("penalty", [1e-3, 0.1])
def test_it_is_scikit_learns_on_standardised_columns(penalty: float) -> None:
    random = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(300, 5, generator=random, dtype=torch.float64) + 1
    labels = (
        x @ torch.randn(5, 4, generator=random, dtype=torch.float64) + 3 * torch.randn(300, 4, generator=random)
    ).argmax(1)
    weights = torch.rand(300, generator=random, dtype=torch.float64)
    y = torch.eye(4, dtype=torch.float64)[labels]

    def rows():
        return zip(x.split(128), y.split(128), weights.split(128), strict=True)

    found = logistic(rows, torch.full((5,), penalty))
    again = logistic(rows, torch.full((5,), penalty), start=found, steps=1)
    torch.testing.assert_close(again, found, atol=1e-4, rtol=0)  # a start is in raw columns, too
    mean = (weights[:, None] * x).sum(0) / weights.sum()
    scale = ((weights[:, None] * (x - mean) ** 2).sum(0) / weights.sum()).sqrt()
    standard = ((x - mean) / scale).numpy()
    reference = LogisticRegression(C=1 / (penalty * float(weights.sum())), tol=1e-10, max_iter=5000)
    reference.fit(standard, labels.numpy(), sample_weight=weights.numpy())
    shares = answers(x, found).softmax(dim=1).numpy()
    np.testing.assert_allclose(shares, reference.predict_proba(standard), atol=2e-5)  # where both stop


def test_shares_are_as_good_as_rows_of_each_class() -> None:
    random = torch.Generator().manual_seed(1)
    x, y = torch.randn(40, 3, generator=random, dtype=torch.float64), torch.rand(40, 2, generator=random).double()
    y /= y.sum(1, keepdim=True)
    penalties = torch.full((3,), 0.01)
    found = logistic(lambda: [(x, y, torch.ones(40).double())], penalties)
    twice = x.repeat(2, 1), torch.eye(2).double().repeat_interleave(40, 0), y.T.flatten()
    each = logistic(lambda: [twice], penalties)
    torch.testing.assert_close(answers(x, found).softmax(1), answers(x, each).softmax(1), atol=1e-5, rtol=0)
