"""What is said of a published data set, how one is found by name or by its folders, and what their readers share.

A tree may lie at the path itself or one folder down, where its archive puts it. A set without a published val gets the
project's own: a fixed fifth of what is for training (`listing.with_val`).
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from regard.data.datasets import DATASETS
from regard.data.datasets.base import Source
from regard.data.listing import is_image, list_images
from regard.data.names import VOID
from regard.errors import InputError, unknown
from regard.files import read_text


@dataclass(frozen=True)
class Archive:
    """One file of a data set.

    size:     bytes, where they are known.
    checksum: "md5:..." or "sha256:..." in hexadecimal, where one is published.
    into:     the folder, below that of the data set, that its members go into.
    """

    url: str
    size: int | None = None
    checksum: str | None = None
    into: str = "."

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Published:
    """A published data set.

    home:     the page with its terms.
    open:     a folder -> what it holds, or None where it is not laid out as this set; InputError where it is, but lacks
              a part. Folders are looked at, never pixels.
    archives: none where no lasting address is known.
    root:     the folder to open, below the one that the archives are unpacked into.
    """

    home: str
    open: Callable[[Path], Source | None] = lambda folder: None
    archives: tuple[Archive, ...] = ()
    root: str = "."


def published(name: str) -> Published:
    """The data set of a name; InputError for an unknown one."""
    if name not in DATASETS:
        raise unknown("published data set", name, DATASETS)
    module, _, there = DATASETS[name].partition(":")
    return getattr(import_module(module), there)


def open_published(root: Path) -> Source | None:
    """The published tree at a path, or None. Raises InputError for one that is incomplete."""
    return next((found for name in DATASETS if (found := published(name).open(root))), None)


def same_names(root: Path, images: str, masks: str, suffix: str = ".png") -> dict[str, str]:
    """The mask of each image below root/images: of the same name, with `suffix`, below root/masks."""
    stems = {path: os.path.splitext(path.removeprefix(images))[0] for path in list_images(root, images)}
    return {path: f"{masks}{stem}{suffix}" for path, stem in stems.items()}


def comma_separated(names: str) -> list[str]:
    """The names in a text of several lines, in order."""
    return [" ".join(name.split()) for name in names.split(",")]


def read_mat(path: Path, name: str, pick: Callable[[dict[str, Any]], np.ndarray]) -> UInt8[np.ndarray, "h w"]:
    """The label map that `pick` finds in the variable `name` of a MATLAB file; InputError where it can't."""
    from scipy.io import loadmat

    try:
        values = np.asarray(pick(loadmat(path, variable_names=[name, "names"])))
    except InputError as error:
        raise InputError(f"{path} is {error}") from None
    except FileNotFoundError:
        raise InputError(f"{path} can't be read: No such file or directory") from None
    except Exception as error:  # scipy raises whatever its parser meets in a broken file
        raise InputError(f"{path} can't be read: broken, or without {name} as published; unpack it again") from error
    if values.ndim != 2 or values.size == 0 or values.min() < 0 or values.max() > VOID:
        raise InputError(f"{path} holds no map of classes: {name} as published, with values 0 to {VOID}, would work")
    return values.astype(np.uint8)


def listed(file: Path, columns: bool = False) -> list[str]:
    """The images in a list, a line each, without suffix; none where the file isn't there.
    InputError for one that leads out of the tree.

    columns: only the first word of a line names the image, by its name or a path such as /JPEGImages/2007_000032.jpg.
    """
    lines = read_text(file).splitlines() if file.is_file() else ()
    lines = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    names = [line.split()[0].rpartition("/")[2] for line in lines] if columns else lines
    if outside := next((name for name in names if name.startswith("/") or ".." in name.split("/")), ""):
        raise InputError(f"{file} names {outside!r}, which is outside of its folder: names without / before and ..")
    return [os.path.splitext(name)[0] if is_image(name) else name for name in names]


def one_is_called(folder: Path, pattern: str) -> bool:
    """Whether the first file of a folder, hidden ones left out, is called by a pattern; False if it isn't there."""
    if not folder.is_dir():
        return False
    first = min((name for name in os.listdir(folder) if not name.startswith(".")), default="")
    return re.fullmatch(pattern, first) is not None
