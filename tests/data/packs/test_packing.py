"""A pack holds what its source held, whatever happened while it was made; what is no pack is refused in one line."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from commands import fails, refused
from image_files import noise, noise_files, save
from regard.cli import main
from regard.data.datasets.base import LabelDataset, MaskDataset
from regard.data.packs.contents import PACK_FILE, UNFINISHED_FILE, VERSION
from regard.data.packs.packed import Packed
from regard.data.packs.packing import LOCK_FILE, pack
from regard.data.reading import read_image
from regard.data.source import Source, check_readable, fingerprint, open_source
from regard.errors import InputError


def images(root: Path, count: int = 7) -> Path:
    """A JPEG that must be turned, a grey one, one of four channels, and a WebP among them."""
    turned = Image.Exif()
    turned[274] = 6
    for i in range(count):
        save(root / f"deep/{i}.jpg", noise(i))
    save(root / "turned.jpg", noise(90), exif=turned)
    save(root / "grey.jpg", noise(91)[..., 0])
    save(root / "clear.png", noise(92, 24, 40).reshape(24, 30, 4))
    save(root / "small.webp", noise(93), lossless=True)
    return root


def classes(root: Path) -> Path:
    for split, count in (("train", 5), ("val", 2)):
        for label in ("ants", "bees", "cats"):
            for i in range(count):
                save(root / split / label / f"{i}.png", noise(i))
    return root


def pairs(root: Path, count: int = 9) -> Path:
    """Masks of values, with void."""
    for i in range(count):
        folder = "val" if i % 3 == 0 else "train"
        save(root / f"images/{folder}/{i}.png", noise(i))
        save(
            root / f"masks/{folder}/{i}.png", np.where(noise(i)[..., 0] > 9, noise(i)[..., 0] % 3, 255).astype(np.uint8)
        )
    (root / "classes.txt").write_text("sky\nroad\ntree")
    return root


def coloured(root: Path) -> Path:
    """Masks of colours, which classes.json gives to classes."""
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 0]], np.uint8)
    for i in range(6):
        save(root / f"images/{i}.jpg", noise(i))
        save(root / f"masks/{i}.png", colours[noise(i)[..., 0] % 3])
    named = [("red", colours[0]), ("green", colours[1]), ("void", colours[2])]
    (root / "classes.json").write_text(json.dumps([{"name": n, "color": c.tolist()} for n, c in named]))
    return root


def voc(root: Path) -> Path:
    for i in range(6):
        save(root / f"JPEGImages/{i}.jpg", noise(i))
        save(root / f"SegmentationClass/{i}.png", noise(i)[..., 0] % 21)
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n1\n2\n3\n")
    (lists / "val.txt").write_text("4\n5\n")
    return root


def plain(pixels: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    return pixels.shape, pixels.tobytes()


def everything(source: Source, split: str) -> dict[str, list]:
    """Name -> image, and mask or label."""
    dataset, found = source.splits[split], {}
    for i in range(len(dataset)):
        more = [plain(dataset.mask(i))] if isinstance(dataset, MaskDataset) else []
        more += [dataset.label(i)] if isinstance(dataset, LabelDataset) else []
        found[dataset.name(i)] = [plain(dataset.image(i)), *more]
    assert len(found) == len(dataset)
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- what comes out is what went in


@pytest.mark.parametrize("make", [images, classes, pairs, coloured, voc, None])
def test_a_pack_of_any_source_is_the_same_data(make, tmp_path):
    if make is None:
        source = open_source("scenes", scenes_size=32, scenes_count={"train": 7, "val": 3, "test": 2})
    else:
        source = open_source(make(tmp_path / "source"))
    _, made, new = pack(source, tmp_path / "pack")
    assert new
    packed = open_source(tmp_path / "pack")
    assert packed.layout == "packed"
    assert (packed.has_masks, packed.has_labels) == (source.has_masks, source.has_labels)
    assert (packed.classes, packed.ignore_index) == (source.classes, source.ignore_index)
    np.testing.assert_array_equal(packed.palette, source.palette)
    assert list(packed.splits) == list(source.splits)
    assert sum(chunk.images for of in made.splits.values() for chunk in of) == sum(map(len, source.splits.values()))
    for split in source.splits:
        assert everything(packed, split) == everything(source, split)
        names = [[of.splits[split].name(i) for i in range(len(of.splits[split]))] for of in (source, packed)]
        assert (names[0] == names[1]) == (split != "train")  # train is shuffled once, the others are in order
    check_readable(packed)
    assert packed.describe().startswith(f"pack at {(tmp_path / 'pack').resolve()}: ")


def test_a_pack_can_be_packed_again_in_chunks_of_another_size(tmp_path):
    pack(open_source(noise_files(tmp_path / "source", 40)), tmp_path / "first", 1)
    pack(open_source(tmp_path / "first"), tmp_path / "second", 3)
    first, second = open_source(tmp_path / "first"), open_source(tmp_path / "second")
    assert everything(second, "train") == everything(first, "train")
    chunks = [of.splits["train"].chunks for of in (first, second)]  # type: ignore[attr-defined]
    assert len(chunks[1]) < len(chunks[0])


def test_image_files_are_kept_to_the_byte(tmp_path):
    source = open_source(images(tmp_path / "source"))
    pack(source, tmp_path / "pack")
    packed = open_source(tmp_path / "pack").splits["train"]
    assert isinstance(packed, Packed)
    for i in range(len(packed)):
        assert packed.encoded(i) == (tmp_path / "source" / packed.name(i)).read_bytes()


def test_images_are_found_by_number_in_many_chunks_from_copies_and_the_end(tmp_path):
    noise_files(tmp_path / "source", 40)
    pack(open_source(tmp_path / "source"), tmp_path / "pack", 1)
    packed = open_source(tmp_path / "pack").splits["train"]
    assert isinstance(packed, Packed)
    assert len(packed.chunks) > 3
    assert sum(packed.chunks) == len(packed) == 40
    copied = pickle.loads(pickle.dumps(packed))
    numbers = np.random.default_rng(0).permutation(40).tolist()
    names = {i: packed.name(i) for i in numbers}
    assert len(set(names.values())) == 40
    for i in numbers:
        assert copied.name(i) == names[i]
        np.testing.assert_array_equal(copied.image(i), read_image(tmp_path / "source" / names[i]))
    assert packed.name(-1) == names[39]
    with pytest.raises(IndexError):
        packed.name(40)


def test_litdata_reads_the_same_pack(tmp_path):
    litdata = pytest.importorskip("litdata", reason="needs litdata (regard[stream])")
    for name, make in (("masks", pairs), ("labels", classes), ("images", images)):
        pack(open_source(make(tmp_path / name / "source")), tmp_path / name / "pack", 1)
        packed = open_source(tmp_path / name / "pack").splits["train"]
        assert isinstance(packed, Packed)
        theirs = litdata.StreamingDataset(str(tmp_path / name / "pack/train"))
        assert len(theirs) == len(packed)
        for i in range(len(packed)):
            sample = theirs[i]
            assert tuple(sample) == packed.fields
            assert sample["name"] == packed.name(i)
            assert sample["image"] == packed.encoded(i)
            if name == "labels":
                assert sample["label"] == packed.label(i)  # type: ignore[attr-defined]
            if name == "masks":
                mask = cv2.imdecode(np.frombuffer(sample["mask"], np.uint8), cv2.IMREAD_UNCHANGED)
                np.testing.assert_array_equal(mask, packed.mask(i))  # type: ignore[attr-defined]


# ---- cut short and gone on with


def test_a_pack_that_was_killed_goes_on_behind_what_is_whole(tmp_path):
    noise_files(tmp_path / "source", 200)
    pack(open_source(tmp_path / "source"), tmp_path / "whole", 1)
    command = [sys.executable, "-m", "regard", "data", "pack", str(tmp_path / "source"), str(tmp_path / "cut")]
    process = subprocess.Popen([*command, "--chunk_mb", "1"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        for _ in range(3000):
            if len(list((tmp_path / "cut/train").glob("*.bin"))) >= 2:
                break
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert PACK_FILE not in files(tmp_path / "cut"), "killed too late to tell"
    with pytest.raises(InputError, match=r"not packed to its end: the same `regard data pack` goes on with it"):
        open_source(tmp_path / "cut")
    first = tmp_path / "cut/train/chunk-0-0.bin"
    before = first.stat().st_mtime_ns
    pack(open_source(tmp_path / "source"), tmp_path / "cut", 1)
    same(tmp_path / "cut", tmp_path / "whole")
    assert first.stat().st_mtime_ns == before  # it was not written again
    assert not list((tmp_path / "cut").rglob("*.partial"))


def same(one: Path, other: Path) -> None:
    """Two packs hold the same, and LitData's lists say so."""
    main(["data", "check", str(one)])
    assert everything(open_source(one), "train") == everything(open_source(other), "train")
    lists = [json.loads((of / "train/index.json").read_text())["chunks"] for of in (one, other)]
    assert lists[0] == lists[1]


def interrupted(source: Source, to: Path, monkeypatch) -> None:
    """Pack the first 28 of 40 images, in their shuffled order, until an interrupt comes."""
    dataset, late = source.splits["train"], set(np.random.default_rng(0).permutation(40)[28:].tolist())
    whole = dataset.encoded  # type: ignore[attr-defined]

    def encoded(i: int) -> bytes:
        if i in late:  # not by counting calls: threads do not keep their order
            raise KeyboardInterrupt
        return whole(i)

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "encoded", encoded)
        with pytest.raises(KeyboardInterrupt):
            pack(source, to, 1)


def spoil(chunk: Path, harm: str) -> None:
    content = chunk.read_bytes()
    if harm == "gone":
        chunk.unlink()
    else:
        chunk.write_bytes(content[:-7] if harm == "cut" else content[:-7] + b"changed")


@pytest.mark.parametrize("which", [0, -1])
@pytest.mark.parametrize("harm", ["cut", "changed", "gone"])
def test_a_chunk_that_is_not_whole_is_written_again(harm, which, tmp_path, monkeypatch):
    source = open_source(noise_files(tmp_path / "source", 40))
    pack(source, tmp_path / "whole", 1)
    interrupted(source, tmp_path / "cut", monkeypatch)
    chunks = sorted((tmp_path / "cut/train").glob("*.bin"))
    assert 1 < len(chunks) < 5
    assert not list(tmp_path.rglob("*.partial"))
    spoil(chunks[which], harm)
    pack(source, tmp_path / "cut", 1)
    same(tmp_path / "cut", tmp_path / "whole")


def test_what_was_begun_with_other_files_or_settings_is_refused(tmp_path, monkeypatch, capsys):
    source = open_source(noise_files(tmp_path / "source", 40))
    interrupted(source, tmp_path / "cut", monkeypatch)
    before = files(tmp_path / "cut")
    said = fails(capsys, "data", "pack", str(tmp_path / "source"), str(tmp_path / "cut"), "--chunk_mb", "2")
    assert "holds a pack of other content or settings (it differs in --chunk_mb): another folder" in said
    save(tmp_path / "source/new.png", noise(1))
    said = fails(capsys, "data", "pack", str(tmp_path / "source"), str(tmp_path / "cut"), "--chunk_mb", "1")
    assert "(it differs in its files)" in said
    assert files(tmp_path / "cut") == before


def test_packing_what_is_packed_changes_nothing_and_says_so(tmp_path, capsys):
    pairs(tmp_path / "source")
    arguments = ["data", "pack", str(tmp_path / "source"), str(tmp_path / "pack")]
    main(arguments)
    before = files(tmp_path / "pack")
    said = capsys.readouterr()
    assert said.out.startswith("9 images, 0.0 MB in 2 chunks, packed in ")
    assert said.out.endswith(f"regard segment --data {tmp_path / 'pack'} ...\n")
    main(arguments)
    assert "were there already, and whole" in capsys.readouterr().out
    assert files(tmp_path / "pack") == before
    assert set(before) == {PACK_FILE, *(f"{s}/{f}" for s in ("train", "val") for f in ("index.json", "chunk-0-0.bin"))}


# ---- bad images


@pytest.mark.parametrize("file", ["images/train/4.png", "masks/train/4.png"])
def test_a_bad_image_or_mask_stops_a_pack_or_is_left_out_and_named(file, tmp_path, capsys):
    pairs(tmp_path / "source")
    (tmp_path / "source" / file).write_bytes(b"broken")
    arguments = ["pack", str(tmp_path / "source"), str(tmp_path / "pack")]
    said = fails(capsys, "data", *arguments)
    assert "4.png" in said
    assert "can't be read" in said
    assert not (tmp_path / "pack" / PACK_FILE).exists()
    main(["data", *arguments, "--on_bad_image", "skip"])  # goes on with the same pack
    said = capsys.readouterr()
    assert "8 images" in said.out
    assert "1 images are left out" in said.err
    assert "left out: " in said.err
    assert "train/4.png can't be read" in " ".join(said.err.split())
    assert not (tmp_path / "pack" / UNFINISHED_FILE).exists()
    packed = open_source(tmp_path / "pack")
    assert sorted(everything(packed, "train")) == [f"images/train/{i}.png" for i in (1, 2, 5, 7, 8)]


def test_a_split_without_a_readable_image_is_refused(tmp_path, capsys):
    images(tmp_path / "source")
    for path in (tmp_path / "source").rglob("*.*"):
        path.write_bytes(b"broken")
    said = fails(capsys, "data", "pack", str(tmp_path / "source"), str(tmp_path / "pack"), "--on_bad_image", "skip")
    assert "no image of train of" in said


def test_masks_of_nothing_but_void_are_noticed_before_a_training(tmp_path):
    pairs(tmp_path / "source")
    for path in (tmp_path / "source/masks/val").glob("*.png"):
        save(path, np.full((24, 30), 255, np.uint8))
    pack(open_source(tmp_path / "source"), tmp_path / "pack")
    with pytest.raises(InputError, match=r"every pixel of the val masks of .*pack is void"):
        check_readable(open_source(tmp_path / "pack"))


# ---- errors, each one line and exit status 2


def test_where_a_pack_cannot_go(tmp_path, capsys):
    source = images(tmp_path / "source")
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("")
    for to, words in (
        (tmp_path / "file", "is a file, and a folder is to be there"),
        (tmp_path / "full", "is no pack, and holds notes.txt: an empty or a new folder would work"),
        (source, "is within"),
        (source / "deep/pack", "is within"),
        (tmp_path / "file/pack", "is a file, and a folder is to be there"),
        ("https://user:secret@host/pack?token=secret", "https://host/pack can be read from, not written to"),
    ):
        said = fails(capsys, "data", "pack", str(source), str(to))
        assert words in said
        assert "secret" not in said
    for size in ("0", "5,000"):
        said = fails(capsys, "data", "pack", str(source), str(tmp_path / "p"), "--chunk_mb", size.replace(",", ""))
        assert f"chunk_mb {size} is out of bounds" in said
    assert "no such folder" in fails(capsys, "data", "pack", str(tmp_path / "nowhere"), str(tmp_path / "p"))
    assert not (tmp_path / "p").exists()
    assert not (source / "deep/pack").exists()


def test_a_pack_that_is_broken_is_named(tmp_path, capsys):
    pack(open_source(noise_files(tmp_path / "source", 40)), tmp_path / "pack", 1)
    here = str(tmp_path / "pack")
    content = (tmp_path / "pack/train/chunk-0-1.bin").read_bytes()
    (tmp_path / "pack/train/chunk-0-1.bin").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "1 of 5 chunks are wrong" in fails(capsys, "data", "check", here)
    refused(lambda: everything(open_source(here), "train"), "chunk-0-1.bin is damaged: its SHA-256 is another")
    (tmp_path / "pack/train/chunk-0-1.bin").write_bytes(content[:-1])
    for harm in ((tmp_path / "pack/train/chunk-0-1.bin").unlink, lambda: None):
        with pytest.raises(InputError, match=f"chunk-0-1.bin is not there, or has not the {len(content):,} bytes"):
            everything(open_source(here), "train")
        harm()


CHANGES = {
    "a sum that is a path": ("chunk", {"sha256": "../../" + "0" * 58}),
    "a name that is a path": ("chunk", {"file": "../chunk-0-0.bin"}),
    "no images": ("chunk", {"images": 0}),
    "more images than bytes": ("chunk", {"images": 10**9}),
    "a number of bytes that is a text": ("chunk", {"bytes": "12"}),
    "a negative number": ("chunk", {"bytes": -1}),
    "a field of another time": ("chunk", {"colour": 1}),
    "a kind that is none": ("all", {"kind": "sounds"}),
    "classes that are no names": ("all", {"classes": [1]}),
    "a palette of other length": ("all", {"palette": [[1, 2, 3]] * 7}),
    "no colours": ("all", {"palette": [[1, 2, 300]]}),
    "no splits": ("all", {"splits": {}}),
    "a split that is a path": ("splits", {"../train": []}),
    "a split without chunks": ("splits", {"train": []}),
    "another version": ("all", {"version": VERSION - 1}),
}


@pytest.mark.parametrize("change", [*CHANGES, "{", "[]", "{}", '{"version": 3}', "[" * 100_000, '{"kind": "\udcff"}'])
def test_a_list_that_can_not_be_one_is_named_and_nothing_of_it_used(change, tmp_path):
    pack(open_source(pairs(tmp_path / "source")), tmp_path / "pack")
    file, text = tmp_path / "pack" / PACK_FILE, change
    if change in CHANGES:
        said = json.loads(file.read_text())
        where, new = CHANGES[change]
        of = {"all": said, "splits": said["splits"], "chunk": said["splits"]["train"][0]}
        of[where].update(new)
        text = json.dumps(said)
    file.write_text(text, errors="surrogateescape")
    with pytest.raises(InputError, match=f"{PACK_FILE} is broken, or of another version than 3: to pack into another"):
        open_source(tmp_path / "pack")


@pytest.mark.parametrize("text", ["", "x", "[]", "{}", '{"version": 2, "from": "a"}'])
def test_a_packing_json_of_somebody_else_makes_no_pack(text, tmp_path, capsys):
    images(tmp_path / "source")
    (tmp_path / "source" / UNFINISHED_FILE).write_text(text)
    assert open_source(tmp_path / "source").layout == "images"
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / UNFINISHED_FILE).write_text(text)
    said = fails(capsys, "data", "pack", str(tmp_path / "source"), str(tmp_path / "to"))
    assert f"is no pack, and holds {UNFINISHED_FILE}" in said
    assert (tmp_path / "to" / UNFINISHED_FILE).read_text() == text


@pytest.mark.parametrize("harm", ["cut", "changed", "gone", "index.json"])
def test_a_finished_pack_that_is_not_whole_is_mended(harm, tmp_path, capsys):
    arguments = ["data", "pack", str(noise_files(tmp_path / "source", 40)), str(tmp_path / "pack"), "--chunk_mb", "1"]
    main([*arguments, "--on_bad_image", "skip"])
    before = files(tmp_path / "pack")
    if harm == "index.json":
        (tmp_path / "pack/train/index.json").unlink()
    else:
        spoil(tmp_path / "pack/train/chunk-0-1.bin", harm)
    capsys.readouterr()
    main(arguments)
    assert files(tmp_path / "pack") == before
    assert ("packed in" in capsys.readouterr().out) == (harm != "index.json")
    main(arguments)
    assert "were there already, and whole" in capsys.readouterr().out


def test_a_pack_is_mended_without_what_was_left_out(tmp_path):
    noise_files(tmp_path / "source", 40)
    (tmp_path / "source/007.png").write_bytes(b"broken")
    source = open_source(tmp_path / "source")
    pack(source, tmp_path / "pack", 1, "skip")
    before = everything(open_source(tmp_path / "pack"), "train")
    (tmp_path / "pack/train/chunk-0-1.bin").unlink()
    pack(source, tmp_path / "pack", 1, "skip")
    assert everything(open_source(tmp_path / "pack"), "train") == before
    assert len(before) == 39


def test_two_calls_do_not_pack_into_one_folder(tmp_path, capsys):
    images(tmp_path / "source")
    with FileLock(tmp_path / "pack" / LOCK_FILE):
        said = fails(capsys, "data", "pack", str(tmp_path / "source"), str(tmp_path / "pack"))
        assert f"{tmp_path / 'pack'} is being packed into: its end, or another folder, would work" in said
        assert os.listdir(tmp_path / "pack") == [LOCK_FILE]
    pack(open_source(tmp_path / "source"), tmp_path / "pack")
    assert LOCK_FILE not in os.listdir(tmp_path / "pack")


def test_the_fingerprint_is_of_the_content_and_not_of_the_place(tmp_path):
    source = open_source(pairs(tmp_path / "source"))
    pack(source, tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first = fingerprint(open_source(tmp_path / "a"))
    assert fingerprint(open_source(tmp_path / "b")) == first
    save(tmp_path / "source/images/train/1.png", noise(99))
    pack(open_source(tmp_path / "source"), tmp_path / "c")
    assert fingerprint(open_source(tmp_path / "c")) != first
