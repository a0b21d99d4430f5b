"""Pixels by attention, class and cell of the image, for each head: what information is computed from, and its errors.

Memory is flat in the number of images: 4 bytes for each of GROUPS x 64 cells x 19 bins x classes, for each head and
mean map, with the image's own labels and with those of another. For 171 classes that is 17 MB a head: 0.5 GB for the
levels of a ViT of 6 heads, 1.4 GB for all its 12 blocks, and as much again for the model with random weights.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from regard.attention import metrics

GROUPS = 10  # of images, for the standard error of information: as many as its jackknife leaves out in turn
Values = tuple[Float[Tensor, "rows"], Float[Tensor, "groups rows"]]  # of all groups; of all but one group at a time


def needed_memory(rows: int, classes: int) -> int:
    """Bytes for this many heads and mean maps, at most: what is never counted is never touched, and takes none."""
    return 2 * 4 * GROUPS * rows * metrics.CELLS**2 * metrics.BINS * classes


class JointCounts:
    """What is summed up for the heads of one block, with one kind of labels."""

    def __init__(self, rows: int, classes: int, cells: int = metrics.CELLS) -> None:
        self.cells = cells
        shape = (GROUPS, rows, cells**2, metrics.BINS, classes)
        self.table = torch.from_numpy(np.zeros(shape, np.float32))  # not torch's zeros, which touches all of it
        self.moments = torch.zeros(GROUPS, cells**2, 4, classes, dtype=torch.float64)

    def add(
        self,
        weights: Float[Tensor, "batch rows h w"],
        counts: Float[Tensor, "batch classes h w"],
        groups: Int[Tensor, "batch"],
    ) -> None:
        """Maps, and pixels of each class by position; groups: of GROUPS, the one of each image."""
        metrics.add_joint(self.table, weights, counts, groups)
        self.moments.index_add_(0, groups, metrics.label_moments(counts.cpu(), self.cells))

    @property
    def used(self) -> Tensor:
        """Whether there are labels in each group."""
        return self.moments.sum(dim=(1, 2, 3)) > 0

    def whole(self) -> tuple[Float[Tensor, "rows bins classes"], Tensor]:
        """The table of all images, whatever the cell, and how many independent samples it is worth."""
        return self.table.sum(dim=(0, 2), dtype=torch.float64), metrics.independent_samples(
            self.moments.sum(dim=(0, 1))
        )

    def information(self) -> tuple[Values, Values]:
        """Information, and that within cells."""
        table, moments = self.table.sum(dim=0, dtype=torch.float64), self.moments.sum(dim=0)
        found = [_both(table, moments)]
        found += [
            _both(table - left_out, moments - its) for left_out, its in zip(self.table, self.moments, strict=True)
        ]
        plain, within = (torch.stack(values) for values in zip(*found, strict=True))
        return (plain[0], plain[1:]), (within[0], within[1:])


def _both(table: Float[Tensor, "rows cells bins classes"], moments: Float[Tensor, "cells 4 classes"]) -> list[Tensor]:
    return [
        metrics.information(table.sum(dim=1), metrics.independent_samples(moments.sum(dim=0))),
        metrics.conditional_information(table, metrics.independent_samples(moments)),
    ]


def jackknife_error(without: Float[Tensor, "groups rows"]) -> Float[Tensor, "rows"]:
    """The standard error of an estimate, by how it varies as one group at a time is left out; nan for one group.

    Efron and Stein 1981: too large rather than too small, most where there is hardly any information.
    """
    groups = len(without)
    if groups < 2:
        return without.new_full(without.shape[1:], math.nan)
    return (without.var(dim=0, correction=0) * (groups - 1)).sqrt()
