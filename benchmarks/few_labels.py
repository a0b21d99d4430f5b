"""How good is a segmentation that has seen 5, 10, 20 or 50 labelled images?

Four ways, all without a look at the images that are scored:

ridge:    `few_labels.yaml`: a frozen backbone, and a head that is solved.
linear:   the same backbone, frozen, and a linear head that is trained, on four kept crops of each image.
finetune: the same, but the backbone learns too.
unet:     the U-Net of `camvid_unet.yaml`, from random weights.

What is trained keeps the average over the last quarter of its epochs (`swa`), so that no label is spent on choosing an
epoch. Draws are of the training images, nested: the 5 of a draw are among its 10. Scored is `test`, or `val` where
there is none, masks at their own size. DATA@CLASS is that class against the rest.

    python benchmarks/few_labels.py --data CAMVID VOC VOC@person --work runs/few --out runs/few_labels.json

A second call does what is not done yet: what an earlier one left in --out, maybe on another machine, is taken as it
is, and stays there. Intervals are 95%, over images and draws, which share images of one pool (`statistics.score`); they
need what is kept in --work of every draw, and more than three draws. Beyond ridge: of each draw, on the same labels.
"""

import shutil
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from side_by_side import COMMIT, machine, table, write

from regard.backbones import build_backbone
from regard.data.datasets.base import MaskDataset
from regard.data.loading.wrapped import Fraction
from regard.data.source import fingerprint, open_source, require_masks
from regard.data.survey import evenly
from regard.errors import unknown
from regard.evaluation.statistics import score
from regard.files import read_json, read_yaml, recipe, write_json, write_whole
from regard.pictures.charts import save_figure
from regard.runs.extras import Cache, Extras
from regard.runs.feature_cache import cached_counts
from regard.runs.run import load_run
from regard.runs.segmenting import segment_run
from regard.settings import Hardware, ModelToTrain, SegmentSettings, changed, options

METHODS = ("ridge", "linear", "unet", "finetune")
STEPS = {"linear": 400, "unet": 400, "finetune": 100}
DRAWS = {"ridge": 10, "linear": 10, "unet": 3, "finetune": 3}
ENOUGH = 4  # draws of which an interval says more than they do
HARDWARE = Hardware(workers=0, bar=False, precision="bf16-mixed")
CROPS = 4
FOUND_FILE, COUNTS_FILE = "found.json", "counts.npz"


class Against:
    """One class of a data set against the rest."""

    def __init__(self, dataset: MaskDataset, name: str) -> None:
        if name not in dataset.classes:
            raise unknown("class", name, dataset.classes)
        self.dataset, self.number, self.classes = dataset, dataset.classes.index(name), ("rest", name)
        self.palette, self.ignore_index = np.array([[0, 0, 0], [230, 80, 60]], np.uint8), dataset.ignore_index

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, i: int) -> str:
        """As of the data set."""
        return self.dataset.name(i)

    def image(self, i: int) -> np.ndarray:
        """As of the data set."""
        return self.dataset.image(i)

    def mask(self, i: int) -> np.ndarray:
        """1 for the class, 0 for others; void stays."""
        mask = self.dataset.mask(i)
        return np.where(mask == self.ignore_index, mask, mask == self.number).astype(np.uint8)


@dataclass(frozen=True)
class Study:
    """What does not change from draw to draw."""

    data: str
    work: Path
    settings: dict[str, Any]
    earlier: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)  # rows of an earlier call

    @cached_property
    def name(self) -> str:
        """Of the data, short."""
        path, _, one = self.data.partition("@")
        return Path(path).name + (f"@{one}" if one else "")

    @cached_property
    def splits(self) -> tuple[MaskDataset, MaskDataset, str]:
        """What is drawn from, what is scored, and a word that changes with the files."""
        path, _, one = self.data.partition("@")
        source = open_source(path)
        found: Any = require_masks(source)
        parts = [found["train"], found["test" if "test" in found else "val"]]
        most = self.settings["images"]
        parts = [part.only(np.array(evenly(len(part), most))) if most else part for part in parts]
        pool, scored = (Against(part, one) if one else part for part in parts)
        return pool, scored, f"{fingerprint(source)}{one}"

    def method(self, name: str, labels: int) -> tuple[ModelToTrain, SegmentSettings]:
        """The backbone of a method, and its settings with so many labels."""
        given = read_yaml(recipe("camvid_unet" if name == "unet" else "few_labels"))
        model, settings = (
            {one.name: given[one.name] for one in options(kind) if one.name in given}
            for kind in (ModelToTrain, SegmentSettings)
        )
        if name != "unet" and self.settings["weights"]:
            model |= {"weights": self.settings["weights"], "pretrained": False}
        if name != "unet" and self.settings["size"]:
            settings |= {"size": self.settings["size"]}
        if name != "ridge":
            batch = settings.setdefault("batch_size", 8)
            epochs = max(5, -(-self.settings["steps"][name] // max(1, labels // batch)))
            settings |= {"epochs": epochs, "average": "swa"}
        if name in ("linear", "finetune"):
            settings |= {"head": "linear", "freeze": name == "linear"}
            settings |= {"cache_crops": CROPS} if name == "linear" else {"layer_decay": 0.75}
        return ModelToTrain(**model), changed(SegmentSettings(), settings)

    def cell(self, method: str, labels: int, draw: int) -> Path:
        """The folder of one draw, where its counts are."""
        return self.work / self.name / f"{method}-{labels}-{draw}"

    def do(self, method: str, labels: int, draw: int) -> dict[str, Any]:
        """Make and score one draw."""
        folder = self.cell(method, labels, draw)
        pool, scored, content = self.splits
        model, settings = self.method(method, labels)
        torch.manual_seed(draw)
        backbone = build_backbone(model.backbone, model.pretrained, model.weights, **model.backbone_options)
        cache = Cache(self.work / "features", content) if settings.freeze else None
        part, one = Fraction(pool, labels / len(pool), draw), Fraction(pool, 1 / len(pool), draw).once()
        assert len(part.numbers) == labels
        seed = 0 if method == "linear" else draw  # crops are kept for all draws, so its interval lacks a seed's chance
        val = None if method == "ridge" else one  # of `swa`, nothing is chosen on it
        made = segment_run(part.once(), val, backbone, settings, folder / "run", seed, HARDWARE, Extras(cache=cache))
        run = load_run(folder / "run")
        counts = cached_counts(cache.folder, run, scored, content, bar=False) if cache else run.evaluate(scored)
        write_whole(folder / COUNTS_FILE, lambda file: np.savez_compressed(file, counts=counts))
        crossed = made.cross_validated
        found = {
            "draw": draw,
            "miou": float(score([counts]).miou[0]),
            "cross_validated": crossed and {"miou": crossed.miou, "low": crossed.low, "high": crossed.high},
            "solved": made.solved and asdict(made.solved),
            "seconds": made.seconds,
            "images": [part.name(i) for i in range(labels)],
            "commit": COMMIT,
            "machine": machine(),
        }
        write_json(folder / FOUND_FILE, found)
        shutil.rmtree(folder / "run")
        return found

    def draws(self, method: str, labels: int) -> dict[int, dict[str, Any]]:
        """What was found in each draw that is done, here or by an earlier call."""
        earlier = self.earlier.get((method, labels), {"draws": []})["draws"]
        found = {cell["draw"]: cell for cell in earlier}
        folders = self.work.glob(f"{self.name}/{method}-{labels}-*/{FOUND_FILE}")
        return dict(sorted((found | {(cell := read_json(path))["draw"]: cell for path in folders}).items()))

    def row(self, method: str, labels: int) -> dict[str, Any]:
        """Mean over draws, with an interval where it can be told, and what each is beyond ridge."""
        draws, ridge = self.draws(method, labels), self.draws("ridge", labels)
        row = self.earlier.get((method, labels))
        if row and [cell["draw"] for cell in row["draws"]] == list(draws):
            row = {key: value for key, value in row.items() if key != "beyond_ridge"}
            row |= {"low": None, "high": None} if len(draws) < ENOUGH else {}
        else:
            pool, scored, _ = self.splits
            miou = [cell["miou"] for cell in draws.values()]
            files = [self.cell(method, labels, draw) / COUNTS_FILE for draw in draws]
            row = {"data": self.name, "method": method, "labels": labels, "pool": len(pool), "scored": len(scored)}
            row |= {"miou": float(np.mean(miou)), "low": None, "high": None}
            if len(draws) >= ENOUGH and all(file.is_file() for file in files):
                estimate = score(np.load(file)["counts"] for file in files).estimate(labels / len(pool))
                row |= {"miou": estimate.mean, "low": estimate.low, "high": estimate.high}
            row |= {"sd": float(np.std(miou, ddof=1)) if len(miou) > 1 else None}
            row |= {"settings": asdict(self.method(method, labels)[1]), "draws": list(draws.values())}
        if method != "ridge":
            row["beyond_ridge"] = [
                cell["miou"] - ridge[draw]["miou"] if draw in ridge else None for draw, cell in draws.items()
            ]
        return row


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """mIoU over labelled images, a panel for each data set: means, draws, and intervals of more than three of them."""
    names = list(dict.fromkeys(row["data"] for row in rows))
    figure = Figure(figsize=(4 * len(names), 3.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for method in METHODS:
            some = [row for row in rows if (row["data"], row["method"]) == (name, method)]
            low, mean, high = ([row[key] and 100 * row[key] for row in some] for key in ("low", "miou", "high"))
            labels = [row["labels"] for row in some]
            if some:
                color = f"C{METHODS.index(method)}"
                axes.plot(labels, mean, "-", label=method, color=color)
                for row in some:
                    each = [100 * cell["miou"] for cell in row["draws"]]
                    axes.plot([row["labels"]] * len(each), each, "o", markersize=3, color=color, alpha=0.5)
                if None not in low:
                    axes.fill_between(labels, low, high, alpha=0.15, color=color)
        ticks = sorted({row["labels"] for row in rows})
        axes.set(title=name, xlabel="labelled images", ylabel="mIoU, %", xscale="log")
        axes.set_xticks(ticks, map(str, ticks), minor=False)
        axes.minorticks_off()
        axes.legend(fontsize=8)
    return figure


def _named(value: Any) -> Any:
    """A setting as it is on any machine: of a file, its name."""
    return Path(value).name if isinstance(value, str) else value


def main() -> None:
    """Train, score, print a table, draw it, write JSON."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", required=True, help="folders, each with @CLASS or without")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON; the plot is beside it")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--labels", type=int, nargs="+", default=(5, 10, 20, 50))
    parser.add_argument("--draws", type=int, help=f"in the place of {DRAWS}")
    parser.add_argument("--kept", action="store_true", help="show the draws that are done, none anew")
    parser.add_argument("--size", type=int, help="in the place of that of few_labels.yaml")
    parser.add_argument("--weights", help="a file, for what few_labels.yaml fetches")
    parser.add_argument("--steps", type=int, help=f"of whatever is trained, in the place of {STEPS}")
    parser.add_argument("--images", type=int, help="at most so many to draw from, and so many to score")
    given = parser.parse_args()
    steps = {name: given.steps or usual for name, usual in STEPS.items()}
    settings = {"size": given.size, "weights": given.weights, "steps": steps, "images": given.images}
    earlier = read_json(given.out) if given.out.is_file() else {"config": settings, "results": []}
    kept = given.work / "settings.json"
    for place, there in ((given.out, earlier["config"]), (given.work, read_json(kept) if kept.is_file() else settings)):
        for key, value in settings.items():
            if _named(value) != _named(there[key]):
                parser.error(f"{place} holds runs with {key} {there[key]}: take that, or another place")
    write_json(kept, settings)
    rows = list[dict[str, Any]]()
    for data in given.data:
        study = Study(data, given.work, settings)
        study.earlier.update({(r["method"], r["labels"]): r for r in earlier["results"] if r["data"] == study.name})
        if (pool := len(study.splits[0])) <= max(given.labels):
            parser.error(f"{data} has {pool} images to draw from: take fewer --labels, so that draws differ")
        for labels in () if given.kept else given.labels:
            for method in given.methods:
                for draw in range(given.draws or DRAWS[method]):
                    if draw not in study.draws(method, labels):
                        miou = study.do(method, labels, draw)["miou"]
                        print(study.name, method, labels, f"draw {draw}: mIoU {100 * miou:.1f}", flush=True)
        every = sorted({labels for _, labels in study.earlier} | set(given.labels))
        rows += [study.row(method, labels) for labels in every for method in METHODS if study.draws(method, labels)]
    others = [row for row in earlier["results"] if row["data"] not in {row["data"] for row in rows}]
    write(given.out, ["timm", "lightning"], settings, rows + others)
    save_figure(given.out.with_suffix(".png"), plot(rows + others))
    shown = [
        [
            row["data"],
            row["method"],
            str(row["labels"]),
            *(f"{100 * row[key]:.1f}" if row[key] is not None else "-" for key in ("miou", "sd", "low", "high")),
            " ".join(f"{100 * one:+.1f}" if one is not None else "-" for one in row.get("beyond_ridge", [])),
            str(len(row["draws"])),
            f"{np.mean([cell['seconds'] for cell in row['draws']]):.0f}",
        ]
        for row in rows
    ]
    print(table(["data", "method", "labels", "mIoU", "sd", "low", "high", "beyond ridge", "draws", "seconds"], shown))


if __name__ == "__main__":
    main()
