"""Cityscapes (Cordts et al. 2016): leftImg8bit/ and gtFine/, each SPLIT/CITY/; the 19 classes of its evaluation."""

from pathlib import Path

from regard.data.datasets.base import Source
from regard.data.datasets.masks import PairedImages
from regard.data.datasets.published import Published
from regard.data.listing import list_images
from regard.data.names import VOID, Color, Legend

TOPS = ("leftImg8bit", "gtFine")
FRAME, IDS, TRAIN_IDS = "_leftImg8bit.png", "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"
CLASSES: dict[int, tuple[str, Color]] = {  # by labelId, in the order of trainId: cityscapesScripts, helpers/labels.py
    7: ("road", (128, 64, 128)),
    8: ("sidewalk", (244, 35, 232)),
    11: ("building", (70, 70, 70)),
    12: ("wall", (102, 102, 156)),
    13: ("fence", (190, 153, 153)),
    17: ("pole", (153, 153, 153)),
    19: ("traffic light", (250, 170, 30)),
    20: ("traffic sign", (220, 220, 0)),
    21: ("vegetation", (107, 142, 35)),
    22: ("terrain", (152, 251, 152)),
    23: ("sky", (70, 130, 180)),
    24: ("person", (220, 20, 60)),
    25: ("rider", (255, 0, 0)),
    26: ("car", (0, 0, 142)),
    27: ("truck", (0, 0, 70)),
    28: ("bus", (0, 60, 100)),
    31: ("train", (0, 80, 100)),
    32: ("motorcycle", (0, 0, 230)),
    33: ("bicycle", (119, 11, 32)),
}


def legend(ending: str) -> Legend:
    """Of masks whose names end so: labelIds, 0 to 33, of which the others are void, or labelTrainIds, 0 to 18."""
    ids = CLASSES if ending == IDS else range(len(CLASSES))
    void = dict.fromkeys((*range(34), VOID), VOID) if ending == IDS else {VOID: VOID}
    values = void | {value: label for label, value in enumerate(ids)}
    names, colors = zip(*CLASSES.values(), strict=True)
    return Legend(names, values, shown=colors)


def open_cityscapes(root: Path) -> Source | None:
    """leftImg8bit/ and gtFine/ at the path or in cityscapes/, each maybe in a folder called as its archive.

    labelIds are read, as they are downloaded, or where there are none labelTrainIds, as the scripts make them.
    """
    for place in (root, root / "cityscapes"):
        tops = [next((top for top in (of, f"{of}_trainvaltest/{of}") if (place / top).is_dir()), "") for of in TOPS]
        if all(tops):
            return _opened(place, *tops)
    return None


def _opened(root: Path, images: str, masks: str) -> Source | None:
    made, splits = list_images(root, masks), dict[str, PairedImages]()
    ending = next((one for one in (IDS, TRAIN_IDS) if any(path.endswith(one) for path in made)), IDS)
    for split in ("train", "val"):
        frames = [path for path in list_images(root, f"{images}/{split}") if path.endswith(FRAME)]
        if frames and made[made.below(f"{masks}/{split}")]:
            pairs = {path: f"{masks}{path.removeprefix(images).removesuffix(FRAME)}{ending}" for path in frames}
            splits[split] = PairedImages(root, pairs, legend(ending))
    notes = ("frames of one city are not independent: --groups folder makes groups of cities",)
    if (root / images / "test").is_dir():
        notes += ("test is left out, as its labels are not public",)
    return Source("cityscapes", str(root), splits, notes, "Cityscapes") if splits else None


CITYSCAPES = Published("https://www.cityscapes-dataset.com/downloads/", open_cityscapes)  # after a registration
