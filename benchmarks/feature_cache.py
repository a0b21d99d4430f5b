"""What does a cache of features save a training on a frozen backbone?

ViT-S/16 with random weights, frozen, at 224 px; segformer head, fusion gate; `scenes` drawn once and kept in memory.
Seconds of each epoch, validation included, without a cache and with one: its first epoch, which fills it, and the rest.

    python benchmarks/feature_cache.py --out results/feature_cache.json
"""

import shutil
import tempfile
import time
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

import lightning as L
import torch
from side_by_side import show, spread, table, write

from regard.backbones import build_backbone
from regard.data.datasets.scenes import Scenes
from regard.data.loading.wrapped import Cached
from regard.runs import segmenting
from regard.runs.extras import Cache, Extras
from regard.runs.segmenting import segment_run
from regard.settings import Hardware, SegmentSettings

NAME, SIZE, EPOCHS = "vit_small_patch16_224", 224, 4


class Stopwatch(L.Callback):
    """Seconds from the start of a run to the end of each epoch, its validation included."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        """Lightning has validated by then."""
        self.ends.append(time.perf_counter())


def epochs(train: Cached, val: Cached, cache: Path | None) -> list[float]:
    """Seconds of each epoch of one training; filling the cache counts to the first."""
    watch, make = Stopwatch(), segmenting.make_trainer

    def with_watch(count, out, hardware, callbacks, *rest):
        return make(count, out, hardware, [*callbacks, watch], *rest)

    settings = SegmentSettings(size=SIZE, epochs=EPOCHS, batch_size=8, freeze=True)
    torch.manual_seed(0)
    backbone = build_backbone(NAME)
    out = Path(tempfile.mkdtemp())
    segmenting.make_trainer = with_watch
    start = time.perf_counter()
    try:
        kept = Cache(cache, "scenes") if cache else None
        segment_run(
            train,
            val,
            backbone,
            replace(settings, fusion="gate"),
            out,
            hardware=Hardware(bar=False),
            extras=Extras(cache=kept),
        )
    finally:
        segmenting.make_trainer = make
        shutil.rmtree(out)
    return [b - a for a, b in zip([start, *watch.ends], watch.ends, strict=False)]


def main() -> None:
    """Train without, with an empty cache, and with a full one, in turns."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    train, val = Cached(Scenes(arguments.images, SIZE)), Cached(Scenes(arguments.images // 4, SIZE, split="val"))
    seconds: dict[str, list[float]] = {name: [] for name in ("no cache", "first epoch, filling it", "later epochs")}
    for _ in range(arguments.rounds):
        folder = Path(tempfile.mkdtemp())
        plain, cached = epochs(train, val, None)[1:], epochs(train, val, folder)
        size = sum(file.stat().st_size for file in folder.rglob("*.bin"))
        shutil.rmtree(folder)
        means = (sum(plain) / len(plain), cached[0], sum(cached[1:]) / len(cached[1:]))
        for name, value in zip(seconds, means, strict=True):
            seconds[name].append(value)
    base = seconds["no cache"]
    results = {
        name: {"seconds": spread(values), "over_no_cache": spread([v / b for v, b in zip(values, base, strict=True)])}
        for name, values in seconds.items()
    }
    config = {"backbone": NAME, "size": SIZE, "images": arguments.images, "fusion": "gate", "head": "segformer"}
    write(arguments.out, ["timm", "lightning"], config | {"cache_bytes": size}, results)
    rows = [[name, show(r["seconds"], digits=2), show(r["over_no_cache"], digits=3)] for name, r in results.items()]
    print(table(["epoch", "seconds", "over no cache"], rows))


if __name__ == "__main__":
    main()
