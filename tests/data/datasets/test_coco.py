"""COCO's JSONs, in the layouts of those who write them: which image is meant, which classes, which pixels."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as runs
from pycocotools.coco import COCO

from commands import fails
from regard.cli import main
from regard.data.check import check
from regard.data.source import open_source
from regard.errors import InputError
from trees import save

SIZE = (40, 60)  # height, width
SQUARE = [2.0, 3.0, 6.0, 3.0, 6.0, 7.0, 2.0, 7.0]  # columns 2 to 5, rows 3 to 6
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat", "supercategory": "animal"}]


def some(outline=(SQUARE,), category: int = 3, image: int = 1, **more) -> dict:
    return {"id": 5, "image_id": image, "category_id": category, "segmentation": outline, "iscrowd": 0, **more}


def coco(path: Path, names: list[str], annotations: list[dict], categories=CATEGORIES, **image) -> Path:
    """A JSON that names images from id 1 on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [
        {"id": n, "file_name": name, "height": SIZE[0], "width": SIZE[1], **image} for n, name in enumerate(names, 1)
    ]
    written = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(written))
    return path


def photo(path: Path, size=SIZE) -> None:
    save(path, np.full((*size, 3), sum(path.name.encode()) % 256, np.uint8))


def mask_of(root: Path, name: str = "a.png") -> np.ndarray:
    for dataset in open_source(root).splits.values():
        for i in range(len(dataset)):
            if dataset.name(i) == name:
                return dataset.mask(i)  # pyright: ignore[reportAttributeAccessIssue]
    raise AssertionError(name)


def test_the_tree_of_coco_itself(tmp_path, capsys) -> None:
    for split, names in (("train", "ab"), ("val", "c"), ("test", "d")):
        for name in names:
            photo(tmp_path / f"{split}2017/{name}.jpg")
    coco(tmp_path / "annotations/instances_train2017.json", ["a.jpg", "b.jpg"], [some(), some(category=7, image=2)])
    coco(tmp_path / "annotations/instances_val2017.json", ["c.jpg"], [some()])
    for kind in ("captions", "person_keypoints"):
        coco(tmp_path / f"annotations/{kind}_train2017.json", ["a.jpg"], [some()], [{"id": 1, "name": "other"}])
    source = open_source(tmp_path)
    assert (source.layout, source.classes) == ("coco", ("background", "cat", "dog"))
    assert {split: [of.name(i) for i in range(len(of))] for split, of in source.splits.items()} == {
        "train": ["train2017/a.jpg", "train2017/b.jpg"], "val": ["val2017/c.jpg"],
    }  # fmt: skip
    main(["data", "check", str(tmp_path)])
    main(["data", "info", str(tmp_path)])
    assert "nothing is wrong with the 3 pairs of COCO JSON folder" in capsys.readouterr().out


def test_the_tree_of_roboflow_whose_first_category_is_the_name_of_a_group(tmp_path) -> None:
    categories = [{"id": 0, "name": "pets", "supercategory": "none"}, {"id": 1, "name": "cat", "supercategory": "pets"}]
    for split in ("train", "valid", "test"):
        photo(tmp_path / split / "0.jpg")
        coco(tmp_path / split / "_annotations.coco.json", ["0.jpg"], [some(category=1)], categories)
    source = open_source(tmp_path)
    assert {split: len(of) for split, of in source.splits.items()} == {"train": 1, "val": 1, "test": 1}
    assert source.classes == ("background", "cat")
    assert "pets is no class, but the name of a group of classes" in source.notes


def test_masks_are_those_of_coco_s_own_tools(tmp_path) -> None:
    random = np.random.default_rng(0)
    blob = np.asfortranarray((random.random(SIZE) > 0.8).astype(np.uint8))
    blob[:20] = 0
    text = runs.encode(blob)["counts"].decode()
    flat = np.diff(np.flatnonzero(np.diff(blob.ravel("F"), prepend=0, append=1)), prepend=0)
    polygons = [(random.random(10) * 70 - 5).round(2).tolist() for _ in range(4)]
    outlines = [*([one] for one in polygons), [SQUARE, [30, 30, 40.2, 30, 35, 38]]]
    outlines += [{"counts": text, "size": list(SIZE)}, {"counts": flat.tolist(), "size": list(SIZE)}]
    photo(tmp_path / "a.png")
    annotations = [some(one, (3, 7)[n % 2], id=n, area=1, bbox=[0, 0, 1, 1]) for n, one in enumerate(outlines)]
    file = coco(tmp_path / "all.json", ["a.png"], annotations)
    theirs = COCO(str(file))
    drawn = [(theirs.annToMask(one).astype(bool), 1 + (one["category_id"] == 7)) for one in annotations]
    expected = np.zeros(SIZE, np.uint8)
    for inside, value in sorted(drawn, key=lambda one: -one[0].sum()):
        expected[inside] = value
    np.testing.assert_array_equal(mask_of(tmp_path), expected)


def test_small_instances_stay_visible_and_crowds_and_boxes_are_void_below_them(tmp_path) -> None:
    whole = [0, 0, 60, 0, 60, 40, 0, 40]
    crowd = some({"counts": [0, 2400], "size": list(SIZE)}, 7, iscrowd=1)
    box = some([], 3, bbox=[20, 20, 10, 5])
    lone = some([], 3, bbox=None)
    photo(tmp_path / "a.png")
    coco(tmp_path / "a1.json", ["a.png"], [some(), some([whole], 7), crowd, box, lone])
    expected = np.full(SIZE, 2, np.uint8)
    expected[3:7, 2:6] = 1
    np.testing.assert_array_equal(mask_of(tmp_path), expected)
    said = ("1 crowds are void", "1 boxes have no outline, and are void")
    assert {*said, "1 annotations have neither outline nor box, and are ignored"} <= {*open_source(tmp_path).notes}
    coco(tmp_path / "a1.json", ["a.png"], [some(), box])
    assert mask_of(tmp_path)[20:25, 20:30].min() == 255
    coco(tmp_path / "a1.json", ["a.png"], [some(), crowd])
    assert (mask_of(tmp_path) == 1).sum() == 16


@pytest.mark.parametrize(
    ("names", "there"),
    [
        (["a.png", "b.png"], ["data/a.png", "data/b.png"]),
        (["C:\\old\\train\\a.png", "C:\\old\\val\\a.png"], ["images/train/a.png", "images/val/a.png"]),
        (["/home/me/x/a.png", "/home/me/y/a.png"], ["x/a.png", "y/a.png"]),
        (["./img/a.png", "img/b.png"], ["a.png", "b.png"]),
        (["COCO_train_1.jpg", "COCO_val_1.jpg"], ["train2014/COCO_train_1.jpg", "val2014/COCO_val_1.jpg"]),
        (["a.png", "b.png"], ["images/a.png", "images/b.png", "thumbs/a.png"]),
    ],
)  # fmt: skip
def test_images_are_found_where_they_are_now(names, there, tmp_path) -> None:
    for path in there:
        photo(tmp_path / path)
    coco(tmp_path / "annotations/all.json", names, [some(image=1), some(image=2, category=7)])
    for path, value in zip(there[:2], (1, 2), strict=True):
        assert mask_of(tmp_path, path).max() == value


def test_an_image_that_is_missing_is_not_taken_from_elsewhere(tmp_path) -> None:
    for path in ("x/0.png", "x/1.png", "y/1.png", "y/2.png", "val/3.png"):
        photo(tmp_path / path)
    coco(
        tmp_path / "train.json", ["x/0.png", "x/1.png", "x/2.png", "y/0.png", "3.png"], [some(image=2), some(image=99)]
    )
    coco(tmp_path / "instances_of_others.json", ["z.png"], [some()]).rename(tmp_path / "val.json")
    source = open_source(tmp_path)
    assert sorted(of.name(0) for of in source.splits.values()) == ["x/0.png", "x/1.png"]
    assert "3 images that are named are not there, such as train.json: x/2.png" in source.notes
    assert "val.json is left out, as none of its images is there" in source.notes
    assert "1 annotations are of no image of their JSON, and ignored" in source.notes
    assert "1 images have no annotation: background" in source.notes
    assert [one.name for one in check(str(tmp_path)).problems] == [f"train.json: {n}.png" for n in ("3", "x/2", "y/0")]


def spoil_size(root: Path) -> None:
    coco(root / "all.json", ["a.png"], [some()], height=SIZE[1], width=SIZE[0])


def twofold(root: Path) -> None:
    photo(root / "b/a.png")
    (root / "c").mkdir()
    (root / "a.png").rename(root / "c/a.png")


def another(root: Path, name: str, **more) -> None:
    photo(root / "b.png")
    coco(root / "b1.json", [name], [some()], **more)


def again(root: Path, *annotations: dict, **more) -> None:
    coco(root / "all.json", ["a.png"], list(annotations), **more)


def runs_of(counts, size=SIZE) -> dict:
    return {"counts": counts, "size": list(size)}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: (root / "a.png").rename(root / "z.png"), "names 1 images, such as a.png, and none is there"),
        (lambda root: again(root, some(category=4)), "annotation 5 is of category 4, which is not among its categ"),
        (lambda root: another(root, "a.png"), "has two entries of a.png, in all.json and b1.json: one"),
        (lambda root: coco(root / "all.json", ["a.png"] * 2, [some()]), "has 'a.png' twice among its im"),
        (lambda root: another(root, "b.png", categories=[{"id": 3, "name": "cow"}]), "calls category 3 'cow', and"),
        (lambda root: again(root, some(), categories=[{"id": n, "name": f"{n}"} for n in range(255)]), "255 classes"),
        (lambda root: again(root, some(), categories=[{"id": 3, "name": " "}]), "has a class without a name"),
        (lambda root: (root / "all.json").write_text('{"images": [], "annotations": ['), "all.json is no whole JSON"),
        (lambda root: again(root, {**some(), "segmentation": float("nan")}), "all.json is no whole JSON"),
        (lambda root: again(root, {**some(), "image_id": None}), r"no JSON of COCO: .* at `\$.annotations\[0\].im"),
        (twofold, "names images of (b/ and c|c/ and b)/: their folders in its file names would work"),
        (spoil_size, "all.json: a.png: it was drawn on 40x60, as before its EXIF turns it, and is 60x40"),
        (lambda root: again(root, some(), height=20), "it was drawn on 60x20, and is 60x40"),
        (lambda root: again(root, some([SQUARE[:4]])), "annotation 5: a polygon of 4 numbers"),
        (lambda root: again(root, some([[*SQUARE, 1e9, 1]])), r"a point at \(1e\+09, 1\): one in the photo would work"),
        (lambda root: again(root, some([[-3e4, -3e4, 3e4, 3e4] * 99])), "an outline of over 2,097,152 pixels"),
        (lambda root: again(root, some("abc")), "got `str` - at .*: lists of x, y, ..., or runs with counts"),
        (lambda root: again(root, some(runs_of([0, 99], (9, 11)))), r"runs of 11x9 at \(0, 0\) in an image of 60x40"),
        (lambda root: again(root, some(runs_of([10, 2400]))), "its runs are not of 2,400 pixels: counts of COCO"),
        (lambda root: again(root, some(runs_of([10, -5, 2395]))), "its runs are not of 2,400 pixels"),
        (lambda root: again(root, some(runs_of("00"))), "its runs are not of 2,400 pixels"),  # too few
        (lambda root: again(root, some(runs_of("oooooooo"))), "its runs are not of 2,400 pixels"),  # too many
        (lambda root: again(root, some(runs_of([0, 10**12], (10**6, 10**6)))), "runs of 1000000x1000000 at"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(spoil, said, tmp_path) -> None:
    photo(tmp_path / "a.png")
    coco(tmp_path / "all.json", ["a.png"], [some()])
    spoil(tmp_path)
    with pytest.raises(InputError, match=said) as error:
        mask_of(tmp_path)
    assert len(str(error.value).splitlines()) == 1


def test_what_classes_are_called(tmp_path) -> None:
    photo(tmp_path / "a.png")
    named = ("Void", "cat", "background", " big\n cat", "cat")
    categories = [{"id": number, "name": name} for number, name in enumerate(named)]
    outlines = [[[x, 0, x + 9, 0, x + 9, 40, x, 40]] for x in range(0, 50, 10)]
    again(tmp_path, *(some(outline, number) for number, outline in enumerate(outlines)), categories=categories)
    assert open_source(tmp_path).classes == ("background", "cat", "big cat")
    assert mask_of(tmp_path)[0, 4::10].tolist() == [255, 1, 0, 2, 1, 0]


def test_brackets_within_brackets_are_one_line(tmp_path) -> None:
    photo(tmp_path / "a.png")
    deep = '"images": ' + "[" * 1_000_000
    (tmp_path / "b.json").write_text(f'{{"annotations": [], "categories": [], {deep}')
    with pytest.raises(InputError, match="too deep to be read"):
        open_source(tmp_path)


def test_jsons_without_outlines_leave_images_to_pretrain_on(tmp_path, capsys) -> None:
    photo(tmp_path / "a.png")
    coco(tmp_path / "all.json", ["a.png"], [some([], bbox=[1, 1, 5, 5])])
    (tmp_path / "panoptic.json").write_text('{"images": [], "annotations": [{"segments_info": []}], "categories": []}')
    assert open_source(tmp_path).layout == "images"
    said = capsys.readouterr()
    assert "all.json holds no outlines, so its images have no masks" in (said.out + said.err).replace("\n", "")
    main(["data", "info", str(tmp_path)])
    said = fails(capsys, "data", "check", str(tmp_path))
    assert said.startswith("regard data check: all.json holds no outlines, so its images have no masks: polygons or")


def test_images_without_annotations_are_counted_by_check(tmp_path, capsys) -> None:
    for name in "abc":
        photo(tmp_path / f"{name}.png")
    coco(tmp_path / "all.json", ["a.png", "b.png", "c.png"], [some()])
    main(["data", "check", str(tmp_path)])
    assert "2 images have no annotation: background" in capsys.readouterr().out
    (tmp_path / "b.png").write_bytes(b"broken")
    with pytest.raises(SystemExit):
        main(["data", "check", str(tmp_path)])
    assert "2 images have no annotation: background" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["all.json", "annotations/instances.json"])
def test_masks_count_more_than_a_json_beside_them_and_that_is_said(place, tmp_path, capsys) -> None:
    for name in "ab":
        photo(tmp_path / f"images/{name}.png")
        save(tmp_path / f"masks/{name}.png", np.ones(SIZE, np.uint8))
    coco(tmp_path / place, ["a.png"], [some()])
    (tmp_path / "other.json").write_text('{"images": []}')
    assert open_source(tmp_path).layout == "masks"
    said = " ".join(capsys.readouterr().err.split())
    assert f"has masks, such as masks/a.png, and {place}: the masks are read" in said


def test_two_kinds_of_annotations_are_refused(tmp_path) -> None:
    photo(tmp_path / "a.png")
    coco(tmp_path / "all.json", ["a.png"], [some()], [{"id": 3, "name": "shapes"}])
    assert open_source(tmp_path).classes == ("background", "shapes")  # which LabelMe's JSONs hold, too
    shape = {"label": "cat", "points": [[1, 1], [5, 1], [5, 5]]}
    (tmp_path / "a.json").write_text(json.dumps({"shapes": [shape], "imagePath": "a.png"}))
    said = "has a JSON of COCO, such as all.json and JSONs of LabelMe, such as a.json: one kind would work"
    with pytest.raises(InputError, match=said):
        open_source(tmp_path)
