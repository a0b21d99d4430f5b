"""ADE20K, as cut for the scene parsing benchmark (Zhou et al. 2017): ADEChallengeData2016.

images/ and annotations/, with training/ and validation/ in both.
"""

from pathlib import Path

from regard.data.datasets.base import Source
from regard.data.datasets.masks import PairedImages
from regard.data.datasets.published import Archive, Published, comma_separated, one_is_called, same_names
from regard.data.names import numbered


class ADE20K(PairedImages):
    """150 classes, 1 to 150 in the masks; 0 is other, or unlabelled, and void here. split: "training" or "validation".

    The names are the first ones of its table, objectInfo150.txt.
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
        masks = same_names(Path(root), f"images/{split}", f"annotations/{split}")
        super().__init__(root, masks, numbered(comma_separated(self.names), range(1, 151), void=(0,)))


def open_ade20k(root: Path) -> Source | None:
    """images/ and annotations/, each with training/ and validation/, whose files are called ADE_*."""
    for place in (root, root / "ADEChallengeData2016"):
        found = {
            split: folder
            for split, folder in (("train", "training"), ("val", "validation"))
            if (place / "images" / folder).is_dir() and one_is_called(place / "annotations" / folder, r"ADE_.*\.png")
        }
        if found:
            splits = {split: ADE20K(place, folder) for split, folder in found.items()}
            return Source("ade20k", str(place), splits, words="ADE20K")
    return None


ADE = Published(
    "http://sceneparsing.csail.mit.edu/",
    open_ade20k,
    (
        Archive(
            "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
            checksum="md5:7328b3957e407ddae1d3cbf487f149ef",  # what several public loaders of ADE20K compare with
        ),
    ),
    root="ADEChallengeData2016",
)
