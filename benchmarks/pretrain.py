"""Seconds of a training step: ours beside lightly's modules in a plain Lightning loop, without and with the data path.

Each pair has the same timm backbone, batch, precision, optimiser class (AdamW) and number of workers. Theirs are
lightly's heads, losses, teacher update and transforms (torchvision on PIL images), its documented loop, without logger
or callbacks, and torch's defaults. Ours is what `regard pretrain` runs: its callbacks, loggers and schedules, and
`prepare`. Fits take turns; a figure is seconds a step, from the end of the warm-up to the end of the last step.

    python benchmarks/pretrain.py                     a CPU: at batch 4, over ten minutes on two idle cores
    python benchmarks/pretrain.py --compile           a GPU: batch 256; both sides compiled
    python benchmarks/pretrain.py --size 32 --batch 4 --widths 64 --out_dim 64 --steps 1 --rounds 1      a try

step: the same batch in memory again and again, each side's as its own loader hands it over (theirs normalised).
data: a folder of 500 x 375 JPEGs; of a narrow ViT too, where loading is all there is to wait for.
wait: the share of our time in which the next batch was waited for.
mfu:  on a GPU, of ViT-B/16 with DINO: FLOPs of a step, counted, over what the device could have done in its time.

Needs `pip install -e ".[bench]"`.
"""

import argparse
import copy
import gc
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import lightning as L
import timm
import torch
from lightly.loss import BarlowTwinsLoss, DINOLoss
from lightly.models.modules import BarlowTwinsProjectionHead, DINOProjectionHead
from lightly.models.utils import update_momentum
from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from lightly.transforms.dino_transform import DINOTransform
from PIL import Image
from side_by_side import COMMIT, ROOT, ratios, show, spread, table, write
from steps import (
    Case,
    Repeated,
    Stopwatch,
    architecture,
    bf16_is_fast,
    counted,
    fit,
    from_files,
    in_memory,
    photographs,
    utilisation,
)  # fmt: skip
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

NARROW = {"embed_dim": 24, "depth": 1, "num_heads": 2}  # a ViT that costs next to nothing
CASES: dict[str, Case] = {
    "ResNet-50, Barlow Twins": ("barlow_twins", "resnet50", {}),
    "ViT-S/16, DINO": ("dino", "vit_small_patch16_224", {}),
    "narrow ViT, Barlow Twins": ("barlow_twins", "vit_tiny_patch16_224", NARROW),
}


class LightlyBarlowTwins(L.LightningModule):
    """As in lightly's documentation."""

    def __init__(self, backbone: nn.Module, dim: int, widths: int) -> None:
        super().__init__()
        self.backbone, self.head = backbone, BarlowTwinsProjectionHead(dim, widths, widths)
        self.criterion = BarlowTwinsLoss()

    def training_step(self, views: list[Tensor], batch_index: int) -> Tensor:
        """Their loss of two views."""
        z0, z1 = (self.head(self.backbone(view)) for view in views)
        return self.criterion(z0, z1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """As torch has it."""
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


class LightlyDINO(L.LightningModule):
    """As in lightly's documentation."""

    def __init__(self, backbone: nn.Module, dim: int, out_dim: int) -> None:
        super().__init__()
        self.backbone, self.teacher_backbone = backbone, copy.deepcopy(backbone).requires_grad_(False)
        self.head = DINOProjectionHead(dim, 2048, 256, out_dim, freeze_last_layer=1)
        self.teacher_head = DINOProjectionHead(dim, 2048, 256, out_dim).requires_grad_(False)
        self.criterion = DINOLoss(out_dim)

    def training_step(self, views: list[Tensor], batch_index: int) -> Tensor:
        """Their loss of all views, after their update of the teacher."""
        update_momentum(self.backbone, self.teacher_backbone, m=0.996)
        update_momentum(self.head, self.teacher_head, m=0.996)
        with torch.no_grad():
            teacher = [self.teacher_head(self.teacher_backbone(view)) for view in views[:2]]
        student = [self.head(self.backbone(view)) for view in views]
        return self.criterion(teacher, student, epoch=self.current_epoch)

    def on_after_backward(self) -> None:
        """The prototypes stay as they are in the first epoch."""
        self.head.cancel_last_layer_gradients(self.current_epoch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """As torch has it."""
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-4)


class Folder(Dataset):
    """Their data path: a file, decoded by PIL, transformed."""

    def __init__(self, paths: Sequence[Path], transform: Callable[[Image.Image], list[Tensor]]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> list[Tensor]:
        with Image.open(self.paths[i]) as image:
            return self.transform(image.convert("RGB"))


def fit_theirs(case: Case, loader: DataLoader, watch: Stopwatch, options: argparse.Namespace) -> None:
    """One fit in a plain loop."""
    method, name, extra = case
    backbone = timm.create_model(name, num_classes=0, **architecture(name, extra, options))
    dim = int(backbone.num_features)  # type: ignore[arg-type]
    dino = method == "dino"
    module = LightlyDINO(backbone, dim, options.out_dim) if dino else LightlyBarlowTwins(backbone, dim, options.widths)
    if options.compile:
        for child in module.children():
            child.compile()
    trainer = L.Trainer(
        accelerator="gpu" if options.accelerator == "gpu" else "cpu",
        devices=1,
        precision=options.precision,
        max_epochs=1,
        gradient_clip_val=3.0 if dino else None,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)


def loaders(
    method: str, data: bool, times: int, paths: Sequence[Path], options: argparse.Namespace
) -> tuple[DataLoader, dict[str, Any]]:
    """(Theirs, ours as arguments of `fit`) for `times` steps."""
    if not data:
        views, ours = in_memory(method, times, options)
        floats = [view / 127.5 - 1 for view in views]
        return DataLoader(Repeated(floats, times), batch_size=None, pin_memory=options.accelerator == "gpu"), ours
    if method == "dino":
        transform: Any = DINOTransform(
            options.size, local_crop_size=options.local_size, n_local_views=options.local_crops
        )
    else:
        transform = BYOLTransform(BYOLView1Transform(options.size), BYOLView2Transform(options.size))
    needed = options.batch * times
    repeated = [paths[i % len(paths)] for i in range(needed)]
    workers = {"num_workers": options.workers, "pin_memory": options.accelerator == "gpu"}
    theirs = DataLoader(Folder(repeated, transform), options.batch, shuffle=True, drop_last=True, **workers)
    return theirs, from_files(method, times, paths, options)


def compare(name: str, data: bool, paths: Sequence[Path], options: argparse.Namespace) -> dict[str, Any]:
    """One row: fits of both in turn, the one or the other first."""
    case, narrow = CASES[name], name.startswith("narrow")
    # Where data is the limit, batches made ahead during the warm-up are used up by then.
    warmup, steps = (6, max(20, options.steps)) if narrow else (options.warmup, options.steps)
    seconds: dict[str, list[float]] = {"lightly": [], "regard": []}
    waits: list[float] = []
    for index in range(options.rounds):
        theirs, ours = loaders(case[0], data, warmup + steps, paths, options)
        turns = ["lightly", "regard"][:: 1 if index % 2 == 0 else -1]
        for whose in turns:
            watch = Stopwatch(warmup, steps)
            if whose == "lightly":
                fit_theirs(case, theirs, watch, options)
            else:
                waited = fit(case, ours, [watch], options)[warmup : warmup + steps]
                waits.append(sum(waited) / (watch.seconds * steps))
            seconds[whose].append(watch.seconds)
            gc.collect()
    return {
        "case": name,
        "data": data,
        "batch": options.batch,
        "steps": steps,
        "seconds": {whose: spread(values) for whose, values in seconds.items()},
        "times_as_fast": ratios(seconds["lightly"], seconds["regard"]),
        "waiting": spread(waits),
    }


def of_vit_b(options: argparse.Namespace) -> dict[str, Any]:
    """Model FLOPs utilisation of our DINO step of ViT-B/16."""
    case, watch = ("dino", "vit_base_patch16_224", {}), Stopwatch(options.warmup, options.steps)
    count = counted(case, options)
    fit(case, in_memory("dino", options.warmup + options.steps, options)[1], [watch], options)
    found = {"case": "ViT-B/16, DINO", "flops": count, "seconds": watch.seconds}
    return found | utilisation(count, watch.seconds)


def line(row: dict[str, Any]) -> list[str]:
    """Of the table."""
    milliseconds = [show(row["seconds"][whose], 1e3) for whose in ("lightly", "regard")]
    wait = show(row["waiting"], 100, 1)
    return [row["case"], "data" if row["data"] else "step", *milliseconds, show(row["times_as_fast"], digits=2), wait]


def measured(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All rows."""
    with tempfile.TemporaryDirectory() as folder:
        paths = photographs(Path(folder), options.images)
        for name in CASES:
            if any(word in name for word in options.only):
                for data in (True,) if name.startswith("narrow") else (False, True):
                    yield compare(name, data, paths, options)


def main() -> None:
    """Measure, print the table, write the file."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerator", default="gpu" if gpu else "cpu", choices=("cpu", "gpu"))
    parser.add_argument("--precision", default="bf16-mixed" if gpu or bf16_is_fast() else "32-true")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--local_crops", type=int, default=0, help="of DINO, beside the two global ones")
    parser.add_argument("--local_size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=256 if gpu else 8)
    parser.add_argument("--widths", type=int, default=8192, help="of Barlow Twins' projector")
    parser.add_argument("--out_dim", type=int, default=65536, help="DINO's prototypes")
    parser.add_argument("--workers", type=int, default=12 if gpu else 2)
    parser.add_argument("--images", type=int, default=512 if gpu else 64, help="JPEGs to read, again and again")
    parser.add_argument("--warmup", type=int, default=10 if gpu else 1, help="steps of a fit that do not count")
    parser.add_argument("--steps", type=int, default=50 if gpu else 2, help="steps of a fit that count")
    parser.add_argument("--rounds", type=int, default=5 if gpu else 3)
    parser.add_argument("--compile", action="store_true", help="compile backbones and heads, theirs too")
    parser.add_argument("--only", nargs="+", default=["ResNet-50", "ViT-S", "narrow"], help="words of cases")
    parser.add_argument("--mfu", action="store_true", default=gpu, help="count FLOPs; always on a GPU")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "pretrain.json")
    options = parser.parse_args()
    options.contiguous = False

    cv2.setNumThreads(1)
    warnings.filterwarnings("ignore")
    for chatty in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    config = {name: value for name, value in vars(options).items() if name != "out"}
    found: dict[str, Any] = {"rows": []}
    record = partial(write, options.out, ["lightly", "lightning", "timm", "torchvision"], config, found)
    for row in measured(options):
        found["rows"].append(row)
        record()  # a run that is cut short keeps what it has
        print(f"{row['case']}: done", flush=True)
    if options.mfu:
        found["utilisation"] = of_vit_b(options)
        record()
    head = ["case", "", "lightly ms", "regard ms", "times as fast", "regard waits %"]
    print(table(head, [line(row) for row in found["rows"]]))
    print(f"median (min-max) of {options.rounds} fits each, batch {options.batch}, {options.precision}, {COMMIT[:12]}")
    if options.mfu:
        mfu = found["utilisation"]
        share = f"{mfu['utilisation']:.1%} of the device's peak" if "peak" in mfu else "the device's peak is not known"
        print(f"{mfu['case']}: {mfu['flops'] / 1e12:.2f} TFLOP a step in {mfu['seconds'] * 1e3:.0f} ms: {share}")


if __name__ == "__main__":
    main()
