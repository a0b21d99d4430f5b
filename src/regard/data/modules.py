"""What a Trainer is fed: batches of views for pre-training, batches of images and masks for segmentation."""

import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from regard.data.augment import ORDER, TrainTransform, View, draws
from regard.data.datasets import Dataset, MaskDataset
from regard.data.samples import CentreCrops, TrainPairs, Views, WholePairs


class EpochSampler(Sampler):
    """Yields (epoch, index): the order of an epoch is a function of (seed, epoch), known to every worker and rank.

    Lightning calls `set_epoch` at the start of each epoch; but of a resumed run's first one only after its workers have
    begun, so that one is given here.

    batch:       images per optimizer step, over all ranks; images of an epoch that do not fill one are left out.
    rank, world: of `world` processes, this one takes every world-th image. So the images of a step, all ranks
                 together, are the same for any number of ranks.
    epoch, skip: the first epoch, and how many of this rank's images of it a resumed run has seen already.
    """

    def __init__(
        self, count: int, seed: int, batch: int = 1, rank: int = 0, world: int = 1, epoch: int = 0, skip: int = 0
    ) -> None:
        self.count, self.used, self.seed, self.epoch = count, count - count % batch, seed, epoch
        self.rank, self.world, self.skip = rank, world, skip

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(range(self.rank, self.used, self.world))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = draws(ORDER, self.seed, self.epoch).permutation(self.count)[self.rank : self.used : self.world]
        order, self.skip = order[self.skip :], 0
        return ((self.epoch, int(index)) for index in order)


class _Resumable(L.LightningDataModule):
    """Remembers in a checkpoint how many batches of the epoch are done, so that a resumed run goes on behind them."""

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

    @property
    def rank(self) -> int:
        """Which of the processes that train together this one is."""
        return self.trainer.global_rank if self.trainer else 0

    @property
    def epoch(self) -> int:
        """Where the training is."""
        return self.trainer.current_epoch if self.trainer else 0

    @property
    def world(self) -> int:
        """How many processes train together."""
        return self.trainer.world_size if self.trainer else 1


class PretrainData(_Resumable):
    """Batches for pre-training: a list with one uint8 tensor (batch, 3, size, size) per view, and more if asked for.

    placed:     where the views are in their images, (batch, views, 5) as `View.placed`, comes after the views.
    labelled:   labels (batch,) come last.

    batch_size: images per optimizer step, over all processes and `accumulate` parts: a forward pass gets its share.
    bank, queries: labelled images for kNN, validated with: each query asks the bank. None where nothing is labelled.
    """

    def __init__(
        self,
        dataset: Dataset,
        views: Sequence[View],
        batch_size: int,
        workers: int = 0,
        seed: int = 0,
        accumulate: int = 1,
        labelled: bool = False,
        bank: CentreCrops | None = None,
        queries: CentreCrops | None = None,
        placed: bool = False,
    ) -> None:
        super().__init__()
        self.dataset, self.views, self.batch_size, self.workers, self.seed = dataset, views, batch_size, workers, seed
        self.accumulate, self.labelled, self.placed = accumulate, labelled, placed
        self.probes = [probe for probe in (bank, queries) if probe is not None]

    @property
    def share(self) -> int:
        """Images per forward pass of one process."""
        return self.batch_size // (self.world * self.accumulate)

    def train_dataloader(self) -> DataLoader:
        """Whole batches only: the batch is part of the losses."""
        skip = self.done * self.share
        return DataLoader(
            Views(self.dataset, self.views, self.seed, self.labelled, self.placed),
            self.share,
            sampler=EpochSampler(
                len(self.dataset), self.seed, self.batch_size, self.rank, self.world, self.epoch, skip
            ),
            drop_last=True,
            **loading(self.workers),
        )

    def val_dataloader(self) -> list[DataLoader]:
        """The bank, then the queries, shared out among the ranks; no loaders where nothing is labelled."""
        loaders = []
        for probe in self.probes:
            padded = len(probe) + -len(probe) % self.world
            numbers = range(self.rank, padded, self.world)
            loaders.append(DataLoader(probe, 128, sampler=numbers, **loading(self.workers)))
        return loaders


class SegmentationData(_Resumable):
    """Augmented square crops to train on; whole images to validate on.

    Training batches are (images uint8, masks int64); validation batches are lists of such pairs, of any sizes.

    batch_size: images per optimizer step, of `accumulate` forward passes; the last, smaller step of an epoch is left
                out when there are others.
    """

    def __init__(
        self,
        train: MaskDataset,
        val: MaskDataset,
        transform: TrainTransform,
        batch_size: int,
        workers: int = 0,
        seed: int = 0,
        accumulate: int = 1,
    ) -> None:
        super().__init__()
        self.train, self.val, self.transform = train, val, transform
        self.batch_size, self.workers, self.seed, self.accumulate = batch_size, workers, seed, accumulate

    @property
    def share(self) -> int:
        """Images per forward pass."""
        return self.batch_size // self.accumulate

    def train_pairs(self) -> TorchDataset:
        """(epoch, index) -> a sample."""
        return TrainPairs(self.train, self.transform, self.seed)

    def train_dataloader(self) -> DataLoader:
        """Shuffled by (seed, epoch)."""
        step = self.batch_size if len(self.train) >= self.batch_size else 1
        return DataLoader(
            self.train_pairs(),
            self.share,
            sampler=EpochSampler(len(self.train), self.seed, step, epoch=self.epoch, skip=self.done * self.share),
            **loading(self.workers),
        )

    def val_dataloader(self) -> DataLoader:
        """Every validation image once, in order."""
        return whole_loader(self.val, self.transform.whole, self.share, self.workers)


def whole_loader(dataset: MaskDataset, size: int, batch_size: int, workers: int = 0) -> DataLoader:
    """Lists of (image, mask) of whole images, in order."""
    return DataLoader(WholePairs(dataset, size), batch_size, collate_fn=list, **loading(workers))


def loading(workers: int) -> dict[str, Any]:
    """How every DataLoader of ours loads: with so many processes, but no more than there are cores for them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(workers, cores)
    return {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": _leave_signals_to_the_run,
    }


def _leave_signals_to_the_run(worker: int) -> None:
    """A job manager may signal every process of a run; the training process answers, and then ends its workers."""
    for name in ("SIGTERM", "SIGUSR1", "SIGINT"):
        if hasattr(signal, name):  # SIGUSR1 is not known on Windows
            signal.signal(getattr(signal, name), signal.SIG_IGN)
