"""A plan on data, with a folder: where its parts lie, and which are finished."""

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from regard.backbones.weights import BACKBONE_FILE
from regard.data.source import Source
from regard.errors import InputError
from regard.files import read_json
from regard.runs.pretraining import PRETRAIN_FILE
from regard.runs.run import MODEL_FILE, RUN_FILE
from regard.settings import Hardware
from regard.studies.plan import Configuration, Plan

COUNTS_FILE, CELL_FILE, COST_FILE = "counts.npz", "cell.json", "cost.json"


@dataclass(frozen=True)
class Study:
    """What every pre-training and every cell of a study shares. content: changes with the files of the data."""

    source: Source
    plan: Plan
    out: Path
    hardware: Hardware
    content: str

    def pretraining_folder(self, name: str, seed: int) -> Path:
        """Where a pre-training lies, or will."""
        return _folder(self.out / "pretraining", name, self.plan.pretraining_key(name, seed))

    def cell_folder(self, configuration: Configuration, seed: int) -> Path:
        """Where a cell lies, or will."""
        return _folder(self.out / "cells", configuration.name, self.plan.cell_key(configuration)) / f"seed-{seed}"

    def is_pretrained(self, name: str, seed: int) -> bool:
        """Whether a pre-training is finished."""
        folder = self.pretraining_folder(name, seed)
        return _is_json(folder / PRETRAIN_FILE) and _are_tensors(folder / BACKBONE_FILE)

    def is_trained(self, configuration: Configuration, seed: int) -> bool:
        """Whether a cell is trained, and what came of it can be read."""
        folder = self.cell_folder(configuration, seed)
        return _is_json(folder / RUN_FILE) and _are_tensors(folder / MODEL_FILE)

    def is_finished(self, configuration: Configuration, seed: int) -> bool:
        """Whether a cell is trained and scored, and all of it can be read."""
        folder = self.cell_folder(configuration, seed)
        scored = _is_json(folder / CELL_FILE) and zipfile.is_zipfile(folder / COUNTS_FILE)
        return scored and self.is_trained(configuration, seed)


def _is_json(path: Path) -> bool:
    try:
        return isinstance(read_json(path), dict)
    except InputError:
        return False


def _are_tensors(path: Path) -> bool:
    """Whether a file of weights is there, and as long as its head says."""
    try:
        with safe_open(path, "pt"):
            return True
    except (OSError, SafetensorError):
        return False


def _folder(parent: Path, name: str, key: str) -> Path:
    """The folder of this key, under whatever name it was made: to rename a configuration is not to change it."""
    there = sorted(parent.glob(f"*-{key}"))
    safe = re.sub(r"[^-.=+\w]+", "_", name)[:80]
    return there[0] if there else parent / f"{safe}-{key}"
