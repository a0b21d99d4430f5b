"""A plausible results.json, and studies over axes made from it."""

import base64
import io
import itertools
from dataclasses import replace

import msgspec
import numpy as np
from PIL import Image

from regard.results import VERSION, Difference, HeadCorrelation, StudyResults

CLASSES = ["background", "disc", "<b>x</b>&\"'", "triangle", "star", "stripe"]
PALETTE = [[40, 44, 52], [230, 85, 60], [80, 160, 90], [60, 110, 200], [240, 200, 80], [160, 90, 180]]
CONFIGURATIONS = [  # name, backbone, pre-training, fusion, heads, mIoU
    ("bt-resnet50", "resnet (tiny)", "barlow_twins-resnet", "none", 0, 0.412),
    ("bt-swin", "swin (tiny)", "barlow_twins-swin", "none", 12, 0.447),
    ("bt-swin-concat", "swin (tiny)", "barlow_twins-swin", "concat", 12, 0.478),
    ("bt-swin-gate", "swin (tiny)", "barlow_twins-swin", "gate", 12, 0.455),
    ("dino-gate", "vit (tiny)", "dino-vit", "gate", 6, 0.431),
    ("dino", "vit (tiny)", "dino-vit", "none", 6, 0.428),
    ("random-swin", "swin (tiny)", None, "none", 12, 0.302),
]

SWINS = ["bt-swin", "bt-swin-concat", "bt-swin-gate", "random-swin"]


def _uri(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _scene(rng, size):
    """A mask of discs and boxes, and an image of it: textured colours unrelated to the palette."""
    y, x = np.mgrid[:size, :size]
    mask = np.zeros((size, size), int)
    for label in rng.permutation(np.arange(1, len(CLASSES)))[:4]:
        cy, cx, r = [*rng.integers(8, size - 8, 2).tolist(), rng.integers(6, 15)]
        inside = (y - cy) ** 2 + (x - cx) ** 2 < r**2 if label % 2 else np.maximum(abs(y - cy), abs(x - cx)) < r
        mask[inside] = label
    tones = rng.integers(40, 220, (len(CLASSES), 3))
    return mask, np.clip(tones[mask] + rng.normal(0, 14, (size, size, 3)), 0, 255)


def _head_scores(rng, miou):
    return {
        "information": float(miou + rng.normal(0, 0.04)),
        "beyond_position": float(miou / 2 + rng.normal(0, 0.02)),
        "entropy": float(0.9 - miou / 3 + rng.normal(0, 0.02)),
    }


def difference(a, b, mean, low, high, question=False, holm=None, seeds=3, p=None):
    shown = not low <= 0 <= high
    p = p or (0.001 if shown else 0.4)
    holm = question and (shown if holm is None else holm)
    return Difference(
        a=a, b=b, mean=mean, low=low, high=high, p=p, p_strict=p, question=question, holm=holm, seeds=seeds
    )  # fmt: skip


def correlation(score, kind, r, low, high, members):
    words = {"information": "information about the class, bits", "entropy": "entropy, as a share of the most"}[score]
    return HeadCorrelation(score=score, words=words, kind=kind, r=r, low=low, high=high, members=list(members))


def plausible_results(size=64):
    rng = np.random.default_rng(0)
    palette, configurations = np.array(PALETTE), []
    for name, backbone, pretraining, fusion, heads, miou in CONFIGURATIONS:
        runs = []
        for seed in (0, 1, 2):
            score = miou + rng.normal(0, 0.012)
            iou = np.clip(score + np.array([0.35, 0.1, -0.05, -0.1, -0.3]) + rng.normal(0, 0.02, 5), 0, 1).tolist()
            curve = [
                {
                    "epoch": e,
                    "train_loss": 1.9 * 0.8**e,
                    "val_miou": float(max(0.02, score * (1 - 0.75 ** (e + 1)) + rng.normal(0, 0.008))),
                }
                for e in range(1, 13)
            ]
            runs.append(
                {
                    "seed": seed,
                    "miou": score,
                    "pixel_accuracy": 0.5 + score / 2,
                    "iou": [*iou, None],  # the last class is absent from the evaluated images
                    "train_seconds": float(rng.uniform(6, 14)),
                    "best_epoch": 11,
                    "curve": curve,
                    "heads": _head_scores(rng, score) if heads else None,
                    "commit": "abc1234",
                }
            )
        scores = np.array([r["miou"] for r in runs])
        milliseconds = float(rng.uniform(1, 6))
        configurations.append(
            {
                "name": name,
                "backbone": backbone,
                "pretraining": pretraining,
                "fusion": fusion,
                "head": "segformer",
                "baseline": name in ("dino", "random-swin"),
                "label_fraction": 1.0,
                "frozen": False,
                "at": {},
                "parameters": int(rng.integers(9e5, 4e6)),
                "milliseconds_per_image": milliseconds,
                "images_per_second": 1000 / milliseconds,
                "peak_memory_mb": None,
                "miou": {
                    "mean": float(scores.mean()),
                    "std": float(scores.std()),
                    "low": float(scores.mean()) - 0.022,
                    "high": float(scores.mean()) + 0.021,
                    "interval": "95%, over images and seeds",
                },
                "runs": runs,
            }
        )
    examples = []
    names = ["val/00003", 'val/"><script>alert(1)</script>', "val/00071", "val/00100", "val/00012", "val/00005"]
    for index, name in enumerate(names):
        mask, image = _scene(rng, size)
        predictions, attention = {}, {}
        for c, (*_, heads, _) in zip(configurations, CONFIGURATIONS, strict=True):
            wrong = np.roll(mask, int(rng.integers(1, 5)), axis=index % 2)
            predictions[c["name"]] = {
                "png": _uri(palette[wrong]),
                "errors": _uri(
                    np.where((wrong != mask)[..., None], (214, 0, 60), 150 + image.mean(-1, keepdims=True) // 3)
                ),
                "miou": float(rng.uniform(0.2, 0.6)),
            }
            if heads:
                grid = 8 if "vit" in c["backbone"] else 4
                maps = rng.gamma(0.6, size=(heads, grid, grid))
                maps /= maps.sum((1, 2), keepdims=True)
                kind = "cls" if grid == 8 else "pooled"
                attention[c["name"]] = {"kind": kind, "block": 3, "heads": maps.tolist()}
        examples.append(
            {
                "name": name,
                "why": ("evenly spaced", "best", "worst")[index // 2],
                "image": _uri(image),
                "truth": _uri(palette[mask]),
                "predictions": predictions,
                "attention": attention,
            }
        )
    steps = range(10, 130, 10)
    matrix = _uri(np.clip(rng.normal(128, 20, (32, 32, 1)) + 110 * np.eye(32)[..., None], 0, 255).repeat(3, -1))
    found = {
        "schema": VERSION,
        "kind": "compare",
        "name": "five",
        "failed": [],
        "axes": {},
        "regard": "0.1.0",
        "commit": "abc1234",
        "created": "2026-11-22T20:00:00+00:00",
        "command": "regard compare --data scenes --preset tiny --out runs/demo",
        "seconds": 251.3,
        "complete": True,
        "environment": {
            "python": "3.11.7",
            "torch": "2.11.0",
            "timm": "1.0.22",
            "device": "cpu",
            "cpu": "AMD EPYC 7B13 (2 cores)",
        },
        "data": {
            "source": "scenes",
            "description": "Built-in procedural scenes: coloured shapes on textured grounds, made from a seed.",
            "classes": CLASSES,
            "palette": PALETTE,
            "train_images": 320,
            "evaluated_images": 128,
            "evaluated_split": "val",
            "short_side": size,
            "class_share": [0.61, 0.14, 0.11, 0.08, 0.06, 0.0],
        },
        "plan": None,
        "note": "Preset tiny says little about full size.",
        "seeds": [0, 1, 2],
        "pretrain_each_seed": False,
        "settings": {"epochs": "12", "batch_size": "32", "learning_rate": "0.001"},
        "majority": {"name": "background", "miou": 0.122, "pixel_accuracy": 0.61},
        "pretraining": [
            {
                "name": "barlow_twins-resnet",
                "method": "barlow_twins",
                "backbone": "resnet (tiny)",
                "origin": "pre-trained here: 31 s, 6 epochs of 512 images",
                "cross_correlation": matrix,
                "seconds": 31.0,
                "curve": [{"step": s, "loss": 120 + 700 * 0.97**s} for s in steps],
            },
            {
                "name": "barlow_twins-swin",
                "method": "barlow_twins",
                "backbone": "swin (tiny)",
                "origin": "pre-trained here: 41 s, 6 epochs of 512 images",
                "cross_correlation": matrix,
                "seconds": 41.2,
                "curve": [{"step": s, "loss": 90 + 900 * 0.975**s} for s in steps],
            },
            {
                "name": "dino-vit",
                "method": "dino",
                "backbone": "vit (tiny)",
                "origin": "random, as no published weights fit this small size",
                "cross_correlation": None,
                "seconds": 0.0,
                "curve": [],
            },
        ],
        "configurations": configurations,
        "differences": [],
        "correlations": [],
        "examples": examples,
    }
    results = msgspec.convert(found, StudyResults)
    results.differences = [
        difference("bt-swin-concat", "bt-swin", 0.031, 0.008, 0.055, question=True),
        difference("bt-swin-gate", "bt-swin", 0.006, -0.013, 0.025, question=True),
        difference("bt-swin", "bt-resnet50", 0.034, 0.001, 0.058, question=True, holm=False),
        difference("dino-gate", "dino", 0.003, 0.0, 0.021, question=True),
        difference("random-swin", "bt-swin", -0.146, -0.171, -0.12, question=True),
        difference("bt-swin-concat", "dino", 0.05, 0.02, 0.08),
    ]
    results.correlations = [
        correlation("information", "pooled", 0.71, -0.5, 0.98, SWINS),
        correlation("information", "cls", None, None, None, ["dino-gate", "dino"]),
        correlation("entropy", "pooled", -0.93, -0.99, -0.2, SWINS),
    ]
    return results


def varied(results, axes, kind="ablate"):
    """The results as those of a study over axes: a configuration for each combination of their values."""
    first = results.configurations[1]
    configurations = []
    for index, values in enumerate(itertools.product(*axes.values())):
        at = dict(zip(axes, values, strict=True))
        words = " · ".join(f"{key} {value}" for key, value in at.items())
        miou = 0.3 + 0.01 * index
        own = {key: at[key] for key in ("label_fraction", "fusion") if key in at}
        runs = [replace(run, miou=miou + (run.seed - 1) / 100) for run in first.runs]
        spread = replace(first.miou, mean=miou, low=miou - 0.02, high=miou + 0.02)
        name = f"bt-swin · {words}" if kind == "compare" else words
        configurations.append(replace(first, name=name, at=at, miou=spread, runs=runs, **own))
    return only(results, configurations, kind=kind, axes={key: list(values) for key, values in axes.items()})


def only(results, configurations, **changes):
    """The results with these configurations alone, and nothing between them."""
    return replace(
        results, configurations=configurations, differences=[], correlations=[], examples=[], **changes
    )  # fmt: skip
