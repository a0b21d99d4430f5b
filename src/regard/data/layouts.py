"""How trees of one's own are laid out, told by the names of folders and files; pixels are never looked at.

| layout | read as |
|---|---|
| images/ + masks/, with or without train/, val/, test/ in both | pairs of one name: images/x.jpg and masks/x.png |
| train/images/ + train/masks/, val/...; train_images/ + train_masks/; train/ + train_masks/ | the same, by split |
| other words for either folder, of `IMAGES` and `MASKS`: photos/ + labels/, img_dir/ + ann_dir/ | the same |
| a folder of masks, and images in the one other folder, or beside that folder | the same |
| x.jpg beside x_mask.png or mask_x.png, as `OF_MASK` says; also masks/x_mask.png in the trees above | pairs |
| two or more folders with images directly in each, also below train/, val/, test/ | class folders |
| any other images, at any depth, also below train/, val/, test/ | a plain folder |

Upper and lower case are one, so are forms of Unicode, and train2017 is train. Folders around one of these, each alone
in the next, do not count. Where a tree could be read in two ways, it is refused; what is left out is said.
"""

import functools
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regard.data.compact import Names
from regard.data.listing import holds_images, is_image, is_lossy, list_images, subfolders
from regard.errors import InputError
from regard.say import say_once

SPLITS = {"train": "train training", "val": "val valid validation", "test": "test testing"}  # the names in use
IMAGES = "image images img imgs photo photos picture pictures"
MASKS = "mask masks label labels annotation annotations ann anns annot segmentation segmentations seg gt gts ground "
MASKS += "truth groundtruth"
SAYS_NOTHING = "dir folder set data my jpeg png class fine coarse"  # words that a name may have besides
WORDS = {word: split for split, words in SPLITS.items() for word in words.split()}
WORDS |= dict.fromkeys(IMAGES.split(), "images") | dict.fromkeys(MASKS.split(), "masks")
WORDS |= dict.fromkeys(SAYS_NOTHING.split(), "")
PARTS = re.compile(r"[ ._-]+|(?<=[a-z])(?=[A-Z])|(?<=JPEG)|((?:19|20)\d\d)$")  # between and at the end of words
Place = tuple[str, str]  # a folder, relative to the root, and its split, "" where folders inside it may tell that


def _said(words: str) -> re.Pattern[str]:
    """One of these words, at the start or the end of a file's name, there maybe with a number after it."""
    either = "|".join(words.split())
    return re.compile(rf"(?<![^/])(?:{either})[ _.-]+(?=[^/]+$)|[ _.-](?:{either})(?:[ _-]?\d+)?$", re.IGNORECASE)


# x_mask.png and mask_x.png are of x.jpg, x_sat.jpg and img_x.jpg.
OF_MASK, OF_IMAGE = _said("mask masks label labels seg segmentation annotation gt"), _said("image img rgb sat")


def meaning(folder: str) -> tuple[str, str]:
    """What the name of a folder says: a split, and "images" or "masks"; "" for what it does not say.

    >>> meaning("Train2017"), meaning("train_masks"), meaning("GroundTruth"), meaning("train station")
    (('train', ''), ('train', 'masks'), ('', 'masks'), ('', ''))
    """
    words = [word for word in PARTS.split(folder) if word]
    year = bool(words) and words[-1].isdigit()
    said = [WORDS.get(word.casefold()) for word in (words[:-1] if year else words)]
    splits = [one for one in said if one in SPLITS]
    if None in said or len(splits) > 1 or (year and not splits):
        return "", ""
    return "".join(splits), "masks" if "masks" in said else "images" if "images" in said else ""


@dataclass(frozen=True)
class Pairs:
    """Images, and the masks that belong to them; all paths relative to the root, all of one order.

    images:   those with a mask and those without. masks: of each, the one there is, or where one would be looked for.
    has_mask: which of the images have one. splits: of each, "train", "val" or "test".
    orphans:  the masks without an image. words: what the tree looks like.
    """

    root: Path
    images: Names
    masks: Names
    has_mask: np.ndarray
    splits: np.ndarray
    orphans: Names
    words: str

    def by_split(self, chosen: np.ndarray) -> dict[str, Names]:
        """Of the chosen images, those of each split."""
        return {split: self.images[chosen & (self.splits == split)] for split in SPLITS}

    def counts(self) -> str:
        """How many images have a mask; "" where all have."""
        return "" if self.has_mask.all() else f"{self.has_mask.sum():,} of {len(self.images):,} images have a mask"


def find_pairs(root: Path) -> Pairs | None:
    """The images and masks of a tree with a folder of masks, or None. InputError where it could be read in two ways."""
    images, masks, splits, others = _places(root)
    masks = [place for place in masks if place[0] == "masks" or list_images(root, place[0])]
    if not masks:
        return None
    for kind, places in (("images", images), ("masks", masks)):
        _only_one_of_a_split(root, places, kind)
    files = [] if images else [file for place in masks for file in _keyed(root, place, [])]
    may_be_class = bool(files) and masks[0][0] != "masks"  # such as that of faces with one
    if may_be_class and all(is_lossy(file) for file, _ in files):
        return None
    if not images and any(split for _, split in masks):  # train/ + train_masks/
        images = [place for place in splits if holds_images(root / place[0])]
    if not images:
        names = [name for name in others if list_images(root, name)] + ([""] if holds_images(root) else [])
        of = {key for _, mask in files for key in _keys_of(mask)}
        fit = [name for name in names if len(names) == 1 or of & {key for _, key in _keyed(root, (name, ""), masks)}]
        if may_be_class and names and not fit:
            return None
        if len(fit) != 1:
            folder, others_are = masks[0][0], f", and {len(names)} other folders" if names else ""
            fits = f"the images of those masks, in images/, would work; or another name for {folder}/, if it has none"
            raise InputError(f"{root} has {folder}/ but no images/{others_are}: {fits}")
        images = [(fit[0], "")]
    found = _paired(root, images, masks)
    if not found.images:
        raise InputError(f"no images in {root / images[0][0]}: one for each of the masks would work")
    _leave_others_out(root, [folder for folder, _ in (*images, *masks)])
    return found


def find_beside(root: Path, paths: Names) -> Pairs | None:
    """x.jpg beside x_mask.png: the pairs among images of which some are so called, or None."""
    if not re.search(rb"(?i)(^|[\0/ _.-])(mask|label|seg|annotation|gt)[^/\0]*\.\w+\0", paths.data):
        return None  # which takes a moment for a million names
    masks = [path for path in paths if OF_MASK.search(os.path.splitext(path)[0])]
    images = {key for path in {*paths} - {*masks} for key in _keys_of(os.path.splitext(path)[0], OF_IMAGE)}
    masks = [path for path in masks if images & {*_keys_of(os.path.splitext(path)[0])}]
    if not masks or (all(map(is_lossy, masks)) and len(masks) < len(paths) / 3):  # a few photos of a mask, or a label
        return None
    return _paired(root, [("", "")], [])


def split_images(root: Path, folder: str = "") -> tuple[dict[str, Names], tuple[str, ...]]:
    """The images below root/folder by the split folder they are in; the others are train. And what is to be said."""
    paths = list_images(root, folder)
    where, unknown = _split_folders(root, [(folder, "")], paths)
    notes = tuple(f"{name}/ is no split, so its images are for training" for name in unknown)
    _leave_others_out(root, [folder])
    masks = _in_folders_of_masks(paths)
    if masks.any():
        first = os.path.dirname(paths[int(np.argmax(masks))])
        notes += (f"{masks.sum():,} files in folders of masks, such as {first}/, are left out",)
    return {split: of for split in SPLITS if (of := paths[(where == split) & ~masks])}, notes


def _in_folders_of_masks(paths: Names) -> np.ndarray:
    """Which paths are of lossless files in folders that are called so, as each patient's may have one."""
    if not re.search(rb"(?i)(mask|label|ann|seg|gt|truth)[^/\0]*/", paths.data):
        return np.zeros(len(paths), bool)
    of = functools.cache(lambda folder: any(meaning(part)[1] == "masks" for part in folder.split("/")))
    return np.array([not is_lossy(path) and of(os.path.dirname(path)) for path in paths], bool)


def _leave_others_out(root: Path, used: Sequence[str]) -> None:
    """Say it of folders with images at the top of a tree of which others are read."""
    tops = list(dict.fromkeys(folder.partition("/")[0] for folder in used))
    for name in [] if "" in tops else subfolders(root):
        if name not in tops and list_images(root, name):
            say_once(
                f"{root / name} is beside {' and '.join(f'{top}/' for top in tops[:2])}, and left out of the images"
            )


def split_of(path: str) -> str:
    """The split of a path by its folders; train, where none of the first two says one."""
    return next((split for name in path.split("/")[:2] if (split := meaning(name)[0])), "train")


def check_fits(found: Pairs) -> None:
    """InputError where names do not fit: no image has a mask, or both images and masks are alone."""
    missing = np.flatnonzero(~found.has_mask)
    if not len(missing) or (found.has_mask.any() and not found.orphans):
        return
    first = int(missing[0])
    suffix = os.path.splitext(found.masks[first])[1][1:].upper()
    wanted = f"a {suffix} at {found.masks[first]} would work"
    line = f"{len(missing)} of {len(found.images)} images have no mask, the first is "
    line += f"{found.root / found.images[first]}: {wanted}"
    if found.orphans:
        line += f"; and {len(found.orphans)} masks have no image, such as {found.orphans[0]}"
    raise InputError(f"{line}; to learn without masks, a folder that holds images alone")


def _places(root: Path) -> tuple[list[Place], list[Place], list[Place], list[str]]:
    """The folders of images, those of masks, those at the top that are splits, and the other ones there."""
    found: dict[str, list[Place]] = {"images": [], "masks": []}
    splits: list[Place] = []
    others = []
    for top in subfolders(root):
        split, kind = meaning(top)
        if kind:
            found[kind].append((top, split))
        elif split:
            splits.append((top, split))
            for inner in subfolders(root / top):
                inner_split, kind = meaning(inner)
                if kind and not inner_split:
                    found[kind].append((f"{top}/{inner}", split))
        else:
            others.append(top)
    return found["images"], found["masks"], splits, others


def _only_one_of_a_split(root: Path, places: list[Place], kind: str) -> None:
    """Leave one folder for each split, that of the usual name of several; InputError where none is called so."""
    of_split: dict[str, list[Place]] = defaultdict(list)
    for place in places:
        of_split[place[1]].append(place)
    for several in of_split.values():
        usual = [place for place in several if os.path.basename(place[0]) == kind]
        if len(several) > 1 and len(usual) != 1:
            both = " and ".join(f"{folder}/" for folder, _ in several)
            raise InputError(f"{root} has {both}, all of them names for {kind}: one, as {kind}/, would work")
        for place in several if len(several) > 1 else ():
            if place != usual[0]:
                places.remove(place)


def _paired(root: Path, images: list[Place], masks: list[Place]) -> Pairs:
    """Images and masks by their paths below their places, without suffix; splits are one word in both."""
    listed = [(path, key) for place in images for path, key in _keyed(root, place, masks)]
    if masks:
        files = [one for place in masks for one in _keyed(root, place, [])]
    else:  # those whose names say so
        files = [one for one in listed if OF_MASK.search(one[1])]
        listed = [one for one in listed if not OF_MASK.search(one[1])]
    called: dict[str, list[str]] = defaultdict(list)  # the images that a name may be of
    for key in sorted({key for _, key in listed}):
        for name in dict.fromkeys(_keys_of(key, OF_IMAGE)):
            called[name].append(key)
    called |= {key: [key] for _, key in listed}
    mask_of: dict[str, str] = {}
    orphans: list[str] = []
    for path, key in sorted(files, key=lambda file: _preference(file[0])):
        image, *more = next((called[name] for name in _keys_of(key) if name in called), [""])
        if not image:
            orphans.append(path)
        elif more:
            raise InputError(f"{root} has two images of {path}, {image} and {more[0]}: one would work")
        elif os.path.splitext(there := mask_of.setdefault(image, path))[0] != os.path.splitext(path)[0]:
            raise InputError(f"{root} has two masks of {image}, {there} and {path}: one would work")
    listed.sort()
    paths = Names(path for path, _ in listed)
    where, unknown = _split_folders(root, images, paths)
    wanted = Names(mask_of.get(key) or _wanted(path, images, masks) for path, key in listed)
    words = f"{_shown(images)} + {_shown(masks)} tree" if masks else "tree of images x beside masks x_mask"
    has_mask = np.array([key in mask_of for _, key in listed], bool)
    for folder in unknown:
        if has_mask[paths.below(folder)].any():
            fits = "images of train/, val/ or test/ in one of those, and others elsewhere, would work"
            raise InputError(f"{root / folder} is none of the splits that are beside it: {fits}")
        say_once(f"{root / folder} is no split and has no masks: its images are for pretrain alone")
    return Pairs(root, paths, wanted, has_mask, where, Names(sorted(orphans)), words)


def _keyed(root: Path, place: Place, besides: list[Place]) -> Iterator[tuple[str, str]]:
    """The images below a place, and none below others; of each, what its mask or its image shares with it."""
    folder, split = place
    paths = list_images(root, folder)
    others = [paths.below(other) for other, _ in besides]
    left_out = {number for part in others for number in range(part.start, part.stop)}
    for number, path in enumerate(paths):
        if number not in left_out:
            first, slash, rest = os.path.splitext(_within(path, folder))[0].partition("/")
            key = f"{(slash and meaning(first)[0]) or first}{slash}{rest}"
            yield path, unicodedata.normalize("NFC", f"{split}/{key}" if split else key)  # macOS writes others


def _keys_of(key: str, said: re.Pattern[str] = OF_MASK) -> tuple[str, ...]:
    """What a mask's image may be called, likest first: of x.jpg.png or x_mask.png too; or an image's mask."""
    bare = said.sub("", key, count=1)
    return (key, bare, *(os.path.splitext(name)[0] for name in (key, bare) if is_image(name)))


def _split_folders(root: Path, places: list[Place], paths: Names) -> tuple[np.ndarray, tuple[str, ...]]:
    """The split of each of the sorted paths; and the folders with images that are no split beside some that are."""
    where = np.full(len(paths), "train", "<U5")
    unknown: list[str] = []
    for folder, split in places:
        inner = {f"{folder}/{name}" if folder else name: meaning(name) for name in subfolders(root / folder)}
        if split:
            where[paths.below(folder)] = split
            continue
        for path, (said, _) in inner.items():
            if said:
                where[paths.below(path)] = said
        if any(said for said, _ in inner.values()):
            parts = {path: paths.below(path) for path, (said, _) in inner.items() if not said}
            unknown += [path for path, part in parts.items() if part.start < part.stop]
    return where, tuple(unknown)


def _wanted(path: str, images: list[Place], masks: list[Place]) -> str:
    """Where the mask of an image would be looked for."""
    if not masks:
        return f"{os.path.splitext(path)[0]}_mask.png"
    folder, split = next(place for place in images if not place[0] or path.startswith(f"{place[0]}/"))
    beside = next((place for place in masks if place[1] == split), masks[0])
    return f"{beside[0]}/{os.path.splitext(_within(path, folder))[0]}.png"


def _within(path: str, folder: str) -> str:
    return path.removeprefix(f"{folder}/") if folder else path


def _shown(places: list[Place]) -> str:
    """Places as people write them: images/, or train/images/ where there are several."""
    folder = min(places, key=lambda place: place[1] != "train")[0]
    return f"{folder}/" if folder else "images"


def _preference(file: str) -> tuple[bool, bool, str]:
    """Sorts the masks of one name: a PNG before other files, and JPEGs last."""
    return is_lossy(file), not file.lower().endswith(".png"), file
