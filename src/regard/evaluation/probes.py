"""Probes of frozen features: how well classes can be told from an embedding, without training a network."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from regard.errors import InputError

CHUNK = 1024  # queries compared at once: the similarity matrix stays at CHUNK x training images


@torch.inference_mode()
def knn(
    train_features: Float[Tensor, "train dim"],
    train_labels: Int[Tensor, "train"],
    features: Float[Tensor, "images dim"],
    labels: Int[Tensor, "images"],
    k: int = 20,
    temperature: float = 0.07,
) -> tuple[float, float]:
    """Weighted kNN accuracy, (top-1, top-5) in percent, as DINO's `knn_classifier` (Wu et al. 2018, section 3.4).

    The k nearest training images by cosine similarity s vote for their class with weight exp(s / temperature).
    Top-5 are the five classes with the most votes, or those with any: a class that no neighbour has is no answer, which
    DINO's code counts, in an order of its sort, where neighbours are of fewer than five classes.
    Raises InputError when k exceeds the training images.
    """
    ranked = knn_answers(train_features, train_labels, features, k, temperature) == labels.unsqueeze(1)
    top1, top5 = int(ranked[:, 0].sum()), int(ranked.any(dim=1).sum())
    return 100 * top1 / len(features), 100 * top5 / len(features)


@torch.inference_mode()
def knn_answers(
    train_features: Float[Tensor, "train dim"],
    train_labels: Int[Tensor, "train"],
    features: Float[Tensor, "images dim"],
    k: int = 20,
    temperature: float = 0.07,
) -> Int[Tensor, "images answers"]:
    """The five classes with the most votes, or as many as there are, most first; see `knn`. -1 for none with a vote."""
    if k > len(train_features):
        raise InputError(f"k = {k} neighbours asked of {len(train_features)} training images: choose a smaller k")
    train_features, features = F.normalize(train_features, dim=1), F.normalize(features, dim=1)
    classes, found = int(train_labels.max()) + 1, []
    for queries in features.split(CHUNK):
        similarity, nearest = (queries @ train_features.T).topk(k, dim=1)  # (chunk, k)
        votes = queries.new_zeros(len(queries), classes)
        votes.scatter_add_(1, train_labels[nearest], (similarity / temperature).exp())
        most, answers = votes.topk(min(5, classes), dim=1)
        found.append(answers.where(most > 0, -1))
    return torch.cat(found)
