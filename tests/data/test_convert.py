"""What has masks, in whatever layout, becomes images/ + masks/ that hold the same, or nothing is there."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regard.cli import main
from regard.data import convert as converting
from regard.data.listing import HELD_OUT
from regard.data.packs.packing import pack
from regard.data.source import open_source, require_masks
from regard.errors import InputError
from regard.settings import Values
from trees import files, mask_tree, save

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def photos(root: Path, *names: str, **options) -> None:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS + np.uint8(number)).save(root / name, **options)


def drawn(root: Path, *names: str) -> None:
    """Photos with JSONs of LabelMe."""
    photos(root, *names)
    shape = {"label": "cat", "points": [[2, 3], [9, 3], [9, 8]]}
    for name in names:
        (root / name).with_suffix(".json").write_text(json.dumps({"shapes": [shape], "imagePath": Path(name).name}))


def labelme(root: Path) -> list[str]:
    names = [f"cam {n}/a.jpg" for n in range(5)]
    drawn(root / "photos", *names)
    photos(root, "photos/later.jpg")
    return [*names, "later.jpg"]


def voc(root: Path) -> list[str]:
    photos(root / "VOC2012/JPEGImages", "a.jpg", "b.jpg")
    for name, values in (("a", (0, 1, 20, 255)), ("b", (5, 5, 5, 5))):
        save(root / f"VOC2012/SegmentationClass/{name}.png", np.resize(np.array(values, np.uint8), (20, 30)))
    for split, name in (("train", "a"), ("val", "b")):
        (root / "VOC2012/ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        (root / f"VOC2012/ImageSets/Segmentation/{split}.txt").write_text(f"{name}\n")
    return ["a.jpg", "b.jpg"]


def camvid(root: Path) -> list[str]:
    for split, name in (("train", "0001TP_006690"), ("val", "0016E5_07959")):
        photos(root, f"{split}/{name}.png")
        save(root / f"{split}annot/{name}.png", np.resize(np.array([0, 4, 10, 11], np.uint8), (20, 30)))
    return ["0001TP_006690.png", "0016E5_07959.png"]


def coco(root: Path) -> list[str]:
    exif = Image.Exif()
    exif[0x0112] = 6  # as a phone writes it: 30 x 20 pixels, upright 20 x 30
    photos(root, "train2017/1.jpg", "val2017/1.jpg", exif=exif)
    for split in ("train", "val"):
        image = {"id": 1, "file_name": "1.jpg", "width": 20, "height": 30}
        outline = {"image_id": 1, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 25]]}
        written = {"images": [image], "annotations": [outline], "categories": [{"id": 1, "name": "cat"}]}
        (root / f"instances_{split}2017.json").write_text(json.dumps(written))
    return ["1.jpg", "1.jpg"]


def packed(root: Path) -> list[str]:
    pack(open_source(mask_tree(root.parent / "tree", train=3, val=2)), root)
    return ["0.png", "1.png", "2.png", "0.png", "1.png"]


@pytest.mark.parametrize("make", [labelme, voc, camvid, coco, packed])
def test_the_same_images_masks_and_classes_come_back(make: Callable[[Path], list[str]], tmp_path, capsys) -> None:
    names, to = make(tmp_path / "data"), tmp_path / "new/made"
    main(["data", "convert", str(tmp_path / "data"), str(to)])
    before, after = open_source(tmp_path / "data"), open_source(to)
    masks = sum(len(of) for of in before.splits.values())
    assert f"{len(names)} images and {masks} masks in {to}: regard segment --data {to} ..." in capsys.readouterr().out
    assert (after.layout, after.classes) == ("masks", before.classes)
    assert after.palette.tolist() == before.palette.tolist()
    found = [path.split("/", 1)[1] for path in files(to / "images")]
    assert sorted(found) == sorted(names)
    assert after.held_out == before.held_out  # and where it is, val is another fifth, as paths are others
    for split in {"train", "val"} - set(before.given_to_learn):
        assert len(after.split(split)) == len(before.split(split))
    once = {same.image(i).tobytes(): same.mask(i) for same in require_masks(after).values() for i in range(len(same))}
    assert sum(len(of) for of in after.splits.values()) == masks
    for dataset in require_masks(before).values():
        for i in range(len(dataset)):
            np.testing.assert_array_equal(once[dataset.image(i).tobytes()], dataset.mask(i))
    assert sorted(path.name for path in tmp_path.iterdir()) in (["data", "new"], ["data", "new", "tree"])


def test_only_the_owners_own_splits_are_written(tmp_path) -> None:
    names = labelme(tmp_path / "data")
    assert open_source(tmp_path / "data").held_out
    converting.convert(open_source(tmp_path / "data"), tmp_path / "made")
    assert files(tmp_path / "made/images") == sorted(f"train/{name}" for name in names)
    assert HELD_OUT in open_source(tmp_path / "made").describe()


def test_what_is_chosen_of_images_is_written(tmp_path) -> None:
    values = np.arange(600, dtype=np.uint16).reshape(20, 30)
    for split in ("train", "val"):
        save(tmp_path / f"data/images/{split}/a.png", values)
        save(tmp_path / f"data/masks/{split}/a.png", (values % 2).astype(np.uint8))
    converting.convert(open_source(tmp_path / "data").read_as(Values(range="0,255")), tmp_path / "made")
    made = open_source(tmp_path / "made").split("train").image(0)
    np.testing.assert_array_equal(made[..., 0], np.minimum(values, 255))


def test_image_files_are_copied_as_they_are_and_scenes_drawn(tmp_path) -> None:
    voc(tmp_path / "data")
    main(["data", "convert", str(tmp_path / "data"), str(tmp_path / "made")])
    one, two = (tmp_path / name / "a.jpg" for name in ("data/VOC2012/JPEGImages", "made/images/train"))
    assert one.read_bytes() == two.read_bytes()
    source = open_source("scenes", scenes_size=32, scenes_count={"train": 2, "val": 1})
    assert converting.convert(source, tmp_path / "drawn") == (3, 3)
    assert files(tmp_path / "drawn/images") == ["train/00000.png", "train/00001.png", "val/00000.png"]


def broken(root: Path) -> None:
    (root / "VOC2012/SegmentationClass/b.png").write_bytes(b"broken")


def without_masks(root: Path) -> None:
    for path in sorted((root / "VOC2012").rglob("*.png")):
        path.rename(root / f"{path.stem}.png")
    (root / "VOC2012/SegmentationClass").rmdir()


@pytest.mark.parametrize(
    ("spoil", "to", "said"),
    [
        (broken, "made", "SegmentationClass/b.png can't be read"),
        (broken, "far/away/made", "SegmentationClass/b.png can't be read"),
        (lambda root: None, "data/VOC2012/made", "is within .*VOC2012, which it is to be made of"),
        (lambda root: None, "data", "is there already: a folder that is not would work"),
        (without_masks, "made", "has no masks: segmentation needs"),
    ],
)
def test_where_anything_is_wrong_nothing_is_there(spoil, to, said, tmp_path) -> None:
    voc(tmp_path / "data")
    spoil(tmp_path / "data")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=said):
        converting.convert(open_source(tmp_path / "data/VOC2012" if to == "data" else tmp_path / "data"), tmp_path / to)
    assert sorted(tmp_path.rglob("*")) == before


def test_names_that_only_differ_in_their_folders_keep_these(tmp_path) -> None:
    names = ["train/1.jpg", "train/images/1.jpg", "val/1.jpg"]
    drawn(tmp_path / "data", *names)
    assert converting.convert(open_source(tmp_path / "data"), tmp_path / "made") == (3, 3)
    assert files(tmp_path / "made/images") == [f"{name.split('/')[0]}/{name}" for name in names]
    source = open_source(tmp_path / "made")
    assert {split: len(of) for split, of in source.splits.items()} == {"train": 2, "val": 1}


@pytest.mark.parametrize(
    ("names", "classes", "said"),
    [
        (["../../a.png", "b.png"], ("cat",), "has an image called ../../a, which leads elsewhere"),
        (["/a.png", "b.png"], ("cat",), "has an image called /a, which leads elsewhere"),
        (["a.png", "A.jpg"], ("cat",), "has a.png and A.jpg, whose masks would have one name: other names would work"),
        (["a.png", "b.png"], ("cat\ndog",), r"'cat\\ndog' can't be a line of classes.txt"),
        (["a.png", "b.png"], (" ",), "' ' can't be a line of classes.txt"),
    ],
)
def test_names_that_a_tree_cannot_have_are_one_line(names, classes, said, tmp_path, monkeypatch) -> None:
    source = open_source("scenes", scenes_size=32, scenes_count={"train": 2})
    train = source.split("train")
    monkeypatch.setattr(type(train), "name", lambda _, i: names[i])
    monkeypatch.setattr(type(train), "classes", classes)
    with pytest.raises(InputError, match=said):
        converting.convert(source, tmp_path / "made")
    assert not any(tmp_path.iterdir())
