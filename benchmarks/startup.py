"""How long until `regard pretrain` takes its first step, by the number of images?

Class folders of 1,000 links each to small JPEGs, or one flat folder; a tiny ViT, so that the step itself takes little.
Seconds from the start of the command to the data listed (of which the listing itself), and from there to the end of the
first step. The names are in the system's cache.

    python benchmarks/startup.py --out results/startup.json
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path

from side_by_side import show, spread, table, write

LAYOUTS = {"class folders": 1000, "one folder": 10**9}  # images in a folder
LINKS = 50_000  # to one file: ext4 allows 65,000
MODEL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
TIMES = ("command to listed", "listing", "listed to first step")


def make_tree(root: Path, count: int, in_each: int) -> None:
    """So many small JPEGs, in folders of `in_each`."""
    import cv2
    import numpy as np

    jpeg = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8))[1].tobytes()
    for i in range(count):
        source, folder = root.parent / f"source{i // LINKS}.jpg", root / f"class{i // in_each:04}"
        if i % LINKS == 0:
            source.write_bytes(jpeg)
        if i % in_each == 0:
            folder.mkdir(parents=True)
        os.link(source, folder / f"image{i:07}.jpg")


def run_until_first_step(data: str, out: str, started: float) -> None:
    """In a process of its own, which ends here: prints the seconds as JSON."""
    from regard.cli import main
    from regard.data import source as recognised
    from regard.training.trainer import StepSeed

    opened, seconds, open_source = [0.0], {}, recognised.open_source

    def watched(*arguments, **options):
        before = time.time()
        source = open_source(*arguments, **options)
        opened[0] = time.time()
        seconds.update({TIMES[0]: opened[0] - started, TIMES[1]: opened[0] - before})
        return source

    def after_step(*_) -> None:
        seconds[TIMES[2]] = time.time() - opened[0]
        print(json.dumps(seconds), flush=True)
        os.killpg(0, 9)  # the loading processes, too

    recognised.open_source, StepSeed.on_train_batch_end = watched, after_step
    words = ["pretrain", "--data", data, "--out", out, "--backbone", "vit_tiny_patch16_224", "--size", "32"]
    words += ["--batch_size", "16", "--workers", "2", "--backbone_options", json.dumps(MODEL)]
    main([*words, "--method_options", json.dumps({"widths": [64, 64]})])


def first_step(data: Path) -> dict[str, float]:
    """Seconds of each part, of one start."""
    out = Path(tempfile.mkdtemp())
    words = [sys.executable, __file__, "--child", str(data), str(out / "run"), str(time.time())]
    done = subprocess.run(words, capture_output=True, text=True, start_new_session=True)
    shutil.rmtree(out)
    if not done.stdout:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def main() -> None:
    """Trees of each size."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    arguments = parser.parse_args()
    results, rows = [], []
    for count in arguments.counts:
        for layout, in_each in LAYOUTS.items():
            top = Path(tempfile.mkdtemp())
            make_tree(top / "tree", count, in_each)
            found = [first_step(top / "tree") for _ in range(arguments.rounds)]
            shutil.rmtree(top)
            parts = {part: spread([one[part] for one in found]) for part in TIMES}
            results.append({"images": count, "layout": layout, "seconds": parts})
            rows.append([f"{count:,}", layout, *(show(parts[part], digits=1) for part in TIMES)])
    write(arguments.out, ["timm", "lightning"], {"model": MODEL, "batch_size": 16, "workers": 2}, results)
    print(table(["images", "layout", *(f"{part}, s" for part in TIMES)], rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run_until_first_step(sys.argv[2], sys.argv[3], float(sys.argv[4]))
    else:
        main()
