"""Which images belong together: frames of one video, slices of one patient, tiles of one scene.

They are not independent, so folds never part them, and standard errors go over groups, not over images.
"""

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import cast

import numpy as np
from jaxtyping import Int

from regard.data.datasets.base import Dataset, Source
from regard.data.datasets.folders import ImageFolder
from regard.data.listing import HELD_OUT
from regard.errors import InputError
from regard.files import read_text
from regard.say import say_once
from regard.settings import FOLDER

STEM = r"^(.*\D)\d{3,}"
FRAME = re.compile(r"^(.*\D|)\d{3,}\D*$")  # of a file name that ends in a number, the part before it
FEW_NAMES = 0.5  # names that differ in their number alone: more than half of the images look like frames


def groups_of(names: Sequence[str], rule: str | None) -> list[str]:
    """The group of each image, by its name.

    rule: None, each image is a group; `folder`, those of one folder are; a .csv file with the columns `name` and
          `group`; else a regular expression, whose first group, or whole match, names it: `^[^_]*`.

    Raises InputError for a rule that is none of these, and for an image that it gives no group.
    """
    if rule is None:
        return list(names)
    if rule == FOLDER:
        return [str(PurePath(name).parent) for name in names]
    if rule.endswith(".csv"):
        listed = _listed(Path(rule))
        return [_found(listed.get(name) or listed.get(PurePath(name).name), name, rule) for name in names]
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise InputError(
            f"groups {rule!r} is no regular expression ({error}): `folder`, or ^[^_]*, would work"
        ) from None
    matches = [pattern.search(PurePath(name).name) for name in names]
    return [
        _found(match and match[1 if pattern.groups else 0], name, rule)
        for match, name in zip(matches, names, strict=True)
    ]


def group_numbers(dataset: Dataset, rule: str | None) -> Int[np.ndarray, "images"] | None:
    """The number of each image's group, from 0; None without a rule.

    Where names look like frames of videos and there is no rule, that is said.
    """
    names = [dataset.name(i) for i in range(len(dataset))]
    if rule is None:
        if stems := numbered(names):
            rules = f"--groups '{STEM}' makes {stems} groups of them, by what is before the number"
            say_once(
                "names are numbered as frames of videos are, which are not independent; if these are frames: "
                f"{rules if stems > 1 else '--groups FILE.csv, with name and group, says which belong together'}"
            )
        return None
    return np.unique(groups_of(names, rule), return_inverse=True)[1]


def numbered(names: Sequence[str]) -> int:
    """How many names there are but for their last number, where most images share theirs with others; else 0."""
    stems = [match[1] for name in names if (match := FRAME.match(PurePath(name).stem)) and match[1]]
    count = len(set(stems))
    return count if len(stems) > FEW_NAMES * len(names) and count <= len(stems) / 4 else 0


def seen_groups(train: Dataset, scored: Dataset, rule: str | None) -> int:
    """How many groups of what is scored have images in what is learned from, too; 0 without a rule."""
    learned, asked = (
        set(groups_of([dataset.name(i) for i in range(len(dataset))], rule)) if rule else set()
        for dataset in (train, scored)
    )
    return len(learned & asked)


def held_out_anew(source: Source, rule: str | None, crossed: bool) -> Source:
    """A source whose val was held out of train: now whole groups of images are, or `crossed`, none, where every image
    is to be held out in its turn.

    Raises InputError where all images are of one group.
    """
    assert source.held_out
    train, val = (cast(ImageFolder, source.splits[split]) for split in ("train", "val"))
    whole = train.with_others(val)
    groups = groups_of(list(whole.paths), rule)
    if len(set(groups)) < 2:
        raise InputError(
            f"all {len(groups):,} images are of one group by {rule!r}: other --groups, or val/, would work"
        )
    group_numbers(whole, rule)  # says where there might be groups
    note, parts = "no val, so the score is cross-validated over the images for training", {"train": whole}
    if not crossed:
        of_val = np.isin(groups, _held_out(groups))
        note = "no val, so val is whole groups of the images for training, about a fifth"
        parts = {"train": whole.only(~of_val), "val": whole.only(of_val)}
    splits = parts | {split: of for split, of in source.splits.items() if split not in ("train", "val")}
    return replace(source, splits=splits, notes=tuple(note if one == HELD_OUT else one for one in source.notes))


def _held_out(groups: Sequence[str]) -> list[str]:
    """Groups with a fifth of the images at most, in an order that their names decide; or else the smallest group."""
    sizes, chosen, room = Counter(groups), [], len(groups) / 5
    for group in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if sizes[group] <= room:
            chosen.append(group)
            room -= sizes[group]
    return chosen or [min(sorted(sizes), key=lambda name: sizes[name])]


def _listed(path: Path) -> dict[str, str]:
    rows = list(csv.DictReader(read_text(path).splitlines()))
    if not rows or not {"name", "group"} <= rows[0].keys():
        raise InputError(f"{path} should have a first line with `name` and `group`, and a line for each image")
    return {row["name"]: row["group"] for row in rows if row["name"] and row["group"]}


def _found(group: str | None, name: str, rule: str) -> str:
    if not group:
        raise InputError(f"{name} is in no group by {rule!r}: another --groups, such as `folder`, would work")
    return group
