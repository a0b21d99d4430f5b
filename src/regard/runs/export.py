"""A trained segmentation in a form for others: an ONNX file, safetensors, or a folder for the Hugging Face hub; and a
pre-trained backbone as such a folder.

`run.load_run` and `build_backbone` read each of them again. A folder is whole or not there, and holds nothing of the
machine that trained it: see `exported.config`.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save

from regard.backbones import OURS, Backbone, build_backbone, parameters, save_backbone
from regard.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from regard.backbones.weights import MODEL_FILE, without_sources
from regard.errors import InputError
from regard.files import on_disk, partial_of, write_json, write_whole
from regard.results import (
    LEAST_STRENGTH,
    HeadShares,
    ModelDescription,
    PretrainDescription,
    RunDescription,
    read_stored,
    write_stored,
)
from regard.runs.exported import CONFIG_FILE, config
from regard.runs.onnx import OPSET, OnnxModel, export_onnx
from regard.runs.pretraining import PRETRAIN_FILE
from regard.runs.run import Run
from regard.settings import Values

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


def save_pretrained_backbone(run: Path, folder: str | Path) -> None:
    """The backbone of a pre-training in timm's form, with a model card: `hf-hub:OWNER/NAME` of it is read by
    `build_backbone`, and by timm itself where it is a model of timm's.
    """
    backbone, file = build_backbone(run), run / PRETRAIN_FILE
    made_by = read_stored(file, PretrainDescription) if file.is_file() else None
    with _new_folder(Path(folder)) as made:
        save_backbone(backbone, made / MODEL_FILE)
        write_json(made / CONFIG_FILE, timms_config(backbone))
        (made / CARD_FILE).write_text(backbone_card(backbone, made_by), encoding="utf-8")


def timms_config(backbone: Backbone) -> dict[str, Any]:
    """What timm reads of a model on the hub. Without `architecture`, by which timm would take it, for one with entmax,
    which timm does not have.
    """
    name, options = backbone.name.split(".")[0], without_sources({"options": backbone.options})["options"]
    mean, std = backbone.statistics or (IMAGENET_MEAN, IMAGENET_STD)
    kept = ("interpolation", "crop_pct", "fixed_input_size", "first_conv", "classifier")
    size = options.get("img_size", backbone.model.pretrained_cfg["input_size"][1:])
    trained = {key: value for key, value in backbone.model.pretrained_cfg.items() if key in kept and value is not None}
    trained |= {"input_size": [3, *((size, size) if isinstance(size, int) else size)], "num_classes": 0}
    config = {
        "num_classes": 0,
        "num_features": backbone.dim,
        "model_args": {key: value for key, value in options.items() if key not in OURS},
        "pretrained_cfg": trained | {"mean": list(mean), "std": list(std)},
    }
    return {"architecture": name, **config} if is_timms(backbone) else config


def is_timms(backbone: Backbone) -> bool:
    """Whether timm computes the same features: it knows no entmax."""
    return backbone.options.get("attention", "softmax") == "softmax"


def backbone_card(backbone: Backbone, made_by: PretrainDescription | None) -> str:
    """README.md for the hub: what it is, how it was made, how to load it. The licence is left to its owner."""
    name, how, scores = backbone.name, "", ""
    if made_by:
        scores = ", ".join(f"{key} {value:.1f} %" for key, value in made_by.final.items() if value)
        if settings := made_by.settings:
            how = f"Pre-trained by {settings.method}, {settings.epochs} epochs of {made_by.images:,} images."
    size = timms_config(backbone)["pretrained_cfg"]["input_size"][1:]
    timms = [
        "As one of timm's:",
        "",
        "```python",
        "import timm",
        "",
        'model = timm.create_model("hf-hub:OWNER/NAME", pretrained=True)',
        "```",
    ]
    if backbone.options.get("positions") == "dino":
        timms[0] += f" (at {size[0]} x {size[1]} pixels the same; elsewhere timm resamples positions in another way)"
    return "\n".join(
        [
            "---",
            "library_name: regard" if not is_timms(backbone) else "library_name: timm",
            "pipeline_tag: image-feature-extraction",
            "tags: [self-supervised-learning, timm, regard]",
            "---",
            "",
            f"# {name}, pre-trained with regard",
            "",
            f"{parameters(backbone):,} parameters, for images of about {size[0]} x {size[1]} pixels. {how} "
            f"{scores and f'Scores: {scores}.'} No licence is stated: ask the owner before you use it.",
            "",
            "## Use",
            "",
            "```python",
            "import regard",
            "import torch",
            "from regard.backbones import normalize",
            "",
            'backbone = regard.build_backbone("hf-hub:OWNER/NAME").eval()  # or this folder',
            f"images = normalize(torch.zeros(1, 3, {size[0]}, {size[1]}, dtype=torch.uint8))  # RGB, 0..255",
            f"features = backbone(images{', attention=True' if backbone.heads else ''})",
            "features.pyramid[-1].shape  # (1, channels, height, width)",
            "```",
            "",
            *(timms if is_timms(backbone) else ["timm cannot load it: its attention is entmax, which timm lacks."]),
            "",
        ]
    )


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
        f"a short side of {run.size} pixels{_chosen(settings)}. No licence is stated: ask the owner before you use it.",
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


def _chosen(settings: Values) -> str:
    """What is read of images, where that was chosen."""
    channels = ",".join(map(str, settings.channels or ()))
    said = [f"of channels {channels}"] * bool(channels) + [f"in the range {settings.range}"] * bool(settings.range)
    return "".join(f", {part}" for part in said)


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
