"""Photos with the JSONs of LabelMe (the desktop tool `labelme`): shapes drawn by hand, made into masks when asked for.

A JSON lies beside its photo or in another folder, and is of the photo that its imagePath names or, where that is not
there, of the one of its own name. Photos without a JSON have no mask.

The classes are the labels of all shapes, sorted; or those of labels.txt or classes.txt, in its order. Of LabelMe's own
labels, `__ignore__` is void and `_background_` is background.
"""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import numpy as np
from jaxtyping import UInt8

from regard.data.compact import Names
from regard.data.datasets.labelme_json import BACKGROUND, IGNORED, LINES, declared, drawn, read_annotation
from regard.data.datasets.masks import MaskFolder
from regard.data.layouts import Pairs, split_of
from regard.data.listing import is_hidden, list_images
from regard.data.names import VOID, Legend, numbered
from regard.data.reading import image_size, opened, readable
from regard.errors import InputError, naming
from regard.files import read_text
from regard.say import say_once

NAMED = 5  # so many JSONs at most are named in a note
OPENING = 2**24  # so many bytes of a JSON tell whether it is LabelMe's


@dataclass(frozen=True)
class Annotated(Pairs):
    """Photos and their JSONs. labels: those of all areas. file: labels.txt or classes.txt, where there is one."""

    labels: frozenset[str] = frozenset()
    file: Path | None = None


class LabelMe(MaskFolder):
    """The photos that have a JSON, with masks drawn when they are asked for."""

    def __init__(
        self, root: str | Path, found: Annotated, legend: Legend | None = None, *, missing_ok: bool = False
    ) -> None:
        super().__init__(root, found, legend or label_legend(found), missing_ok=missing_ok)
        self.value_of = {**{name: value for value, name in enumerate(self.classes)}, BACKGROUND: 0, IGNORED: VOID}

    def mask(self, i: int) -> UInt8[np.ndarray, "h w"]:
        """The class index, or `ignore_index`, of each pixel; InputError for what can't be read, or not be drawn."""
        path, photo = self.mask_file(i), self.root / self.paths[i]
        annotation, size = read_annotation(path), image_size(photo)
        with naming(path):
            return drawn(annotation, size, self.value_of, self.legend.others)


def find_annotated(root: Path, files: Names | None = None) -> Annotated | None:
    """The photos below a folder, at any depth, and their JSONs; None where LabelMe has drawn nothing there.

    Where any JSON looks like LabelMe's, every one is read. One that can't be, and is of a photo by its name, is left to
    `LabelMe.mask` to name; without a photo of its name it is nothing of LabelMe's. Predictions that nobody has changed
    are left out, unless they are all there is. Raises InputError for two JSONs of one photo, and where all the photos
    lie elsewhere.

    files: the JSONs that may be LabelMe's; by default all.
    """
    files = list_images(root, endings=(".json",)) if files is None else files
    images = list_images(root) if files else files
    photos = _Photos(images)
    likest = sorted(files, key=lambda file: _stem(file) not in photos.named)  # those first that are called as a photo
    if not any(_looks_like_it(root / file) for file in likest):
        return None
    if not images:
        what = f"{root} holds JSONs of LabelMe without the photos, such as {files[0]}"
        raise InputError(f"{what}: the folder that holds both would work")
    read = [one for file in files if (one := _read(root, file, photos))]
    paired = [one for one in read if one.photo]
    kept = [one for one in paired if not one.is_predicted] or paired
    if not any(one.labels or one.is_broken for one in kept):
        say_once(f"{root}: LabelMe has drawn no areas on these photos, so they have no masks")
        return None
    file_of: dict[str, str] = {}
    for one in kept:
        if (other := file_of.setdefault(one.photo, one.file)) != one.file:
            raise InputError(f"{root} has two JSONs of {one.photo}, {other} and {one.file}: one would work")
    names = _labels_file(root, list(file_of), list(file_of.values()))
    return Annotated(
        root,
        images,
        Names(file_of.get(path, f"{os.path.splitext(path)[0]}.json") for path in images),
        np.array([path in file_of for path in images], bool),
        np.array([split_of(path) for path in images]),
        Names(one.file for one in read if not one.photo),
        "LabelMe folder",
        "labelme",
        _notes(kept, len(paired) - len(kept), names),
        labels=frozenset().union(*(one.labels for one in kept)),
        file=names,
    )


def by_hand_beside(root: Path, photos: Names) -> list[str]:
    """The JSONs beside photos in which a person has drawn areas of one of them, sorted; only their folders are read."""
    found: list[str] = []
    for folder in sorted({os.path.dirname(path) for path in photos}):
        with readable(root / folder):
            names = sorted(os.listdir(root / folder))
        files = [os.path.join(folder, name) for name in names if name.lower().endswith(".json") and not is_hidden(name)]
        found += [file for file in files if _looks_like_it(root / file)]
    of = _Photos(photos if found else ())
    read = [one for file in found if (one := _read(root, file, of))]
    return [one.file for one in read if one.photo and one.labels and not one.is_predicted]


@dataclass(frozen=True)
class _Json:
    """What is kept of a JSON. photo: "" where there is none. labels: of areas. lines: how many shapes are none."""

    file: str
    photo: str
    labels: frozenset[str] = frozenset()
    lines: int = 0
    is_scaled: bool = False
    is_predicted: bool = False
    is_broken: bool = False


class _Photos:
    """Finds the photo of a JSON among `paths`. named: those of each name."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.there = {unicodedata.normalize("NFC", path): path for path in paths}
        self.named: dict[str, list[str]] = defaultdict(list)
        for path in paths:
            self.named[_stem(path)].append(path)

    def of(self, file: str, told: str = "") -> str:
        """Where its imagePath tells; else beside the JSON or, where there is but one of its name, anywhere; or ""."""
        folder, name = os.path.dirname(file), PureWindowsPath(told).as_posix()  # as Windows writes it
        path = unicodedata.normalize("NFC", os.path.normpath(os.path.join(folder, name)))
        named = self.named.get(_stem(file), [])
        fit = [photo for photo in named if os.path.dirname(photo) == folder] or named
        return self.there.get(path) or (fit[0] if len(fit) == 1 else "")


def _read(root: Path, file: str, photos: _Photos) -> _Json | None:
    """What one JSON holds; None for one that is nothing of LabelMe's."""
    try:
        found = read_annotation(root / file)
    except InputError:
        photo = photos.of(file)
        return _Json(file, photo, is_broken=True) if photo else None
    photo, is_scaled = photos.of(file, found.image_path), False
    with suppress(InputError):  # of a photo that can't be read, and will be named
        size = image_size(root / photo)
        is_scaled = declared(found, size) != size
    labels = frozenset(shape.label for shape in found.shapes if shape.kind not in LINES)
    lines = sum(shape.kind in LINES for shape in found.shapes)
    return _Json(file, photo, labels, lines, is_scaled, found.is_prediction)


def _notes(kept: Sequence[_Json], left_out: int, names: Path | None) -> tuple[str, ...]:
    """What people are told of these JSONs, of so many others, and of the file of names."""
    lines, scaled = sum(one.lines for one in kept), [one.file for one in kept if one.is_scaled]
    named = ", ".join(scaled[:NAMED]) + ", ..." * (len(scaled) > NAMED)
    predicted = sum(one.is_predicted for one in kept)
    notes = {
        f"{lines:,} lines and points hold no area, and are ignored": lines,
        f"{len(scaled):,} JSONs are of another size than their photo, and scaled to it: {named}": len(scaled),
        f"{left_out:,} predictions that nobody has changed in LabelMe count as no mask": left_out,
        f"all {predicted:,} masks are predictions that nobody has changed in LabelMe": predicted,
        "no labels.txt, so the classes are all labels, sorted": names is None,
    }
    return tuple(note for note, count in notes.items() if count)


def label_legend(found: Annotated) -> Legend:
    """Background, and the classes of labels.txt or classes.txt, or all labels; InputError for names that can't be."""
    file = found.file
    lines = sorted(found.labels) if file is None else [line.strip() for line in read_text(file).splitlines()]
    names = [name for name in lines if name not in ("", "background", BACKGROUND, IGNORED)]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise InputError(f"{file} names {twice!r} twice: each class once would work")
    if len(names) >= VOID:
        raise InputError(f"{file or found.root} has {len(names)} labels: {VOID - 1} at most would work")
    return numbered(("background", *names))


def _labels_file(root: Path, *groups: Sequence[str]) -> Path | None:
    """The labels.txt or classes.txt of the photos or of their JSONs, or above them; InputError for two."""
    folders: dict[Path, None] = {}
    for paths in groups:
        common = Path(os.path.commonpath([os.path.dirname(path) for path in paths]))
        folders |= dict.fromkeys((common, *common.parents))
    places = [root / folder / name for folder in folders for name in ("labels.txt", "classes.txt")]
    files = [place for place in places if place.is_file()]
    if len(files) > 1:
        raise InputError(f"both {files[0]} and {files[1]} name the classes: one of them would work")
    return files[0] if files else None


def _looks_like_it(path: Path) -> bool:
    """Whether a JSON, whole or damaged, is LabelMe's."""
    with suppress(InputError), opened(path) as file:
        return b'"shapes"' in file.read(OPENING)
    return False


def _stem(path: str) -> str:
    """The name of a file without folder and suffix, in one form of Unicode, as macOS writes others."""
    return unicodedata.normalize("NFC", os.path.splitext(os.path.basename(path))[0])
