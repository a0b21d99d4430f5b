"""Folders of data that commands read, made of small scenes."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from regard.data.datasets.scenes import Scenes


def save(path: Path, pixels: np.ndarray) -> None:
    """A picture, in a folder that need not be there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def mask_tree(root: Path, size: int = 32, **counts: int) -> Path:
    """An images/ + masks/ tree, of so many images in each split."""
    for split, count in counts.items():
        scenes = Scenes(count, size=size, split=split)
        for i in range(count):
            save(root / "images" / split / f"{i}.png", scenes.image(i))
            save(root / "masks" / split / f"{i}.png", scenes.mask(i))
    (root / "classes.txt").write_text("\n".join(Scenes.classes))
    return root


def class_folders(root: Path, counts: Mapping[str, int], size: int = 32) -> Path:
    """Folders of so many images each."""
    scenes, number = Scenes(sum(counts.values()), size=size), 0
    for name, count in counts.items():
        for _ in range(count):
            save(root / name / f"{number}.png", scenes.image(number))
            number += 1
    return root


def files(folder: Path) -> list[str]:
    """All that is in a folder, in order."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


class Labelled(Scenes):
    """Scenes of two classes by turns."""

    classes: tuple[str, ...] = ("even", "odd")

    def label(self, i: int) -> int:
        """0, 1, 0, ..."""
        return i % 2
