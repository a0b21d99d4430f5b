"""Many file names in little memory.

A list of a million strings takes about 100 MB, and is copied page by page into every loading process as their
reference counts are touched; one buffer takes the letters and 8 bytes a name, and is shared.
"""

import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

from regard.errors import InputError

AT_ONCE = 4096  # names turned to strings together


class Names(Sequence[str]):
    """An immutable sequence of names, kept as one buffer of bytes, each name ended by NUL; equal to a list of them.

    What is not UTF-8 on disk stays as it is (`os.fsencode`). Raises InputError for a name with a NUL, as no file has.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        names = list(names)
        self._hold(os.fsencode("\0".join([*names, ""])))
        if len(self) != len(names):
            raise InputError("a file name holds a NUL byte, and no file can be called so: take it out of the list")

    def _hold(self, data: bytes) -> None:
        self.data = data
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == 0)
        self._bounds = np.insert(ends + 1, 0, 0)  # name i is data[bounds[i] : bounds[i + 1] - 1]

    @classmethod
    def of(cls, names: Iterable[str]) -> "Names":
        """These names: themselves, where they are kept so already."""
        return names if isinstance(names, Names) else cls(names)

    @classmethod
    def held(cls, data: bytes) -> "Names":
        """The names of a buffer, as `data` of another has them."""
        made = cls.__new__(cls)
        made._hold(data)
        return made

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice | np.ndarray) -> "Names": ...
    def __getitem__(self, index: int | slice | np.ndarray) -> "str | Names":
        """One name; those of a slice; those of an array of numbers, in its order; or those where an array is true."""
        if isinstance(index, slice) and index.step in (None, 1):
            start, stop, _ = index.indices(len(self))
            return Names.held(self.data[self._bounds[start] : self._bounds[max(start, stop)]])
        if isinstance(index, slice | np.ndarray):
            starts, stops = self._bounds[:-1][index].tolist(), self._bounds[1:][index].tolist()
            return Names.held(b"".join(self.data[start:stop] for start, stop in zip(starts, stops, strict=True)))
        number = range(len(self))[index]  # IndexError past the end; counts from the end where it is negative
        return os.fsdecode(self.data[self._bounds[number] : self._bounds[number + 1] - 1])

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), AT_ONCE):  # much quicker than one by one
            end = min(start + AT_ONCE, len(self))
            yield from os.fsdecode(self.data[self._bounds[start] : self._bounds[end]]).split("\0")[:-1]

    def __eq__(self, other: Any) -> bool:
        if isinstance(other, Names):
            return self.data == other.data
        if isinstance(other, list | tuple):
            return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))
        return NotImplemented

    def __repr__(self) -> str:
        return f"Names({list(self[:3])}{', ...' if len(self) > 3 else ''}, {len(self):,} in all)"

    def encoded(self) -> list[bytes]:
        """The names as the disk has them."""
        return self.data.split(b"\0")[:-1]

    def below(self, folder: str) -> slice:
        """Where the paths in `folder`, at any depth, are among these, which are sorted; "" is all."""
        if not folder:
            return slice(0, len(self))
        after = chr(ord("/") + 1)
        return slice(bisect_left(self, f"{folder}/"), bisect_left(self, f"{folder}{after}"))


def joined(parts: Iterable[Names]) -> Names:
    """The names of several sequences, one after the other."""
    return Names.held(b"".join(part.data for part in parts))
