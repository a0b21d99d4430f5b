"""A trained segmentation in a form for others: an ONNX file, safetensors, or a folder for the Hugging Face hub.

`run.load_run` reads each of them again. A folder is whole or not there, and holds nothing of the machine that trained
it: see `exported.config`.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save

from regard.backbones.weights import MODEL_FILE
from regard.errors import InputError
from regard.files import on_disk, partial_of, write_whole
from regard.results import LEAST_STRENGTH, HeadShares, ModelDescription, RunDescription, write_stored
from regard.runs.exported import CONFIG_FILE, config
from regard.runs.onnx import OPSET, OnnxModel, export_onnx
from regard.runs.run import Run

CARD_FILE = "README.md"


def save_onnx(run: Run, path: str | Path, fixed: tuple[int, int] | None = None, opset: int = OPSET) -> str | None:
    """One .onnx file, checked against torch. Returns why its height and width are fixed: see `onnx.export_onnx`."""
    path = Path(path)
    if path.suffix != ".onnx":
        raise InputError(f"{path} is no name for an ONNX file: take one that ends in .onnx")
    _refuse_existing(path)
    return export_onnx(_model(run), path, config(run.description), fixed, opset)


def save_safetensors(run: Run, folder: str | Path) -> None:
    """A folder of weights (`model.safetensors`) and all that it takes to use them (`config.json`)."""
    with _new_folder(Path(folder)) as made:
        _write_model(run, made)


def save_pretrained(run: Run, folder: str | Path) -> None:
    """As `save_safetensors`, with a model card: what the Hugging Face hub expects, and `from_pretrained` reads."""
    with _new_folder(Path(folder)) as made:
        _write_model(run, made)
        (made / CARD_FILE).write_text(model_card(run), encoding="utf-8")


def model_card(run: Run) -> str:
    """README.md for the hub: what it is, how to load it, its classes, its scores. The licence is left to its owner."""
    description, scores = run.description, []
    settings = description.settings
    if isinstance(description, RunDescription) and description.miou is not None:
        scores = ["", "## Scores", "", f"mIoU on its validation images: {100 * description.miou:.1f} %."]
    classes = (
        f"| {i} | {name.replace('|', chr(92) + '|')} | {', '.join(map(str, colour))} |"
        for i, (name, colour) in enumerate(zip(run.classes, run.palette.tolist(), strict=False))
    )
    lines = [
        "---",
        "library_name: regard",
        "pipeline_tag: image-segmentation",
        "tags: [semantic-segmentation, regard]",
        "---",
        "",
        f"# Semantic segmentation: {len(run.classes)} classes",
        "",
        f"Backbone {description.backbone['name']}, fusion {settings.fusion}, head {settings.head}, refiner "
        f"{settings.refiner}{_strength(description)}; images are fed with "
        f"a short side of {run.size} pixels. No licence is stated: ask the owner before you use it.",
        "",
        "## Use",
        "",
        "```python",
        "from regard.runs.hub import from_pretrained",
        "",
        'run = from_pretrained("OWNER/NAME")  # or this folder',
        'mask = run.predict("photo.jpg")  # (height, width), uint8 class indices',
        "```",
        *scores,
        *_head_table(run),
        "",
        "## Classes",
        "",
        f"Pixels of index {run.ignore_index} were left out of the training.",
        "",
        "| index | class | colour (RGB) |",
        "|---|---|---|",
        *classes,
    ]
    return "\n".join(lines) + "\n"


def _strength(description: ModelDescription) -> str:
    """Of the refiner."""
    if not description.refined:
        return ""
    hardly = ", hardly used" if description.hardly_refined else ""
    return f" (strength {description.refined['strength']:.3f}{hardly})"


def _head_table(run: Run) -> list[str]:
    """Lines of a model card: which attention heads the fusion uses; none where it uses none."""
    if not run.head_weights:
        return []
    return [
        "",
        "## Attention heads",
        "",
        "Shares of the heads of a block in what the fusion takes from attention; below a strength of "
        f"{LEAST_STRENGTH:g} they mean nothing.",
        "",
        "| block | strength | shares |",
        "|---|---|---|",
        *(f"| {level.block} | {level.strength:.3f} | {_shares(level)} |" for level in run.head_weights),
    ]


def _shares(level: HeadShares) -> str:
    """Each share; with its head's number where they are not simply all from 0 on."""
    if level.hardly_used:
        return "hardly used"
    shares = [f"{share:.2f}" for share in level.weights]
    if level.heads == list(range(len(shares))):
        return ", ".join(shares)
    return ", ".join(f"head {head}: {share}" for head, share in zip(level.heads, shares, strict=True))


def _model(run: Run) -> Any:
    if isinstance(run.model, OnnxModel):
        raise InputError("an ONNX file cannot be exported again: export the run that it was made of")
    run.check_alone()
    return run.model


def _write_model(run: Run, folder: Path) -> None:
    """Weights and `config.json`; the weights say which backbone is in them, as those of a run do."""
    made = config(run.description)
    tensors = {key: value.cpu().contiguous() for key, value in _model(run).state_dict().items()}
    metadata = {"format": "pt", "regard": json.dumps(made.backbone)}
    write_whole(folder / MODEL_FILE, lambda file: file.write(save(tensors, metadata=metadata)))
    write_stored(folder / CONFIG_FILE, made)


def _refuse_existing(path: Path) -> None:
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path} is there already: choose another --out, or delete it")


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `folder` when all went well."""
    _refuse_existing(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(folder)
    partial.mkdir()
    try:
        with on_disk(folder):
            yield partial
            partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
