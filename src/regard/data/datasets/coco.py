"""Images with JSONs in COCO's format (Lin et al. 2014), of instances: polygons and runs made into masks.

As COCO itself has them (instances_train2017.json for train2017/), as Roboflow does (train/_annotations.coco.json beside
the images), or any others. Class 0 is background, then come the categories in order of id. Larger instances are
painted first, so that smaller ones stay visible; below them all, crowds are void, and so are boxes without an outline.
An image without annotations is background; one that no JSON names has no mask.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Raw, Struct

from regard.data.compact import Names
from regard.data.datasets.placing import placed
from regard.data.datasets.regions import Drawn, Entry, Outlined, Polygons, Region, class_values, outlined
from regard.data.layouts import PARTS, SPLITS, WORDS, said_split
from regard.data.listing import list_images
from regard.data.names import VOID
from regard.data.reading import opened
from regard.errors import InputError
from regard.files import TOO_DEEP
from regard.say import say_once

KEYS = (b'"images"', b'"annotations"', b'"categories"')
OPENING = 2**16  # bytes of a JSON that hold one of its keys, and more than one of a COCO JSON of a few images
NO_OUTLINES = "holds no outlines, so its images have no masks: polygons or runs (RLE) would be read as such"
NO_OUTLINE = (b"", b"[]", b"[[]]", b"null")


class _Image(Struct, gc=False):
    id: int | str
    file_name: str
    height: float | None = None
    width: float | None = None


class _Annotation(Struct, gc=False):
    image_id: int | str
    category_id: int
    id: int | str | None = None
    segmentation: Raw = Raw(b"[]")
    bbox: list[float] | None = None
    iscrowd: int | bool | None = 0


class _Category(Struct):
    id: int
    name: str
    supercategory: str | None = None


class _Keys(Struct):
    images: Raw
    annotations: Raw
    categories: Raw


class _Coco(Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


@dataclass(frozen=True)
class _File:
    """One JSON. split: that which its name or its folder says. paths: of its images that are there, by file_name."""

    name: str
    split: str
    content: _Coco
    paths: Mapping[str, str]


def find_coco(root: Path, files: Sequence[str], images: Names) -> Outlined | None:
    """The images below a folder, and what the COCO JSONs among `files` say of them; None where there are none of those,
    or none that tells an outline.

    Raises InputError for one that can't be read, whose images are not there, or that doesn't fit the others.
    """
    instances = {os.path.dirname(file) for file in files if os.path.basename(file).startswith("instances")}
    asked = [f for f in files if os.path.dirname(f) not in instances or os.path.basename(f).startswith("instances")]
    read = [one for file in asked if (one := _read(root, file, images))]
    if not _outlines(read):
        if read:
            say_once(f"{root / read[0].name} {NO_OUTLINES}")
        return None
    kept = [of for of in read if of.paths]
    if not kept:
        named = read[0].content.images
        what = f"{root / read[0].name} names {len(named):,} images, such as {named[0].file_name}, and none is there"
        raise InputError(f"{what}: the folder that holds both would work")
    names, groups = _categories(root, kept)
    legend, value_of = class_values(list(names.values()), root / kept[0].name)
    values, counts = {number: value_of[name] for number, name in names.items()}, Counter[str]()
    entries = [entry for of in kept for entry in _entries(root, of, values, counts)]
    absent = [
        f"{of.name}: {one.file_name}" for of in kept for one in of.content.images if one.file_name not in of.paths
    ]
    notes = [f"{count:,} {what}" for what, count in counts.items() if count]
    notes += [f"{of.name} is left out, as none of its images is there" for of in read if not of.paths]
    if groups:
        notes.append(f"{', '.join(groups)} is no class, but the name of a group of classes")
    return outlined(
        root,
        images,
        entries,
        absent,
        notes,
        words="COCO JSON folder",
        layout="coco",
        legend=legend,
        larger_first=True,
    )


def without_outlines(root: Path) -> str:
    """The JSON of COCO below a folder, where there are some and none tells an outline; or ""."""
    read = [one for file in list_images(root, endings=(".json",)) if (one := _read(root, file, Names()))]
    return "" if _outlines(read) or not read else read[0].name


def coco_beside(root: Path) -> str:
    """A JSON of COCO directly in a folder, or in its annotations/; or ""."""
    files = [*sorted(root.glob("*.json")), *sorted(root.glob("annotations/*.json"))]
    return next((file.relative_to(root).as_posix() for file in files if _keys(file) > 1), "")


def _keys(path: Path) -> int:
    """How many keys of a JSON of COCO a file begins with."""
    with opened(path) as stream:
        data = stream.read(OPENING)
    return sum(key in data for key in KEYS)


def _outlines(files: Sequence[_File]) -> bool:
    return any(_has_outline(one) for of in files for one in of.content.annotations)


def _has_outline(one: _Annotation) -> bool:
    return bytes(one.segmentation).strip() not in NO_OUTLINE


def _read(root: Path, file: str, images: Names) -> _File | None:
    """One JSON; None for one of another kind, or of no images."""
    keys = _keys(root / file)
    if not keys:
        return None
    with opened(root / file) as stream:
        data = stream.read().removeprefix(b"\xef\xbb\xbf")
    try:
        if b'"segments_info"' in bytes(memoryview(msgspec.json.decode(data, type=_Keys).annotations)[:OPENING]):
            say_once(f"{root / file} is panoptic, which is not read: instances would be")
            return None
    except msgspec.ValidationError:
        return None
    except (msgspec.DecodeError, RecursionError) as error:
        if keys < 2:
            return None
        why = TOO_DEEP if isinstance(error, RecursionError) else error
        raise InputError(f"{root / file} is no whole JSON: {why}: a whole copy of it would work") from error
    try:
        content = msgspec.json.decode(data, type=_Coco)
    except (msgspec.ValidationError, RecursionError) as error:
        raise InputError(
            f"{root / file} is no JSON of COCO: {error}: instances, as COCO has them, would work"
        ) from error
    names, folder = [one.file_name for one in content.images], os.path.dirname(file)
    if twice := next((name for name, count in Counter(names).items() if count > 1), ""):
        raise InputError(f"{root / file} has {twice!r} twice among its images: once would work")
    split = _split_in(os.path.splitext(os.path.basename(file))[0]) or said_split(file)
    return _File(file, split, content, placed(names, images, folder, split, root / file)) if names else None


def _split_in(stem: str) -> str:
    """The split that a word in the name of a JSON says, as in instances_train2017; "" for none, or several."""
    said = {split for word in PARTS.split(stem) if word and (split := WORDS.get(word.casefold())) in SPLITS}
    return said.pop() if len(said) == 1 else ""


def _categories(root: Path, files: Sequence[_File]) -> tuple[dict[int, str], list[str]]:
    """The names of all categories by id, in its order; and those that name a group of others, as Roboflow's first does.

    InputError where JSONs don't agree.
    """
    names: dict[int, str] = {}
    for of in files:
        for one in of.content.categories:
            if names.setdefault(one.id, one.name) != one.name:
                what = f"{root / of.name} calls category {one.id} {one.name!r}, and elsewhere it is {names[one.id]!r}"
                raise InputError(f"{what}: one name for each id would work")
    used = {one.category_id for of in files for one in of.content.annotations}
    above = {one.supercategory for of in files for one in of.content.categories if one.supercategory != one.name}
    groups = [number for number, name in names.items() if name in above and number not in used]
    return {number: names[number] for number in sorted(names) if number not in groups}, [names[n] for n in groups]


def _entries(root: Path, of: _File, values: Mapping[int, int], counts: Counter[str]) -> Iterator[Entry]:
    """What a JSON says of each of its images that is there; `counts` of what people are told grow."""
    regions: dict[int | str, list[Region[Raw | Polygons]]] = defaultdict(list)
    listed = {one.id for one in of.content.images}
    for one in of.content.annotations:
        name = f"annotation {one.id}"
        if one.category_id not in values:
            known = f"{min(values)} to {max(values)}" if values else "none"
            what = f"{name} is of category {one.category_id}, which is not among its categories ({known})"
            raise InputError(f"{root / of.name}: {what}: an entry of it there would work")
        if one.image_id not in listed:
            counts["annotations are of no image of their JSON, and ignored"] += 1
        elif _has_outline(one):
            counts["crowds are void"] += bool(one.iscrowd)
            value = VOID if one.iscrowd else values[one.category_id]
            regions[one.image_id].append(Region(name, value, one.segmentation))
        elif one.bbox is not None and len(one.bbox) == 4:
            counts["boxes have no outline, and are void"] += 1
            x, y, width, height = one.bbox
            box = [x, y, x + width, y, x + width, y + height, x, y + height]
            regions[one.image_id].append(Region(name, VOID, [box]))
        else:
            counts["annotations have neither outline nor box, and are ignored"] += 1
    for image in of.content.images:
        if path := of.paths.get(image.file_name):
            counts["images have no annotation: background"] += image.id not in regions
            size = (int(image.height), int(image.width)) if image.height and image.width else None
            yield Entry(path, of.name, of.split, msgspec.json.encode(Drawn(size, regions.get(image.id, []))))
