"""`regard compare`: the configurations of a preset, side by side on the same images, with seeds and intervals.

The folder of a study, every part of which is written whole or not at all, so that a second call goes on where the first
one stopped:

    study.json                    what is compared; a folder belongs to one study
    pretraining/KEY/              a pre-training, done once and shared: `runs.pretrain_run`
    cells/CONFIGURATION/seed-N/   one training: `runs.segment_run`, and counts.npz, its confusion counts per image
    results.json, report.html     all of it, and the page made from it
"""

import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from regard.backbones import build_backbone, device_of, normalize, save_backbone
from regard.backbones.weights import BACKBONE_FILE
from regard.data.augment import short_side
from regard.data.layout import Source, fingerprint, require_masks
from regard.errors import InputError
from regard.evaluation.scores import majority_counts, scores
from regard.studies.examples import choose_examples
from regard.studies.jobs import console, run_all
from regard.studies.presets import CONFIGURATIONS, QUESTIONS, Configuration, Preset, preset
from regard.studies.report import write_report
from regard.studies.runs import (
    MODEL_FILE,
    PRETRAIN_FILE,
    RUN_FILE,
    Hardware,
    Run,
    load_run,
    pretrain_run,
    read_json,
    segment_run,
    summary,
    write_json,
)
from regard.studies.statistics import Counts, estimate_difference, estimate_miou

MIN_IMAGES = 8  # a batch that batch statistics can be taken over
STUDY_FILE, RESULTS_FILE, COUNTS_FILE, CELL_FILE = "study.json", "results.json", "counts.npz", "cell.json"


def compare(
    source: Source,
    preset_name: str,
    out: Path,
    seeds: int | None = None,
    baselines: bool = False,
    size: int | None = None,
    jobs: int = 1,
    hardware: Hardware = Hardware(),  # noqa: B008 (frozen)
    command: str = "regard.studies.compare",
) -> Path:
    """Run what is not finished yet of a comparison, and write `results.json` and `report.html`; returns the latter.

    The best epoch of each training is chosen on `val`; the scores are those on `test` where there is one.
    Raises InputError for data without masks, an unknown preset, or a folder that holds another study.
    """
    require_masks(source)
    for split in ("train", "val"):
        source.split(split)
    chosen = preset(preset_name, size)
    wanted = [c for c in CONFIGURATIONS if baselines or not c.baseline]
    seeds = chosen.seeds if seeds is None else seeds
    _check_enough(source)
    _claim(out, source, preset_name, chosen, hardware)

    console.print(f"[bold]data[/]     {source.describe()}")
    console.print(f"[bold]compare[/]  {len(wanted)} configurations x {seeds} seeds, preset {preset_name}, into {out}")
    keys = dict.fromkeys(c.pretraining for c in wanted if c.pretraining)
    stages = {
        "weights": [(_pretrain, key, (key,)) for key in sorted(keys, key=_is_barlow_twins)],  # DINO, the longest, first
        "training": [(_cell, f"{c.name}, seed {seed}", (c, seed)) for seed in range(seeds) for c in wanted],
    }
    try:
        run_all(stages, Study(source, chosen, out, hardware), jobs)
    except KeyboardInterrupt:
        whole = next((seed for seed in range(seeds) if not all(_finished(out, c, seed) for c in wanted)), seeds)
        if whole:  # a report of the seeds that every configuration has finished
            results = _collect(source, preset_name, chosen, wanted, whole, out, command, hardware, complete=False)
            write_json(out / RESULTS_FILE, results)
            write_report(out)
        raise
    results = _collect(source, preset_name, chosen, wanted, seeds, out, command, hardware, complete=True)
    write_json(out / RESULTS_FILE, results)
    return write_report(out)


def _check_enough(source: Source) -> None:
    """InputError where there are too few images to pre-train on at all."""
    images = len(source.split("train"))
    if images < MIN_IMAGES:
        raise InputError(f"{images} training images are too few to compare anything: take {MIN_IMAGES} or more")


def _claim(out: Path, source: Source, preset_name: str, chosen: Preset, hardware: Hardware) -> None:
    """A folder belongs to one study: its cells must not mix with those of another."""
    study = {
        "source": source.root,
        "data": fingerprint(source, besides=out),
        "precision": [hardware.device, hardware.precision],
        "preset": preset_name,
        "settings": asdict(chosen),
    }
    study = _plain(study)
    if (out / STUDY_FILE).is_file():
        there = read_json(out / STUDY_FILE)
        differs = [key for key in study if there.get(key) != study[key]]
        if differs:
            raise InputError(
                f"{out} holds another comparison ({', '.join(differs)} differ): choose another --out, or delete it"
            )
    elif out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} is not empty and holds no comparison: choose another --out")
    else:
        write_json(out / STUDY_FILE, study)


def _is_barlow_twins(key: str) -> bool:
    return key.startswith("barlow_twins")


@dataclass(frozen=True)
class Study:
    """What every pre-training and every cell of a study shares."""

    source: Source
    preset: Preset
    out: Path
    hardware: Hardware


def _pretrain(study: Study, title: str, key: str) -> str:
    """Make `pretraining/KEY`, from published weights where the preset names some and they come. Says what came."""
    chosen, out = study.preset, study.out
    folder = out / "pretraining" / key
    if (folder / PRETRAIN_FILE).is_file():
        return "finished before"
    train = study.source.split("train")
    settings = chosen.pretrainings[key]
    settings = replace(settings, batch_size=min(settings.batch_size, len(train)))
    choice = chosen.backbones[key.rsplit("-", 1)[1]]
    reason = "no weights are published for a backbone this small" if settings.method == "dino" else ""
    if key in chosen.published:
        published = chosen.published[key]
        try:
            backbone = build_backbone(published, pretrained=True, **choice.options)
        except InputError as error:
            reason = f"published weights {published} could not be fetched: {error}"
        else:
            folder.mkdir(parents=True, exist_ok=True)
            save_backbone(backbone, folder / BACKBONE_FILE)
            origin = f"published weights: timm {published}"
            write_json(folder / PRETRAIN_FILE, {"origin": origin, "seconds": 0.0, "curve": []})
            return origin
    origin = f"pre-trained here: {settings.epochs} epochs of {len(train)} images, without labels"
    origin += f" ({reason})" if reason else ""
    torch.manual_seed(0)
    made = pretrain_run(train, choice.build(), settings, folder, 0, study.hardware, title, origin)
    return f"{origin}, {made['seconds']:.0f} s"


def _cell(study: Study, title: str, configuration: Configuration, seed: int) -> str:
    """Train and score one configuration with one seed; `cell.json` comes last. Says what came."""
    chosen, out = study.preset, study.out
    folder = cell_folder(out, configuration.name, seed)
    if _finished(out, configuration, seed):
        return "finished before"
    splits = require_masks(study.source)
    torch.manual_seed(seed)
    if configuration.pretraining:
        backbone = build_backbone(out / "pretraining" / configuration.pretraining)
    else:
        backbone = chosen.backbones[configuration.backbone].build()
    if study.hardware.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    segment_run(
        splits["train"], splits["val"], backbone, configuration.fusion, chosen.segment, folder, seed, study.hardware,
        title,
    )  # fmt: skip
    peak = torch.cuda.max_memory_allocated() / 2**20 if study.hardware.on_gpu else None
    run = load_run(folder, study.hardware.device)
    counts = run.evaluate(splits[_scored(splits)])
    np.savez_compressed(folder / COUNTS_FILE, counts=counts)
    cell = {**summary(run, counts), "peak_memory_mb": peak}
    write_json(folder / CELL_FILE, cell)
    return f"mIoU {100 * cell['miou']:.1f}%"


def _finished(out: Path, configuration: Configuration, seed: int) -> bool:
    folder = cell_folder(out, configuration.name, seed)
    return all((folder / file).is_file() for file in (RUN_FILE, MODEL_FILE, COUNTS_FILE, CELL_FILE))


def cell_folder(out: Path, configuration: str, seed: int) -> Path:
    """Where a cell lies."""
    return out / "cells" / configuration / f"seed-{seed}"


def _scored(splits: Mapping[str, Any]) -> str:
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


def _collect(
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
    split = _scored(splits)
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
    return _plain({"seeds": list(range(seeds)), **segment, **backbones, **pretrain, **options})


def _plain(value: Any) -> Any:
    """As JSON would give it back: tuples are lists, mappings are dicts."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
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
