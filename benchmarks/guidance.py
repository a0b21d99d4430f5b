"""What does guidance do to heads and to segmentation? Each term alone against none, in pre-training or in segmentation.

A small ViT (preset `tiny` of `regard compare`): pre-trained with Barlow Twins, then trained to segment with its
attention fused by `gate`. In stage `pretrain` the term is in the pre-training only; in stage `segment` in the
segmentation only, which starts from the unguided pre-training of the same seed. So runs of one seed differ in the term
alone. Heads are scored as `regard score` does, on the test images, as they were when guidance ended: those of the
pre-trained backbone, or of the segmentation's. mIoU is the segmentation's on the test images.

    python benchmarks/guidance.py --data scenes --work runs/guidance-scenes --out results/guidance/scenes.json

A second call does what is not done yet.
"""

from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from scipy.stats import t as student
from side_by_side import COMMIT, table, write

from regard.backbones import Backbone, build_backbone
from regard.data.loading.wrapped import Cached
from regard.data.source import open_source, require_masks
from regard.files import read_json, write_json
from regard.runs.pretraining import PRETRAIN_FILE, pretrain_run
from regard.runs.run import RUN_FILE, load_run, summary
from regard.runs.segmenting import segment_run
from regard.scoring.chosen import Chosen
from regard.scoring.protocol import choose_protocol
from regard.scoring.score import score_heads
from regard.settings import Hardware, Scoring
from regard.studies.presets import preset

TERMS = ("none", "sharpness", "diversity", "consistency")
HARDWARE = Hardware(accelerator="cpu", bar=False)
PRETRAIN_EPOCHS, SEGMENT_EPOCHS = 6, 10
SCORES = (
    "entropy_share",
    "area",
    "distance",
    "consistency",
    "consistency_elsewhere",
    "jaccard",
    "information",
    "information_beyond_position",
)
SCORED_FILE = "scored.json"


def trained(data: dict[str, Any], work: Path, term: str, stage: str, weight: float, seed: int) -> tuple[Path, Path]:
    """The folders of a pre-training and of the segmentation that follows it, made where they are not there yet."""
    tiny = preset("tiny")
    guided = {f"guide_{term}": weight} if term != "none" else {}
    name = f"{term}-{weight}" if term != "none" else "none"
    before = work / f"pretrain-{name if stage == 'pretrain' else 'none'}-{seed}"
    after = work / f"{stage}-{name}-segment-{seed}" if term != "none" else work / f"none-segment-{seed}"
    if not (before / PRETRAIN_FILE).is_file():
        torch.manual_seed(seed)
        settings = tiny.pretrainings["barlow_twins-swin"].settings
        assert settings is not None  # made here
        settings = replace(settings, epochs=PRETRAIN_EPOCHS, **(guided if stage == "pretrain" else {}))
        write_json(before / "commit.json", COMMIT)
        pretrain_run(data["train"], tiny.backbones["vit"].build(), settings, before, seed, HARDWARE)
    if not (after / RUN_FILE).is_file():
        guided = guided if stage == "segment" else {}
        settings = replace(tiny.segment, epochs=SEGMENT_EPOCHS, fusion="gate", **guided)
        segment_run(data["train"], data["val"], build_backbone(before), settings, after, seed, HARDWARE)
    return before, after


def scored(backbone: Backbone, test: Any) -> dict[str, float]:
    """Each score, the mean over the heads of all levels; and the oracle's Jaccard, the mean over levels."""
    protocol = choose_protocol(Scoring(size=preset("tiny").segment.size), backbone, test.classes)
    blocks = score_heads({"given": backbone}, Chosen(test), protocol, batch_size=32)["given"].blocks
    heads = [row for block in blocks for row in block.heads if row.head != "mean"]
    return {score: mean(getattr(row, score) for row in heads) for score in SCORES} | {
        "oracle": mean(block.oracle for block in blocks if block.oracle is not None)
    }


def cell(data: dict[str, Any], work: Path, term: str, stage: str, weight: float, seed: int) -> dict[str, Any]:
    """Train, and score what came of it, or read what is done."""
    before, after = trained(data, work, term, stage, weight, seed)
    file = after / f"{stage}-{SCORED_FILE}"
    if not file.is_file():
        run = load_run(after, "cpu")
        backbone = build_backbone(before) if stage == "pretrain" else run.model.backbone
        miou = summary(run, run.evaluate(data["test"])).miou
        write_json(file, {"miou": miou, **scored(backbone, data["test"])})
    made = read_json(before / PRETRAIN_FILE)
    terms = {name: value for name, value in made["curve"][-1].items() if name.startswith("guide_")}
    found = {"stage": stage, "term": term, "weight": weight if term != "none" else 0.0, "seed": seed}
    seconds = {"pretrain_seconds": made["seconds"], "segment_seconds": read_json(after / RUN_FILE)["seconds"]}
    return found | {"last_terms": terms} | seconds | {"trained_at": read_json(before / "commit.json")} | read_json(file)


def differences(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each term to none, paired by seed: mean, and 95% limits by Student's t over the seeds."""
    found = []
    for stage in ("pretrain", "segment"):
        plain = {c["seed"]: c for c in cells if c["stage"] == stage and c["term"] == "none"}
        for term in TERMS[1:]:
            guided = [c for c in cells if c["stage"] == stage and c["term"] == term]
            for score in ("miou", *SCORES, "oracle"):
                pairs = [c[score] - plain[c["seed"]][score] for c in guided]
                half = student.ppf(0.975, len(pairs) - 1) * stdev(pairs) / len(pairs) ** 0.5
                about = {"stage": stage, "term": term, "score": score, "none": mean(c[score] for c in plain.values())}
                found.append(about | {"difference": mean(pairs), "low": mean(pairs) - half, "high": mean(pairs) + half})
    return found


def main() -> None:
    """Train, score, compare."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pretrain_weight", type=float, default=100.0, help="beside Barlow Twins' loss, of about 100")
    parser.add_argument("--segment_weight", type=float, default=0.1, help="beside a cross-entropy of about 1")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    source = open_source(arguments.data, scenes_size=preset("tiny").segment.size)
    data = {split: Cached(dataset) for split, dataset in require_masks(source).items()}
    weights = {"pretrain": arguments.pretrain_weight, "segment": arguments.segment_weight}
    settings = {"data": source.root, "pretrain_epochs": PRETRAIN_EPOCHS, "segment_epochs": SEGMENT_EPOCHS}
    if not (kept := arguments.work / "settings.json").is_file():
        write_json(kept, settings)
    if read_json(kept) != settings:
        parser.error(f"{arguments.work} holds runs with other settings: choose another --work")
    cells = []
    for seed in range(arguments.seeds):
        for stage, weight in weights.items():
            for term in TERMS:
                cells.append(cell(data, arguments.work, term, stage, weight, seed))
                print(stage, term, seed, f"mIoU {100 * cells[-1]['miou']:.1f}", flush=True)
    compared = differences(cells)
    words = {
        "data": source.layout,
        "seeds": arguments.seeds,
        "weights": weights,
        "scores": "means over heads and levels",
    }
    config = words | {"pretrain_epochs": PRETRAIN_EPOCHS, "segment_epochs": SEGMENT_EPOCHS, "fusion": "gate"}
    write(arguments.out, ["timm", "lightning"], config, {"cells": cells, "differences": compared})
    rows = []
    for d in compared:
        limits = f"{d['difference']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})"
        rows.append([d["stage"], d["term"], d["score"], f"{d['none']:.3f}", limits])
    print(table(["stage", "term", "score", "without", "difference (95%)"], rows))


if __name__ == "__main__":
    main()
