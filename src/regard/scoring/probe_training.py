"""The probe's training: rows of patches kept on disk, and the ridge answers of any draw of the images.

Rows weigh their pixels, each times its class's frequency^-a. The power a, the penalty of features and that of added
columns are chosen where whole groups of the draw's images are held out, by mIoU, from one grid for all variants; then
all images of the draw are used.

Rows are kept on disk within `KEPT` bytes; where they are more, of each image evenly many patches, drawn at random. So
memory does not grow with the number of images.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regard.data.loading.draws import LABELS, draws
from regard.errors import InputError
from regard.evaluation.ridge import Ridge, Sums, answers, total
from regard.files import on_disk
from regard.scoring.probe_columns import FOLDS, Layout, Patches, folds

KEPT = 4 * 2**30  # bytes of rows on disk
POWERS = (0.0, 0.5, 1.0)  # of class frequency
PENALTIES = tuple(10.0**power for power in range(-6, 2))  # of standardised columns, beside a mean squared error
RATIOS = tuple(10.0**power for power in range(-2, 5))  # penalty of added columns over it: the last hardly lets them in
MIDDLE = POWERS[1]
Name = tuple[str, str]  # features, and columns beside them
Solved = tuple[list[Name], Int[Tensor, "columns"], Float[Tensor, "names choices terms classes"]]
EXACT = 2**14  # rows up to which sums are in float64 throughout: of few, a column may vary by very little
SCORED = 2**16  # rows that a choice is scored on, about: evenly many of each image


@dataclass(frozen=True)
class Variant:
    """Columns that an answer may use: those of the variant it stands `beside`, and its own."""

    columns: Int[Tensor, "own"]
    beside: Name | None = None


@dataclass(frozen=True)
class Choice:
    """Columns, the penalty of each, and the power of class frequency in the weights of rows.

    penalty: of the features; ratio: of the variant's own columns over it, None for features themselves.
    miou:    on held-out groups, in [0, 1]; None where nothing could be held out.
    tried:   the penalties that were.
    """

    columns: Int[Tensor, "all"]
    penalties: Float[Tensor, "all"]
    power: float
    penalty: float
    ratio: float | None = None
    miou: float | None = None
    tried: tuple[float, ...] = PENALTIES

    @property
    def on_edge(self) -> bool:
        """Whether it is at an end of what was tried, where a wider grid might do better: not of the largest ratio,
        which hardly lets columns in.
        """
        return self.penalty in (self.tried[0], self.tried[-1]) or self.ratio == RATIOS[0]


class Rows:
    """The rows of the training images, on disk: in files without a name, of which nothing is left however it ends.

    disk: a folder on the disk that takes them; that of temporary files may be memory.
    """

    def __init__(self, disk: Path, layout: Layout, classes: int, groups: Sequence[str]) -> None:
        self.layout, self.classes, self.groups, self.disk = layout, classes, groups, disk
        self.most = max(1, KEPT // (4 * (layout.columns + classes) * len(groups)))  # rows of one image
        self.columns, self.pixels = (TemporaryFile(dir=disk) for _ in range(2))  # noqa: SIM115 (closed below)
        self.starts = [0]
        self.of_classes: list[Float[Tensor, classes]] = []  # pixels in the rows of each image
        # of each column, summed up in float64
        self.sum, self.squares = (torch.zeros(layout.columns, dtype=torch.float64) for _ in range(2))

    def __enter__(self) -> "Rows":
        return self

    def __exit__(self, *error: object) -> None:
        self.columns.close()
        self.pixels.close()

    def add(self, patches: Patches) -> None:
        """The rows of the next image; those without a labelled pixel tell nothing."""
        known = patches.pixels.sum(dim=1) > 0
        columns, pixels = patches.columns[known], patches.pixels[known]
        if len(columns) > self.most:
            some = torch.from_numpy(draws(LABELS, 0, len(self.starts)).permutation(len(columns))[: self.most].copy())
            columns, pixels = columns[some], pixels[some]
        with on_disk(self.disk):
            for file, rows in ((self.columns, columns), (self.pixels, pixels)):
                file.seek(0, os.SEEK_END)
                file.write(rows.float().numpy().tobytes())
                file.flush()
        self.starts.append(self.starts[-1] + len(columns))
        self.of_classes.append(pixels.double().sum(dim=0))
        self.sum += columns.double().sum(dim=0)
        self.squares += columns.double().square().sum(dim=0)

    @property
    def standard(self) -> tuple[Float[Tensor, "columns"], Float[Tensor, "columns"]]:
        """Mean and standard deviation of the columns; 1 for one that is constant."""
        mean = self.sum / self.starts[-1]
        deviation = (self.squares / self.starts[-1] - mean.square()).clamp(min=0).sqrt()
        return mean, deviation.where(deviation > 1e-6 * mean.abs(), 1.0)

    def count(self, image: int) -> int:
        """How many rows an image has."""
        return self.starts[image + 1] - self.starts[image]

    def of(self, images: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Columns and pixels of these images, one after the other.

        The columns are standardised, over all rows: float32 then has the digits that sums of products need.
        """
        mean, deviation = (part.float() for part in self.standard)
        for image in images:
            if self.count(image):
                columns = self._read(self.columns, self.layout.columns, image)
                yield (columns - mean) / deviation, self._read(self.pixels, self.classes, image)

    def _read(self, file: IO[bytes], width: int, image: int) -> Float[Tensor, "rows width"]:
        file.seek(4 * self.starts[image] * width)
        read = bytearray(file.read(4 * self.count(image) * width))
        return torch.frombuffer(read, dtype=torch.float32).view(-1, width)


class Training:
    """Some of the training images, as a draw of labels: what ridge regression needs to know of each fold of them."""

    def __init__(self, rows: Rows, images: Sequence[int]) -> None:
        self.rows, self.images = rows, images
        groups = [rows.groups[image] for image in images]
        several = groups if len(set(groups)) > 1 else [str(image) for image in images]
        self.fold_of = folds(several, FOLDS)
        pixels = sum((rows.of_classes[image] for image in images), torch.zeros(rows.classes, dtype=torch.float64))
        if not pixels.any():
            raise InputError("no labelled pixel to learn from: every pixel of the training masks is void")
        self.frequency = pixels / pixels.sum()
        count = int(self.fold_of.max()) + 1
        sums = {power: [Sums.zeros(rows.layout.columns, rows.classes) for _ in range(count)] for power in POWERS}
        few = sum(rows.count(image) for image in images) <= EXACT
        for image, fold in zip(images, self.fold_of.tolist(), strict=True):
            for columns, pixels in rows.of([image]):
                columns = columns.double() if few else columns
                for power, of_folds in sums.items():
                    of_folds[fold].add(columns, shares(pixels), self.weights(pixels, power))
        self.sums, self.whole = sums, {power: total(of_folds) for power, of_folds in sums.items()}

    def weights(self, pixels: Float[Tensor, "rows classes"], power: float) -> Float[Tensor, "rows"]:
        """Of rows: labelled pixels, each times its class's frequency^-power."""
        return (pixels * self.frequency.clamp(min=1e-12).pow(-power).float()).sum(dim=1)

    def choose(
        self, variants: Mapping[Name, Variant], chosen: Mapping[Name, Choice] | None = None
    ) -> dict[Name, Choice]:
        """The best of the grid for each variant, on held-out folds.

        Of features the penalty, at the middle power, and then the power; of a variant beside another one, the ratio
        alone, the rest as it was chosen there: so what its columns bring is the only difference.

        chosen: of variants that these stand beside.

        Of a single image nothing can be held out: then it is the middle of the grid.
        """
        found, left = dict(chosen or {}), dict(variants)
        while left:
            ready = {name: v for name, v in left.items() if v.beside is None or v.beside in found}
            assert ready, "a variant stands beside one that there is not"
            roots = {name: v.columns for name, v in ready.items() if v.beside is None}
            first = {name: [_root(c, MIDDLE, penalty) for penalty in PENALTIES] for name, c in roots.items()}
            found |= (best := self._best(first))
            found |= self._best({name: [_root(c, p, best[name].penalty) for p in POWERS] for name, c in roots.items()})
            for beside in {v.beside for v in ready.values() if v.beside is not None}:
                some = {name: v.columns for name, v in ready.items() if v.beside == beside}
                found |= self._best(
                    {n: [_added(found[beside], c, r) for r in RATIOS] for n, c in some.items()}, found[beside]
                )
            left = {name: v for name, v in left.items() if name not in ready}
        return {name: found[name] for name in variants}

    def _best(self, tried: Mapping[Name, Sequence[Choice]], beside: Choice | None = None) -> dict[Name, Choice]:
        """Of what is tried for each variant, the best on held-out folds. beside: what all of them have in common."""
        if len(self.images) == 1:
            return {name: some[len(some) // 2] for name, some in tried.items()}
        classes = self.rows.classes
        found = {name: torch.zeros(len(some), 2, classes, dtype=torch.float64) for name, some in tried.items()}
        truth = torch.zeros(classes, dtype=torch.float64)
        step = self.thin(self.images, SCORED)
        for fold in range(len(self.sums[MIDDLE])):
            others = {power: self.whole[power].without(of_folds[fold]) for power, of_folds in self.sums.items()}
            solved = list(_solved_beside(others, tried, beside) if beside else _solved(others, tried))
            held_out = [image for image, f in zip(self.images, self.fold_of.tolist(), strict=True) if f == fold]
            for columns, pixels in self.rows.of(held_out):
                columns, pixels = columns[::step], pixels[::step]
                truth += pixels.double().sum(dim=0)
                for names, some, coefficients in solved:
                    terms = terms_of_rows(columns[:, some], pixels, coefficients.flatten(0, 1))
                    for name, own in zip(names, terms.unflatten(0, coefficients.shape[:2]), strict=True):
                        found[name] += own
        best = {}
        for name, some in tried.items():
            hits, union = found[name][..., truth > 0].unbind(dim=1)
            miou = (hits / union).mean(dim=1)
            place = int(miou.argmax())
            best[name] = replace(some[place], miou=float(miou[place]))
        return best

    def solve(self, choice: Choice, fold: int | None = None) -> Float[Tensor, "terms classes"]:
        """The answer of all images of the draw, or of those in other folds than this one, of columns as they were
        before they were standardised.
        """
        sums = self.whole[choice.power]
        sums = sums if fold is None else sums.without(self.sums[choice.power][fold])
        return self.raw(Ridge(sums, choice.columns, choice.penalties).solve(), choice.columns)

    def raw(
        self, solved: Float[Tensor, "terms classes"], columns: Int[Tensor, "all"]
    ) -> Float[Tensor, "terms classes"]:
        """An answer from standardised columns as one from columns as they were read."""
        mean, deviation = (part[columns] for part in self.rows.standard)
        slopes = solved[1:] / deviation[:, None]
        return torch.cat([(solved[0] - mean @ slopes)[None], slopes]).float()

    def thin(self, images: Sequence[int], most: int) -> int:
        """A step: every so many rows of these images, it is about `most` rows."""
        return max(1, sum(self.rows.count(image) for image in images) // most)


def _root(columns: Int[Tensor, "own"], power: float, penalty: float) -> Choice:
    """For features."""
    return Choice(columns, torch.full((len(columns),), penalty, dtype=torch.float64), power, penalty)


def _added(beside: Choice, columns: Int[Tensor, "own"], ratio: float) -> Choice:
    """For columns beside others."""
    penalties = torch.cat([beside.penalties, torch.full((len(columns),), ratio * beside.penalty, dtype=torch.float64)])
    return Choice(torch.cat([beside.columns, columns]), penalties, beside.power, beside.penalty, ratio)


def _solved(sums: Mapping[float, Sums], tried: Mapping[Name, Sequence[Choice]]) -> Iterator[Solved]:
    """The solutions for features."""
    for name, some in tried.items():
        solved = [Ridge(sums[c.power], c.columns, c.penalties).solve().float() for c in some]
        yield [name], some[0].columns, torch.stack(solved)[None]


def _solved_beside(
    sums: Mapping[float, Sums], tried: Mapping[Name, Sequence[Choice]], beside: Choice
) -> Iterator[Solved]:
    """The solutions for columns that are added to one and the same base: of all of them, 0 where not used."""
    own = {name: some[0].columns[len(beside.columns) :] for name, some in tried.items()}
    added = torch.cat(list(own.values())).unique()
    ridge, terms = Ridge(sums[beside.power], beside.columns, beside.penalties, added), 1 + len(beside.columns)
    every = torch.zeros(len(tried), len(RATIOS), terms + len(added), sums[beside.power].xy.shape[1])
    for place, (name, some) in enumerate(tried.items()):
        places = torch.searchsorted(added, own[name])
        solved = ridge.beside(places, [(c.ratio or 0) * c.penalty for c in some]).float()
        every[place, :, :terms] = solved[:, :terms]
        every[place][:, terms + places] = solved[:, terms:]
    yield list(tried), torch.cat([beside.columns, added]), every


def shares(pixels: Float[Tensor, "rows classes"]) -> Float[Tensor, "rows classes"]:
    """Of each class among the labelled pixels of a patch."""
    return pixels / pixels.sum(dim=1, keepdim=True)


def terms_of_rows(
    columns: Float[Tensor, "rows some"],
    pixels: Float[Tensor, "rows classes"],
    coefficients: Float[Tensor, "solutions terms classes"],
) -> Float[Tensor, "solutions 2 classes"]:
    """Intersection and union per class, in pixels, of several solutions; all pixels of a patch get one answer."""
    solutions, _, classes = coefficients.shape
    flat = answers(columns, coefficients.permute(1, 0, 2).flatten(1)).view(-1, solutions, classes)
    return terms_of(flat.argmax(dim=2), pixels)


def terms_of(
    answer: Int[Tensor, "rows solutions"], pixels: Float[Tensor, "rows classes"]
) -> Float[Tensor, "solutions 2 classes"]:
    """As `terms_of_rows`, of the classes that are answered."""
    truth, classes = pixels.double().sum(dim=0), pixels.shape[1]
    found = []
    for column in answer.unbind(dim=1):
        hit = torch.zeros(classes, dtype=torch.float64)
        hit.index_add_(0, column, pixels.gather(1, column[:, None])[:, 0].double())
        answered = torch.zeros(classes, dtype=torch.float64).index_add_(0, column, pixels.sum(dim=1).double())
        found.append(torch.stack([hit, truth + answered - hit]))
    return torch.stack(found)
