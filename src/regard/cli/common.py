"""What the commands share: hardware options, what is said to people, and where pictures go."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from regard.errors import InputError

Accelerator = Literal["auto", "cpu", "gpu"]
Precision = Literal["auto", "32-true", "16-mixed", "bf16-mixed"]


def outputs(paths: Sequence[str], out: str) -> dict[Path, Path]:
    """The PNG in `out` for every image in these files and folders, under its own name.

    Raises InputError for a path that is not there, and where a PNG would take the place of an image or of another PNG.
    """
    from regard.data.datasets import list_images

    made: dict[Path, Path] = {}
    for path in map(Path, paths):
        if path.is_dir():
            made |= {path / name: (Path(out) / name).with_suffix(".png") for name in list_images(path)}
        elif path.is_file():
            made[path] = (Path(out) / path.name).with_suffix(".png")
        else:
            raise InputError(f"no file or folder at {path}")
    if not made:
        raise InputError(f"no images in {', '.join(paths)}")
    sources = {file.resolve() for file in made}
    targets: dict[Path, Path] = {}
    for file, target in made.items():
        if target.resolve() in sources:
            raise InputError(f"{target} is one of the images, and would be written over: choose another --out")
        if target in targets:
            raise InputError(f"{file} and {targets[target]} would both become {target}: do them one after the other")
        targets[target] = file
    return made


def table(result: dict[str, Any], split: str) -> None:
    """The scores of a segmentation."""
    from rich.table import Table

    table = Table("class", "IoU %", title=f"{split}: {result['images']} images")
    for name, iou in result["iou"].items():
        table.add_row(name, "-" if iou is None else f"{100 * iou:.1f}")
    table.add_section()
    table.add_row("mIoU", f"{100 * result['miou']:.1f}")
    table.add_row("pixel accuracy", f"{100 * result['pixel_accuracy']:.1f}")
    console().print(table)


def say(line: str) -> None:
    """A line for people, once however many processes train."""
    if is_first_process():
        console().print(line)


def is_first_process() -> bool:
    """Not one of the further processes that training with several devices starts: they run the same command."""
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")  # Lightning, torchrun, SLURM
    return all(int(os.environ.get(name, 0)) == 0 for name in ranks)


def console() -> Any:
    """Where everything but a command's last line is said: stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)
