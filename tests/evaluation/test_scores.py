"""Dataset-level scores against a naive count over pixels, and torchmetrics' own."""

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from regard.errors import InputError
from regard.evaluation.scores import confusion, majority_counts, per_class_iou, scores


def test_scores_equal_a_naive_count() -> None:
    rng = np.random.default_rng(0)
    truths = rng.integers(0, 4, (5, 9, 7))
    truths[truths == 3] = 255  # class 3 occurs nowhere, not even in a prediction
    predictions = rng.integers(0, 3, (5, 9, 7))
    counts = sum(
        confusion(torch.from_numpy(p), torch.from_numpy(t), 4, 255) for p, t in zip(predictions, truths, strict=True)
    )
    ours = scores(counts)
    seen = truths != 255
    for c in range(3):
        hits = ((truths == c) & (predictions == c) & seen).sum()
        union = (((truths == c) | (predictions == c)) & seen).sum()
        assert ours.iou[c] == pytest.approx(hits / union)
    assert np.isnan(ours.iou[3])
    assert ours.miou == pytest.approx(np.nanmean(ours.iou))
    assert ours.pixel_accuracy == pytest.approx((truths == predictions)[seen].mean())


def test_miou_equals_torchmetrics_over_the_dataset() -> None:
    metric = MulticlassJaccardIndex(3, ignore_index=255)
    counts = torch.zeros(3, 3, dtype=torch.long)
    for _ in range(4):
        prediction, truth = torch.randint(0, 3, (8, 8)), torch.randint(0, 3, (8, 8))
        truth[0] = 255
        metric.update(prediction.unsqueeze(0), truth.unsqueeze(0))
        counts += confusion(prediction, truth, 3, 255)
    assert scores(counts).miou == pytest.approx(metric.compute().item(), rel=1e-6)


def test_always_answering_the_majority() -> None:
    counts = np.array([[5, 1, 0], [2, 3, 1], [0, 0, 2]])  # truth: 6, 6, 2 -> class 0, the first of the largest
    result = scores(majority_counts(counts))
    assert result.iou == (6 / 14, 0.0, 0.0)
    assert result.pixel_accuracy == 6 / 14


def test_stacks_of_matrices_and_void_only() -> None:
    stack = np.stack([np.eye(2), np.array([[1, 1], [0, 0]])])
    np.testing.assert_allclose(per_class_iou(stack), [[1, 1], [0.5, 0]])
    with pytest.raises(InputError, match="every pixel of the masks is void"):
        scores(np.zeros((3, 3), dtype=np.int64))
