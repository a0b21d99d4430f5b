"""Which image a name in a file of annotations is of, where folders have been moved or renamed since it was written."""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

from regard.data.layouts import said_split
from regard.errors import InputError

SAMPLE = 100  # names that tell in which folders images are


def placed(names: Sequence[str], images: Sequence[str], near: str, split: str, file: Path) -> dict[str, str]:
    """The image of each of these names, as far as it is there; the folders may be others than they were.

    One beginning of all names is exchanged for one of the paths: that which finds most of them, or half of those in the
    folder of the `file` with the names, `near`. A name without folder, for which that finds nothing, is of the image
    called so, where all names are of one image at most. No image of another split is taken.

    split: that of the names, "" where it isn't known. InputError where two folders have images of these names.
    """
    there = {unicodedata.normalize("NFC", path): path for path in images}
    called: dict[str, list[str]] = defaultdict(list)
    for path in there:
        if said_split(path) in ("", split) or not split:
            called[os.path.basename(path)].append(path)
    tidy = {name: _tidy(name) for name in names}
    sample = list(tidy.values())[:: max(1, len(tidy) // SAMPLE)]
    fit = [{_beginnings(name, path) for path in called[os.path.basename(name)]} for name in sample]
    begins = Counter(pair for pairs in fit for pair in pairs)
    own, most = [f"{near}/".lstrip("/"), f"{near}/images/".lstrip("/")], max(begins.values(), default=0)

    def rank(pair: tuple[str, str]) -> tuple[bool, int, bool]:
        return pair[1] in own and 2 * begins[pair] >= most, begins[pair], said_split(f"{pair[1]}x") == split != ""

    ranked = sorted(begins, key=rank, reverse=True)
    if any(pairs.issuperset(ranked[:2]) for pairs in fit if ranked[1:]) and rank(ranked[0]) == rank(ranked[1]):
        both = " and ".join(f"{folder or './'}" for _, folder in ranked[:2])
        raise InputError(f"{file} names images of {both}: their folders in its file names would work")
    found, is_clear = {}, all(len(pairs) < 2 for pairs in fit)
    for name, short in tidy.items():
        if ranked and short.startswith(ranked[0][0]):
            found[name] = there.get(ranked[0][1] + short.removeprefix(ranked[0][0]))
        if not found.get(name) and "/" not in short and is_clear and len(called[short]) == 1:
            found[name] = there[called[short][0]]
    return {name: path for name, path in found.items() if path}


def _tidy(name: str) -> str:
    """A path as the disk has them here: with "/", in one form of Unicode, without ./ and a letter for the disk."""
    path = os.path.normpath(PureWindowsPath(name).as_posix() if "\\" in name else name).replace(os.sep, "/")
    return unicodedata.normalize("NFC", re.sub(r"^(?:[A-Za-z]:)?/+", "", path))


def _beginnings(name: str, path: str) -> tuple[str, str]:
    """What is in front of all that a name and a path have in common at their ends: a/c/x.jpg, b/c/x.jpg -> a/, b/."""
    parts, others = name.split("/"), path.split("/")
    same = 0
    while same < min(len(parts), len(others)) and parts[-1 - same] == others[-1 - same]:
        same += 1
    begins = (parts[: len(parts) - same], others[: len(others) - same])
    before, now = ("".join(f"{folder}/" for folder in folders) for folders in begins)
    return before, now
