"""A segmentation for tests, not trained, whose answers differ from place to place."""

from importlib.metadata import version

import numpy as np
import torch

from regard.backbones import build_backbone, describe, normalize
from regard.data.datasets.scenes import Scenes
from regard.results import EpochScore, Origin, RunDescription
from regard.segmentation.model import SegmentationModel
from regard.settings import SegmentSettings


def untrained_segmentation() -> SegmentationModel:
    """Of the classes of scenes. No class is likelier than the others everywhere: logits vary by 2 around 0."""
    model = SegmentationModel(build_backbone("resnet18", channels=(8, 16, 16, 16)), len(Scenes.classes), head="linear")
    model.eval()
    with torch.no_grad():
        logits = model(normalize(torch.from_numpy(Scenes(1, size=96).image(0)).permute(2, 0, 1)[None]))[0]
        scale, bias = 2 / logits.std(dim=(-2, -1)), model.head.classify.bias
        model.head.classify.weight.mul_(scale[:, None, None, None])
        bias.copy_(scale * (bias - logits.mean(dim=(-2, -1))))
    return model


def description(model: SegmentationModel, **settings) -> RunDescription:
    """What `regard segment` writes in run.json; settings: that are not 32 pixels and the head `linear`."""
    return RunDescription(
        regard=version("regard"),
        backbone=describe(model.backbone),
        kept=None,
        settings=SegmentSettings(**{"size": 32, "head": "linear"} | settings),
        head_weights=[],
        classes=list(Scenes.classes),
        palette=[tuple(colour) for colour in np.asarray(Scenes(1).palette).tolist()],
        ignore_index=255,
        seed=0,
        origin=Origin(),
        cached=False,
        seconds=1.0,
        peak_memory_mb=None,
        best_epoch=1,
        curve=[EpochScore(epoch=1, train_loss=0.5, val_miou=0.25)],
        parameters=1,
    )
