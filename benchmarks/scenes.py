"""What have the backbones learned that come with the package?

For each, and each of three seeds, which draw other scenes and other random weights: the mIoU of the ridge probe on all
levels (`regard probe`, all masks of 512 scenes, 128 others scored) of

random:   the same network with random weights, which is the control;
learned:  what comes with the package, pre-trained without labels (src/regard/configs/scenes_*.yaml);
labelled: the same network trained with all masks, from random weights.

How much of the gap between the first and the last is closed tells what was learned. Of the ViT also the information of
its heads beyond position (`regard score`), and of its random twin.

    python benchmarks/scenes.py --work runs/backbones --out results/scenes/backbones.json

A second call does what is not done yet. `--learned FOLDER` takes FOLDER/vit, ... for what comes with the package, and
with `--ship` puts them there: in half precision, with their figures.
"""

import json
from argparse import ArgumentParser
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from side_by_side import COMMIT, table, write

from regard.backbones import Backbone, build_backbone, describe
from regard.backbones.base import weights_digest
from regard.data.source import Source, open_source, require_masks
from regard.files import WEIGHTS, read_json, write_json, write_whole
from regard.runs.pretraining import PRETRAIN_FILE
from regard.runs.segmenting import segment_run
from regard.scoring.chosen import Chosen
from regard.scoring.probe import ALL, probe
from regard.scoring.protocol import choose_protocol
from regard.scoring.score import random_twin, score_heads
from regard.settings import Hardware, Probing, Scoring, SegmentSettings

NAMES = ("resnet", "swin", "vit")
SEEDS, SIZE = (0, 1, 2), 64
LABELLED = SegmentSettings(
    size=SIZE, scale=(1.0, 1.0), jitter=0.0, head="linear", fusion="none", epochs=25, batch_size=16, lr=2e-3,
    backbone_lr=2e-3,
)  # fmt: skip
HARDWARE = Hardware(workers=0, bar=False)
FIGURES = ("random", "learned", "labelled", "ceiling")  # mIoU of the probe, 0..1


def trained(source: Source, backbone: Backbone, folder: Path, seed: int) -> Backbone:
    """A backbone of this kind, from random weights, after a training with all masks."""
    splits = require_masks(source)
    torch.manual_seed(seed)
    segment_run(splits["train"], splits["val"], backbone, LABELLED, folder, seed, HARDWARE)
    return build_backbone(folder)


def probed(source: Source, backbone: Backbone, disk: Path) -> tuple[float, float]:
    """mIoU of the probe on all levels, and of right answers for each patch."""
    splits, asked = require_masks(source), Probing(size=SIZE, heads=False, workers=0)
    found = probe(backbone.eval(), Chosen(splits["train"]), Chosen(splits["test"]), asked, disk, bar=False)
    row = next(row for row in found.rows if (row.features, row.columns) == (ALL, ""))
    return row.miou.mean, found.ceiling.mean


def heads(source: Source, backbones: dict[str, Backbone]) -> dict[str, list[float]]:
    """Bits that each head knows of the classes beyond what its position says, block by block."""
    chosen = Chosen(source.split("test"), None, None)
    asked = Scoring(size=SIZE)
    found = score_heads(
        backbones, chosen, choose_protocol(asked, backbones["learned"], chosen.classes), False, bar=False
    )
    return {
        name: [head.information_beyond_position for block in scored.blocks for head in block.heads[:-1]]
        for name, scored in found.items()
    }


def measure(name: str, seed: int, learned: Backbone, work: Path) -> dict[str, Any]:
    """All figures of one backbone and seed; each is kept in a file."""
    source, found = open_source("scenes", scenes_size=SIZE, seed=seed), {}
    for kind in FIGURES[:3]:
        mark = f"{kind}-{weights_digest(learned)[:8]}" if kind == "learned" else kind
        file = work / f"{name}-{seed}-{mark}.json"
        if not file.is_file():
            model = learned if kind == "learned" else random_twin(learned, seed)
            if kind == "labelled":
                model = trained(source, model, work / f"{name}-{seed}", seed)
            write_json(file, probed(source, model, work))
        found[kind], found["ceiling"] = read_json(file)
    if name == "vit":
        found["information"] = heads(source, {"learned": learned, "random": random_twin(learned, seed)})
    return found


def ship(name: str, learned: Path, figures: dict[str, Any]) -> None:
    """A pre-training as it comes with the package."""
    run, starts = read_json(learned / name / PRETRAIN_FILE), learned / f"{name}_start" / PRETRAIN_FILE
    runs = [run, *([read_json(starts)] if starts.is_file() else [])]
    backbone = build_backbone(learned / name)
    data, out = f"--data objects:{run['images']}", "--out runs/scenes/"
    commands = [f"regard pretrain --config scenes_{name} {data} {out}{name}"]
    if starts.is_file():
        commands[0] += f" --weights runs/scenes/{name}_start"
        commands.insert(0, f"regard pretrain --config scenes_{name}_start {data} {out}{name}_start")
    made = {
        "commands": commands,
        "shipped_at": COMMIT,
        "data": f"objects:{run['images']}, which regard draws: no photo, no label",
        "images_seen": sum(one["steps"] * one["settings"]["batch_size"] for one in runs),
        "licence": "MIT",
        "figures": {kind: [round(value, 4) for value in values] for kind, values in figures.items() if kind in FIGURES},
    }
    state = backbone.model.state_dict()
    tensors = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    about = {"regard": json.dumps(describe(backbone)), "made": json.dumps(made)}
    write_whole(WEIGHTS / f"scenes/{name}.safetensors", lambda file: file.write(save(tensors, about)))


def main() -> None:
    """Measure, print, write."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/backbones"))
    parser.add_argument("--learned", default="scenes", help="a folder of pre-trainings, or those of the package")
    parser.add_argument("--names", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--ship", action="store_true", help="put what was learned into the package")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    every, rows = {}, []
    for name in asked.names:
        learned = build_backbone(f"{asked.learned}/{name}").eval()
        found = [measure(name, seed, learned, asked.work) for seed in SEEDS]
        means = {kind: [one[kind] for one in found] for kind in FIGURES}
        closed = [(one["learned"] - one["random"]) / (one["labelled"] - one["random"]) for one in found]
        every[name] = means | {"closed": closed} | {"information": [one.get("information") for one in found]}
        cells = [f"{100 * np.mean(v):.1f} ± {100 * np.std(v, ddof=1):.1f}" for v in (*means.values(), closed)]
        rows.append([name, *cells])
        if asked.ship:
            ship(name, Path(asked.learned), means)
    print(table(["backbone", "random", "learned", "labelled", "ceiling", "gap closed, %"], rows))
    if asked.out:
        about = {"seeds": SEEDS, "size": SIZE, "labelled": asdict(LABELLED), "unit": "share, bits of information"}
        write(asked.out, ["timm", "numpy"], about, every)


if __name__ == "__main__":
    main()
