"""Everything that scores of heads depend on, as every output carries it: the protocol, and what it was applied to."""

from collections.abc import Sequence
from importlib.metadata import version

import cv2
import torch

from regard.attention.metrics import BINS, CELLS, EDGES, HIGH_NORM
from regard.attention.overlap import LEAST_SHARED
from regard.backbones import Backbone
from regard.data.loading.views import View
from regard.evaluation.statistics import FEW
from regard.results import ScoreSetting
from regard.scoring.block_scores import POINTS
from regard.scoring.chosen import Chosen
from regard.scoring.joint_counts import GROUPS
from regard.scoring.protocol import SCALE, Protocol


def describe_setting(
    protocol: Protocol, backbone: Backbone, data: Chosen, source: str, split: str, weights: str, seed: int, views: bool
) -> ScoreSetting:
    """views: whether consistency was scored."""
    resize_rule = f"short side to {protocol.size}, aspect kept; area averaging to shrink, bicubic to enlarge (OpenCV)"
    if protocol.name == "dino":
        size = f"{protocol.size} x {protocol.size}"
        resize_rule = f"squashed to {size}, bilinear with antialiasing (Pillow, as torchvision's Resize)"
    count = len(data if data.groups is None else set(data.groups.tolist()))
    errors = f"over images, as if independent; of information a jackknife over {GROUPS} groups of them, by the image's "
    errors += f"place in the order modulo {GROUPS}"
    if data.groups is not None:
        errors = f"over {min(count, GROUPS)} unions of whole groups of images; of information a jackknife over these"
    return ScoreSetting(
        name=protocol.name,
        size=protocol.size,
        resize=resize_rule,
        mass=protocol.mass,
        kind=protocol.kind,
        blocks=list(protocol.blocks),
        masks="nearest, by pixel centres, to the size of the image"
        if data.classes
        else "none, so only the scores that need none",
        labels=_labels(protocol, data.classes) if data.classes else None,
        high_norm=f"patch tokens of a block's output longer than {HIGH_NORM:g} times the median of their image",
        views=_views(protocol.view(backbone)) if views else None,
        data=source,
        split=split,
        images=f"{len(data)} of {len(data.dataset)}, evenly spaced, in a fixed random order",
        groups=data.rule or "each image is one",
        group_count=count,
        few_groups=count < FEW,
        backbone=backbone.name,
        backbone_options=dict(backbone.options),
        positions=backbone.options.get("positions", "timm"),
        weights=weights,
        seed=seed,
        standard_errors=errors,
        versions={"torch": str(torch.__version__), "timm": version("timm"), "opencv": cv2.__version__},
    )


def _labels(protocol: Protocol, classes: Sequence[str]) -> dict[str, str]:
    background = "none" if protocol.background is None else f"{protocol.background} ({classes[protocol.background]})"
    return {
        "upsampling": "maps nearest, to the size of the image",
        "void": "background" if protocol.name == "dino" else "left out of everything",
        "objects": f"by {protocol.objects}",
        "background": background,
        "information": f"bits; {BINS} bins of weight x positions, edges {EDGES[0]:.3f} to {EDGES[-1]:.2f} "
        "half an octave apart; Miller-Madow correction by independent samples",
        "position": "information about the labels of the image before in the order of scoring (of the last, for "
        "the first; of another group), brought to the size of the image, nearest; it has the same bias",
        "information_beyond_position": f"information within each of {CELLS} x {CELLS} cells of the image, by their "
        "pixels, less the same about the labels of the image before (beyond_position_bias)",
    }


def _views(view: View) -> dict[str, float | str]:
    return {
        "count": "two per image, drawn by the seed and the image's number in the split",
        "side": float(view.size),
        "crop": f"{SCALE[0]:.0%} to {SCALE[1]:.0%} of the area, aspect 3/4 to 4/3, "
        "area averaging to shrink, bicubic to enlarge (OpenCV)",
        "flip": view.flip,
        "colour_changes": view.jitter,
        **dict(zip(("brightness", "contrast", "saturation", "hue"), view.strength, strict=True)),
        "grey": view.grey,
        "blur": view.blur,
        "solarize": view.solarize,
        "compared": f"mass in {POINTS} x {POINTS} cells of the overlap",
        "least_overlap": LEAST_SHARED,
        "least_overlap_of": "the area of the smaller view; pairs with less do not count",
        "elsewhere": "the first view of an image and the second view of the image before in the order of scoring, "
        "as if of one image; the first image has none before it, nor one of the same union of groups",
    }
