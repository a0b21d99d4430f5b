"""Folders that belong to one run."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from regard.data.datasets.base import Source
from regard.data.source import fingerprint
from regard.errors import InputError, Interrupted, TrainingStopped
from regard.files import read_json, write_json
from regard.results import SETTINGS_FILE
from regard.say import is_first_process
from regard.training.stopping import CHECKPOINTS

LOCK_FILE = ".lock"
DATA = ("images", "files")  # settings that tell the data: how many there are, and `data.source.fingerprint`
SKIPPED_FILE = "skipped.txt"  # the images that could not be read


@contextmanager
def run_folder(path: str | Path, settings: dict[str, Any], finished: str, may_resume: bool = True) -> Iterator[Path]:
    """The folder of one run: new, or, if it `may_resume`, of the same run cut short, which then goes on.

    Raises InputError when something else is in it, the run is finished or of other data, or another process writes
    there. Where a new run fails before its first checkpoint, its folder is removed, unless there is something in it to
    read.
    """
    folder, settings = Path(path), json.loads(json.dumps(settings))
    made = [path for path in (folder, *folder.parents) if not path.exists()]  # innermost first
    with _claimed(folder):
        is_new = _prepare(folder, settings, finished, may_resume)
        try:
            yield folder
        except (TrainingStopped, Interrupted):  # there are curves to read
            raise
        except Exception:
            read_on = any((folder / CHECKPOINTS).glob("*")) or (folder / SKIPPED_FILE).exists()
            first = is_first_process()
            is_bare = {file.name for file in folder.iterdir()} - ({LOCK_FILE} if first else set()) == {SETTINGS_FILE}
            if not read_on and (is_bare or (is_new and first)):  # of many machines, any may have made it
                shutil.rmtree(folder, ignore_errors=True)
                for parent in made[1:]:  # innermost first; those that another run uses by now are not empty
                    with suppress(OSError):
                        parent.rmdir()
            raise


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """A folder that one process writes into, and those that train with it, which hold no lock of their own."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: choose another --out")
    if not is_first_process():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / LOCK_FILE, timeout=0):
            try:
                yield
            finally:
                (folder / LOCK_FILE).unlink(missing_ok=True)
    except filelock.Timeout as error:
        raise InputError(f"another process writes into {folder}: wait for it, or choose another --out") from error


def _prepare(folder: Path, settings: dict[str, Any], finished: str, may_resume: bool) -> bool:
    """Whether the run is new; its settings are then written. Raises InputError as `run_folder` does."""
    if (folder / finished).exists():
        raise InputError(f"{folder} holds a finished run: choose another --out, or delete it")
    # Of processes that train together, another may just be writing the settings.
    if not folder.exists() or all(".partial" in file.name or file.name == LOCK_FILE for file in folder.iterdir()):
        write_json(folder / SETTINGS_FILE, settings)
        return True
    if not (folder / SETTINGS_FILE).is_file():
        raise InputError(f"{folder} exists and holds no run to go on with: choose another --out, or delete it")
    if not may_resume:
        raise InputError(f"{folder} holds a run that was cut short: --resume auto would go on with it")
    before = read_json(folder / SETTINGS_FILE)
    if not isinstance(before, dict):
        raise InputError(f"{folder / SETTINGS_FILE} is damaged: choose another --out, or delete {folder}")
    differs = sorted(key for key in settings.keys() | before.keys() if settings.get(key) != before.get(key))
    if differs:
        what = f"with other settings ({', '.join(differs)})"
        if set(differs) <= set(DATA):
            then, now = (before.get(DATA[0]), settings.get(DATA[0]))
            what = "whose data was changed since: " + (
                f"{_counts(then)} then, {_counts(now)} now" if then != now else "as many images, but other files"
            )
        raise InputError(f"{folder} holds a run {what}: choose another --out, or delete it")
    return False


def _counts(images: Any) -> str:
    """{"train": 8, "val": 2} -> '8 train, 2 val'."""
    return ", ".join(f"{count} {split}" for split, count in images.items()) if isinstance(images, dict) else "unknown"


def data_settings(source: Source, *besides: Path) -> dict[str, Any]:
    """What a run keeps of its data, to go on with the same. besides: folders below it that do not count."""
    counts = {split: len(dataset) for split, dataset in source.splits.items()}
    return dict(zip(DATA, (counts, fingerprint(source, *besides)), strict=True))
