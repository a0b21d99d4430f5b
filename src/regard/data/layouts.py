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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regard.data.compact import Names
from regard.data.listing import holds_images, is_image, is_lossy, list_images, subfolders
from regard.data.reading import readable
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
YOLO, OF_YOLO = re.compile(rb"\s*\d+(\s+\d*\.?\d+(e-?\d+)?){4}\s"), re.compile(r"((?:^|.*/))images/")
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
    orphans:  the masks without an image. words: what the tree looks like, layout: in a word.
    notes:    what was decided for the user. by_name: whether an image and its mask share their name, so that where
              images and masks are left over, they are taken to be called wrongly.
    """

    root: Path
    images: Names
    masks: Names
    has_mask: np.ndarray
    splits: np.ndarray
    orphans: Names
    words: str
    layout: str = "masks"
    notes: tuple[str, ...] = ()
    by_name: bool = True

    def by_split(self, chosen: np.ndarray) -> dict[str, Names]:
        """Of the chosen images, those of each split."""
        return {split: self.images[chosen & (self.splits == split)] for split in SPLITS}


def find_pairs(root: Path) -> Pairs | None:
    """The images and masks of a tree with a folder of masks, or None. InputError where it could be read in two ways."""
    of: dict[str, list[Place]] = defaultdict(list)
    for place, kind in _places(root):
        of[kind].append(place)
    masks = [place for place in of["masks"] if place[0] == "masks" or list_images(root, place[0])]
    if not masks:
        return None
    images, masks = _one_of_each_split(root, of["images"], "images"), _one_of_each_split(root, masks, "masks")
    if not images and not (images := _called_otherwise(root, masks, of["split"], of[""])):
        return None
    found = _paired(root, images, masks)
    if not found.images:
        raise InputError(f"no images in {root / images[0][0]}: one for each of the masks would work")
    _leave_others_out(root, [folder for folder, _ in (*images, *masks)])
    return found


def _called_otherwise(root: Path, masks: list[Place], splits: list[Place], others: list[Place]) -> list[Place]:
    """The images of masks, in folders that are not called so; none where the masks are rather a class, such as that of
    faces with one.
    """
    folder, files = masks[0][0], [file for place in masks for file in _keyed(root, place)]
    if folder != "masks" and all(is_lossy(file) for file, _ in files):
        return []
    if any(split for _, split in masks) and (images := [place for place in splits if holds_images(root / place[0])]):
        return images  # train/ + train_masks/
    holding = [place for place in others if list_images(root, place[0])] + [("", "")] * holds_images(root)
    names = {name for _, key in files for name in _names(key, OF_MASK)}
    fit = [place for place in holding if names & {key for _, key in _keyed(root, place, masks)}]
    if len(holding) == 1 or len(fit) == 1:
        return fit or holding
    if folder != "masks" and holding and not fit:
        return []
    others_are = f", and {len(holding)} other folders" if holding else ""
    fits = f"the images of those masks, in images/, would work; or another name for {folder}/, if it has none"
    raise InputError(f"{root} has {folder}/ but no images/{others_are}: {fits}")


def find_beside(root: Path, paths: Names) -> Pairs | None:
    """x.jpg beside x_mask.png: the pairs among images of which some are so called, or None."""
    if not re.search(rb"(?i)(^|[\0/ _.-])(mask|label|seg|annotation|gt)[^/\0]*\.\w+\0", paths.data):
        return None  # which takes a moment for a million names
    masks = [path for path in paths if OF_MASK.search(os.path.splitext(path)[0])]
    images = {key for path in {*paths} - {*masks} for key in _names(os.path.splitext(path)[0], OF_IMAGE)}
    masks = [path for path in masks if images & {*_names(os.path.splitext(path)[0], OF_MASK)}]
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
    notes += _yolo(root, paths)
    return {split: of for split in SPLITS if (of := paths[(where == split) & ~masks])}, notes


def _yolo(root: Path, paths: Names) -> tuple[str, ...]:
    """What is said of YOLO's labels: of images/x.jpg in labels/x.txt, or beside it. Some of the paths are looked at."""
    for path in paths[np.arange(0, len(paths), max(1, len(paths) // 100))]:
        stem = os.path.splitext(path)[0]
        for file in dict.fromkeys(f"{one}.txt" for one in (OF_YOLO.sub(r"\1labels/", stem), stem)):
            if (root / file).is_file():
                with readable(root / file), open(root / file, "rb") as opened:
                    if YOLO.match(opened.read(1024)):
                        kept = "outlines, exported as a JSON of COCO, would be; boxes are no masks"
                        return (f"labels of YOLO, such as {file}, are not read: {kept}",)
    return ()


def _in_folders_of_masks(paths: Names) -> np.ndarray:
    """Which paths are of lossless files in folders that are called so, as each patient's may have one."""
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


def said_split(path: str) -> str:
    """The split that one of the first two folders of a path says, or ""."""
    return next((split for name in path.split("/")[:-1][:2] if (split := meaning(name)[0])), "")


def split_of(path: str) -> str:
    """The split of a path by its folders; train, where none of the first two says one."""
    return said_split(path) or "train"


def check_fits(found: Pairs) -> None:
    """InputError where names do not fit: no image has a mask, or both images and masks are alone."""
    missing = np.flatnonzero(~found.has_mask)
    if len(missing) and ((found.orphans and found.by_name) or not found.has_mask.any()):
        image, mask = found.root / found.images[int(missing[0])], found.masks[int(missing[0])]
        raise no_masks(image, mask, len(missing), len(found.images), found.orphans)


def _places(root: Path) -> Iterator[tuple[Place, str]]:
    """The folders at the top, and in splits those of images and of masks; and of each what it is, at least "split"."""
    for top in subfolders(root):
        split, kind = meaning(top)
        yield (top, split), kind or ("split" if split else "")
        for inner in subfolders(root / top) if split and not kind else ():
            inner_split, kind = meaning(inner)
            if kind and not inner_split:
                yield (f"{top}/{inner}", split), kind


def _one_of_each_split(root: Path, places: list[Place], kind: str) -> list[Place]:
    """A folder for each split, of several that of the usual name; InputError where none of them is called so."""
    kept = []
    for split in dict.fromkeys(split for _, split in places):
        several = [folder for folder, of in places if of == split]
        usual = [folder for folder in several if len(several) == 1 or os.path.basename(folder) == kind]
        if len(usual) != 1:
            both = " and ".join(f"{folder}/" for folder in several)
            raise InputError(f"{root} has {both}, all of them names for {kind}: one, as {kind}/, would work")
        kept.append((usual[0], split))
    return kept


def _paired(root: Path, images: list[Place], masks: list[Place]) -> Pairs:
    """Images and masks by their paths below their places, without suffix; splits are one word in both.

    Without places of masks, those are masks whose names say so.
    """
    listed = sorted(one for place in images for one in _keyed(root, place, masks))
    files = [one for place in masks for one in _keyed(root, place)]
    if not masks:
        files = [one for one in listed if OF_MASK.search(one[1])]
        listed = [one for one in listed if not OF_MASK.search(one[1])]
    called: dict[str, list[str]] = defaultdict(list)  # the images that a name may be of
    for key in sorted({key for _, key in listed}):
        for name in _names(key, OF_IMAGE):
            called[name].append(key)
    called |= {key: [key] for _, key in listed}
    mask_of: dict[str, str] = {}
    orphans: list[str] = []
    for path, key in sorted(files, key=lambda file: _preference(file[0])):
        image, *more = next((called[name] for name in _names(key, OF_MASK) if name in called), [""])
        if more:
            raise InputError(f"{root} has two images of {path}, {image} and {more[0]}: one would work")
        if not image:
            orphans.append(path)
        elif os.path.splitext(there := mask_of.setdefault(image, path))[0] != os.path.splitext(path)[0]:
            raise InputError(f"{root} has two masks of {image}, {there} and {path}: one would work")
    paths = Names(path for path, _ in listed)
    has_mask = np.array([key in mask_of for _, key in listed], bool)
    where, unknown = _split_folders(root, images, paths)
    for folder in unknown:
        if has_mask[paths.below(folder)].any():
            fits = "images of train/, val/ or test/ in one of those, and others elsewhere, would work"
            raise InputError(f"{root / folder} is none of the splits that are beside it: {fits}")
        say_once(f"{root / folder} is no split and has no masks: its images are for pretrain alone")
    wanted = Names(mask_of.get(key) or _wanted(key, dict(masks)) for _, key in listed)
    words = f"{_shown(images)} + {_shown(masks)} tree" if masks else "tree of images x beside masks x_mask"
    return Pairs(root, paths, wanted, has_mask, where, Names(sorted(orphans)), words)


def _keyed(root: Path, place: Place, besides: Sequence[Place] = ()) -> Iterator[tuple[str, str]]:
    """The images below a place, and none below others; of each, what its mask or its image shares with it."""
    folder, split = place
    paths = list_images(root, folder)
    left_out = {number for other, _ in besides for number in range(len(paths))[paths.below(other)]}
    for number, path in enumerate(paths):
        if number not in left_out:
            first, slash, rest = os.path.splitext(path.removeprefix(f"{folder}/"))[0].partition("/")
            key = f"{(slash and meaning(first)[0]) or first}{slash}{rest}"
            yield path, unicodedata.normalize("NFC", f"{split}/{key}" if split else key)  # macOS writes others


def _names(key: str, said: re.Pattern[str]) -> dict[str, None]:
    """What an image or a mask may be called, likest first, without what is `said`: x for x_mask and x.jpg.png."""
    bare = said.sub("", key, count=1)
    return dict.fromkeys((key, bare, *(os.path.splitext(name)[0] for name in (key, bare) if is_image(name))))


def _split_folders(root: Path, places: list[Place], paths: Names) -> tuple[np.ndarray, list[str]]:
    """The split of each of the sorted paths; and the folders with images that are no split beside some that are."""
    where = np.full(len(paths), "train", "<U5")
    unknown: list[str] = []
    for folder, split in places:
        inner = {f"{folder}/{name}".lstrip("/"): meaning(name)[0] for name in subfolders(root / folder)}
        for path, said in {folder: split}.items() if split else inner.items():
            part = paths.below(path)
            if said:
                where[part] = said
            elif part.start < part.stop and any(inner.values()):
                unknown.append(path)
    return where, unknown


def _wanted(key: str, masks: Mapping[str, str]) -> str:
    """Where the mask of an image would be looked for."""
    if not masks:
        return f"{key}_mask.png"
    split, _, rest = key.partition("/")
    of_split = next((folder for folder, of in masks.items() if of == split), "")
    return f"{of_split}/{rest}.png" if of_split else f"{next(iter(masks))}/{key}.png"


def _shown(places: list[Place]) -> str:
    """Places as people write them: images/, or train/images/ where there are several."""
    folder = min(places, key=lambda place: place[1] != "train")[0]
    return f"{folder}/" if folder else "images"


def _preference(file: str) -> tuple[bool, bool, str]:
    """Sorts the masks of one name: a PNG before other files, and JPEGs last."""
    return is_lossy(file), not file.lower().endswith(".png"), file


def no_masks(image: Path, wanted: str, count: int, of: int, orphans: Sequence[str] = ()) -> InputError:
    """What is said where `count` of so many images have no mask, the first of which is `image`."""
    suffix = os.path.splitext(wanted)[1][1:].upper()
    line = f"{count} of {of} images have no mask, the first is {image}: a {suffix} at {wanted} would work"
    if orphans:
        line += f"; and {len(orphans)} masks have no image, such as {orphans[0]}"
    return InputError(f"{line}; to learn without masks, a folder that holds images alone")
