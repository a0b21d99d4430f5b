"""Scores of segmentations, over a whole dataset: sums of counts over its images, and scores of the sums.

Dataset-level IoU (VOC's) divides sums over all images; it is not the mean of the images' IoU. torchmetrics counts the
confusion matrix; we add up.

Boundary IoU: Cheng et al. 2021, https://arxiv.org/abs/2103.16562. Published for single masks; here intersections and
unions are summed over images, as those of IoU are.
Calibration: Guo et al. 2017, https://arxiv.org/abs/1706.04599, each labelled pixel one answer.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from regard.errors import InputError

BOUNDARY = 0.02  # width of a boundary as a share of the image's diagonal, as published
BINS = 15  # of confidence, as published


def confusion(
    prediction: Int[Tensor, "*shape"], target: Int[Tensor, "*shape"], classes: int, ignore_index: int
) -> Int[Tensor, "classes classes"]:
    """Counts of pixels, rows true classes, columns predicted ones; pixels of `ignore_index` do not count."""
    return multiclass_confusion_matrix(prediction, target, classes, ignore_index=ignore_index, validate_args=False)


@dataclass(frozen=True)
class Scores:
    """Of a confusion matrix; all are in [0, 1].

    miou:           mean over the classes of the truth. One that is only predicted lowers the IoU of those whose pixels
                    it took, and is no term of its own: models are means over the same classes, and one false pixel is
                    not a class lost. (torchmetrics' `MulticlassJaccardIndex` counts it as a term of 0.)
    pixel_accuracy: share of the labelled pixels.
    iou:            per class; nan for a class that occurs in neither, 0 for one that is only predicted.
    frequency_weighted_iou: mean of the IoU, each class weighted by its share of the labelled pixels.
    mean_accuracy:  mean over the classes that occur in the truth.
    accuracy:       per class, the share of its true pixels (its recall); nan for a class without any.
    """

    miou: float
    pixel_accuracy: float
    iou: tuple[float, ...]
    frequency_weighted_iou: float
    mean_accuracy: float
    accuracy: tuple[float, ...]


def scores(counts: Num[np.ndarray, "classes classes"] | Int[Tensor, "classes classes"]) -> Scores:
    """The scores of a (summed) confusion matrix; InputError when it counts no pixel."""
    matrix = np.asarray(counts, dtype=np.float64)
    if matrix.sum() == 0:
        raise InputError("no labelled pixel to score: every pixel of the masks is void")
    iou, truth = per_class_iou(matrix), matrix.sum(axis=1)
    accuracy = _divide(np.diagonal(matrix), truth)
    return Scores(
        miou=float(iou[truth > 0].mean()),
        pixel_accuracy=float(np.trace(matrix) / matrix.sum()),
        iou=tuple(iou.tolist()),
        frequency_weighted_iou=float(np.nansum(iou * truth) / truth.sum()),
        mean_accuracy=float(np.nanmean(accuracy)),
        accuracy=tuple(accuracy.tolist()),
    )


def per_class_iou(counts: Num[np.ndarray, "*batch classes classes"]) -> Float[np.ndarray, "*batch classes"]:
    """Intersection over union per class of (stacks of) confusion matrices; nan where a class does not occur."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1).astype(np.float64)
    return _divide(hits, counts.sum(axis=-1) + counts.sum(axis=-2) - hits)


def _divide(part: Num[np.ndarray, "*shape"], whole: Num[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """nan where the whole is 0."""
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def torch_counts(classes: int, device: torch.device) -> Int[Tensor, "classes classes"]:
    """An empty confusion matrix to add to."""
    return torch.zeros(classes, classes, dtype=torch.long, device=device)


def boundary_counts(
    prediction: Int[Tensor, "h w"], target: Int[Tensor, "h w"], classes: int, ignore_index: int
) -> Int[Tensor, "2 classes"]:
    """Per class, the pixels in both the true and the predicted boundary, and those in either; see `boundary`.

    Only labelled pixels count, and only they are looked at: what is answered at void pixels changes nothing, and a void
    pixel is no outside, so that a class which ends at void has no boundary there.
    """
    labelled = target != ignore_index
    width = max(1, round(BOUNDARY * math.hypot(*target.shape)))
    truth, answer = (boundary(labels, labelled, width) for labels in (target, prediction))
    both = _count(target[truth & answer & (target == prediction)], classes)
    return torch.stack([both, _count(target[truth], classes) + _count(prediction[answer], classes) - both])


def _count(labels: Int[Tensor, "pixels"], classes: int) -> Int[Tensor, "classes"]:
    return torch.bincount(labels, minlength=classes)


def boundary(labels: Int[Tensor, "h w"], labelled: Bool[Tensor, "h w"], width: int) -> Bool[Tensor, "h w"]:
    """The labelled pixels with another class, or the image's edge, at most `width` rows and columns away.

    For each class these are the pixels that `width` erosions of its mask by 3 x 3 take away, outside the image being
    outside the mask, as in the published code. All classes at once: a pixel stays where the largest label around it is
    also the smallest.
    """
    height, columns = labels.shape
    if min(height, columns) <= 2 * width:  # every pixel is near the edge
        return labelled
    values = labels.to(torch.int16)
    most = _around_max(values.masked_fill(~labelled, -1), width)
    least = -_around_max((-values).masked_fill(~labelled, -(2**14)), width)
    found = labelled.clone()
    inner = (slice(width, height - width), slice(width, columns - width))
    found[inner] &= most != least
    return found


def _around_max(values: Int[Tensor, "h w"], width: int) -> Int[Tensor, "h2 w2"]:
    """The maximum of each (2 width + 1)-square that lies inside; by doubling, so that the width costs little."""
    side = 2 * width + 1
    for axis in (0, 1):
        reach = 1  # values[i] is the maximum of this many from i on
        while reach < side:
            step = min(reach, side - reach)
            length = values.shape[axis] - step
            values = torch.maximum(values.narrow(axis, 0, length), values.narrow(axis, step, length))
            reach += step
    return values


def boundary_iou(counts: Num[np.ndarray, "2 classes"]) -> Float[np.ndarray, "classes"]:
    """Boundary IoU per class of (summed) `boundary_counts`; nan where a class has no boundary."""
    return _divide(counts[0], counts[1])


def calibration_bins(
    confidence: Float[Tensor, "*shape"], prediction: Int[Tensor, "*shape"], target: Int[Tensor, "*shape"],
    ignore_index: int,
) -> Float[Tensor, "bins 3"]:  # fmt: skip
    """Per bin of confidence (the probability of the answer): labelled pixels, sum of confidences, right answers.

    Bin i of 15 is from i/15 to below (i + 1)/15; a confidence of 1 is in the last.
    """
    labelled = target != ignore_index
    confidence, right = confidence[labelled], (prediction == target)[labelled]
    edges = torch.linspace(0, 1, BINS + 1, device=confidence.device)[1:-1]
    index = torch.bucketize(confidence, edges, right=True)
    # in float64: in float32 a sum over many pixels stops growing
    weights = (torch.ones_like(confidence), confidence, right)
    return torch.stack([torch.bincount(index, weights.double(), minlength=BINS) for weights in weights], dim=1)


def expected_calibration_error(bins: Num[np.ndarray, "bins 3"]) -> float:
    """The mean over pixels of |accuracy - confidence| of their bin, of (summed) `calibration_bins`; in [0, 1]."""
    pixels, confidence, right = bins.T
    return float(np.abs(right - confidence).sum() / pixels.sum())
