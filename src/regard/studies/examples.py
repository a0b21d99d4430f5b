"""Pictures for a report: some images with their truth, every configuration's prediction, and what the heads look at."""

import base64
from collections.abc import Mapping

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8

from regard.backbones import device_of, normalize
from regard.data.datasets.base import MaskDataset
from regard.data.loading.augment import short_side
from regard.data.loading.views import resize
from regard.evaluation.scores import confusion, scores
from regard.results import Example, HeadMaps, Prediction
from regard.runs.run import Run

PICTURES = 2  # of each sort
LONGEST = 320  # pixels of a picture's longer side: a report with all of them stays under a few MB
SMALLEST_GRID = 7  # attention is drawn on the coarsest grid of at least this many rows and columns
WRONG = (214, 0, 60)  # the colour of wrong pixels, RGB; told from pale grey with any colour vision
PALE = 150  # the grey of what is black in the image; white stays white


def choose_examples(
    dataset: MaskDataset, per_image: Mapping[str, Float[np.ndarray, "images"]], pictures: int = PICTURES
) -> dict[int, Example]:
    """Images of a dataset evenly spaced, the best and the worst, by their index; `add_run` adds what runs make of them.

    per_image: each configuration's mIoU on each image, in [0, 1]; nan where the image has no labelled pixel.
    """
    return {
        index: Example(
            name=dataset.name(index),
            why=why,
            image=png(_small(dataset.image(index), cv2.INTER_AREA)),
            truth=png(_small(colour(dataset.mask(index), dataset.palette), cv2.INTER_NEAREST)),
            predictions={},
            attention={},
        )
        for why, index in choose_images(per_image, len(dataset), pictures)
    }


def choose_images(
    per_image: Mapping[str, Float[np.ndarray, "images"]], images: int, pictures: int = PICTURES
) -> list[tuple[str, int]]:
    """Why ("evenly spaced", "best", "worst") and which images: `pictures` of each sort, none twice.

    Best and worst are by the mean over configurations of the image's mIoU, ties by index; of few images at most a third
    are either. The evenly spaced ones are so among the others. Images without a labelled pixel are left out, unless
    none has any: then all are evenly spaced.
    """
    stacked = np.stack(
        [np.asarray(values, dtype=np.float64) for values in per_image.values()] or [np.full(images, np.nan)]
    )
    known = np.isfinite(stacked)
    means = np.where(known, stacked, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    scored = [int(i) for i in np.flatnonzero(known.any(axis=0))]
    ranked = sorted(scored, key=lambda i: -means[i])
    extremes = min(pictures, len(scored) // 3)
    best, worst = ranked[:extremes], ranked[len(ranked) - extremes :][::-1]
    rest = [i for i in scored or range(images) if i not in (*best, *worst)]
    count = min(pictures, len(rest))
    evenly = [rest[(2 * i + 1) * len(rest) // (2 * count)] for i in range(count)]
    sorts = {"evenly spaced": evenly, "best": best, "worst": worst}
    return [(why, index) for why, indices in sorts.items() for index in indices]


def add_run(
    examples: Mapping[int, Example],
    dataset: MaskDataset,
    name: str,
    run: Run,
    beyond_position: Mapping[int, list[float | None]] = {},
) -> None:
    """Add the prediction of a configuration for every example, its errors and what its heads look at.

    beyond_position: of the run's heads by block, see `results.CellHeads`.
    Of a control that sees another image's maps there is none: a picture of it would say nothing.
    """
    if run.description.settings.maps == "other":
        return
    dataset = run.seen(dataset)
    for index, example in examples.items():
        image, truth = dataset.image(index), dataset.mask(index)
        prediction = run.predict(image)
        counts = confusion(
            torch.from_numpy(prediction).long(), torch.from_numpy(truth).long(), len(run.classes), run.ignore_index
        )
        example.predictions[name] = Prediction(
            png=png(_small(colour(prediction, dataset.palette), cv2.INTER_NEAREST)),
            errors=png(_small(error_map(image, prediction, truth, run.ignore_index), cv2.INTER_NEAREST)),
            miou=scores(counts).miou if counts.sum() else None,
        )
        if run.model.backbone.heads:
            example.attention[name] = _attention(run, image, beyond_position)


def error_map(
    image: UInt8[np.ndarray, "h w 3"],
    prediction: UInt8[np.ndarray, "h w"],
    truth: UInt8[np.ndarray, "h w"],
    ignore_index: int,
) -> UInt8[np.ndarray, "h w 3"]:
    """The image in pale grey, with the pixels that are wrong in one strong colour; void pixels are never marked."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    pale = (PALE + grey.astype(np.float32) * (255 - PALE) / 255).round().astype(np.uint8)
    pixels = np.repeat(pale[..., None], 3, axis=-1)  # h w 3
    pixels[(prediction != truth) & (truth != ignore_index)] = WRONG
    return pixels


@torch.inference_mode()
def _attention(
    run: Run, image: UInt8[np.ndarray, "h w 3"], beyond_position: Mapping[int, list[float | None]]
) -> HeadMaps:
    """Of the blocks with the coarsest grid that is not too small, the one with the head that knows most beyond
    position; the last one where none was scored.
    """
    small = resize(image, short_side(image.shape[:2], run.size))
    batch = torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1))).unsqueeze(0).to(device_of(run.model))
    maps = run.model.backbone(normalize(batch), attention=True).attention
    grids = [tuple(a.weights.shape[-2:]) for a in maps]
    grid = next((grid for grid in reversed(grids) if min(grid) >= SMALLEST_GRID), grids[0])
    drawn = [
        HeadMaps(
            kind=a.kind,
            block=block,
            heads=np.round(a.weights[0].cpu().numpy().astype(np.float64), 6).tolist(),
            beyond_position=beyond_position.get(block, []),
        )
        for block, a in zip(run.model.backbone.blocks, maps, strict=True)
        if a.weights.shape[-2:] == grid
    ]
    return max(reversed(drawn), key=lambda found: found.knows)


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
