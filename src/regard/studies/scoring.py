"""What `regard score` measures, and by which protocol: loads images as the protocol says, and scores heads over them.

Two protocols. "regard", ours: whole images with their aspect, void pixels left out, every class but background an
object. "dino": how the figures of the DINO paper (Caron et al. 2021, figure 4) are measured, for comparison with them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from regard.backbones import Backbone, describe, device_of, from_description, normalize
from regard.backbones.base import Kind
from regard.data.augment import ORDER, VIEW, View, draws, resize, resize_pair, short_side
from regard.data.datasets import VOC2012, Dataset, MaskDataset, read_mask
from regard.data.modules import loading
from regard.data.samples import Cached
from regard.errors import InputError
from regard.evaluation.heads import GROUPS, POINTS, HeadScores
from regard.studies.runs import Run
from regard.studies.statistics import estimate_difference, estimate_miou

DINO_SIZE, DINO_MASS = 480, 0.6
SCALE = (0.4, 1.0)  # share of the image that a view for consistency takes: that of DINO's global views


@dataclass(frozen=True)
class Protocol:
    """How heads are scored. size: pixels; mass: of the attention that a mask holds.

    objects:    what is scored as one object of an image: a class, or an instance.
    background: the class that is no object; None where every class is one.
    """

    name: Literal["regard", "dino"]
    size: int
    mass: float
    kind: Kind
    blocks: tuple[int, ...]
    objects: Literal["class", "instance"] = "class"
    background: int | None = None

    def prepare(
        self, image: UInt8[np.ndarray, "h w 3"], masks: Sequence[UInt8[np.ndarray, "h w"]]
    ) -> tuple[UInt8[np.ndarray, "h2 w2 3"], list[UInt8[np.ndarray, "h2 w2"]]]:
        """An image and its masks at the size that the backbone sees."""
        if self.name == "dino":
            size = (self.size, self.size)
            squashed = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
            near = [cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT) for mask in masks]
            return squashed, [np.where(mask == 255, 0, mask).astype(np.uint8) for mask in near]
        size = short_side(image.shape[:2], self.size)
        small = resize(image, (0, 0, *image.shape[:2]), size) if image.shape[:2] != size else image
        return small, [resize_pair(image, mask, size)[1] for mask in masks]

    def describe(self, classes: Sequence[str]) -> dict[str, Any]:
        """In words and numbers, as every output carries it."""
        is_dino = self.name == "dino"
        background = "none" if self.background is None else f"{self.background} ({classes[self.background]})"
        labels = {
            "masks": "nearest, by pixel centres, to the size of the image",
            "upsampling": "maps nearest, to the size of the image",
            "void": "background" if is_dino else "left out of everything",
            "objects": f"by {self.objects}",
            "background": background,
            "information": f"bits; {BINS} bins of weight x positions, edges {EDGES[0]:.3f} to {EDGES[-1]:.2f} "
            "half an octave apart; Miller-Madow correction by independent samples",
            "position": "information about the labels of another image of the same shape, drawn at random",
        }
        resize_rule = (
            f"squashed to {self.size} x {self.size}, bilinear with antialiasing (Pillow, as torchvision's Resize)"
            if is_dino
            else f"short side to {self.size}, aspect kept; area averaging to shrink, bicubic to enlarge (OpenCV)"
        )
        return {
            "name": self.name,
            "size": self.size,
            "resize": resize_rule,
            "mass": self.mass,
            "kind": self.kind,
            "blocks": list(self.blocks),
            **(labels if classes else {"masks": "none, so only the scores that need none"}),
        }


def choose_protocol(
    name: Literal["regard", "dino"],
    backbone: Backbone,
    classes: Sequence[str],
    size: int | None = None,
    mass: float | None = None,
    kind: Kind | None = None,
    blocks: Literal["levels", "all"] | Sequence[int] | None = None,
    objects: Literal["class", "instance"] = "class",
) -> Protocol:
    """A protocol with what is left open filled in; InputError for what it, or the backbone, does not allow."""
    if not backbone.block_heads:
        raise InputError(f"{backbone.name} has no attention maps: use a ViT or a Swin")
    if mass is not None and not 0 < mass < 1:
        raise InputError(f"--mass {mass:g} is no share of the attention: take one between 0 and 1, such as 0.6")
    if blocks == []:
        raise InputError("--blocks names no block: take levels, all, or numbers such as [0, -1]")
    if name == "dino":
        fixed = {"size": (size, DINO_SIZE), "mass": (mass, DINO_MASS), "kind": (kind, "cls")}
        for option, (given, value) in fixed.items():
            if given not in (None, value):
                raise InputError(
                    f"the DINO protocol has {option} {value}: leave out --{option}, or take --protocol regard"
                )
        if "cls" not in backbone.kinds:
            raise InputError(f"the DINO protocol is of CLS tokens, and {backbone.name} has none: use --protocol regard")
        chosen = backbone.chosen_blocks((-1,) if blocks is None else _numbers(blocks, backbone))
        return Protocol("dino", DINO_SIZE, DINO_MASS, "cls", chosen, objects, 0 if classes else None)
    background = 0 if classes and classes[0] == "background" else None
    chosen = backbone.chosen_blocks(_numbers(blocks, backbone))
    return Protocol("regard", size or 224, mass or 0.6, backbone.asked_kind(kind or True), chosen, objects, background)


def _numbers(blocks: str | Sequence[int] | None, backbone: Backbone) -> Sequence[int] | None:
    if blocks == "all":
        return range(len(backbone.block_heads))
    return None if blocks is None or isinstance(blocks, str) else blocks


class Chosen:
    """At most `most` images of a dataset, evenly spaced and in a fixed random order: neighbours in a listing are often
    frames of one video, and what position tells is told by the labels of the image before.
    """

    def __init__(self, dataset: Dataset, most: int | None = None) -> None:
        self.dataset, self.palette, self.ignore_index = dataset, dataset.palette, dataset.ignore_index
        self.classes = dataset.classes if isinstance(dataset, MaskDataset) else ()  # those of masks
        count = min(most or len(dataset), len(dataset))
        self.numbers = [int(i) * len(dataset) // count for i in draws(ORDER, 0, count).permutation(count)]

    def __len__(self) -> int:
        return len(self.numbers)

    def name(self, i: int) -> str:
        """As the dataset."""
        return self.dataset.name(self.numbers[i])

    def image(self, i: int) -> np.ndarray:
        """As the dataset."""
        return self.dataset.image(self.numbers[i])

    def mask(self, i: int) -> np.ndarray:
        """As the dataset."""
        return cast(MaskDataset, self.dataset).mask(self.numbers[i])

    def instances(self, i: int) -> np.ndarray:
        """The object of each pixel, from 1; 0 for none, 255 for void."""
        voc = cast(VOC2012, self.dataset)
        return read_mask(voc.root / voc.masks[self.numbers[i]].replace("SegmentationClass", "SegmentationObject"))

    def require_instances(self) -> None:
        """InputError where objects are not told apart."""
        if not isinstance(self.dataset, VOC2012) or not (self.dataset.root / "SegmentationObject").is_dir():
            raise InputError(
                "the data does not tell instances apart: a VOC 2012 tree with SegmentationObject/, "
                "or --objects class, would work"
            )


class Sample(NamedTuple):
    """One image as it is scored: uint8 (3, h, w), int64 (h, w); views (2, 3, side, side) and places (2, 5)."""

    image: Tensor
    labels: Tensor | None
    instances: Tensor | None
    views: Tensor | None
    places: Tensor | None


class Samples(TorchDataset):
    """index -> Sample. view: the distribution of the two views that consistency is scored on; None to leave it out."""

    def __init__(self, data: Chosen, protocol: Protocol, view: View | None, seed: int) -> None:
        self.data, self.protocol, self.view, self.seed = data, protocol, view, seed

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        image, labelled = self.data.image(index), bool(self.data.classes)
        masks = [self.data.mask(index)] if labelled else []
        if labelled and self.protocol.objects == "instance":
            masks.append(self.data.instances(index))
        pixels, masks = self.protocol.prepare(image, masks)
        labels, instances, *_ = *(torch.from_numpy(mask).long() for mask in masks), None, None
        views = places = None
        if self.view is not None:
            number = self.data.numbers[index]
            drawn = [self.view.placed(image, draws(VIEW, self.seed, 0, number, n)) for n in range(2)]
            views = torch.stack([_tensor(view) for view, _ in drawn])
            places = torch.tensor([place for _, place in drawn])
        return Sample(_tensor(pixels), labels, instances, views, places)


def _tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def score_heads(
    backbones: Mapping[str, Backbone],
    data: Chosen,
    protocol: Protocol,
    consistency: bool = True,
    batch_size: int = 16,
    workers: int = 0,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """For each backbone, all of one architecture: `HeadScores.result` over the same images and views.

    Raises InputError where the masks of all images are void.
    """
    if protocol.objects == "instance":
        data.require_instances()
    classes = len(data.classes)
    objects = [c for c in range(classes) if c != protocol.background]
    one = next(iter(backbones.values()))
    stride = max(one.block_strides)
    side = -(-protocol.size // stride) * stride  # so that every position of a view's grid is a whole one
    view = View(side, SCALE, blur=0.0, solarize=0.0, jitter=1.0, grey=0.0) if consistency else None
    samples = DataLoader(Samples(data, protocol, view, seed), batch_size, collate_fn=list, **loading(workers))
    scores = {
        name: HeadScores(backbone.eval(), protocol.kind, protocol.blocks, classes, objects, protocol.mass)
        for name, backbone in backbones.items()
    }
    for batch in track(samples, "scoring heads", len(samples), transient=True, console=Console(stderr=True)):
        for part in _same_shapes(batch):
            for name, backbone in backbones.items():
                _add(scores[name], part, device_of(backbone))
    results = {name: found.result() for name, found in scores.items()}
    first, *_ = results.values()
    if classes and any(block["label_entropy"] is None for block in first["blocks"]):
        raise InputError("no labelled pixel to score: every pixel of the masks is void")
    return results


def _same_shapes(batch: Sequence[Sample]) -> Iterator[list[Sample]]:
    """The samples of a batch, by shape of the image, in the order of their coming."""
    parts: dict[tuple[int, ...], list[Sample]] = {}
    for sample in batch:
        parts.setdefault(tuple(sample.image.shape), []).append(sample)
    yield from parts.values()


def _add(scores: HeadScores, part: Sequence[Sample], device: torch.device) -> None:
    def together(field: str) -> Tensor | None:
        found = [getattr(sample, field) for sample in part]
        return None if found[0] is None else torch.stack(found).to(device)

    scores.update(normalize(torch.stack([s.image for s in part]).to(device)), together("labels"), together("instances"))
    views, places = together("views"), together("places")
    if views is not None and places is not None:
        first, second = normalize(views[:, 0]), normalize(views[:, 1])
        scores.update_views(first, second, places[:, 0], places[:, 1])


def random_twin(backbone: Backbone, seed: int) -> Backbone:
    """The same architecture with random weights, on the same device.

    Of what `regard pretrain` made with this seed, they are the weights that it began with.
    """
    torch.manual_seed(seed)
    return from_description(describe(backbone)).to(device_of(backbone)).eval()


def importance(run: Run, data: Chosen, blocks: Sequence[int]) -> dict[str, Any]:
    """How much a segmentation loses without each head: the drop in dataset-level mIoU, with 95% limits over images.

    {"miou": with all heads, "heads": {(block, head): {"importance", "importance_low", "importance_high"}}}. A drop can
    be negative: the run does better without that head. Heads are left out one at a time, without training again.
    """
    kept = Cached(data)
    whole = run.evaluate(kept)[None]
    heads = [(block, head) for block in blocks for head in range(run.model.backbone.block_heads[block])]
    found: dict[tuple[int, int], dict[str, float]] = {}
    for block, head in track(heads, "leaving out heads", transient=True, console=Console(stderr=True)):
        with run.model.backbone.without_head(block, head):
            drop = estimate_difference(whole, run.evaluate(kept)[None])
        found[block, head] = {
            "importance": drop.mean,
            "importance_low": drop.low,
            "importance_high": drop.high,
        }
    return {"miou": estimate_miou(whole).mean, "images": len(data), "size": run.size, "heads": found}


def describe_setting(
    protocol: Protocol, backbone: Backbone, data: Chosen, source: str, split: str, weights: str, seed: int, views: bool
) -> dict[str, Any]:
    """Everything that a score depends on, for its output: the protocol, and what it was applied to."""
    about = {
        "data": source,
        "split": split,
        "images": f"{len(data)} of {len(data.dataset)}, evenly spaced, in a fixed random order",
        "backbone": backbone.name,
        "backbone_options": dict(backbone.options),
        "positions": backbone.options.get("positions", "timm"),
        "weights": weights,
        "seed": seed,
        "standard_errors": f"over images, as if independent; of information a jackknife over {GROUPS} groups of them",
    }
    if views:
        about["views"] = (
            f"two square crops of {SCALE[0]:.0%} to {SCALE[1]:.0%} of an image, flipped or not, colours changed; "
            f"compared at {POINTS} x {POINTS} points of their overlap"
        )
    return protocol.describe(data.classes) | about
