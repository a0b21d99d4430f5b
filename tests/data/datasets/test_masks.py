"""Masks come out as class indices, and a tree whose masks don't fit is named in one line."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from commands import refused
from image_files import grid, painted, save
from regard.data.datasets.base import Dataset, LabelDataset, MaskDataset
from regard.data.datasets.folders import ClassFolders, ImageFolder
from regard.data.datasets.masks import MaskFolder
from regard.data.datasets.scenes import Scenes
from regard.data.names import voc_palette


@pytest.fixture
def mask_tree(tmp_path):
    for i, name in enumerate(("a.jpg", "deep/b.png")):
        save(tmp_path / "images" / name)
        save((tmp_path / "masks" / name).with_suffix(".png"), grid(i, 1, 255, 0))
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    return tmp_path


def test_a_mask_has_the_stem_of_its_image(mask_tree):
    data = MaskFolder(mask_tree)
    assert data.classes == ("sky", "road")
    assert data.palette.tolist() == [[0, 0, 0], [128, 0, 0]]
    assert [data.name(i) for i in range(len(data))] == ["images/a.jpg", "images/deep/b.png"]
    assert data.mask(1)[0].tolist() == [1, 1, 255, 0, 0, 0]
    assert data.mask(1).shape == data.image(1).shape[:2]


def test_the_mask_of_a_turned_image_is_upright(mask_tree):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    save(mask_tree / "images/a.jpg", exif=exif)
    refused(lambda: MaskFolder(mask_tree).mask(0), "a.png", "6x4", "4x6")
    save(mask_tree / "masks/a.png", grid(1, 0, size=(4, 6)))
    data = MaskFolder(mask_tree)
    assert data.mask(0).shape == data.image(0).shape[:2] == (6, 4)


def test_a_mask_with_an_unknown_value_is_named(mask_tree):
    save(mask_tree / "masks/a.png", grid(0, 1, 2, 7, 255, 0))
    refused(lambda: MaskFolder(mask_tree).mask(0), str(mask_tree / "masks/a.png"), "values 2, 7:", "0 to 1")


def test_missing_masks_may_be_left_to_be_named_one_by_one(mask_tree):
    (mask_tree / "masks/a.png").unlink()  # the first, whose palette is looked at
    data = MaskFolder(mask_tree, missing_ok=True)
    assert [data.name(i) for i in range(len(data))] == ["images/a.jpg", "images/deep/b.png"]
    assert data.mask(1)[0].tolist() == [1, 1, 255, 0, 0, 0]
    refused(lambda: data.mask(0), str(mask_tree / "images/a.jpg"), "has no mask: a PNG at masks/a.png would work")


@pytest.mark.parametrize("named", [True, False])
def test_a_broken_mask_keeps_no_tree_from_being_opened(mask_tree, named):
    (mask_tree / "masks/a.png").write_bytes(b"no mask")
    if not named:
        (mask_tree / "classes.txt").unlink()
    data = MaskFolder(mask_tree)
    assert data.classes == (("sky", "road") if named else ("class 0", "class 1"))
    assert (data.palette == voc_palette(2)).all()
    assert data.mask(1)[0].tolist() == [1, 1, 255, 0, 0, 0]
    refused(lambda: data.mask(0), str(mask_tree / "masks/a.png"), "can't be read")


def test_classes_are_not_counted_where_no_mask_can_be_read(mask_tree):
    (mask_tree / "classes.txt").unlink()
    for name in ("a.png", "deep/b.png"):
        (mask_tree / "masks" / name).write_bytes(b"no mask")
    refused(lambda: MaskFolder(mask_tree), str(mask_tree / "masks/a.png"), "can't be read")


def test_class_names_are_inferred_from_the_largest_value(mask_tree):
    (mask_tree / "classes.txt").unlink()
    save(mask_tree / "masks/a.png", grid(3, 255, 0))
    assert MaskFolder(mask_tree).classes == ("class 0", "class 1", "class 2", "class 3")


def test_objects_drawn_in_white_are_refused_rather_than_void(mask_tree):
    (mask_tree / "classes.txt").unlink()
    for name in ("a.png", "deep/b.png"):
        save(mask_tree / "masks" / name, grid(255, 0))
    refused(lambda: MaskFolder(mask_tree), str(mask_tree / "masks"), "0 and 255", "objects as 1")


@pytest.mark.parametrize("text", ["", "sky\n\nroad", "\n".join("c" * 256)])
def test_class_names_that_make_no_sense_are_refused(mask_tree, text):
    (mask_tree / "classes.txt").write_text(text)
    refused(lambda: MaskFolder(mask_tree), "classes.txt", "one a line")


ROAD, TREE, BLACK = (128, 64, 128), (0, 128, 0), (0, 0, 0)
CLASSES = [
    {"name": "road", "color": [128, 64, 128]},
    {"name": "tree", "color": "#008000"},
    {"name": "void", "color": [0, 0, 0]},
    {"name": "road", "color": "#ffffff"},  # a second colour of the first class
]


def colored_tree(root: Path, entries, *masks: Image.Image, suffix: str = "png") -> MaskFolder:
    """An images/ + masks/ tree with a classes.json of `entries`."""
    for i, mask in enumerate(masks):
        save(root / f"images/{i}.png", size=mask.size)
        (root / "masks").mkdir(exist_ok=True)
        mask.save(root / f"masks/{i}.{suffix}")
    (root / "classes.json").write_text(json.dumps(entries))
    return MaskFolder(root)


def test_masks_of_colours_become_indices(tmp_path):
    rgb = painted(TREE, ROAD, BLACK, (255, 255, 255), TREE)
    clear = painted((*ROAD, 0), (*TREE, 255), (*BLACK, 7))  # transparency is no part of a colour
    few = rgb.quantize(8)  # indices in an order of its own
    grey = Image.fromarray(np.full((4, 6), 255, np.uint8))
    data = colored_tree(tmp_path, CLASSES, rgb, clear, few, grey)
    assert data.classes == ("road", "tree")
    assert data.palette.tolist() == [list(ROAD), list(TREE)]
    assert data.mask(0)[0].tolist() == data.mask(2)[0].tolist() == [1, 0, 255, 0, 1, 1]
    assert data.mask(0).dtype == np.uint8
    assert data.mask(1)[0].tolist() == [0, 1, 255, 255, 255, 255]
    assert (data.mask(3) == 0).all()
    assert (pickle.loads(pickle.dumps(data)).mask(0) == data.mask(0)).all()


def test_an_indexed_mask_with_a_transparent_entry_is_read_by_its_colours(tmp_path):
    mask = painted(TREE, ROAD, BLACK).quantize(8)
    mask.info["transparency"] = bytes([0, 128, 255])
    data = colored_tree(tmp_path, CLASSES, mask)
    assert data.mask(0)[0].tolist()[:3] == [1, 0, 255]


def test_colours_that_no_class_has_are_counted_and_named(tmp_path):
    data = colored_tree(tmp_path, CLASSES, painted((1, 2, 3), (1, 2, 4), (1, 2, 4), ROAD))
    refused(
        lambda: data.mask(0),
        str(tmp_path / "masks/0.png"),
        "3 pixels of 2 colours",
        "(#010204, #010203)",
        "classes.json would work",
    )


def test_masks_with_colours_and_values_may_be_either(tmp_path):
    entries = [
        {"name": "road", "color": "#804080", "value": 7},
        {"name": "tree", "color": "#008000", "value": 21},
        {"name": "void", "color": "#000000", "value": 0},
    ]
    values = np.zeros((4, 6), np.uint8)
    values[0] = [7, 21, 0, 255, 7, 7]
    indices = Image.fromarray(values).convert("P")
    data = colored_tree(tmp_path, entries, painted(ROAD, TREE, BLACK), Image.fromarray(values), indices)
    assert data.mask(0)[0].tolist()[:3] == [0, 1, 255]
    assert data.mask(1)[0].tolist() == data.mask(2)[0].tolist() == [0, 1, 255, 255, 0, 0]
    values[0, 0] = 8
    Image.fromarray(values).save(tmp_path / "masks/1.png")
    refused(lambda: data.mask(1), "values 8: 7 to 21, with gaps, for the 2 classes, and 0 or 255 for void")


def test_values_without_colours_name_the_classes_of_sparse_masks(tmp_path):
    entries = [{"name": "road", "value": 7}, {"name": "tree", "value": 21}]
    data = colored_tree(tmp_path, entries, Image.fromarray(np.full((4, 6), 21, np.uint8)), painted(ROAD))
    assert (data.classes, data.mask(0)[0, 0]) == (("road", "tree"), 1)
    refused(lambda: data.mask(1), "coloured mask")


def test_coloured_masks_without_colours_say_where_these_belong(mask_tree):
    painted(ROAD).save(mask_tree / "masks/a.png")
    refused(lambda: MaskFolder(mask_tree).mask(0), "a.png", "coloured mask", "classes.json")


def test_the_palette_of_indexed_masks_is_that_of_their_classes(mask_tree):
    mask = Image.fromarray(np.array([[0, 1, 1, 0, 0, 0]] * 4, np.uint8)).convert("P")
    mask.putpalette(bytes([*ROAD, *TREE, *BLACK]))
    mask.save(mask_tree / "masks/a.png")
    data = MaskFolder(mask_tree)
    assert data.palette.tolist() == [list(ROAD), list(TREE)]
    assert data.mask(0)[0].tolist() == [0, 1, 1, 0, 0, 0]
    (mask_tree / "classes.txt").write_text("sky\nroad\ntree\nsea\n")  # more than the palette has colours
    assert (MaskFolder(mask_tree).palette == voc_palette(4)).all()


@pytest.mark.parametrize("palette", [[*ROAD, *ROAD], [0, 0, 0, 1, 1, 1]])
def test_a_palette_that_nobody_chose_is_not_taken(mask_tree, palette):
    mask = Image.fromarray(np.array([[0, 1, 0, 0, 0, 0]] * 4, np.uint8)).convert("P")
    mask.putpalette(bytes(palette))
    mask.save(mask_tree / "masks/a.png")
    assert (MaskFolder(mask_tree).palette == voc_palette(2)).all()


def test_datasets_offer_one_interface(tmp_path, mask_tree):
    save(tmp_path / "classes/a/1.png")
    images, labelled = ImageFolder(mask_tree), ClassFolders(tmp_path / "classes")
    masked = [MaskFolder(mask_tree), Scenes(2)]
    assert all(isinstance(data, Dataset) for data in (images, labelled, *masked))
    assert all(isinstance(data, MaskDataset) for data in masked)
    assert isinstance(labelled, LabelDataset)
    assert not isinstance(images, MaskDataset | LabelDataset)
    for data in (images, labelled, *masked):
        assert data.palette.shape == (len(data.classes), 3)
        assert data.ignore_index == 255
