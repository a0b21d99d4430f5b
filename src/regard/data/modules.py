"""What a Trainer is fed: batches of views for pre-training, batches of images and masks for segmentation."""

import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from regard.data.augment import ORDER, TrainTransform, draws
from regard.data.datasets import Dataset, MaskDataset
from regard.data.device_views import finish
from regard.data.packed import Chunked
from regard.data.samples import CentreCrops, TrainPairs, Views, WholePairs
from regard.data.views import View

MOST_WHOLE = 16  # whole images in a forward pass of validation: without gradients, what a GPU of any size can hold

WINDOW = 16  # chunks that an epoch is shuffled within at a time: about 1 GB of them
WITHIN = 101  # a purpose of a draw, beside those of `augment`


class EpochSampler(Sampler):
    """Yields (epoch, index): the order of an epoch is a function of (seed, epoch), known to every worker and rank.

    Lightning calls `set_epoch` at the start of each epoch; but of a resumed run's first one only after its workers have
    begun, so that one is given here.

    batch:       images per optimizer step, over all ranks; images of an epoch that do not fill one are left out.
    rank, world: of `world` processes, this one takes every world-th image. So the images of a step, all ranks
                 together, are the same for any number of ranks.
    epoch, skip: the first epoch, and how many of this rank's images of it a resumed run has seen already.
    chunked:     the dataset itself where its images lie in chunks, which are then read one after the other: chunks are
                 permuted, each rank takes a contiguous run of their images, as long as the others', and images are
                 shuffled within windows of 16 chunks of it. So no two ranks read the same chunk but where their runs
                 meet; and the images of a step depend on the number of ranks.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        batch: int = 1,
        rank: int = 0,
        world: int = 1,
        epoch: int = 0,
        skip: int = 0,
        chunked: Chunked | None = None,
    ) -> None:
        self.count, self.used, self.seed, self.epoch = count, count - count % batch, seed, epoch
        self.rank, self.world, self.skip, self.chunked = rank, world, skip, chunked

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.chunked is not None:
            return self.used // self.world
        return len(range(self.rank, self.used, self.world))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        if self.chunked is not None:
            seen, self.skip = self.skip, 0
            return self._by_chunks(self.chunked, self.epoch, seen)
        order = draws(ORDER, self.seed, self.epoch).permutation(self.count)[self.rank : self.used : self.world]
        order, self.skip = order[self.skip :], 0
        return ((self.epoch, int(index)) for index in order)

    def _by_chunks(self, chunked: Chunked, epoch: int, seen: int) -> Iterator[tuple[int, int]]:
        """(epoch, index) behind those seen, window by window, each made when it comes; the next one is fetched then."""
        windows, asked = self._windows(chunked.chunks, epoch), 0
        for number, window in enumerate(windows):
            images = sum(stop - start for _, start, stop in window)
            if seen >= images:
                seen -= images
                continue
            for coming in windows[max(asked, number) : number + 2]:
                chunked.prefetch([chunk for chunk, _, _ in coming])
            asked = number + 2
            indices = np.concatenate([np.arange(start, stop) for _, start, stop in window])
            shuffled = draws(WITHIN, self.seed, epoch, self.rank, number).permutation(indices)
            yield from ((epoch, index) for index in shuffled[seen:].tolist())
            seen = 0

    def _windows(self, chunks: Sequence[int], epoch: int) -> list[list[tuple[int, int, int]]]:
        """This rank's run, as lots of `WINDOW` pieces of chunks: (chunk, first image, the one behind the last)."""
        rng, share = draws(ORDER, self.seed, epoch), self.used // self.world
        order = rng.permutation(len(chunks))
        lengths = np.asarray(chunks)
        ends = np.cumsum(lengths[order])  # where each chunk ends in the order
        shifts = np.cumsum(lengths)[order] - ends  # from a place in the order to the number of the image there
        # What does not fill a batch is left out. It is no end of a chunk each time, since the runs begin anywhere.
        place = (int(rng.integers(self.count)) + self.rank * share) % self.count
        pieces = []
        while share > 0:
            at = int(np.searchsorted(ends, place, side="right"))
            stop = min(int(ends[at]), place + share)
            pieces.append((int(order[at]), place + int(shifts[at]), stop + int(shifts[at])))
            share -= stop - place
            place = stop % self.count
        return [pieces[first : first + WINDOW] for first in range(0, len(pieces), WINDOW)]


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
    on_device:  workers only crop and flip, and colours, blur and solarize follow on the device, from the same draws.

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
        on_device: bool = False,
    ) -> None:
        super().__init__()
        self.dataset, self.views, self.batch_size, self.workers, self.seed = dataset, views, batch_size, workers, seed
        self.accumulate, self.labelled, self.placed, self.on_device = accumulate, labelled, placed, on_device
        self.probes = [probe for probe in (bank, queries) if probe is not None]

    @property
    def share(self) -> int:
        """Images per forward pass of one process."""
        return self.batch_size // (self.world * self.accumulate)

    def train_dataloader(self) -> DataLoader:
        """Whole batches only: the batch is part of the losses."""
        skip = self.done * self.share
        return DataLoader(
            Views(self.dataset, self.views, self.seed, self.labelled, self.placed, self.on_device),
            self.share,
            sampler=EpochSampler(
                len(self.dataset),
                self.seed,
                self.batch_size,
                self.rank,
                self.world,
                self.epoch,
                skip,
                _chunked(self.dataset),
            ),
            drop_last=True,
            **loading(self.workers),
        )

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> list[Tensor]:
        """Finishes views that come only cropped, so that a method sees no difference; Lightning calls this."""
        count = len(self.views)
        is_drawn = len(batch) > count and batch[count].ndim == 3  # images of validation come with their labels alone
        if not (self.on_device and is_drawn):
            return batch
        rows = batch[count]
        views = [finish(batch[n], rows[:, n], view) for n, view in enumerate(self.views)]
        return [*views, *batch[count + 1 :]]

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
        super().__init__()
        self.train, self.val, self.transform = train, val, transform
        self.batch_size, self.workers, self.seed, self.accumulate = batch_size, workers, seed, accumulate

    @property
    def share(self) -> int:
        """Images per forward pass of one process."""
        return self.batch_size // (self.world * self.accumulate)

    def train_pairs(self) -> TorchDataset:
        """(epoch, index) -> a sample."""
        return TrainPairs(self.train, self.transform, self.seed)

    def train_dataloader(self) -> DataLoader:
        """Shuffled by (seed, epoch); as many batches for each process."""
        step = self.batch_size if len(self.train) >= self.batch_size else 1
        skip = self.done * self.share
        return DataLoader(
            self.train_pairs(),
            self.share,
            sampler=EpochSampler(
                len(self.train), self.seed, step, self.rank, self.world, self.epoch, skip, _chunked(self.train)
            ),
            **loading(self.workers),
        )

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


def _chunked(dataset: Dataset) -> Chunked | None:
    """The dataset, if its images lie in chunks."""
    return dataset if isinstance(dataset, Chunked) else None


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
