"""Packs from a bucket: every image once an epoch whoever reads, within the cache's bound, and exactly gone on with."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from safetensors.torch import load_file

from commands import fails, refused
from image_files import noise_files
from regard.cli import main
from regard.data.packs.packed import Packed
from regard.data.packs.packing import pack
from regard.data.packs.remote import file_system
from regard.data.packs.store import Store
from regard.data.source import open_source
from regard.errors import InputError
from servers import Site, gs_server, s3_server, web_server

HERE = Path(__file__).parent
LONG = 300  # seconds after which something hangs


@pytest.fixture
def bucket(tmp_path, monkeypatch) -> Iterator[str]:
    pytest.importorskip("moto", reason="needs moto (regard[dev])")
    pytest.importorskip("s3fs", reason="needs s3fs (regard[stream])")
    file_system.cache_clear()
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path / "cache"))
    name = f"images-{uuid4()}"  # moto keeps what is in a bucket beyond the server's end
    with s3_server(name):
        yield f"s3://{name}/deep/toy"


def same(ours: Packed, theirs: Packed) -> None:
    assert len(ours) == len(theirs)
    for i in range(len(ours)):
        assert ours.name(i) == theirs.name(i)
        np.testing.assert_array_equal(ours.image(i), theirs.image(i))


def packed_of(src) -> Packed:
    packed = open_source(src).splits["train"]
    assert isinstance(packed, Packed)
    return packed


def test_a_pack_is_the_same_in_s3_and_chunks_are_fetched_when_they_are_read(bucket, tmp_path, capsys):
    source = noise_files(tmp_path / "source", 40)
    pack(open_source(source), tmp_path / "pack", 1)
    main(["data", "pack", str(source), bucket, "--chunk_mb", "1"])
    assert f"packed in {bucket}: regard pretrain --data {bucket} ..." in capsys.readouterr().out
    remote = packed_of(bucket)
    chunks = tmp_path / "cache/chunks"
    assert not chunks.exists()
    remote.image(0)
    assert fetched(chunks) == [remote.parts[0].bytes]
    same(remote, packed_of(tmp_path / "pack"))
    main(["data", "info", bucket])
    assert f"pack at {bucket}: 40 train images" in capsys.readouterr().out
    main(["data", "check", bucket])
    main(["data", "pack", str(source), bucket, "--chunk_mb", "1"])
    assert "were there already" in capsys.readouterr().out


def fetched(folder: Path) -> list[int]:
    """The sizes of the whole chunks in the cache."""
    return [path.stat().st_size for path in folder.iterdir() if path.name[0] != "."]


def test_a_pack_in_google_cloud_storage_and_on_the_web(tmp_path, monkeypatch):
    pytest.importorskip("gcp_storage_emulator", reason="needs gcp-storage-emulator (regard[dev])")
    pytest.importorskip("gcsfs", reason="needs gcsfs (regard[stream])")
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path / "cache"))
    source = open_source(noise_files(tmp_path / "source", 12))
    pack(source, tmp_path / "pack", 1)
    with gs_server("images"):
        pack(source, "gs://images/toy", 1)
        same(packed_of("gs://images/toy"), packed_of(tmp_path / "pack"))
    with web_server() as site:
        site.serve(tmp_path / "pack", "toy")
        monkeypatch.setenv("REGARD_CACHE", str(tmp_path / "another"))
        same(packed_of(f"{site.url}/toy"), packed_of(tmp_path / "pack"))


@pytest.fixture
def web(tmp_path, monkeypatch) -> Iterator[Site]:
    """40 images in five chunks on a web server, at /toy."""
    pytest.importorskip("aiohttp", reason="needs aiohttp (regard[stream])")
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path / "cache"))
    pack(open_source(noise_files(tmp_path / "source", 40)), tmp_path / "pack", 1)
    with web_server() as site:
        site.serve(tmp_path / "pack", "toy")
        yield site


def chunks_asked(site: Site) -> list[str]:
    return [path for path, _ in site.asked if path.endswith(".bin")]


def test_a_check_is_of_the_pack_and_not_of_the_cache(web, capsys):
    url = f"{web.url}/toy"
    same(packed_of(url), packed_of(url))  # all is in the cache
    main(["data", "check", url])
    content = web.files["toy/train/chunk-0-1.bin"]
    web.files["toy/train/chunk-0-1.bin"] = content[:-1] + bytes([content[-1] ^ 1])
    del web.files["toy/train/chunk-0-3.bin"]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["data", "check", url])
    said = capsys.readouterr()
    assert "2 of 5 chunks are wrong" in said.err
    assert "chunk-0-1.bin" in said.out + said.err
    assert "chunk-0-3.bin" in said.out + said.err


def test_a_check_that_can_not_be_made_finds_nothing_wrong(web, capsys):
    url = f"{web.url}/toy"
    packed = packed_of(url)
    web.statuses = [403] * 20
    refused(lambda: packed.is_whole(packed.parts[0]), "chunk-0-0.bin is refused (403)")


def test_a_chunk_that_goes_bad_in_the_cache_is_named(web, tmp_path):
    packed_of(f"{web.url}/toy").image(0)
    (kept,) = [path for path in (tmp_path / "cache/chunks").iterdir() if path.name[0] != "."]
    kept.write_bytes(bytes(kept.stat().st_size))
    with pytest.raises(InputError, match=r"chunk-0-0.bin, or its copy in .*cache/chunks, is broken: to remove it"):
        packed_of(f"{web.url}/toy").image(0)


def test_a_look_at_few_labelled_images_fetches_few_chunks(web, tmp_path, capsys):
    for name in ("ants", "bees"):
        noise_files(tmp_path / "classes" / name, 15)
    pack(open_source(tmp_path / "classes"), tmp_path / "labelled", 1)
    web.files.clear()
    web.serve(tmp_path / "labelled", "toy")
    main(["data", "info", f"{web.url}/toy", "--limit", "1"])
    assert set(chunks_asked(web)) == {"toy/train/chunk-0-0.bin"}
    assert "ants" in capsys.readouterr().err


def test_nothing_of_somebody_else_is_written_over_in_a_bucket(bucket, tmp_path):
    source = open_source(noise_files(tmp_path / "source", 2))
    for name in ("train/index.json", "train/chunk-0-0.bin", "packing.json", "regard.json"):
        Store(f"{bucket}/{name[:9]}").put(b"mine", name)
        with pytest.raises(InputError, match=f"is no pack, and holds {name.split('/')[0]}|regard.json is broken"):
            pack(source, f"{bucket}/{name[:9]}")
        assert Store(f"{bucket}/{name[:9]}").read(name) == b"mine"


def test_a_pack_in_a_bucket_that_lacks_a_chunk_is_mended(bucket, tmp_path):
    source = open_source(noise_files(tmp_path / "source", 30))
    pack(source, bucket, 1)
    store, parts = Store(bucket), packed_of(bucket).parts
    store.put(b"short", f"train/{parts[1].file}")
    assert pack(source, bucket, 1)[2]
    assert not pack(source, bucket, 1)[2]
    assert all(packed_of(bucket).is_whole(part) for part in parts)


def test_a_pack_to_a_bucket_goes_on_where_it_was_cut_short(bucket, tmp_path, monkeypatch):
    source = open_source(noise_files(tmp_path / "source", 40))
    written: list[str] = []
    write = Store.put

    def fragile(self, content: bytes, name: str) -> None:
        written.append(name)
        if name == "train/chunk-0-3.bin" and written.count(name) == 1:
            raise KeyboardInterrupt
        write(self, content, name)

    monkeypatch.setattr(Store, "put", fragile)
    with pytest.raises(KeyboardInterrupt):
        pack(source, bucket, 1)
    with pytest.raises(InputError, match=f"{bucket} is not packed to its end: the same `regard data pack` goes on"):
        open_source(bucket)
    pack(source, bucket, 1)
    assert written.count("train/chunk-0-2.bin") == 1
    pack(source, tmp_path / "whole", 1)
    assert packed_of(bucket).parts == packed_of(tmp_path / "whole").parts
    same(packed_of(bucket), packed_of(tmp_path / "whole"))


def test_where_there_is_no_pack(bucket, tmp_path, capsys):
    for src, words in (
        (f"{bucket}-2", f"there is no pack at {bucket}-2, or no such bucket: regard data pack SRC"),
        ("s3://no-such-bucket/toy", "no-such-bucket"),
        ("ftp://host/toy", "ftp://"),
        ("s3:/images/toy", "s3:/images/toy is no URL: a pack at s3://BUCKET/FOLDER"),
    ):
        assert words in fails(capsys, "data", "info", src)


def process(arguments: list[str], **environment: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, *arguments], env=os.environ | {"OMP_NUM_THREADS": "1"} | environment)


@pytest.mark.slow
def test_two_processes_read_every_image_once_an_epoch_within_the_bound(bucket, tmp_path):
    """61 images in 7 chunks of 1 MB, a cache for three and a half of them, two processes with two loaders each."""
    pack(open_source(noise_files(tmp_path / "source", 61)), bucket, 1)
    bound, chunks = 3_700_000, tmp_path / "cache/chunks"
    processes = [
        process(
            [str(HERE / "record_epoch.py"), bucket, str(tmp_path / f"{rank}.json"), "8", "3"],
            RANK=str(rank), WORLD_SIZE="2", REGARD_CACHE_GB=str(bound / 1e9),
        )
        for rank in range(2)
    ]  # fmt: skip
    most, deadline = 0, time.monotonic() + LONG
    while any(of.poll() is None for of in processes):
        if time.monotonic() > deadline:
            [of.kill() for of in processes]
            pytest.fail("the processes wait for each other")
        if chunks.is_dir():
            most = max(most, sum(size_of(path) for path in chunks.iterdir()))
        time.sleep(0.01)
    assert [of.returncode for of in processes] == [0, 0]
    assert 1_000_000 < most <= bound
    read = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    every = {f"{i:03}.png" for i in range(61)}
    orders = []
    for epoch in range(3):
        assert len(read[0][epoch]) == len(read[1][epoch]) == 28
        orders.append(read[0][epoch] + read[1][epoch])
        assert len(set(orders[-1])) == 56  # none twice; five do not fill a batch
        assert set(orders[-1]) < every
    assert orders[0] != orders[1] != orders[2]


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


VIT = '{"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3}'


@pytest.mark.slow
def test_a_killed_pretrain_from_a_bucket_goes_on_bit_for_bit(bucket, tmp_path):
    pack(open_source(noise_files(tmp_path / "source", 66)), bucket, 1)
    command = [
        "pretrain", "--data", bucket, "--size", "32", "--batch_size", "8", "--epochs", "3",
        "--workers", "1", "--backbone", "vit_tiny_patch16_224", "--backbone_options", VIT,
        "--method_options", '{"widths": [32, 32]}', "--accelerator", "cpu",
    ]  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    uninterrupted = process(["-m", "regard", *command, "--out", str(whole)])
    signalled = [str(HERE.parents[1] / "signalled.py"), "SIGKILL", "10"]  # of 8 steps an epoch
    assert process([*signalled, *command, "--out", str(cut), "--checkpoint_minutes", "0"]).wait(LONG) == -signal.SIGKILL
    assert not list(cut.glob("*.safetensors"))
    for chunk in (tmp_path / "cache/chunks").glob("*"):  # and the disk of another machine may hold none of it
        chunk.unlink()
    assert process(["-m", "regard", *command, "--out", str(cut)]).wait(LONG) == 0
    assert uninterrupted.wait(LONG) == 0
    ours, theirs = (load_file(folder / "backbone.safetensors") for folder in (cut, whole))
    assert ours.keys() == theirs.keys()
    assert all(bool((ours[key] == theirs[key]).all()) for key in ours)
    curves = [json.loads((folder / "pretrain.json").read_text())["curve"] for folder in (cut, whole)]
    assert curves[0] == curves[1]


@pytest.mark.slow
def test_segment_evaluate_embed_and_score_read_a_pack_from_a_bucket(bucket, tmp_path):
    source = open_source("scenes", scenes_size=32, scenes_count={"train": 16, "val": 6})
    pack(source, bucket)
    tiny = ["--backbone", "vit_tiny_patch16_224", "--backbone_options", VIT, "--accelerator", "cpu"]
    out = str(tmp_path / "run")
    train = ["--size", "32", "--batch_size", "8", "--epochs", "1", "--workers", "0", "--out", out]
    main(["segment", "--data", bucket, *tiny, "--fusion", "gate", "--head", "linear", *train])
    assert json.loads((tmp_path / "run/run.json").read_text())
    main(["evaluate", "--run", out, "--data", bucket, "--split", "val"])
    assert json.loads((tmp_path / "run/evaluation-val.json").read_text())["images"] == 6
    look = ["--data", bucket, "--split", "val", "--size", "32", *tiny]
    main(["embed", *look, "--method", "pca", "--out", str(tmp_path / "embedding")])
    assert len((tmp_path / "embedding/embedding.csv").read_text().splitlines()) == 1 + 6
    main(["score", *look, "--out", str(tmp_path / "scores")])
    assert list((tmp_path / "scores").glob("*.json"))
