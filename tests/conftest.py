"""Shared by all tests: recorded numbers of the published implementations, one thread, real data where it is at hand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny models run faster without threads that wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def recorded() -> Callable[[str], dict[str, torch.Tensor]]:
    """`recorded("knn")`: the arrays of tests/reference/knn.npz as tensors."""

    def load(name: str) -> dict[str, torch.Tensor]:
        with np.load(ROOT / "tests" / "reference" / f"{name}.npz") as file:
            return {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}

    return load
