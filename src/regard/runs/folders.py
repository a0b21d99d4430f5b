"""Folders that belong to one run."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from regard.errors import InputError
from regard.files import read_json, write_json
from regard.training.stopping import CHECKPOINTS

SETTINGS_FILE = "settings.json"


SKIPPED_FILE = "skipped.txt"  # the images that could not be read


@contextmanager
def run_folder(path: str | Path, settings: dict[str, Any], finished: str, may_resume: bool = True) -> Iterator[Path]:
    """The folder of one run: new, or, if it `may_resume`, of the same run cut short, which then goes on.

    Raises InputError when something else is in it, or the run is finished. Where a new run fails on a wrong input, its
    folder is removed, unless there is something in it to go on with or to read.
    """
    folder, settings = Path(path), json.loads(json.dumps(settings))
    # Of processes that train together, another may just be writing the settings.
    is_new = not folder.exists() or (folder.is_dir() and all(".partial" in file.name for file in folder.iterdir()))
    made = [path for path in (folder, *folder.parents) if not path.exists()]  # innermost first
    if (folder / finished).exists():
        raise InputError(f"{folder} holds a finished run: choose another --out, or delete it")
    if is_new:
        write_json(folder / SETTINGS_FILE, settings)
    elif not (folder / SETTINGS_FILE).is_file():
        raise InputError(f"{folder} exists and holds no run to go on with: choose another --out, or delete it")
    elif not may_resume:
        raise InputError(f"{folder} holds a run that was cut short: --resume auto would go on with it")
    else:
        before = read_json(folder / SETTINGS_FILE)
        if not isinstance(before, dict):
            raise InputError(f"{folder / SETTINGS_FILE} is damaged: choose another --out, or delete {folder}")
        differs = sorted(key for key in settings.keys() | before.keys() if settings.get(key) != before.get(key))
        if differs:
            raise InputError(
                f"{folder} holds a run with other settings ({', '.join(differs)}): choose another --out, or delete it"
            )
    try:
        yield folder
    except InputError:
        if is_new and not any((folder / CHECKPOINTS).glob("*")) and not (folder / SKIPPED_FILE).exists():
            shutil.rmtree(folder, ignore_errors=True)
            for parent in made[1:]:  # innermost first; those that another run uses by now are not empty
                with suppress(OSError):
                    parent.rmdir()
        raise
