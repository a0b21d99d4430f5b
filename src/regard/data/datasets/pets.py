"""Oxford-IIIT Pet (Parkhi et al. 2012): images/ and annotations/trimaps/."""

from collections.abc import Iterable
from pathlib import Path

from regard.data.datasets.base import Source
from regard.data.datasets.masks import PairedImages
from regard.data.datasets.published import Archive, Published, listed
from regard.data.listing import with_val
from regard.data.names import numbered
from regard.errors import InputError


class OxfordPet(PairedImages):
    """The trimaps of cats and dogs, as two classes: 2 is background, 1 the pet; 3, the border of the two, is void."""

    def __init__(self, root: str | Path, paths: Iterable[str]):
        masks = {path: f"annotations/trimaps/{Path(path).stem}.png" for path in paths}
        super().__init__(root, masks, numbered(("background", "pet"), (2, 1), void=(3,)))


def open_pets(root: Path) -> Source | None:
    """images/ and annotations/trimaps/, with annotations/trainval.txt and test.txt, whose lines begin with a name.

    Only what they list counts: beside them lie hidden ._*.png files and a few .mat files.
    """
    for place in (root, root / "oxford-iiit-pet"):
        if (place / "annotations/trimaps").is_dir() and (place / "images").is_dir():
            stems = {
                split: listed(place / "annotations" / f"{name}.txt", columns=True)
                for split, name in (("train", "trainval"), ("test", "test"))
            }
            if not stems["train"]:
                raise InputError(f"{place / 'annotations/trainval.txt'} is missing or empty: unpack annotations.tar.gz")
            paths = {split: [f"images/{stem}.jpg" for stem in of] for split, of in stems.items()}
            splits, notes = with_val(paths)
            datasets = {split: OxfordPet(place, of) for split, of in splits.items()}
            return Source("pets", str(place), datasets, notes, "Oxford-IIIT Pet")
    return None


SERVER = "https://www.robots.ox.ac.uk/~vgg/data/pets"
PETS = Published(
    f"{SERVER}/",
    open_pets,
    (  # torchvision/datasets/oxford_iiit_pet.py
        Archive(f"{SERVER}/data/images.tar.gz", 791_918_971, "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c"),
        Archive(f"{SERVER}/data/annotations.tar.gz", 19_173_078, "md5:95a8c909bbe2e81eed6a22bccdf3f68f"),
    ),
)
