"""What the classes of a data set are called, and how its masks tell them: by value, by colour, or by both.

One's own classes are written in one of these files, beside the masks' folder:

| file | what it holds |
|---|---|
| classes.txt | a name a line, in order of value: 0, 1, 2, ...; 255 is void |
| classes.json | [{"name": "road", "color": [128, 64, 128]}, {"name": "void", "color": "#000000"}, ...] |
| labelmap.txt | a line a class, as CVAT writes it beside a VOC-like tree: road:128,64,128:: |

In classes.json the classes are numbered in order of appearance. Entries of one name are one class, of several colours;
those named "void" are no class, and there may be none. An entry may have a "value", with a colour or in its place: then
grey and indexed masks hold the values, and 255 is void. Without values all masks are read by colour: an index is the
colour that the mask's palette gives it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from jaxtyping import Int16, UInt8
from msgspec import Meta, Struct

from regard.errors import InputError
from regard.files import read_text
from regard.results import NO_JSON

VOID = 255  # the label of pixels that belong to no class, in VOC and in nearly every data set since
UNKNOWN = -1  # of a value or a colour that no class has
VOC_BORDER = (224, 224, 192)  # the colour of 255 in the palette of VOC, which is void whatever the classes

Color = tuple[int, int, int]  # RGB, 0..255
Byte = Annotated[int, Meta(ge=0, le=255)]


class Entry(Struct, forbid_unknown_fields=True):
    """An entry of classes.json, or a line of labelmap.txt."""

    name: Annotated[str, Meta(pattern=r"\S")]
    color: tuple[Byte, Byte, Byte] | Annotated[str, Meta(pattern=r"^#[0-9a-fA-F]{6}\Z")] | None = None
    value: Byte | None = None

    @property
    def label(self) -> str:
        """The name of its class, or "void"."""
        name = self.name.strip()
        return "void" if name.lower() == "void" else name

    @property
    def rgb(self) -> Color | None:
        """Its colour in numbers."""
        if not isinstance(self.color, str):
            return self.color
        red, green, blue = bytes.fromhex(self.color[1:])
        return red, green, blue


@dataclass(frozen=True)
class Legend:
    """The classes of a data set, and the label (an index into `classes`, or 255 for void) of each value and colour.

    values: of grey and indexed masks; none where these are read by colour, too.
    colors: of coloured masks; none where there must be no such masks.
    shown:  the colours to draw the classes in, where they are not those of `colors`.
    others: the label of any other colour; UNKNOWN makes it an error.
    where:  what gave the colours, for errors.
    """

    classes: tuple[str, ...]
    values: Mapping[int, int] = field(default_factory=dict)
    colors: Mapping[Color, int] = field(default_factory=dict)
    shown: tuple[Color, ...] = ()
    others: int = UNKNOWN
    where: str = "classes.json"

    @property
    def palette(self) -> UInt8[np.ndarray, "classes 3"]:
        """RGB, one colour per class: those of VOC, which suit any number of classes, where none are given."""
        first = {label: color for color, label in reversed(list(self.colors.items()))}
        shown = self.shown or tuple(first[label] for label in range(len(self.classes)) if label in first)
        return np.array(shown, np.uint8) if len(shown) == len(self.classes) > 0 else voc_palette(len(self.classes))

    def by_value(self, values: UInt8[np.ndarray, "h w"]) -> Int16[np.ndarray, "h w"]:
        """The label of each pixel, UNKNOWN where no class has its value."""
        return self._label_of_value[values]

    def by_color(self, rgb: UInt8[np.ndarray, "h w 3"]) -> Int16[np.ndarray, "h w"]:
        """The label of each pixel, UNKNOWN where no class has its very colour."""
        codes, labels = self._label_of_code
        wanted = pack(rgb)
        # Masks are flat: only the first pixel of each run of one colour is looked up.
        starts = np.flatnonzero(np.diff(wanted, prepend=wanted[:1] + 1))
        at = np.minimum(np.searchsorted(codes, wanted[starts]), len(codes) - 1)
        found = np.where(codes[at] == wanted[starts], labels[at], np.int16(self.others))
        return np.repeat(found, np.diff(starts, append=wanted.size)).reshape(rgb.shape[:2])

    @cached_property
    def _label_of_value(self) -> np.ndarray:
        table = np.full(256, UNKNOWN, np.int16)
        table[list(self.values)] = list(self.values.values())
        return table

    @cached_property
    def _label_of_code(self) -> tuple[np.ndarray, np.ndarray]:
        codes = pack(np.array(list(self.colors), np.uint8)[None])
        order = np.argsort(codes)
        return codes[order], np.array(list(self.colors.values()), np.int16)[order]


def numbered(classes: Sequence[str], values: Sequence[int] | None = None, void: Sequence[int] = (VOID,)) -> Legend:
    """The legend of masks that hold `values`, one a class, by default 0, 1, 2, ...; and those of `void` for void."""
    label_of = dict(zip(values or range(len(classes)), range(len(classes)), strict=True))
    return Legend(tuple(classes), {**dict.fromkeys(void, VOID), **label_of})


def read_names(file: Path) -> Legend:
    """classes.txt: InputError for blank lines, for a name twice, and for none or more than 255 names."""
    names = tuple(line.strip() for line in read_text(file).strip().splitlines())
    if not all(names) or not 0 < len(names) <= VOID:
        raise InputError(f"{file} has {len(names)} lines: 1 to {VOID} names, one a line, none blank, would work")
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise InputError(f"{file} names {twice[0]!r} twice: each class once, or classes.json for one of two values")
    return numbered(names)


def read_json(file: Path) -> Legend:
    """classes.json: InputError for what is no such file, and for classes that cannot be told apart."""
    try:
        entries = msgspec.json.decode(read_text(file), type=list[Entry])
    except NO_JSON as error:
        one = '{"name": "road", "color": [128, 64, 128] or "#804080", "value": 7}'
        raise InputError(f"{file}: {error}: a list of {one} would work") from error
    return from_entries(entries, file)


def read_labelmap(file: Path) -> Legend:
    """labelmap.txt: InputError for a line that is not name:r,g,b:parts:actions. "void" and "ignored" are no classes."""
    entries = []
    for line in read_text(file).splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        found = re.fullmatch(r"([^:]+):\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*(:.*)?", line.strip())
        if found is None or max(int(found[2]), int(found[3]), int(found[4])) > 255:
            raise InputError(f"{file} has the line {line.strip()!r}: one such as road:128,64,128:: would work")
        name = "void" if found[1].lower() == "ignored" else found[1]
        entries.append(Entry(name, (int(found[2]), int(found[3]), int(found[4]))))
    if VOC_BORDER not in {entry.rgb for entry in entries}:
        entries.append(Entry("void", VOC_BORDER))
    return from_entries(entries, file)


def from_entries(entries: Iterable[Entry], where: str | Path) -> Legend:
    """The legend of classes in order of appearance; InputError for a colour or a value of two classes."""
    named = [(entry.label, entry.rgb, entry.value) for entry in entries]
    classes = tuple(dict.fromkeys(name for name, _, _ in named if name != "void"))
    if not 0 < len(classes) <= VOID:
        raise InputError(f"{where} names {len(classes)} classes besides void: 1 to {VOID} would work")
    label_of = {"void": VOID, **{name: label for label, name in enumerate(classes)}}
    by_color: dict[Color, str] = {}
    by_value: dict[int, str] = {}
    for name, color, value in named:
        if color is not None and by_color.setdefault(color, name) != name:
            both = f"{by_color[color]!r} and to {name!r}"
            raise InputError(f"{where} gives #{bytes(color).hex()} to {both}: one would work")
        if value is not None and by_value.setdefault(value, name) != name:
            raise InputError(f"{where} gives the value {value} to {by_value[value]!r} and to {name!r}: one would work")
    for keys, kind in ((by_color, "color"), (by_value, "value")):
        if lacking := [name for name in classes if keys and name not in keys.values()]:
            raise InputError(f"{where} gives no {kind} to {lacking[0]!r}: one for every class, or for none, would work")
    if not by_color and not by_value:
        raise InputError(f"{where} gives neither colours nor values: one of them, or classes.txt, would work")
    values = {value: label_of[name] for value, name in by_value.items()}
    values = {VOID: VOID, **values} if values else {}
    return Legend(classes, values, {color: label_of[name] for color, name in by_color.items()}, where=str(where))


def pack(rgb: UInt8[np.ndarray, "h w 3"]) -> np.ndarray:
    """A number for each colour: (h * w,) uint32."""
    red, green, blue = (rgb[..., channel].ravel().astype(np.uint32) for channel in range(3))
    return red << 16 | green << 8 | blue


def voc_palette(count: int) -> UInt8[np.ndarray, "count 3"]:
    """The first VOC colours, RGB: bits 0, 1, 2 of the index are the top bits of R, G, B; bits 3, 4, 5 the next; ..."""
    index, palette = np.arange(count), np.zeros((count, 3), np.uint8)
    for level in range(8):
        for channel in range(3):
            palette[:, channel] |= ((index >> (3 * level + channel) & 1) << (7 - level)).astype(np.uint8)
    return palette
