"""`results.json` of a comparison or an ablation, the one source of its report: what it must hold, and reading it."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from regard.errors import InputError
from regard.results import VERSION

MAYBE = (float, None)
KINDS = ("compare", "ablate")


def read_checked(
    path: Path, schema: Mapping[str, Any], inconsistency: Callable[[dict[str, Any]], str | None], command: str
) -> dict[str, Any]:
    """The content of a JSON file of this schema; NaN and infinities (a diverged run) read as missing.

    inconsistency: the first thing that is wrong beyond its shapes, in words.
    command:       what makes the file, where it says that it is of no kind of `KINDS`.

    Raises InputError, in one line, where there is no such file, or it is cut short, of another version, or wrong.
    """
    wrong, results = None, {}
    try:
        results = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except OSError as error:
        wrong = "there is no such file" if isinstance(error, FileNotFoundError) else str(error.strerror)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        wrong = f"not a whole JSON file ({' '.join(str(error).split())})"
    wrong = wrong or _other_version(results) or problem(results, schema, "") or inconsistency(results)
    if wrong:
        kind = results.get("kind") if isinstance(results, dict) else None
        again = f"regard {kind if kind in KINDS else command}" if kind else "the command that made it"
        raise InputError(f"{path}: {wrong}; run {again} again: what was finished is kept")
    return results


def _other_version(results: Any) -> str | None:
    """Said before anything else that may be missing."""
    if not isinstance(results, dict) or results.get("schema") == VERSION:
        return None
    found = results.get("schema", "none")
    return f"was made by another version of regard (schema {found}, and this one reads {VERSION})"


def problem(value: Any, shape: Any, where: str) -> str | None:
    """The first place where `value` departs from `shape`, in words; None where it does not."""
    here = where or "the file"
    if isinstance(shape, tuple):
        return None if value is None else problem(value, shape[0], where)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{here} should be a list"
        return _first(problem(item, shape[0], f"{where}[{i}]") for i, item in enumerate(value))
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{here} should be an object with named values"
        if str in shape:
            shape = dict.fromkeys(value, shape[str])
        return _first(
            problem(value[key], inner, f"{where}.{key}".lstrip(".")) if key in value else f"{here} lacks {key!r}"
            for key, inner in ((name.removesuffix("?"), inner) for name, inner in shape.items())
            if key in value or f"{key}?" not in shape
        )
    right = isinstance(value, (int, float) if shape is float else shape) and (
        shape in (bool, object) or not isinstance(value, bool)
    )
    return None if right else f"{here} should be of type {shape.__name__}, not {type(value).__name__}"


def _first(problems: Iterable[str | None]) -> str | None:
    return next((found for found in problems if found), None)
