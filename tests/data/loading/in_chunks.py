"""Stand-ins for data sets: so many images, never looked at; by themselves, or in chunks."""

from collections.abc import Sequence

import numpy as np

UNEVEN = [5, 1, 9, 3, 12, 7, 2, 8, 4, 11] * 8  # 496 images in 80 chunks


class Plain:
    """So many images, never looked at."""

    classes, ignore_index, palette = (), 255, np.zeros((0, 3), np.uint8)

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def name(self, i: int) -> str:
        return str(i)

    def image(self, i: int) -> np.ndarray:
        return np.zeros((1, 1, 3), np.uint8)

    def mask(self, i: int) -> np.ndarray:
        return np.zeros((1, 1), np.uint8)


class InChunks(Plain):
    """The same, in chunks; notes what it is told to fetch."""

    def __init__(self, chunks: Sequence[int]) -> None:
        super().__init__(sum(chunks))
        self.chunks, self.asked = tuple(chunks), list[int]()
        self.chunk_of = np.repeat(np.arange(len(chunks)), chunks)

    def prefetch(self, numbers) -> None:
        self.asked += list(numbers)
