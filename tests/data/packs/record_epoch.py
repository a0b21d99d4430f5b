"""One of several processes that share the epochs of a pack: writes the names that it read, epoch by epoch, as JSON.

Arguments: URL, file to write, batch, epochs. RANK and WORLD_SIZE say which process it is, as torchrun sets them.
"""

import json
import os
import sys
from pathlib import Path

from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from regard.data.datasets.base import Chunked
from regard.data.loading.modules import loading
from regard.data.loading.order import EpochSampler
from regard.data.packs.packed import Packed
from regard.data.source import open_source


class Names(TorchDataset):
    """(epoch, index) -> the name, after the image was decoded."""

    def __init__(self, packed: Packed) -> None:
        self.packed = packed

    def __getitem__(self, key: tuple[int, int]) -> str:
        self.packed.image(key[1])
        return self.packed.name(key[1])


def main(url: str, out: str, batch: int, epochs: int) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    packed = open_source(url).splits["train"]
    assert isinstance(packed, Packed)
    assert isinstance(packed, Chunked)
    sampler = EpochSampler(len(packed), 0, batch, rank, world, chunked=packed)
    loader = DataLoader(Names(packed), batch // world, sampler=sampler, drop_last=True, **loading(2))
    read = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        read.append([name for names in loader for name in names])
    Path(out).write_text(json.dumps(read))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
