"""A plan on data, with a folder: where its parts lie, and which are finished."""

import re
from dataclasses import dataclass
from pathlib import Path

from regard.data.layout import Source
from regard.studies.plan import Configuration, Plan
from regard.studies.pretraining import PRETRAIN_FILE
from regard.studies.runs import MODEL_FILE, RUN_FILE
from regard.studies.training import Hardware

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

    def is_pretrained(self, name: str, seed: int) -> bool:
        """Whether a pre-training is finished."""
        return (self.pretraining_folder(name, seed) / PRETRAIN_FILE).is_file()

    def is_finished(self, configuration: Configuration, seed: int) -> bool:
        """Whether a cell is."""
        folder = self.cell_folder(configuration, seed)
        return all((folder / file).is_file() for file in (RUN_FILE, MODEL_FILE, COUNTS_FILE, CELL_FILE))


def _folder(parent: Path, name: str, key: str) -> Path:
    """The folder of this key, under whatever name it was made: to rename a configuration is not to change it."""
    there = sorted(parent.glob(f"*-{key}"))
    safe = re.sub(r"[^-.=+\w]+", "_", name)[:80]
    return there[0] if there else parent / f"{safe}-{key}"
