"""Loads checkpoints into timm models, whoever wrote them, and says what was taken of them; and what our own files say
of themselves.
"""

import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from regard.backbones.checkpoints import State, read_state
from regard.backbones.namings import NAMINGS, flat_chunks, foreign, part, place, renamed
from regard.errors import InputError, first_line
from regard.files import CONFIG_FILE, HUB_WEIGHTS, read_json
from regard.results import BACKBONE_FILE as BACKBONE_FILE
from regard.results import MODEL_FILE as MODEL_FILE
from regard.say import say

# Parts of a checkpoint that are not the backbone: classifiers, and the heads that pre-training throws away.
HEADS = re.compile(
    r"(fc|head|head_dist|\w*classifier|\w*projector|bn|pre_logits|decoder\w*|\w*predictor|mask_token|masked_embed|neck|"
    r"\w+_head|heads|prototypes|queue|queue_ptr)(\.|$)"
)

# Options of a backbone that say where its first weights came from. What is described has weights of its own, and a
# description that came from somewhere else should not make timm open or fetch others.
SOURCES = frozenset(
    ("pretrained", "weights", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "hf_hub_id")
)
ARCHITECTURE = "Is it of another architecture?"


def without_sources(description: dict[str, Any]) -> dict[str, Any]:
    """A backbone's description without the places that its first weights came from."""
    options = {key: value for key, value in description["options"].items() if key not in SOURCES}
    return {**description, "options": options}


def read_description(path: Path) -> dict[str, Any] | None:
    """Name and timm options of a backbone that `regard` saved (file or run folder), or timm (folder); None for others.

    They name no other weights: see `without_sources`. Raises InputError for a damaged file.
    """
    config, path = path / CONFIG_FILE, backbone_file(path)
    if not path.is_file():
        return None
    text = None
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get("regard")
        except SafetensorError as error:
            raise InputError(f"{path} is not a whole safetensors file: {error}") from error
    if not text and not config.is_file():
        return None
    try:
        found: Any = json.loads(text) if text else _timms(read_json(config))
        return checked(found, len(_sizes(path))) if text or found else None
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} does not say in its metadata which backbone it holds ({first_line(error)}): make it again"
        ) from error


def _timms(config: Any) -> dict[str, Any] | None:
    """What timm's config.json describes; None where it is of something else."""
    if not isinstance(config, dict) or "architecture" not in config:
        return None
    trained, options = config.get("pretrained_cfg") or config, dict(config.get("model_args") or {})
    options.pop("num_classes", None)
    tagged = f"{config['architecture']}.{trained.get('tag')}"  # by which it is known how positions were learned
    statistics = {part: trained.get(part) for part in ("mean", "std")}
    return {
        "name": tagged if timm.models.is_model_pretrained(tagged) else config["architecture"],
        "options": options,
        "statistics": statistics if all(statistics.values()) else None,
        "by_timm": True,
    }


def checked(description: dict[str, Any], tensors: int) -> dict[str, Any]:
    """A backbone's description without other sources of weights, once it can be one of a file of so many tensors.

    Raises KeyError, TypeError or ValueError for one that cannot.
    """
    description = without_sources(description)
    if not isinstance(description["name"], str):
        raise TypeError("its name is no text")
    for key, value in description["options"].items():
        layers = value if isinstance(value, list | tuple) else (value,)
        if re.search("depth|layers", key) and not 0 <= sum(layers) <= tensors:
            raise ValueError(f"{key} {value} in a file of {tensors} tensors")
    size = description["options"].get("img_size", 1)
    sides = size if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"img_size {size} is no size of images")
    statistics = description.get("statistics")
    if statistics:
        mean, std = ([float(value) for value in statistics[part]] for part in ("mean", "std"))
        sane = all(abs(value) <= 255 for value in mean) and all(1e-3 <= value <= 255 for value in std)
        if len(mean) != 3 or len(std) != 3 or not sane:
            raise ValueError(f"mean {mean} and std {std} are no statistics of images")
    return description


def backbone_file(path: Path) -> Path:
    """The file itself, or the one of a run folder that holds its backbone: of a pre-training, or of a segmentation."""
    if not path.is_dir():
        return path
    names = (BACKBONE_FILE, MODEL_FILE, *HUB_WEIGHTS)
    return next((file for name in names if (file := path / name).is_file()), path / BACKBONE_FILE)


def check_size(path: Path, build: Callable[[], nn.Module]) -> None:
    """InputError where the model that a description builds has more numbers than its file has: so a wrong description
    takes no memory. What cannot be built without any is left to be built.
    """
    there = sum(_sizes(path))
    described = 0.0
    try:
        with torch.device("meta"):
            described = sum(value.numel() for value in build().state_dict().values())
    except Exception as error:  # a model may need numbers to be built; of sizes past all bounds, torch says so
        described = math.inf if "overflow" in str(error) else described
    if described > there:
        raise InputError(f"{path} holds {there:,} numbers, and describes a model of {described:,.0f}: make it again")


def _sizes(path: Path) -> list[int]:
    """How many numbers each tensor of a file has."""
    if path.suffix != ".safetensors":
        return [value.numel() for value in read_state(path)[0].values()]
    with safe_open(path, framework="pt") as file:
        return [math.prod(file.get_slice(key).get_shape()) for key in file.keys()]  # noqa: SIM118 (no dict)


def check_finite(state: Mapping[str, Tensor], path: Path) -> None:
    """InputError for weights that are not numbers, such as those of a training that diverged."""
    broken = sorted(key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all())
    if broken:
        raise InputError(
            f"{path} has weights that are not finite, in {_few(broken)}: an earlier checkpoint, or the training again "
            "at a lower rate, would work"
        )


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a checkpoint into a timm model, strictly: of a file, or of a run folder.

    Position embeddings, patch kernels and bias tables of another size are resampled. Classifiers, decoders and
    pre-training heads in the file are passed over. What was taken, left out and resampled is said.

    Raises InputError that names what is missing, left over, or not finite; the model is then as it was.
    """
    path = backbone_file(path)
    found, said = read_state(path)
    description = read_description(path)
    own = model.state_dict()
    state, left_out, where = _in_timms_names(found, own)
    left_out += _leave_out_cls(state, own)
    in_file = dict(state)
    moved = _resample_positions(state, model, (description or {"options": {}})["options"].get("img_size"))
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        with suppress(Exception):  # it may stumble over names that are not its own; they are named below
            state = convert(dict(state), model)
    state = {key: own[key] for key in own if key.endswith(".num_batches_tracked")} | state  # none before PyTorch 0.4.1
    missing = sorted(own.keys() - state.keys())
    left_over = sorted(key for key in state.keys() - own.keys() if not HEADS.match(key))
    misfits = sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    if missing or left_over or misfits:
        wrong = {"missing": missing, "left over": left_over, "another shape in": misfits}
        words = "; ".join(f"{what} {_few(keys)}" for what, keys in wrong.items() if keys)
        whose = foreign(found)
        remedy = f"It is in the names of {whose}: timm's own file of it would work" if whose else ARCHITECTURE
        raise InputError(f"{path} does not fit {type(model).__name__}: {words}. {remedy}")
    weights = {key: state[key] for key in own}
    check_finite(weights, path)
    model.load_state_dict(weights)
    left_out += sorted({part(key) for key in in_file if HEADS.match(key)})
    said += where + [f"left out {_few(left_out, 8)}"] * bool(left_out)
    said = said if description is None else []  # what lies beside the backbone in a file of ours is known
    said += [moved] * bool(moved) + _resized(in_file, weights)
    if said:
        say(f"{path}: {'; '.join(said)}")


def _in_timms_names(found: State, own: Mapping[str, Tensor]) -> tuple[State, list[str], list[str]]:
    """The model's tensors under timm's names, the parts that are left out, and where the model was, for people."""
    flat = flat_chunks(list(found), own)
    naming, prefix = place(flat.values(), own)
    ours = {renamed(key, NAMINGS[naming]): key for key in own}
    inside = {key: flat[key].removeprefix(prefix) for key in found if flat[key].startswith(prefix)}
    where = [f"took what is under {prefix}"] if prefix else []
    where += [f"read by the names of {naming}"] if naming != "timm" else []
    return (
        {ours.get(name, name): found[key] for key, name in inside.items()},
        sorted({part(flat[key], prefix) for key in found.keys() - inside.keys()}),
        where,
    )


def _leave_out_cls(state: State, own: Mapping[str, Tensor]) -> list[str]:
    """Take the CLS token, and its position, out of the weights of a ViT that averages its patches instead, whose last
    norm comes after the average (as MAE's fine-tuning has it); the names of what is left out.
    """
    positions = state.get("pos_embed")
    if "cls_token" not in state or "cls_token" in own or positions is None or positions.ndim != 3:
        return []
    del state["cls_token"]
    state["pos_embed"] = positions[:, 1:]  # where the token had none, the number of the others is refused later
    if "fc_norm.weight" in own and "norm.weight" not in own:
        state.update({f"fc_{key}": state.pop(key) for key in ("norm.weight", "norm.bias") if key in state})
    return ["cls_token"]


def _resample_positions(state: State, model: Any, size: int | Sequence[int] | None) -> str:
    """Bring a ViT's positions from the grid that they are of to the model's; in words, where it is another.

    size: of the images that the file says they are for. Where it says none, they are taken for those of the published
    model if their number fits, and else for a square.
    """
    positions, own = state.get("pos_embed"), getattr(model, "pos_embed", None)
    kernels = state.get("patch_embed.proj.weight")
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if positions is None or positions.ndim != 3 or own is None or grid is None or kernels is None or kernels.ndim < 4:
        return ""
    new = (int(grid[0]), int(grid[1]))
    ahead = own.shape[1] - math.prod(new)  # positions of tokens that are no patches
    count = positions.shape[1] - ahead
    published = model.pretrained_cfg.get("input_size", (3, 0, 0))[1:]
    sizes = [published] if size is None else [(size, size) if isinstance(size, int) else tuple(size)]
    grids = [(rows // kernels.shape[-2], columns // kernels.shape[-1]) for rows, columns in sizes]
    grids += [new] if count == math.prod(new) else [(math.isqrt(max(count, 0)),) * 2]
    old = next((one for one in grids if math.prod(one) == count), None)
    if old is None:  # of no grid: the message on its shape says what there is
        return ""
    if old != new:
        state["pos_embed"] = resample_abs_pos_embed(positions, list(new), list(old), ahead)
    model.pretrained_model_args = {"img_size": model.patch_embed.img_size}  # else timm might take them for a square
    is_guess, words = size is None and old != grids[0], f"{old[0]} x {old[1]} patches"
    if old != new:
        guess = f"a grid of {words}, which the file does not say," if is_guess else words
        return f"positions of {guess} resampled to {new[0]} x {new[1]}"
    return f"positions taken for a grid of {words}, which the file does not say" if is_guess else ""


def _resized(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """What else has another size than in the file, in words."""
    said = []
    for name, words in (("patch_embed.proj.weight", "patch kernels"), ("relative_position_bias_table", "bias tables")):
        shapes = ((before[key].shape, after[key].shape) for key in sorted(after.keys() & before) if key.endswith(name))
        for old, new in [(old, new) for old, new in shapes if old != new and len(old) == len(new)][:1]:
            sizes = (" x ".join(map(str, shape[-2:] if len(shape) > 2 else shape[:1])) for shape in (old, new))
            said.append(f"{words} resampled from {' to '.join(sizes)}")
    return said


def _few(keys: Sequence[str], most: int = 3) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more
