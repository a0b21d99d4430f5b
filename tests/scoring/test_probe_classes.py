"""Linear answers from pooled features, of classes."""

import pytest
import torch

from regard.errors import InputError
from regard.scoring.probe_classes import Pooled, probe_classes
from regard.settings import Probing


def planted(count: int, seed: int, apart: float = 3.0) -> Pooled:
    """Three classes that lie apart in two of six columns, of which the other four are noise of another scale."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=random)
    features = torch.randn(count, 6, generator=random)
    features[:, :2] += apart * torch.tensor([[0.0, 1], [1, -0.5], [-1, -0.5]])[labels]
    features[:, 2:] *= 20
    return Pooled(features, labels, [str(i) for i in range(count)])


def test_linear_answers_find_what_neighbours_lose_in_noise() -> None:
    rows = probe_classes(planted(300, 0), planted(400, 1), 3, Probing(fractions=(0.1, 1.0), draws=3), bar=False)
    top1 = {(row.answer.split(",")[0], row.fraction): row.top1 for row in rows}
    assert len(rows) == 6
    for answer in ("ridge", "logistic"):
        assert top1[answer, 1.0].mean > 0.9
        assert top1[answer, 1.0].low < top1[answer, 1.0].mean < top1[answer, 1.0].high
        assert top1[answer, 1.0].mean >= top1[answer, 0.1].mean - 0.01
    assert top1["kNN", 1.0].mean < 0.7
    assert {row.draws for row in rows if row.fraction < 1} == {3}


def test_classes_that_features_do_not_tell_are_answered_by_chance() -> None:
    rows = probe_classes(planted(200, 0, apart=0), planted(600, 1, apart=0), 3, Probing(), bar=False)
    for row in rows:
        assert row.top1.low < 1 / 3 + 0.02
        assert row.top1.high > 1 / 3 - 0.02


def test_one_class_cannot_be_learned() -> None:
    train = planted(40, 0).only([0])
    with pytest.raises(InputError, match="1 images of one class are left"):
        probe_classes(train, planted(10, 1), 3, Probing(), bar=False)
