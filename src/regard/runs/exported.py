"""What a segmentation says of itself beside its weights: `run.json` of a run, `config.json` of what was exported."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from regard.backbones.weights import MODEL_FILE, without_sources
from regard.errors import InputError
from regard.files import read_json

RUN_FILE = "run.json"
CONFIG_FILE = "config.json"


def config(description: dict[str, Any]) -> dict[str, Any]:
    """Of a run's description, what it takes to use the model again: nothing of its training, or of its machine."""
    settings = description["settings"]
    return {
        "regard": version("regard"),
        "task": "semantic segmentation",
        "backbone": without_sources(description["backbone"]),
        "kept": description["kept"],
        "settings": {key: settings[key] for key in ("size", "fusion", "head", "head_options")},
        "classes": list(description["classes"]),
        "palette": description["palette"],
        "ignore_index": description["ignore_index"],
        "head_weights": description["head_weights"],
    }


def read_description(folder: Path) -> dict[str, Any]:
    """The description in a folder of a run, or of `regard export`; InputError where it is neither."""
    for name in (RUN_FILE, CONFIG_FILE):
        if (folder / name).is_file() and (folder / MODEL_FILE).is_file():
            return read_json(folder / name)
    hint = ""
    if not folder.exists() and len(folder.parts) == 2 and not folder.is_absolute():
        hint = f"; if that is on the Hugging Face hub: regard.runs.hub.from_pretrained({folder.as_posix()!r})"
    raise InputError(
        f"{folder} holds no finished segmentation ({RUN_FILE} or {CONFIG_FILE}, and {MODEL_FILE}): make one with "
        f"regard segment{hint}"
    )
