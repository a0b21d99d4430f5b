"""Does it learn, and as well as lightly? kNN over epochs, ours beside lightly's losses, on the same images and steps.

Every pair of runs shares the backbone's initial weights, the views (a function of seed, epoch and image), batch, steps,
optimizer and schedules; lightly's half takes its heads, losses and teacher update from `lightly`. kNN (k = 20) asks
`--bank` training images for the class of `--queries` validation images, after every epoch and before the first.

    python benchmarks/learning.py --data imagenet32-100 --method barlow_twins --backbone resnet --out results/x.json

--data: class folders with train/ and val/. Needs `pip install -e ".[bench]"`. A second call does what is not done yet.
"""

import copy
import json
import logging
import multiprocessing
import tempfile
import time
from argparse import ArgumentParser
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightly.loss import BarlowTwinsLoss, DINOLoss
from lightly.models.modules import BarlowTwinsProjectionHead, DINOProjectionHead
from lightly.models.utils import update_momentum
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from side_by_side import COMMIT, show, spread, table, write

from regard.backbones import Backbone, build_backbone, normalize
from regard.data.datasets.folders import ClassFolders
from regard.data.loading.modules import PretrainData
from regard.data.loading.samples import CentreCrops, Views
from regard.runs.pretraining import build_method, build_views
from regard.settings import Hardware, PretrainSettings
from regard.ssl.dino import clip_each
from regard.ssl.method import Pretraining
from regard.training.optimizers import set_lr, split_parameters
from regard.training.schedules import cosine, dino_warmup_cosine, warmup_cosine
from regard.training.trainer import StepSeed, make_trainer

SIZE, LOCAL_SIZE, LOCAL_CROPS = 32, 16, 2
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("resnet18", {"channels": (16, 32, 64, 128)}),
    "vit": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 2}),
}
BATCH = {"barlow_twins": 128, "dino": 64}
OPTIONS: dict[str, dict[str, Any]] = {
    "barlow_twins": {
        "optimizer": "adamw",
        "lr": 4e-3,
        "weight_decay": 1e-4,
        "widths": (512, 512, 512),
        "warmup": 0.1,
    },
    "dino": {
        "out_dim": 512,
        "hidden_dim": 512,
        "bottleneck_dim": 128,
        "lr": 1e-3,
        "weight_decay": (0.04, 0.1),
        "momentum": 0.99,
        "warmup": 0.1,
    },
}


class LightlyBarlowTwins(Pretraining):
    """The loop of lightly's documentation, with the optimizer and schedule of ours."""

    def __init__(self, backbone: Backbone, options: dict[str, Any]) -> None:
        super().__init__()
        self.options, self.backbone = options, backbone
        self.head = BarlowTwinsProjectionHead(backbone.dim, *options["widths"][:2])
        self.criterion = BarlowTwinsLoss(lambda_param=0.0051)

    def training_step(self, views: list[torch.Tensor], batch_index: int) -> torch.Tensor:
        """Their loss of two views."""
        peak, total = self.options["lr"] * BATCH["barlow_twins"] / 256, self.total_steps
        lr = warmup_cosine(self.global_step, total, round(self.options["warmup"] * total), peak, peak * 0.001)
        set_lr(self.optimizers(), lr, lr)  # type: ignore[arg-type]
        return self.criterion(*(self.head(self.backbone(normalize(view)).pooled) for view in views))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; no decay of biases."""
        weights, biases = split_parameters(self)
        groups = [{"params": weights, "weight_decay": self.options["weight_decay"]}, {"params": biases}]
        return torch.optim.AdamW(groups, weight_decay=0.0)


class LightlyDINO(Pretraining):
    """The loop of lightly's documentation, with the optimizer and schedules of ours."""

    def __init__(self, backbone: Backbone, options: dict[str, Any]) -> None:
        super().__init__()
        self.options, self.backbone, self.teacher_backbone = options, backbone, copy.deepcopy(backbone)
        widths = options["hidden_dim"], options["bottleneck_dim"], options["out_dim"]
        self.head = DINOProjectionHead(backbone.dim, *widths, freeze_last_layer=1)
        self.teacher_head = DINOProjectionHead(backbone.dim, *widths)
        self.teacher_head.load_state_dict(self.head.state_dict())
        self.teacher_backbone.requires_grad_(False)
        self.teacher_head.requires_grad_(False)
        self.criterion = DINOLoss(options["out_dim"], warmup_teacher_temp_epochs=0)

    @property
    def kept(self) -> Backbone:
        """The teacher's."""
        return self.teacher_backbone

    def training_step(self, crops: list[torch.Tensor], batch_index: int) -> torch.Tensor:
        """Their loss of all crops, after their update of the teacher."""
        options, step, total = self.options, self.global_step, self.total_steps
        peak = options["lr"] * BATCH["dino"] / 256
        lr = dino_warmup_cosine(step, total, round(options["warmup"] * total), peak, 1e-6)
        optimizer: torch.optim.Optimizer = self.optimizers()  # type: ignore[assignment]
        set_lr(optimizer, lr, lr)
        optimizer.param_groups[0]["weight_decay"] = cosine(step, total, *options["weight_decay"])
        momentum = cosine(step, total, options["momentum"], 1.0)
        update_momentum(self.backbone, self.teacher_backbone, m=momentum)
        update_momentum(self.head, self.teacher_head, m=momentum)
        images = [normalize(crop) for crop in crops]
        with torch.no_grad():
            teacher = [self.teacher_head(self.teacher_backbone(image).pooled) for image in images[:2]]
        student = [self.head(self.backbone(image).pooled) for image in images]
        return self.criterion(teacher, student)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """As published."""
        clip_each([p for p in self.parameters() if p.requires_grad], 3.0)
        self.head.cancel_last_layer_gradients(self.current_epoch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; no decay of biases."""
        weights, biases = split_parameters(self)
        return torch.optim.AdamW([{"params": weights}, {"params": biases, "weight_decay": 0.0}])


class Curve(L.Callback):
    """kNN top-1 before training and after each epoch."""

    def __init__(self) -> None:
        self.top1: list[float] = []

    def on_fit_start(self, trainer, pl_module) -> None:
        """Random weights."""
        pl_module.eval()
        pl_module.on_validation_epoch_start()
        with torch.no_grad():
            for number, loader in enumerate(trainer.datamodule.val_dataloader()):
                for index, batch in enumerate(loader):
                    pl_module.validation_step(batch, index, number)
        self.top1.append(pl_module.knn_of_features()[0])
        pl_module.train()

    def on_validation_end(self, trainer, pl_module) -> None:
        """Of this epoch."""
        self.top1.append(float(trainer.callback_metrics["knn_top1"]))


def train(train_set: "Shuffled", val: "Shuffled", seed: int, whose: str, config: dict[str, Any]) -> dict[str, Any]:
    """One run: its kNN curve and seconds."""
    method = config["method"]
    torch.set_num_threads(1)
    for chatty in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    L.seed_everything(seed, verbose=False)
    name, architecture = BACKBONES[config["backbone"]]
    model = build_backbone(name, **architecture)
    batch, epochs, options = BATCH[method], config["epochs"], OPTIONS[method]
    settings = PretrainSettings(
        method=method,
        size=SIZE,
        local_size=LOCAL_SIZE,
        local_crops=LOCAL_CROPS,
        epochs=epochs,
        batch_size=batch,
        method_options=options,
    )
    if whose == "regard":
        module = build_method(model, settings)
    else:
        module = (LightlyBarlowTwins if method == "barlow_twins" else LightlyDINO)(model, options)
    module.to(memory_format=torch.channels_last)
    bank = CentreCrops(train_set, range(config["bank"]), SIZE)
    queries = CentreCrops(val, range(config["queries"]), SIZE)
    data = PretrainData(Views(train_set, build_views(settings), seed), batch, bank=bank, queries=queries)
    curve, started = Curve(), time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        hardware = Hardware(accelerator="cpu", precision="32-true", bar=False)
        trainer = make_trainer(epochs, Path(out), hardware, [curve, StepSeed(seed)], "")
        trainer.fit(module, data)
    return {"knn_top1": curve.top1, "seconds": time.perf_counter() - started, "steps": trainer.global_step}


class Shuffled:
    """The first `count` images of a dataset in a fixed random order, so that all classes are among them."""

    def __init__(self, dataset: ClassFolders, count: int) -> None:
        self.dataset, self.order = dataset, np.random.default_rng(0).permutation(len(dataset))[:count]
        self.classes, self.palette, self.ignore_index = dataset.classes, dataset.palette, dataset.ignore_index
        self.images = [dataset.image(i) for i in self.order]  # 32 x 32 x 3 bytes each

    def __len__(self) -> int:
        return len(self.order)

    def name(self, i: int) -> str:
        """As the dataset."""
        return self.dataset.name(self.order[i])

    def image(self, i: int) -> np.ndarray:
        """From memory."""
        return self.images[i]

    def label(self, i: int) -> int:
        """As the dataset."""
        return self.dataset.label(self.order[i])


_data: dict[str, Any] = {}


def open_data(data: str, images: int, queries: int) -> None:
    """Read the images once in this process."""
    train_set = ClassFolders(Path(data) / "train")
    _data["train"] = Shuffled(train_set, images)
    _data["val"] = Shuffled(ClassFolders(Path(data) / "val", train_set.classes), queries)


def run(seed: int, whose: str, config: dict[str, Any]) -> dict[str, Any]:
    """One run in this process."""
    return train(_data["train"], _data["val"], seed, whose, config)


def draw(found: list[dict[str, Any]], title: str, path: Path) -> None:
    """A line per run."""
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for whose, colour in (("regard", "#1b6ca8"), ("lightly", "#d9772b")):
        for i, run in enumerate(run for run in found if run["whose"] == whose):
            label = whose if i == 0 else None
            axes.plot(run["knn_top1"], color=colour, alpha=0.8, linewidth=1.5, label=label)
    random = [run["knn_top1"][0] for run in found]
    axes.axhline(sum(random) / len(random), color="grey", linestyle=":", label="random weights")
    axes.set(title=title, xlabel="epoch", ylabel="kNN top-1, %")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run what the file does not hold yet, print a table, write JSON and picture."""
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--method", choices=list(OPTIONS), required=True)
    parser.add_argument("--backbone", choices=list(BACKBONES), required=True)
    parser.add_argument("--out", type=Path, required=True, help="a JSON file; the picture goes beside it")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--bank", type=int, default=5_000)
    parser.add_argument("--queries", type=int, default=2_500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    config = {key: getattr(arguments, key) for key in ("method", "backbone", "images", "epochs", "bank", "queries")}
    recorded = config | {"size": SIZE, "local_size": LOCAL_SIZE, "local_crops": LOCAL_CROPS, "k": 20}
    recorded |= {"batch": BATCH[arguments.method], "options": OPTIONS[arguments.method]}
    recorded |= {"architecture": BACKBONES[arguments.backbone]}
    recorded = json.loads(json.dumps(recorded))
    before = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {"config": recorded, "results": []}
    assert before["config"] == recorded, f"{arguments.out} holds runs with other settings: choose another --out"
    found: list[dict[str, Any]] = before["results"]
    done = [(run["seed"], run["whose"]) for run in found]
    keys = [(seed, whose) for seed in range(arguments.seeds) for whose in ("regard", "lightly")]
    start = (arguments.data, arguments.images, arguments.queries)
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn"), open_data, start) as pool:
        futures = {pool.submit(run, *key, config): key for key in keys if key not in done}
        for future in as_completed(futures):
            seed, whose = futures[future]
            found.append({"seed": seed, "whose": whose, "commit": COMMIT, **future.result()})
            found.sort(key=lambda run: keys.index((run["seed"], run["whose"])))
            print(seed, whose, " ".join(f"{top1:.1f}" for top1 in future.result()["knn_top1"]), flush=True)
            write(arguments.out, ("lightning", "timm", "lightly"), recorded, found)
    rows = []
    for whose in ("regard", "lightly"):
        runs = [run["knn_top1"] for run in found if run["whose"] == whose]
        rows.append((whose, *(show(spread([run[epoch] for run in runs]), digits=1) for epoch in (0, -1))))
    draw(found, f"{arguments.method}, {arguments.backbone}", arguments.out.with_suffix(".png"))
    print(table(("kNN top-1, %", "random weights", "trained"), rows))


if __name__ == "__main__":
    main()
