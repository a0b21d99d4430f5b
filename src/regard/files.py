"""Files that are whole or not there, and folders that belong to one run."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from regard.errors import InputError


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """A file, whole or not at all. `write` gets it open."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # processes that train together write the same
    try:
        with partial.open("wb") as file:
            write(file)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """A JSON file, likewise."""
    write_whole(path, lambda file: file.write((json.dumps(value, indent=1) + "\n").encode()))


def read_json(path: Path) -> Any:
    """Read a JSON file; InputError when it is not whole."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
