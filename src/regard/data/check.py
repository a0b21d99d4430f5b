"""Reads a whole source and lists everything that is wrong with it, so that it can be mended at one go."""

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from regard.data.datasets.base import Dataset, MaskDataset
from regard.data.datasets.coco import NO_OUTLINES, without_outlines
from regard.data.datasets.masks import MaskFolder, PairedImages
from regard.data.layouts import Pairs, split_of
from regard.data.listing import with_val
from regard.data.names import VOID, Color, Legend
from regard.data.packs.packed import Packed
from regard.data.source import Source, find_own, held_by, masks_of, open_source, unseen, unwrapped, white
from regard.data.survey import bits_of, unused_bits
from regard.data.threads import in_threads
from regard.errors import InputError
from regard.settings import AS_STORED, Values

# Of masks whose classes can't be made out: any value and any colour is as good as another, and 255 is void.
ANY = Legend((), {**dict.fromkeys(range(VOID), 0), VOID: VOID}, {(0, 0, 0): 0}, others=0)
TREE = "-"  # in the place of a name, where something is wrong with the source as a whole


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    name: that of the image; of a mask without one, its path; or TREE. what: in words, and what would work.
    """

    split: str
    name: str
    what: str


@dataclass(frozen=True)
class Checked:
    """What a check found.

    data: what the source is. count: the images that were checked, and the masks without one; or the chunks of a pack.
    unit: what was counted: "images", "pairs" of an image and a mask, or "chunks". notes: what is not wrong, but as well
    known: images without a mask, and classes without a pixel.
    """

    data: str
    count: int
    unit: str
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = ()

    @property
    def wrong(self) -> int:
        """How many of `count` have something wrong with the image or with the mask."""
        return len({(problem.split, problem.name) for problem in self.problems if problem.name != TREE})


def check(src: str, values: Values = AS_STORED) -> Checked:
    """Read every image and mask of every split at `src`; shows a progress bar.

    Wrong are: an image or a mask that can't be read; a mask that is missing, has another size than its image, values
    that are no class, or only void; in an images/ + masks/ tree, a mask without an image; and an image of a later split
    that has the very pixels of one in an earlier split, so that a score would be of what was trained on. So is a JSON
    of COCO without outlines, where there are no masks.

    An images/ + masks/ tree that can't be opened, as where a mask is missing, is checked all the same. Where its
    classes can't be made out, no value counts as wrong, and that is one more problem, or an InputError if it is the
    only one. Other trees that can't be opened raise InputError.

    Of a pack, the sums of its chunks come first, and where one is wrong, its images are not read.
    """
    try:
        source = open_source(src).read_as(values)
    except InputError:
        with suppress(InputError):
            found = find_own(unwrapped(Path(src).expanduser().resolve()))
            if found and (checked := _check_unopened(found, values)).problems:
                return checked
        raise
    return _check_chunks(source) or check_source(source)


def check_source(source: Source) -> Checked:
    """Read every image and mask of what was opened, and list what is wrong."""
    splits = [(split, dataset, i) for split, dataset in source.splits.items() for i in range(len(dataset))]
    read = in_threads(_read, [(dataset, i) for _, dataset, i in splits], "checking")
    problems: list[Problem] = []
    first: dict[bytes, tuple[str, str]] = {}
    seen, bits, colors = np.zeros(VOID + 1, bool), 0, dict[int, tuple[Color, str]]()
    notes: list[str] = []
    for (split, dataset, i), found in zip(splits, read, strict=True):
        name, bits = dataset.name(i), max(bits, found.bits)
        seen |= found.held if split in source.given_to_learn else False
        problems += [Problem(split, name, fault.replace(f"{source.root}{os.sep}", "")) for fault in found.faults]
        for value, color in found.colors.items():
            other, where = colors.setdefault(value, (color, name))
            if other != color and not notes:
                one, two = (f"#{bytes(of).hex()} in the mask of {at}" for of, at in ((other, where), (color, name)))
                what = f"index {value} is {one} and {two}: masks are read by their indices"
                notes.append(f"{what}; if their colours tell the classes, these in classes.json would be read")
        if found.digest:
            where, twin = first.setdefault(found.digest, (split, name))
            if where != split:
                problems.append(Problem(split, name, f"the same image as {twin} of {where}: keep one of the two"))
    orphans, unit = _orphans(source), "pairs" if source.has_masks else "images"
    if source.has_masks and "train" in source.splits:
        if line := white(source.classes, seen):
            problems.append(Problem(TREE, TREE, line))
        else:
            notes.append(unseen(source.classes, seen))
    elif source.layout in ("images", "class folders") and (boxes := without_outlines(Path(source.root))):
        problems.append(Problem(TREE, TREE, f"{boxes} {NO_OUTLINES}"))
    notes.append(unused_bits(bits))
    alone = sorted({name for of in source.splits.values() if isinstance(of, MaskFolder) for name in of.left_out})
    if alone:
        notes.append(f"{len(alone):,} images have no mask: {', '.join(alone[:20])}{', ...' if len(alone) > 20 else ''}")
    count = len(splits) + len(orphans)
    return Checked(source.describe(), count, unit, (*problems, *orphans), tuple(filter(None, notes)))


def _check_chunks(source: Source) -> Checked | None:
    """What is wrong with the chunks of a pack: those that have other bytes than were packed. None where nothing is."""
    chunks = [(of, part) for of in source.splits.values() if isinstance(of, Packed) for part in of.parts]
    whole = in_threads(lambda of: of[0].is_whole(of[1]), chunks, "summing chunks")
    what = "its bytes are not those that were packed: to remove it and pack again, or a whole copy of it, would work"
    wrong = [Problem(of.split, part.file, what) for (of, part), right in zip(chunks, whole, strict=True) if not right]
    return Checked(source.describe(), len(chunks), "chunks", tuple(wrong)) if wrong else None


@dataclass
class _Found:
    """Of one image and its mask.

    digest: of the image's pixels; None where it can't be read. held: which classes the mask holds, and void.
    faults: what is wrong with both. bits: `survey.bits_of` it. colors: `PairedImages.colors` of the mask.
    """

    digest: bytes | None = None
    held: Bool[np.ndarray, "256"] = field(default_factory=lambda: np.zeros(VOID + 1, bool))
    faults: list[str] = field(default_factory=list)
    bits: int = 0
    colors: dict[int, Color] = field(default_factory=dict)


def _read(task: tuple[Dataset, int]) -> _Found:
    dataset, i = task
    found = _Found()
    try:
        image = dataset.image(i)
        found.digest = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()
        found.bits = bits_of(dataset, i)
    except InputError as error:
        found.faults.append(str(error))
    if isinstance(dataset, MaskDataset):
        try:
            found.held = held_by(dataset.mask(i))
            if not found.held[:VOID].any():
                found.faults.append("every pixel of its mask is void: label some, or leave it out")
            found.colors = dataset.colors(i) if isinstance(dataset, PairedImages) else {}
        except InputError as error:
            found.faults.append(str(error))
    found.faults = list(dict.fromkeys(found.faults))  # where the image can't be read, its mask may say so once more
    return found


def _orphans(source: Source) -> list[Problem]:
    """The masks without an image, of a tree of one's own; in published trees such masks are of other splits."""
    what = "it has no image: one of the same name would work"
    found = next((dataset.orphans for dataset in source.splits.values() if isinstance(dataset, MaskFolder)), ())
    return [Problem(split_of(path), path, what) for path in found]


def _check_unopened(found: Pairs, values: Values) -> Checked:
    """Check a tree with masks, with the splits of `open_source`, where that has refused it."""
    try:
        legend, unclear = masks_of(found, missing_ok=True).legend, ""
    except InputError as error:
        legend, unclear = ANY, str(error).replace(f"{found.root}{os.sep}", "")
    whole = masks_of(found, legend, missing_ok=True)
    splits, notes = with_val(found.by_split(np.full(len(found.images), True)))
    number_of = {path: number for number, path in enumerate(found.images)}
    datasets = {split: whole.only(np.array([number_of[path] for path in of])) for split, of in splits.items()}
    checked = check_source(Source("masks", str(found.root), datasets, notes + found.notes, found.words).read_as(values))
    if unclear and checked.problems and unclear not in {problem.what for problem in checked.problems}:
        return replace(checked, problems=(Problem(TREE, TREE, unclear), *checked.problems))
    return checked
