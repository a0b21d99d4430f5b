"""Do the two paths of views teach what the published pipeline teaches? kNN of short pre-trainings with each.

Barlow Twins on a small ViT at 32 px, as in benchmarks/learning.py: the same images, initial weights, order, steps and
schedules; only who draws the views differs: `published` (torchvision on PIL, as the Barlow Twins code has it), `cpu`
(ours, in loading processes) or `device` (ours, colours and blur in batches after the transfer). `published` draws from
torch's generator, so its views are others of the same distribution; `cpu` and `device` share their draws.

    python benchmarks/views_learning.py --data imagenet32-100 --out results/views_learning.json

--data: class folders with train/ and val/. A second call does what is not done yet. About 4 minutes a run and core.
"""

import json
import multiprocessing
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from learning import BACKBONES, BATCH, OPTIONS, SIZE, Curve, Shuffled, _data, open_data
from PIL import Image, ImageFilter, ImageOps
from side_by_side import COMMIT, ratios, show, spread, table, write
from torch import Tensor
from torchvision import transforms

from regard.backbones import build_backbone
from regard.data.loading.modules import PretrainData
from regard.data.loading.samples import CentreCrops, Views
from regard.runs.pretraining import build_method, build_views
from regard.settings import Hardware, PretrainSettings
from regard.training.trainer import StepSeed, make_trainer

PATHS = ("published", "cpu", "device")


def published(blur: float, solarize: float) -> Callable[[Image.Image], Tensor]:
    """The transform of one published view, up to the bytes; the blur is scaled with the side, as ours is."""
    low, high = 0.1 * SIZE / 224, 2.0 * SIZE / 224

    def blurred(image: Image.Image) -> Image.Image:
        if torch.rand(()) >= blur:
            return image
        return image.filter(ImageFilter.GaussianBlur(float(torch.empty(()).uniform_(low, high))))

    return transforms.Compose([
        transforms.RandomResizedCrop(SIZE, interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(),
        transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
        transforms.RandomGrayscale(0.2),
        blurred,
        lambda image: ImageOps.solarize(image) if torch.rand(()) < solarize else image,
        transforms.PILToTensor(),
    ])  # fmt: skip


class PublishedViews(torch.utils.data.Dataset):
    """(epoch, index) -> two published views; seeded by (seed, epoch, index), so that a run can be repeated."""

    def __init__(self, dataset: Shuffled, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self.views = published(1.0, 0.0), published(0.1, 0.2)

    def __getitem__(self, key: tuple[int, int]) -> list[Tensor]:
        torch.manual_seed(int(np.random.SeedSequence((self.seed, *key)).generate_state(1)[0]))
        image = Image.fromarray(self.dataset.image(key[1]))
        return [view(image).permute(1, 2, 0) for view in self.views]  # as ours come


class PublishedData(PretrainData):
    """Ours but for the views."""

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        """The sampler and batches of ours, with the published views."""
        ours = super().train_dataloader()
        views = PublishedViews(self.trained_on, self.seed)  # type: ignore[arg-type]
        return torch.utils.data.DataLoader(views, self.share, sampler=ours.sampler, drop_last=True)


def run(seed: int, path: str, config: dict[str, Any]) -> dict[str, Any]:
    """One pre-training in this process: its kNN curve and seconds."""
    torch.set_num_threads(1)
    L.seed_everything(seed, verbose=False)
    name, architecture = BACKBONES["vit"]
    batch, options = BATCH["barlow_twins"], OPTIONS["barlow_twins"]
    settings = PretrainSettings(
        method="barlow_twins", size=SIZE, epochs=config["epochs"], batch_size=batch, method_options=options
    )
    module = build_method(build_backbone(name, **architecture), settings)
    probes = {
        "bank": CentreCrops(_data["train"], range(config["bank"]), SIZE),
        "queries": CentreCrops(_data["val"], range(config["queries"]), SIZE),
    }
    if path == "published":
        data = PublishedData(Views(_data["train"], build_views(settings), seed), batch, **probes)
    else:
        on_device = path == "device"
        data = PretrainData(Views(_data["train"], build_views(settings), seed, on_device=on_device), batch, **probes)
    curve, started = Curve(), time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        hardware = Hardware(accelerator="cpu", precision="32-true", bar=False)
        trainer = make_trainer(settings, Path(out), hardware, [curve, StepSeed(seed)], "")
        trainer.fit(module, data)
    return {"knn_top1": curve.top1, "seconds": time.perf_counter() - started, "steps": trainer.global_step}


def main() -> None:
    """Run what the file does not hold yet, print a table, write JSON."""
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--bank", type=int, default=5_000)
    parser.add_argument("--queries", type=int, default=2_500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    config = {key: getattr(arguments, key) for key in ("images", "epochs", "bank", "queries")}
    recorded = config | {"size": SIZE, "k": 20, "batch": BATCH["barlow_twins"], "options": OPTIONS["barlow_twins"]}
    recorded = json.loads(json.dumps(recorded | {"architecture": BACKBONES["vit"]}))
    before = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {"config": recorded, "results": []}
    assert before["config"] == recorded, f"{arguments.out} holds runs with other settings: choose another --out"
    found: list[dict[str, Any]] = before["results"]
    done = [(made["seed"], made["path"]) for made in found]
    keys = [(seed, path) for seed in range(arguments.seeds) for path in PATHS]
    start = (arguments.data, arguments.images, arguments.queries)
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn"), open_data, start) as pool:
        futures = {pool.submit(run, *key, config): key for key in keys if key not in done}
        for future in as_completed(futures):
            seed, path = futures[future]
            found.append({"seed": seed, "path": path, "commit": COMMIT, **future.result()})
            found.sort(key=lambda made: keys.index((made["seed"], made["path"])))
            print(seed, path, " ".join(f"{top1:.1f}" for top1 in future.result()["knn_top1"]), flush=True)
            write(arguments.out, ("lightning", "timm", "torchvision"), recorded, found)
    top1 = {path: [made["knn_top1"][-1] for made in found if made["path"] == path] for path in PATHS}
    rows = [
        (path, show(spread(top1[path]), digits=1), show(ratios(top1[path], top1["published"]), digits=2))
        for path in PATHS
    ]
    print(table(("views", "kNN top-1, %", "over published"), rows))


if __name__ == "__main__":
    main()
