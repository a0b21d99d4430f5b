"""Scores of the attention heads of one block, over many images: see `attention.metrics` for each score.

Only sums are kept, so that memory does not grow with the number of images.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.attention import metrics
from regard.attention.overlap import Places, on_overlap
from regard.results import BlockRow, HeadRow
from regard.scoring.joint_counts import GROUPS, JointCounts, jackknife_error

POINTS = 8  # cells of the overlap of two views, down and across: as many for coarse grids as for fine ones
Column = tuple[Tensor, Tensor]  # of a score: its values by head, and their standard errors


class BlockScores:
    """What is summed up of one block. Rows are its heads and then their mean map.

    grouped: whether images belong together; `groups` are then unions of whole groups, of GROUPS.
    """

    def __init__(self, heads: int, classes: int, mass: float, grouped: bool = False) -> None:
        self.heads, self.classes, self.mass, self.grouped = heads, classes, mass, grouped
        self.entropy, self.entropy_share, self.area = (Mean(grouped) for _ in range(3))
        self.distance, self.diversity = (Mean(grouped) for _ in range(2))
        self.consistency, self.consistency_elsewhere = (Mean(grouped) for _ in range(2))
        self.last_view: tuple[Tensor, Tensor, Tensor] | None = None  # of the image before: rows, place, group
        self.cls_mass, self.register_mass, self.high_norm = (Mean(grouped) for _ in range(3))
        self.jaccard, self.oracle = (Mean(grouped) for _ in range(2))
        self.objects = self.images_elsewhere = 0
        self.own = JointCounts(heads + 1, classes)  # with the image's own labels
        self.elsewhere = JointCounts(heads + 1, classes)  # with those of another

    def add_maps(self, weights: Float[Tensor, "batch heads h w"], groups: Int[Tensor, "batch"]) -> None:
        """What needs no labels."""
        self.diversity.add(metrics.diversity(weights), groups)
        self.distance.add(metrics.distance(weights), groups)
        rows = _with_mean(weights)
        self.entropy.add(metrics.entropy(rows), groups)
        self.entropy_share.add(metrics.entropy_share(rows), groups)
        self.area.add(metrics.area(metrics.mass_mask(rows, self.mass)), groups)

    def add_tokens(
        self,
        prefix: Float[Tensor, "batch heads tokens"] | None,
        has_cls: bool,
        norms: Float[Tensor, "batch h w"] | None,
        groups: Int[Tensor, "batch"],
    ) -> None:
        """Attention to tokens that are no patches, the first of them CLS or not, and lengths of those that are."""
        if prefix is not None:
            rows = torch.cat([prefix, prefix.mean(dim=1, keepdim=True)], dim=1)
            for mass, part in ((self.cls_mass, rows[..., :has_cls]), (self.register_mass, rows[..., has_cls:])):
                if part.shape[-1]:
                    mass.add(part.sum(dim=-1), groups)
        if norms is not None:
            self.high_norm.add(metrics.high_norm_share(norms), groups)

    def add_views(
        self,
        first: Float[Tensor, "batch heads h w"],
        second: Float[Tensor, "batch heads h w"],
        places_first: Places,
        places_second: Places,
        groups: Int[Tensor, "batch"],
    ) -> None:
        """Two views of each image, with their places (`on_overlap`)."""
        first, second = _with_mean(first), _with_mean(second)
        p, q, shared = on_overlap(first, second, places_first, places_second, POINTS)
        self.consistency.add(metrics.consistency(p, q)[shared], groups[shared.cpu()])
        before, places_before, group_before = self.last_view or (second[:1], places_second[:1], groups[:1])
        before = torch.cat([before, second[:-1]])
        places_before = torch.cat([places_before, places_second[:-1]])
        p, q, shared = on_overlap(first, before, places_first, places_before, POINTS)
        if self.last_view is None:
            shared[0] = False  # the first image has none before it
        if self.grouped:
            shared &= (groups != torch.cat([group_before, groups[:-1]])).to(shared.device)
        self.consistency_elsewhere.add(metrics.consistency(p, q)[shared], groups[shared.cpu()])
        self.last_view = second[-1:].clone(), places_second[-1:].clone(), groups[-1:]

    def add_labels(
        self,
        weights: Float[Tensor, "batch heads h w"],
        counts: Float[Tensor, "batch classes h w"],
        elsewhere: Float[Tensor, "batch classes h w"],
        objects: Float[Tensor, "batch objects h w"],
        groups: Int[Tensor, "batch"],
    ) -> None:
        """What needs labels: pixels of each class, and of each object, by position (`metrics.cell_counts`).

        elsewhere: of another image; groups: of GROUPS, the one of each image.
        """
        rows = _with_mean(weights)
        present = objects.sum(dim=(-2, -1)) > 0  # (batch, objects)
        found = metrics.jaccard(metrics.mass_mask(rows, self.mass), objects, counts.sum(dim=1))
        best = found[:, :-1].max(dim=1, keepdim=True).values  # of the heads
        some = present.any(dim=1)
        means = _mean_of(torch.cat([found, best], dim=1), present)[some]
        self.jaccard.add(means[:, :-1], groups[some.cpu()])
        self.oracle.add(means[:, -1], groups[some.cpu()])
        self.objects += int(present.sum())
        self.images_elsewhere += int((elsewhere.sum(dim=(-3, -2, -1)) > 0).sum())
        self.own.add(rows, counts, groups)
        self.elsewhere.add(rows, elsewhere, groups)

    def result(self, block: int, stride: int) -> BlockRow:
        """The scores of this block, its index and stride given, and of its heads; their mean map comes last.

        Two scores come with what they would be for maps that know nothing of their image: `consistency_elsewhere`, of
        views of two images at the same places; `position`, the information about the labels of another image, which is
        what the place alone tells, and what remains of the bias. `information_beyond_position` is the information
        within each cell of the image, less the same about the labels of another image: `beyond_position_bias`.
        """
        columns: dict[str, Column] = {
            "entropy": self.entropy.result(),
            "entropy_share": self.entropy_share.result(),
            "area": self.area.result(),
            "distance": self.distance.result(),
        }
        for name, mass in (("cls_mass", self.cls_mass), ("register_mass", self.register_mass)):
            if mass.images:
                columns[name] = mass.result()
        if self.consistency.images:
            columns["consistency"] = self.consistency.result()
            columns["consistency_elsewhere"] = self.consistency_elsewhere.result()
        found: dict[str, float | None] = _named("diversity", self.diversity.result())
        if self.high_norm.images:
            found |= _named("high_norm", self.high_norm.result())
        if self.classes:
            joint, samples = self.own.whole()
            label_entropy = metrics.label_entropy(joint[0], samples)  # of all rows alike
            columns |= self._information(label_entropy)
            correction = metrics.miller_madow(joint, samples).min()
            found |= {"samples": _plain(samples), "label_entropy": _plain(label_entropy)}
            found |= {"largest_correction": _plain(correction)}
        best = None
        if self.oracle.images:
            columns["jaccard"] = self.jaccard.result()
            best = int(columns["jaccard"][0][:-1].argmax())
            found |= _named("oracle", self.oracle.result())
            found |= _named("best_head_jaccard", columns["jaccard"], best)
            found |= _named("mean_map_jaccard", columns["jaccard"], self.heads)
        heads = [_row(name, number, columns) for number, name in enumerate([*range(self.heads), "mean"])]
        return BlockRow(block=block, stride=stride, heads=heads, best_head=best, **found)

    def _information(self, label_entropy: Tensor) -> dict[str, Column]:
        (value, without), (within, within_without) = self.own.information()
        (position, position_without), (bias, bias_without) = self.elsewhere.information()
        used, used_elsewhere = self.own.used, self.elsewhere.used
        error = jackknife_error(without[used])
        beyond_error = jackknife_error((within_without - bias_without)[used | used_elsewhere])
        return {
            "information": (value, error),
            "information_share": (value / label_entropy, error / label_entropy),
            "position": (position, jackknife_error(position_without[used_elsewhere])),
            "information_beyond_position": (within - bias, beyond_error),
            "beyond_position_bias": (bias, jackknife_error(bias_without[used_elsewhere])),
        }


class Mean:
    """Means over images and their standard errors, from sums alone; values (images, ...).

    grouped: the error is that of a mean over unions of groups, whose images are not independent.
    """

    def __init__(self, grouped: bool = False) -> None:
        self.grouped, self.images = grouped, 0
        self.counts = torch.zeros(GROUPS, dtype=torch.float64)
        self.totals = self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, values: Float[Tensor, "images *shape"], groups: Int[Tensor, "images"]) -> None:
        """One value, or one of each kind, per image, and its group, of GROUPS."""
        values = values.cpu().double()  # in this order: not every device has float64
        self.images += len(values)
        self.counts += torch.bincount(groups, minlength=GROUPS)
        self.totals = self.totals + values.new_zeros(GROUPS, *values.shape[1:]).index_add_(0, groups, values)
        self.squares = self.squares + values.square().sum(dim=0)

    def result(self) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        """Mean, and standard error of the mean: nan for one image, or one group."""
        mean, spread = self.totals.sum(dim=0) / self.images, self.squares / self.images
        spread, count = (spread - mean.square()).clamp(min=0), self.images
        if self.grouped:  # of a ratio of sums over groups, linearised (Cochran 1977, section 6.3)
            count = int((self.counts > 0).sum())
            expected = self.counts.view(-1, *[1] * mean.ndim) * mean
            spread = (self.totals - expected).square().sum(dim=0) * count / self.images**2
        return mean, (spread / (count - 1)).sqrt() if count > 1 else torch.full_like(mean, math.nan)


def _with_mean(weights: Float[Tensor, "batch heads h w"]) -> Float[Tensor, "batch rows h w"]:
    """The heads' maps, and then their mean."""
    return torch.cat([weights, weights.mean(dim=1, keepdim=True)], dim=1)


def _mean_of(values: Float[Tensor, "batch rows objects"], present: Bool[Tensor, "batch objects"]) -> Tensor:
    """(batch, rows): means over the objects that are present; nan where none is."""
    present = present.unsqueeze(1)
    return values.where(present, 0).sum(dim=-1) / present.sum(dim=-1)


def _row(name: int | str, number: int, columns: dict[str, Column]) -> HeadRow:
    """The scores of a head; those that only the heads have are None in the row of their mean."""
    found = [_named(score, column, number) for score, column in columns.items() if number < len(column[0])]
    return HeadRow(head=name, **{key: value for named in found for key, value in named.items()})


def _named(name: str, found: Column, number: int | None = None) -> dict[str, float | None]:
    value, error = found if number is None else (found[0][number], found[1][number])
    return {name: _plain(value), f"{name}_se": _plain(error)}


def _plain(value: Tensor) -> float | None:
    """A number for JSON, which has no nan."""
    return float(value) if math.isfinite(value) else None
