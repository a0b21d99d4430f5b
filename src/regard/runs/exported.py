"""What a segmentation says of itself beside its weights: `run.json` of a run, `config.json` of what was exported."""

from contextlib import suppress
from dataclasses import fields
from pathlib import Path

from regard.errors import InputError
from regard.files import CONFIG_FILE as CONFIG_FILE
from regard.files import HUB, fetched, read_json
from regard.results import BACKBONE_FILE, MODEL_FILE, RUN_FILE, ModelDescription, RunDescription, read_stored

REMEDY = "make it again"


def config(description: ModelDescription) -> ModelDescription:
    """Of a run's description, or of an export's, what it takes to use the model again: nothing of its machine."""
    from regard.backbones.weights import without_sources  # it imports torch, and what only reads here need not wait

    kept = {one.name: getattr(description, one.name) for one in fields(ModelDescription)}
    return ModelDescription(
        **kept | {"backbone": without_sources(description.backbone), "fixed": None, "why_fixed": None}
    )


def find_run(name: str | Path, revision: str | None = None) -> Path:
    """Where a run is, or an export of one: a path, or what is fetched for OWNER/NAME from the Hugging Face hub.

    A path goes first, and so does one of which the first part is there: `runs/typo` is asked of nobody. InputError
    where there is none; without torch, so that it is said at once.
    """
    path, text = Path(name), str(name)
    is_one = text.count("/") == 1 and not path.exists() and path.suffix != ".onnx" and not path.parent.exists()
    if is_one or text.startswith(HUB):
        path = fetched(text, (MODEL_FILE,), revision)
    if path.suffix != ".onnx":
        read_description(path)
    elif not path.is_file():
        raise InputError(f"no ONNX file at {path}")
    return path


def read_description(folder: Path) -> ModelDescription:
    """The description in a folder of a run, or of `regard export`; InputError where it is neither, or damaged."""
    if is_backbone(folder):
        raise InputError(f"{folder} holds a backbone and no segmentation: regard segment --backbone trains one with it")
    for name, kind in ((RUN_FILE, RunDescription), (CONFIG_FILE, ModelDescription)):
        if (folder / name).is_file() and (folder / MODEL_FILE).is_file():
            return read_stored(folder / name, kind, REMEDY)
    raise InputError(
        f"{folder} holds no finished segmentation ({RUN_FILE} or {CONFIG_FILE}, and {MODEL_FILE}): make one with "
        "regard segment; one on the Hugging Face hub is OWNER/NAME"
    )


def is_backbone(folder: Path) -> bool:
    """Whether a folder holds a backbone: of a pre-training, or in timm's form, as one is exported."""
    if (folder / BACKBONE_FILE).is_file():
        return True
    with suppress(InputError):
        return "num_features" in read_json(folder / CONFIG_FILE, dict)
    return False
