"""What frozen features and attention maps are worth to a segmentation: linear answers in closed form, and how sure.

Two passes: over the training images, whose patches are kept (`probe_training`), and over those that are scored, where
all answers are given at once. Scores are over patches: all pixels of a patch get its answer, so right answers reach not
100 but the ceiling of the grid. Standard errors go over groups of images, and over draws of the labels.

Read `features + position + maps` against `features + position`: maps know where things are by position alone, too.
`other`, the maps of another image, should bring nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from regard.backbones import Backbone, device_of, normalize
from regard.data.groups import groups_of
from regard.data.loading.draws import LABELS, draws
from regard.data.loading.modules import loading
from regard.errors import InputError
from regard.evaluation.statistics import difference, score_terms
from regard.results import Limits, ProbeDifference, ProbeRow, limits_of
from regard.say import console
from regard.scoring.chosen import Chosen, Samples
from regard.scoring.probe_columns import BLOCKS, Layout, Patches, Reader, folds
from regard.scoring.probe_logistic import logistic_answers
from regard.scoring.probe_training import Choice, Name, Rows, Training, Variant, terms_of, terms_of_rows
from regard.scoring.protocol import MASS, Protocol
from regard.settings import Probing

ALL = "all levels"
BEST = (1, 2, 4, 8, 16)  # heads that are chosen, and as many random ones


@dataclass(frozen=True)
class Answer:
    """What some columns answer, learned from one draw of the labels. by: ridge or logistic regression."""

    by: Literal["ridge", "logistic"]
    name: Name
    fraction: float
    choice: Choice
    coefficients: Tensor


@dataclass(frozen=True)
class Found:
    """What was found. kept: rows of patches of the training images; ceiling: of right answers; few: whether there are
    too few groups with a labelled pixel for a verdict.
    """

    ceiling: Limits
    few: bool
    rows: list[ProbeRow]
    differences: list[ProbeDifference]
    kept: int
    stride: int


def probe(backbone: Backbone, train: Chosen, scored: Chosen, asked: Probing, disk: Path, bar: bool = True) -> Found:
    """Learn from the patches of some images with masks, and score on others.

    disk: a folder on the disk that takes the rows.

    Raises InputError where all masks are void, for an image that is in no group, and where all are in one.
    """
    classes, groups = len(train.classes), [groups_of(_names(data), asked.groups) for data in (train, scored)]
    reader = Reader(backbone, classes)
    for of_split in groups if reader.layout.heads else ():
        if len(set(of_split)) < 2:
            raise InputError(
                f"all {len(of_split)} images of a split are of one group, so that none has the maps of an image of "
                "another one as a control: take other --groups, or leave them out"
            )
    with Rows(disk, reader.layout, classes, groups[0]) as rows:
        for patches in _read(reader, train, groups[0], asked, "reading training images", bar):
            rows.add(patches)
        fitting = track(_answers(rows, asked), "fitting", None, transient=True, console=console(), disable=not bar)
        answers = list(fitting)
    blocks = folds(groups[1], BLOCKS)
    terms = np.zeros((int(blocks.max()) + 1, len(answers) + 1, 2, classes))  # the last answer is the ceiling's
    truth, together = np.zeros((len(terms), classes)), _together(answers)
    for number, patches in enumerate(_read(Reader(backbone, classes), scored, groups[1], asked, "scoring", bar)):
        truth[int(blocks[number])] += patches.pixels.sum(dim=0).numpy()
        into = terms[int(blocks[number])]
        into[-1:] += terms_of(patches.pixels.argmax(dim=1, keepdim=True), patches.pixels).numpy()
        for columns, places, coefficients in together:
            into[places] += terms_of_rows(patches.columns[:, columns], patches.pixels, coefficients).numpy()
    known = np.broadcast_to(truth[:, None, None], (*terms.shape[:2], 1, classes))
    terms = np.concatenate([terms, known], axis=2)  # as `score_terms` takes them
    made = _rows_and_differences(answers, terms)
    best = score_terms(terms[:, -1:])
    return Found(limits_of(best.estimate()), best.few, *made, rows.starts[-1], reader.layout.stride)


def _names(data: Chosen) -> list[str]:
    return [data.name(i) for i in range(len(data))]


def _read(
    reader: Reader, data: Chosen, groups: Sequence[str], asked: Probing, words: str, bar: bool
) -> Iterator[Patches]:
    """The patches of image after image."""
    backbone, device = reader.backbone, device_of(reader.backbone)
    kind = backbone.kind or "cls"
    samples = Samples(data, Protocol("regard", asked.size, MASS, kind, backbone.blocks), None, 0)
    first_group = groups[0]
    for number in reversed(range(len(data))):  # the last of another group comes before the first
        if groups[number] != first_group:
            reader.see(normalize(samples[number].image[None].to(device)), groups[number])
            break
    loader = DataLoader(samples, 1, collate_fn=list, generator=torch.Generator(), **loading(asked.workers))
    seen = track(loader, words, len(data), transient=True, console=console(), disable=not bar)
    for (sample,), group in zip(seen, groups, strict=True):
        yield reader.read(normalize(sample.image[None].to(device)), sample.labels[None].to(device), group)


def _variants(layout: Layout) -> dict[Name, Variant]:
    """What is answered from, but for single heads."""
    of, last, maps = layout.of, layout.levels[-1], ("maps", "other") if layout.heads else ()
    found = {("", "position"): Variant(of("position"))}
    if maps:
        found["", "maps"] = Variant(of("maps"))
        found["", "position + maps"] = Variant(of("maps"), ("", "position"))
        found[last, "x map"] = Variant(of(f"{last} x map"))
        found[last, ""] = Variant(of(last))
        found[last, "+ x map"] = Variant(of(f"{last} x map"), (last, ""))
    for name, parts in {**{level: (level,) for level in layout.levels}, ALL: layout.levels}.items():
        found[name, ""] = Variant(of(*parts))
        found[name, "+ position"] = Variant(of("position"), (name, ""))
        for part in maps:
            found[name, f"+ {part}"] = Variant(of(part), (name, ""))
            found[name, f"+ position + {part}"] = Variant(of(part), (name, "+ position"))
    return found


def _answers(rows: Rows, asked: Probing) -> Iterator[Answer]:
    """What all variants learn from every draw of the labels; of all labels, also what single heads add."""
    variants, images = _variants(rows.layout), len(rows.groups)
    for fraction in asked.fractions:
        for draw in range(asked.draws if fraction < 1 else 1):
            order = draws(LABELS, asked.seed, draw).permutation(images)
            training = Training(rows, sorted(order[: max(1, round(fraction * images))].tolist()))
            choices = training.choose(variants)
            if fraction == 1 and asked.heads and rows.layout.heads:
                choices |= _of_heads(training, choices, asked.seed)
            for name, choice in choices.items():
                yield Answer("ridge", name, fraction, choice, training.solve(choice))
            if asked.logistic:
                features = (rows.layout.levels[-1], ALL)
                added = ("+ position", "+ position + maps") if rows.layout.heads else ("+ position",)
                for name, choice, coefficients in logistic_answers(training, choices, features, added):
                    yield Answer("logistic", name, fraction, choice, coefficients)


def _of_heads(training: Training, choices: Mapping[Name, Choice], seed: int) -> dict[Name, Choice]:
    """Beside the last level and position: the map of each head, of the best ones, and of as many random ones.

    The best are those that reach most on held-out groups, each alone.
    """
    layout = training.rows.layout
    maps, beside = layout.of("maps"), (layout.levels[-1], "+ position")

    def choose(heads: Mapping[str, Tensor]) -> dict[Name, Choice]:
        some = {(beside[0], f"+ position + {name}"): Variant(maps[places], beside) for name, places in heads.items()}
        return training.choose(some, choices)

    alone = choose({f"head {block}.{head}": torch.tensor([place]) for place, (block, head) in enumerate(layout.heads)})
    orders = {
        "best": np.argsort([-(found.miou or 0) for found in alone.values()], kind="stable"),
        "random": draws(LABELS, seed, 0, 1).permutation(len(maps)),
    }
    several = {
        f"{count} {word} heads": torch.from_numpy(order[:count].copy())
        for count in BEST
        if count < len(maps)
        for word, order in orders.items()
    }
    return alone | choose(several)


def _together(answers: Sequence[Answer]) -> list[tuple[Tensor, list[int], Tensor]]:
    """Answers from the same columns, to be given at once: the columns, their places, and their coefficients."""
    places: dict[tuple[int, ...], list[int]] = {}
    for place, answer in enumerate(answers):
        places.setdefault(tuple(answer.choice.columns.tolist()), []).append(place)
    return [
        (torch.tensor(columns), some, torch.stack([answers[place].coefficients for place in some]))
        for columns, some in places.items()
    ]


def _rows_and_differences(answers: Sequence[Answer], terms: np.ndarray) -> tuple[list[ProbeRow], list[ProbeDifference]]:
    """The scores of all answers, and what the last part of their columns brings to the others: `+ position + maps` is
    held against `+ position`.
    """
    places: dict[tuple[str, str, str, float], list[int]] = {}
    for place, answer in enumerate(answers):
        places.setdefault((answer.by, *answer.name, answer.fraction), []).append(place)
    scored = {name: score_terms(terms[:, some]) for name, some in places.items()}
    rows, differences = [], []
    for (by, features, columns, fraction), some in places.items():
        shared, choices = fraction if fraction < 1 else 0.0, [answers[place].choice for place in some]
        own, against = scored[by, features, columns, fraction], columns.rpartition("+ ")[0].strip()
        rows.append(
            ProbeRow(
                answer=by,
                features=features,
                columns=columns,
                count=len(choices[0].columns),
                fraction=fraction,
                draws=len(some),
                miou=limits_of(own.estimate(shared)),
                power=[choice.power for choice in choices],
                penalty=[choice.penalty for choice in choices],
                ratio=[choice.ratio for choice in choices],
                held_out=[choice.miou for choice in choices],
                edges=sum(choice.on_edge for choice in choices),
            )
        )
        if columns and (by, features, against, fraction) in scored:
            found = difference(own, scored[by, features, against, fraction], shared)
            differences.append(
                ProbeDifference(
                    answer=by,
                    features=features,
                    columns=columns,
                    against=against,
                    fraction=fraction,
                    miou=limits_of(found),
                )
            )
    return rows, differences
