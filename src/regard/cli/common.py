"""What commands share. Imported when they run, since it needs torch."""

import torch

from regard.backbones import Backbone, build_backbone
from regard.results import FullScores, MaskScores
from regard.say import console, say, shown
from regard.settings import Device, Model


def built(model: Model, seed: int) -> Backbone:
    """The backbone that a command trains; what is random in it follows from the seed."""
    torch.manual_seed(seed)
    return build_backbone(model.backbone, model.pretrained, model.weights, **model.backbone_options)


def opened(model: Model, device: Device) -> Backbone:
    """The backbone that a command looks at, in evaluation mode, on its device."""
    found = build_backbone(model.backbone, model.pretrained, model.weights, **model.backbone_options)
    return found.eval().to(device.device)


def table(result: MaskScores, split: str) -> None:
    """The scores of a segmentation: of `runs.run.summary` or `full_summary`."""
    from rich.table import Column, Table

    columns = {"IoU %": result.iou, "accuracy %": result.accuracy}
    if isinstance(result, FullScores):
        columns["Boundary IoU %"] = result.boundary.iou
    columns["pixels %"] = result.share
    table = Table("class", title=f"{split}: {result.images} images")
    for heading in columns:
        table.add_column(heading, justify="right")
    for name in result.iou:
        if name not in result.absent:
            table.add_row(shown(name), *(_percent(values[name]) for values in columns.values()))
    console().print(table)
    scores: dict[str, float | None] = {
        "mIoU (classes of the masks)": result.miou,
        "frequency-weighted IoU": result.frequency_weighted_iou,
        "pixel accuracy": result.pixel_accuracy,
        "mean accuracy": result.mean_accuracy,
    }
    if isinstance(result, FullScores):
        scores["Boundary IoU"] = result.boundary.miou
        scores["expected calibration error"] = result.calibration.expected_error
    totals = Table("over all images", Column("%", justify="right"))
    for name, value in scores.items():
        totals.add_row(name, _percent(value))
    console().print(totals)
    if result.absent:
        say(f"classes that do not occur in these images: {', '.join(result.absent)}")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
