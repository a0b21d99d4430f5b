"""Finds out what a path holds, by looking at folders and never at pixels, and opens it as datasets by split.

| layout | what it looks like |
|---|---|
| scenes | the word `scenes`: the built-in data, drawn rather than read |
| voc, coco-stuff, ade20k, ... | a published tree, as the file of each in datasets/ says |
| masks | images/ and masks/, of class indices or colours, with or without train/, val/ and test/ in both |
| class folders | two or more folders with images directly in each, with or without train/, val/ and test/ above them |
| images | anything else with images, at any depth |
| packed | regard.json: chunks of any of these, made by `regard data pack`; or the s3://, gs://, https:// URL of such |

VOC has the augmented train set where its masks are there, as SegmentationClassAug/ or as SBD's .mat files, inside the
tree or beside it. The path of the tree's SegmentationClass/ in place of the tree's means: the official train set alone.
"""

import difflib
import hashlib
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from regard.data.compact import Names, joined
from regard.data.datasets import DATASETS
from regard.data.datasets.base import Dataset, MaskDataset, Source
from regard.data.datasets.folders import ClassFolders, ImageFolder
from regard.data.datasets.masks import MaskFolder
from regard.data.datasets.published import open_published
from regard.data.datasets.scenes import Scenes
from regard.data.listing import holds_images, list_images, subfolders, with_val
from regard.data.packs.packed import is_pack, open_pack, sums
from regard.data.packs.store import is_remote
from regard.data.threads import in_threads
from regard.errors import InputError

SCENES_COUNT = {"train": 512, "val": 128, "test": 128}
SPLIT_FOLDERS = {"train": "train training", "val": "val valid validation", "test": "test testing"}  # the names in use
SPLIT_OF = {name: split for split, names in SPLIT_FOLDERS.items() for name in names.split()}


def open_source(
    src: str | Path, *, scenes_size: int = 64, scenes_count: Mapping[str, int] | None = None, seed: int = 0
) -> Source:
    """The datasets at `src`: "scenes" (drawn at `scenes_size`, by `seed`), a folder (./scenes for one of that name) or
    the URL of a pack.

    Raises InputError when there is nothing there to use, or when what is there doesn't fit together.
    """
    if str(src) == "scenes":
        counts = SCENES_COUNT if scenes_count is None else scenes_count
        splits = {split: Scenes(count, scenes_size, seed, split) for split, count in counts.items()}
        return Source("scenes", "scenes", splits, words="built-in scenes")
    if is_remote(src) or is_pack(Path(src).expanduser()):
        return open_pack(src)
    root = _folder(src)
    images, masks = (root / "images").is_dir(), (root / "masks").is_dir()
    if found := open_published(root):
        return found
    if masks and not images:
        raise InputError(f"{root} has masks/ but no images/: the images of those masks, in images/, would work")
    if images and masks:
        return _mask_tree(root)
    if not images and (source := _class_folders(root)):
        return source
    # Beside images/ there may be annotations of another kind, as PNGs: they are not images to learn from.
    splits = tree_splits(root, "images" if images else "") or {"train": []}
    datasets = {split: ImageFolder(root, paths) for split, paths in splits.items()}
    return Source("images", str(root), datasets, words="plain image folder")


def check_there(src: str) -> None:
    """InputError where there is nothing at a path at all; what is there is left for `open_source` to read."""
    if src != "scenes" and not is_remote(src):
        _folder(src)


def require_masks(source: Source) -> Mapping[str, MaskDataset]:
    """The splits of a source that has masks; InputError, with what would work, for one that has none."""
    if not source.has_masks:
        published = f"a published tree ({', '.join(DATASETS)})"
        needs = f"segmentation needs images/ + masks/ (PNGs of classes), {published}, or `--data scenes`"
        raise InputError(f"{source.root} ({source.words}) has no masks: {needs}")
    return cast(Mapping[str, MaskDataset], source.splits)


def tree_splits(root: Path, folder: str = "") -> dict[str, Names]:
    """The images below root/folder by the split folder (train/, val/, test/) they are in; the others are train."""
    paths = list_images(root, folder)
    split_of = np.zeros(len(paths), np.int8)  # a number among the three; 0 is train
    for name, split in SPLIT_OF.items():
        split_of[paths.below(f"{folder}/{name}" if folder else name)] = list(SPLIT_FOLDERS).index(split)
    splits = {split: paths[split_of == number] for number, split in enumerate(SPLIT_FOLDERS)}
    return {split: paths for split, paths in splits.items() if paths}


def _mask_tree(root: Path) -> Source:
    splits, notes = with_val(tree_splits(root, "images"))
    if not splits:
        raise InputError(f"no images in {root / 'images'}: one for each of the masks would work")
    # Once over all splits: the listing of the masks, the check that none is missing, and the reading of the classes.
    whole = MaskFolder(root, joined(map(Names.of, splits.values())))
    parts = np.split(np.arange(len(whole)), np.cumsum([len(of) for of in splits.values()])[:-1])
    if not any((root / name).is_file() for name in ("classes.txt", "classes.json")):
        notes += ("no classes.txt, so the classes are counted from the values in all the masks",)
    if unused := len(list_images(root, "masks")) - len(set(whole.masks)):
        notes += (f"masks without an image, ignored: {unused:,}",)
    datasets = {split: whole.only(part) for split, part in zip(splits, parts, strict=True)}
    return Source("masks", str(root), datasets, notes, "images/ + masks/ tree")


def _class_folders(root: Path) -> Source | None:
    tops = {SPLIT_OF[name]: root / name for name in subfolders(root) if name in SPLIT_OF}
    if "train" not in tops or not _by_class(tops["train"]):
        if not _by_class(root):
            return None
        return Source("class folders", str(root), {"train": ClassFolders(root)}, words="class folders")
    train = ClassFolders(tops["train"])
    splits = {"train": train}
    for split in ("val", "test"):
        if split in tops and _by_class(tops[split]):
            splits[split] = ClassFolders(tops[split], train.classes)
    notes = tuple(f"{tops[s].name}/ is ignored: it has not two class folders" for s in tops if s not in splits)
    return Source("class folders", str(root), splits, notes, "class folders")


def _by_class(root: Path) -> bool:
    """Whether two folders or more hold images directly, no folder only further down, and `root` none itself."""
    folders = subfolders(root)
    direct = {folder for folder in folders if holds_images(root / folder)}
    if len(direct - set(SPLIT_OF)) < 2 or holds_images(root):  # a flat train/ beside a flat val/ are not two classes
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
    known = [*(subfolders(missing.parent) if missing.parent.is_dir() else ()), "scenes"]
    near = difflib.get_close_matches(missing.name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "the path of a folder, or `scenes` (built in), would work"
    raise InputError(f"no such folder: {missing}; {hint}")


def check_readable(source: Source) -> None:
    """Read every image and mask once, so that a long training does not stop at a bad one; shows a progress bar.

    Raises InputError for the first that cannot be used: unreadable, a mask of another size than its image, or with a
    value that is no class; and for a split without a labelled pixel. The built-in scenes need no check, and
    what a pack holds was checked when it was packed.
    """
    if source.layout == "scenes":
        return
    for split, dataset in source.splits.items():
        if source.layout == "packed":  # up to the first that is labelled
            labelled = source.has_masks and any(_is_labelled(dataset, i) for i in range(len(dataset)))
        else:
            doing = f"checking images of {split}"
            labelled = sum(in_threads(partial(_is_labelled, dataset), range(len(dataset)), doing)) > 0
        if source.has_masks and not labelled:
            what = f"every pixel of the {split} masks of {source.root} is void"
            raise InputError(f"{what}: there is nothing to learn or score")


def _is_labelled(dataset: Dataset, i: int) -> bool:
    """Whether any pixel of an image is, both having been read."""
    dataset.image(i)
    return isinstance(dataset, MaskDataset) and bool((dataset.mask(i) != dataset.ignore_index).any())


def fingerprint(source: Source, *besides: Path) -> str:
    """Changes whenever a file below the source changes: its path, size or time; files are not read.

    It changes with what was decided for the user, too: the same files may give another train set.
    besides: folders that may lie below the source and do not count. The scenes' tells their counts and size;
    a pack's, the sums of its chunks.
    """
    digest = hashlib.sha256()
    if source.layout == "packed":
        digest.update(sums(source.splits).encode())
        return digest.hexdigest()
    if source.layout == "scenes":
        parts = sorted((split, len(dataset), dataset.image(0).shape) for split, dataset in source.splits.items())
        digest.update(repr(parts).encode())
        return digest.hexdigest()
    left_out = {folder.resolve() for folder in besides}
    digest.update(os.fsencode("".join(f"{note}\n" for note in source.notes)))
    for root in _roots(source):
        for folder, folders, files in os.walk(root, followlinks=True):
            folders[:] = sorted(name for name in folders if Path(folder, name).resolve() not in left_out)
            for file in sorted(files):
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
