"""Finds out what a path holds, by looking at folders and never at pixels, and opens it as datasets by split.

| layout | what it looks like |
|---|---|
| scenes | the words `scenes` and `objects`: built-in data, drawn; `objects:50000` has so many to train on |
| voc, coco-stuff, ade20k, ... | a published tree, as the file of each in datasets/ says |
| masks, class folders, images | trees of one's own, as layouts.py says |
| labelme | photos with JSONs of LabelMe, beside them or in another folder: see datasets/labelme.py |
| coco, cvat | images, and JSONs of COCO or XMLs of CVAT for many of them: see datasets/coco.py and cvat.py |
| packed | regard.json: chunks of any of these, made by `regard data pack`; or the s3://, gs://, https:// URL of such |

VOC has the augmented train set where its masks are there, as SegmentationClassAug/ or as SBD's .mat files, inside the
tree or beside it. The path of the tree's SegmentationClass/ in place of the tree's means: the official train set alone.
"""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, UInt8

from regard.data.compact import Names
from regard.data.datasets.base import Dataset, MaskDataset, Source
from regard.data.datasets.coco import coco_beside, find_coco
from regard.data.datasets.cvat import find_cvat
from regard.data.datasets.folders import ClassFolders, ImageFolder
from regard.data.datasets.labelme import Annotated, LabelMe, by_hand_beside, find_annotated
from regard.data.datasets.masks import MaskFolder
from regard.data.datasets.published import open_published
from regard.data.datasets.regions import Outlined, Regions
from regard.data.datasets.scenes import Objects, Scenes
from regard.data.layouts import OF_IMAGE, OF_MASK, Pairs, check_fits, find_beside, find_pairs, meaning, split_images
from regard.data.listing import holds_images, is_hidden, is_lossy, is_runs_own, list_images, subfolders, with_val
from regard.data.names import VOID, Legend
from regard.data.packs.packed import is_pack, open_pack, sums
from regard.data.packs.store import is_remote
from regard.data.threads import in_threads
from regard.errors import InputError, naming
from regard.say import say, say_once
from regard.settings import MOST_IMAGES

SCENES_COUNT = {"train": 512, "val": 128, "test": 128}
DRAWN = {"scenes": Scenes, "objects": Objects}
SAID = {"coco": "a JSON of COCO", "cvat": "an XML of CVAT", "labelme": "JSONs of LabelMe"}  # of layouts, to people


def open_source(
    src: str | Path, *, scenes_size: int = 64, scenes_count: Mapping[str, int] | None = None, seed: int = 0
) -> Source:
    """The datasets at `src`: "scenes" or "objects" (drawn at `scenes_size`, by `seed`; "scenes:5000" for so many to
    train on), a folder (./scenes for one of that name) or the URL of a pack.

    Raises InputError when there is nothing there to use, or when what is there doesn't fit together.
    """
    if is_drawn(src):
        name, colon, count = str(src).partition(":")
        if Path(src).is_dir():
            say(f"{src}: the built-in data; ./{src} would be the folder")
        counts = dict(SCENES_COUNT if scenes_count is None else scenes_count)
        if colon:
            counts["train"] = _count(str(src), count)
        splits = {split: DRAWN[name](count, scenes_size, seed, split) for split, count in counts.items()}
        return Source("scenes", str(src), splits, words=f"built-in {name}")
    if is_remote(src) or is_pack(Path(src).expanduser()):
        return open_pack(src)
    root = _folder(src)
    if source := open_published(root):
        return source
    source = _own(root)
    if source.layout == "images" and (inner := unwrapped(root)) != root:
        within = _own(inner)
        return source if within.layout == "images" else within
    return source


def unwrapped(root: Path) -> Path:
    """The folder that others are around, as archives have them, each alone in the next; or `root` itself."""
    while not holds_images(root) and len(inner := subfolders(root)) == 1 and meaning(inner[0]) == ("", ""):
        root /= inner[0]
    return root


def _own(root: Path) -> Source:
    """A tree of one's own; InputError for one without images."""
    if pairs := find_own(root):
        return _mask_tree(pairs)
    alone = (root / "images").is_dir()  # beside it there may be annotations of another kind
    if source := None if alone else _class_folders(root):
        listed = [cast(ImageFolder, dataset).paths for dataset in source.splits.values()]
    else:
        splits, notes = split_images(root, "images" if alone else "")
        datasets = {split: ImageFolder(root, paths) for split, paths in (splits or {"train": []}).items()}
        source = Source("images", str(root), datasets, notes, "plain image folder")
        listed = list(splits.values())
    beside = next((pairs for paths in listed if (pairs := find_beside(root, paths))), None)
    return _mask_tree(beside) if beside else source


def is_drawn(src: str | Path) -> bool:
    """Whether it names built-in data."""
    return str(src).partition(":")[0] in DRAWN


def _count(src: str, count: str) -> int:
    if not count.isdecimal() or not 1 <= int(count) <= MOST_IMAGES:
        raise InputError(f"{src}: a number of images is wanted after the colon, 1 to {MOST_IMAGES:,}")
    return int(count)


def check_there(src: str) -> None:
    """InputError where there is nothing at a path at all; what is there is left for `open_source` to read."""
    if not is_drawn(src) and not is_remote(src):
        _folder(src)


def check_beside(source: Source, folder: Path) -> None:
    """InputError for a folder to be made within its own source, as it would be listed as a part of that."""
    on_disk = source.layout != "scenes" and not is_remote(source.root)
    if on_disk and folder.is_relative_to(Path(source.root).resolve()):
        raise InputError(f"{folder} is within {source.root}, which it is to be made of: one beside it would work")


def require_masks(source: Source) -> Mapping[str, MaskDataset]:
    """The splits of a source that has masks; InputError, with what would work, for one that has none."""
    if not source.has_masks:
        published = "a published tree, such as VOC 2012 or Cityscapes"
        own = "images/ + masks/ (PNGs of classes), JSONs of LabelMe or COCO, an XML of CVAT"
        needs = f"segmentation needs {own}, {published}, or `--data scenes`"
        raise InputError(f"{source.root} ({source.words}) has no masks: {needs}")
    return cast(Mapping[str, MaskDataset], source.splits)


def find_own(root: Path) -> Pairs | None:
    """Images and their masks, or in the place of masks what tools for drawing write; None where there are neither.

    InputError where there are both.
    """
    pairs = find_pairs(root)
    if pairs and pairs.has_mask.any():
        if drawn := by_hand_beside(root, pairs.images):
            first = pairs.masks[int(np.argmax(pairs.has_mask))]
            have = f"masks such as {first}, and {len(drawn):,} JSONs of LabelMe by hand, such as {drawn[0]}"
            raise InputError(f"{root} has {have}: keep one kind, e.g. move {os.path.dirname(first)}/ away")
        if left := coco_beside(root):
            first = pairs.masks[int(np.argmax(pairs.has_mask))]
            say_once(f"{root} has masks, such as {first}, and {left}: the masks are read")
        return pairs
    found = _annotated(root)
    if found and (beside := find_beside(root, found.images)):
        first = beside.masks[int(np.argmax(beside.has_mask))]
        raise InputError(f"{root} has {SAID[found.layout]} and masks such as {first}: one of the two would work")
    return found or pairs


def _annotated(root: Path) -> Pairs | None:
    """Images with a kind of `SAID`; InputError for two kinds."""
    files = list_images(root, endings=(".json", ".xml"))
    jsons, xmls = (Names(file for file in files if file.lower().endswith(ending)) for ending in (".json", ".xml"))
    images = list_images(root) if files else files
    coco, cvat = find_coco(root, jsons, images), find_cvat(root, xmls, images)
    others = Names(file for file in jsons if file not in {*coco.masks}) if coco else jsons
    found = [one for one in (coco, cvat, find_annotated(root, others)) if one]
    if len(found) > 1:
        both = " and ".join(f"{SAID[one.layout]}, such as {one.masks[int(np.argmax(one.has_mask))]}" for one in found)
        raise InputError(f"{root} has {both}: one kind would work")
    return found[0] if found else None


def masks_of(found: Pairs, legend: Legend | None = None, *, missing_ok: bool = False) -> MaskFolder:
    """What was found, as a dataset."""
    if isinstance(found, Outlined):
        return Regions(found.root, found, legend, missing_ok=missing_ok)
    if isinstance(found, Annotated):
        return LabelMe(found.root, found, legend, missing_ok=missing_ok)
    return MaskFolder(found.root, found, legend, missing_ok=missing_ok)


def _mask_tree(found: Pairs) -> Source:
    check_fits(found)
    splits, notes = with_val(found.by_split(found.has_mask))
    whole = masks_of(found)  # once over all splits, since its classes may be read from all masks
    number_of = {path: number for number, path in enumerate(whole.paths)}
    datasets = {split: whole.only(np.array([number_of[path] for path in of])) for split, of in splits.items()}
    every: dict[str, Dataset] = {}
    if not found.has_mask.all():
        without = found.by_split(~found.has_mask)
        train, rest = len(without["train"]), len(without["val"]) + len(without["test"])
        kinds = ((train, "without, for pretrain alone"), (rest, "without, of val or test, left out"))
        said = ", ".join(f"{count:,} {what}" for count, what in kinds if count)
        notes += (f"{found.has_mask.sum():,} of {len(found.images):,} images have a mask: {said}",)
        every = {"train": ImageFolder(found.root, Names(sorted([*splits.get("train", ()), *without["train"]])))}
    notes += found.notes
    if found.layout == "masks" and not any((found.root / name).is_file() for name in ("classes.txt", "classes.json")):
        notes += ("no classes.txt, so the classes are counted from the values in all the masks",)
    if found.orphans and found.by_name:
        notes += (f"masks without an image, ignored: {len(found.orphans):,}",)
    return Source(found.layout, str(found.root), datasets, notes, found.words, every)


def _class_folders(root: Path) -> Source | None:
    said = {name: meaning(name)[0] for name in subfolders(root)}
    tops = {split: root / name for name, split in said.items() if split}
    is_split = "train" in tops and _by_class(tops["train"])
    if not is_split and not _by_class(root):
        return None
    if not is_split:
        said, tops = {}, {"train": root}
    train = ClassFolders(tops["train"])
    splits = {"train": train}
    for split in ("val", "test"):
        if split in tops and _by_class(tops[split]):
            splits[split] = ClassFolders(tops[split], train.classes)
    notes = tuple(f"{tops[s].name}/ is ignored: it has not two class folders" for s in tops if s not in splits)
    notes += tuple(f"{name}/ is ignored: it is no split" for name, split in said.items() if not split)
    return Source("class folders", str(root), splits, notes + _maybe_masks(train), "class folders")


def _maybe_masks(dataset: ClassFolders) -> tuple[str, ...]:
    """What is said of two or three classes of which one has lossless images by the names of another's."""
    if len(dataset.classes) > 3:
        return ()
    paths = {folder: dataset.paths[dataset.paths.below(folder)] for folder in subfolders(dataset.root)}
    names = {
        folder: {OF_IMAGE.sub("", OF_MASK.sub("", os.path.splitext(path.removeprefix(folder))[0])) for path in of}
        for folder, of in paths.items()
    }
    for one, other in permutations(paths, 2):
        if names[one] == names[other] and not any(map(is_lossy, paths[one])):
            return (f"{one}/ and {other}/ share their names: as masks/ and images/ they would be read as pairs",)
    return ()


def _by_class(root: Path) -> bool:
    """Whether two folders or more hold images directly, no folder only further down, and `root` none itself."""
    folders = subfolders(root)
    direct = {folder for folder in folders if holds_images(root / folder)}
    classes = [folder for folder in direct if not meaning(folder)[0]]  # a flat train/ beside a flat val/ are not two
    if len(classes) < 2 or holds_images(root):
        return False
    return all(folder in direct or not list_images(root, folder) for folder in folders)


def _folder(src: str | Path) -> Path:
    """The resolved folder; InputError for what isn't one."""
    if scheme := re.match(r"[\w+.-]{2,}:/", str(src)):  # two letters, since C:/ is a disk
        shown = f"{scheme[0]}..." if "@" in str(src) else str(src).partition("?")[0]  # without user, password, query
        raise InputError(f"{shown} is no URL: a pack at s3://BUCKET/FOLDER, gs:// or https://, or a folder, would work")
    root = Path(src).expanduser().resolve()
    if root.is_dir():
        return root
    if root.is_file():
        raise InputError(f"{root} is a file: the folder that holds it would work; unpack an archive first")
    missing = next(path for path in (*reversed(root.parents), root) if not path.exists())
    beside = missing.parent.iterdir() if missing.parent.is_dir() else ()
    known = [*(path.name for path in beside if path.is_dir()), *DRAWN]
    near = difflib.get_close_matches(missing.name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "the path of a folder, or `scenes` (built in), would work"
    raise InputError(f"no such folder: {missing}; {hint}")


def check_readable(source: Source, short: int = 1) -> None:
    """Read every image and mask once, so that a long training does not stop at a bad one; shows a progress bar.

    Raises InputError for the first that cannot be used: unreadable, a mask of another size than its image, or with a
    value that is no class; for one that is too long to be brought to this short side; for a split without a labelled
    pixel; and for two classes of which one seems to be drawn in white. The built-in scenes need no check, and what a
    pack holds was checked when it was packed.
    """
    if source.layout == "scenes":
        return
    for split, dataset in source.splits.items():
        if source.layout == "packed":  # up to the first that is labelled
            seen = next(
                (seen for i in range(len(dataset)) if (seen := _seen(dataset, short, i))[:VOID].any()), _NOTHING
            )
        else:
            doing = f"checking images of {split}"
            seen = sum(in_threads(partial(_seen, dataset, short), range(len(dataset)), doing), start=_NOTHING)
            if split == "train" and source.has_masks:
                if line := white(source.classes, seen):
                    raise InputError(line)
                if line := unseen(source.classes, seen):
                    say(line)
        if source.has_masks and not seen[:VOID].any():
            what = f"every pixel of the {split} masks of {source.root} is void"
            raise InputError(f"{what}: there is nothing to learn or score")


_NOTHING = np.zeros(VOID + 1, bool)


def _seen(dataset: Dataset, short: int, i: int) -> np.ndarray:
    """Which classes an image has pixels of, and void, (256,), image and mask having been read."""
    from regard.data.loading.augment import short_side  # where torch is needed anyway

    with naming(dataset.name(i)):
        short_side(dataset.image(i).shape[:2], short)
    return held_by(dataset.mask(i)) if isinstance(dataset, MaskDataset) else _NOTHING


def held_by_all(dataset: MaskDataset) -> Bool[np.ndarray, "256"]:
    """As `held_by`, of any of the masks."""
    return sum((held_by(dataset.mask(i)) for i in range(len(dataset))), start=_NOTHING)


def held_by(mask: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "256"]:
    """Which classes a mask has pixels of; in the last place, void."""
    return np.bincount(mask.ravel(), minlength=VOID + 1) > 0


def white(classes: Sequence[str], seen: np.ndarray) -> str:
    """What is said of two classes of which the training masks show the first, and the other drawn in white, as void."""
    if len(classes) != 2 or not seen[0] or seen[1] or len(seen) <= VOID or not seen[VOID]:
        return ""
    declared = json.dumps([{"name": classes[0], "value": 0}, {"name": classes[1], "value": VOID}])
    what = f"value {VOID} of a two-class mask is void, and no training mask has a pixel of {classes[1]!r}"
    return f"{what}: if it is that class, classes.json of {declared} would work"


def unseen(classes: Sequence[str], seen: np.ndarray) -> str:
    """What is said of the classes that no training mask has a pixel of; "" where there are none."""
    names = [name for name, there in zip(classes, seen, strict=False) if not there]
    return f"no training mask has a pixel of {some_of(names)}: it can't be learned" if names else ""


def some_of(classes: Sequence[str]) -> str:
    """The first of these names, and how many more there are."""
    more = f" and {len(classes) - 5:,} more classes" if len(classes) > 5 else ""
    return f"{', '.join(map(repr, classes[:5]))}{more}"


def fingerprint(source: Source, *besides: Path) -> str:
    """Changes whenever a file below the source changes: its path, size or time; files are not read. Those that are
    hidden, or that runs wrote, do not count.

    It changes with what was decided for the user, too: the same files may give another train set.
    besides: folders that may lie below the source and do not count. The scenes' tells their counts and size;
    a pack's, the sums of its chunks.
    """
    if source.layout == "packed":
        return hashlib.sha256(sums(source.splits).encode()).hexdigest()
    if source.layout == "scenes":
        parts: list[Any] = sorted((split, len(of), of.image(0).shape) for split, of in source.splits.items())
        parts.append(source.classes)
        return hashlib.sha256(repr(parts).encode()).hexdigest()
    left_out = {folder.resolve() for folder in besides}
    digest = hashlib.sha256(os.fsencode("".join(f"{note}\n" for note in source.notes)))
    for root in _roots(source):
        for folder, folders, files in os.walk(root, followlinks=True):
            folders[:] = sorted(
                name for name in folders if not is_hidden(name) and Path(folder, name).resolve() not in left_out
            )
            if folder != os.fspath(root) and is_runs_own(folder, files):
                folders.clear()
                continue
            for file in sorted(name for name in files if not is_hidden(name)):
                try:
                    status = os.stat(os.path.join(folder, file))
                except OSError:  # a link to nothing
                    status = os.lstat(os.path.join(folder, file))
                path = os.path.relpath(os.path.join(folder, file), root)
                digest.update(os.fsencode(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n"))
    return digest.hexdigest()


def _roots(source: Source) -> list[Path]:
    """The folders that hold all files of a source, none of them within another: mostly one, the source's own."""
    roots = {Path(source.root), *(cast(ImageFolder, dataset).root for dataset in source.splits.values())}
    return sorted(root for root in roots if not any(other in root.parents for other in roots))
