"""How a trained segmentation is asked: whole images in, classes of their pixels out."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from regard.backbones import normalize
from regard.evaluation.scores import confusion


@torch.no_grad()
def count_pixels(model: nn.Module, pairs: list[tuple[Tensor, Tensor]], classes: int, ignore_index: int) -> list[Tensor]:
    """One confusion matrix per (uint8 image, mask) pair, the prediction resampled to the mask's own size.

    Images of one size that follow each other share a forward pass.
    """
    counts: list[Tensor] = []
    for images, masks in _same_sizes(pairs):
        logits = model(normalize(torch.stack(images)))
        for logit, mask in zip(logits, masks, strict=True):
            counts.append(confusion(predict_at(logit, mask.shape), mask, classes, ignore_index))
    return counts


def predict_at(logits: Float[Tensor, "classes h w"], size: tuple[int, ...]) -> Tensor:
    """Class indices at another size: the logits are resampled, not the answer."""
    if logits.shape[-2:] != tuple(size):
        logits = F.interpolate(logits.unsqueeze(0), size=tuple(size), mode="bilinear", align_corners=False)[0]
    return logits.argmax(dim=0)


def _same_sizes(pairs: list[tuple[Tensor, Tensor]]) -> list[tuple[list[Tensor], list[Tensor]]]:
    runs: list[tuple[list[Tensor], list[Tensor]]] = []
    for image, mask in pairs:
        if runs and runs[-1][0][0].shape == image.shape:
            runs[-1][0].append(image)
            runs[-1][1].append(mask)
        else:
            runs.append(([image], [mask]))
    return runs
