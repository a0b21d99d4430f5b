"""What `regard data info --out` draws: images of each split, and their masks over them. Imported when that runs."""

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from regard.data.datasets.base import Dataset, MaskDataset
from regard.data.loading.augment import resize_pair
from regard.data.source import Source
from regard.data.survey import evenly
from regard.errors import InputError
from regard.pictures.draw import Picture, mosaic

PICTURES = 6  # of each split, evenly spaced
PLACE = (150, 200)  # height and width that each is fitted into, pixels
COLUMNS = 6  # pictures beside each other; an image and its mask are two
OPACITY = 0.6  # of the classes' colours over an image
TEXT, SWATCH, ENTRY = 13, 12, 150  # pixels: height of letters, side of a colour of the legend, width of an entry


def contact_sheet(source: Source) -> Picture:
    """Rows of images by split, each beside itself under its classes' colours; void pixels stay as they are.

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
    return np.concatenate([sheet, _legend(source, sorted(seen), sheet.shape[1])]) if seen else sheet


def _cells(dataset: Dataset, i: int, seen: set[int]) -> list[Picture | None]:
    """The image, and, where there are masks, the image under its classes; these are added to `seen`."""
    paired = isinstance(dataset, MaskDataset)
    try:
        image = dataset.image(i)
        mask = dataset.mask(i) if paired else np.full(image.shape[:2], dataset.ignore_index, np.uint8)
    except InputError:
        return [None] * (1 + paired)
    scale = min(place / side for place, side in zip(PLACE, image.shape[:2], strict=True))
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    small, labels = resize_pair(image, mask, (height, width))
    if not paired:
        return [_placed(small)]
    known = labels != dataset.ignore_index
    seen.update(np.unique(labels[known]).tolist())
    painted = small.copy()
    painted[known] = dataset.palette[labels[known]]
    return [_placed(small), _placed(cv2.addWeighted(painted, OPACITY, small, 1 - OPACITY, 0))]


def _placed(picture: np.ndarray) -> Picture:
    """In the middle of a white place."""
    place = np.full((*PLACE, 3), 255, np.uint8)
    height, width = picture.shape[:2]
    top, left = (PLACE[0] - height) // 2, (PLACE[1] - width) // 2
    place[top : top + height, left : left + width] = picture
    return place


def _legend(source: Source, classes: list[int], width: int) -> Picture:
    """The colours and names of these classes, in as many columns as fit."""
    columns, line, font = max(1, width // ENTRY), 2 * TEXT, ImageFont.load_default(TEXT)
    canvas = Image.new("RGB", (width, line * (-(-len(classes) // columns) + 1)), "white")
    draw = ImageDraw.Draw(canvas)
    for place, number in enumerate(classes):
        x, y = ENTRY * (place % columns), line * (place // columns) + TEXT
        draw.rectangle((x, y, x + SWATCH, y + SWATCH), tuple(source.palette[number].tolist()), "black")
        name = source.classes[number]
        while font.getlength(name) > ENTRY - 2 * SWATCH:
            name = name[:-2] + "…"
        draw.text((x + SWATCH + 5, y - 2), name, "black", font)
    return np.asarray(canvas)
