"""Images with an XML of CVAT, exported as "CVAT for images 1.1": annotations.xml beside images/, of a task or project.

Polygons, masks, boxes and ellipses cover the pixels that CVAT's own export as "Segmentation mask 1.1" gives them, later
ones and those of a higher z_order over others; ellipses do so within a pixel. Class 0 is background, then come the
labels in CVAT's order; `void` and `ignored` are no classes, as in that export, which is a tree like VOC's: see voc.py.
An image with nothing on it, not even a tag, counts as one that nobody has annotated yet.
"""

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import numpy as np

from regard.data.compact import Names
from regard.data.datasets.placing import placed
from regard.data.datasets.regions import Drawn, Entry, Outlined, Polygons, Region, Runs, class_values, outlined
from regard.data.layouts import meaning
from regard.data.reading import opened
from regard.errors import InputError, naming
from regard.say import say_once

AREAS, OTHERS = ("polygon", "mask", "box", "ellipse"), ("polyline", "points", "cuboid", "skeleton")
OF_AREAS = (None, "any", "rectangle", *AREAS)  # types of labels
CORNERS = 64  # of an ellipse


def find_cvat(root: Path, files: Sequence[str], images: Names) -> Outlined | None:
    """The images below a folder, and what the XMLs of CVAT among `files` say of them; None where there are none of
    those, or no areas in them.

    Raises InputError for one that can't be read, and where none of its images is there.
    """
    usual = [file for file in files if "/" not in file or os.path.basename(file).startswith("annotations")]
    read = {file: tree for file in usual if (tree := _read(root / file)) is not None}
    if not any(tree.find(f"image/{kind}") is not None for tree in read.values() for kind in AREAS):
        if read:
            say_once(f"{root / next(iter(read))} holds no areas, so its images have no masks")
        return None
    labels = [label for tree in read.values() for label in tree.findall("meta/*/labels/label")]
    names = dict.fromkeys(label.findtext("name", "") for label in labels if label.findtext("type") in OF_AREAS)
    legend, value_of = class_values(list(names), root / next(iter(read)))
    entries, absent, counts = list[Entry](), list[str](), Counter[str]()
    for file, tree in read.items():
        there = _there(tree, images, file, root)
        for image in tree.iterfind("image"):
            name = _name(image)
            if name not in there:
                absent.append(f"{file}: {name}")
                continue
            with naming(f"{root / file}: {name}"):
                entries.append(Entry(there[name], file, _split(image), _text(image, value_of)))
            counts.update(shape.tag for shape in image)
    if not entries:
        what = f"{root} holds CVAT's {absent[0].partition(':')[0]} without its {len(absent):,} images"
        raise InputError(f"{what}: a CVAT export with `Save images`, or the folder that holds both, would work")
    others = {f"{counts[kind]:,} {kind}": counts[kind] for kind in OTHERS}
    ignored = ", ".join(what for what, count in others.items() if count)
    notes = [f"{ignored}: no area, ignored"] if ignored else []
    return outlined(root, images, entries, absent, notes, words="CVAT folder", layout="cvat", legend=legend)


def _read(path: Path) -> ElementTree.Element | None:
    """What an XML of CVAT holds; None for another one. InputError for one of a video, or one that can't be read."""
    with opened(path) as file:
        data = file.read(1024)
        if b"<annotations>" not in data:
            return None
        data += file.read()
    try:
        text = data.decode("utf-8-sig")
        if "<!DOCTYPE" in text:  # whose entities may stand for more text than there is memory
            raise InputError(f"{path} holds a DOCTYPE, which CVAT writes none of: its own export would work")
        tree = ElementTree.fromstring(text)
    except (UnicodeDecodeError, ElementTree.ParseError) as error:
        raise InputError(f"{path} is no whole XML: {error}: an export of CVAT as it is would work") from error
    if tree.find("track") is not None and tree.find("image") is None:
        raise InputError(f"{path} is of CVAT for video: an export as CVAT for images 1.1 would work")
    return tree


def _there(tree: ElementTree.Element, images: Names, file: str, root: Path) -> dict[str, str]:
    """The image of each name, by that with the subset in front, in whose folder a project has it."""
    subsets: dict[str, list[ElementTree.Element]] = {}
    for image in tree.iterfind("image"):
        subsets.setdefault(_split(image), []).append(image)
    found: dict[str, str] = {}
    for split, of in subsets.items():
        found |= placed([_name(image) for image in of], images, os.path.dirname(file), split, root / file)
    return found


def _name(image: ElementTree.Element) -> str:
    return "/".join(filter(None, (image.get("subset"), image.get("name", ""))))


def _split(image: ElementTree.Element) -> str:
    return meaning(image.get("subset", ""))[0]


def _text(image: ElementTree.Element, value_of: Mapping[str, int]) -> bytes:
    """What is drawn on an image, for `Regions`; "" where nobody has annotated it."""
    if not len(image):
        return b""
    try:
        shapes = [(number, shape) for number, shape in enumerate(image, 1) if shape.tag in AREAS]
        shapes.sort(key=lambda one: int(one[1].get("z_order", "0")))
        size = (int(image.attrib["height"]), int(image.attrib["width"])) if "height" in image.attrib else None
    except (ValueError, KeyError) as error:
        raise InputError(f"{error} is no number as CVAT writes it: its own export would work") from error
    regions = []
    for number, shape in shapes:
        label = shape.get("label", "")
        with naming(f"{shape.tag} {number} ({label!r})"):
            if label not in value_of:
                raise InputError("no label is called so: one of it in <labels> would work")
            try:
                regions.append(Region(f"{shape.tag} {number} ({label!r})", value_of[label], _outline(shape)))
            except (ValueError, KeyError) as error:
                raise InputError(f"{error}: numbers as CVAT writes them would work") from error
    return msgspec.json.encode(Drawn(size, regions))


def _outline(shape: ElementTree.Element) -> Polygons | Runs:
    """ValueError or KeyError for a shape that CVAT doesn't write so."""
    if shape.tag == "polygon":
        return [[_number(part) for point in shape.attrib["points"].split(";") for part in point.split(",")]]
    if shape.tag == "mask":
        counts = [int(part) for part in shape.attrib["rle"].split(",")]
        left, top, width, height = (int(shape.attrib[name]) for name in ("left", "top", "width", "height"))
        return Runs(counts, (height, width), left, top, by_rows=True)
    if shape.tag == "box":
        left, top, right, bottom = (_number(shape.attrib[name]) for name in ("xtl", "ytl", "xbr", "ybr"))
        center, corners = (
            ((left + right) / 2, (top + bottom) / 2),
            [[left, top], [right, top], [right, bottom], [left, bottom]],
        )
        points = np.array(corners) - center
    else:
        *center, rx, ry = (_number(shape.attrib[name]) for name in ("cx", "cy", "rx", "ry"))
        angles = np.linspace(0, 2 * math.pi, CORNERS, endpoint=False)
        points = np.stack([rx * np.cos(angles), ry * np.sin(angles)], 1)
    turn = math.radians(_number(shape.get("rotation", "0")))
    around = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    return [(points @ around + center).ravel().tolist()]


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is no number")
    return value
