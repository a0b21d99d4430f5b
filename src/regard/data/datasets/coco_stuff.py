"""COCO-Stuff (Caesar et al. 2018): 164k, on the images of COCO 2017, and 10k.

164k: train2017/ and val2017/, of images and of PNG masks; 10k: images/, annotations/*.mat and imageLists/.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int16

from regard.data.datasets.base import Source
from regard.data.datasets.masks import PairedImages
from regard.data.datasets.published import Archive, Published, comma_separated, listed, read_mat, same_names
from regard.data.listing import with_val
from regard.data.names import numbered
from regard.data.reading_masks import labels_of
from regard.errors import InputError


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
        """The label of each pixel of a mask; a .mat file holds them as S."""
        if path.suffix != ".mat":
            return super().read_labels(path)
        return labels_of(path, read_mat(path, "S", _map_of_version_1_1), self.legend)


WORDS = "COCO-Stuff"
TRAIN_IDS = "_labelTrainIds.png"


def _map_of_version_1_1(content: dict[str, Any]) -> np.ndarray:
    """S of an annotation of 10k; an error for version 1.0, in which the same numbers meant other classes."""
    if "names" in content and content["names"].size == 172:  # "unlabeled" and the 171; 182 names in version 1.1
        raise InputError("of COCO-Stuff 10k version 1.0: version 1.1 would work")
    return content["S"]


def open_164k(root: Path) -> Source | None:
    """images/train2017 or train2017, and val2017, with masks of the same names."""
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
    return Source("coco-stuff", str(root), splits, tuple(notes), WORDS) if splits else None


def open_10k(root: Path) -> Source | None:
    """images, annotations and imageLists, at the path or in cocostuff-10k-v1.1."""
    folders = ("images", "annotations", "imageLists")
    places = (root, root / "cocostuff-10k-v1.1")
    root = next((place for place in places if all((place / folder).is_dir() for folder in folders)), Path())
    if root == Path():
        return None
    stems = {split: listed(root / "imageLists" / f"{split}.txt") for split in ("train", "test")}
    if not stems["train"]:
        raise InputError(f"{root / 'imageLists/train.txt'} is missing or empty: unpack the whole of COCO-Stuff 10k")
    paths = {split: [f"images/{stem}.jpg" for stem in of] for split, of in stems.items()}
    splits, notes = with_val(paths)
    datasets = {
        s: CocoStuff(root, {path: f"annotations/{Path(path).stem}.mat" for path in of}) for s, of in splits.items()
    }
    return Source("coco-stuff", str(root), datasets, notes, WORDS)


COCO, CALVIN = "http://images.cocodataset.org/zips", "http://calvin.inf.ed.ac.uk/wp-content/uploads/data"
COCO_STUFF_164K = Published(
    "https://github.com/nightrome/cocostuff",
    open_164k,
    (  # sizes and checksums: TensorFlow Datasets, url_checksums/coco.txt; the maps have no published checksum
        Archive(
            f"{COCO}/train2017.zip",
            19_336_861_798,
            "sha256:69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
            "images",
        ),
        Archive(
            f"{COCO}/val2017.zip",
            815_585_330,
            "sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
            "images",
        ),
        Archive(f"{CALVIN}/cocostuffdataset/stuffthingmaps_trainval2017.zip", into="annotations"),
    ),
)
COCO_STUFF_10K = Published(
    "https://github.com/nightrome/cocostuff10k",
    open_10k,
    (Archive(f"{CALVIN}/cocostuffdataset/cocostuff-10k-v1.1.zip"),),  # no published checksum
)
