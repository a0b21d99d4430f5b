"""Reads checkpoints into timm models: the published Barlow Twins and DINO ones, torchvision's, timm's and our own.

A file is read as data only (`weights_only=True`, or safetensors), so that opening it never runs code from it. The one
class let through besides torch's own is `argparse.Namespace`, a bag of values, which DINO's full checkpoint holds.
"""

import argparse
import json
import pickle
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from regard.errors import InputError

BACKBONE_FILE = "backbone.safetensors"
MODEL_FILE = "model.safetensors"  # a whole segmentation, its backbone among the rest

# Where published checkpoints keep the weights, best first: DINO's full checkpoint has both a teacher and a student, and
# its paper evaluates the teacher (section 3.1).
WRAPPERS = ("teacher", "student", "backbone_weights", "state_dict", "model", "model_state_dict")
# What goes before the backbone's names beside other parts, best first: our DINO's teacher, our other methods, theirs.
PREFIXES = ("teacher_backbone.model.", "backbone.model.", "backbone.")
# Parts of a checkpoint that are not the backbone: classifiers, and the heads that pre-training throws away.
HEADS = ("fc.", "head.", "head_dist.", "classifier.", "projector.", "bn.")

# Options of a backbone that say where its first weights came from. What is described has weights of its own, and a
# description that came from somewhere else should not make timm open or fetch others.
SOURCES = frozenset(
    ("pretrained", "weights", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "hf_hub_id")
)


def without_sources(description: dict[str, Any]) -> dict[str, Any]:
    """A backbone's description without the places that its first weights came from."""
    options = {key: value for key, value in description["options"].items() if key not in SOURCES}
    return {**description, "options": options}


def read_description(path: Path) -> dict[str, Any] | None:
    """Name and timm options of a backbone that `regard` saved (file or run folder); None if it is not one.

    They name no other weights: see `without_sources`. Raises InputError for a damaged file.
    """
    path = backbone_file(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("regard")
    except SafetensorError as error:
        raise InputError(f"{path} is not a whole safetensors file: {error}") from error
    if not text:
        return None
    try:
        description = without_sources(json.loads(text))
        named = isinstance(description["name"], str)
    except (ValueError, KeyError, TypeError, AttributeError):
        named = False
    if not named:
        raise InputError(f"{path} does not say in its metadata which backbone it holds: make it again")
    return description


def backbone_file(path: Path) -> Path:
    """The file itself, or the one of a run folder that holds its backbone: of a pre-training, or of a segmentation."""
    if not path.is_dir():
        return path
    return next((file for name in (BACKBONE_FILE, MODEL_FILE) if (file := path / name).is_file()), path / BACKBONE_FILE)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a checkpoint into a timm model, strictly.

    Position embeddings, patch embeddings and bias tables of another size are resampled (timm's own filter).
    Classifiers and pre-training heads in the file are passed over. Raises InputError that names what is missing or left
    over; the model is then as it was.
    """
    state = read_state(path)
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        with suppress(Exception):  # it may stumble over names that are not its own; they are named below
            state = convert(state, model)
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    left_over = sorted(key for key in state.keys() - own.keys() if not key.startswith(HEADS))
    misfits = [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    if missing or left_over or misfits:
        found = "; ".join(
            f"{what} {_few(keys)}"
            for what, keys in (("missing", missing), ("left over", left_over), ("another shape in", misfits))
            if keys
        )
        raise InputError(f"{path} does not fit {type(model).__name__}: {found}. Is it of another architecture?")
    model.load_state_dict({key: value for key, value in state.items() if key in own})


def read_state(path: Path) -> dict[str, Tensor]:
    """The backbone's tensors in a checkpoint file, under the names that timm uses."""
    if not path.is_file():
        raise InputError(f"no weights file at {path}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a broken or an unsafe file
        raise InputError(
            f"cannot read weights from {path}: {_why(error)}. "
            "It must hold tensors only (.pth, .pt, .ckpt, .safetensors)"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
            break
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} holds no weights that are known here: expected one of {', '.join(WRAPPERS)}")
    state = {str(key).removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
    for prefix in PREFIXES:
        inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if inside:
            return inside
    return state


def _why(error: Exception) -> str:
    """What is wrong with a file, in our words: torch's go on to tell how to open an unsafe file all the same."""
    unsafe = re.search(r"GLOBAL ([\w.]+)", str(error))  # the class or function that the file asks for
    if unsafe:
        return f"it asks for {unsafe[1]}, which could run code"
    if isinstance(error, pickle.UnpicklingError):
        return "it holds objects that are not tensors, or is not a checkpoint"
    return "it is broken, or not a checkpoint"


def _few(keys: list[str], most: int = 3) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more
