"""Predictions as polygons for LabelMe: read again, they are the masks that they were made of."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from regard.data.source import open_source
from regard.runs.outlines import Outlines, polygons

CLASSES = ("background", "ring", "box", "leaf")


@pytest.fixture
def mask() -> np.ndarray:
    """A ring around a disc of its own class, a box at the border with something else in it, and a leaf on the ring."""
    mask = np.zeros((240, 320), np.uint8)
    for radius, value in ((90, 1), (50, 0), (20, 1)):
        cv2.circle(mask, (120, 120), radius, value, cv2.FILLED)
    cv2.ellipse(mask, (60, 60), (30, 15), 20, 0, 360, 3, cv2.FILLED)
    mask[:100, 250:], mask[20:60, 270:300] = 2, 3
    return mask


@pytest.mark.parametrize("turn", [1, 6])
def test_what_is_written_is_read_again_as_it_was(turn, mask, tmp_path) -> None:
    photo, file = tmp_path / "photos/a.jpg", tmp_path / "corrected/a.json"
    photo.parent.mkdir()
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.new("RGB", mask.shape if turn == 6 else mask.shape[::-1]).save(photo, exif=exif)
    outlines = Outlines(CLASSES)
    outlines.write(photo, file, mask)
    written = json.loads(file.read_text())
    assert (written["imagePath"], written["imageData"]) == ("../photos/a.jpg", None)
    assert (written["imageHeight"], written["imageWidth"]) == mask.shape
    assert {shape["shape_type"] for shape in written["shapes"]} == {"polygon"}
    assert sum(len(shape["points"]) for shape in written["shapes"]) < 150  # for a hand with a mouse
    source = open_source(tmp_path)
    assert source.classes == ("background", "box", "leaf", "ring")
    found = np.array([CLASSES.index(name) for name in source.classes])[source.split("train").mask(0)]
    for value in range(len(CLASSES)):
        true, read = mask == value, found == value
        assert (true & read).sum() / (true | read).sum() > 0.95
    share = (found != mask).mean()
    said = "outlines are within 1 pixel, and 0 regions under 0.01% of their image are left out"
    assert str(outlines) == f"{said}: {share:.2%} of pixels differ"


def test_a_background_in_a_hole_is_a_polygon_and_the_one_around_is_none(mask) -> None:
    shapes, _ = polygons(mask, CLASSES)
    assert [shape.label for shape in shapes] == ["ring", "_background_", "box", "leaf", "ring", "leaf"]


def test_without_a_background_every_class_is_drawn(mask) -> None:
    shapes, _ = polygons(mask, ("sky", *CLASSES[1:]))
    assert [shape.label for shape in shapes].count("sky") == 2


def test_specks_are_left_out_and_thin_lines_are_not(mask) -> None:
    mask[200, 200:300], mask[230, 10] = 3, 3
    shapes, specks = polygons(mask, CLASSES)
    assert specks == 1
    assert any(all(y == 200 for _, y in shape.points) for shape in shapes)
