"""Dataset-level scores against naive counts over pixels, worked answers, and torchmetrics' own."""

import math

import cv2
import numpy as np
import pytest
import torch
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassJaccardIndex,
)

from regard.errors import InputError
from regard.evaluation.scores import (
    BINS,
    boundary,
    boundary_counts,
    boundary_iou,
    calibration_bins,
    confusion,
    expected_calibration_error,
    per_class_iou,
    scores,
)


def test_scores_equal_a_naive_count() -> None:
    rng = np.random.default_rng(0)
    truths = rng.integers(0, 5, (5, 9, 7))
    truths[truths == 3] = 255  # class 3 occurs nowhere, not even in a prediction
    truths[truths == 4] = 0  # class 4 is only predicted
    predictions = rng.choice([0, 1, 2, 4], (5, 9, 7))
    counts = sum(
        confusion(torch.from_numpy(p), torch.from_numpy(t), 5, 255) for p, t in zip(predictions, truths, strict=True)
    )
    ours = scores(counts)
    seen = truths != 255
    weighted = 0.0
    for c in (0, 1, 2, 4):
        hits = ((truths == c) & (predictions == c) & seen).sum()
        union = (((truths == c) | (predictions == c)) & seen).sum()
        assert ours.iou[c] == pytest.approx(hits / union)
        weighted += hits / union * ((truths == c) & seen).sum() / seen.sum()
        if c != 4:
            assert ours.accuracy[c] == pytest.approx(hits / (truths == c).sum())
    assert ours.iou[4] == 0
    assert np.isnan(ours.iou[3])
    assert np.isnan([ours.accuracy[3], ours.accuracy[4]]).all()
    assert ours.miou == pytest.approx(np.mean(ours.iou[:3]))  # of the classes of the truth
    assert ours.frequency_weighted_iou == pytest.approx(weighted)
    assert ours.mean_accuracy == pytest.approx(np.mean(ours.accuracy[:3]))
    assert ours.pixel_accuracy == pytest.approx((truths == predictions)[seen].mean())


@pytest.mark.parametrize("present", [(0, 1, 2, 3), (0, 2)])
def test_scores_equal_torchmetrics_over_the_dataset(present) -> None:
    """A class that occurs nowhere is left out of their means too; for one that is only predicted see the next test."""
    options = {"num_classes": 4, "ignore_index": 255}
    metrics = {
        "miou": MulticlassJaccardIndex(**options),
        "frequency_weighted_iou": MulticlassJaccardIndex(**options, average="weighted"),
        "mean_accuracy": MulticlassAccuracy(**options, average="macro"),
        "pixel_accuracy": MulticlassAccuracy(**options, average="micro"),
    }
    counts = torch.zeros(4, 4, dtype=torch.long)
    for _ in range(4):
        prediction, truth = (torch.tensor(present)[torch.randint(0, len(present), (8, 8))] for _ in range(2))
        truth[0] = 255
        for metric in metrics.values():
            metric.update(prediction.unsqueeze(0), truth.unsqueeze(0))
        counts += confusion(prediction, truth, 4, 255)
    ours = scores(counts)
    for name, metric in metrics.items():
        assert getattr(ours, name) == pytest.approx(metric.compute().item(), rel=1e-6), name


def test_a_class_that_is_only_predicted_is_no_term_of_a_mean_where_torchmetrics_gives_it_0() -> None:
    truth, prediction = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 0, 1, 2]])
    ours = scores(confusion(prediction, truth, 3, 255))
    theirs = MulticlassAccuracy(num_classes=3, average="macro")(prediction, truth).item()
    assert ours.mean_accuracy == 0.75
    assert theirs == pytest.approx(0.5)
    assert ours.miou == 0.75
    assert MulticlassJaccardIndex(num_classes=3)(prediction, truth).item() == pytest.approx(0.5)


def test_stacks_of_matrices_and_void_only() -> None:
    stack = np.stack([np.eye(2), np.array([[1, 1], [0, 0]])])
    np.testing.assert_allclose(per_class_iou(stack), [[1, 1], [0.5, 0]])
    with pytest.raises(InputError, match="every pixel of the masks is void"):
        scores(np.zeros((3, 3), dtype=np.int64))


def blobs(classes: int, shape: tuple[int, int], void: bool = False) -> torch.Tensor:
    """Labels in patches, as in masks."""
    coarse = torch.randint(0, classes, (shape[0] // 6 + 1, shape[1] // 6 + 1))
    labels = coarse.repeat_interleave(6, 0).repeat_interleave(6, 1)[: shape[0], : shape[1]].clone()
    if void:
        labels[torch.rand(shape) < 0.1] = 255
        labels[5:20, 10:14] = 255
    return labels


@pytest.mark.parametrize("shape", [(40, 61), (64, 48), (9, 50), (300, 200)])
def test_boundary_iou_equals_erosions_of_each_class(shape) -> None:
    """As published: a frame of zeros, then 3 x 3 erosions, as many as 2% of the diagonal has pixels."""
    truth, answer = blobs(4, shape), blobs(4, shape)
    answer[: shape[0] // 2] = truth[: shape[0] // 2]
    times = max(1, round(0.02 * math.hypot(*shape)))

    def edge(labels: torch.Tensor, c: int) -> np.ndarray:
        mask = (labels == c).numpy().astype(np.uint8)
        framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        return (mask - cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=times)[1:-1, 1:-1]).astype(bool)

    both, either = boundary_counts(answer, truth, 4, 255).tolist()
    for c in range(4):
        assert both[c] == (edge(truth, c) & edge(answer, c)).sum()
        assert either[c] == (edge(truth, c) | edge(answer, c)).sum()


@pytest.mark.parametrize("width", [1, 2, 5, 30])
def test_boundaries_with_void_equal_a_look_at_every_neighbour(width: int) -> None:
    labels = blobs(3, (23, 31), void=True)
    found = boundary(labels, labels != 255, width)
    for y in range(23):
        for x in range(31):
            near_edge = min(y, x, 22 - y, 30 - x) < width
            around = labels[max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1]
            other = ((around != labels[y, x]) & (around != 255)).any()
            assert found[y, x] == (labels[y, x] != 255 and bool(near_edge or other)), (y, x)


def test_boundary_iou_of_a_shifted_square() -> None:
    truth, answer = torch.zeros(2, 50, 50, dtype=torch.long)  # 2% of the diagonal is 1.4 pixels: lines of 1
    truth[20:30, 10:20], answer[20:30, 11:21] = 1, 1
    counts = boundary_counts(answer, truth, 2, 255)
    assert counts[:, 1].tolist() == [18, 54]  # two rings of 36 that share the nine pixels of two sides
    assert boundary_iou(counts.numpy())[1] == pytest.approx(1 / 3)
    assert per_class_iou(confusion(answer, truth, 2, 255).numpy())[1] == pytest.approx(90 / 110)


def test_void_pixels_decide_nothing_about_boundaries() -> None:
    truth = blobs(3, (60, 60), void=True)
    answer = blobs(3, (60, 60))
    counts = boundary_counts(answer, truth, 3, 255)
    elsewhere = torch.where(truth == 255, torch.randint(0, 3, truth.shape), answer)
    assert not torch.equal(elsewhere, answer)
    assert torch.equal(boundary_counts(elsewhere, truth, 3, 255), counts)
    right = torch.where(truth == 255, answer, truth)
    np.testing.assert_array_equal(boundary_iou(boundary_counts(right, truth, 3, 255).numpy()), 1)

    island = torch.full((60, 60), 255)
    island[20:40, 20:40] = 1  # what lies around is not known: no boundary
    assert boundary_counts(torch.ones(60, 60, dtype=torch.long), island, 2, 255).sum() == 0
    assert np.isnan(boundary_iou(np.zeros((2, 1), dtype=np.int64))).all()


def test_calibration_over_images_equals_torchmetrics_over_their_pixels() -> None:
    metric = MulticlassCalibrationError(num_classes=4, n_bins=BINS, norm="l1")
    bins = np.zeros((BINS, 3))
    for image in range(3):
        probabilities = (torch.randn(4, 9, 7) * (1 + image)).softmax(dim=0)
        truth = torch.randint(0, 4, (9, 7))
        truth[image] = 255
        confidence, answer = probabilities.max(dim=0)
        bins += calibration_bins(confidence, answer, truth, 255).numpy()
        seen = truth != 255
        metric.update(probabilities[:, seen].T, truth[seen])
    assert bins[:, 0].sum() == 3 * 8 * 7
    # theirs adds in float32
    assert expected_calibration_error(bins) == pytest.approx(metric.compute().item(), abs=1e-6)


def test_calibration_worked_by_hand() -> None:
    confidence = torch.tensor([1.0, 1.0, 0.95, 0.5, 0.5, 0.9])
    answer = torch.zeros(6, dtype=torch.long)
    truth = torch.tensor([0, 0, 1, 0, 1, 255])
    bins = calibration_bins(confidence, answer, truth, 255).numpy()
    assert bins[:, 0].tolist() == [0] * 7 + [2] + [0] * 6 + [3]  # a confidence of 1 is in the last bin
    np.testing.assert_allclose(bins[-1], [3, 2.95, 2], rtol=1e-6)
    assert expected_calibration_error(bins) == pytest.approx((0.95 + 0) / 5)
