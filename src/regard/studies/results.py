"""What a comparison found, read back from the folders of its cells, as the JSON that `report.py` draws."""

import base64
import io
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image

from regard.backbones import device_of, normalize
from regard.data.loading.augment import short_side
from regard.data.source import require_masks
from regard.data.survey import class_pixels
from regard.errors import InputError
from regard.evaluation.scores import scores
from regard.evaluation.statistics import Scored, correlate, difference, holm, score
from regard.files import read_json, write_json
from regard.reports.schema import VERSION
from regard.runs.pretraining import PRETRAIN_FILE
from regard.runs.run import RUN_FILE, Run, load_run
from regard.studies.ablate import word
from regard.studies.environment import commit, environment, shown_path
from regard.studies.examples import choose_examples
from regard.studies.jobs import Failure
from regard.studies.plan import Configuration, Plan, plain
from regard.studies.study import CELL_FILE, COST_FILE, COUNTS_FILE, Study

CLASSES_FILE = "train_pixels.json"  # of each class
MOST_PAIRED = 40  # configurations, of which every pair is compared
Matrices = Int[np.ndarray, "images classes classes"]

# Scores of heads that stand beside mIoU, in words.
HEAD_SCORES = {
    "beyond_position": "information about the class at a pixel beyond what its place tells, bits",
    "information": "information about the class at a pixel, bits",
    "entropy": "entropy of a map, as a share of the most that it could be",
    "jaccard": "Jaccard index of 60% of the attention with the best class of an image",
}


def scored_split(splits: Mapping[str, Any]) -> str:
    """The split whose scores are reported; `val`, which also chooses the epoch, only where there is no `test`."""
    return "test" if "test" in splits else "val"


@torch.inference_mode()
def milliseconds_per_image(run: Run, size: tuple[int, int], batch: int = 8, repeats: int = 7) -> float | None:
    """Median time of a forward pass over a batch of (height, width) images, per image, after one to warm up.

    In float32. None where the batch does not fit into the memory of the GPU.
    """
    device = device_of(run.model)
    images = normalize(torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, device=device))
    times = []
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        try:
            run.model(images)
        except torch.OutOfMemoryError:
            return None
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return float(np.median(times[1:])) * 1000 / batch


class _Loaded(Mapping[str, Run]):
    """Runs by name, each loaded when it is asked for, and one at a time: all of a large study do not fit in memory."""

    def __init__(self, folders: Mapping[str, Path], device: str) -> None:
        self.folders, self.device = folders, device
        self.last: tuple[str, Run] | None = None

    def __getitem__(self, name: str) -> Run:
        if self.last is None or self.last[0] != name:
            self.last = None  # before the next one is loaded
            self.last = name, load_run(self.folders[name], self.device)
        return self.last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self.folders)

    def __len__(self) -> int:
        return len(self.folders)


def collect(study: Study, command: str, failures: Sequence[Failure], complete: bool) -> dict[str, Any]:
    """Everything the report needs, read back from the folders of what is finished; the schema is `schema.py`'s."""
    plan, source = study.plan, study.source
    splits = require_masks(source)
    split = scored_split(splits)
    finished = {c.name: [seed for seed in plan.seeds if study.is_finished(c, seed)] for c in plan.configurations}
    chosen = {c.name: c for c in plan.configurations if finished[c.name]}
    if not chosen:
        reasons = "".join(f"; {failure.name}: {failure.error}" for failure in failures[:1])
        raise InputError(f"nothing of {study.out} is finished{reasons}")
    runs = _Loaded({name: study.cell_folder(c, finished[name][0]) for name, c in chosen.items()}, study.hardware.device)
    scored, per_image, matrices = {}, {}, {}
    for name, c in chosen.items():
        folders = [study.cell_folder(c, seed) for seed in finished[name]]
        scored[name] = score(_counts(folder) for folder in folders)
        per_image[name] = _miou_per_image(_counts(folders[0]))
        matrices[name] = [_counts(folder).sum(axis=0) for folder in folders]
    truth = next(iter(matrices.values()))[0].sum(axis=1)
    # timed here, one after the other, and not beside other trainings; at the size of the first image that is scored
    first = splits[split].image(0).shape[:2]
    milliseconds, kinds = {}, {}
    for name, run in runs.items():
        milliseconds[name] = milliseconds_per_image(run, short_side(first, run.size))
        kinds[name] = run.model.backbone.kind
    pretrainings = [_described_pretraining(study, name, seed) for name, seed in _pretrainings(study)]
    configurations = [
        _described(study, c, finished[c.name], scored.get(c.name), matrices.get(c.name, ()), milliseconds.get(c.name))
        for c in plan.configurations
    ]
    root = shown_path(source.root)
    return {
        "schema": VERSION,
        "kind": plan.kind,
        "name": plan.name,
        "regard": version("regard"),
        "commit": commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "plan": plan.text,
        "seconds": sum(p["seconds"] for p in pretrainings)
        + sum(run["train_seconds"] for c in configurations for run in c["runs"]),
        "complete": complete,
        "failed": [asdict(failure) for failure in failures],
        "axes": {axis: [_shown(value) for value in values] for axis, values in plan.axes.items()},
        "environment": _environment(study, chosen, finished),
        "data": {
            "source": root,
            "description": source.describe().replace(source.root, root),
            "classes": list(source.classes),
            "palette": np.asarray(source.palette).tolist(),
            "ignore_index": source.ignore_index,
            "train_images": len(splits["train"]),
            "evaluated_images": len(splits[split]),
            "evaluated_split": split,
            "short_side": plan.segment.size,
            "class_share": (truth / truth.sum()).tolist(),
        },
        "preset": plan.name,
        "preset_note": plan.note,
        "settings": _settings(plan),
        "majority": _majority(study, truth),
        "pretraining": pretrainings,
        "configurations": configurations,
        "differences": _differences(plan, scored, finished),
        "correlations": _correlations(configurations, kinds),
        "examples": choose_examples(splits[split], runs, per_image),
    }


def _environment(
    study: Study, chosen: Mapping[str, Configuration], finished: Mapping[str, Sequence[int]]
) -> dict[str, str]:
    """Where the cells were trained. Where that is not one place, it says so; times are then of different machines."""
    folders = [study.cell_folder(c, seed) for name, c in chosen.items() for seed in finished[name]]
    found = [read_json(folder / RUN_FILE)["origin"].get("environment") for folder in folders]
    different = [dict(items) for items in dict.fromkeys(tuple(each.items()) for each in found if each)]
    if not different:
        return environment()
    note = {"cells": f"trained in {len(different)} different environments, of which this is the first"}
    return different[0] | (note if len(different) > 1 else {})


def _majority(study: Study, truth: Int[np.ndarray, "classes"]) -> dict[str, Any]:
    """What always answering the most frequent class of the training masks scores, on these pixels of each class."""
    file = study.out / CLASSES_FILE  # the data of a study does not change: counted once
    if not file.is_file():
        write_json(file, class_pixels(require_masks(study.source)["train"]).tolist())
    answer = int(np.argmax(read_json(file)))
    return {
        "class": study.source.classes[answer],
        "miou": float(truth[answer] / truth.sum() / np.count_nonzero(truth)),
        "pixel_accuracy": float(truth[answer] / truth.sum()),
    }


def _counts(folder: Path) -> Matrices:
    with np.load(folder / COUNTS_FILE) as file:
        return file["counts"]


def _miou_per_image(counts: Matrices) -> Float[np.ndarray, "images"]:
    """NaN for an image that is all void."""
    return np.array([scores(matrix).miou if matrix.any() else np.nan for matrix in counts])


def _differences(
    plan: Plan, scored: Mapping[str, Scored], finished: Mapping[str, Sequence[int]]
) -> list[dict[str, Any]]:
    """Every pair, over the seeds that both have; the asked questions first, with Holm's verdict over all of them.

    Of more than `MOST_PAIRED` configurations, besides the questions only the pairs with the best.
    """
    asked = [pair for pair in plan.questions if set(pair) <= scored.keys()]
    pairs = itertools.combinations(scored, 2)
    if len(scored) > MOST_PAIRED:  # then only the best against every other
        best = max(scored, key=lambda name: scored[name].miou.mean())
        pairs = [(best, name) for name in scored if name != best]
    other = [pair for pair in pairs if not {pair, pair[::-1]} & set(asked)]
    made = []
    for a, b in [*asked, *other]:
        common = [seed for seed in finished[a] if seed in finished[b]]
        if common:
            of_a, of_b = (scored[name].only([finished[name].index(seed) for seed in common]) for name in (a, b))
            found = asdict(difference(of_a, of_b))
            made.append({"a": a, "b": b, **found, "question": (a, b) in asked, "seeds": len(common), "holm": False})
    questions = [d for d in made if d["question"]]
    for d, still in zip(questions, holm([d["p_strict"] for d in questions]), strict=True):
        d["holm"] = still
    return made


def _correlations(configurations: Sequence[Mapping[str, Any]], kinds: Mapping[str, str | None]) -> list[dict[str, Any]]:
    """Head scores beside mIoU, over the configurations with the most labels; maps of different kinds are kept apart."""
    most = max(c["label_fraction"] for c in configurations if c["runs"])
    families: dict[str, list[Mapping[str, Any]]] = {}
    for c in configurations:
        kind = kinds.get(c["name"])
        if kind is not None and c["label_fraction"] == most and all(run["heads"] for run in c["runs"]):
            families.setdefault(kind, []).append(c)
    made = []
    for kind, members in families.items():
        for name, words in HEAD_SCORES.items():
            having = [c for c in members if all(name in run["heads"] for run in c["runs"])]
            x = np.array([np.mean([run["heads"][name] for run in c["runs"]]) for c in having])
            y = np.array([c["miou"]["mean"] for c in having])
            if len(having) > 1:
                found = correlate(x, y)
                made.append(
                    {
                        "score": name,
                        "words": words,
                        "r": found.r,
                        "low": found.low,
                        "high": found.high,
                        "configurations": found.n,
                        "kinds": [kind],
                        "members": [c["name"] for c in having],
                    }
                )
    return made


def _pretrainings(study: Study) -> list[tuple[str, int]]:
    """(name, seed) of each that is used and finished."""
    plan = study.plan
    used = [
        (c.pretraining, plan.pretraining_seed(seed))
        for c in plan.configurations
        for seed in plan.seeds
        if c.pretraining
    ]
    return [pair for pair in dict.fromkeys(used) if study.is_pretrained(*pair)]


def _described_pretraining(study: Study, name: str, seed: int) -> dict[str, Any]:
    folder, plan = study.pretraining_folder(name, seed), study.plan
    made, choice = read_json(folder / PRETRAIN_FILE), plan.pretrainings[name]
    pictures = sorted(
        (folder / "pictures").glob("cross-correlation-epoch-*.png"), key=lambda path: path.stat().st_mtime
    )
    return {
        "name": plan.weights_name(name, seed),
        "method": choice.settings.method if choice.settings else "weights",
        "backbone": plan.backbones[choice.backbone].label,
        "cross_correlation": _data_uri(pictures[-1]) if pictures else None,
        "origin": made["origin"]["said"],
        **{field: made[field] for field in ("seconds", "curve")},
    }


def _data_uri(picture: Path) -> str:
    """A chart, small: it is noise to a PNG, and a study may have many."""
    chart, buffer = Image.open(picture).convert("RGB"), io.BytesIO()
    chart.thumbnail((480, 480))
    chart.quantize(64).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _described(
    study: Study,
    c: Configuration,
    seeds: Sequence[int],
    scored: Scored | None,
    matrices: Sequence[Int[np.ndarray, "classes classes"]],
    milliseconds: float | None,
) -> dict[str, Any]:
    plan, settings = study.plan, study.plan.settings(c)
    folders = [study.cell_folder(c, seed) for seed in seeds]
    runs = [read_json(folder / RUN_FILE) for folder in folders]
    cells = [read_json(folder / CELL_FILE) for folder in folders]
    peaks = [read_json(folder / COST_FILE)["peak_memory_mb"] for folder in folders if (folder / COST_FILE).is_file()]
    return {
        "name": c.name,
        "backbone": plan.backbones[c.backbone].label,
        "pretraining": c.pretraining,
        "fusion": settings.fusion,
        "head": settings.head,
        "baseline": c.baseline,
        "label_fraction": c.label_fraction,
        "frozen": settings.freeze,
        "at": {axis: _shown(value) for axis, value in c.at.items()},
        "parameters": runs[0]["parameters"] if runs else None,
        "milliseconds_per_image": milliseconds,
        "images_per_second": 1000 / milliseconds if milliseconds else None,
        "peak_memory_mb": max((peak for peak in peaks if peak), default=None),
        "miou": scored and _interval(scored),
        "runs": [
            {
                "seed": run["seed"],
                "miou": float(miou),
                "pixel_accuracy": cell["pixel_accuracy"],
                "iou": _iou(matrix),
                "train_seconds": run["seconds"],
                "best_epoch": run["best_epoch"],
                "curve": run["curve"],
                "heads": cell["heads"],
                "commit": run["origin"].get("commit"),
            }
            for run, cell, matrix, miou in zip(runs, cells, matrices, scored.miou if scored else (), strict=True)
        ],
    }


def _iou(matrix: Int[np.ndarray, "classes classes"]) -> list[float | None]:
    """Of each class; None for one that is nowhere true, which mIoU does not count (`statistics.score`)."""
    truth = matrix.sum(axis=1)
    return [float(iou) if pixels else None for iou, pixels in zip(scores(matrix).iou, truth, strict=True)]


def _shown(value: Any) -> float | str:
    """A value of an axis: a number, or a word."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else word(value)


def _interval(scored: Scored) -> dict[str, Any]:
    seeds, found = len(scored.miou), scored.estimate()
    return {
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "std": float(np.std(scored.miou, ddof=1)) if seeds > 1 else 0.0,
        "interval": "95%, over images and seeds" if seeds > 1 else "95%, over images",
    }


def _settings(plan: Plan) -> dict[str, Any]:
    """The settings, flat, for people: those of backbones and pre-trainings that are used."""
    found: dict[str, Any] = {"seeds": plan.seeds, "pretrain_each_seed": plan.pretrain_each_seed, "cache": plan.cache}
    found |= _flat("segment", asdict(plan.segment))
    for key in sorted({c.backbone for c in plan.configurations}):
        found |= _flat(key, {"timm": plan.backbones[key].name, **plan.backbones[key].options})
    for key in sorted({c.pretraining for c in plan.configurations if c.pretraining}):
        choice = plan.pretrainings[key]
        if choice.settings is not None:
            values = asdict(choice.settings)
            found |= _flat(key, {**values, "published": choice.published}) | _flat(key, values["options"])
        else:
            found[f"{key}.weights"] = choice.weights
    for c in plan.configurations:
        found |= _flat(c.name, c.segment)
    return plain(found)


def _flat(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}.{key}": value for key, value in values.items() if key != "options"}
