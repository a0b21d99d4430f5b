"""A step of a pre-training as `regard pretrain` sets it up: timed, waited for, its FLOPs counted. For benchmarks."""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.profilers import SimpleProfiler
from PIL import Image
from side_by_side import synchronize
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from regard.backbones import build_backbone
from regard.data.datasets.scenes import Scenes
from regard.data.loading.modules import PretrainData
from regard.data.loading.samples import Views
from regard.data.source import open_source
from regard.runs.pretraining import build_method, build_views
from regard.settings import Hardware, PretrainSettings
from regard.ssl.monitors import CollapseMonitor, Pictures
from regard.training.curves import Clock, LossCurve, Scores
from regard.training.trainer import StepSeed, make_trainer, prepare

Case = tuple[str, str, dict[str, Any]]  # method, timm's name, options

# Dense bfloat16, 10^12 FLOPs a second, from the makers' data sheets (the SXM kind, where there are several).
PEAK = {"A100": 312, "H100": 989, "H200": 989, "B200": 2250, "L4": 121, "L40S": 362, "A10G": 70, "V100": 125, "T4": 65}


class Repeated(Dataset):
    """One batch, as often as asked for; for `DataLoader(batch_size=None)`."""

    def __init__(self, batch: list[Tensor], times: int) -> None:
        self.batch, self.times = batch, times

    def __len__(self) -> int:
        return self.times

    def __getitem__(self, i: int) -> list[Tensor]:
        return self.batch


class Stopwatch(L.Callback):
    """Seconds a step after `warmup` ones; first among the callbacks, so that each step counts all of them once."""

    def __init__(self, warmup: int, steps: int) -> None:
        self.warmup, self.steps, self.started, self.seconds = warmup, steps, 0.0, 0.0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """The device is waited for at both ends only."""
        if batch_idx + 1 == self.warmup:
            synchronize()
            self.started = time.perf_counter()
        if batch_idx + 1 == self.warmup + self.steps:
            synchronize()
            self.seconds = (time.perf_counter() - self.started) / self.steps


class Flops(L.Callback):
    """FLOPs of the second step, forward and backward: what torch counts in products and convolutions."""

    counter = FlopCounterMode(display=False)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        """Count."""
        if batch_idx == 1:
            self.counter.__enter__()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """Stop counting."""
        if batch_idx == 1:
            self.counter.__exit__(None, None, None)


def settings_of(method: str, options: argparse.Namespace, batch: int) -> PretrainSettings:
    """Ours, as the benchmark's options say."""
    made: dict[str, dict[str, Any]] = {
        "barlow_twins": {"optimizer": "adamw", "widths": (options.widths,) * 3},
        "dino": {"out_dim": options.out_dim},
    }
    size, local = options.size, options.local_size
    return PretrainSettings(
        method=method,
        size=size,
        local_size=local,
        local_crops=options.local_crops,
        epochs=1,
        batch_size=batch,
        method_options=made[method],
    )


def architecture(name: str, extra: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """What timm is asked for, by both."""
    return extra | ({"img_size": options.size, "dynamic_img_size": True} if name.startswith("vit") else {})


def fit(case: Case, loader: Any, watches: Sequence[L.Callback], options: argparse.Namespace) -> list[float]:
    """One fit as `regard pretrain` sets it up; how long the next batch was waited for, of each step, in seconds."""
    method, name, extra = case
    settings = settings_of(method, options, options.batch)
    module = build_method(build_backbone(name, **architecture(name, extra, options)), settings)
    hardware = Hardware(
        accelerator=options.accelerator,
        precision=options.precision,
        workers=options.workers,
        bar=False,
        compile=options.compile,
    )
    prepare(module, hardware)
    if options.contiguous:
        module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        callbacks = [LossCurve(points=40), Clock(), Scores(), StepSeed(0), CollapseMonitor(print)]
        watching = [*watches, *callbacks, Pictures(out / "pictures", 1)]
        trainer: Any = make_trainer(PretrainSettings(epochs=1), out, hardware, watching, "")
        trainer.profiler = SimpleProfiler()
        trainer.fit(module, **loader)
        return trainer.profiler.recorded_durations["[_TrainingEpochLoop].train_dataloader_next"]


def in_memory(method: str, times: int, options: argparse.Namespace) -> tuple[list[Tensor], dict[str, Any]]:
    """Views of noise, uint8, and what `fit` takes for `times` steps with them."""
    sizes = [options.size] * 2 + ([options.local_size] * options.local_crops if method == "dino" else [])
    views = [torch.randint(0, 256, (options.batch, 3, size, size), dtype=torch.uint8) for size in sizes]
    loader = DataLoader(Repeated(views, times), batch_size=None, pin_memory=options.accelerator == "gpu")
    return views, {"train_dataloaders": loader}


def from_files(
    method: str, times: int, paths: Sequence[Path], options: argparse.Namespace, on_device: bool = False
) -> dict[str, Any]:
    """What `fit` takes for `times` steps with images of files; on_device: whether views get their colours there."""
    settings = settings_of(method, options, options.batch)
    images = Times(open_source(str(paths[0].parent)).split("train"), options.batch * times)
    views = Views(images, build_views(settings), on_device=on_device)
    return {"datamodule": PretrainData(views, options.batch, options.workers)}


class Times:
    """A dataset of ours, again and again up to a length."""

    def __init__(self, dataset: Any, length: int) -> None:
        self.dataset, self.length = dataset, length
        self.classes, self.palette, self.ignore_index = dataset.classes, dataset.palette, dataset.ignore_index

    def __len__(self) -> int:
        return self.length

    def name(self, i: int) -> str:
        """As the dataset."""
        return self.dataset.name(i % len(self.dataset))

    def image(self, i: int) -> Any:
        """As the dataset."""
        return self.dataset.image(i % len(self.dataset))

    def encoded(self, i: int) -> bytes:
        """As the dataset."""
        return self.dataset.encoded(i % len(self.dataset))


def utilisation(flops: int, seconds: float) -> dict[str, float]:
    """Of the device's peak; {} where that is not known."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((PEAK[key] for key in sorted(PEAK, key=len, reverse=True) if key in device), None)
    return {"peak": peak * 1e12, "utilisation": flops / seconds / (peak * 1e12)} if peak else {}


def counted(case: Case, options: argparse.Namespace) -> int:
    """FLOPs of one step; what is compiled is not counted."""
    flops = Flops()
    plain = argparse.Namespace(**{**vars(options), "compile": False})
    fit(case, in_memory(case[0], 2, plain)[1], [flops], plain)
    return flops.counter.get_total_flops()


def photographs(folder: Path, count: int) -> list[Path]:
    """JPEGs of 500 x 375 pixels, as ImageNet's usual ones: scenes with some noise, about 60 KB each."""
    scenes, paths = Scenes(count, size=500), []
    for i in range(count):
        pixels = scenes.image(i)[:375].copy()
        noise = torch.randint(-12, 13, pixels.shape, generator=torch.Generator().manual_seed(i)).numpy()
        paths.append(folder / f"{i:04d}.jpg")
        Image.fromarray((pixels + noise).clip(0, 255).astype("uint8")).save(paths[-1], quality=90)
    return paths


def bf16_is_fast() -> bool:
    """Whether this CPU computes in bfloat16: without, autocast is ten times slower than float32."""
    info = Path("/proc/cpuinfo")
    return info.exists() and ("avx512_bf16" in info.read_text() or "amx_bf16" in info.read_text())
