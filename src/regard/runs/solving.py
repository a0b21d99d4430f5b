"""The head `ridge`: solved in closed form, on the patches of whole training images, in the place of a training.

Rows, penalties and the choice of both are those of `regard probe` (`scoring.probe_training`). Columns are the features
of all levels on the head's grid, and with fusion concat the salience of every map that it sees. The solution is written
into the head and the fusion as they are: what is kept is a segmentation like any other.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from regard.attention.metrics import cell_counts
from regard.backbones import Features, device_of, eval_mode, normalize
from regard.data.datasets.base import MaskDataset
from regard.data.groups import groups_of
from regard.data.loading.modules import loading
from regard.data.loading.samples import WholePairs
from regard.data.loading.wrapped import Fraction, WithOthers
from regard.data.source import some_of
from regard.data.survey import evenly
from regard.errors import InputError
from regard.evaluation.scores import confusion, scores, torch_counts
from regard.evaluation.statistics import score
from regard.pictures.contact_sheet import PICTURES, SHEET, prediction_sheet
from regard.pictures.draw import save_png
from regard.results import CrossValidated, Solved
from regard.runs.extras import Cache
from regard.runs.feature_cache import whole_features
from regard.runs.run import mask_scores
from regard.say import console, say
from regard.scoring.probe_columns import Layout, Patches
from regard.scoring.probe_training import Choice, Rows, Training, Variant
from regard.segmentation.fusions import ConcatFusion
from regard.segmentation.heads import RidgeHead
from regard.segmentation.inference import predict_at
from regard.segmentation.model import SegmentationModel
from regard.settings import Hardware, SegmentSettings

RANK = 1e-5  # of the largest singular value of slopes in float32: what is less is rounding
LOST = 1e-3  # of what maps add to logits, at most, on the way through the features
FEATURES, WITH_MAPS = ("all levels", ""), ("all levels", "+ maps")
Whole = tuple[Features, tuple[int, int], Int[Tensor, "height width"]]  # the size that was fed; the mask at its own


class Images:
    """The features of whole images, from a cache where there is one."""

    def __init__(self, model: SegmentationModel, size: int, hardware: Hardware, cache: Cache | None) -> None:
        self.model, self.size, self.hardware, self.cache = model, size, hardware, cache

    def of(self, dataset: MaskDataset, words: str) -> Iterator[Whole]:
        """Of every image, in order; of a `Fraction`, each once. With a cache, the whole that it is a share of is read
        the first time.
        """
        numbers = list(range(len(dataset)))
        if isinstance(dataset, Fraction):
            numbers, dataset = dataset.numbers, dataset.dataset
        dataset = WithOthers(dataset) if self.model.planes > 3 else dataset
        samples: TorchDataset = WholePairs(dataset, self.size)
        if self.cache is not None:
            samples = whole_features(self.cache, self.model, dataset, self.size, self.hardware)
        loader = DataLoader(samples, 1, sampler=numbers, collate_fn=list, **loading(self.hardware.workers))
        bar = track(loader, words, len(numbers), transient=True, console=console(), disable=not self.hardware.bar)
        for (sample,) in bar:
            yield self._read(*sample)

    def _read(self, image: Tensor | list[Tensor], *rest: Any) -> Whole:
        *size, mask = rest
        device = device_of(self.model)
        if size:
            tensors = [tensor.unsqueeze(0).to(device) for tensor in image]
            height, width = size[0]
            return self.model.from_tensors(tensors), (int(height), int(width)), mask.to(device)
        assert isinstance(image, Tensor)
        with torch.autocast(device.type, self.hardware.autocast, enabled=self.hardware.autocast is not None):
            found = self.model.features(normalize(image.unsqueeze(0).to(device)))
        return found, (image.shape[-2], image.shape[-1]), mask.to(device)


@torch.no_grad()
def solve_head(
    model: SegmentationModel, images: Images, train: MaskDataset, settings: SegmentSettings, disk: Path, crossed: bool
) -> tuple[Solved, CrossValidated | None]:
    """Give the head its weights, and those of maps to the fusion. disk: a folder that takes the rows, and, `crossed`,
    a sheet of answers.

    crossed: also score each image by what the other folds alone come to, with the penalty and the weights of classes
             that are chosen on all folds.

    Raises InputError where every pixel of the masks is void, and for an image that is in no group.
    """
    head, fusion, classes = model.head, model.fusion, len(train.classes)
    assert isinstance(head, RidgeHead)
    once = train.once() if isinstance(train, Fraction) else train
    groups = groups_of([once.name(i) for i in range(len(once))], settings.groups)
    counts = {"features": head.classify.in_channels}
    if isinstance(fusion, ConcatFusion):
        counts["maps"] = sum(len(fusion.kept[i]) for i in fusion.reads)
    layout = _layout(counts, model.backbone.strides[0])
    with eval_mode(model), Rows(disk, layout, classes, groups) as rows:
        for features, size, mask in images.of(train, "reading training images"):
            rows.add(_patches(model, features, size, mask, classes))
        training = Training(rows, range(len(once)))
        variants = {FEATURES: Variant(layout.of("features"))}
        if "maps" in counts:
            variants[WITH_MAPS] = Variant(layout.of("maps"), FEATURES)
        choice = list(training.choose(variants).values())[-1]
        mean, deviation = (part[: counts["features"]].float() for part in rows.standard)

        def put(solution: Float[Tensor, "terms classes"]) -> None:
            intercept, *slopes = solution.split([1, *counts.values()])
            head.set_linear(slopes[0], intercept[0], mean, deviation)
            if isinstance(fusion, ConcatFusion):
                _set_maps(model, fusion, slopes[0], slopes[1])

        found = _cross_validated(model, images, train, training, choice, put, disk) if crossed else None
        put(training.solve(choice))
    solved = Solved(
        power=choice.power, penalty=choice.penalty, ratio=choice.ratio, held_out=choice.miou, on_edge=choice.on_edge
    )
    return solved, found


def _cross_validated(
    model: SegmentationModel,
    images: Images,
    train: MaskDataset,
    training: Training,
    choice: Choice,
    put: Callable[[Float[Tensor, "terms classes"]], None],
    disk: Path,
) -> CrossValidated:
    """put: gives the model a solution. disk: gets a sheet of some answers."""
    fold_of, groups = training.fold_of.tolist(), training.rows.groups
    folds = [training.solve(choice, fold) for fold in range(max(fold_of) + 1)]
    counts, drawn = [], []
    for i, seen in enumerate(images.of(train, "cross-validating")):
        put(folds[fold_of[i]])
        answer, mask = _answered(model, seen)
        counts.append(_counted(answer, mask, train))
        drawn += [answer.to(torch.uint8).cpu().numpy()] if i in evenly(len(fold_of), PICTURES) else []
    answers = iter(drawn)
    save_png(disk / SHEET, prediction_sheet(train, lambda image: next(answers)))
    every = torch.stack(counts).cpu().numpy()
    once = [
        name
        for name, pixels in zip(train.classes, torch.stack(training.rows.of_classes).T, strict=True)
        if len({fold for fold, there in zip(fold_of, pixels.tolist(), strict=True) if there}) == 1
    ]
    if once:
        say(f"images with {some_of(once)} are held out all at once, so no answer to them knows of it")
    numbers = np.unique(groups, return_inverse=True)[1]
    estimate = score([every], numbers).estimate()
    return CrossValidated(
        **mask_scores(train.classes, len(every), every.sum(axis=0)),
        folds=len(folds),
        groups=len(set(groups)) if len(set(groups)) < len(groups) else None,
        low=estimate.low,
        high=estimate.high,
    )


@torch.no_grad()
def validate(model: SegmentationModel, images: Images, val: MaskDataset) -> float:
    """mIoU, masks at their own size."""
    counts = torch_counts(len(val.classes), device_of(model))
    with eval_mode(model):
        for seen in images.of(val, "scoring"):
            counts += _counted(*_answered(model, seen), val)
    return scores(counts.cpu()).miou


def _answered(model: SegmentationModel, seen: Whole) -> tuple[Int[Tensor, "h w"], Int[Tensor, "h w"]]:
    """What is said of an image, and its mask, at the mask's own size."""
    features, size, mask = seen
    return predict_at(model.decode(features, size)[0], mask.shape), mask


def _counted(
    answer: Int[Tensor, "h w"], mask: Int[Tensor, "h w"], dataset: MaskDataset
) -> Int[Tensor, "classes classes"]:
    return confusion(answer, mask, len(dataset.classes), dataset.ignore_index)


def _layout(counts: dict[str, int], stride: int) -> Layout:
    parts, first = {}, 0
    for name, count in counts.items():
        parts[name] = range(first, first + count)
        first += count
    return Layout(parts, (), stride)


def _patches(
    model: SegmentationModel, features: Features, size: tuple[int, int], mask: Int[Tensor, "height width"], classes: int
) -> Patches:
    """The columns of each position of the head's grid, and the pixels of each class there, on the CPU."""
    head, fusion = model.head, model.fusion
    assert isinstance(head, RidgeHead)
    parts = [head.columns(features.pyramid)]
    if isinstance(fusion, ConcatFusion):
        grid = parts[0].shape[-2:]
        parts += [F.interpolate(s, size=grid, mode="bilinear", align_corners=False) for s in fusion.saliences(features)]
    near = F.interpolate(mask[None, None].float(), size=size, mode="nearest-exact")[0].long()
    pixels = cell_counts(near, classes, model.backbone.strides[0])
    columns = torch.cat(parts, dim=1).float()
    assert columns.shape[-2:] == pixels.shape[-2:], "a position has the pixels of one stride"
    return Patches(columns[0].flatten(1).T.cpu(), pixels[0].flatten(1).T.cpu())


def _set_maps(
    model: SegmentationModel,
    fusion: ConcatFusion,
    slopes: Float[Tensor, "channels classes"],
    of_maps: Float[Tensor, "maps classes"],
) -> None:
    """Put what maps add to the logits where the fusion adds them to features: V with V W = U, of the least norm.

    Shares of classes sum to 1, so slopes sum to 0 over classes: there is such a V where a level has as many channels
    as there are classes, less one. Raises InputError where there is none.
    """
    per_level, bias = slopes.double().split(model.backbone.channels), model.head.get_parameter("classify.bias")
    for i, own in zip(fusion.reads, of_maps.double().split([len(fusion.kept[i]) for i in fusion.reads]), strict=True):
        added = own @ torch.linalg.pinv(per_level[i], rtol=RANK)  # (maps, channels)
        if (added @ per_level[i] - own).norm() > LOST * own.norm():
            channels, classes = per_level[i].shape
            raise InputError(
                f"the {channels} channels of level {i} do not take what maps say of {classes} classes: "
                "take fusion none, or head linear"
            )
        shift = fusion.levels[i].set_linear(added.float())
        bias -= (shift.double() @ per_level[i]).to(bias)
