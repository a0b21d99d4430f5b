"""What `regard score` measures, and by which protocol: loads images as the protocol says, and scores heads over them.

Two protocols. "regard", ours: whole images with their aspect, void pixels left out, every class but background an
object. "dino": how the figures of the DINO paper (Caron et al. 2021, figure 4) are measured, for comparison with them.
"""

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
from regard.data.datasets.base import VOC2012, Dataset, MaskDataset
from regard.data.loading.augment import ORDER, VIEW, draws, resize_pair, short_side
from regard.data.loading.modules import WINDOW, loading
from regard.data.loading.samples import planes_of
from regard.data.loading.views import View, resize
from regard.data.packs.packed import Chunked
from regard.data.reading import read_mask
from regard.errors import InputError
from regard.scoring.head_scores import GROUPS, POINTS, HeadScores

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
            return squashed, [
                self.void(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)) for mask in masks
            ]
        size = short_side(image.shape[:2], self.size)
        small = resize(image, size) if image.shape[:2] != size else image
        return small, [resize_pair(image, mask, size)[1] for mask in masks]

    def void(self, mask: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
        """A mask with its void pixels as this protocol takes them: as background for DINO's, else as they are."""
        return np.where(mask == 255, 0, mask).astype(np.uint8) if self.name == "dino" else mask

    def view(self, backbone: Backbone) -> View:
        """The distribution of the two views of an image that consistency is scored on."""
        stride = max(backbone.block_strides)
        side = -(-self.size // stride) * stride  # so that every position of a view's grid is a whole one
        return View(side, SCALE, blur=0.0, solarize=0.0, jitter=1.0, grey=0.0)

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
            "position": "information about the labels of the image before in the order of scoring (of the last, for "
            "the first), brought to the size of the image, nearest; it has the same bias",
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
    frames of one video, and the image before stands for an unrelated one.

    Of a pack it is random within windows of `WINDOW` chunks, one window after the other, so that each chunk is fetched
    once; of a pack that is no larger, the order is that of any other dataset.
    """

    def __init__(self, dataset: Dataset, most: int | None = None) -> None:
        self.dataset, self.palette, self.ignore_index = dataset, dataset.palette, dataset.ignore_index
        self.classes = dataset.classes if isinstance(dataset, MaskDataset) else ()  # those of masks
        count = min(most or len(dataset), len(dataset))
        order = draws(ORDER, 0, count).permutation(count)
        numbers = order * len(dataset) // count
        if isinstance(dataset, Chunked):
            windows = np.searchsorted(np.cumsum(dataset.chunks), numbers, side="right") // WINDOW
            numbers = numbers[np.argsort(windows, kind="stable")]
        self.numbers = array("q", numbers.tobytes())  # a fifth of what a list would take

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
        voc = self.dataset if isinstance(self.dataset, VOC2012) else None
        if voc is None or not (voc.root / "SegmentationObject").is_dir():
            raise InputError(
                "the data does not tell instances apart: a VOC 2012 tree with SegmentationObject/, "
                "or --objects class, would work"
            )
        if not all(mask.startswith("SegmentationClass/") for mask in voc.masks):
            raise InputError(
                "the augmented train set does not tell instances apart: split val, or the path of "
                "SegmentationClass/ for the official train set, would work"
            )


class Sample(NamedTuple):
    """One image as it is scored: uint8 (3, h, w), int64 (h, w); views (2, 3, side, side) and places (2, 5).

    number: of the image among those chosen; elsewhere: the labels of the image before, None for a single image.
    """

    number: Tensor
    image: Tensor
    labels: Tensor | None
    elsewhere: Tensor | None
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
        elsewhere = self._elsewhere(index, pixels.shape[:2]) if labelled and len(self) > 1 else None
        views = places = None
        if self.view is not None:
            number = self.data.numbers[index]
            drawn = [self.view.placed(image, draws(VIEW, self.seed, 0, number, n)) for n in range(2)]
            views = torch.stack([planes_of(view) for view, _ in drawn])
            places = torch.tensor([place for _, place in drawn])
        return Sample(torch.tensor(index), planes_of(pixels), labels, elsewhere, instances, views, places)

    def _elsewhere(self, index: int, shape: tuple[int, int]) -> Tensor:
        """The labels of the image before, of the last for the first, brought to the shape of this one."""
        mask = self.data.mask((index - 1) % len(self))
        near = cv2.resize(mask, shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        return torch.from_numpy(self.protocol.void(near)).long()


def score_heads(
    backbones: Mapping[str, Backbone],
    data: Chosen,
    protocol: Protocol,
    consistency: bool = True,
    batch_size: int = 16,
    workers: int = 0,
    seed: int = 0,
    bar: bool = True,
) -> dict[str, dict[str, Any]]:
    """For each backbone, all of one architecture: `HeadScores.result` over the same images and views.

    bar: show progress, on stderr.

    Raises InputError where the masks of all images are void, and where attention is not finite.
    """
    if protocol.objects == "instance":
        data.require_instances()
    classes = len(data.classes)
    objects = [c for c in range(classes) if c != protocol.background]
    view = protocol.view(next(iter(backbones.values()))) if consistency else None
    samples = DataLoader(
        Samples(data, protocol, view, seed),
        batch_size,
        collate_fn=list,
        generator=torch.Generator(),  # a loader draws a seed for its workers, even where none is used
        **loading(workers),
    )
    scores = {
        name: HeadScores(backbone, protocol.kind, protocol.blocks, classes, objects, protocol.mass)
        for name, backbone in backbones.items()
    }
    console = Console(stderr=True)
    for batch in track(samples, "scoring heads", len(samples), transient=True, console=console, disable=not bar):
        for name, backbone in backbones.items():
            for part in _same_shapes(batch):
                _add_images(scores[name], part, device_of(backbone))
            if consistency:
                _add_views(scores[name], batch, device_of(backbone))
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


def _add_images(scores: HeadScores, part: Sequence[Sample], device: torch.device) -> None:
    images, *others = (
        _together(part, field, device) for field in ("image", "number", "labels", "elsewhere", "instances")
    )
    scores.update(normalize(images), *others)


def _add_views(scores: HeadScores, batch: Sequence[Sample], device: torch.device) -> None:
    """All of a batch in its order, which decides the image before: views are of one size."""
    views, places = (_together(batch, field, device) for field in ("views", "places"))
    scores.update_views(normalize(views[:, 0]), normalize(views[:, 1]), places[:, 0], places[:, 1])


def _together(samples: Sequence[Sample], field: str, device: torch.device) -> Any:
    """A tensor; None where the samples have none."""
    found = [getattr(sample, field) for sample in samples]
    return None if found[0] is None else torch.stack(found).to(device)


def random_twin(backbone: Backbone, seed: int) -> Backbone:
    """The same architecture with random weights, on the same device. Leaves the global generators as they were.

    Of what `regard pretrain` made with this seed, they are the weights that it began with.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's, where models are built: others are not touched
        return from_description(describe(backbone)).to(device_of(backbone)).eval()


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
        "standard_errors": f"over images, as if independent; of information a jackknife over {GROUPS} groups of them, "
        f"by the image's place in the order modulo {GROUPS}",
        "versions": {"torch": torch.__version__, "timm": version("timm"), "opencv": cv2.__version__},
    }
    if views:
        view = protocol.view(backbone)
        about["views"] = {
            "count": "two per image, drawn by the seed and the image's number in the split",
            "side": view.size,
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
            "as if of one image; the first image has none before it",
        }
    return protocol.describe(data.classes) | about
