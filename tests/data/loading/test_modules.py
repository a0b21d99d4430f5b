"""Going on in the middle of an epoch, and datasets around a dataset."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from in_chunks import UNEVEN, InChunks, Plain
from PIL import Image

from image_files import noise_files
from regard.data.datasets.base import Chunked
from regard.data.datasets.folders import ImageFolder
from regard.data.datasets.scenes import Scenes
from regard.data.loading.augment import TrainTransform
from regard.data.loading.modules import PretrainData, SegmentationData
from regard.data.loading.order import EpochSampler
from regard.data.loading.samples import Views
from regard.data.loading.views import barlow_twins_views
from regard.data.loading.wrapped import SkipUnreadable, skipped
from regard.data.packs.packed import AHEAD, Packed
from regard.data.packs.packing import pack
from regard.data.source import open_source
from regard.errors import InputError
from regard.runs.feature_cache import _names
from regard.runs.pretraining import BANK, _probed

BATCH = 12  # divided by all the numbers of processes below


@dataclass
class Training:
    """A run of so many processes, without models: what each would train on, and the checkpoint of the first."""

    data: Any
    world: int
    epoch: int = 3
    kind: str = "pretrain"
    accumulate: int = 1
    saved: dict[str, Any] | None = None
    modules: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.modules = [self._module(rank) for rank in range(self.world)]

    def _module(self, rank: int) -> Any:
        if self.kind == "pretrain":
            module = PretrainData(Views(self.data, barlow_twins_views(32), 5), BATCH, accumulate=self.accumulate)
        else:
            module = SegmentationData(
                self.data, self.data, TrainTransform(32, 255), BATCH, seed=5, accumulate=self.accumulate
            )
        progress = SimpleNamespace(processed=0)
        loop = SimpleNamespace(
            epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=progress)),
            epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=self.epoch)),
        )
        trainer = SimpleNamespace(
            global_rank=rank, world_size=self.world, fit_loop=loop,
            num_training_batches=len(self.data) * self.accumulate // BATCH,
        )  # fmt: skip
        module.trainer = trainer  # type: ignore[assignment]
        if self.saved is not None:
            module.load_state_dict(self.saved)
        return module

    def rest(self) -> list[list[int]]:
        """What is left of the epoch, by process."""
        return [[index for _, index in module.train_dataloader().sampler] for module in self.modules]

    def stop(self, done: int) -> dict[str, Any]:
        """The checkpoint after so many batches of the epoch."""
        states = []
        for module in self.modules:
            module.trainer.fit_loop.epoch_loop.batch_progress.current.processed = done
            states.append(module.state_dict())
        assert all(state == states[0] for state in states)
        return states[0]


@pytest.mark.parametrize("kind", ["pretrain", "segment"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_epoch_in_chunks_goes_on_where_it_was_stopped_and_stopped_again(world, accumulate, kind) -> None:
    """Every image that fills a batch comes, and none twice."""
    batches = 41 * accumulate  # 496 = 41 * 12 + 4
    each = BATCH // (world * accumulate)
    whole = Training(InChunks(UNEVEN), world, kind=kind, accumulate=accumulate).rest()
    assert len({index for of in whole for index in of}) == sum(map(len, whole)) == 492
    saved, done = None, 0
    for more in (7 * accumulate, 9 * accumulate, batches - 16 * accumulate):
        run = Training(InChunks(UNEVEN), world, kind=kind, accumulate=accumulate, saved=saved)
        assert run.rest() == [of[done * each :] for of in whole]
        assert [len(module.train_dataloader()) for module in run.modules] == [batches] * world
        done += more
        saved = run.stop(done)
    assert saved is not None
    assert saved["done"] == 0  # at the end of an epoch it holds nothing of it
    assert Training(InChunks([496]), 1, epoch=4, saved=saved).rest()  # then the chunks and processes may be others


def test_chunks_of_what_is_left_are_asked_for_before_they_are_read() -> None:
    data = InChunks(UNEVEN)
    run = Training(data, 1, saved=Training(InChunks(UNEVEN), 1).stop(11))
    chunk_of = np.repeat(np.arange(80), UNEVEN)
    for _, index in run.modules[0].train_dataloader().sampler:
        assert int(chunk_of[index]) in data.asked


def test_an_epoch_in_other_chunks_or_by_other_processes_is_not_gone_on_with() -> None:
    saved = Training(InChunks(UNEVEN), 2).stop(7)
    for other, world in ((InChunks(UNEVEN[::-1]), 2), (Plain(496), 2), (InChunks(UNEVEN), 1)):
        with pytest.raises(
            InputError, match=r"in the middle of an epoch, .* both as they were, or a new --out"
        ) as error:
            Training(other, world, saved=saved)
        assert "\n" not in str(error.value)


def test_without_chunks_the_images_of_a_step_are_the_same_for_any_number_of_processes() -> None:
    saved = Training(Plain(496), 2).stop(7)
    order = [index for _, index in EpochSampler(496, 5, BATCH, epoch=3)]
    for world in (1, 2, 3):
        rest = Training(Plain(496), world, saved=saved).rest()
        assert rest == [order[7 * BATCH + rank :: world] for rank in range(world)]


def test_a_checkpoint_survives_a_safe_load(tmp_path) -> None:
    saved = Training(InChunks(UNEVEN), 3).stop(7)
    torch.save(saved, tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == saved


# ---- datasets around a dataset


def packed_of(root: Path) -> Packed:
    packed = open_source(root).splits["train"]
    assert isinstance(packed, Packed)
    return packed


def test_chunks_show_through_what_skips_unreadable_images(tmp_path) -> None:
    inner = InChunks(UNEVEN)
    outer = SkipUnreadable(inner, tmp_path / "skipped.txt")
    assert isinstance(outer, Chunked)
    assert not isinstance(SkipUnreadable(Plain(3), tmp_path / "skipped.txt"), Chunked)
    outer.prefetch([3, 4])
    assert (outer.chunks, inner.asked) == (inner.chunks, [3, 4])
    assert Training(outer, 2).rest() == Training(inner, 2).rest()


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_views_are_the_same_whether_unreadable_images_are_skipped_or_not(tmp_path, suffix, monkeypatch) -> None:
    """A large JPEG is decoded at the scale that is needed, and each file read once."""
    for i in range(3):
        Image.fromarray(Scenes(3, 512).image(i)).save(tmp_path / f"{i}.{suffix}")
    folder = ImageFolder(tmp_path)
    skipping = SkipUnreadable(folder, tmp_path / "skipped.txt", share=0.5)
    plain, outer = (Views(data, barlow_twins_views(32), seed=1) for data in (folder, skipping))
    expected = [plain[0, i] for i in range(3)]
    reads, read = [], ImageFolder.encoded
    monkeypatch.setattr(ImageFolder, "encoded", lambda self, i: reads.append(self.name(i)) or read(self, i))
    for views in (plain, outer):
        reads.clear()
        for i in range(3):
            assert all(torch.equal(one, two) for one, two in zip(views[0, i], expected[i], strict=True))
        assert reads == [f"{i}.{suffix}" for i in range(3)]


def test_an_unreadable_image_is_skipped_by_its_views_whatever_its_name(tmp_path) -> None:
    odd = os.fsdecode(b"\xff\x0c.png")  # neither UTF-8 nor one line to all readers
    for name in ("a.png", "z.png"):
        Image.fromarray(Scenes(1, 32).image(0)).save(tmp_path / name)
    try:
        (tmp_path / odd).write_bytes(b"broken")
    except OSError:
        pytest.skip("this disk takes names in UTF-8 alone")
    folder = ImageFolder(tmp_path)
    bad = list(folder.paths).index(odd)
    views = Views(SkipUnreadable(folder, tmp_path / "skipped.txt", share=0.5), barlow_twins_views(32), seed=1)
    for _ in range(2):
        assert views[0, bad][0].shape == (32, 32, 3)
    assert skipped(tmp_path / "skipped.txt") == [odd]
    assert len(_names(folder)) == 64


# ---- packs


def test_chunks_are_fetched_ahead_where_a_pack_is_read_in_order_and_else_hardly(tmp_path, monkeypatch) -> None:
    pack(open_source(noise_files(tmp_path / "source", 66)), tmp_path / "pack", 1)
    chunks = len(packed_of(tmp_path / "pack").chunks)
    assert chunks == 8

    def asked_of(order) -> list[int]:
        packed, asked = packed_of(tmp_path / "pack"), list[int]()
        monkeypatch.setattr(packed, "prefetch", asked.extend)
        for i in order:
            packed.name(i)
            packed.encoded(i)
        return asked

    by_twos = np.arange(66).reshape(-1, 2)[:, ::-1].ravel().tolist()  # as two threads may read
    for order in (range(66), range(0, 66, 2), by_twos):
        asked = asked_of(order)
        assert set(asked) == set(range(2, chunks))
        assert len(asked) <= AHEAD * chunks
    shuffled = [asked_of(np.random.default_rng(seed).permutation(66).tolist()) for seed in range(20)]
    assert sum(map(len, shuffled)) <= 20 * AHEAD


def test_knn_asks_the_images_that_lie_in_the_fewest_chunks(monkeypatch) -> None:
    monkeypatch.setattr("regard.runs.pretraining.BANK", 100)
    assert BANK > 100
    assert _probed(Plain(496), shuffled=True) == range(100)
    assert _probed(Plain(30), shuffled=True) == _probed(Plain(30)) == range(30)
    assert [*_probed(Plain(496))] == [*range(0, 496, 5)]


HELD = """
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from torch.utils.data import DataLoader
from regard.data.loading.modules import loading

def hold():
    global batches
    batches = iter(DataLoader(list(range(64)), 1, **loading(1)))
    next(batches)

if __name__ == "__main__":
    if sys.argv[1] == "itself":
        hold()
    else:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            pool.submit(hold).result()
"""


@pytest.mark.parametrize("held_by", ["itself", "child"])
def test_a_process_ends_while_it_holds_a_loader(held_by, tmp_path) -> None:
    """Its workers do not answer the SIGTERM of a job manager, but that by which it asks them to end."""
    (tmp_path / "held.py").write_text(HELD)
    command = [sys.executable, str(tmp_path / "held.py"), held_by]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (ended.returncode, ended.stderr) == (0, "")
