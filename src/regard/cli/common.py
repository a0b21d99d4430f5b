"""What the commands share: hardware options, what is said to people, and where pictures go."""

from typing import Any, Literal

from regard.backbones import Backbone, build_backbone
from regard.say import console
from regard.training.hardware import Hardware

Accelerator = Literal["auto", "cpu", "gpu"]
Precision = Literal["auto", "32-true", "16-mixed", "bf16-mixed"]


def table(result: dict[str, Any], split: str) -> None:
    """The scores of a segmentation: of `runs.summary` or `runs.full_summary`."""
    from rich.table import Column, Table

    columns = {"IoU %": result["iou"], "accuracy %": result["accuracy"]}
    if "boundary" in result:
        columns["Boundary IoU %"] = result["boundary"]["iou"]
    columns["pixels %"] = result["share"]
    table = Table("class", title=f"{split}: {result['images']} images")
    for heading in columns:
        table.add_column(heading, justify="right")
    for name in result["iou"]:
        if name not in result["absent"]:
            table.add_row(name, *(_percent(values[name]) for values in columns.values()))
    console().print(table)
    scores = {
        "mIoU": result["miou"],
        "frequency-weighted IoU": result["frequency_weighted_iou"],
        "pixel accuracy": result["pixel_accuracy"],
        "mean accuracy": result["mean_accuracy"],
    }
    if "boundary" in result:
        scores["Boundary IoU"] = result["boundary"]["miou"]
        scores["expected calibration error"] = result["calibration"]["expected_error"]
    totals = Table("over all images", Column("%", justify="right"))
    for name, value in scores.items():
        totals.add_row(name, _percent(value))
    console().print(totals)
    if result["absent"]:
        console().print(f"classes that do not occur in these images: {', '.join(result['absent'])}")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def open_backbone(
    name: str, weights: str | None, pretrained: bool, options: dict[str, Any] | None, accelerator: Accelerator
) -> Backbone:
    """The backbone that a command asks for, in eval mode, on its device."""
    device = Hardware(accelerator).device
    return build_backbone(name, pretrained, weights, **(options or {})).eval().to(device)
