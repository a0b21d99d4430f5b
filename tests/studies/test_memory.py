"""Memory does not grow with the number of images: of each command the peak at two sizes, in processes of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regard.data.scenes import Scenes

HERE = Path(__file__).parent
FEW, MANY, SIDE = 64, 1024, 128
# Of an image: name and label, the names of scores. Beside it what the allocator does not give back at once, which is
# by far the most here, and does not depend on the number of images.
EACH, SLACK = 500, 4 * 2**20
KEPT = SIDE * SIDE * 3  # what each image would take, if it were kept: 47 MB for the 960 more of them


@pytest.fixture(scope="module")
def trees(tmp_path_factory) -> dict[str, dict[int, Path]]:
    """Class folders and images with masks, few and many: links to eight images."""
    top, scenes = tmp_path_factory.mktemp("trees"), Scenes(8, SIDE)
    (top / "of").mkdir()
    for i in range(8):
        Image.fromarray(scenes.image(i)).save(top / f"of/image{i}.png")
        Image.fromarray(scenes.mask(i)).save(top / f"of/mask{i}.png")
    made: dict[str, dict[int, Path]] = {"classes": {}, "masks": {}}
    for count in (FEW, MANY):
        made["classes"][count], made["masks"][count] = top / f"classes{count}", top / f"masks{count}"
        for i in range(count):
            link(top / f"of/image{i % 8}.png", made["classes"][count] / f"train/{i % 4}/{i:05}.png")
            link(top / f"of/image{i % 8}.png", made["masks"][count] / f"images/train/{i:05}.png")
            link(top / f"of/mask{i % 8}.png", made["masks"][count] / f"masks/train/{i:05}.png")
            if i < 8 or count == MANY:
                link(top / f"of/image{i % 8}.png", made["classes"][count] / f"val/{i % 4}/{i:05}.png")
        (made["masks"][count] / "classes.txt").write_text("\n".join(Scenes.classes))
    return made


def link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(source, target)


def peak(command: str, data: Path, out: Path) -> int:
    """Bytes; the allocator gives back what it can at once, from one arena, so that the peak is of what is in use."""
    steady = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    environment = {**os.environ, **steady, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    words = [sys.executable, str(HERE / "peak_memory.py"), command, str(data), str(out)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.search(r"^peak (\d+)$", done.stdout, re.MULTILINE)
    assert found
    return int(found[1])


COMMANDS = {"pretrain": "classes", "score": "masks", "evaluate": "masks", "embed": "classes", "info": "masks"}


@pytest.mark.slow  # two processes, each up to 15 s
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("command", COMMANDS)
def test_peak_memory_does_not_grow_with_the_images(command: str, trees, tmp_path) -> None:
    few, many = (peak(command, trees[COMMANDS[command]][count], tmp_path / str(count)) for count in (FEW, MANY))
    print(f"{command}: {few / 2**20:.1f} MB for {FEW} images, {(many - few) / 2**20:+.2f} MB for {MANY}")
    allowed = EACH * (MANY - FEW) + SLACK
    assert allowed < 0.1 * KEPT * (MANY - FEW) 
    assert many - few < allowed
