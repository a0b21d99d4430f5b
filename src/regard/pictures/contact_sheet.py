"""Sheets of small pictures: the images of each split with their masks, for `regard data info --out`, and what a
segmentation makes of some of them. Imported when they are drawn.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from regard.data.datasets.base import Dataset, MaskDataset
from regard.data.loading.augment import resize_pair
from regard.data.source import Source
from regard.data.survey import evenly
from regard.errors import InputError
from regard.pictures.classes import class_overlay, legend
from regard.pictures.draw import Picture, mosaic

SHEET = "predictions.png"  # of a segmentation
PICTURES = 6  # of each split, evenly spaced
PLACE = (150, 200)  # height and width that each is fitted into, pixels
COLUMNS = 6  # pictures beside each other; an image and its mask are two
OPACITY = 0.6  # of the classes' colours over an image


def contact_sheet(source: Source) -> Picture:
    """Rows of images by split, each beside itself under its classes' colours; background and void stay as they are.

    The legend below names the classes that are seen. Images that can't be read are left white.
    """
    rows: list[list[Picture | None]] = []
    labels: list[str] = []
    seen: set[int] = set()
    for split, dataset in source.splits.items():
        cells = [cell for i in evenly(len(dataset), PICTURES) for cell in _cells(dataset, i, seen)]
        starts = range(0, len(cells), COLUMNS)
        rows += [cells[start : start + COLUMNS] for start in starts]
        labels += [split if start == 0 else "" for start in starts]
    if all(cell is None for row in rows for cell in row):
        raise InputError(f"none of the images of {source.root} that would be drawn can be read")
    sheet = mosaic(rows, labels, [])
    if not seen:
        return sheet
    return np.concatenate([sheet, legend(source.classes, source.palette, sorted(seen), sheet.shape[1])])


def prediction_sheet(dataset: MaskDataset, predict: Callable[[Picture], UInt8[np.ndarray, "h w"]]) -> Picture:
    """Images of a dataset, evenly spaced, each beside itself under its true classes and under those predicted."""
    rows: list[list[Picture | None]] = []
    seen: set[int] = set()
    for i in evenly(len(dataset), PICTURES):
        image, truth = dataset.image(i), dataset.mask(i)
        guess = predict(image)
        small, true_labels = _fitted(image, truth)
        labels = (true_labels, _fitted(image, guess)[1])
        seen.update(number for of in labels for number in np.unique(of).tolist() if number < len(dataset.classes))
        drawn = [class_overlay(small, of, dataset.classes, dataset.palette, OPACITY) for of in labels]
        rows.append([_placed(picture) for picture in (small, *drawn)])
    sheet = mosaic(rows, [""] * len(rows), ["image", "truth", "prediction"])
    return np.concatenate([sheet, legend(dataset.classes, dataset.palette, sorted(seen), sheet.shape[1])])


def _cells(dataset: Dataset, i: int, seen: set[int]) -> list[Picture | None]:
    """The image, and, where there are masks, the image under its classes; these are added to `seen`."""
    paired = isinstance(dataset, MaskDataset)
    try:
        image = dataset.image(i)
        mask = dataset.mask(i) if paired else np.full(image.shape[:2], dataset.ignore_index, np.uint8)
    except InputError:
        return [None] * (1 + paired)
    small, labels = _fitted(image, mask)
    if not paired:
        return [_placed(small)]
    seen.update(np.unique(labels[labels != dataset.ignore_index]).tolist())
    return [_placed(small), _placed(class_overlay(small, labels, dataset.classes, dataset.palette, OPACITY))]


def _fitted(image: Picture, mask: UInt8[np.ndarray, "h w"]) -> tuple[Picture, UInt8[np.ndarray, "h2 w2"]]:
    """An image and its mask at the size of a place."""
    scale = min(place / side for place, side in zip(PLACE, image.shape[:2], strict=True))
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return resize_pair(image, mask, (height, width))


def _placed(picture: np.ndarray) -> Picture:
    """In the middle of a white place."""
    place = np.full((*PLACE, 3), 255, np.uint8)
    height, width = picture.shape[:2]
    top, left = (PLACE[0] - height) // 2, (PLACE[1] - width) // 2
    place[top : top + height, left : left + width] = picture
    return place
