"""Cityscapes (Cordts et al. 2016): leftImg8bit/ and gtFine/, each SPLIT/CITY/; the 19 classes of its evaluation."""

from dataclasses import replace
from pathlib import Path

from regard.data.datasets.base import Source
from regard.data.datasets.masks import PairedImages
from regard.data.datasets.published import Published, comma_separated
from regard.data.listing import list_images
from regard.data.names import VOID, Legend, numbered

TOPS = ("leftImg8bit", "gtFine")
FRAME, IDS, TRAIN_IDS = "_leftImg8bit.png", "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"
# In the order of their trainIds 0 to 18; of the labelIds 0 to 33 the others are void: cityscapesScripts, labels.py.
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CLASSES = """road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person,
    rider, car, truck, bus, train, motorcycle, bicycle"""
COLORS = """804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98 4682b4 dc143c ff0000 00008e 000046
    003c64 005064 0000e6 770b20"""


def legend(ending: str) -> Legend:
    """Of masks whose names end so."""
    found = numbered(comma_separated(CLASSES), *((LABEL_IDS, (*range(34), VOID)) if ending == IDS else ()))
    return replace(found, shown=tuple(tuple(bytes.fromhex(color)) for color in COLORS.split()))


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
