"""Which images heads are scored over, and each as the protocol takes it."""

from array import array
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from regard.data.datasets.base import Chunked, Dataset, MaskDataset
from regard.data.datasets.voc import VOC2012
from regard.data.groups import group_numbers
from regard.data.loading.augment import nearest
from regard.data.loading.draws import ORDER, VIEW, draws
from regard.data.loading.order import WINDOW
from regard.data.loading.samples import planes_of
from regard.data.loading.views import View
from regard.data.reading_masks import read_mask
from regard.errors import InputError
from regard.scoring.joint_counts import GROUPS
from regard.scoring.probe_columns import folds
from regard.scoring.protocol import Protocol


class Chosen:
    """At most `most` images of a dataset, evenly spaced and in a fixed random order: neighbours in a listing are often
    frames of one video, and the image before stands for an unrelated one.

    rule: of the groups that images belong to, see `groups_of`.

    Of a pack it is random within windows of `WINDOW` chunks, one window after the other, so that each chunk is fetched
    once; of a pack that is no larger, the order is that of any other dataset.
    """

    def __init__(self, dataset: Dataset, most: int | None = None, rule: str | None = None) -> None:
        self.dataset, self.palette, self.ignore_index = dataset, dataset.palette, dataset.ignore_index
        self.classes = dataset.classes if isinstance(dataset, MaskDataset) else ()  # those of masks
        count = min(most or len(dataset), len(dataset))
        order = draws(ORDER, 0, count).permutation(count)
        numbers = order * len(dataset) // count
        if isinstance(dataset, Chunked):
            windows = np.searchsorted(np.cumsum(dataset.chunks), numbers, side="right") // WINDOW
            numbers = numbers[np.argsort(windows, kind="stable")]
        self.numbers = array("q", numbers.tobytes())  # a fifth of what a list would take
        self.rule = rule
        self.groups = None if rule is None else group_numbers(self, rule)  # None: each image is one

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

    number: of the image among those chosen; where images belong together, of its union of groups. elsewhere: the labels
            of the image before, of another group; None where there is none, as for a single image.
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
        self.parts = None if data.groups is None else folds(data.groups.tolist(), GROUPS)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        image, labelled = self.data.image(index), bool(self.data.classes)
        masks = [self.data.mask(index)] if labelled else []
        if labelled and self.protocol.objects == "instance":
            masks.append(self.data.instances(index))
        pixels, masks = self.protocol.prepare(image, masks)
        labels, instances, *_ = *(torch.from_numpy(mask).long() for mask in masks), None, None
        elsewhere = self._elsewhere(index, pixels.shape[:2]) if labelled else None
        views = places = None
        if self.view is not None:
            number = self.data.numbers[index]
            drawn = [self.view.placed(image, draws(VIEW, self.seed, 0, number, n)) for n in range(2)]
            views = torch.stack([planes_of(view) for view, _ in drawn])
            places = torch.tensor([place for _, place in drawn])
        part = torch.tensor(index) if self.parts is None else self.parts[index]
        return Sample(part, planes_of(pixels), labels, elsewhere, instances, views, places)

    def _elsewhere(self, index: int, shape: tuple[int, int]) -> Tensor | None:
        """The labels of the image before that is of another group, going round, brought to the shape of this one."""
        groups, count = self.data.groups, len(self)
        before = ((index - step) % count for step in range(1, count))
        other = next((i for i in before if groups is None or groups[i] != groups[index]), None)
        if other is None:
            return None
        mask = self.data.mask(other)
        near = nearest(mask, shape)
        return torch.from_numpy(self.protocol.void(near)).long()
