"""What a Trainer is fed: batches of views for pre-training, batches of images and masks for segmentation."""

import ctypes
import functools
import multiprocessing
import os
import signal
import sys
from multiprocessing.util import Finalize
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from regard.data.datasets.base import Chunked, Dataset, MaskDataset
from regard.data.loading.augment import TrainTransform
from regard.data.loading.device_views import finish
from regard.data.loading.order import EpochSampler
from regard.data.loading.samples import CentreCrops, TrainPairs, Views, WholePairs
from regard.errors import InputError

MOST_WHOLE = 16  # whole images in a forward pass of validation: without gradients, what a GPU of any size can hold


class _Resumable(L.LightningDataModule):
    """Remembers in a checkpoint how many batches of the epoch are done, so that a resumed run goes on behind them.

    batch_size: images per optimizer step, over all processes and `accumulate` forward passes.
    """

    done = 0  # batches of the epoch that is gone on with

    def __init__(self, trained_on: Dataset, batch_size: int, workers: int, seed: int, accumulate: int) -> None:
        super().__init__()
        self.trained_on, self.batch_size, self.workers = trained_on, batch_size, workers
        self.seed, self.accumulate = seed, accumulate
        self.chunked = trained_on if isinstance(trained_on, Chunked) else None

    @property
    def share(self) -> int:
        """Images per forward pass of one process."""
        return self.batch_size // (self.world * self.accumulate)

    def state_dict(self) -> dict[str, Any]:
        """The position in the epoch, and what its order depends on; `done` is 0 where the epoch is whole."""
        assert self.trainer is not None
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        done = 0 if progress.processed == self.trainer.num_training_batches else progress.processed
        return {"done": done, "order": self._order}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there. Raises InputError in mid-epoch where the images would come in another order."""
        self.done = state_dict["done"]
        if self.done and state_dict["order"] != self._order:
            raise InputError(
                "the run was stopped in the middle of an epoch, and its data is not in the same chunks any more, or "
                "is read by another number of processes: both as they were, or a new --out, would work"
            )

    @property
    def _order(self) -> list[int]:
        """What the order of images depends on that lie in chunks: the number of processes, and the chunks' lengths."""
        return [] if self.chunked is None else [self.world, *self.chunked.chunks]

    def sampler(self, batch: int) -> EpochSampler:
        """The order of the epochs from here on, `batch` images per step."""
        skip, count = self.done * self.share, len(self.trained_on)
        return EpochSampler(count, self.seed, batch, self.rank, self.world, self.epoch, skip, self.chunked)

    @property
    def rank(self) -> int:
        """Which of the processes that train together this one is."""
        return self.trainer.global_rank if self.trainer else 0

    @property
    def epoch(self) -> int:
        """Which one is loaded, or comes next where one is done, as Lightning tells samplers.

        Its `current_epoch` is one behind in a run that goes on from the end of an epoch, until loading has begun.
        """
        progress: Any = self.trainer.fit_loop.epoch_progress.current if self.trainer else None
        return progress.processed if progress else 0

    @property
    def world(self) -> int:
        """How many processes train together."""
        return self.trainer.world_size if self.trainer else 1


class PretrainData(_Resumable):
    """Batches for pre-training: lists of what `Views` give of each image, a tensor (batch, ...) for each.

    Views come as uint8 (batch, 3, size, size). Images leave the workers as rows of pixels, as they are decoded, and are
    never copied into planes: a batch is channels_last, as convolutions like it. Views that come only cropped and
    flipped (`Views.on_device`) are finished on the device, from the same draws.

    batch_size: images per optimizer step, over all processes and `accumulate` parts: a forward pass gets its share.
    bank, queries: labelled images for kNN, validated with: each query asks the bank. None where nothing is labelled.
    """

    def __init__(
        self,
        views: Views,
        batch_size: int,
        workers: int = 0,
        accumulate: int = 1,
        bank: CentreCrops | None = None,
        queries: CentreCrops | None = None,
    ) -> None:
        super().__init__(views.dataset, batch_size, workers, views.seed, accumulate)
        self.views = views
        self.probes = [probe for probe in (bank, queries) if probe is not None]

    def train_dataloader(self) -> DataLoader:
        """Whole batches only: the batch is part of the losses."""
        return DataLoader(
            self.views,
            self.share,
            sampler=self.sampler(self.batch_size),
            drop_last=True,
            **loading(self.workers),
        )

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> list[Tensor]:
        """Images as (batch, 3, size, size), views that come only cropped finished; Lightning calls this."""
        count = len(self.views.views)
        is_drawn = len(batch) > count and batch[count].ndim == 3  # images of validation come with their labels alone
        if self.views.on_device and is_drawn:
            rows = batch[count]
            views = [finish(batch[n], rows[:, n], view) for n, view in enumerate(self.views.views)]
            return [*views, *batch[count + 1 :]]
        return [item.permute(0, 3, 1, 2) if item.ndim == 4 else item for item in batch]

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

    batch_size: images per optimizer step, over all processes and `accumulate` forward passes; the last, smaller step of
                an epoch is left out when there are others.

    The forward passes of validation hold the same images for any number of processes, so that its counts do not depend
    on that by a single pixel: a process takes every world-th of them.
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
        super().__init__(train, batch_size, workers, seed, accumulate)
        self.train, self.val, self.transform = train, val, transform

    def train_pairs(self) -> TorchDataset:
        """(epoch, index) -> a sample."""
        return TrainPairs(self.train, self.transform, self.seed)

    def train_dataloader(self) -> DataLoader:
        """Shuffled by (seed, epoch); as many batches for each process."""
        step = self.batch_size if len(self.train) >= self.batch_size else 1
        return DataLoader(self.train_pairs(), self.share, sampler=self.sampler(step), **loading(self.workers))

    def val_dataloader(self) -> DataLoader:
        """Every validation image once, in order: of many processes, each a part."""
        batch = min(self.batch_size // self.accumulate, MOST_WHOLE)
        return whole_loader(self.val, self.transform.whole, batch, self.workers, self.rank, self.world)


def whole_loader(
    dataset: MaskDataset, size: int, batch_size: int, workers: int = 0, rank: int = 0, world: int = 1
) -> DataLoader:
    """Lists of (image, mask) of whole images, in order; of `world` processes, every world-th list.

    A process for which none is left gets an empty one: a loader without batches would not be validated with, and the
    other processes would wait for it.
    """
    starts = range(0, len(dataset), batch_size)[rank::world]
    batches = [list(range(start, min(start + batch_size, len(dataset)))) for start in starts] or [[]]
    return DataLoader(WholePairs(dataset, size), batch_sampler=batches, collate_fn=list, **loading(workers))


def loading(workers: int) -> dict[str, Any]:
    """How every DataLoader of ours loads: with so many processes, but no more than there are cores for them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(workers, cores)
    # A worker is a copy of this process, as it was before Python 3.14: a new one would take seconds to import torch.
    forked = workers and sys.platform == "linux" and multiprocessing.get_start_method(allow_none=True) != "spawn"
    return {
        "num_workers": workers,
        "multiprocessing_context": "fork" if forked else None,
        "persistent_workers": workers > 0,
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": functools.partial(_begin_worker, _is_ending(os.getpid())) if workers else None,
    }


@functools.cache
def _is_ending(process: int) -> Any:
    """Becomes true, for workers too, when the process ends, before it asks its children to end and waits for them."""
    flag = multiprocessing.RawValue(ctypes.c_bool, False)
    Finalize(None, setattr, (flag, "value", True), exitpriority=0)
    return flag


def _begin_worker(is_ending: Any, worker: int) -> None:
    """A job manager may signal every process of a run; the training process answers, and then ends its workers.

    So it does by SIGTERM for those of a loader that it still holds when it ends.
    """
    for name in ("SIGUSR1", "SIGINT"):
        if hasattr(signal, name):  # SIGUSR1 is not known on Windows
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0) if is_ending.value else None)
