"""What a comparison found, read back from the folders of its cells, as the JSON that `report.py` draws."""

import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from regard.backbones import device_of, normalize
from regard.data.augment import short_side
from regard.data.layout import Source, require_masks
from regard.evaluation.scores import majority_counts, scores
from regard.studies.examples import choose_examples
from regard.studies.folders import read_json
from regard.studies.presets import QUESTIONS, Configuration, Preset
from regard.studies.pretraining import PRETRAIN_FILE
from regard.studies.runs import RUN_FILE, Run, load_run
from regard.studies.statistics import Counts, estimate_difference, estimate_miou
from regard.studies.training import Hardware

COUNTS_FILE, CELL_FILE = "counts.npz", "cell.json"


def cell_folder(out: Path, configuration: str, seed: int) -> Path:
    """Where a cell lies."""
    return out / "cells" / configuration / f"seed-{seed}"


def scored_split(splits: Mapping[str, Any]) -> str:
    """The split whose scores are reported; `val`, which also chooses the epoch, only where there is no `test`."""
    return "test" if "test" in splits else "val"


@torch.inference_mode()
def milliseconds_per_image(run: Run, size: tuple[int, int], batch: int = 8, repeats: int = 7) -> float:
    """Median time of a forward pass over a batch of (height, width) images, per image, after one to warm up."""
    device = device_of(run.model)
    images = normalize(torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, device=device))
    times = []
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        run.model(images)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return float(np.median(times[1:])) * 1000 / batch


def collect(
    source: Source,
    preset_name: str,
    chosen: Preset,
    wanted: Sequence[Configuration],
    seeds: int,
    out: Path,
    command: str,
    hardware: Hardware,
    complete: bool,
) -> dict[str, Any]:
    """Everything the report needs, read back from the folders; the schema is `report.py`'s."""
    splits = require_masks(source)
    split = scored_split(splits)
    runs = {c.name: load_run(cell_folder(out, c.name, 0), hardware.device) for c in wanted}
    # timed here, one after the other, and not beside other trainings; at the size of the first image that is scored
    size = short_side(splits[split].image(0).shape[:2], chosen.segment.size)
    milliseconds = {name: milliseconds_per_image(run, size) for name, run in runs.items()}
    counts = {c.name: np.stack([_counts(out, c.name, seed) for seed in range(seeds)]) for c in wanted}
    truth = next(iter(counts.values()))[0].sum(axis=0)
    majority = scores(majority_counts(truth))
    pairs = [(a, b) for a, b in QUESTIONS if a in counts and b in counts]
    first, *rest = sorted(counts, key=lambda name: -_mious(counts[name]).mean())
    if rest and not {(first, rest[0]), (rest[0], first)} & set(pairs):
        pairs.insert(0, (first, rest[0]))
    differences = [{"a": a, "b": b, **asdict(estimate_difference(counts[a], counts[b]))} for a, b in pairs]
    keys = dict.fromkeys(c.pretraining for c in wanted if c.pretraining)
    pretrainings = [_described_pretraining(out, key, chosen) for key in keys]
    configurations = [_described(c, chosen, counts[c.name], milliseconds[c.name], out) for c in wanted]
    return {
        "regard": version("regard"),
        "commit": _commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "seconds": sum(p["seconds"] for p in pretrainings)
        + sum(run["train_seconds"] for c in configurations for run in c["runs"]),
        "complete": complete,
        "environment": environment(),
        "data": {
            "source": source.root,
            "description": source.describe(),
            "classes": list(source.classes),
            "palette": np.asarray(source.palette).tolist(),
            "ignore_index": source.ignore_index,
            "train_images": len(splits["train"]),
            "evaluated_images": len(splits[split]),
            "evaluated_split": split,
            "short_side": chosen.segment.size,
            "class_share": (truth.sum(axis=1) / truth.sum()).tolist(),
        },
        "preset": preset_name,
        "preset_note": chosen.note,
        "settings": _settings(chosen, seeds),
        "majority": {
            "class": source.classes[int(truth.sum(axis=1).argmax())],
            "miou": majority.miou,
            "pixel_accuracy": majority.pixel_accuracy,
        },
        "pretraining": pretrainings,
        "configurations": configurations,
        "differences": differences,
        "examples_note": "Evenly spaced images, not picked by how well they come out; predictions of seed 0.",
        "examples": choose_examples(splits[split], runs),
    }


def _counts(out: Path, name: str, seed: int) -> Int[np.ndarray, "images classes classes"]:
    with np.load(cell_folder(out, name, seed) / COUNTS_FILE) as file:
        return file["counts"]


def _mious(counts: Int[np.ndarray, "seeds images classes classes"]) -> np.ndarray:
    return np.array([scores(matrix).miou for matrix in counts.sum(axis=1)])


def _described_pretraining(out: Path, key: str, chosen: Preset) -> dict[str, Any]:
    made = read_json(out / "pretraining" / key / PRETRAIN_FILE)
    return {
        "name": key,
        "method": chosen.pretrainings[key].method,
        "backbone": chosen.backbones[key.rsplit("-", 1)[1]].label,
        **{field: made[field] for field in ("origin", "seconds", "curve")},
    }


def _described(
    configuration: Configuration, chosen: Preset, counts: Counts, milliseconds: float, out: Path
) -> dict[str, Any]:
    seeds = len(counts)
    folders = [cell_folder(out, configuration.name, seed) for seed in range(seeds)]
    runs = [read_json(folder / RUN_FILE) for folder in folders]
    cells = [read_json(folder / CELL_FILE) for folder in folders]
    estimate = estimate_miou(counts)
    return {
        "name": configuration.name,
        "backbone": chosen.backbones[configuration.backbone].label,
        "pretraining": configuration.pretraining,
        "fusion": configuration.fusion,
        "head": chosen.segment.head,
        "baseline": configuration.baseline,
        "parameters": runs[0]["parameters"],
        "milliseconds_per_image": milliseconds,
        "peak_memory_mb": cells[0]["peak_memory_mb"],
        "miou": {
            **asdict(estimate),
            "std": float(np.std([cell["miou"] for cell in cells], ddof=1)) if seeds > 1 else 0.0,
            "interval": "95%, over images and seeds" if seeds > 1 else "95%, over images",
        },
        "runs": [
            {
                "seed": run["seed"],
                "miou": cell["miou"],
                "pixel_accuracy": cell["pixel_accuracy"],
                "iou": list(cell["iou"].values()),
                "train_seconds": run["seconds"],
                "best_epoch": run["best_epoch"],
                "curve": run["curve"],
            }
            for run, cell in zip(runs, cells, strict=True)
        ],
    }


def _settings(chosen: Preset, seeds: int) -> dict[str, Any]:
    """The settings, flat, for people."""
    segment = {f"segment.{key}": value for key, value in asdict(chosen.segment).items()}
    pretrain = {
        f"{name}.{key}": value
        for name, settings in chosen.pretrainings.items()
        for key, value in asdict(settings).items()
        if key != "options"
    }
    options = {f"{n}.{k}": v for n, s in chosen.pretrainings.items() for k, v in s.options.items()}
    backbones = {
        f"{key}.{k}": v for key, b in chosen.backbones.items() for k, v in {"timm": b.name, **b.options}.items()
    }
    return plain({"seeds": list(range(seeds)), **segment, **backbones, **pretrain, **options})


def plain(value: Any) -> Any:
    """As JSON would give it back: tuples are lists, mappings are dicts."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


def environment() -> dict[str, str]:
    """What a number depends on besides the code."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": version("timm"),
        "lightning": version("lightning"),
        "device": gpu or "cpu",
        "cpu": f"{_processor()} ({torch.get_num_threads()} threads)",
        "system": platform.platform(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the checkout that this file lies in; None where it lies in none."""
    try:
        out = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return out.stdout.strip()
