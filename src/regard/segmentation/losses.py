"""Losses of segmentation, as pure functions of logits and masks, and a formula of them as a module.

All leave out the pixels whose mask is `ignore_index`: their logits change nothing and get no gradient, and a batch
without a labelled pixel costs 0. All are computed in float32 under autocast, in float64 where logits are. Class weights
weight a mean: they are divided by their sum over what it is taken of, so that only their ratios count.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from regard.errors import InputError
from regard.settings import LOSSES, find

Logits = Float[Tensor, "batch classes h w"]
Masks = Int64[Tensor, "batch h w"]
Weights = Float[Tensor, " classes"] | None
Scalar = Float[Tensor, ""]


def cross_entropy(logits: Logits, masks: Masks, ignore_index: int, class_weights: Weights = None) -> Scalar:
    """Mean of -ln p over the labelled pixels, p being the label's probability, each weighted by its label's weight."""
    surprise = F.cross_entropy(_wide(logits), masks, ignore_index=ignore_index, reduction="none")
    return _mean(surprise, _pixel_weights(masks, ignore_index, class_weights))


def focal(logits: Logits, masks: Masks, ignore_index: int, class_weights: Weights = None, gamma: float = 2.0) -> Scalar:
    """Mean of (1 - p)^gamma * -ln p over the labelled pixels, p being the label's probability (Lin et al. 2017,
    https://arxiv.org/abs/1708.02002, equation 4, with a softmax over classes for their sigmoid).

    A departure: they divide by the number of anchors that hold an object; here every labelled pixel counts.
    """
    surprise = F.cross_entropy(_wide(logits), masks, ignore_index=ignore_index, reduction="none")
    doubt = -torch.expm1(-surprise)  # 1 - p
    return _mean(doubt**gamma * surprise, _pixel_weights(masks, ignore_index, class_weights))


def dice(logits: Logits, masks: Masks, ignore_index: int, class_weights: Weights = None) -> Scalar:
    """1 - 2 sum(p g) / (sum(p^2) + sum(g^2)) of a class, p being its probability and g 1 where it is the label, over
    the labelled pixels of the whole batch; the mean over classes (Milletari et al. 2016,
    https://arxiv.org/abs/1606.04797, section 3, who have one foreground class).

    Only classes that occur in the masks count. One that does not would cost 1 however little of it is predicted; where
    it is, the classes that are there lose.
    """
    return _mean_over_present(_dice_of_class, logits, masks, ignore_index, class_weights)


def lovasz(logits: Logits, masks: Masks, ignore_index: int, class_weights: Weights = None) -> Scalar:
    """The Lovász extension of 1 - IoU of a class, over the labelled pixels of the whole batch; the mean over the
    classes that occur in the masks (Berman et al. 2018, https://arxiv.org/abs/1705.08790).

    Of a hard prediction it is exactly 1 minus the mean IoU of those classes.
    """
    return _mean_over_present(_lovasz_of_class, logits, masks, ignore_index, class_weights)


def _dice_of_class(probability: Float[Tensor, " pixels"], truth: Bool[Tensor, " pixels"]) -> Scalar:
    return 1 - 2 * (probability * truth).sum() / (probability.square().sum() + truth.sum())


def _lovasz_of_class(probability: Float[Tensor, " pixels"], truth: Bool[Tensor, " pixels"]) -> Scalar:
    """The sum of errors, the largest first, each times what 1 - IoU gains when that pixel too becomes wrong.

    The gains are written out. As differences of two values of 1 - IoU they would drown in rounding: a pixel's is small.
    """
    errors, order = torch.where(truth, 1 - probability, probability).sort(descending=True)
    truth = truth[order]
    missed = truth.cumsum(dim=0)  # of the class, among the wrong ones; in whole numbers, since float32 ends at 2^24
    joined = (~truth).cumsum(dim=0)
    intersection = (missed[-1] - missed).to(errors.dtype)
    union = (missed[-1] + joined).to(errors.dtype)
    # a pixel of the class leaves the intersection; another one joins the union
    gains = torch.where(truth, 1 / union, intersection / (union * (union - 1)))
    return (errors * gains).sum()


def _mean_over_present(
    of_class: Callable[[Tensor, Tensor], Tensor],
    logits: Logits,
    masks: Masks,
    ignore_index: int,
    class_weights: Weights,
) -> Scalar:
    """The mean, over classes that occur, of a loss of (a class's probability, whether it is the label)."""
    kept = masks != ignore_index
    labels = masks[kept]
    probabilities = _wide(logits.movedim(1, 0)[:, kept]).softmax(dim=0)  # (classes, pixels)
    if not len(labels):
        return probabilities.sum()  # of nothing: 0, and so is its gradient
    present = labels.unique()
    of_classes = probabilities.unbind()  # its gradient is one stack; that of indexing, a whole tensor for each class
    losses = torch.stack([of_class(of_classes[c], labels == c) for c in present.tolist()])
    return _mean(losses, torch.ones_like(losses) if class_weights is None else class_weights[present])


def _pixel_weights(masks: Masks, ignore_index: int, class_weights: Weights) -> Float[Tensor, "batch h w"]:
    labelled = masks != ignore_index
    if class_weights is None:
        return labelled.float()
    return torch.where(labelled, class_weights[masks.where(labelled, 0)], 0)


def _wide(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return logits if logits.dtype == torch.float64 else logits.float()


def _mean(values: Float[Tensor, "*shape"], weights: Float[Tensor, "*shape"]) -> Scalar:
    """The weighted mean; 0 where nothing has weight."""
    total = weights.sum()
    return (weights * values).sum() / torch.where(total > 0, total, 1)


class Loss(nn.Module):
    """A weighted sum of losses. terms: (factor, function) of each."""

    class_weights: Tensor | None

    def __init__(
        self,
        terms: Sequence[tuple[float, Callable[..., Tensor]]],
        class_weights: Float[Tensor, " classes"] | None,
        ignore_index: int,
    ) -> None:
        super().__init__()
        self.terms, self.ignore_index = tuple(terms), ignore_index
        self.register_buffer("class_weights", class_weights, persistent=False)  # of the training set, not of the model

    def forward(self, logits: Logits, masks: Masks) -> Scalar:
        """The loss of a batch."""
        losses = [f * loss(logits, masks, self.ignore_index, self.class_weights) for f, loss in self.terms]
        return torch.stack(losses).sum()


def build_loss(formula: str, class_weights: Float[Tensor, " classes"] | None, ignore_index: int) -> Loss:
    """A loss from a formula such as "cross_entropy", "cross_entropy + dice" or "cross_entropy + 0.5*lovasz".

    class_weights: of every term; None for equal ones.

    Raises InputError for an unknown name, a factor that is no number above 0, and weights that are below 0 or all 0.
    """
    terms = []
    for term in formula.split("+"):
        factor, star, name = term.rpartition("*")
        name = name.strip()
        if not name:
            raise InputError(f"loss {formula!r} has a term without a name: write it as cross_entropy + 0.5*dice")
        terms.append((_factor(factor, formula) if star else 1.0, find("loss", name, LOSSES)))
    if class_weights is not None and not (bool((class_weights >= 0).all()) and 0 < class_weights.sum() < math.inf):
        raise InputError("class weights are to be 0 or more, finite, and not all 0")
    return Loss(terms, class_weights, ignore_index)


def _factor(text: str, formula: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not 0 < factor < math.inf:
        wrong = f"loss {formula!r} has the factor {text.strip()!r}"
        raise InputError(f"{wrong}, which is no number above 0: write it as cross_entropy + 0.5*dice")
    return factor


def balanced_weights(counts: Int[Tensor, " classes"]) -> Float[Tensor, " classes"]:
    """Median-frequency balancing: the median of the classes' frequencies over each class's own (Eigen and Fergus 2015,
    https://arxiv.org/abs/1411.4734, section 6.3.2; as in SegNet).

    counts: labelled pixels of each class over the whole training set. A class's frequency is its share of them all. A
    departure: the paper divides a class's pixels by those of the images it occurs in, which raises the frequency, and
    so lowers the weight, of a class that is in few images. The median is over the classes that occur, the mean of the
    middle two of an even number. A class without a pixel, which has no frequency, gets 0: it never is a label.

    Raises InputError for a count below 0, and where no class has a pixel.
    """
    if bool((counts < 0).any()) or not bool((counts > 0).any()):
        raise InputError("class weights need pixels per class, 0 or more, and at least one class that has some")
    pixels = counts.double()  # the shares' common denominator cancels
    occurs = pixels > 0
    median = pixels[occurs].quantile(0.5)
    return torch.where(occurs, median / pixels.clamp(min=1), 0).float()
