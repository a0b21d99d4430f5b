"""Multinomial logistic regression of patches, trained to its minimum: as a linear head would answer, beside ridge.

The columns, the power in the weights of rows and the ratios of penalties are those that ridge has chosen; the penalty
of the features is its own, chosen by mIoU on one fold that is held out, from about `THIN` rows of the others. Each step
of the training reads the rows from the disk once, so memory does not grow with them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from regard.evaluation.logistic import Rows, logistic
from regard.scoring.probe_training import Choice, Name, Training, shares, terms_of_rows

THIN = 2**14
PENALTIES = tuple(10.0**power for power in range(-1, -7, -1))  # of standardised columns, beside a mean cross-entropy


def logistic_answers(
    training: Training, choices: Mapping[Name, Choice], features: Sequence[str], added: Sequence[str]
) -> Iterator[tuple[Name, Choice, Tensor]]:
    """Name, choice and coefficients of raw columns of each of these features, alone and with what is added.

    choices: those of ridge. added: from the fewest columns to the most, each with those of the one before in front.
    """
    for name in features:
        root = _chosen(training, choices[name, ""])
        slopes = None
        for columns in ("", *added):
            choice = choices[name, columns]
            penalties = choice.penalties / choice.penalty * root.penalty
            rows = _rows(training, choice, training.images, 1)
            slopes = logistic(rows, penalties, None if slopes is None else _padded(slopes, 1 + len(penalties)))
            made = replace(root, columns=choice.columns, penalties=penalties, ratio=choice.ratio)
            yield (name, columns), made, training.raw(slopes, choice.columns)


def _chosen(training: Training, choice: Choice) -> Choice:
    """The penalty of the features, from the strongest on, each starting where the one before ended."""
    folds = training.fold_of.tolist()
    choice = replace(choice, penalty=PENALTIES[len(PENALTIES) // 2], miou=None, tried=PENALTIES)
    if len(training.images) == 1:  # nothing can be held out
        return choice
    held_out, others = ([i for i, f in zip(training.images, folds, strict=True) if (f == 0) == out] for out in (1, 0))
    step = training.thin(others, THIN)
    rows, slopes, best = _rows(training, choice, others, step), None, replace(choice, miou=-1.0)
    for penalty in PENALTIES:
        slopes = logistic(rows, torch.full_like(choice.penalties, penalty), slopes)
        terms = torch.zeros(2, training.rows.classes, dtype=torch.float64)
        truth = torch.zeros(training.rows.classes, dtype=torch.float64)
        for columns, pixels in training.rows.of(held_out):
            terms += terms_of_rows(columns[:, choice.columns], pixels, slopes[None].float())[0]
            truth += pixels.double().sum(dim=0)
        hits, union = terms[:, truth > 0]
        if (miou := float((hits / union).mean())) > (best.miou or 0):
            best = replace(choice, penalty=penalty, miou=miou)
    return best


def _rows(training: Training, choice: Choice, images: Sequence[int], step: int) -> Callable[[], Iterable[Rows]]:
    """The rows of these images, every `step`th, as often as they are asked for."""

    def read() -> Iterator[Rows]:
        for columns, pixels in training.rows.of(images):
            pixels = pixels[::step]
            yield columns[::step][:, choice.columns], shares(pixels), training.weights(pixels, choice.power)

    return read


def _padded(slopes: Tensor, terms: int) -> Tensor:
    """With 0 for what columns are new."""
    return torch.cat([slopes, slopes.new_zeros(terms - len(slopes), slopes.shape[1])])
