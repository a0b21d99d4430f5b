"""Pictures of a few images, drawn again and again while a training runs: to see what comes of it before it ends."""

from functools import partial
from pathlib import Path
from typing import cast

import lightning as L
import numpy as np
import torch
from jaxtyping import UInt8

from regard.attention.reading import HeadReader
from regard.backbones import device_of, eval_mode
from regard.data.datasets.base import Dataset, MaskDataset, read_as
from regard.data.loading.augment import centre_crop, resize, short_side
from regard.data.survey import evenly
from regard.pictures.contact_sheet import prediction_sheet
from regard.pictures.draw import Picture, mosaic
from regard.pictures.panels import Style, heads_cells
from regard.pictures.reading import as_batch
from regard.segmentation.inference import classes_at, run_passes
from regard.segmentation.model import SegmentationModel
from regard.segmentation.task import SegmentationTask
from regard.settings import SegmentSettings
from regard.ssl.method import Pretraining
from regard.training.logs import keep_picture, picture_due

IMAGES = 4  # whose attention is drawn, evenly spaced


class AttentionSnapshots(L.Callback):
    """attention-epoch-N.png in `folder`: what each head of the last block looks at, a row for each of `IMAGES` images.

    epochs: between two pictures; size: of the middle square of an image that the backbone sees, in pixels. The weights
    are those of then, of DINO the teacher's; an average of `settings.average` is not in them.
    """

    def __init__(self, folder: Path, epochs: int, dataset: Dataset, size: int) -> None:
        self.folder, self.epochs, self.dataset, self.size = folder, epochs, dataset, size
        self._images: list[Picture] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        """At the end of an epoch."""
        if not (trainer.is_last_batch and picture_due(trainer, self.epochs)):
            return
        if not self._images:
            numbers = evenly(len(self.dataset), IMAGES)
            self._images = [centre_crop(self.dataset.image(i), self.size) for i in numbers]
        backbone = cast(Pretraining, pl_module).kept
        reader = HeadReader(backbone, blocks=(-1,))
        with eval_mode(backbone):
            found = [reader(as_batch(image, backbone))[0] for image in self._images]
        rows = [[image, *heads_cells(image, maps, Style())] for image, maps in zip(self._images, found, strict=True)]
        epoch = trainer.current_epoch + 1
        heads = [f"head {head}" for head in found[0].heads]
        picture = mosaic(rows, [""] * len(rows), ["image", *heads], f"{reader.describe()}, epoch {epoch}")
        keep_picture(trainer, self.folder, "attention", f"-epoch-{epoch}", picture)


class PredictionSnapshots(L.Callback):
    """predictions-epoch-N.png in `folder`: some validation images beside their truth and what is predicted by then."""

    def __init__(self, folder: Path, dataset: MaskDataset, settings: SegmentSettings) -> None:
        self.folder, self.size = folder, settings.size
        self.dataset = read_as(dataset, settings.values)
        self.epochs = max(1, settings.epochs // 10)

    def on_validation_end(self, trainer, pl_module) -> None:
        """At the end of an epoch, with the weights that were scored."""
        if picture_due(trainer, self.epochs):
            sheet = prediction_sheet(self.dataset, partial(self._predicted, cast(SegmentationTask, pl_module).model))
            keep_picture(trainer, self.folder, "predictions", f"-epoch-{trainer.current_epoch + 1}", sheet)

    def _predicted(self, model: SegmentationModel, image: Picture) -> UInt8[np.ndarray, "h w"]:
        seen = resize(image, short_side(image.shape[:2], self.size))
        pixels = torch.from_numpy(seen).permute(2, 0, 1).unsqueeze(0).to(device_of(model))
        logits = run_passes(model, [pixels], len(self.dataset.classes))[0]
        return classes_at([logits[0]], image.shape[:2]).to(torch.uint8).cpu().numpy()
