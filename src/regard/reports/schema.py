"""`results.json` of a comparison or an ablation, the one source of its report: what it must hold, and reading it."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from regard.errors import InputError

VERSION = 2  # of the shapes below; results.json says which it has

# What results.json must hold; other keys are let through.
# (shape, None): may be null. [shape]: a list. {str: shape}: any keys. "key?": may be absent.
MAYBE = (float, None)
SCHEMA = {
    "schema": int,
    "kind": str,
    "name": str,
    "regard": str,
    "commit": (str, None),
    "created": str,
    "command": str,
    "plan?": (str, None),  # the text of the study file
    "seconds": float,
    "complete": bool,
    "failed": [{"name": str, "error": str}],
    "axes": {str: [object]},
    "environment": {str: object},
    "data": {
        "source": str,
        "description": str,
        "classes": [str],
        "palette": [[int]],
        "train_images": int,
        "evaluated_images": int,
        "evaluated_split": str,
        "short_side": int,
        "class_share": [float],
    },
    "preset": str,
    "preset_note": str,
    "settings": {str: object},
    "majority": {"class": str, "miou": float, "pixel_accuracy": float},
    "pretraining": [
        {
            "name": str,
            "method": str,
            "backbone": str,
            "origin": str,
            "seconds": float,
            "curve": [{"step": float, "loss": MAYBE}],
            "cross_correlation": (str, None),
        }
    ],
    "configurations": [
        {
            "name": str,
            "backbone": str,
            "pretraining": (str, None),
            "fusion": str,
            "head": str,
            "baseline": bool,
            "label_fraction": float,
            "frozen": bool,
            "at": {str: object},
            "parameters": (int, None),  # where no run is finished
            "milliseconds_per_image": MAYBE,
            "images_per_second": MAYBE,
            "peak_memory_mb": MAYBE,
            "miou": ({"mean": float, "std": MAYBE, "low": float, "high": float, "interval": str}, None),
            "runs": [
                {
                    "seed": int,
                    "miou": float,
                    "pixel_accuracy": float,
                    "iou": [MAYBE],
                    "train_seconds": float,
                    "curve": [{"epoch": float, "train_loss": MAYBE, "val_miou": MAYBE}],
                    "heads": ({str: MAYBE}, None),
                    "commit?": (str, None),  # that trained it; null: of no checkout
                }
            ],
        }
    ],
    "differences": [
        {
            "a": str,
            "b": str,
            "mean": float,
            "low": float,
            "high": float,
            "p": MAYBE,
            "p_strict?": MAYBE,
            "holm": bool,
            "question": bool,
            "seeds": int,
        }
    ],
    "correlations": [
        {
            "score": str,
            "words": str,
            "r": MAYBE,
            "low": MAYBE,
            "high": MAYBE,
            "configurations": int,
            "kinds": [str],
            "members": [str],
        }
    ],
    "examples": [
        {
            "name": str,
            "why": str,
            "image": str,
            "truth": str,
            "predictions": {str: {"png": str, "errors": str, "miou": MAYBE}},
            "attention": {str: {"kind": str, "level": int, "heads": [[[MAYBE]]]}},
        }
    ],
}
KINDS = ("compare", "ablate")
PICTURE = re.compile(r"data:image/(png|jpeg|webp);base64,[A-Za-z0-9+/]+=*")


def kind_of(directory: Path) -> str | None:
    """Which kind of study `results.json` in a folder is of; None where it cannot be told."""
    with suppress(OSError, ValueError, AttributeError):
        return json.loads((directory / "results.json").read_text(encoding="utf-8")).get("kind")
    return None


def read_results(path: Path) -> dict[str, Any]:
    """The content of the `results.json` of a comparison or an ablation: see `read_checked`."""
    return read_checked(path, SCHEMA, _inconsistency, "compare")


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


def _inconsistency(results: dict[str, Any]) -> str | None:
    """What the shapes cannot say: lengths that must agree, and pictures that must be inside the file."""
    data, count = results["data"], len(results["data"]["classes"])
    if results["kind"] not in KINDS:
        return f"kind should be {' or '.join(KINDS)}, not {results['kind']!r}"
    if len(data["palette"]) < count or any(len(c) != 3 or not all(0 <= v < 256 for v in c) for c in data["palette"]):
        return f"data.palette should hold an (r, g, b) of 0 to 255 for each of the {count} classes"
    if len(data["class_share"]) != count:
        return f"data.class_share should hold {count} shares, not {len(data['class_share'])}"
    names = [configuration["name"] for configuration in results["configurations"]]
    if len(set(names)) < len(names):
        return f"two configurations are named {next(name for name in names if names.count(name) > 1)!r}"
    for difference in results["differences"]:
        for name in (difference["a"], difference["b"]):
            if name not in names:
                return f"a difference names {name!r}, which is no configuration"
    for found in results["correlations"]:
        for name in found["members"]:
            if name not in names:
                return f"a correlation names {name!r}, which is no configuration"
    for pretraining in results["pretraining"]:
        if pretraining["cross_correlation"] and not PICTURE.fullmatch(pretraining["cross_correlation"]):
            return f"pretraining {pretraining['name']!r} holds a picture that is not a base64 data: URI"
    for configuration in results["configurations"]:
        if not 0 < configuration["label_fraction"] <= 1:
            return f"configuration {configuration['name']!r}: label_fraction should be above 0, up to 1"
        if configuration["miou"] and configuration["parameters"] is None:
            return f"configuration {configuration['name']!r} has a score, and no count of its parameters"
        for axis, value in configuration["at"].items():
            if axis in results["axes"] and value not in results["axes"][axis]:
                return f"configuration {configuration['name']!r}: {value!r} is none of the values of axis {axis!r}"
        for run in configuration["runs"]:
            if len(run["iou"]) != count:
                where = f"configuration {configuration['name']!r}, seed {run['seed']}"
                return f"{where}: iou should hold {count} values, not {len(run['iou'])}"
    for example in results["examples"]:
        pictures = [
            example["image"],
            example["truth"],
            *(p[k] for p in example["predictions"].values() for k in ("png", "errors")),
        ]
        if not all(PICTURE.fullmatch(picture) for picture in pictures):
            return f"example {example['name']!r} holds a picture that is not a base64 data: URI"
        for name, attention in example["attention"].items():
            if len({(len(head), len(row)) for head in attention["heads"] for row in head}) != 1:
                return f"example {example['name']!r}: the attention of {name!r} should be heads of one size, h x w"
    return None


def _first(problems: Iterable[str | None]) -> str | None:
    return next((found for found in problems if found), None)
