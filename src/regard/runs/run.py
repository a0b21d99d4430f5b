"""A trained segmentation, read from the folder that `segmenting.segment_run` made: predict, evaluate."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt8
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from regard.backbones import device_of, from_description
from regard.backbones.weights import MODEL_FILE, check_finite, check_size, checked
from regard.data.datasets.base import Dataset, MaskDataset, read_as
from regard.data.loading.augment import short_side
from regard.data.loading.modules import loading
from regard.data.loading.samples import images_of
from regard.data.loading.views import resize
from regard.data.loading.wrapped import WithOthers
from regard.errors import InputError, first_line, naming
from regard.evaluation.scores import (
    BOUNDARY,
    boundary_counts,
    boundary_iou,
    calibration_bins,
    confusion,
    expected_calibration_error,
    scores,
)
from regard.results import RUN_FILE as RUN_FILE
from regard.results import (
    BoundaryScores,
    Calibration,
    Confusion,
    FullScores,
    HeadShares,
    MaskScores,
    ModelDescription,
)
from regard.runs.exported import find_run, read_description
from regard.runs.onnx import read_onnx
from regard.runs.pixels import ImageLike, read_pixels
from regard.say import console
from regard.segmentation.inference import (
    BATCH,
    WHOLE,
    Inference,
    classes_at,
    confidence_at,
    passes_of_each,
    probabilities_at,
    run_passes,
)
from regard.segmentation.model import SegmentationModel


class Run:
    """A trained segmentation: `predict(image)`, `probabilities(image)`, `evaluate(dataset)`, `score(dataset)`."""

    def __init__(self, model: SegmentationModel, description: ModelDescription) -> None:
        self.model, self.description = model.eval(), description
        self.classes = tuple(description.classes)
        self.palette = np.array(description.palette, np.uint8).reshape(-1, 3)  # classes x RGB
        self.ignore_index, self.size = description.ignore_index, description.settings.size

    @property
    def head_weights(self) -> list[HeadShares]:
        """Which attention heads the fusion came to use, one entry for each level that it sees heads of."""
        return self.description.head_weights

    def predict(self, image: ImageLike, inference: Inference = WHOLE) -> UInt8[np.ndarray, "h w"]:
        """Class indices at the image's own size. What an image may be: see `read_pixels`."""
        pixels = read_pixels(image, self.description.settings.values)
        return classes_at(self.passes(pixels, inference), pixels.shape[:2]).to(torch.uint8).cpu().numpy()

    def probabilities(self, image: ImageLike, inference: Inference = WHOLE) -> Float32[np.ndarray, "classes h w"]:
        """The probability of each class at each pixel, at the image's own size; over the classes they sum to 1."""
        pixels = read_pixels(image, self.description.settings.values)
        return probabilities_at(self.passes(pixels, inference), pixels.shape[:2]).cpu().numpy()

    def passes(
        self, pixels: UInt8[np.ndarray, "h w 3"], inference: Inference = WHOLE, batch_size: int = BATCH
    ) -> list[Float[Tensor, "classes _ _"]]:
        """The logits of one image, for `inference.classes_at` and `probabilities_at`: see `inference.run_passes`."""
        self.check_alone()
        scaled = [image.unsqueeze(0).to(device_of(self.model)) for image in _at_scales(pixels, self.size, inference)]
        return [logits[0] for logits in run_passes(self.model, scaled, len(self.classes), inference, batch_size)]

    def seen(self, dataset: MaskDataset) -> MaskDataset:
        """The dataset as the run is to see it: with its values, and for a control with another image for each."""
        settings = self.description.settings
        dataset = read_as(dataset, settings.values)
        return WithOthers(dataset, settings.groups) if settings.maps == "other" else dataset

    def check_alone(self) -> None:
        """InputError for a control that sees another image's maps: it has no answer for an image alone."""
        if self.description.settings.maps == "other":
            raise InputError(
                "this run is a control, which sees the maps of another image: `regard evaluate` on data with masks "
                "works, an image alone does not"
            )

    def evaluate(
        self, dataset: MaskDataset, inference: Inference = WHOLE, batch_size: int = BATCH
    ) -> Int[np.ndarray, "images classes classes"]:
        """One confusion matrix per image (rows: truth), at the masks' own size."""
        each = self._answer(self._loader(dataset, inference, batch_size), inference, batch_size)
        counts = [
            confusion(classes_at(passes, mask.shape), mask, len(self.classes), self.ignore_index)
            for passes, mask in each
        ]
        return torch.stack(counts).cpu().numpy()

    def score(
        self, dataset: MaskDataset, inference: Inference = WHOLE, batch_size: int = BATCH, workers: int = 0
    ) -> "Evaluation":
        """Everything that is counted, summed over the images, at the masks' own size; with a progress bar.

        batch_size: images, or windows of one image, in a forward pass. workers: processes that load images.
        """
        classes, void, images, found = len(self.classes), self.ignore_index, 0, []
        loader = self._loader(dataset, inference, batch_size, workers)
        batches = track(loader, "scoring", transient=True, console=console())
        for passes, mask in self._answer(batches, inference, batch_size):
            answer, confidence = confidence_at(passes, mask.shape)
            counts = (
                confusion(answer, mask, classes, void),
                boundary_counts(answer, mask, classes, void),
                calibration_bins(confidence, answer, mask, void),
            )
            found = [total + new for total, new in zip(found, counts, strict=True)] if found else list(counts)
            images += 1
        return Evaluation(images, *(total.cpu().numpy() for total in found))

    def _loader(
        self, dataset: MaskDataset, inference: Inference, batch_size: int, workers: int = 0
    ) -> Iterable[list[tuple[list[Tensor], Tensor]]]:
        """InputError for data with other classes."""
        if tuple(dataset.classes) != self.classes:
            raise InputError(
                f"the run knows the classes {', '.join(self.classes[:3])}, ... ({len(self.classes)}), the data has "
                f"{', '.join(dataset.classes[:3])}, ... ({len(dataset.classes)}): choose data with the same classes"
            )
        pairs = _ScaledPairs(self.seen(dataset), self.size, inference)
        return DataLoader(pairs, batch_size, collate_fn=list, **loading(workers))

    def _answer(
        self, batches: Iterable[list[tuple[list[Tensor], Tensor]]], inference: Inference, batch_size: int
    ) -> Iterator[tuple[list[Tensor], Tensor]]:
        """The logits of each image's passes, and its mask, in order."""
        device = device_of(self.model)
        for pairs in batches:
            on_device = [([image.to(device) for image in scaled], mask.to(device)) for scaled, mask in pairs]
            yield from passes_of_each(self.model, on_device, len(self.classes), inference, batch_size)


class _ScaledPairs(TorchDataset):
    """index -> the whole image at every scale, and its mask at the mask's own size."""

    def __init__(self, dataset: MaskDataset, size: int, inference: Inference) -> None:
        self.dataset, self.size, self.inference = dataset, size, inference

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[list[Tensor], Tensor]:
        with naming(self.dataset.name(index)):
            images = images_of(self.dataset, index)
            each = zip(*(_at_scales(image, self.size, self.inference) for image in images), strict=True)
        return [torch.cat(parts) for parts in each], torch.from_numpy(self.dataset.mask(index)).long()


def _at_scales(pixels: UInt8[np.ndarray, "h w 3"], size: int, inference: Inference) -> list[UInt8[Tensor, "3 _ _"]]:
    """An image as it is fed: each scale is made of the image itself, so that a large one shows what a small one hides.

    The image at scale 1 has a short side of `size`.
    """
    shape, made = pixels.shape[:2], []
    for scale in inference.scales:
        fed = short_side(shape, max(1, round(size * scale)))
        small = resize(pixels, fed) if fed != shape else pixels
        made.append(torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1))))
    return made


@dataclass(frozen=True)
class Evaluation:
    """What was counted over the images of a dataset: `scores.confusion`, `boundary_counts` and `calibration_bins`."""

    images: int
    counts: Int[np.ndarray, "classes classes"]
    boundaries: Int[np.ndarray, "2 classes"]
    bins: Float[np.ndarray, "bins 3"]


def load_run(path: str | Path, device: str | None = None, revision: str | None = None) -> Run:
    """A trained segmentation, ready to predict; InputError when there is none. No code is run from what is read.

    path:   a folder that `regard segment` or `regard compare` made, or what `regard export` made of one: a folder, a
            .onnx file, which onnxruntime runs, or OWNER/NAME on the Hugging Face hub: see `find_run`.
    device: "cpu", "cuda", ...; by default a GPU where there is one. onnxruntime chooses its own.
    revision: of one on the hub: a branch, tag or commit.
    """
    path = find_run(path, revision)
    try:
        if path.suffix == ".onnx":
            return Run(*read_onnx(path))
        description = read_description(path)
        weights = load_file(path / MODEL_FILE)
        checked(description.backbone, len(weights))
        check_size(path / MODEL_FILE, lambda: _built(description))
        check_finite(weights, path / MODEL_FILE)
        model = _built(description)
        model.load_state_dict(weights)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return Run(model.to(device), description)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{path} is damaged, or of another version of regard ({first_line(error)}): make it again"
        ) from error


def _built(description: ModelDescription) -> SegmentationModel:
    """The model that a description describes, with random weights."""
    settings, classes = description.settings, len(description.classes)
    backbone, options = from_description(description.backbone), settings.head_options
    return SegmentationModel(
        backbone, classes, settings.fusion, settings.head, False, description.kept, options, settings.maps,
        settings.refiner,
    )  # fmt: skip


def name_digests(dataset: Dataset) -> list[str]:
    """Of each image, the first 12 hex digits of the SHA-256 of its name, to know it again."""
    return [hashlib.sha256(os.fsencode(dataset.name(i))).hexdigest()[:12] for i in range(len(dataset))]


def summary(run: Run, counts: Int[np.ndarray, "images classes classes"]) -> MaskScores:
    """The scores of a run over a dataset."""
    return MaskScores(**mask_scores(run.classes, len(counts), counts.sum(axis=0)))


def full_summary(run: Run, found: Evaluation) -> FullScores:
    """As `summary`, with Boundary IoU, calibration, and the confusion matrix."""
    boundary = boundary_iou(found.boundaries)
    counted = boundary[(found.counts.sum(axis=1) > 0) & ~np.isnan(boundary)]  # classes of the truth, as in mIoU
    pixels, confidence, right = (part.tolist() for part in found.bins.T)
    return FullScores(
        **mask_scores(run.classes, found.images, found.counts),
        boundary=BoundaryScores(
            width=f"{BOUNDARY:g} of the diagonal of the mask",
            miou=float(counted.mean()) if len(counted) else None,
            iou=_by_name(run.classes, boundary),
        ),
        calibration=Calibration(
            expected_error=expected_calibration_error(found.bins),
            bins=f"{len(found.bins)} of equal width over [0, 1]",
            pixels=[int(count) for count in pixels],
            confidence=[c / n if n else None for c, n in zip(confidence, pixels, strict=True)],
            accuracy=[r / n if n else None for r, n in zip(right, pixels, strict=True)],
        ),
        confusion=Confusion(classes=list(run.classes), pixels=found.counts.tolist()),
    )


def mask_scores(classes: Sequence[str], images: int, matrix: Int[np.ndarray, "classes classes"]) -> dict[str, Any]:
    """The fields of `MaskScores`."""
    result, truth = scores(matrix), matrix.sum(axis=1)
    return {
        "images": images,
        "miou": result.miou,
        "frequency_weighted_iou": result.frequency_weighted_iou,
        "pixel_accuracy": result.pixel_accuracy,
        "mean_accuracy": result.mean_accuracy,
        "iou": _by_name(classes, result.iou),
        "accuracy": _by_name(classes, result.accuracy),
        "share": _by_name(classes, truth / truth.sum()),
        "absent": [name for name, iou in zip(classes, result.iou, strict=True) if np.isnan(iou)],
    }


def _by_name(classes: Sequence[str], values: Iterable[float]) -> dict[str, float | None]:
    """None for nan."""
    return {name: None if np.isnan(x) else float(x) for name, x in zip(classes, values, strict=True)}
