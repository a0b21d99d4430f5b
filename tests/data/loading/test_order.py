"""The order of an epoch in chunks: every image once, window by window, each rank its own run of chunks."""

import numpy as np
import pytest
from in_chunks import UNEVEN, InChunks

from regard.data.loading.order import WINDOW, EpochSampler


def orders_of(
    chunked: InChunks, world: int, batch: int, seed: int = 0, epoch: int = 0, skip: int = 0
) -> list[list[int]]:
    """The images of each rank."""
    count, orders = sum(chunked.chunks), []
    for rank in range(world):
        sampler = EpochSampler(count, seed, batch, rank, world, epoch, skip, chunked)
        keys = list(sampler)
        assert len(keys) == len(sampler) - skip
        assert {key[0] for key in keys} <= {epoch}
        orders.append([index for _, index in keys])
    return orders


@pytest.mark.parametrize("chunks", [UNEVEN, [10], [3, 4], [1] * 50])
@pytest.mark.parametrize(("world", "batch"), [(1, 1), (1, 4), (2, 4), (3, 3), (4, 8)])
def test_every_image_comes_once_an_epoch_and_only_what_fills_no_batch_is_left_out(chunks, world, batch):
    count = sum(chunks)
    for epoch in range(3):
        orders = orders_of(InChunks(chunks), world, batch, epoch=epoch)
        assert len({len(order) for order in orders}) == 1
        seen = [index for order in orders for index in order]
        assert len(set(seen)) == len(seen) == count - count % batch
        assert set(seen) <= set(range(count))


def test_the_order_is_a_function_of_seed_and_epoch():
    dataset = InChunks(UNEVEN)
    first = orders_of(dataset, 2, 4)
    assert orders_of(dataset, 2, 4) == first
    for other in (orders_of(dataset, 2, 4, epoch=1), orders_of(dataset, 2, 4, seed=1)):
        assert other != first
        assert np.mean(np.array(other[0]) == np.array(first[0])) < 0.05


def test_what_is_left_out_changes_from_epoch_to_epoch():
    """Of one chunk of ten, too, whose last two would else never be seen."""
    seen = [set(orders_of(InChunks([10]), 1, 4, epoch=epoch)[0]) for epoch in range(20)]
    assert set.union(*seen) == set(range(10))
    left = [tuple(sorted(set(range(10)) - of)) for of in seen]
    assert len(set(left)) > 4


def test_chunks_are_read_one_window_after_the_other_and_mixed_within_it():
    dataset = InChunks(UNEVEN)
    order = orders_of(dataset, 1, 1)[0]
    place = {chunk: [i for i, index in enumerate(order) if dataset.chunk_of[index] == chunk] for chunk in range(80)}
    spans = [max(at) - min(at) + 1 for at in place.values()]
    most = max(sum(sorted(UNEVEN)[-WINDOW:]), 1)
    # the chunk where the epoch begins is cut in two, and its other part comes last
    assert sorted(spans)[-2] <= most
    held = [len({chunk for chunk, at in place.items() if min(at) <= i <= max(at)}) for i in range(len(order))]
    assert np.median(held) <= WINDOW + 1
    chunks = [dataset.chunk_of[index] for index in order]
    assert np.mean(np.array(chunks[1:]) == np.array(chunks[:-1])) < 0.3  # neighbours are of many chunks


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_a_chunk_only_where_their_runs_meet(world):
    dataset = InChunks(UNEVEN)
    for epoch in range(5):
        held = [{int(dataset.chunk_of[i]) for i in order} for order in orders_of(dataset, world, world, epoch=epoch)]
        assert sum(map(len, held)) <= 80 + world


@pytest.mark.parametrize("skip", [1, 37, 120, 121, 248])
def test_a_resumed_epoch_is_the_rest_of_the_whole_one(skip):
    whole = orders_of(InChunks(UNEVEN), 2, 2, epoch=3)
    assert orders_of(InChunks(UNEVEN), 2, 2, epoch=3, skip=skip) == [order[skip:] for order in whole]


def test_the_epoch_after_a_resumed_one_is_whole():
    dataset = InChunks(UNEVEN)
    sampler = EpochSampler(496, 0, skip=100, chunked=dataset)
    assert len(list(sampler)) == 396
    sampler.set_epoch(1)
    assert [index for _, index in sampler] == orders_of(dataset, 1, 1, epoch=1)[0]


def test_chunks_are_asked_for_before_they_are_read_a_window_ahead_and_once():
    dataset = InChunks(UNEVEN)
    read = []
    for _, index in EpochSampler(496, 0, chunked=dataset):
        chunk = int(dataset.chunk_of[index])
        assert chunk in dataset.asked
        if chunk not in read:
            read.append(chunk)
        assert len(dataset.asked) <= len(read) + 2 * WINDOW
    assert set(dataset.asked) == set(range(80))
    assert len(dataset.asked) <= 81  # once; the one that the epoch begins in the middle of, twice
