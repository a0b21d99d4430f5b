"""CamVid (Brostow et al. 2009), in the 11 classes of SegNet (Badrinarayanan et al. 2017).

701_StillsRaw_full/ and LabeledApproved_full/, or train/ and trainannot/, ... of the SegNet tutorial.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from regard.data.datasets.base import Source
from regard.data.datasets.masks import PairedImages
from regard.data.datasets.published import Published, one_is_called, same_names
from regard.data.listing import with_val
from regard.data.names import VOID, Color, Legend
from regard.errors import InputError


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


def open_camvid(root: Path) -> Source | None:
    """The SegNet tutorial's tree, with trainannot/ beside train/; or 701_StillsRaw_full/ and LabeledApproved_full/."""
    for place in (root, root / "CamVid"):
        if (place / "701_StillsRaw_full").is_dir() and (place / "LabeledApproved_full").is_dir():
            return _open_camvid_stills(place)
        parts = [s for s in ("train", "val", "test") if (place / s).is_dir() and (place / f"{s}annot").is_dir()]
        if "train" in parts:
            if not one_is_called(place / "train", CAMVID_FRAME):
                move = "images in images/train/ and masks in masks/train/, with a classes.txt, would work"
                raise InputError(f"{place} is laid out as CamVid, but its images are not: for data of your own {move}")
            splits = {part: CamVid(place, same_names(place, part, f"{part}annot")) for part in parts}
            return Source("camvid", str(place), splits, words=WORDS)
    return None


WORDS = "CamVid"
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


def _open_camvid_stills(root: Path) -> Source:
    paths: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    masks = same_names(root, "701_StillsRaw_full", "LabeledApproved_full", "_L.png")
    for path in masks:
        paths[camvid_split(path)].append(path)
    splits, notes = with_val(paths)
    datasets = {split: CamVid(root, {path: masks[path] for path in of}) for split, of in splits.items()}
    notes = ("32 colours as the 11 classes and the splits of SegNet", *notes)
    return Source("camvid", str(root), datasets, notes, WORDS)


CAM_VID = Published("http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/", open_camvid)
