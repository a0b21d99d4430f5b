"""Pictures for a report: some images with their truth, every configuration's prediction, and what the heads look at."""

import base64
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import UInt8

from regard.backbones import device_of, normalize
from regard.data.augment import resize, short_side
from regard.data.datasets import MaskDataset
from regard.evaluation.scores import confusion, scores
from regard.studies.runs import Run

PICTURES = 4
LONGEST = 320  # pixels of a picture's longer side: a report with all of them stays under a few MB
SMALLEST_GRID = 7  # attention is drawn at the coarsest level whose grid has at least this many rows and columns


def choose_examples(dataset: MaskDataset, runs: Mapping[str, Run], pictures: int = PICTURES) -> list[dict[str, Any]]:
    """Evenly spaced images of a dataset (not picked by how well they come out), as JSON; see `report.py`."""
    count = min(pictures, len(dataset))
    return [_example(dataset, (2 * i + 1) * len(dataset) // (2 * count), runs) for i in range(count)]


def _example(dataset: MaskDataset, index: int, runs: Mapping[str, Run]) -> dict[str, Any]:
    image, truth = dataset.image(index), dataset.mask(index)
    palette = np.asarray(dataset.palette)
    example: dict[str, Any] = {
        "name": dataset.name(index),
        "image": png(_small(image, cv2.INTER_AREA)),
        "truth": png(_small(colour(truth, palette), cv2.INTER_NEAREST)),
        "predictions": {},
        "attention": {},
    }
    for name, run in runs.items():
        prediction = run.predict(image)
        counts = confusion(
            torch.from_numpy(prediction).long(), torch.from_numpy(truth).long(), len(run.classes), run.ignore_index
        )
        miou = scores(counts).miou if counts.sum() else None
        example["predictions"][name] = {
            "png": png(_small(colour(prediction, palette), cv2.INTER_NEAREST)),
            "miou": miou,
        }
        if run.model.backbone.heads:
            example["attention"][name] = _attention(run, image)
    return example


@torch.inference_mode()
def _attention(run: Run, image: UInt8[np.ndarray, "h w 3"]) -> dict[str, Any]:
    small = resize(image, (0, 0, *image.shape[:2]), short_side(image.shape[:2], run.size))
    batch = torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1))).unsqueeze(0).to(device_of(run.model))
    maps = run.model.backbone(normalize(batch), attention=True).attention
    large = [level for level, a in enumerate(maps) if min(a.weights.shape[-2:]) >= SMALLEST_GRID]
    level = large[-1] if large else 0
    heads = np.round(maps[level].weights[0].cpu().numpy().astype(np.float64), 6)
    return {"kind": maps[level].kind, "level": level, "heads": heads.tolist()}


def colour(mask: UInt8[np.ndarray, "h w"], palette: UInt8[np.ndarray, "classes 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """A mask in the colours of its classes; void (any value past the palette) is white."""
    table = np.full((256, 3), 255, dtype=np.uint8)
    table[: len(palette)] = palette
    return table[mask]


def _small(pixels: UInt8[np.ndarray, "h w 3"], interpolation: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    factor = LONGEST / max(pixels.shape[:2])
    if factor >= 1:
        return pixels
    height, width = (max(1, round(side * factor)) for side in pixels.shape[:2])
    return cv2.resize(pixels, (width, height), interpolation=interpolation)


def png(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """A data URI."""
    _, encoded = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    return "data:image/png;base64," + base64.b64encode(encoded.tobytes()).decode()
