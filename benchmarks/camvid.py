"""How good is a segmentation of CamVid (train 367, val 101, test 233 images; 11 classes; Badrinarayanan et al. 2017)?

For each finished run of `regard segment`: the way of asking that is best on val (whole images, or with flip), and with
that one, once, the scores on test. Masks are scored at their own 480 x 360 pixels.

    regard segment --config camvid_unet --data CAMVID --out runs/camvid-scratch
    python benchmarks/camvid.py --data CAMVID --runs runs/camvid-scratch --trained_at COMMIT --out results/camvid.json
"""

from argparse import ArgumentParser
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from side_by_side import table, write

from regard.data.source import open_source, require_masks
from regard.runs.run import full_summary, load_run, summary
from regard.settings import Inference

WAYS = {
    "whole images": Inference(),
    "with flip": Inference(flip=True),
}


def scored(folder: Path, splits: Any) -> dict[str, Any]:
    """Scores on val in each way, and on test in the best of them."""
    run = load_run(folder)
    val = {}
    for name, inference in WAYS.items():
        val[name] = summary(run, run.evaluate(splits["val"], inference, batch_size=4)).miou
        print(folder.name, name, f"val mIoU {100 * val[name]:.1f}", flush=True)
    chosen = max(val, key=val.__getitem__)
    test = full_summary(run, run.score(splits["test"], WAYS[chosen], batch_size=4))
    kept, about = (
        ("backbone", "settings", "seed", "seconds", "best_epoch", "parameters", "curve"),
        asdict(run.description),
    )
    return {"val": val, "chosen": chosen, "test": asdict(test), "run": {key: about[key] for key in kept}}


def main() -> None:
    """Score, print a table, write JSON."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--trained_at", required=True, help="the commit that the runs were trained at")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    splits = require_masks(open_source(arguments.data))
    results = {folder.name: scored(folder, splits) for folder in arguments.runs}
    write(arguments.out, ["timm", "lightning"], {"trained_at": arguments.trained_at}, results)
    rows = []
    for name, result in results.items():
        test = result["test"]
        figures = (max(result["val"].values()), test["miou"], test["pixel_accuracy"], test["boundary"]["miou"])
        rows.append([name, result["chosen"], *(f"{100 * figure:.1f}" for figure in figures)])
    print(table(["run", "asked", "val mIoU", "test mIoU", "pixel accuracy", "Boundary IoU"], rows))


if __name__ == "__main__":
    main()
