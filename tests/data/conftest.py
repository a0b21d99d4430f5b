"""A tree that the tests of surveys and of checks share."""

from pathlib import Path

import numpy as np
import pytest

from image_files import save

SIZES = {"train": [(20, 30), (20, 30), (40, 30), (10, 10), (5, 9)], "val": [(24, 16), (12, 50)]}  # (height, width)


@pytest.fixture
def tree(tmp_path) -> Path:
    """images/ + masks/ of noise: three classes of which "never" is in no mask, and void."""
    rng, root = np.random.default_rng(0), tmp_path / "tree"
    for split, sizes in SIZES.items():
        for i, (height, width) in enumerate(sizes):
            save(root / f"images/{split}/{i}.png", rng.integers(0, 256, (height, width, 3), np.uint8))
            save(root / f"masks/{split}/{i}.png", rng.choice(np.array([0, 0, 1, 255], np.uint8), (height, width)))
    (root / "classes.txt").write_text("often\nseldom\nnever\n")
    return root
