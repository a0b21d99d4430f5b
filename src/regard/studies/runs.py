"""A trained segmentation, read from the folder that `segmenting.segment_run` made: predict, evaluate."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from regard.backbones import device_of, from_description, normalize
from regard.backbones.weights import MODEL_FILE
from regard.data.augment import resize, short_side
from regard.data.datasets import MaskDataset, read_image
from regard.data.modules import whole_loader
from regard.errors import InputError
from regard.evaluation.scores import scores
from regard.segmentation.inference import count_pixels, predict_at
from regard.segmentation.module import SegmentationModel
from regard.studies.folders import read_json

RUN_FILE = "run.json"


class Run:
    """A trained segmentation: `predict(image)`, `evaluate(dataset)`."""

    def __init__(self, model: SegmentationModel, description: dict[str, Any]) -> None:
        self.model, self.description = model.eval(), description
        self.classes = tuple(description["classes"])
        self.palette = np.array(description["palette"], dtype=np.uint8)
        self.ignore_index = int(description["ignore_index"])
        self.size = int(description["settings"]["size"])

    def predict(self, image: Image.Image | UInt8[np.ndarray, "h w 3"] | str | Path) -> UInt8[np.ndarray, "h w"]:
        """Class indices at the image's own size. An array is RGB, 0..255; a path is read upright (EXIF)."""
        if isinstance(image, str | Path):
            image = read_image(Path(image))
        pixels = np.asarray(image.convert("RGB")) if isinstance(image, Image.Image) else image
        small = resize(pixels, (0, 0, *pixels.shape[:2]), short_side(pixels.shape[:2], self.size))
        batch = torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1))).unsqueeze(0)
        with torch.inference_mode():
            logits = self.model(normalize(batch.to(device_of(self.model))))[0]
            return predict_at(logits, pixels.shape[:2]).to(torch.uint8).cpu().numpy()

    def evaluate(self, dataset: MaskDataset, batch_size: int = 16) -> Int[np.ndarray, "images classes classes"]:
        """One confusion matrix per image (rows: truth), at the masks' own size."""
        if tuple(dataset.classes) != self.classes:
            raise InputError(
                f"the run knows the classes {', '.join(self.classes[:3])}, ... ({len(self.classes)}), the data has "
                f"{', '.join(dataset.classes[:3])}, ... ({len(dataset.classes)}): choose data with the same classes"
            )
        device, counts = device_of(self.model), []
        for pairs in whole_loader(dataset, self.size, batch_size):
            pairs = [(image.to(device), mask.to(device)) for image, mask in pairs]
            counts += count_pixels(self.model, pairs, len(self.classes), self.ignore_index)
        return torch.stack(counts).cpu().numpy()


def load_run(path: str | Path, device: str | None = None) -> Run:
    """A segmentation made by `regard segment` or `regard compare`, ready to predict; InputError when it is none.

    device: "cpu", "cuda", ...; by default a GPU where there is one.
    """
    path = Path(path)
    if not (path / RUN_FILE).is_file() or not (path / MODEL_FILE).is_file():
        raise InputError(
            f"{path} holds no finished segmentation ({RUN_FILE}, {MODEL_FILE}): make one with regard segment"
        )
    description = read_json(path / RUN_FILE)
    try:
        settings, classes = description["settings"], description["classes"]
        model = SegmentationModel(
            from_description(description["backbone"]),
            len(classes),
            description["fusion"],
            settings["head"],
            **settings["head_options"],
        )
        model.load_state_dict(load_file(path / MODEL_FILE))
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return Run(model.to(device), description)
    except (KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is damaged, or of another version of regard ({reason}): make it again") from error


def summary(run: Run, counts: Int[np.ndarray, "images classes classes"]) -> dict[str, Any]:
    """The scores of a run over a dataset, as JSON: classes that do not occur have no IoU (null)."""
    result = scores(counts.sum(axis=0))
    iou = {name: None if np.isnan(x) else x for name, x in zip(run.classes, result.iou, strict=True)}
    return {"miou": result.miou, "pixel_accuracy": result.pixel_accuracy, "images": len(counts), "iou": iou}
