"""What is swept, and the folder that belongs to it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from regard.backbones import Backbone, build_backbone
from regard.backbones.base import weights_digest
from regard.data.source import Source, fingerprint
from regard.errors import InputError
from regard.files import read_json, write_json
from regard.results import SETTINGS_FILE
from regard.settings import Hardware, Model, SegmentSettings, options
from regard.studies.plan import plain
from regard.studies.space import DEFAULTS, Space, Value
from regard.studies.trials import DATABASE, LOCK


@dataclass(frozen=True)
class Sweep:
    """What is swept. settings: of all trials, where the space says nothing else."""

    source: Source
    model: Model
    space: Space
    out: Path
    settings: SegmentSettings = SegmentSettings()
    seed: int = 0
    prune: bool = True
    hardware: Hardware = Hardware()

    def build(self) -> Backbone:
        """The same one in every trial."""
        torch.manual_seed(self.seed)
        model = self.model
        return build_backbone(model.backbone, model.pretrained, model.weights, **model.backbone_options)

    @property
    def fixed(self) -> dict[str, Any]:
        """The settings that are the same in all trials, and not the defaults."""
        swept = self.space.varied | self.space.fixed
        values = {one.name: getattr(self.settings, one.name) for one in options(SegmentSettings)}
        return {name: value for name, value in values.items() if name not in swept and value != getattr(DEFAULTS, name)}

    def options(self, chosen: dict[str, Value]) -> dict[str, Any]:
        """Those of `regard segment` that train what a trial of these values trained; `out` is left to the user."""
        hardware = {name: getattr(self.hardware, name) for name in ("accelerator", "precision", "workers")}
        given = {"data": self.source.root, **asdict(self.model), "seed": self.seed, **hardware}
        given = {name: value for name, value in given.items() if value or name in ("seed", "workers")}
        return given | plain(self.space.whole(chosen, self.fixed))


def claim(sweep: Sweep, backbone: Backbone) -> None:
    """A folder belongs to one sweep: its trials must not mix with those of another.

    Raises InputError where it holds something else.
    """
    out = sweep.out
    settings = {
        "kind": "sweep",
        "source": sweep.source.root,
        "data": fingerprint(sweep.source, out),
        "backbone": [backbone.name, backbone.options, weights_digest(backbone)],
        "space": sweep.space.described(),
        "fixed": sweep.fixed,
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
