"""What frozen pooled features are worth to a classification: linear top-1, as papers quote it, beside kNN.

Of the middle square of each image: weighted kNN, ridge regression of the classes, and multinomial logistic regression
trained to its minimum. Penalties are chosen by top-1 on held-out groups of the training images. The features of all
images are in memory, as they are for kNN.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from regard.backbones import Backbone, device_of, normalize
from regard.data.groups import groups_of
from regard.data.loading.draws import LABELS, draws
from regard.data.loading.modules import loading
from regard.data.loading.samples import CentreCrops
from regard.errors import InputError
from regard.evaluation.embeddings import pooled_features
from regard.evaluation.logistic import logistic
from regard.evaluation.probes import knn_answers
from regard.evaluation.ridge import Ridge, Sums, answers, total
from regard.evaluation.statistics import score_terms
from regard.results import ClassProbeRow, limits_of
from regard.say import console
from regard.scoring.chosen import Chosen
from regard.scoring.probe_columns import BLOCKS, FOLDS, folds
from regard.settings import Probing

BATCH, NEIGHBOURS = 64, 20
PENALTIES = {
    "ridge": tuple(10.0**power for power in range(-4, 2)),
    "logistic": tuple(10.0**power for power in range(-6, 0)),
}
Answering = Callable[[Float[Tensor, "rows dim"]], Int[Tensor, "rows"]]


@dataclass(frozen=True)
class Pooled:
    """Of some images: pooled features, classes, and groups."""

    features: Float[Tensor, "images dim"]
    labels: Int[Tensor, "images"]
    groups: list[str]

    def only(self, numbers: Sequence[int] | Bool[np.ndarray, "images"]) -> "Pooled":
        """Of these images."""
        places = np.flatnonzero(numbers) if isinstance(numbers, np.ndarray) else np.asarray(numbers)
        return Pooled(self.features[places], self.labels[places], [self.groups[place] for place in places])


def pooled(backbone: Backbone, data: Chosen, asked: Probing, words: str, bar: bool = True) -> Pooled:
    """Read them. `data` has class folders below."""
    crops = CentreCrops(data.dataset, data.numbers, asked.size)
    loader = DataLoader(crops, BATCH, generator=torch.Generator(), **loading(asked.workers))
    labels: list[Tensor] = []

    def batches() -> Iterable[Tensor]:
        for images, of_batch in track(loader, words, len(loader), transient=True, console=console(), disable=not bar):
            labels.append(of_batch)
            yield normalize(images.permute(0, 3, 1, 2).to(device_of(backbone)))

    features = torch.from_numpy(pooled_features(backbone, batches()))
    names = [data.name(i) for i in range(len(data))]
    return Pooled(features, torch.cat(labels), groups_of(names, asked.groups))


def probe_classes(train: Pooled, scored: Pooled, classes: int, asked: Probing, bar: bool = True) -> list[ClassProbeRow]:
    """Top-1 of each answer, for each fraction of the labels. Raises InputError where one class is left to learn."""
    blocks, rows = folds(scored.groups, BLOCKS).numpy(), []
    tasks = [(f, draw) for f in asked.fractions for draw in range(asked.draws if f < 1 else 1)]
    right: dict[tuple[str, float], list[np.ndarray]] = {}
    chosen: dict[tuple[str, float], list[float | None]] = {}
    for fraction, draw in track(tasks, "fitting", transient=True, console=console(), disable=not bar):
        order = draws(LABELS, asked.seed, draw).permutation(len(train.labels))
        part = train.only(sorted(order[: max(1, round(fraction * len(order)))].tolist()))
        if len(part.labels.unique()) < 2:
            raise InputError(
                f"{len(part.labels)} images of one class are left to learn from: a larger fraction would work"
            )
        near = knn_answers(part.features, part.labels, scored.features, min(NEIGHBOURS, len(part.labels)))[:, 0]
        found: dict[str, tuple[Tensor, float | None]] = {f"kNN, k = {NEIGHBOURS}": (near, None)}
        for answer, fit in (("ridge", _ridge), ("logistic", _logistic)):
            solve, penalty = fit(part, classes)
            found[answer] = (solve(scored.features), penalty)
        for answer, (said, penalty) in found.items():
            right.setdefault((answer, fraction), []).append((said == scored.labels).numpy())
            chosen.setdefault((answer, fraction), []).append(penalty)
    for (answer, fraction), some in right.items():
        hits = np.stack([np.bincount(blocks, one.astype(float)) for one in some], axis=1)  # (blocks, draws)
        every = np.broadcast_to(np.bincount(blocks)[:, None], hits.shape)
        # of one class, intersection over union with as many true: the share of right answers
        terms = np.stack([hits, every, every], axis=-1)[..., None]
        top1 = score_terms(terms).estimate(fraction if fraction < 1 else 0.0)
        grid = PENALTIES.get(answer, ())
        edges = sum(penalty in (grid[0], grid[-1]) for penalty in chosen[answer, fraction]) if grid else 0
        rows.append(
            ClassProbeRow(
                answer=answer, fraction=fraction, draws=len(some), top1=limits_of(top1),
                penalty=chosen[answer, fraction], edges=edges,
            )
        )  # fmt: skip
    return rows


def _ridge(part: Pooled, classes: int) -> tuple[Answering, float | None]:
    """Ridge regression of the classes, each image once."""
    x, y = part.features.double(), F.one_hot(part.labels, classes).double()
    fold_of = folds(_several(part), FOLDS)
    sums = [Sums.zeros(x.shape[1], classes) for _ in range(int(fold_of.max()) + 1)]
    for fold, of_fold in enumerate(sums):
        for rows in torch.nonzero(fold_of == fold)[:, 0].split(4096):
            of_fold.add(x[rows], y[rows], torch.ones(len(rows)).double())
    whole, every = total(sums), torch.arange(x.shape[1])

    def solved(of: Sums, penalty: float) -> Tensor:
        return Ridge(of, every, torch.full((x.shape[1],), penalty).double()).solve()

    best, most = PENALTIES["ridge"][len(PENALTIES["ridge"]) // 2], -1.0
    for penalty in PENALTIES["ridge"] if len(sums) > 1 else ():
        said = torch.zeros_like(part.labels)
        for fold, of_fold in enumerate(sums):
            held_out = fold_of == fold
            said[held_out] = answers(x[held_out], solved(whole.without(of_fold), penalty)).argmax(1)
        if (hits := float((said == part.labels).double().mean())) > most:
            best, most = penalty, hits
    return _linear(solved(whole, best)), best


def _logistic(part: Pooled, classes: int) -> tuple[Answering, float | None]:
    """Multinomial logistic regression; its penalty by one fold that is held out."""
    x, y = part.features, F.one_hot(part.labels, classes).float()
    fold_of = folds(_several(part), FOLDS)

    def solved(rows: Tensor, penalty: float) -> Tensor:
        chosen = x[rows], y[rows], torch.ones(int(rows.sum()))
        return logistic(lambda: [chosen], torch.full((x.shape[1],), penalty))

    best, most = PENALTIES["logistic"][len(PENALTIES["logistic"]) // 2], -1.0
    for penalty in PENALTIES["logistic"] if int(fold_of.max()) else ():
        hits = _linear(solved(fold_of != 0, penalty))(x[fold_of == 0]) == part.labels[fold_of == 0]
        if float(hits.double().mean()) > most:
            best, most = penalty, float(hits.double().mean())
    return _linear(solved(fold_of >= 0, best)), best


def _several(part: Pooled) -> list[str]:
    """Groups to make folds of: the images themselves where they are all of one."""
    return part.groups if len(set(part.groups)) > 1 else [str(number) for number in range(len(part.groups))]


def _linear(coefficients: Float[Tensor, "terms classes"]) -> Answering:
    return lambda x: answers(x, coefficients.to(x.dtype)).argmax(dim=1)
