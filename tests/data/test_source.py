"""What a path holds is recognised and said; what can't be used gets one line that says what would work."""

import dataclasses
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands import refused
from image_files import grid, save
from regard.data.listing import hold_out
from regard.data.source import Source, check_readable, fingerprint, open_source, require_masks
from regard.errors import InputError

CAMVID = Path(__file__).parents[2].parent / "shared/data/camvid"


def write(root: Path, *names: str, value: int | None = None) -> Path:
    """Small images, or masks of one value."""
    for name in names:
        save(root / name, (0, 0, 0) if value is None else grid(value))
    return root


def counts(source: Source) -> dict[str, int]:
    return {split: len(data) for split, data in source.splits.items()}


# ---- what is recognised


def test_scenes():
    source = open_source("scenes")
    assert (source.layout, source.root) == ("scenes", "scenes")
    assert counts(source) == {"train": 512, "val": 128, "test": 128}
    assert source.describe().startswith("built-in scenes: 512 train, 128 val, 128 test images; 9 classes (background,")
    many = open_source("objects:9000", scenes_size=32)
    assert (many.root, [len(of) for of in many.splits.values()]) == ("objects:9000", [9000, 128, 128])
    assert many.has_labels
    assert not many.has_masks
    for wrong in ("scenes:", "scenes:0", "objects:many", "scenes:1e3"):
        refused(lambda wrong=wrong: open_source(wrong), "1 to 1,000,000,000")
    small = open_source("scenes", scenes_size=32, scenes_count={"train": 3, "val": 2}, seed=1)
    assert counts(small) == {"train": 3, "val": 2}
    assert small.splits["val"].image(0).shape == (32, 32, 3)
    assert (small.splits["val"].image(0) != open_source("scenes", scenes_size=32).splits["val"].image(0)).any()


@pytest.mark.parametrize("names", [("train", "val", "test"), ("training", "validation", "testing")])
def test_masks_with_splits(tmp_path, names):
    for count, split in enumerate(names, start=1):
        files = [f"{split}/{i}" for i in range(count)]
        write(tmp_path / "images", *(f"{file}.jpg" for file in files))
        write(tmp_path / "masks", *(f"{file}.png" for file in files), value=count)
    source = open_source(tmp_path)
    assert counts(source) == {"train": 1, "val": 2, "test": 3}
    assert source.layout == "masks"
    assert source.has_masks
    assert not source.has_labels
    assert source.classes == ("class 0", "class 1", "class 2", "class 3")
    assert source.splits["train"].classes == source.splits["test"].classes
    assert "no classes.txt" in source.describe()
    assert require_masks(source)["test"].mask(0).max() == 3


def test_masks_without_splits_hold_out_a_fifth(tmp_path):
    write(tmp_path / "images", *(f"{i // 5}/{i:02}.jpg" for i in range(20)))
    write(tmp_path / "masks", *(f"{i // 5}/{i:02}.png" for i in range(22)), value=1)
    (tmp_path / "classes.txt").write_text("sky\nroad\ntree\ncar")
    source = open_source(tmp_path)
    assert counts(source) == {"train": 16, "val": 4}
    kept = {data.name(i) for data in source.splits.values() for i in range(len(data))}
    assert len(kept) == 20
    line = source.describe()
    assert f"images/ + masks/ tree at {tmp_path}: 16 train, 4 val images; 4 classes (sky, road, tree, ...)" in line
    assert "fixed fifth" in line
    assert "masks without an image, ignored: 2" in line


def test_a_tree_with_train_and_test_holds_out_val_from_train(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / "images" / split, *(f"{i}.jpg" for i in range(10)))
        write(tmp_path / "masks" / split, *(f"{i}.png" for i in range(10)), value=1)
    source = open_source(tmp_path)
    assert list(counts(source).items()) == [("train", 8), ("val", 2), ("test", 10)]
    assert source.splits["val"].name(0).startswith("images/train/")


@pytest.mark.parametrize("names", [("train", "val"), ("train", "valid", "test")])
def test_class_folders_with_splits(tmp_path, names):
    for split in names:
        write(tmp_path, f"{split}/cat/1.png", f"{split}/ant/2.png")
    source = open_source(tmp_path)
    assert (source.layout, source.classes) == ("class folders", ("ant", "cat"))
    assert counts(source) == dict.fromkeys(("train", "val", "test")[: len(names)], 2)
    assert source.has_labels
    assert not source.has_masks
    assert source.describe().endswith("images; 2 classes (ant, cat)")


def test_class_folders_without_splits(tmp_path):
    write(tmp_path, "bus/1.png", "car/2.png", "train/3.png")  # the vehicle
    source = open_source(tmp_path)
    assert (source.classes, counts(source)) == (("bus", "car", "train"), {"train": 3})


def test_a_split_without_class_folders_is_ignored_and_said(tmp_path):
    write(tmp_path, "train/a/1.png", "train/b/2.png", "test/3.png")
    source = open_source(tmp_path)
    assert counts(source) == {"train": 2}
    assert "test/ is ignored" in source.describe()


@pytest.mark.parametrize(
    "names",
    [
        ("1.png", "a/2.png", "b/3.png"),  # images beside the folders
        ("a/1.png", "a/b/2.png"),  # one folder
        ("a/x/1.png", "b/x/2.png"),  # no images directly in the folders
        ("a/1.png", "b/2.png", "c/d/3.png"),  # nor in all of them
        ("images/1.png", "images/deep/er/2.png"),  # images/ without masks/
    ],
)
def test_anything_else_is_a_plain_folder(tmp_path, names):
    source = open_source(write(tmp_path, *names))
    assert (source.layout, source.classes) == ("images", ())
    assert counts(source) == {"train": len(names)}
    assert [source.splits["train"].name(i) for i in range(len(names))] == sorted(names)
    assert source.describe() == f"plain image folder at {tmp_path}: {len(names)} train images"
    with pytest.raises(InputError, match=r"has no masks: .*--data scenes"):
        require_masks(source)


def test_flat_split_folders_are_splits_and_not_classes(tmp_path):
    source = open_source(write(tmp_path, "train/1.png", "train/2.png", "val/3.png"))
    assert (source.layout, counts(source)) == ("images", {"train": 2, "val": 1})


def test_pictures_beside_images_are_not_images(tmp_path):
    source = open_source(write(tmp_path, "images/1.jpg", "depth/1.png"))
    assert counts(source) == {"train": 1}


def test_a_path_may_be_relative_or_a_link(tmp_path, monkeypatch):
    write(tmp_path, "here/a/1.png", "scenes/2.png")
    (tmp_path / "link").symlink_to(tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    assert open_source("link").root == open_source(Path("here")).root == str(tmp_path / "here")
    assert open_source("./scenes").layout == "images"


def test_coloured_masks_and_their_classes(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / "images" / split, "1.jpg")
        (tmp_path / "masks" / split).mkdir(parents=True)
        Image.new("RGB", (6, 4), (250, 0, 0)).save(tmp_path / "masks" / split / "1.png")
    (tmp_path / "classes.json").write_text(
        '[{"name": "sky", "color": [0, 0, 250]}, {"name": "car", "color": [250, 0, 0]}]'
    )
    source = open_source(tmp_path)
    assert source.describe().endswith("1 train, 1 val images; 2 classes (sky, car)")
    assert source.palette.tolist() == [[0, 0, 250], [250, 0, 0]]
    assert (require_masks(source)["val"].mask(0) == 1).all()
    check_readable(source)
    (tmp_path / "classes.json").write_text('[{"name": "sky", "color": [0, 0, 250]}]')
    with pytest.raises(InputError, match=r"1\.png has 24 pixels of 1 colours that no class has \(#fa0000\)"):
        check_readable(open_source(tmp_path))


def test_a_source_changes_with_its_files_and_with_what_was_decided(tmp_path):
    write(tmp_path / "images", *(f"{i}.jpg" for i in range(10)))
    write(tmp_path / "masks", *(f"{i}.png" for i in range(10)), value=1)
    source, out = open_source(tmp_path), tmp_path / "out"
    before = fingerprint(source, out)
    write(tmp_path / "out", "1.png")
    assert fingerprint(open_source(tmp_path), out) == before
    for name in (".DS_Store", "images/Thumbs.db", "other/run.json", "other/2.png"):  # of systems, and of another run
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert fingerprint(open_source(tmp_path), out) == before
    assert fingerprint(dataclasses.replace(source, notes=("otherwise",)), out) != before
    write(tmp_path / "masks", "1.png", value=0)
    os.utime(tmp_path / "masks/1.png", (1, 1))
    assert fingerprint(source, out) != before


def test_files_whose_names_are_not_utf_8_count_like_others(tmp_path):
    odd = os.fsdecode(b"\xff.png")
    write(tmp_path, "1.png")
    before = fingerprint(open_source(tmp_path))
    try:
        (tmp_path / "1.png").rename(tmp_path / odd)
    except OSError:
        pytest.skip("this disk takes names in UTF-8 alone")
    source = open_source(tmp_path)
    assert fingerprint(source) != before
    noted = dataclasses.replace(source, notes=(f"{odd} is ignored",))
    assert fingerprint(noted) != fingerprint(source)


PAIRS = {  # the images of a tree and its masks, and what is said of it
    "train/images/1.png train/images/2.png val/images/3.png train/masks/1.png train/masks/2.png val/masks/3.png":
        "train/images/ + train/masks/ tree",
    "photos/1.jpg photos/2.jpg photos/3.jpg labels/1.png labels/2.png labels/3.png": "photos/ + labels/ tree",
    "img_dir/train/1.jpg img_dir/train/2.jpg img_dir/val/3.jpg "
    "ann_dir/train/1.png ann_dir/train/2.png ann_dir/val/3.png":
        "img_dir/ + ann_dir/ tree",
    "image/Train/1.jpg image/Train/2.jpg image/VAL/3.jpg mask/train/1.png mask/train/2.png mask/val/3.png":
        "image/ + mask/ tree",
    "train_images/1.jpg train_images/2.jpg val_images/3.jpg train_masks/1.png train_masks/2.png val_masks/3.png":
        "train_images/ + train_masks/ tree",
    "images/train2017/1.jpg images/train2017/2.jpg images/val2017/3.jpg "
    "masks/train2017/1_mask.png masks/train2017/2_mask.png masks/val2017/3_mask.png": "images/ + masks/ tree",
    "rgb/1.jpg rgb/2.jpg rgb/3.jpg masks/1.png masks/2.png masks/3.png": "rgb/ + masks/ tree",
    "1.jpg 2.jpg 3.jpg masks/1.png masks/2.png masks/3.png": "images + masks/ tree",
    "1.jpg 2.jpg 3.jpg 1_mask.png 2_mask.png 3_mask.png": "tree of images x beside masks x_mask",
    "a/1.jpg a/2.jpg b/3.jpg a/1_mask.png a/2_mask.png b/3_mask.png": "tree of images x beside masks x_mask",
    "img_1.jpg img_2.jpg img_3.jpg mask_1.png mask_2.png mask_3.png": "tree of images x beside masks x_mask",
    "train/1_sat.jpg train/2_sat.jpg val/3_sat.jpg train/1_mask.png train/2_mask.png val/3_mask.png":
        "tree of images x beside masks x_mask",
    "train/1.jpg train/2.jpg val/3.jpg train_masks/1_mask.png train_masks/2_mask.png val_masks/3_mask.png":
        "train/ + train_masks/ tree",
    "images/1.jpg images/2.jpg images/3.jpg masks/1.jpg.png masks/2.jpg.png masks/3.jpg_mask.png":
        "images/ + masks/ tree",
    "JPEGImages/1.jpg JPEGImages/2.jpg JPEGImages/3.jpg "
    "SegmentationClassPNG/1.png SegmentationClassPNG/2.png SegmentationClassPNG/3.png":
        "JPEGImages/ + SegmentationClassPNG/ tree",
    "MyImages/a.jpg MyImages/b.jpg MyImages/c.jpg MyMasks/a.png MyMasks/b.png MyMasks/c.png":
        "MyImages/ + MyMasks/ tree",
    "images/\u00e91.jpg images/\u00fc2.jpg images/\u00f12.jpg masks/e\u03011.png masks/u\u03082.png masks/n\u03032.png":
        "images/ + masks/ tree",
}  # fmt: skip


@pytest.mark.parametrize(("names", "words"), PAIRS.items())
def test_images_and_their_masks_are_found_in_the_layouts_in_use(tmp_path, names, words):
    files = names.split()
    write(tmp_path, *files[:3])
    write(tmp_path, *files[3:], value=1)
    source = open_source(tmp_path)
    assert source.describe().startswith(f"{words} at {tmp_path}: 2 train, 1 val images; 2 classes")
    images = [of.name(i) for of in source.splits.values() for i in range(len(of))]
    assert sorted(images) == sorted(files[:3])
    assert all((of.mask(i) == 1).all() for of in require_masks(source).values() for i in range(len(of)))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("images/1.png annotations/1.png labels/1.png", ("annotations/ and labels/", "one, as masks/")),
        ("imgs/1.png photos/1.png masks/1.png", ("imgs/ and photos/", "one, as images/")),
        ("cat/1.png dog/1.png mask/1.png", ("mask/ but no images/, and 2 other folders",)),
        (
            "images/train/1.png images/holdout/2.png masks/train/1.png masks/holdout/2.png",
            ("images/holdout is none of the splits",),
        ),
        ("x_sat.jpg x_rgb.jpg x_mask.png", ("two images of x_mask.png", "x_rgb and x_sat")),
        ("images/1.png masks/1_mask.png masks/1_gt.png", ("two masks of 1", "masks/1_gt.png", "masks/1_mask.png")),
        ("photos/a.png photos/b.png labels/x.png", ("2 of 2 images have no mask", "such as labels/x.png")),
    ],
)
def test_a_tree_that_could_be_read_in_two_ways_is_refused(tmp_path, names, said):
    refused(lambda: open_source(write(tmp_path, *names.split())), *said)


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        ("mask/1.jpg no_mask/1.jpg", ("mask", "no_mask")),
        ("train/mask/1.jpg train/no_mask/2.jpg", ("mask", "no_mask")),
        ("labels/1.png boxes/2.png bottles/3.png", ("bottles", "boxes", "labels")),
        ("a/1.png b/2.png __MACOSX/a/._1.png lost+found/x.png a/@eaDir/1.png/THUMB.jpg", ("a", "b")),
        ("train/Caf\u00e9/1.png train/tea/2.png val/Cafe\u0301/3.png val/tea/4.png", ("Caf\u00e9", "tea")),
        ("archive/data/a/1.png archive/data/b/2.png", ("a", "b")),
    ],
)
def test_ordinary_class_folders_are_classes(tmp_path, names, classes):
    source = open_source(write(tmp_path, *names.split()))
    assert (source.layout, source.classes) == ("class folders", classes)
    kept = [name for name in names.split() if not re.search(r"__MACOSX|lost\+found|@eaDir", name)]
    assert sum(counts(source).values()) == len(kept)


def test_a_few_photos_of_a_mask_are_photos(tmp_path):
    source = open_source(write(tmp_path, "1.jpg", "2.jpg", "party.jpg", "party_mask.jpg", "my mask.jpg"))
    assert (source.layout, counts(source)) == ("images", {"train": 5})


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("images/1.jpg cats/2.jpg dogs/3.jpg", ("cats is beside images/, and left out", "dogs is beside images/")),
        ("images/1.png masks/1.png overlays/1.png", ("overlays is beside images/ and masks/",)),
        ("train/images/1.png train/masks/1.png holdout/images/2.png", ("holdout is beside train/",)),
        ("images/train/1.png images/more/2.png masks/train/1.png", ("images/more is no split and has no masks",)),
        ("a/x/images/1.jpg a/x/masks/1.png a/y/images/2.jpg a/y/masks/2.png", ("2 files in folders of masks",)),
        ("sat/1.jpg map/1.png", ("map/ and sat/ share their names",)),
        (
            "train/1.jpg train/2.jpg train_masks/1.png test/3.jpg",
            ("1 without, for pretrain alone, 1 without, of val",),
        ),
        ("1.jpg 2.HEIC", ("also holds .HEIC files, which are not read",)),
        ("images/train/1.jpg images/train/2.jpg labels/train/2.txt", ("labels of YOLO, such as labels/train/2.txt, ",)),
        ("valid/images/1.jpg valid/labels/1.txt", ("labels of YOLO, such as valid/labels/1.txt, are not read",)),
        ("photos/1.jpg photos/1.txt", ("labels of YOLO, such as photos/1.txt, are not read: outlines, exported as",)),
    ],
)
def test_what_is_not_read_is_said(tmp_path, names, said, capsys):
    for name in names.split():
        if name.endswith("HEIC"):
            (tmp_path / name).write_bytes(b"")
        elif name.endswith("txt"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("0 0.5 .5 0.1 1e-1 0.3 0.4\n1 0 0 1 1\n")
        else:
            write(tmp_path, name, value=None if "mask" not in name else 1)
    heard = open_source(tmp_path).describe() + capsys.readouterr().err
    assert all(part in heard for part in said), heard


@pytest.mark.parametrize("text", ["", "a cat on 4 mats", "17", "0 0.5 0.5"])
def test_other_texts_beside_images_are_none_of_yolo(tmp_path, text):
    write(tmp_path, "1.jpg")
    (tmp_path / "1.txt").write_text(text)
    assert open_source(tmp_path).notes == ()


def test_folders_that_are_no_split_are_named(tmp_path):
    flat = open_source(write(tmp_path / "flat", "Train/1.png", "TEST/2.png", "holdout/3.png"))
    assert counts(flat) == {"train": 2, "test": 1}
    assert "holdout/ is no split, so its images are for training" in flat.describe()
    classes = open_source(write(tmp_path / "classes", "Train/a/1.png", "Train/b/2.png", "more/a/3.png"))
    assert counts(classes) == {"train": 2}
    assert "more/ is ignored: it is no split" in classes.describe()


def test_of_partly_labelled_images_those_with_masks_are_used_and_all_to_learn_without(tmp_path):
    write(tmp_path / "images", *(f"{i:02}.jpg" for i in range(12)))
    write(tmp_path / "masks", *(f"{i:02}.png" for i in range(3)), value=1)
    source = open_source(tmp_path)
    assert counts(source) == {"train": 2, "val": 1}
    assert "3 of 12 images have a mask: 9 without, for pretrain alone" in source.describe()
    every = source.images("train")
    held_out = source.splits["val"].name(0)
    assert sorted([held_out, *(every.name(i) for i in range(len(every)))]) == [f"images/{i:02}.jpg" for i in range(12)]


@pytest.mark.parametrize("raw", ["Straße\nb\n".encode("latin-1"), "sky\nroad\n".encode("utf-16"), b"s\0k\0y\0"])
@pytest.mark.parametrize("name", ["classes.txt", "classes.json"])
def test_text_that_is_not_utf_8_is_one_line(tmp_path, raw, name):
    write(tmp_path, "images/1.png")
    write(tmp_path, "masks/1.png", value=1)
    (tmp_path / name).write_bytes(raw)
    refused(lambda: open_source(tmp_path), f"{name} is not UTF-8 text: save it as UTF-8")


@pytest.mark.parametrize(("name", "text", "said"), [
    ("classes.json", "[" * 100_000, "classes.json"),
    ("classes.txt", "sky\nroad\nroad", "names 'road' twice"),
])  # fmt: skip
def test_files_of_classes_that_cannot_be_meant_are_one_line(tmp_path, name, text, said):
    write(tmp_path, "images/1.png")
    write(tmp_path, "masks/1.png", value=1)
    (tmp_path / name).write_text(text)
    refused(lambda: open_source(tmp_path), said)


@pytest.mark.parametrize("outside", ["../../secret", "/etc/secret", "a/../../b"])
def test_a_list_that_leads_out_of_its_tree_is_refused(tmp_path, outside):
    write(tmp_path, "JPEGImages/1.jpg")
    write(tmp_path, "SegmentationClass/1.png", value=1)
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text(f"1\n{outside}\n")
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("1\n")
    refused(lambda: open_source(tmp_path), "train.txt", repr(outside), "outside of its folder")


# ---- the held-out fifth


def test_held_out_images_do_not_depend_on_the_listing():
    paths = [f"images/{i:04}.jpg" for i in range(503)]
    train, val = hold_out(paths)
    assert (len(train), len(val)) == (403, 100)
    assert sorted([*train, *val]) == paths
    shuffled = list(np.random.default_rng(0).permutation(paths))
    assert set(hold_out(shuffled)[1]) == set(val)


def test_one_image_more_moves_at_most_one_other():
    paths = [f"images/{i:04}.jpg" for i in range(503)]
    val = set(hold_out(paths)[1])
    for new in range(503, 520):
        paths.append(f"images/{new:04}.jpg")
        before, val = val, set(hold_out(paths)[1])
        assert len((before ^ val) - {paths[-1]}) <= 1


def test_held_out_images_are_recorded():
    """A change here would change every result on data without a val folder."""
    assert hold_out([f"images/{i}.jpg" for i in range(10)])[1] == ["images/1.jpg", "images/6.jpg"]


# ---- what is refused


def test_a_missing_path_names_the_nearest(tmp_path):
    (tmp_path / "camvid").mkdir()
    refused(lambda: open_source(tmp_path / "camvit"), str(tmp_path / "camvit"), "did you mean 'camvid'")
    refused(lambda: open_source(tmp_path / "camvit/images"), "did you mean 'camvid'")
    refused(lambda: open_source(tmp_path / "xyz"), "no such folder", "`scenes`")
    refused(lambda: open_source("scene"), "did you mean 'scenes'")


def test_a_file_is_not_a_folder(tmp_path):
    write(tmp_path, "a.jpg")
    refused(lambda: open_source(tmp_path / "a.jpg"), "a.jpg is a file", "folder that holds it")


def test_a_folder_without_images(tmp_path):
    refused(lambda: open_source(tmp_path), str(tmp_path), "no images", ".jpg")
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/notes.txt").write_text("")
    refused(lambda: open_source(tmp_path), str(tmp_path), "no images")


def test_masks_and_images_that_do_not_fit(tmp_path):
    write(tmp_path / "masks", "1.png", value=1)
    refused(lambda: open_source(tmp_path), str(tmp_path), "masks/ but no images/")
    (tmp_path / "images").mkdir()
    refused(lambda: open_source(tmp_path), str(tmp_path / "images"), "no images")
    write(tmp_path / "images", "1.jpg", "2.jpg", "3.jpg")
    save(tmp_path / "masks/x.png", grid(1))
    wrong = "2 of 3 images have no mask", "images/2.jpg", "masks/2.png", "1 masks have no image, such as masks/x.png"
    refused(lambda: open_source(tmp_path), *wrong)


def test_class_folders_that_do_not_fit(tmp_path):
    write(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "c").mkdir()
    refused(lambda: open_source(tmp_path), str(tmp_path / "c"), "no images", "remove the folder")


def test_a_class_of_val_that_train_lacks(tmp_path):
    write(tmp_path, "train/a/1.png", "train/b/2.png", "val/a/3.png", "val/x/4.png")
    refused(lambda: open_source(tmp_path), str(tmp_path / "val/x"), "2 classes")


def test_a_split_that_is_not_there_names_those_that_are(tmp_path):
    source = open_source(write(tmp_path, "1.png"))
    assert len(source.split("train")) == 1
    refused(lambda: source.split("val"), "'val': known: train")


# ---- the real thing


@pytest.mark.skipif(not CAMVID.is_dir(), reason=f"CamVid is not at {CAMVID}")
def test_camvid():
    source, root = open_source(CAMVID), CAMVID.resolve()
    assert source.describe() == (
        f"images/ + masks/ tree at {root}: 367 train, 101 val, 233 test images; 11 classes (sky, building, pole, ...)"
    )
    val = require_masks(source)["val"]
    assert val.image(0).shape == (360, 480, 3)
    assert set(np.unique(val.mask(0))) <= {*range(11), 255}
    assert (val.mask(0) == 255).any()
