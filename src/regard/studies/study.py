"""A plan on data, with a folder: where its parts lie, and which are finished."""

import re
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from regard.backbones.weights import BACKBONE_FILE
from regard.data.source import Source
from regard.errors import InputError
from regard.results import CellResult, PretrainDescription, RunDescription, Stored, read_stored
from regard.runs.pretraining import PRETRAIN_FILE
from regard.runs.run import MODEL_FILE, RUN_FILE
from regard.settings import Hardware
from regard.studies.plan import Configuration, Plan

COUNTS_FILE, CELL_FILE = "counts.npz", "cell.json"


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

    def pretrained(self, name: str, seed: int) -> PretrainDescription | None:
        """What a pre-training says of itself; None where it is not finished, or damaged."""
        folder = self.pretraining_folder(name, seed)
        return _read(folder / PRETRAIN_FILE, PretrainDescription) if _are_tensors(folder / BACKBONE_FILE) else None

    def trained(self, configuration: Configuration, seed: int) -> RunDescription | None:
        """What a cell says of its training; None where it is not trained, or damaged."""
        folder = self.cell_folder(configuration, seed)
        return _read(folder / RUN_FILE, RunDescription) if _are_tensors(folder / MODEL_FILE) else None

    def scored(self, configuration: Configuration, seed: int) -> CellResult | None:
        """What a cell came to; None where it is not trained and scored, or damaged."""
        folder = self.cell_folder(configuration, seed)
        if not zipfile.is_zipfile(folder / COUNTS_FILE) or self.trained(configuration, seed) is None:
            return None
        return _read(folder / CELL_FILE, CellResult)


def _read(path: Path, kind: type[Stored]) -> Stored | None:
    with suppress(InputError):
        return read_stored(path, kind)
    return None


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
