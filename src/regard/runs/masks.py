"""What `regard predict` and `regard evaluate` write. Imported when they run, since it needs torch."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from rich.progress import track

from regard.data.rasters import ground_of
from regard.data.reading import header, opened
from regard.data.source import Source
from regard.errors import InputError, naming
from regard.files import read_json, write_whole
from regard.pictures.classes import class_overlay
from regard.pictures.targets import beside
from regard.runs.outlines import Outlines
from regard.runs.pixels import read_pixels
from regard.runs.run import Run
from regard.say import console, say
from regard.segmentation.inference import BATCH, Inference, classes_at, probabilities_at

SOFTWARE = ("Software", "regard")  # a text in our masks, by which they are told from those of people
SOFTWARE_TAG = 305  # the same in a TIFF
OVERLAY, PROBABILITIES = "-overlay.png", ".npz"  # endings of what is written beside NAME.png


def segment_files(
    run: Run,
    files: dict[Path, Path],
    inference: Inference,
    also: Sequence[str] = (),
    opacity: float = 0.5,
    batch_size: int = BATCH,
    outlines: Outlines | None = None,
) -> int:
    """Write the mask of every image that can be read, and what is wanted `also`; returns how many there are.

    NAME.png:         class indices, with the classes' colours as palette, at the image's own size.
    NAME.tif:         in its place, of a GeoTIFF: with its reference system and transform.
    NAME.json:        in its place, where there are `outlines` to write it.
    NAME-overlay.png: the image with these colours over it, and lines around regions.
    NAME.npz:         probabilities, float16 (classes, h, w), and classes, their names.

    batch_size: windows of one image in a forward pass.

    Raises InputError at the end where images could not be read, after a line for each on stderr; the masks of the
    others are there by then. Where none could be read, nothing is written, and the error is all that is said; nor is
    it where a mask would be written over that isn't of an earlier call.
    """
    run.check_alone()
    grounds = {file: _ground(file) for file in files} if outlines is None else {}
    files = {file: to.with_suffix(".tif") if grounds.get(file) else to for file, to in files.items()}
    if other := next((to for to in files.values() if outlines is None and not _may_write(to)), None):
        raise InputError(f"{other} was not made by `regard predict`: choose another --out, or move it away")
    unread: list[InputError] = []
    for file, to in track(files.items(), "segmenting", transient=True, console=console()):
        try:
            pixels = read_pixels(file, run.description.settings.values)
            with naming(file):
                passes, size = run.passes(pixels, inference, batch_size), pixels.shape[:2]
        except InputError as error:
            unread.append(error)
            continue
        mask = classes_at(passes, size).to(torch.uint8).cpu().numpy()
        if PROBABILITIES in also:
            found = probabilities_at(passes, size, torch.float16).cpu().numpy()
            write_whole(
                beside(to, PROBABILITIES),
                lambda npz, found=found: np.savez_compressed(npz, probabilities=found, classes=np.array(run.classes)),
            )
        if OVERLAY in also:
            over = Image.fromarray(class_overlay(pixels, mask, run.classes, run.palette, opacity))
            write_whole(beside(to, OVERLAY), lambda png, over=over: over.save(png, format="PNG"))
        if outlines is None:
            indexed = Image.fromarray(mask).convert("P")
            indexed.putpalette(run.palette.flatten().tolist())
            write_whole(to, partial(_save, indexed, grounds[file]))
        else:
            outlines.write(file, to, mask)
    if outlines is not None and outlines.pixels:
        say(str(outlines))
    if len(unread) == len(files):
        others = f"; none of the {len(files)} images can be read" if len(files) > 1 else ""
        raise InputError(f"{unread[0]}{others}")
    if unread:
        for error in unread:
            say(str(error))
        raise InputError(
            f"{len(unread)} of {len(files)} could not be read: mend or leave out the files named above; "
            "the masks of the others are there"
        )
    return len(files)


def _ground(file: Path) -> ImageFileDirectory_v2 | None:
    """`rasters.ground_of`; None also where the file can't be read, as that is said when it is."""
    with suppress(InputError), opened(file) as image:
        return ground_of(image)
    return None


def _save(mask: Image.Image, ground: ImageFileDirectory_v2 | None, to: BinaryIO) -> None:
    """As a PNG, or, where it is known where its pixels are on the ground, as a GeoTIFF; with our text in it."""
    key, value = SOFTWARE
    if ground is None:
        made_by = PngInfo()
        made_by.add_text(key, value)
        mask.save(to, format="PNG", pnginfo=made_by)
    else:
        ground[SOFTWARE_TAG] = value
        mask.save(to, format="TIFF", tiffinfo=ground, compression="tiff_adobe_deflate")


def _may_write(mask: Path) -> bool:
    """Whether there is no file yet, or one that `segment_files` wrote."""
    if not mask.exists():
        return True
    with suppress(InputError), opened(mask) as file:
        key, value = SOFTWARE
        image = header(file, mask)
        return (image.info.get(key) or getattr(image, "tag_v2", {}).get(SOFTWARE_TAG)) == value
    return False


def evaluation_file(name: str) -> str:
    """Where the scores of `regard evaluate` go, in the folder of the run."""
    return f"evaluation-{name}.json"


def name_evaluation(folder: Path, name: str, source: Source) -> str:
    """`name`; where there are scores of other data under it, `name` and that of the data's folder.

    name: tells the split and the settings. Raises InputError where there are scores of other data under both.
    """
    data, longer = source.describe(), f"{name}-{Path(source.root).resolve().name[:60]}"
    for free in (name, longer):
        path = folder / evaluation_file(free)
        if not path.exists() or read_json(path, dict).get("data") == data:
            return free
    raise InputError(f"{folder / evaluation_file(longer)} holds the scores of other data: move it, or delete it")
