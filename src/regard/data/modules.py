"""What a Trainer is fed: batches of views for pre-training, batches of images and masks for segmentation."""

from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from regard.data.augment import CROP, ORDER, VIEW, TrainTransform, View, draws, resize_pair, short_side
from regard.data.datasets import Dataset, MaskDataset


class EpochSampler(Sampler):
    """Yields (epoch, index): the order of an epoch is a function of (seed, epoch), known to every worker.

    Lightning calls `set_epoch` at the start of each epoch.
    skip: images of the first epoch that a resumed run has seen already.
    """

    def __init__(self, count: int, seed: int, skip: int = 0) -> None:
        self.count, self.seed, self.skip, self.epoch = count, seed, skip, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order, self.skip = draws(ORDER, self.seed, self.epoch).permutation(self.count)[self.skip :], 0
        return ((self.epoch, int(index)) for index in order)


class _Resumable(L.LightningDataModule):
    """Remembers in a checkpoint how many batches of the epoch are done, so that a resumed run goes on behind them."""

    batch_size: int
    done = 0

    def state_dict(self) -> dict[str, int]:
        """The position in the epoch; 0 where the epoch is whole."""
        assert self.trainer is not None
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        done = progress.processed
        return {"done": 0 if done == self.trainer.num_training_batches else done}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on from there."""
        self.done = state_dict["done"]

    def sampler(self, count: int, seed: int) -> EpochSampler:
        """The order of the images, from where a checkpoint left off."""
        return EpochSampler(count, seed, self.done * self.batch_size)


class Cached:
    """A dataset whose decoded images and masks are kept in memory, until `limit` bytes are full."""

    def __init__(self, dataset: Dataset, limit: int = 2**30) -> None:
        self.dataset = dataset
        self.classes, self.palette, self.ignore_index = dataset.classes, dataset.palette, dataset.ignore_index
        self._kept: dict[tuple[str, int], np.ndarray] = {}
        self._free = limit

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, i: int) -> str:
        """As the dataset."""
        return self.dataset.name(i)

    def image(self, i: int) -> np.ndarray:
        """As the dataset; not to be written to."""
        return self._get("image", i)

    def mask(self, i: int) -> np.ndarray:
        """As the dataset; not to be written to."""
        return self._get("mask", i)

    def _get(self, what: str, i: int) -> np.ndarray:
        if (what, i) in self._kept:
            return self._kept[what, i]
        array = getattr(self.dataset, what)(i)
        if array.nbytes <= self._free:
            self._free -= array.nbytes
            self._kept[what, i] = array
        return array


def _tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


class Views(TorchDataset):
    """(epoch, index) -> a list of views, each a uint8 (3, size, size) tensor."""

    def __init__(self, dataset: Dataset, views: Sequence[View], seed: int) -> None:
        self.dataset, self.views, self.seed = dataset, views, seed

    def __getitem__(self, key: tuple[int, int]) -> list[Tensor]:
        epoch, index = key
        image = self.dataset.image(index)
        return [_tensor(view(image, draws(VIEW, self.seed, epoch, index, n))) for n, view in enumerate(self.views)]


class PretrainData(_Resumable):
    """Batches for Barlow Twins and DINO: a list with one uint8 tensor (batch, 3, size, size) per view."""

    def __init__(
        self, dataset: Dataset, views: Sequence[View], batch_size: int, workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__()
        self.dataset, self.views, self.batch_size, self.workers, self.seed = dataset, views, batch_size, workers, seed

    def train_dataloader(self) -> DataLoader:
        """Whole batches only: the batch is part of both losses."""
        return DataLoader(
            Views(self.dataset, self.views, self.seed),
            self.batch_size,
            sampler=self.sampler(len(self.dataset), self.seed),
            drop_last=True,
            **_loading(self.workers),
        )


class TrainPairs(TorchDataset):
    """(epoch, index) -> uint8 image (3, size, size) and int64 mask (size, size)."""

    def __init__(self, dataset: MaskDataset, transform: TrainTransform, seed: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = key
        rng = draws(CROP, self.seed, epoch, index)
        image, mask = self.transform(self.dataset.image(index), self.dataset.mask(index), rng)
        return _tensor(image), torch.from_numpy(mask).long()


class WholePairs(TorchDataset):
    """index -> the whole image, its short side brought to `size`, and its mask at the mask's own size."""

    def __init__(self, dataset: MaskDataset, size: int) -> None:
        self.dataset, self.size = dataset, size

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = self.dataset.image(index), self.dataset.mask(index)
        small, _ = resize_pair(image, mask, short_side(image.shape[:2], self.size))
        return _tensor(small), torch.from_numpy(mask).long()


class SegmentationData(_Resumable):
    """Augmented square crops to train on; whole images to validate on.

    Training batches are (images uint8, masks int64); validation batches are lists of such pairs, of any sizes.
    """

    def __init__(
        self,
        train: MaskDataset,
        val: MaskDataset,
        transform: TrainTransform,
        batch_size: int,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.train, self.val, self.transform = train, val, transform
        self.batch_size, self.workers, self.seed = batch_size, workers, seed

    def train_dataloader(self) -> DataLoader:
        """Shuffled by (seed, epoch); the last, smaller batch of an epoch is left out when there are others."""
        return DataLoader(
            TrainPairs(self.train, self.transform, self.seed),
            self.batch_size,
            sampler=self.sampler(len(self.train), self.seed),
            drop_last=len(self.train) > self.batch_size,
            **_loading(self.workers),
        )

    def val_dataloader(self) -> DataLoader:
        """Every validation image once, in order."""
        return whole_loader(self.val, self.transform.size, self.batch_size, self.workers)


def whole_loader(dataset: MaskDataset, size: int, batch_size: int, workers: int = 0) -> DataLoader:
    """Lists of (image, mask) of whole images, in order."""
    return DataLoader(WholePairs(dataset, size), batch_size, collate_fn=list, **_loading(workers))


def _loading(workers: int) -> dict[str, Any]:
    return {"num_workers": workers, "persistent_workers": workers > 0, "pin_memory": torch.cuda.is_available()}
