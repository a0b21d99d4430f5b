"""Chunks of a remote store are fetched once for all processes of a machine, and stay within a bound."""

import hashlib
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from torch.utils.data import DataLoader, Dataset

from commands import line
from regard.data.packs.cache import mapped, prefetch
from regard.data.packs.remote import file_system
from regard.data.packs.store import Store
from servers import Site, gs_server, s3_server, web_server

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def site(tmp_path, monkeypatch) -> Iterator[Site]:
    monkeypatch.setattr("regard.data.packs.store.WAIT", 0.001)
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path / "cache"))
    with web_server() as site:
        yield site


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cache/chunks"


def bound(monkeypatch, limit: int) -> None:
    monkeypatch.setenv("REGARD_CACHE_GB", f"{limit / 1e9:.9f}")


def opened(site: Site) -> Store:
    """Another one each time: chunks that are mapped are not asked for again."""
    return Store(f"{site.url}/pack")


def chunks(site: Site, count: int, size: int = 1000) -> list[tuple[str, int, str]]:
    """Chunks of different content on the site."""
    made = []
    for number in range(count):
        data = bytes([number]) * size
        site.files[f"pack/{number}.bin"] = data
        made.append((f"{number}.bin", size, hashlib.sha256(data).hexdigest()))
    return made


def whole(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name[0] != "."}


def held(folder: Path) -> int:
    """Bytes of chunks, whole or begun, that a folder holds."""
    total = 0
    for path in folder.iterdir() if folder.is_dir() else ():
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # removed since
            continue
    return total


def test_a_chunk_is_fetched_once(site) -> None:
    (chunk,) = chunks(site, 1)
    assert {bytes(mapped(opened(site), *chunk)) for _ in range(3)} == {site.files["pack/0.bin"]}
    assert len(site.asked) == 1


def test_a_local_store_gives_its_own_files(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a").write_bytes(b"12345")
    store, sha256 = Store(tmp_path), hashlib.sha256(b"12345").hexdigest()
    assert bytes(mapped(store, "a", 5, sha256)) == b"12345"
    prefetch(store, [("a", 5, sha256)])
    assert not (tmp_path / "cache").exists()
    for name, size in (("a", 6), ("b", 5)):
        said = line(mapped, store, name, size, "")
        assert f"{name} is not there, or has not the {size} bytes that are listed" in said


def test_what_a_killed_process_left_is_mended(site, folder) -> None:
    (chunk,) = chunks(site, 1)
    folder.mkdir(parents=True)
    (folder / f"{chunk[2]}-1000").write_bytes(b"\1" * 10)
    assert bytes(mapped(opened(site), *chunk)) == site.files["pack/0.bin"]


def test_a_copy_with_other_bytes_is_fetched_again(site, folder, capsys) -> None:
    (chunk,) = chunks(site, 1)
    folder.mkdir(parents=True)
    (folder / f"{chunk[2]}-1000").write_bytes(b"\1" * 1000)
    assert bytes(mapped(opened(site), *chunk)) == site.files["pack/0.bin"]
    assert "is damaged: 0.bin is fetched again" in capsys.readouterr().err
    assert (folder / f"{chunk[2]}-1000").read_bytes() == site.files["pack/0.bin"]


def test_a_pack_made_anew_is_not_taken_for_the_old_one(site) -> None:
    (old,) = chunks(site, 1)
    mapped(opened(site), *old)
    site.files["pack/0.bin"] = b"\7" * 1000
    new = ("0.bin", 1000, hashlib.sha256(b"\7" * 1000).hexdigest())
    assert bytes(mapped(opened(site), *new)) == b"\7" * 1000


def test_the_least_recently_used_goes_first_and_what_is_mapped_stays_readable(site, folder, monkeypatch) -> None:
    bound(monkeypatch, 3000)
    a, b, c, d = chunks(site, 4)
    for chunk in (a, b, c, a):
        kept = mapped(opened(site), *chunk)
    mapped(opened(site), *b)
    mapped(opened(site), *d)  # c goes
    assert whole(folder) == {f"{chunk[2]}-1000" for chunk in (a, b, d)}
    for chunk in (c, b, d):  # a goes
        mapped(opened(site), *chunk)
    assert f"{a[2]}-1000" not in whole(folder)
    assert bytes(kept) == site.files["pack/0.bin"]
    assert held(folder) == 3000


def test_what_killed_processes_had_begun_makes_room(site, folder, monkeypatch) -> None:
    bound(monkeypatch, 2000)
    a, b, c = chunks(site, 3)
    folder.mkdir(parents=True)
    for chunk in (a, b):
        (folder / f"{chunk[2]}-1000.begun").touch()
        (folder / f"{chunk[2]}-1000.77.partial").write_bytes(b"1")
    with FileLock(folder / f".{a[2][:2]}.lock"):  # that process lives
        mapped(opened(site), *c)
        assert whole(folder) == {f"{a[2]}-1000.begun", f"{a[2]}-1000.77.partial", f"{c[2]}-1000"}
    bound(monkeypatch, 1000)
    mapped(opened(site), *b)
    assert whole(folder) == {f"{b[2]}-1000"}


def test_a_bound_below_a_chunk_is_one_line(site, folder, monkeypatch) -> None:
    bound(monkeypatch, 999)
    (chunk,) = chunks(site, 1)
    said = line(mapped, opened(site), *chunk)
    assert said.endswith("can't hold 0.bin, which has 1e-06 GB: a larger REGARD_CACHE_GB would work")
    assert not folder.exists()


def test_without_an_environment_it_is_20_gb_in_the_home_folder(site, tmp_path, monkeypatch) -> None:
    (chunk,) = chunks(site, 1)
    for name in ("REGARD_CACHE", "REGARD_CACHE_GB"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    mapped(opened(site), *chunk)
    assert whole(tmp_path / "home/.cache/regard/chunks") == {f"{chunk[2]}-1000"}
    assert "the cache of 20 GB can't hold 0.bin, which has 20.5 GB" in line(
        mapped, opened(site), "0.bin", 20_500_000_000, chunk[2]
    )


@pytest.mark.parametrize("text", ["much", "0", "-1", "nan", "inf"])
def test_a_bound_that_is_none_is_one_line(site, monkeypatch, text) -> None:
    monkeypatch.setenv("REGARD_CACHE_GB", text)
    assert f"REGARD_CACHE_GB is '{text}': a number" in line(mapped, opened(site), *chunks(site, 1)[0])


def test_a_folder_that_can_not_be_written_is_one_line(site, tmp_path) -> None:
    (tmp_path / "cache").write_bytes(b"")
    said = line(mapped, opened(site), *chunks(site, 1)[0])
    assert said.endswith("can't be written: Not a directory; another folder in REGARD_CACHE would work")


def test_fetching_ahead_takes_half_of_the_bound_and_leaves_errors_to_the_reader(site, folder, monkeypatch) -> None:
    bound(monkeypatch, 8000)
    store, made = opened(site), chunks(site, 6)
    del site.files["pack/0.bin"]
    prefetch(store, made)
    until = time.monotonic() + 10
    while time.monotonic() < until and held(folder) < 3000:
        time.sleep(0.01)
    assert {path for path, _ in site.asked} == {f"pack/{number}.bin" for number in range(4)}
    asked = len(site.asked)
    assert [mapped(store, *chunk)[0] for chunk in made[1:4]] == [1, 2, 3]
    assert len(site.asked) == asked
    assert "no such file" in line(mapped, store, *made[0])


def read_all(store: Store, made: list, order: list[int]) -> None:
    """Of a process: exit status 0 if each chunk has its bytes."""
    for number in order:
        assert bytes(mapped(Store(store.shown), *made[number])) == bytes([number]) * made[number][1]


def test_processes_that_ask_at_once_fetch_once(site) -> None:
    made = chunks(site, 1)
    site.delay = 0.2
    workers = [FORK.Process(target=read_all, args=(opened(site), made, [0])) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert site.asked == [("pack/0.bin", "bytes=0-999")]


def test_the_bound_holds_for_several_processes(site, folder, monkeypatch) -> None:
    bound(monkeypatch, 200_000)  # three of nine
    made = chunks(site, 9, 60_000)
    orders = [np.random.default_rng(seed).permutation(9).tolist() * 3 for seed in range(3)]
    workers = [FORK.Process(target=read_all, args=(opened(site), made, order)) for order in orders]
    for worker in workers:
        worker.start()
    most = 0
    until = time.monotonic() + 60
    while any(worker.is_alive() for worker in workers) and time.monotonic() < until:
        most = max(most, held(folder))
    for worker in workers:
        worker.join(1)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert 60_000 <= most <= 200_000


class Chunks(Dataset):
    """The first byte of each chunk, by way of a store that was used before."""

    def __init__(self, store: Store, made: list) -> None:
        self.store, self.made = store, made

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, index: int) -> int:
        self.store.read(self.made[index][0])
        return mapped(self.store, *self.made[index])[0]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of one core
@pytest.mark.parametrize("scheme", ["http", "s3", "gs"])
def test_workers_go_on_with_a_store_that_was_used_before(site, tmp_path, scheme) -> None:
    made = chunks(site, 6)
    url = f"{site.url}/pack"
    file_system.cache_clear()
    with {"http": nullcontext, "s3": s3_server, "gs": gs_server}[scheme](*["bucket"] * (scheme != "http")):
        if scheme != "http":
            url = f"{scheme}://bucket/{tmp_path.name}"
            for name, _, _ in made:
                Store(url).put(site.files[f"pack/{name}"], name)
        store = Store(url)
        mapped(store, *made[0])
        prefetch(store, made[1:4])  # may be under way while the workers are made
        loader = DataLoader(Chunks(store, made), batch_size=2, num_workers=2, multiprocessing_context=FORK, timeout=60)
        assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3], [4, 5]]
        assert store.read("0.bin") == site.files["pack/0.bin"]  # the parent's connections are as they were


LEAVES = """
import sys
from regard.data.packs.cache import mapped, prefetch
from regard.data.packs.store import Store
store = Store(sys.argv[1])
mapped(store, "0.bin", 1000, sys.argv[2])
prefetch(store, [("1.bin", 1000, sys.argv[3])] * 3)
"""


def test_a_process_ends_while_chunks_are_fetched_ahead(site) -> None:
    made = chunks(site, 2)
    site.delay = 0.5
    command = [sys.executable, "-c", LEAVES, f"{site.url}/pack", made[0][2], made[1][2]]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_to_import_it_needs_no_fsspec() -> None:
    """The libraries of the stores take a second to import: only a store that is used needs them."""
    code = "import sys, regard.data.packs.cache; print(*{'fsspec', 's3fs', 'gcsfs', 'aiohttp'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == ""
