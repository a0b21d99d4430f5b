"""Scores of segmentations, over a whole dataset: all come from one confusion matrix per image.

torchmetrics counts; we add up. Dataset-level IoU (VOC's) divides sums over all images; it is not the mean of the
images' IoU.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from regard.errors import InputError


def confusion(
    prediction: Int[Tensor, "*shape"], target: Int[Tensor, "*shape"], classes: int, ignore_index: int
) -> Int[Tensor, "classes classes"]:
    """Counts of pixels, rows true classes, columns predicted ones; pixels of `ignore_index` do not count."""
    return multiclass_confusion_matrix(prediction, target, classes, ignore_index=ignore_index, validate_args=False)


@dataclass(frozen=True)
class Scores:
    """miou: mean over the classes that occur, in truth or prediction; iou: per class, nan for a class that does not.

    pixel_accuracy: share of the labelled pixels. All are in [0, 1].
    """

    miou: float
    pixel_accuracy: float
    iou: tuple[float, ...]


def scores(counts: Num[np.ndarray, "classes classes"] | Int[Tensor, "classes classes"]) -> Scores:
    """The scores of a (summed) confusion matrix; InputError when it counts no pixel."""
    matrix = np.asarray(counts, dtype=np.float64)
    if matrix.sum() == 0:
        raise InputError("no labelled pixel to score: every pixel of the masks is void")
    iou = per_class_iou(matrix)
    return Scores(float(np.nanmean(iou)), float(np.trace(matrix) / matrix.sum()), tuple(float(x) for x in iou))


def per_class_iou(counts: Num[np.ndarray, "*batch classes classes"]) -> Float[np.ndarray, "*batch classes"]:
    """Intersection over union per class of (stacks of) confusion matrices; nan where a class does not occur."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1).astype(np.float64)
    union = counts.sum(axis=-1) + counts.sum(axis=-2) - hits
    return np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)


def majority_counts(counts: Num[np.ndarray, "classes classes"]) -> Num[np.ndarray, "classes classes"]:
    """The confusion matrix of always answering the class that the truth of `counts` has most of."""
    truth = counts.sum(axis=1)
    matrix = np.zeros_like(counts)
    matrix[:, truth.argmax()] = truth
    return matrix


def torch_counts(classes: int, device: torch.device) -> Int[Tensor, "classes classes"]:
    """An empty confusion matrix to add to."""
    return torch.zeros(classes, classes, dtype=torch.long, device=device)
