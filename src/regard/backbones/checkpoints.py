"""Reads the tensors of a checkpoint file, and chooses which of the models in it: the published Barlow Twins and DINO
ones, torchvision's, timm's, our own, and those of other programs.

A file is read as data only (`weights_only=True`, or safetensors), so that opening it never runs code from it. What
often lies beside weights (settings, numbers of NumPy) is stood in for by `Aside`, which is nothing.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from regard.errors import InputError

State = dict[str, Tensor]
# Where checkpoints keep weights, best first: averages (as timm takes them); of DINO's full checkpoint, which has both a
# teacher and a student, what its paper evaluates (section 3.1); of I-JEPA's likewise.
WRAPPERS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "teacher", "student", "backbone_weights", "target_encoder"),
    *("encoder", "state_dict", "model", "model_state_dict", "module", "net", "network", "weights"),
)
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict")
# Classes and functions of values that lie beside weights, by their full names.
BESIDE = (
    *("argparse.Namespace", "types.SimpleNamespace", "collections.defaultdict", "typing.Any", "pathlib.Path"),
    *("pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath", "numpy.dtype", "numpy.ndarray"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.nodes.AnyNode"),
    *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata", "yacs.config.CfgNode"),
    *("mmengine.logging.history_buffer.HistoryBuffer", "mmengine.config.config.ConfigDict"),
    *("pytorch_lightning.utilities.parsing.AttributeDict", "lightning.fabric.utilities.data.AttributeDict"),
)


class Aside(dict):
    """Stands in for a value beside the weights: takes whatever it is made of, and keeps nothing."""

    def __new__(cls, *args: Any) -> "Aside":
        """Of anything."""
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        super().__init__()

    def __setitem__(self, key: Any, value: Any) -> None:
        """Nothing."""

    def __setstate__(self, state: Any) -> None:
        """Nothing."""


def read_state(path: Path) -> tuple[State, list[str]]:
    """The tensors of the best model in a checkpoint file, and in words which that is where there are several.

    Raises InputError for a file that cannot be read as data, and for one without tensors.
    """
    if not path.is_file():
        raise InputError(f"no weights file at {path}")
    found: Any = _load(path)
    took: list[str] = []
    others: list[str] = []
    while isinstance(found, Mapping):
        inside = [name for name in WRAPPERS if _has_tensors(found.get(name))]
        if not inside:
            break
        took, others, found = [*took, inside[0]], others + inside[1:], found[inside[0]]
    if not _has_tensors(found):
        raise InputError(f"{path} holds no weights that are known here: expected one of {', '.join(WRAPPERS)}")
    said = []
    if others:
        what = f"took {took[-1]}{' (an average)' if took[-1] in AVERAGES else ''}, not {' or '.join(others)}"
        said = [f"{what}: to take that, save it alone in a file"]
    return {str(key): value for key, value in found.items() if isinstance(value, Tensor)}, said


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if zipfile.is_zipfile(path):  # torch packs nothing; what is packed may be any size once it is not
            with zipfile.ZipFile(path) as file:
                if any(one.compress_type != zipfile.ZIP_STORED for one in file.infolist()):
                    raise InputError(f"cannot read weights from {path}: it is packed, as torch.save packs none")
        with torch.serialization.safe_globals([(Aside, name) for name in BESIDE]):
            return torch.load(path, "cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # torch raises many kinds for a broken or an unsafe file
        raise InputError(
            f"cannot read weights from {path}: {_why(error)}. "
            "It must hold tensors only (.pth, .pt, .ckpt, .safetensors): "
            "torch.save(model.state_dict(), FILE), where it was made, would work"
        ) from error


def _has_tensors(found: Any, depth: int = 3) -> bool:
    """Whether there are tensors in a dict, or in one of those in it that weights are kept in."""
    if not isinstance(found, Mapping) or not depth:
        return False
    if any(isinstance(value, Tensor) for value in found.values()):
        return True
    return any(_has_tensors(found.get(name), depth - 1) for name in WRAPPERS)


def _why(error: Exception) -> str:
    """What is wrong with a file, in our words: torch's go on to tell how to open an unsafe file all the same."""
    unsafe = re.search(r"GLOBAL ([\w.]+)", str(error))  # the class or function that the file asks for
    if unsafe:
        return f"it asks for {unsafe[1]}, which could run code"
    if isinstance(error, pickle.UnpicklingError):
        return "it holds objects that are not tensors, or is not a checkpoint"
    return "it is broken, or not a checkpoint"
