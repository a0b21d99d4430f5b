"""What loading processes make of a dataset: views, crops and pairs, as tensors; and datasets around a dataset."""

from collections.abc import Sequence
from functools import partial
from typing import cast

import cv2
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from regard.data.datasets.base import Dataset, Decoded, LabelDataset, MaskDataset
from regard.data.loading.augment import TrainTransform, centre_crop, short_side
from regard.data.loading.device_views import blur_radius, numbers_of
from regard.data.loading.draws import CROP, VIEW, draws
from regard.data.loading.views import Draw, View, least_for, resize
from regard.data.loading.wrapped import SkipUnreadable, WithOthers
from regard.errors import naming


class Views(TorchDataset):
    """(epoch, index) -> a list of views, each a uint8 (size, size, 3) tensor; then, if asked for, where they are in the
    image, (views, 5) as `View.placed`; last, if `labelled`, the class index.

    on_device: views are cropped and flipped alone, and behind them comes what is still to be done, (views, numbers) as
               of `device_views.numbers_of`.
    """

    def __init__(
        self,
        dataset: Dataset,
        views: Sequence[View],
        seed: int = 0,
        labelled: bool = False,
        placed: bool = False,
        on_device: bool = False,
    ) -> None:
        self.dataset, self.views, self.seed, self.labelled, self.placed = dataset, views, seed, labelled, placed
        self.on_device, self._radius = on_device, blur_radius(views)

    def __getitem__(self, key: tuple[int, int]) -> list[Tensor]:
        epoch, index = key
        image, drawn = self._drawn(epoch, index)
        if self.on_device:
            crops = [torch.from_numpy(draw.crop(image)) for draw in drawn]
            sample = [*crops, numbers_of(drawn, self._radius)]
        else:
            sample = [torch.from_numpy(draw(image)) for draw in drawn]
        if self.placed:
            sample.append(torch.tensor([draw.place for draw in drawn]))
        if self.labelled:
            sample.append(torch.tensor(cast(LabelDataset, self.dataset).label(index)))
        return sample

    def _drawn(self, epoch: int, index: int) -> tuple[np.ndarray, list[Draw]]:
        """The image, decoded once, and what each view is made by.

        Of a JPEG the draws come first, from the size in its header: a large one is then decoded at the smallest scale
        that enlarges no crop.
        """

        def draw(shape: tuple[int, int]) -> list[Draw]:
            rng = draws(VIEW, self.seed, epoch, index)  # one for all: to make it takes as long as to draw a view
            return [view.draw(shape, rng) for view in self.views]

        def read(dataset: Dataset, number: int) -> tuple[np.ndarray, list[Draw]]:
            drawn: list[Draw] = []

            def least(shape: tuple[int, int]) -> tuple[int, int]:
                drawn[:] = draw(shape)
                return least_for(drawn)

            # of images in folders and in packs; others are drawn
            image = dataset.decoded(number, least) if isinstance(dataset, Decoded) else dataset.image(number)
            return image, drawn or draw(image.shape[:2])

        if isinstance(self.dataset, SkipUnreadable):
            return self.dataset.read(index, partial(read, self.dataset.dataset))
        return read(self.dataset, index)


class CentreCrops(TorchDataset):
    """Number -> the middle square of an image, uint8 (size, size, 3), and its class; as kNN and linear probes see it.

    The short side is brought to 256/224 of `size` first, as is usual for ImageNet.
    indices: the images to use. Numbers past their end give an empty image of class -1, so that ranks come out even.
    """

    def __init__(self, dataset: Dataset, indices: Sequence[int], size: int) -> None:
        self.dataset, self.indices, self.size = dataset, indices, size

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        if number >= len(self.indices):
            return torch.zeros(self.size, self.size, 3, dtype=torch.uint8), -1
        index = self.indices[number]
        image = self.dataset.image(index)
        with naming(self.dataset.name(index)):
            crop = centre_crop(image, self.size)
        return torch.from_numpy(crop), cast(LabelDataset, self.dataset).label(index)


class TrainPairs(TorchDataset):
    """(epoch, index) -> uint8 image (3, size, size) and int64 mask (size, size).

    `WithOthers`, here and below, give six planes: behind those of the image the other one's, brought to its size and
    cut out alike.
    """

    def __init__(self, dataset: MaskDataset, transform: TrainTransform, seed: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = key
        mask = self.dataset.mask(index)
        with naming(self.dataset.name(index)):
            pairs = [
                self.transform(image, mask, draws(CROP, self.seed, epoch, index))
                for image in images_of(self.dataset, index)
            ]
        return torch.cat([planes_of(image) for image, _ in pairs]), torch.from_numpy(pairs[0][1]).long()


class WholePairs(TorchDataset):
    """index -> the whole image, its short side brought to `size`, and its mask at the mask's own size."""

    def __init__(self, dataset: MaskDataset, size: int) -> None:
        self.dataset, self.size = dataset, size

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with naming(self.dataset.name(index)):
            images = images_of(self.dataset, index)
            shape = short_side(images[0].shape[:2], self.size)
            small = [image if image.shape[:2] == shape else resize(image, shape) for image in images]
        return torch.cat([planes_of(image) for image in small]), torch.from_numpy(self.dataset.mask(index)).long()


def images_of(dataset: MaskDataset, index: int) -> list[UInt8[np.ndarray, "h w 3"]]:
    """The image, and behind it the other one of `WithOthers`, at the same size."""
    image = dataset.image(index)
    return [image, resize(dataset.other(index), image.shape[:2])] if isinstance(dataset, WithOthers) else [image]


def planes_of(image: np.ndarray) -> Tensor:
    """(h, w, 3) uint8 as a tensor (3, h, w)."""
    planes = np.empty((3, *image.shape[:2]), np.uint8)
    cv2.split(image, [planes[0], planes[1], planes[2]])  # many times faster than a copy of the transposed array
    return torch.from_numpy(planes)
