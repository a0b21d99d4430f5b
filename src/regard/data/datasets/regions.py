"""Masks painted from outlines and runs, which COCO's JSONs and CVAT's XML hold for many images in one file.

They are kept as text, one of each image, and painted when a mask is asked for, by pycocotools: so a region covers the
pixels that COCO's own tools and CVAT's own export of masks give it. What a file says of sizes is compared with the
image before any array is made.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
from jaxtyping import UInt8
from msgspec import Struct
from pycocotools import mask as coco

from regard.data.compact import Names
from regard.data.datasets.masks import MaskFolder
from regard.data.layouts import Pairs, split_of
from regard.data.names import VOID, Legend, numbered
from regard.data.reading import image_size
from regard.errors import InputError, naming
from regard.settings import MOST_PIXELS

BACKGROUNDS, VOIDS = ("background", "_background_"), ("void", "ignored")  # names of classes that say so
LONGEST = 2**21  # pixels along an outline: pycocotools takes memory for each, and an image has no longer one
Outline = TypeVar("Outline")


class Runs(Struct):
    """The lengths of runs by turns outside and inside of a region, column by column: of the whole image, or `by_rows`
    of a box at (left, top). counts: numbers, or COCO's text for them. size: (height, width).
    """

    counts: list[int] | str
    size: tuple[int, int]
    left: int = 0
    top: int = 0
    by_rows: bool = False


Polygons = list[list[float]]  # of x, y, x, y, ... in pixels


class Region(Struct, Generic[Outline], array_like=True):
    """What belongs to one class. name: for errors. outline: as a file has it, or as it is to be painted."""

    name: str
    value: int
    outline: Outline


class Drawn(Struct, Generic[Outline], array_like=True):
    """The regions of an image, and the (height, width) that it had when they were drawn, or None."""

    size: tuple[int, int] | None
    regions: list[Region[Outline]]


@dataclass(frozen=True)
class Outlined(Pairs):
    """Images, and of each the file that tells its regions, and these as JSON of a `Drawn`, `drawn`.

    larger_first: whether larger regions are painted before smaller ones, or all in their order. The orphans are what
    files name, and isn't there.
    """

    drawn: Names = field(default_factory=Names)
    legend: Legend = field(default_factory=lambda: numbered(()))
    larger_first: bool = False


class Regions(MaskFolder):
    """The images that have regions, with masks painted when they are asked for."""

    of_each = ("paths", "masks", "drawn")

    def __init__(
        self, root: str | Path, found: Outlined, legend: Legend | None = None, *, missing_ok: bool = False
    ) -> None:
        super().__init__(root, found, legend or found.legend, missing_ok=missing_ok)
        self.larger_first = found.larger_first
        self.drawn = found.drawn if missing_ok else found.drawn[found.has_mask]

    def mask(self, i: int) -> UInt8[np.ndarray, "h w"]:
        """The class index, or `ignore_index`, of each pixel; InputError for what can't be painted."""
        size = image_size(self.root / self.paths[i])
        with naming(f"{self.mask_file(i)}: {self.paths[i]}"):
            try:
                drawn = msgspec.json.decode(self.drawn[i], type=Drawn[Polygons | Runs])
            except (ValueError, RecursionError) as error:  # of msgspec, too
                raise InputError(f"{error}: lists of x, y, ..., or runs with counts and size, would work") from error
            if drawn.size and drawn.size != size:
                (height, width), was = size, drawn.size
                turned = ", as before its EXIF turns it" if was == (width, height) else ""
                what = f"it was drawn on {was[1]}x{was[0]}{turned}, and is {width}x{height}"
                raise InputError(f"{what}: the image that it was drawn on would work")
            return painted(drawn.regions, size, self.larger_first)


def painted(
    regions: Sequence[Region[Polygons | Runs]], size: tuple[int, int], larger_first: bool
) -> UInt8[np.ndarray, "h w"]:
    """The regions on a mask of 0, (height, width) = `size`, later ones over earlier ones; what lies outside is cut off.

    larger_first: void first of all, then by area. InputError for a region that can't be painted.
    """
    canvas = np.zeros(size, np.uint8)
    layers: list[tuple[int, list[_Patch]]] = []
    for region in regions:
        with naming(region.name):
            layers.append((region.value, list(_patches(region.outline, size))))
    if larger_first:
        layers.sort(key=lambda layer: (layer[0] != VOID, -sum(int(coco.area(patch.runs)) for patch in layer[1])))
    for value, patches in layers:
        for patch in patches:
            inside = coco.decode(patch.runs).view(bool)
            inside = inside.T if patch.by_rows else inside
            height, width = inside.shape
            window = canvas[patch.top : patch.top + height, patch.left : patch.left + width]
            np.copyto(window, value, where=inside)
    return canvas


@dataclass(frozen=True)
class _Patch:
    """A part of a region: runs, compressed, of a window at (left, top), column by column or else `by_rows`."""

    runs: Any
    left: int = 0
    top: int = 0
    by_rows: bool = False


def _patches(outline: Polygons | Runs, size: tuple[int, int]) -> Iterator[_Patch]:
    """The parts of an outline; InputError for one that can't be painted on an image of (height, width) = `size`."""
    if not isinstance(outline, Runs):
        for polygon in outline:
            yield from _window(polygon, size)
        return
    height, width = outline.size
    within = min(outline.left, outline.top) >= 0 < min(height, width)
    within = within and outline.top + height <= size[0] and outline.left + width <= size[1]
    if not (within if outline.by_rows else outline.size == size):
        what = f"runs of {width}x{height} at ({outline.left}, {outline.top}) in an image of {size[1]}x{size[0]}"
        raise InputError(f"{what}: {'those within it' if outline.by_rows else 'those of its size'} would work")
    height, width = (width, height) if outline.by_rows else (height, width)  # a row is what pycocotools has as a column
    yield _Patch(_compressed(outline.counts, height, width), outline.left, outline.top, outline.by_rows)


def _compressed(counts: list[int] | str, height: int, width: int) -> Any:
    """Runs as pycocotools has them; InputError for runs that are not of so many pixels."""
    try:
        if isinstance(counts, str):
            found: Any = {"counts": counts, "size": [1, height * width - 1]}
            try:  # too few pixels are no error to it, and what lies behind them in memory would be in the mask
                coco.decode(found)
            except ValueError:  # as there is one more
                found["size"] = [height, width]
                coco.decode(found)
                return found
        elif min(counts, default=-1) >= 0 and sum(counts) == height * width:
            found = {"counts": counts, "size": [height, width]}
            return coco.frPyObjects(found, height, width)
    except ValueError:
        pass
    raise InputError(f"its runs are not of {height * width:,} pixels: counts of COCO, or their text, would work")


def _window(polygon: list[float], size: tuple[int, int]) -> Iterator[_Patch]:
    """A polygon on no more of the image than it needs; nothing where it lies outside."""
    if len(polygon) < 6 or len(polygon) % 2:
        raise InputError(f"a polygon of {len(polygon)} numbers: an x and a y of 3 points or more would work")
    points = np.array(polygon).reshape(-1, 2)
    check_points(points)
    if np.abs(np.diff(points, axis=0, append=points[:1])).sum() > LONGEST:
        raise InputError(f"a polygon with an outline of over {LONGEST:,} pixels: a shorter one would work")
    low = np.maximum(np.floor(points.min(axis=0)).astype(int) - 1, 0)
    width, height = (np.minimum(np.ceil(points.max(axis=0)).astype(int) + 2, size[::-1]) - low).tolist()
    if min(width, height) > 0:
        # pycocotools rounds to a fifth of a pixel, and where a window begins must not change that.
        points = np.where(low > 0, np.trunc(5 * points + 0.5) / 5 - low, points)
        (runs,) = coco.frPyObjects([points.ravel().tolist()], height, width)
        yield _Patch(runs, *low.tolist())


def check_points(points: np.ndarray) -> None:
    """InputError for one of the points, (points, 2), that is no number, or further away than images are large."""
    for x, y in points[~(np.abs(points) <= MOST_PIXELS).all(axis=1)]:
        raise InputError(f"a point at ({x:g}, {y:g}): one in the photo would work")


def class_values(names: Sequence[str], file: Path) -> tuple[Legend, dict[str, int]]:
    """Background, and these classes in their order, those of one name being one; and the value of each name, also of
    such as `void`. InputError for a class without a name, and for too many.
    """
    bare = {name: " ".join(name.split()) for name in names}
    if not all(bare.values()):
        raise InputError(f"{file} has a class without a name: one would work")
    kept = {name: 0 for name in bare.values() if name.casefold() not in (*BACKGROUNDS, *VOIDS)}
    if len(kept) >= VOID:
        raise InputError(f"{file} has {len(kept):,} classes: {VOID - 1} at most would work")
    value_of = {name: value for value, name in enumerate(kept, 1)}
    others = {name: 0 if name.casefold() in BACKGROUNDS else VOID for name in bare.values() if name not in kept}
    return numbered(("background", *kept)), {name: (value_of | others)[short] for name, short in bare.items()}


@dataclass(frozen=True)
class Entry:
    """What one file says of one image. text: a `Drawn` as JSON, "" of one that nobody has drawn on."""

    path: str
    file: str
    split: str
    text: bytes


def outlined(
    root: Path, images: Names, entries: Sequence[Entry], absent: Sequence[str], notes: Sequence[str], **more: Any
) -> Outlined:
    """The images below a folder with what is said of them; InputError for two entries of one image.

    absent: "file: image" of each that is named and is not there. more: the rest of an `Outlined`.
    """
    if absent:
        notes = (*notes, f"{len(absent):,} images that are named are not there, such as {absent[0]}")
    of: dict[str, Entry] = {}
    for entry in entries:
        if (other := of.setdefault(entry.path, entry)) is not entry:
            where = entry.file if entry.file == other.file else f"{other.file} and {entry.file}"
            raise InputError(f"{root} has two entries of {entry.path}, in {where}: one would work")
    first = next(iter(of.values())).file
    return Outlined(
        root=root,
        images=images,
        masks=Names(of[path].file if path in of else first for path in images),
        has_mask=np.array([path in of and bool(of[path].text) for path in images], bool),
        orphans=Names(sorted(absent)),
        notes=tuple(notes),
        splits=np.array([(path in of and of[path].split) or split_of(path) for path in images]),
        drawn=Names.held(b"".join((of[path].text if path in of else b"") + b"\0" for path in images)),
        by_name=False,
        **more,
    )
