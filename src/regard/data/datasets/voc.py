"""PASCAL VOC 2012 (Everingham et al. 2010), its augmented train set, and trees of one's own laid out like it.

JPEGImages/ and SegmentationClass/, at the path, in VOC2012/ or in VOCdevkit/VOC2012/, with lists in ImageSets/; or the
two folders with a labelmap.txt, as CVAT exports them, or without the lists.
"""

import os
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Int16

from regard.data.datasets.base import Source
from regard.data.datasets.masks import PairedImages
from regard.data.datasets.published import Archive, Published, listed, read_mat
from regard.data.layouts import meaning
from regard.data.listing import list_images, subfolders, with_val
from regard.data.names import numbered, read_labelmap
from regard.data.reading_masks import labels_of
from regard.errors import InputError


class VOC2012(PairedImages):
    """Pascal VOC 2012 segmentation (Everingham et al. 2010), the official tree; 255 is the border around objects.

    `root` is VOC2012 itself, or holds it as VOC2012 or VOCdevkit/VOC2012. `split`: train, val or trainval.
    """

    names = "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person"
    names += " pottedplant sheep sofa train tvmonitor"

    def __init__(self, root: str | Path, split: str = "train"):
        found = voc_root(Path(root))
        if found is None:
            raise InputError(f"no VOC 2012 tree in {root}: a folder with JPEGImages/ and SegmentationClass/ would work")
        file = found / "ImageSets/Segmentation" / f"{split}.txt"
        if not file.is_file():
            raise InputError(f"{file} is missing: unpack the whole of VOCtrainval_11-May-2012.tar")
        stems = listed(file)
        masks = {f"JPEGImages/{stem}.jpg": f"SegmentationClass/{stem}.png" for stem in stems}
        super().__init__(found, masks, numbered(self.names.split()))


def voc_root(root: Path) -> Path | None:
    """Where the VOC 2012 tree is: `root`, or VOC2012 or VOCdevkit/VOC2012 in it."""
    places = (root, root / "VOC2012", root / "VOCdevkit/VOC2012")
    return next((p for p in places if (p / "JPEGImages").is_dir() and (p / "SegmentationClass").is_dir()), None)


WORDS = "VOC 2012 tree"
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
        """The label of each pixel of a mask; a .mat file of SBD holds them as GTcls.Segmentation."""
        if path.suffix != ".mat":
            return super().read_labels(path)
        values = read_mat(path, "GTcls", lambda content: content["GTcls"][0, 0]["Segmentation"])
        return labels_of(path, values, self.legend)


def open_voc(root: Path) -> Source | None:
    """VOC 2012, with the augmented train set where its masks are there, or a tree of one's own laid out like it.

    The path of the tree's own SegmentationClass/ stands for the tree with the official train set.
    """
    official = root.name == "SegmentationClass" and voc_root(root.parent) == root.parent
    voc = root.parent if official else voc_root(root)
    if voc is None:
        is_cvats = (root / "SegmentationClass").is_dir() and (root / "labelmap.txt").is_file()
        if is_cvats and not any(meaning(name)[1] == "images" for name in subfolders(root)):
            what = f"{root} has SegmentationClass/ without JPEGImages/"
            raise InputError(f"{what}: the images there, or a CVAT export with `Save images`, would work")
        return None
    lists = voc / "ImageSets/Segmentation"
    if (voc / "labelmap.txt").is_file() or not any((lists / f"{split}.txt").is_file() for split in ("train", "val")):
        return _open_voc_like(voc)
    splits: dict[str, PairedImages] = {"train": VOC2012(voc), "val": VOC2012(voc, "val")}
    if official:
        return Source("voc", str(root), splits, ("the official train set",), WORDS)
    masks, stems, suffix = _augmentation(voc)
    if not masks:
        return Source("voc", str(voc), splits, words=WORDS)
    train = AugmentedVOC(voc, masks, stems, suffix)
    note = f"augmented train set: {len(train):,} images, {train.added:,} of them from {masks}"
    notes = (note, "for the official one give its SegmentationClass/")
    return Source("voc", str(voc), {**splits, "train": train}, notes, WORDS)


def _augmentation(voc: Path) -> tuple[str, Collection[str], str]:
    """Where the masks of SBD are, relative to `voc` ("" for nowhere), for which images, and their suffix."""
    if (voc / "SegmentationClassAug").is_dir():
        files = (voc / "ImageSets/Segmentation" / name for name in ("trainaug.txt", "train_aug.txt"))
        list_ = next((file for file in files if file.is_file()), None)
        stems = listed(list_, columns=True) if list_ else _stems(os.listdir(voc / "SegmentationClassAug"), ".png")
        return "SegmentationClassAug", stems, ".png"
    beside = (voc, voc.parent, *((voc.parent.parent,) if voc.parent.name == "VOCdevkit" else ()))
    places = (folder / name for folder in beside for name in SBD_FOLDERS)
    sbd = next((place for place in places if (place / "cls").is_dir()), None)
    if sbd is None:
        return "", (), ""
    files = [sbd / f"{split}.txt" for split in ("train", "val")]
    stems = [stem for file in files if file.is_file() for stem in listed(file)]
    return Path(os.path.relpath(sbd / "cls", voc)).as_posix(), stems or _stems(os.listdir(sbd / "cls"), ".mat"), ".mat"


def _open_voc_like(voc: Path) -> Source:
    """JPEGImages/ and SegmentationClass/ of one's own, as CVAT exports them: names and colours are in labelmap.txt.

    Lists in ImageSets/Segmentation give the splits. What is in none is for training, where there is no train.txt.
    """
    map_file, lists = voc / "labelmap.txt", voc / "ImageSets/Segmentation"
    legend = read_labelmap(map_file) if map_file.is_file() else numbered(VOC2012.names.split())
    images, masks = _by_stem(voc, "JPEGImages"), _by_stem(voc, "SegmentationClass")
    stems = {split: listed(lists / f"{split}.txt") for split in ("train", "val", "test")}
    if not stems["train"]:
        taken = {*stems["val"], *stems["test"]}
        pairs = [stem for stem in masks if stem in images]
        stems["train"] = [stem for stem in listed(lists / "default.txt") or pairs if stem not in taken]
    if not any(stems.values()):
        raise InputError(f"{voc} has no image with a mask: SegmentationClass/x.png for JPEGImages/x.jpg would work")
    splits, notes = with_val(stems)
    if not map_file.is_file():
        notes = (*notes, "no labelmap.txt, so the classes are those of VOC")
    files = {
        stem: (images.get(stem, f"JPEGImages/{stem}.jpg"), masks.get(stem, f"SegmentationClass/{stem}.png"))
        for of in splits.values()
        for stem in of
    }
    datasets = {split: PairedImages(voc, dict(files[stem] for stem in of), legend) for split, of in splits.items()}
    return Source("voc-like", str(voc), datasets, notes, "VOC-like tree")


def _stems(names: Iterable[str], suffix: str) -> list[str]:
    """The names of files without their suffix; hidden files, and those with another one, are left out."""
    return [name.removesuffix(suffix) for name in names if name.endswith(suffix) and not name.startswith(".")]


def _by_stem(root: Path, folder: str) -> dict[str, str]:
    """The images below root/folder by their path in it, without suffix."""
    return {os.path.splitext(path.removeprefix(f"{folder}/"))[0]: path for path in list_images(root, folder)}


VOC = Published(
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    open_voc,
    (
        Archive(
            "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            1_999_639_040,
            "md5:6cd6e144f989b92b3379bac3b3de84fd",  # torchvision/datasets/voc.py
        ),
    ),
)
# Into the folder of voc2012, it makes the augmented train set. The same masks as PNGs (SegmentationClassAug) are left
# out: there are only copies of them on private shares, without a checksum.
SBD = Published(
    "http://home.bharathh.info/pubs/codes/SBD/download.html",
    archives=(
        Archive(
            "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
            checksum="md5:82b4d87ceb2ed10f6038a1cba92111cb",  # torchvision/datasets/sbd.py
        ),
    ),
)
