"""Which image comes when: the order of an epoch, for images of their own and for those that lie in chunks."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from regard.data.datasets.base import Chunked
from regard.data.loading.draws import ORDER, WITHIN, draws

WINDOW = 16  # chunks that an epoch is shuffled within at a time: about 1 GB of them


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
        skip, self.skip = self.skip, 0
        if self.chunked is not None:
            return self._by_chunks(self.chunked, self.epoch, skip)
        order = draws(ORDER, self.seed, self.epoch).permutation(self.count)[self.rank : self.used : self.world]
        epoch = self.epoch  # as it is now: a loader may be read on when the next one is set
        return ((epoch, int(index)) for index in order[skip:])

    def _by_chunks(self, chunked: Chunked, epoch: int, skip: int) -> Iterator[tuple[int, int]]:
        """(epoch, index) behind those seen, window by window; the chunks of the next one are fetched meanwhile."""
        windows, asked = self._windows(chunked.chunks, epoch), 0
        for number, window in enumerate(windows):
            images = np.concatenate([np.arange(start, stop) for _, start, stop in window])
            if skip >= len(images):
                skip, asked = skip - len(images), number + 1
                continue
            for coming in windows[asked : number + 2]:
                chunked.prefetch([chunk for chunk, _, _ in coming])
            asked = number + 2
            order = draws(WITHIN, self.seed, epoch, self.rank, number).permutation(images)
            yield from ((epoch, index) for index in order[skip:].tolist())
            skip = 0

    def _windows(self, chunks: Sequence[int], epoch: int) -> list[list[tuple[int, int, int]]]:
        """This rank's run, as lots of `WINDOW` pieces of chunks: (chunk, first image, the one behind the last)."""
        rng, share = draws(ORDER, self.seed, epoch), self.used // self.world
        order = rng.permutation(len(chunks))
        firsts = (np.cumsum(chunks) - chunks)[order].tolist()  # of each chunk, its first image; in the order
        ends = np.cumsum(np.asarray(chunks)[order])  # where each chunk ends in the order
        # What does not fill a batch is left out. It is no end of a chunk each time, since the runs begin anywhere.
        place = (int(rng.integers(self.count)) + self.rank * share) % self.count
        pieces = []
        while share > 0:
            at = int(np.searchsorted(ends, place, side="right"))
            chunk, stop = int(order[at]), min(int(ends[at]), place + share)
            shift = firsts[at] + chunks[chunk] - int(ends[at])  # from a place in the order to the image there
            pieces.append((chunk, place + shift, stop + shift))
            share -= stop - place
            place = stop % self.count
        return [pieces[first : first + WINDOW] for first in range(0, len(pieces), WINDOW)]
