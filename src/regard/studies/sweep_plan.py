"""What is swept, and the folder that belongs to it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from regard.backbones import Backbone, build_backbone
from regard.backbones.base import weights_digest
from regard.data.source import Source, fingerprint
from regard.errors import InputError
from regard.files import read_json, write_json
from regard.runs.folders import SETTINGS_FILE
from regard.settings import Hardware
from regard.studies.plan import plain
from regard.studies.space import Space, Value
from regard.studies.trials import DATABASE, LOCK


@dataclass(frozen=True)
class Pretrained:
    """A backbone as `regard segment` is told of it."""

    name: str
    pretrained: bool = False
    weights: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, seed: int) -> Backbone:
        """The same one in every trial."""
        torch.manual_seed(seed)
        return build_backbone(self.name, self.pretrained, self.weights, **self.options)


@dataclass(frozen=True)
class Sweep:
    """What is swept. fixed: options that are the same in all trials, where the space does not have them."""

    source: Source
    backbone: Pretrained
    space: Space
    out: Path
    size: int = 224
    epochs: int = 50
    fixed: dict[str, Value] = field(default_factory=dict)
    seed: int = 0
    prune: bool = True
    hardware: Hardware = Hardware()

    def options(self, chosen: dict[str, Value]) -> dict[str, Any]:
        """Those of `regard segment` that train what a trial of these values trained; `out` is left to the user."""
        backbone = self.backbone
        given = {
            "data": self.source.root,
            "backbone": backbone.name,
            "pretrained": backbone.pretrained,
            "weights": backbone.weights,
            "backbone_options": backbone.options,
            "size": self.size,
            "epochs": self.epochs,
            "seed": self.seed,
            "accelerator": self.hardware.accelerator,
            "precision": self.hardware.precision,
            "workers": self.hardware.workers,
        }
        given = {name: value for name, value in given.items() if value or name in ("seed", "workers")}
        return given | self.fixed | self.space.whole(chosen)


def claim(sweep: Sweep, backbone: Backbone) -> None:
    """A folder belongs to one sweep: its trials must not mix with those of another.

    Raises InputError where it holds something else.
    """
    out = sweep.out
    settings = {
        "kind": "sweep",
        "source": sweep.source.root,
        "data": fingerprint(sweep.source, out),
        "backbone": [sweep.backbone.name, backbone.options, weights_digest(backbone)],
        "space": sweep.space.described(),
        "fixed": sweep.fixed | {"size": sweep.size, "epochs": sweep.epochs},
        "seed": sweep.seed,
        "prune": sweep.prune,
        "precision": [sweep.hardware.device, sweep.hardware.chosen_precision],
    }
    path = out / SETTINGS_FILE
    if not path.is_file():
        if out.is_dir() and {path.name for path in out.iterdir()} - {LOCK, DATABASE}:
            raise InputError(f"{out} is not empty and holds no sweep: choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / LOCK):  # another sweep may have been started at the same time
            if not path.is_file():
                write_json(path, settings)
    before = read_json(path)
    if not isinstance(before, dict) or before.get("kind") != "sweep":
        raise InputError(f"{out} holds something else than a sweep: choose another --out")
    differs = [key for key, value in settings.items() if before.get(key) != plain(value)]
    if "seed" in differs and "backbone" in differs:  # whose random weights follow from the seed
        differs.remove("backbone")
    if differs:
        raise InputError(f"{out} holds another sweep ({', '.join(differs)} differ): choose another --out, or delete it")
