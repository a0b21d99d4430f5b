"""Memory does not grow with the number of images: of each command the peak at two sizes, in processes of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regard.data.datasets.scenes import Scenes
from regard.data.packs.cache import OPEN
from regard.data.packs.packing import pack
from regard.data.source import open_source
from regard.runs.feature_cache import SAMPLES_FILE, TENSORS_FILE, TensorFile

HERE = Path(__file__).parent
FEW, MANY, SIDE, COPIES = 128, 512, 128, 10  # few is 32 steps and a whole batch of queries, so that nothing comes later
# Bytes. Of an image: name, label, and its pooled feature where there is kNN or a map of them, which has 32 values here.
# Beside it what the allocator has not given back at the peak, which does not depend on the number of images: 0.4 MB.
ALLOWED = 500 * (MANY - FEW) + 2 * 2**20
# Of the page of `embed` also a thumbnail of 7 kB, and it in the page, as JPEG and as text: of 10,000 images at most.
OF_PAGE = 16_000 * (MANY - FEW)
KEPT = SIDE * SIDE * 3 * COPIES  # what an image takes in the control, which keeps it: 189 MB for the 384 more of them


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
            link(top / f"of/image{i % 8}.png", made["classes"][count] / f"val/{i % 4}/{i:05}.png")
        (made["masks"][count] / "classes.txt").write_text("\n".join(Scenes.classes))
    return made


def link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(source, target)


def grown(command: str, trees: dict[int, Path], out: Path) -> int:
    """Bytes by which the peak is higher with many images; the least of up to two tries, as other causes only add."""
    few, more = peak(command, trees[FEW], out / "few"), []
    while len(more) < 2 and not (more and more[-1] < allowed(command)):
        more.append(peak(command, trees[MANY], out / f"many{len(more)}") - few)
    print(f"{command}: {few / 2**20:.1f} MB for {FEW} images, {min(more) / 2**20:+.2f} MB for {MANY}")
    return min(more)


def allowed(command: str) -> int:
    return ALLOWED + (OF_PAGE if command == "page" else 0)


def peak(command: str, data: Path, out: Path, *copies: str) -> int:
    """Bytes; the allocator gives back what it can at once, from one arena, so that the peak is of what is in use."""
    steady = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    environment = {**os.environ, **steady, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    words = [sys.executable, str(HERE / "peak_memory.py"), command, str(data), str(out), *copies]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.search(r"^peak (\d+)$", done.stdout, re.MULTILINE)
    assert found
    return int(found[1])


COMMANDS = {
    "pretrain": "classes",
    "score": "masks",
    "probe": "masks",
    "evaluate": "masks",
    "embed": "classes",
    "page": "classes",
    "info": "masks",
}


@pytest.mark.slow  # two processes, each up to 15 s
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("command", COMMANDS)
def test_peak_memory_does_not_grow_with_the_images(command: str, trees, tmp_path) -> None:
    assert grown(command, trees[COMMANDS[command]], tmp_path) < allowed(command)


@pytest.fixture(scope="module")
def packs(tmp_path_factory) -> dict[int, Path]:
    """Packs of few and many images in chunks of 1 MB, of which five fill one: few has more chunks than stay mapped."""
    top, scenes = tmp_path_factory.mktemp("packs"), Scenes(8, 256)
    (top / "of").mkdir()
    for i in range(8):
        Image.fromarray(scenes.image(i)).save(top / f"of/{i}.png", compress_level=0)
    for count in (FEW, MANY):
        for split, images in (("train", count), ("val", 16)):
            for i in range(images):
                link(top / f"of/{i % 8}.png", top / f"source{count}/{split}/{i % 4}/{i:05}.png")
        pack(open_source(top / f"source{count}"), top / str(count), 1)
        chunks = list((top / f"{count}/train").glob("*.bin"))
        assert len(chunks) > OPEN
    return {count: top / str(count) for count in (FEW, MANY)}


@pytest.mark.slow  # two processes, each up to 15 s
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("command", ["embed", "pretrain"])  # in order, and shuffled
def test_peak_memory_does_not_grow_with_the_chunks_of_a_pack(command: str, packs, tmp_path) -> None:
    """What is mapped counts as resident: it would be 77 MB more, were all that was read to stay so."""
    assert grown(command, packs, tmp_path) < allowed(command)


@pytest.mark.slow  # two processes, each up to 15 s
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_kept_shows_in_the_peak(trees, tmp_path) -> None:
    """Otherwise the test above would say nothing. Ten times each, as a process may have 30 MB more than its like."""
    few, many = (peak("embed", trees["classes"][count], tmp_path / str(count), str(COPIES)) for count in (FEW, MANY))
    assert many - few > 0.8 * KEPT * (MANY - FEW)


def resident() -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_feature_cache_is_not_read_whole(tmp_path) -> None:
    """Of 1 GB in 16,384 samples, two are read: 64 kB each. The file has holes: it takes no disk."""
    count, layouts = 16_384, [[["float32", [16_000]], ["uint8", [1536]]], [["uint8", [256, 256]]]]
    with (tmp_path / SAMPLES_FILE).open("w") as lines:
        lines.writelines(json.dumps([i * 65_536, layouts[i % 2], 0]) + "\n" for i in range(count))
    with (tmp_path / TENSORS_FILE).open("wb") as file:
        file.truncate(count * 65_536)
        file.seek((count - 2) * 65_536)
        file.write(np.float32(3).tobytes())
    before = resident()
    samples = TensorFile(tmp_path)
    features, mask = samples[count - 2]
    (other,) = samples[1]
    assert resident() - before < 8 * 2**20  # index: 0.2 MB; the rest is of the interpreter
    assert (len(samples), features[0], features.shape, mask.shape) == (count, 3, (16_000,), (1536,))
    assert (other.shape, other.dtype, features.dtype) == ((256, 256), np.uint8, np.float32)
