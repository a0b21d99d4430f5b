"""Masks as JSONs of LabelMe, for people to correct: polygons, each within or beside the larger ones before it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import msgspec
import numpy as np
from jaxtyping import UInt8

from regard.data.datasets.labelme_json import BACKGROUND, Shape, drawn, predicted, read_annotation
from regard.data.names import VOID
from regard.errors import InputError
from regard.files import write_json
from regard.pictures.classes import has_background
from regard.say import say

TOLERANCE = 1.0  # pixels that a simplified outline may be off
SPECK = 1e-4  # of the image: regions of a smaller share are left out


@dataclass
class Outlines:
    """Writes masks as polygons, and counts what is lost by it: specks, and pixels that change their class."""

    classes: Sequence[str]
    specks: int = 0
    changed: int = 0
    pixels: int = 0

    def write(self, photo: Path, file: Path, mask: UInt8[np.ndarray, "h w"]) -> None:
        """The JSON `file` of a photo, in which LabelMe finds it."""
        shapes, specks = polygons(mask, self.classes)
        where = os.path.relpath(photo.parent.resolve() / photo.name, file.parent.resolve())
        annotation = predicted(Path(where).as_posix(), shapes, mask.shape)
        write_json(file, msgspec.to_builtins(annotation))
        first = int(not has_background(self.classes))  # 0 is what is in no polygon
        value_of = {**{name: value for value, name in enumerate(self.classes, first)}, BACKGROUND: 0}
        self.changed += int((drawn(annotation, mask.shape, value_of) != mask + first).sum())
        self.specks, self.pixels = self.specks + specks, self.pixels + mask.size

    def __str__(self) -> str:
        lost = f"{self.specks:,} regions under {SPECK:.2%} of their image are left out"
        return f"outlines are within {TOLERANCE:g} pixel, and {lost}: {self.changed / self.pixels:.2%} of pixels differ"


def polygons(mask: UInt8[np.ndarray, "h w"], classes: Sequence[str]) -> tuple[list[Shape], int]:
    """The outlines of all connected regions, larger ones first, but those of a first class that is background; and how
    many were too small.

    LabelMe has no holes in polygons, and later ones lie on top: so what is in a hole comes after what is around it, and
    background there is a polygon of its own, `_background_`.
    """
    regions = []
    for value in np.unique(mask).tolist():
        outlines, tree = cv2.findContours((mask == value).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        outer = [outline for outline, (*_, parent) in zip(outlines, tree[0].tolist(), strict=True) if parent < 0]
        regions += [(_area(outline), value, outline) for outline in outer]
    regions.sort(key=lambda region: -region[0])  # what is within another has a smaller outline
    shapes, specks, canvas = [], 0, np.full(mask.shape, VOID, np.uint8)
    for area, value, outline in regions:
        is_background = value == 0 and has_background(classes)
        columns, rows = outline[:, 0].T
        if is_background and (canvas[rows, columns] == VOID).mean() > 0.5:
            continue  # nothing is around it
        if area < SPECK * mask.size or len(outline) < 3:
            specks += 1
            continue
        cv2.drawContours(canvas, [outline], -1, VOID if is_background else value, cv2.FILLED)
        simple = cv2.approxPolyDP(outline, TOLERANCE, closed=True)
        points = (simple if len(simple) > 2 else outline)[:, 0].astype(float).tolist()
        label = BACKGROUND if is_background else classes[value]
        shapes.append(Shape(label=label, points=[(x, y) for x, y in points]))
    return shapes, specks


def _area(outline: np.ndarray) -> float:
    """How many pixels an outline holds, those that it runs through among them (Pick's theorem)."""
    return cv2.contourArea(outline) + len(outline) / 2 + 1


def not_by_hand(files: dict[Path, Path]) -> dict[Path, Path]:
    """Those of which no one has drawn the JSON, or corrected it; the others are said. InputError where that is all."""
    kept = {photo: file for photo, file in files.items() if not file.exists() or _is_prediction(file)}
    if not kept:
        where = next(iter(files.values()))
        raise InputError(f"every image has a JSON by hand, such as {where}: images without, or another --out")
    if len(kept) < len(files):
        say(f"{len(files) - len(kept):,} images have a JSON by hand, which stays as it is")
    return kept


def _is_prediction(file: Path) -> bool:
    """Whether a JSON is as `Outlines` wrote it."""
    try:
        return read_annotation(file).is_prediction
    except InputError:
        return False
