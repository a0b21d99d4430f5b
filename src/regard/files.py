"""Files that are whole or not there, and YAML."""

import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import yaml

from regard.errors import InputError

T = TypeVar("T")
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room, a quota, a bound on the size of files


def write_whole(path: Path, write: Callable[[BinaryIO], T]) -> T:
    """A file, whole or not at all, of the mode that the umask leaves. `write` gets it open; what it gives is given on.

    OSError, which names the file, where the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # processes that train together write the same
    try:
        with on_disk(path):
            with partial.open("wb") as file:
                made = write(file)
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return made


@contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """Within: what a disk refuses is an OSError that names `path`, also where a library makes another error of it."""
    try:
        yield
    except Exception as error:
        link: BaseException | None = error
        while link is not None:
            if isinstance(link, OSError) and link.errno in REFUSALS:
                why = f"{link.strerror} (once there is room, the same command would work)"
                raise OSError(link.errno, why, str(path)) from error
            link = link.__cause__ or link.__context__
        raise


def write_json(path: Path, value: Any) -> None:
    """A JSON file, whole or not at all."""
    write_whole(path, lambda file: file.write((json.dumps(value, indent=1) + "\n").encode()))


def read_json(path: Path) -> Any:
    """Read a JSON file; InputError when it is not whole."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file, in which 1e-3 is a number, as in YAML 1.2; InputError for what has none."""
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(found, dict) or not found:
        raise InputError(f"{path}: should hold keys with values, such as `lr: 1e-3`")
    return found


class _Loader(yaml.SafeLoader):
    pass


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
