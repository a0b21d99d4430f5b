"""What a segmentation says of itself beside its weights: `run.json` of a run, `config.json` of what was exported."""

from dataclasses import fields
from pathlib import Path

from regard.errors import InputError
from regard.results import MODEL_FILE, RUN_FILE, ModelDescription, RunDescription, read_stored

CONFIG_FILE = "config.json"
REMEDY = "make it again"


def config(description: ModelDescription) -> ModelDescription:
    """Of a run's description, or of an export's, what it takes to use the model again: nothing of its machine."""
    from regard.backbones.weights import without_sources  # it imports torch, and what only reads here need not wait

    kept = {one.name: getattr(description, one.name) for one in fields(ModelDescription)}
    return ModelDescription(
        **kept | {"backbone": without_sources(description.backbone), "fixed": None, "why_fixed": None}
    )


def check_run(path: Path) -> None:
    """InputError where there is no run, nor what was exported of one; without torch, so that it is said at once."""
    if path.suffix != ".onnx":
        read_description(path)
    elif not path.is_file():
        raise InputError(f"no ONNX file at {path}")


def read_description(folder: Path) -> ModelDescription:
    """The description in a folder of a run, or of `regard export`; InputError where it is neither, or damaged."""
    for name, kind in ((RUN_FILE, RunDescription), (CONFIG_FILE, ModelDescription)):
        if (folder / name).is_file() and (folder / MODEL_FILE).is_file():
            return read_stored(folder / name, kind, REMEDY)
    hint = ""
    if not folder.exists() and len(folder.parts) == 2 and not folder.is_absolute():
        hint = f"; if that is on the Hugging Face hub: regard.runs.hub.from_pretrained({folder.as_posix()!r})"
    raise InputError(
        f"{folder} holds no finished segmentation ({RUN_FILE} or {CONFIG_FILE}, and {MODEL_FILE}): make one with "
        f"regard segment{hint}"
    )
