"""How much a trained segmentation loses without one of its attention heads."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal, NamedTuple, cast
import cv2
import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from regard.attention.metrics import BINS, EDGES
from regard.attention.overlap import LEAST_SHARED
from regard.backbones import Backbone, describe, device_of, from_description, normalize
from regard.backbones.base import Kind
from regard.data.loading.augment import ORDER, VIEW, draws, resize_pair, short_side
from regard.data.datasets.base import VOC2012, Dataset, MaskDataset
from regard.data.loading.modules import WINDOW, loading
from regard.data.packs.packed import Chunked
from regard.data.reading import read_mask
from regard.data.loading.samples import Cached, planes_of
from regard.data.loading.views import View, resize
from regard.errors import InputError
from regard.scoring.head_scores import GROUPS, POINTS, HeadScores
from regard.runs.run import Run
from regard.evaluation.statistics import difference, score
from regard.scoring.score import Chosen

def importance(run: Run, data: Chosen, blocks: Sequence[int]) -> dict[str, Any]:
    """How much a segmentation loses without each head: the drop in dataset-level mIoU, with 95% limits over images.

    {"miou": with all heads, "heads": {(block, head): {"importance", "importance_low", "importance_high"}}}. A drop can
    be negative: the run does better without that head. Heads are left out one at a time, without training again.
    """
    kept = Cached(data)
    whole = score([run.evaluate(kept)])
    heads = [(block, head) for block in blocks for head in range(run.model.backbone.block_heads[block])]
    found: dict[tuple[int, int], dict[str, float]] = {}
    for block, head in track(heads, "leaving out heads", transient=True, console=Console(stderr=True)):
        with run.model.backbone.without_head(block, head):
            drop = difference(whole, score([run.evaluate(kept)]))
        found[block, head] = {
            "importance": drop.mean,
            "importance_low": drop.low,
            "importance_high": drop.high,
        }
    return {"miou": whole.estimate().mean, "images": len(data), "size": run.size, "heads": found}


