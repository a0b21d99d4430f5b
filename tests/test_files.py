"""Files are whole or not there: on a full disk, too, whoever writes them; and their mode is what the umask leaves."""

import errno
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from safetensors.torch import save

from regard.files import write_json, write_whole

BIG = torch.arange(100_000)
WRITERS: dict[str, Callable[[BinaryIO], Any]] = {
    "torch": lambda file: torch.save({"weights": BIG}, file),
    "safetensors": lambda file: file.write(save({"weights": BIG})),
    "numpy": lambda file: np.savez(file, weights=BIG.numpy()),
    "bytes": lambda file: [file.write(bytes(1000)) for _ in range(1000)],
}


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may be over 100 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path, small_disk, writer: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(OSError, match="File too large") as raised:
        write_whole(path, WRITERS[writer])
    assert raised.value.filename == str(path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"file": b"before"}


def test_a_disk_without_room_is_found_behind_the_errors_of_libraries(tmp_path) -> None:
    def write(file: BinaryIO) -> None:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise RuntimeError("unexpected position in archive") from error

    with pytest.raises(OSError, match="No space left on device") as raised:
        write_whole(tmp_path / "file", write)
    assert raised.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_is_what_the_umask_leaves(tmp_path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_json(tmp_path / "file", 1)
    finally:
        os.umask(before)
    assert Path(tmp_path / "file").stat().st_mode & 0o777 == mode
