"""What a Trainer is fed: batches of views for pre-training, batches of images and masks for segmentation."""

import hashlib
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from regard.data.datasets.base import Dataset, MaskDataset
from regard.data.loading.augment import ORDER, TrainTransform, draws
from regard.data.loading.device_views import finish
from regard.data.loading.samples import CentreCrops, TrainPairs, Views, WholePairs
from regard.data.loading.views import View
from regard.data.packs.packed import Chunked
from regard.errors import InputError

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
    before:      of a resumed first epoch that lies in chunks: (ranks, images that each has seen) of those who began it,
                 where they were others than now. What none of them has seen comes in their order, dealt out anew in
                 contiguous parts; `skip` counts within this rank's part.
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
        before: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.count, self.used, self.seed, self.epoch = count, count - count % batch, seed, epoch
        self.rank, self.world, self.skip, self.chunked, self.before = rank, world, skip, chunked, tuple(before)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.chunked is not None:
            return self.used // self.world
        return len(range(self.rank, self.used, self.world))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        skip, before, self.skip, self.before = self.skip, self.before, 0, ()
        if self.chunked is not None:
            return self._by_chunks(self.chunked, self.epoch, skip, before)
        order = draws(ORDER, self.seed, self.epoch).permutation(self.count)[self.rank : self.used : self.world]
        epoch = self.epoch  # as it is now: a loader may be read on when the next one is set
        return ((epoch, int(index)) for index in order[skip:])

    def _by_chunks(
        self, chunked: Chunked, epoch: int, skip: int, before: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[int, int]]:
        """(epoch, index) behind those seen, window by window; the chunks of the next one are fetched meanwhile."""
        ends, asked = np.cumsum(chunked.chunks), 0
        lots = _cut(self._run(chunked.chunks, epoch, before), skip)
        for number, lot in enumerate(lots):
            for coming in lots[asked : number + 2]:
                chunked.prefetch(dict.fromkeys(np.searchsorted(ends, coming, side="right").tolist()))
            asked = number + 2
            yield from ((epoch, index) for index in lot.tolist())

    def _run(self, chunks: Sequence[int], epoch: int, before: Sequence[tuple[int, int]]) -> list[Int[np.ndarray, " _"]]:
        """This rank's images in their order, as lots that are read one after the other."""
        if not before:
            return self._shuffled(chunks, epoch, self.rank, self.world)
        worlds = [world for world, _ in before]
        runs = [self._shuffled(chunks, epoch, rank, worlds[0]) for rank in range(worlds[0])]
        for (_, seen), world in zip(before, [*worlds[1:], self.world], strict=True):
            rest = [lot for run in runs for lot in _cut(run, seen)]
            share = sum(map(len, rest)) // world
            runs = [_cut(rest, rank * share, (rank + 1) * share) for rank in range(world)]
        return runs[self.rank]

    def _shuffled(self, chunks: Sequence[int], epoch: int, rank: int, world: int) -> list[Int[np.ndarray, " _"]]:
        """A rank's run as its windows, each shuffled."""
        return [
            draws(WITHIN, self.seed, epoch, rank, number).permutation(
                np.concatenate([np.arange(start, stop) for start, stop in window])
            )
            for number, window in enumerate(self._windows(chunks, epoch, rank, world))
        ]

    def _windows(self, chunks: Sequence[int], epoch: int, rank: int, world: int) -> list[list[tuple[int, int]]]:
        """A rank's run, as lots of `WINDOW` pieces of chunks: (first image, the one behind the last)."""
        rng, share = draws(ORDER, self.seed, epoch), self.used // world
        order = rng.permutation(len(chunks))
        lengths = np.asarray(chunks)
        ends = np.cumsum(lengths[order])  # where each chunk ends in the order
        shifts = np.cumsum(lengths)[order] - ends  # from a place in the order to the number of the image there
        # What does not fill a batch is left out. It is no end of a chunk each time, since the runs begin anywhere.
        place = (int(rng.integers(self.count)) + rank * share) % self.count
        pieces = []
        while share > 0:
            at = int(np.searchsorted(ends, place, side="right"))
            stop = min(int(ends[at]), place + share)
            pieces.append((place + int(shifts[at]), stop + int(shifts[at])))
            share -= stop - place
            place = stop % self.count
        return [pieces[first : first + WINDOW] for first in range(0, len(pieces), WINDOW)]


def _cut(lots: Sequence[Int[np.ndarray, " _"]], start: int, stop: int | None = None) -> list[Int[np.ndarray, " _"]]:
    """The lots without what lies before `start`, or from `stop` on, counted over all of them."""
    ends = np.cumsum([len(lot) for lot in lots]).tolist()
    stop = max([*ends, 0]) if stop is None else stop
    cut = [
        lot[max(0, start - end + len(lot)) : max(0, stop - end + len(lot))] for lot, end in zip(lots, ends, strict=True)
    ]
    return [lot for lot in cut if len(lot)]


class _Resumable(L.LightningDataModule):
    """Remembers in a checkpoint how many batches of the epoch are done, so that a resumed run goes on behind them.

    Where images lie in chunks, their order depends on the number of processes. A run that goes on with another number
    takes what is left of the epoch in the order of those who began it, and every image still comes once.
    """

    batch_size: int
    accumulate: int
    seed: int
    done = 0  # batches of the epoch that is gone on with
    begun: tuple[tuple[int, int], ...] = ()  # `EpochSampler.before`, of that epoch
    resumed = 0  # which epoch that is

    @property
    def trained_on(self) -> Dataset:
        """What is trained on."""
        raise NotImplementedError

    @property
    def share(self) -> int:
        """Images per forward pass of one process."""
        return self.batch_size // (self.world * self.accumulate)

    def state_dict(self) -> dict[str, Any]:
        """The position in the epoch, and what its order depends on; `done` is 0 where the epoch is whole."""
        assert self.trainer is not None
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        done = 0 if progress.processed == self.trainer.num_training_batches else progress.processed
        return {
            "done": done,
            "epoch": self.epoch,
            "world": self.world,
            "begun": [list(part) for part in self._begun] if done else [],
            "chunks": self._chunks_digest,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there. Raises InputError in mid-epoch where the images would come in an order that is not known:
        the chunks are others than those that the epoch was begun with.
        """
        self.done = state_dict["done"]
        world, chunks = state_dict.get("world", self.world), state_dict.get("chunks", self._chunks_digest)
        if self.done and chunks != self._chunks_digest:
            raise InputError(
                "the run was stopped in the middle of an epoch, and its data is not in the same chunks any more: "
                "the data as it was, or a new --out, would work"
            )
        self.resumed = state_dict.get("epoch", 0)
        self.begun = tuple((ranks, seen) for ranks, seen in state_dict.get("begun", ()))
        if self.done and chunks and world != self.world:
            self.begun = (*self.begun, (world, self._seen(world, self.begun)))

    def _seen(self, world: int, begun: Sequence[tuple[int, int]]) -> int:
        """Images of the epoch that each of `world` processes has seen, behind those who began it."""
        done = self.done * (self.batch_size // (world * self.accumulate))
        return done - sum(ranks * seen for ranks, seen in begun) // world

    @property
    def _begun(self) -> tuple[tuple[int, int], ...]:
        """Who began the epoch of now, where they were others."""
        return self.begun if self.epoch == self.resumed else ()

    @property
    def _chunks_digest(self) -> str:
        """Changes with the lengths of the chunks; "" where images do not lie in any."""
        chunked = _chunked(self.trained_on)
        return "" if chunked is None else hashlib.sha256(repr(tuple(chunked.chunks)).encode()).hexdigest()

    def sampler(self, batch: int) -> EpochSampler:
        """The order of the epochs from here on, `batch` images per step."""
        dataset, begun = self.trained_on, self._begun
        skip = self._seen(self.world, begun)
        return EpochSampler(
            len(dataset), self.seed, batch, self.rank, self.world, self.epoch, skip, _chunked(dataset), begun
        )

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
    """Batches for pre-training: a list with one uint8 tensor (batch, 3, size, size) per view, and more if asked for.

    placed:     where the views are in their images, (batch, views, 5) as `View.placed`, comes after the views.
    labelled:   labels (batch,) come last.
    on_device:  workers only crop and flip, and colours, blur and solarize follow on the device, from the same draws.

    Images leave the workers as rows of pixels, as they are decoded, and are never copied into planes: a batch is
    channels_last, as convolutions like it.

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
    def trained_on(self) -> Dataset:
        """What is trained on."""
        return self.dataset

    def train_dataloader(self) -> DataLoader:
        """Whole batches only: the batch is part of the losses."""
        return DataLoader(
            Views(self.dataset, self.views, self.seed, self.labelled, self.placed, self.on_device),
            self.share,
            sampler=self.sampler(self.batch_size),
            drop_last=True,
            **loading(self.workers),
        )

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> list[Tensor]:
        """Images as (batch, 3, size, size), views that come only cropped finished; Lightning calls this."""
        count = len(self.views)
        is_drawn = len(batch) > count and batch[count].ndim == 3  # images of validation come with their labels alone
        if self.on_device and is_drawn:
            rows = batch[count]
            views = [finish(batch[n], rows[:, n], view) for n, view in enumerate(self.views)]
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
        super().__init__()
        self.train, self.val, self.transform = train, val, transform
        self.batch_size, self.workers, self.seed, self.accumulate = batch_size, workers, seed, accumulate

    @property
    def trained_on(self) -> Dataset:
        """What is trained on."""
        return self.train

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
