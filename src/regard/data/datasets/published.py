"""Published segmentation data sets, exactly as their archives unpack: where they lie, their classes, their splits.

A function for each looks at the folders and answers with the datasets by split, or None for anything else. A tree may
lie at the path itself or one folder down, where its archive puts it. A set without a published val gets the project's
own: a fixed fifth of what is for training (`hold_out`).
"""

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io
from jaxtyping import Int16, UInt8

from regard.data.datasets.base import VOC2012, PairedImages, voc_root
from regard.data.listing import hold_out, is_image, list_images
from regard.data.names import VOID, Color, Legend, numbered, read_labelmap
from regard.data.reading import labels_of
from regard.errors import InputError


class Found(NamedTuple):
    """What is at a path: the short word for it, where it is, its datasets, and what was decided for the user."""

    layout: str
    root: Path
    splits: Mapping[str, PairedImages]
    notes: tuple[str, ...] = ()


# ---- PASCAL VOC 2012 (Everingham et al. 2010), and trees of one's own laid out like it


SBD_FOLDERS = ("benchmark_RELEASE/dataset", "SBD/dataset", "SBD", "VOCaug/dataset")  # the archive's, and usual others


class AugmentedVOC(VOC2012):
    """VOC 2012 with the masks of SBD (Hariharan et al. 2011): 10,582 images to train on, none of them in val.

    The official train images keep their official masks. Those of the others are PNGs in SegmentationClassAug/, for the
    images of trainaug.txt or train_aug.txt, or for all but val where there is no such list; or they are the .mat files
    of SBD as published, inside the tree or beside it.
    """

    def __init__(self, root: str | Path, masks: str, stems: Iterable[str], suffix: str):
        super().__init__(root)
        official, val = set(self.paths), set(VOC2012(root, "val").paths)
        wanted = (f"JPEGImages/{stem}.jpg" for stem in sorted(stems))
        added = {path: f"{masks}/{Path(path).stem}{suffix}" for path in wanted if path not in official | val}
        self.added = len(added)
        PairedImages.__init__(self, self.root, {**dict(zip(self.paths, self.masks, strict=True)), **added}, self.legend)

    def read_labels(self, path: Path) -> Int16[np.ndarray, "h w"]:
        """As of any mask; a .mat file of SBD holds them as GTcls.Segmentation."""
        if path.suffix != ".mat":
            return super().read_labels(path)
        values = read_mat(path, "GTcls", lambda content: content["GTcls"][0, 0]["Segmentation"])
        return labels_of(path, values, self.legend)


def open_voc(root: Path) -> Found | None:
    """VOC 2012, with the augmented train set where its masks are there, or a tree of one's own laid out like it.

    The path of the tree's own SegmentationClass/ stands for the tree with the official train set.
    """
    official = root.name == "SegmentationClass" and voc_root(root.parent) == root.parent
    voc = root.parent if official else voc_root(root)
    if voc is None:
        return None
    lists = voc / "ImageSets/Segmentation"
    if (voc / "labelmap.txt").is_file() or not any((lists / f"{split}.txt").is_file() for split in ("train", "val")):
        return _open_voc_like(voc)
    splits: dict[str, PairedImages] = {"train": VOC2012(voc), "val": VOC2012(voc, "val")}
    if official:
        return Found("voc", root, splits, ("the official train set",))
    masks, stems, suffix = _augmentation(voc)
    if not masks:
        return Found("voc", voc, splits)
    train = AugmentedVOC(voc, masks, stems, suffix)
    note = f"augmented train set: {len(train):,} images, {train.added:,} of them from {masks}"
    return Found("voc", voc, {**splits, "train": train}, (note, "for the official one give its SegmentationClass/"))


def _augmentation(voc: Path) -> tuple[str, Collection[str], str]:
    """Where the masks of SBD are, relative to `voc` ("" for nowhere), for which images, and their suffix."""
    if (voc / "SegmentationClassAug").is_dir():
        files = (voc / "ImageSets/Segmentation" / name for name in ("trainaug.txt", "train_aug.txt"))
        listed = next((file for file in files if file.is_file()), None)
        stems = _listed(listed, columns=True) if listed else _stems(os.listdir(voc / "SegmentationClassAug"), ".png")
        return "SegmentationClassAug", stems, ".png"
    beside = (voc, voc.parent, *((voc.parent.parent,) if voc.parent.name == "VOCdevkit" else ()))
    places = (folder / name for folder in beside for name in SBD_FOLDERS)
    sbd = next((place for place in places if (place / "cls").is_dir()), None)
    if sbd is None:
        return "", (), ""
    files = [sbd / f"{split}.txt" for split in ("train", "val")]
    stems = [stem for file in files if file.is_file() for stem in _listed(file)]
    return Path(os.path.relpath(sbd / "cls", voc)).as_posix(), stems or _stems(os.listdir(sbd / "cls"), ".mat"), ".mat"


def _open_voc_like(voc: Path) -> Found:
    """JPEGImages/ and SegmentationClass/ of one's own, as CVAT exports them: names and colours are in labelmap.txt.

    Lists in ImageSets/Segmentation give the splits. What is in none is for training, where there is no train.txt.
    """
    map_file, lists = voc / "labelmap.txt", voc / "ImageSets/Segmentation"
    legend = read_labelmap(map_file) if map_file.is_file() else numbered(VOC2012.names.split())
    images, masks = _by_stem(voc, "JPEGImages"), _by_stem(voc, "SegmentationClass")
    stems = {split: _listed(lists / f"{split}.txt") for split in ("train", "val", "test")}
    if not stems["train"]:
        taken = {*stems["val"], *stems["test"]}
        pairs = [stem for stem in masks if stem in images]
        stems["train"] = [stem for stem in _listed(lists / "default.txt") or pairs if stem not in taken]
    if not any(stems.values()):
        raise InputError(f"{voc} has no image with a mask: SegmentationClass/x.png for JPEGImages/x.jpg would work")
    splits, notes = with_val({split: of for split, of in stems.items() if of})
    if not map_file.is_file():
        notes = (*notes, "no labelmap.txt, so the classes are those of VOC")
    files = {
        stem: (images.get(stem, f"JPEGImages/{stem}.jpg"), masks.get(stem, f"SegmentationClass/{stem}.png"))
        for of in splits.values()
        for stem in of
    }
    datasets = {split: PairedImages(voc, dict(files[stem] for stem in of), legend) for split, of in splits.items()}
    return Found("voc-like", voc, datasets, notes)


# ---- COCO-Stuff (Caesar et al. 2018): 164k, on the images of COCO 2017, and 10k


class CocoStuff(PairedImages):
    """80 classes of things, then 91 of stuff. The published ids are 1 to 182, with gaps: 11 were never annotated.

    A mask that holds one of those is taken for one of another convention, and is an error.

    | masks | values |
    |---|---|
    | *.png of 164k | the id less 1; 255 is unlabelled |
    | *_labelTrainIds.png, as MMSegmentation converts them | 0 to 170; 255 is unlabelled |
    | *.mat of 10k, version 1.1, field S | the id; 0 is unlabelled |
    """

    things = 80  # how many of the classes, the first ones, are things
    absent = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
    names = """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
        stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack,
        umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove,
        skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple,
        sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table,
        toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book,
        clock, vase, scissors, teddy bear, hair drier, toothbrush,
        banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other,
        ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence,
        floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other,
        grass, gravel, ground-other, hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin,
        net, paper, pavement, pillow, plant-other, plastic, platform, playingfield, railing, railroad, river, road,
        rock, roof, rug, salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw,
        structural-other, table, tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other,
        wall-panel, wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood"""

    def __init__(self, root: str | Path, masks: Mapping[str, str]):
        names = comma_separated(self.names)
        ids = [number for number in range(1, 183) if number not in self.absent]
        first = next(iter(masks.values()), "")
        if first.endswith(".mat"):
            legend = numbered(names, ids, void=(0,))
        elif first.endswith(TRAIN_IDS):
            legend = numbered(names)
        else:
            legend = numbered(names, [number - 1 for number in ids])
        super().__init__(root, masks, legend)

    def read_labels(self, path: Path) -> Int16[np.ndarray, "h w"]:
        """As of any mask; a .mat file holds them as S."""
        if path.suffix != ".mat":
            return super().read_labels(path)
        return labels_of(path, read_mat(path, "S", _map_of_version_1_1), self.legend)


TRAIN_IDS = "_labelTrainIds.png"


def _map_of_version_1_1(content: dict[str, Any]) -> np.ndarray:
    """S of an annotation of 10k; an error for version 1.0, in which the same numbers meant other classes."""
    if "names" in content and content["names"].size == 172:  # "unlabeled" and the 171; 182 names in version 1.1
        raise InputError("of COCO-Stuff 10k version 1.0: version 1.1 would work")
    return content["S"]


def open_coco_stuff(root: Path) -> Found | None:
    """164k: images/train2017 or train2017 with masks of the same names; 10k: images, annotations and imageLists."""
    for place in (root, root / "cocostuff-10k-v1.1"):
        if (place / "imageLists").is_dir() and (place / "annotations").is_dir() and (place / "images").is_dir():
            return _open_coco_stuff_10k(place)
    splits, notes = {}, []
    for split, year in (("train", "train2017"), ("val", "val2017")):
        images = next((f"{top}{year}" for top in ("images/", "") if (root / top / year).is_dir()), None)
        tops = ("annotations/", "stuffthingmaps/", "stuffthingmaps_trainval2017/", "")
        masks = next(
            (f"{top}{year}" for top in tops if f"{top}{year}" != images and (root / top / year).is_dir()), None
        )
        if images is None or masks is None:
            continue
        present = os.listdir(root / masks)
        converted = not any(name.endswith(".png") and not name.endswith(TRAIN_IDS) for name in present)
        if converted and any(name.endswith(TRAIN_IDS) for name in present):
            notes.append(f"{masks} holds converted masks only, with values 0 to 170")
            splits[split] = CocoStuff(root, same_names(root, images, masks, TRAIN_IDS))
        elif pairs := same_names(root, images, masks):
            splits[split] = CocoStuff(root, pairs)
    return Found("coco-stuff", root, splits, tuple(notes)) if splits else None


def _open_coco_stuff_10k(root: Path) -> Found:
    stems = {split: _listed(root / "imageLists" / f"{split}.txt") for split in ("train", "test")}
    if not stems["train"]:
        raise InputError(f"{root / 'imageLists/train.txt'} is missing or empty: unpack the whole of COCO-Stuff 10k")
    paths = {split: [f"images/{stem}.jpg" for stem in of] for split, of in stems.items() if of}
    splits, notes = with_val(paths)
    datasets = {
        s: CocoStuff(root, {path: f"annotations/{Path(path).stem}.mat" for path in of}) for s, of in splits.items()
    }
    return Found("coco-stuff", root, datasets, notes)


# ---- ADE20K, as cut for the scene parsing benchmark (Zhou et al. 2017): ADEChallengeData2016


class ADE20K(PairedImages):
    """150 classes, 1 to 150 in the masks; 0 is other, or unlabelled, and void here. split: "training" or "validation".

    The names are the first ones of objectInfo150.txt, and are read from there where it is.
    """

    names = """wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person,
        earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror,
        rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column,
        signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path,
        stairs, runway, case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table,
        toilet, flower, book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar,
        arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, television,
        airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van,
        ship, fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall,
        tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, lake,
        dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt
        screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag"""

    def __init__(self, root: str | Path, split: str = "training"):
        names = ade_names(Path(root, "objectInfo150.txt")) or comma_separated(self.names)
        masks = same_names(Path(root), f"images/{split}", f"annotations/{split}")
        super().__init__(root, masks, numbered(names, range(1, 151), void=(0,)))


def ade_names(file: Path) -> list[str]:
    """The first name of each class in objectInfo150.txt; none where the file isn't there."""
    if not file.is_file():
        return []
    rows = [line.split("\t") for line in file.read_text("utf-8-sig").strip().splitlines()[1:]]
    if len(rows) != 150 or any(len(row) < 5 or row[0].strip() != str(n) for n, row in enumerate(rows, start=1)):
        raise InputError(f"{file} isn't the published table: 150 classes in order would work, or no such file")
    return [row[4].split(",")[0].strip() for row in rows]


def open_ade20k(root: Path) -> Found | None:
    """images/ and annotations/, each with training/ and validation/, whose files are called ADE_*."""
    for place in (root, root / "ADEChallengeData2016"):
        found = {
            split: folder
            for split, folder in (("train", "training"), ("val", "validation"))
            if (place / "images" / folder).is_dir() and _one_is_called(place / "annotations" / folder, r"ADE_.*\.png")
        }
        if found:
            return Found("ade20k", place, {split: ADE20K(place, folder) for split, folder in found.items()})
    return None


# ---- Oxford-IIIT Pet (Parkhi et al. 2012)


class OxfordPet(PairedImages):
    """The trimaps of cats and dogs, as two classes: 2 is background, 1 the pet; 3, the border of the two, is void."""

    def __init__(self, root: str | Path, paths: Iterable[str]):
        masks = {path: f"annotations/trimaps/{Path(path).stem}.png" for path in paths}
        super().__init__(root, masks, numbered(("background", "pet"), (2, 1), void=(3,)))


def open_pets(root: Path) -> Found | None:
    """images/ and annotations/trimaps/, with annotations/trainval.txt and test.txt, whose lines begin with a name.

    Only what they list counts: beside them lie hidden ._*.png files and a few .mat files.
    """
    for place in (root, root / "oxford-iiit-pet"):
        if (place / "annotations/trimaps").is_dir() and (place / "images").is_dir():
            listed = {"train": "trainval", "test": "test"}
            stems = {
                split: _listed(place / "annotations" / f"{name}.txt", columns=True) for split, name in listed.items()
            }
            if not stems["train"]:
                raise InputError(f"{place / 'annotations/trainval.txt'} is missing or empty: unpack annotations.tar.gz")
            paths = {split: [f"images/{stem}.jpg" for stem in of] for split, of in stems.items() if of}
            splits, notes = with_val(paths)
            return Found("pets", place, {split: OxfordPet(place, of) for split, of in splits.items()}, notes)
    return None


# ---- CamVid (Brostow et al. 2009), in the 11 classes of SegNet (Badrinarayanan et al. 2017)


class CamVid(PairedImages):
    """The street scenes of CamVid, as published in 32 colours, or in the 11 classes and splits of the SegNet tutorial.

    The colours of a row below are one class. All others, Void's black among them, are void; so is 11 in the tutorial's.
    """

    colors: Mapping[str, tuple[Color, ...]] = {
        "sky": ((128, 128, 128),),
        "building": ((128, 0, 0), (0, 128, 64), (64, 192, 0), (64, 0, 64), (192, 0, 128)),  # and bridge, wall, ...
        "pole": ((192, 192, 128), (0, 0, 64)),  # and traffic cone
        "road": ((128, 64, 128), (128, 0, 192), (192, 0, 64)),  # and lane markings, for driving and not
        "pavement": ((0, 0, 192), (64, 192, 128), (128, 128, 192)),  # and parking block, road shoulder
        "tree": ((128, 128, 0), (192, 192, 0)),  # and other vegetation
        "sign_symbol": ((192, 128, 128), (128, 128, 64), (0, 64, 64)),  # and other text, traffic light
        "fence": ((64, 64, 128),),
        # and pickup truck, lorry or bus, train, other that moves
        "car": ((64, 0, 128), (64, 128, 192), (192, 128, 192), (192, 64, 128), (128, 64, 64)),
        "pedestrian": ((64, 64, 0), (192, 128, 64), (64, 0, 192), (64, 128, 64)),  # and child, pram or luggage, animal
        "bicyclist": ((0, 128, 192), (192, 0, 192)),  # and motorcycle
    }
    names = tuple(colors)

    def __init__(self, root: str | Path, masks: Mapping[str, str]):
        label_of = {color: label for label, name in enumerate(self.names) for color in self.colors[name]}
        if next(iter(masks.values()), "").endswith("_L.png"):
            legend = Legend(self.names, colors=label_of, others=VOID)
        else:
            shown = tuple(self.colors[name][0] for name in self.names)
            legend = Legend(self.names, {11: VOID, **{value: value for value in range(11)}}, shown=shown)
        super().__init__(root, masks, legend)


def open_camvid(root: Path) -> Found | None:
    """The SegNet tutorial's tree, with trainannot/ beside train/; or 701_StillsRaw_full/ and LabeledApproved_full/."""
    for place in (root, root / "CamVid"):
        if (place / "701_StillsRaw_full").is_dir() and (place / "LabeledApproved_full").is_dir():
            return _open_camvid_stills(place)
        parts = [s for s in ("train", "val", "test") if (place / s).is_dir() and (place / f"{s}annot").is_dir()]
        if "train" in parts:
            if not _one_is_called(place / "train", CAMVID_FRAME):
                move = "images in images/train/ and masks in masks/train/, with a classes.txt, would work"
                raise InputError(f"{place} is laid out as CamVid, but its images are not: for data of your own {move}")
            splits = {part: CamVid(place, same_names(place, part, f"{part}annot")) for part in parts}
            return Found("camvid", place, splits)
    return None


CAMVID_FRAME = r"(0001TP|0006R0|0016E5|Seq05VD)_f?(\d+)\.\w+"  # a sequence and the number of a frame of it


def camvid_split(path: str) -> str:
    """The split of SegNet of a frame, by its name alone: 367 train, 101 val and 233 test of the 701.

    Val is the part of sequence 0016E5 that was labelled at 15 frames a second, test is Seq05VD and the end of 0001TP.
    """
    match = re.fullmatch(CAMVID_FRAME, Path(path).name)
    sequence, frame = (match[1], int(match[2])) if match else ("", 0)
    if sequence == "0016E5" and 7959 <= frame <= 8159:
        return "val"
    return "test" if sequence == "Seq05VD" or (sequence == "0001TP" and frame >= 8550) else "train"


def _open_camvid_stills(root: Path) -> Found:
    paths: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    masks = same_names(root, "701_StillsRaw_full", "LabeledApproved_full", "_L.png")
    for path in masks:
        paths[camvid_split(path)].append(path)
    splits, notes = with_val({split: of for split, of in paths.items() if of})
    datasets = {split: CamVid(root, {path: masks[path] for path in of}) for split, of in splits.items()}
    return Found("camvid", root, datasets, ("32 colours as the 11 classes and the splits of SegNet", *notes))


# ---- what they share


OPENERS: tuple[Callable[[Path], Found | None], ...] = (open_voc, open_coco_stuff, open_ade20k, open_pets, open_camvid)


def open_published(root: Path) -> Found | None:
    """The published tree at a path, or None. Raises InputError for one that is incomplete."""
    return next((found for opener in OPENERS if (found := opener(root))), None)


def with_val(paths: Mapping[str, Sequence[str]]) -> tuple[dict[str, Sequence[str]], tuple[str, ...]]:
    """The splits in order, with a val held out of train where there is none, and a note of it."""
    splits, notes = dict(paths), ()
    if "val" not in splits and len(splits.get("train", ())) > 1:
        splits["train"], splits["val"] = hold_out(splits["train"])
        notes = ("no val list, so val is a fixed fifth of the images for training",)
    return {split: splits[split] for split in ("train", "val", "test") if split in splits}, notes


def same_names(root: Path, images: str, masks: str, suffix: str = ".png") -> dict[str, str]:
    """The mask of each image below root/images: of the same name, with `suffix`, below root/masks."""
    stems = {path: os.path.splitext(path.removeprefix(images))[0] for path in list_images(root, images)}
    return {path: f"{masks}{stem}{suffix}" for path, stem in stems.items()}


def comma_separated(names: str) -> list[str]:
    """The names in a text of several lines, in order."""
    return [" ".join(name.split()) for name in names.split(",")]


def read_mat(path: Path, name: str, pick: Callable[[dict[str, Any]], np.ndarray]) -> UInt8[np.ndarray, "h w"]:
    """The label map that `pick` finds in the variable `name` of a MATLAB file; InputError where it can't."""
    try:
        values = np.asarray(pick(scipy.io.loadmat(path, variable_names=[name, "names"])))
    except InputError as error:
        raise InputError(f"{path} is {error}") from None
    except FileNotFoundError:
        raise InputError(f"{path} can't be read: No such file or directory") from None
    except Exception as error:  # scipy raises whatever its parser meets in a broken file
        raise InputError(f"{path} can't be read: broken, or without {name} as published; unpack it again") from error
    if values.ndim != 2 or values.size == 0 or values.min() < 0 or values.max() > VOID:
        raise InputError(f"{path} holds no map of classes: {name} as published, with values 0 to {VOID}, would work")
    return values.astype(np.uint8)


def _listed(file: Path, columns: bool = False) -> list[str]:
    """The images in a list, a line each, without suffix; none where the file isn't there.

    columns: only the first word of a line names the image, by its name or a path such as /JPEGImages/2007_000032.jpg.
    """
    lines = file.read_text("utf-8-sig").splitlines() if file.is_file() else ()
    lines = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    names = [line.split()[0].rpartition("/")[2] for line in lines] if columns else lines
    return [os.path.splitext(name)[0] if is_image(name) else name for name in names]


def _stems(names: Iterable[str], suffix: str) -> list[str]:
    """The names of files without their suffix; hidden files, and those with another one, are left out."""
    return [name.removesuffix(suffix) for name in names if name.endswith(suffix) and not name.startswith(".")]


def _by_stem(root: Path, folder: str) -> dict[str, str]:
    """The images below root/folder by their path in it, without suffix."""
    return {os.path.splitext(path.removeprefix(f"{folder}/"))[0]: path for path in list_images(root, folder)}


def _one_is_called(folder: Path, pattern: str) -> bool:
    """Whether the first file of a folder, hidden ones left out, is called by a pattern; False if it isn't there."""
    if not folder.is_dir():
        return False
    first = min((name for name in os.listdir(folder) if not name.startswith(".")), default="")
    return re.fullmatch(pattern, first) is not None
