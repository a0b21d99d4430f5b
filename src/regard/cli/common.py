"""What the commands share: hardware options, what is said to people, and where pictures go."""

import glob
import os
import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from regard.errors import InputError

Accelerator = Literal["auto", "cpu", "gpu"]
Precision = Literal["auto", "32-true", "16-mixed", "bf16-mixed"]


def outputs(paths: Sequence[str], out: str, also: Sequence[str] = (), videos: bool = True) -> dict[Path, Path]:
    """The PNG in `out` for every image in these files and folders, under its own name, in natural order.

    A path may be a pattern such as "photos/**/*.jpg": it stands for the images and videos that match. Those of a
    pattern, as those of a folder, keep the folders that they lie in below it.
    also:   endings of further files that are made, such as "-overlay.png"; their names are `beside(png, ending)`.
    videos: False where videos are of no use: patterns then stand for images alone.

    Raises InputError for a path that is not there, and where a file would take the place of an image or of another one.
    """
    from regard.data.listing import list_images

    made: dict[Path, Path] = {}
    for path in map(Path, paths):
        if path.is_dir():
            found = {path / name: name for name in list_images(path)}
        elif path.is_file():
            found = {path: path.name}
        elif glob.has_magic(str(path)):
            found = _matches(path, videos)
        else:
            raise InputError(f"no file or folder at {path}")
        made |= {file: (Path(out) / name).with_suffix(".png") for file, name in found.items()}
    if not made:
        raise InputError(f"no images in {', '.join(paths)}")
    made = dict(sorted(made.items(), key=lambda item: natural(item[0])))
    sources = {file.resolve() for file in made}
    targets: dict[Path, Path] = {}
    for file, png in made.items():
        for target in (png, *(beside(png, ending) for ending in also)):
            if target.resolve() in sources:
                raise InputError(f"{target} is one of the images, and would be written over: choose another --out")
            if target in targets:
                raise InputError(
                    f"{file} and {targets[target]} would both become {target}: do them one after the other"
                )
            targets[target] = file
    return made


def _matches(pattern: Path, videos: bool) -> dict[Path, str]:
    """The images, and videos if wanted, that match, and their paths below the part of the pattern that is plain."""
    from regard.data.listing import is_image
    from regard.data.video import is_video

    plain = Path(*takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    found = [Path(name) for name in glob.glob(str(pattern), recursive=True)]
    return {
        file: file.relative_to(plain).as_posix()
        for file in found
        if (is_image(file.name) or (videos and is_video(file.name))) and file.is_file()
    }


def beside(png: Path, ending: str) -> Path:
    """NAME + ending for NAME.png."""
    return png.with_name(png.stem + ending)


def natural(path: Path) -> list[tuple[int, str]]:
    """A key to sort by: text by its letters, numbers by their value, so that frame2 comes before frame10."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def table(result: dict[str, Any], split: str) -> None:
    """The scores of a segmentation: of `runs.summary` or `runs.full_summary`."""
    from rich.table import Column, Table

    columns = {"IoU %": result["iou"], "accuracy %": result["accuracy"]}
    if "boundary" in result:
        columns["Boundary IoU %"] = result["boundary"]["iou"]
    columns["pixels %"] = result["share"]
    table = Table("class", title=f"{split}: {result['images']} images")
    for heading in columns:
        table.add_column(heading, justify="right")
    for name in result["iou"]:
        if name not in result["absent"]:
            table.add_row(name, *(_percent(values[name]) for values in columns.values()))
    console().print(table)
    scores = {
        "mIoU": result["miou"],
        "frequency-weighted IoU": result["frequency_weighted_iou"],
        "pixel accuracy": result["pixel_accuracy"],
        "mean accuracy": result["mean_accuracy"],
    }
    if "boundary" in result:
        scores["Boundary IoU"] = result["boundary"]["miou"]
        scores["expected calibration error"] = result["calibration"]["expected_error"]
    totals = Table("over all images", Column("%", justify="right"))
    for name, value in scores.items():
        totals.add_row(name, _percent(value))
    console().print(totals)
    if result["absent"]:
        console().print(f"classes that do not occur in these images: {', '.join(result['absent'])}")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def say(line: str) -> None:
    """A line for people, once however many processes train."""
    if is_first_process():
        console().print(line)


def is_first_process() -> bool:
    """Not one of the further processes that training with several devices starts: they run the same command."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun, which may have other ranks than the srun that started it
        return os.environ["RANK"] == "0"
    ranks = ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")  # Lightning, SLURM
    return all(int(os.environ.get(name, 0)) == 0 for name in ranks)


def console() -> Any:
    """Where everything but a command's last line is said: stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)
