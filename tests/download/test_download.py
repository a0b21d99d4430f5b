"""Downloads from a server of our own on 127.0.0.1: whole, broken off, changed meanwhile, wrong, and out of bounds."""

import errno
import hashlib
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from commands import refused
from regard.data.datasets import DATASETS
from regard.data.datasets.published import Archive, Published, published
from regard.data.datasets.scenes import Scenes
from regard.data.source import open_source
from regard.download import archives, transfer
from regard.download.dataset import NOTES, download
from regard.errors import InputError
from servers import Site, web_server


@pytest.fixture
def site(monkeypatch) -> Iterator[Site]:
    monkeypatch.setattr(transfer, "WAIT", 0.0)
    with web_server() as site:
        site.tag = '"first"'
        yield site


def md5(content: bytes) -> str:
    return "md5:" + hashlib.md5(content).hexdigest()


def png(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def tree() -> dict[str, bytes]:
    """An images/ + masks/ tree in a folder "small"."""
    scenes = Scenes(4, size=48)
    files = {"small/classes.txt": "\n".join(scenes.classes).encode()}
    for i in range(4):
        files[f"small/images/{i}.png"], files[f"small/masks/{i}.png"] = png(scenes.image(i)), png(scenes.mask(i))
    return files


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def tarred(files: dict[str, bytes], *members: tarfile.TarInfo) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in members:
            archive.addfile(member)
    return stream.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def entry(site: Site, name: str, **facts) -> Published:
    return Published("http://home", archives=(Archive(f"{site.url}/{name}", **facts),), root="small")


@pytest.mark.parametrize(("name", "packed"), [("small.zip", zipped), ("small.tgz", tarred)])
def test_a_whole_download_is_checked_unpacked_and_not_done_twice(name, packed, site, tmp_path) -> None:
    files = tree()
    site.files[name] = body = packed(files)
    data, out = entry(site, name, size=len(body), checksum=md5(body)), tmp_path / "new" / "out"
    done = download(data, out)
    assert (done.root, done.new) == (out / "small", (name,))
    notes = json.loads((out / NOTES).read_text())[name]
    assert notes["sha256"] == hashlib.sha256(body).hexdigest()
    assert notes["size"] == len(body)
    assert {path: content for path, content in contents(out).items() if path != NOTES} == files
    assert open_source(done.root).classes == Scenes.classes

    assert download(data, out).new == ()
    assert site.ranges_asked == [None]
    (out / "small").rename(out / "gone")
    assert download(data, out, keep_archives=True).new == (name,)
    assert (out / name).read_bytes() == body
    (out / "small").rename(out / "gone too")
    download(data, out)  # from the archive that was kept
    assert len(site.asked) == 2


def test_archives_go_into_their_folders_beside_each_other(site, tmp_path) -> None:
    site.files = {"a.zip": zipped({"train/1.png": b"1"}), "b.zip": zipped({"train/1.png": b"2"})}
    data = Published(
        "", archives=(Archive(f"{site.url}/a.zip", into="images"), Archive(f"{site.url}/b.zip", into="masks"))
    )
    download(data, tmp_path)
    found = contents(tmp_path)
    assert (found["images/train/1.png"], found["masks/train/1.png"]) == (b"1", b"2")
    assert len(found) == 3


def test_a_broken_connection_goes_on_at_the_byte_where_it_broke(site, tmp_path) -> None:
    site.files["small.zip"] = body = zipped(tree())
    site.cuts = [1000, 500]
    download(entry(site, "small.zip", checksum=md5(body)), tmp_path)
    assert site.ranges_asked == [None, "bytes=1000-", "bytes=1500-"]
    assert len(contents(tmp_path)) == 10


def test_what_is_interrupted_stays_and_the_next_call_goes_on_there(site, tmp_path) -> None:
    site.files["small.zip"] = body = zipped(tree())

    def stop(done: int, whole: int | None) -> None:
        raise KeyboardInterrupt

    site.cuts = [700]
    with pytest.raises(KeyboardInterrupt):
        transfer.transfer(f"{site.url}/small.zip", tmp_path / "small.zip", progress=stop)
    assert (tmp_path / "small.zip.partial").read_bytes() == body[:700]
    download(entry(site, "small.zip", checksum=md5(body)), tmp_path)
    assert site.ranges_asked == [None, "bytes=700-"]
    assert not list(tmp_path.glob("*.partial*"))


def test_a_server_without_ranges_is_asked_for_the_whole_again(site, tmp_path) -> None:
    site.files["small.zip"] = body = zipped(tree())
    site.ranges, site.cuts = False, [1000, 2000]
    transfer.transfer(f"{site.url}/small.zip", tmp_path / "small.zip")
    assert (tmp_path / "small.zip").read_bytes() == body
    assert len(site.asked) == 3


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
def test_without_a_strong_tag_no_part_is_asked_for(tag, site, tmp_path) -> None:
    """A weak tag says that two files mean the same, not that they have the same bytes."""
    site.files["a"], site.tag, site.cuts = b"0123456789", tag, [4]
    transfer.transfer(f"{site.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"0123456789"
    assert site.ranges_asked == [None, None]


def test_a_file_that_changed_on_the_server_is_begun_again(site, tmp_path) -> None:
    site.files["a"], site.cuts = b"old" * 100, [150]
    (tmp_path / "a.partial").write_bytes(b"old" * 50)
    (tmp_path / "a.partial.tag").write_text('"first"')
    site.files["a"], site.tag, site.cuts = b"new" * 90, '"second"', []
    transfer.transfer(f"{site.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"new" * 90
    assert site.ranges_asked == ["bytes=150-"]


def test_a_part_of_another_file_is_not_joined_to_what_is_here(site, tmp_path) -> None:
    """Of a server that answers a Range whatever the condition."""
    site.files["a"], site.tag, site.conditions = b"new" * 90, '"second"', False
    (tmp_path / "a.partial").write_bytes(b"old" * 50)
    (tmp_path / "a.partial.tag").write_text('"first"')
    transfer.transfer(f"{site.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"new" * 90
    assert site.ranges_asked == ["bytes=150-", None]


def test_what_was_whole_but_for_its_name_is_not_fetched_again(site, tmp_path) -> None:
    site.files["a"] = b"x" * 100
    (tmp_path / "a.partial").write_bytes(b"x" * 100)
    (tmp_path / "a.partial.tag").write_text('"first"')
    transfer.transfer(f"{site.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"x" * 100
    assert sorted(contents(tmp_path)) == ["a"]
    (tmp_path / "b.partial").write_bytes(b"x" * 150)  # longer than what the server has
    (tmp_path / "b.partial.tag").write_text('"first"')
    site.files["b"] = b"y" * 100
    transfer.transfer(f"{site.url}/b", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"y" * 100


def test_a_server_that_is_busy_is_asked_again_and_one_that_never_answers_is_given_up(site, tmp_path) -> None:
    site.files["a"], site.statuses = b"0123", [503, 429]
    transfer.transfer(f"{site.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"0123"
    site.files["b"], site.cuts = b"0123", [2] + [0] * 20
    with pytest.raises(InputError, match=r"after 5 tries .* 2 bytes are kept"):
        transfer.transfer(f"{site.url}/b", tmp_path / "b")
    assert len(site.asked) == 3 + 1 + 4
    assert (tmp_path / "b.partial").read_bytes() == b"01"


def test_each_piece_that_arrives_buys_new_tries(site, tmp_path) -> None:
    site.files["a"], site.cuts = b"0123456789", [1] * 9
    transfer.transfer(f"{site.url}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_what_is_not_there_is_one_line_and_leaves_nothing(site, tmp_path) -> None:
    with pytest.raises(InputError, match="404 Not Found: the data set may have moved") as said:
        download(entry(site, "gone.zip"), tmp_path / "new" / "out")
    assert "\n" not in str(said.value)
    assert site.ranges_asked == [None]  # asking again would not help
    assert not list(tmp_path.iterdir())


def test_a_wrong_checksum_deletes_the_archive_and_leaves_nothing(site, tmp_path) -> None:
    site.files["small.zip"] = body = zipped(tree())
    published = md5(b"another")
    with pytest.raises(InputError, match="is published: it was deleted") as said:
        download(entry(site, "small.zip", checksum=published), tmp_path / "out")
    assert md5(body)[4:] in str(said.value)
    assert published[4:] in str(said.value)
    assert not list(tmp_path.iterdir())


def test_another_size_than_published_is_said_before_anything_is_fetched(site, tmp_path) -> None:
    site.files["small.zip"] = zipped(tree())
    refused(lambda: download(entry(site, "small.zip", size=12), tmp_path / "out"), "and 12 are published")
    assert not list(tmp_path.iterdir())


def test_without_a_published_checksum_the_first_one_is_noted_and_the_second_compared(site, tmp_path, capsys) -> None:
    site.files["small.zip"] = body = zipped(tree())
    data = entry(site, "small.zip")
    download(data, tmp_path)
    assert hashlib.sha256(body).hexdigest() in capsys.readouterr().err
    (tmp_path / "small").rename(tmp_path / "first")
    site.files["small.zip"] = zipped(tree() | {"small/new.txt": b"more"})
    refused(lambda: download(data, tmp_path), "noted of an earlier download")
    assert not (tmp_path / "small").exists()


def test_bytes_that_changed_within_a_zip_are_found_without_a_checksum(site, tmp_path) -> None:
    site.files["small.zip"] = zipped(tree()).replace(b"background", b"foreground", 1)
    refused(lambda: download(entry(site, "small.zip"), tmp_path), "is broken")
    assert sorted(contents(tmp_path)) == ["small.zip"]


@pytest.mark.parametrize(("name", "body"), [("a.zip", b"no zip"), ("a.tar", b"no tar"), ("a.tgz", b"\x1f\x8bno")])
def test_what_is_no_archive_is_one_line(name: str, body: bytes, tmp_path) -> None:
    (tmp_path / name).write_bytes(body)
    with pytest.raises(InputError, match="is broken") as said:
        archives.unpack(tmp_path / name, tmp_path / "into", tmp_path / "scratch")
    assert "\n" not in str(said.value)
    assert sorted(contents(tmp_path)) == [name]


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member


def device(name: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.devmajor, member.devminor = tarfile.CHRTYPE, 1, 3
    return member


def zip_link(name: str, to: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        member = zipfile.ZipInfo(name)
        member.create_system, member.external_attr = 3, 0o120777 << 16
        archive.writestr(member, to)
    return stream.getvalue()


ESCAPES = {
    "up.zip": zipped({"good": b"", "../x": b"bad"}),
    "deep.zip": zipped({"good": b"", "a/../../x": b"bad"}),
    "absolute.zip": zipped({"good": b"", "/tmp/x-of-regard": b"bad"}),
    "windows.zip": zipped({"good": b"", "C:\\x": b"bad"}),
    "backslash.zip": zipped({"good": b"", "..\\x": b"bad"}),
    "link.zip": zip_link("x", "/etc/passwd"),
    "up.tgz": tarred({"good": b"", "../x": b"bad"}),
    "absolute.tgz": tarred({"good": b"", "/tmp/x-of-regard": b"bad"}),
    "link.tgz": tarred({"good": b""}, link("x", "../../outside")),
    "absolute link.tgz": tarred({"good": b""}, link("x", "/etc/passwd")),
    "hard link.tgz": tarred({"good": b""}, link("x", "../archive", tarfile.LNKTYPE)),
    "link within.tgz": tarred({"good": b""}, link("x", "good")),
    "hard link within.tgz": tarred({"good": b""}, link("x", "good", tarfile.LNKTYPE)),
    "device.tgz": tarred({"good": b""}, device("x")),
    "pipe.tgz": tarred({"good": b""}, link("x", "", tarfile.FIFOTYPE)),
}


@pytest.mark.parametrize("name", ESCAPES)
def test_an_archive_that_reaches_out_of_its_folder_is_refused_whole(name: str, tmp_path) -> None:
    (tmp_path / name).write_bytes(ESCAPES[name])
    refused(lambda: archives.unpack(tmp_path / name, tmp_path / "into", tmp_path / "scratch"), "is not to be trusted")
    assert sorted(contents(tmp_path)) == [name]
    assert not (tmp_path / "into").exists()
    assert not Path("/tmp/x-of-regard").exists()


def long_way_out() -> bytes:
    """A link to ../../victim, behind so many long names that a check by `os.path.realpath` gives up (CVE-2025-4517)."""
    stream, long, short = io.BytesIO(), "d" * 247, "abcdefghijklmnop"
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for depth, letter in enumerate(short):
            inner = tarfile.TarInfo("/".join([long] * (depth + 1)))
            inner.type = tarfile.DIRTYPE
            archive.addfile(inner)
            archive.addfile(link("/".join([long] * depth + [letter]), long))
        up = "/".join([*short, "l" * 254])
        archive.addfile(link(up, "../" * len(short)))
        archive.addfile(link("escape", f"{up}/../../victim"))
        owned = tarfile.TarInfo("escape/owned.txt")
        owned.size = 4
        archive.addfile(owned, io.BytesIO(b"pwnd"))
    return stream.getvalue()


def test_a_link_too_long_to_be_followed_leads_nowhere(tmp_path) -> None:
    (tmp_path / "a.tar").write_bytes(long_way_out())
    (tmp_path / "victim").mkdir()
    with pytest.raises(InputError, match="is not to be trusted") as said:
        archives.unpack(tmp_path / "a.tar", tmp_path / "x/into", tmp_path / "x/scratch")
    assert "is a link, a device or a pipe" in str(said.value)
    assert sorted(contents(tmp_path)) == ["a.tar"]
    assert not list((tmp_path / "x").iterdir())


@pytest.mark.parametrize("packed", [zipped, tarred])
def test_a_member_below_a_file_or_in_place_of_a_folder_is_refused(packed, tmp_path) -> None:
    name = "a.zip" if packed is zipped else "a.tgz"
    for files in ({"a": b"", "a/b": b""}, {"a/b": b"", "a": b""}, {"a\nb/../c": b""}):
        (tmp_path / name).write_bytes(packed(files))
        with pytest.raises(InputError, match="is not to be trusted") as said:
            archives.unpack(tmp_path / name, tmp_path / "into", tmp_path / "scratch")
        assert "\n" not in str(said.value)
        assert sorted(contents(tmp_path)) == [name]


def test_owners_modes_and_set_user_bits_are_not_those_of_the_archive(tmp_path) -> None:
    stream, content = io.BytesIO(), b"#!/bin/sh"
    with tarfile.open(fileobj=stream, mode="w") as archive:
        folder, file = tarfile.TarInfo("./bin"), tarfile.TarInfo("./bin/run")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o2000  # nobody could look into it
        file.size, file.mode, file.uid = len(content), 0o6777, 12345
        archive.addfile(folder)
        archive.addfile(file, io.BytesIO(content))
    (tmp_path / "a.tar").write_bytes(stream.getvalue())
    before = os.umask(0o022)
    try:
        archives.unpack(tmp_path / "a.tar", tmp_path / "into", tmp_path / "scratch")
    finally:
        os.umask(before)
    made = tmp_path / "into/bin/run"
    assert made.read_bytes() == content
    assert (made.stat().st_mode & 0o7777, made.stat().st_uid) == (0o644, os.getuid())
    assert made.parent.stat().st_mode & 0o7777 == 0o755


def test_nothing_is_written_over(site, tmp_path) -> None:
    site.files["small.zip"] = zipped(tree() | {"another/1": b""})
    (tmp_path / "small").mkdir()
    (tmp_path / "small/mine.txt").write_text("mine")
    refused(lambda: download(entry(site, "small.zip"), tmp_path), "is there already")
    assert sorted(contents(tmp_path)) == ["small.zip", "small/mine.txt"]  # the archive need not come again
    (tmp_path / "small").rename(tmp_path / "mine")
    download(entry(site, "small.zip"), tmp_path)
    assert len(site.asked) == 1


@pytest.mark.parametrize(("name", "packed"), [("small.zip", zipped), ("small.tgz", tarred)])
def test_unpacking_that_stops_half_way_leaves_no_half_tree(name, packed, site, tmp_path, monkeypatch) -> None:
    site.files[name] = packed(tree())
    opener, left = (zipfile.ZipFile, "extract") if packed is zipped else (tarfile.TarFile, "extract"), [3]
    extract = getattr(*opener)

    def full(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return extract(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(*opener, full)
        refused(lambda: download(entry(site, name), tmp_path), "no room left")
    assert left[0] < 0
    assert sorted(contents(tmp_path)) == [name]
    assert download(entry(site, name), tmp_path).new == (name,)


def test_too_little_room_is_said_before_anything_is_fetched(site, tmp_path) -> None:
    site.files["small.zip"] = zipped(tree())
    refused(lambda: download(entry(site, "small.zip", size=10**15), tmp_path / "out"), "about 2000000.0 GB are needed")
    assert site.ranges_asked == []
    assert not list(tmp_path.iterdir())


def test_what_has_no_lasting_address_is_one_line(tmp_path) -> None:
    refused(lambda: download(published("camvid"), tmp_path / "out"), "no lasting address to download it from: http")
    assert not list(tmp_path.iterdir())


def test_the_table_is_well_formed() -> None:
    lengths = {"md5": 32, "sha256": 64}
    for data in map(published, DATASETS):
        assert data.home.startswith("http")
        assert len({archive.name for archive in data.archives}) == len(data.archives)
        for archive in data.archives:
            assert archive.name.endswith((".zip", ".tar", ".tgz", ".tar.gz"))
            if archive.checksum:
                kind, _, digits = archive.checksum.partition(":")
                assert len(bytes.fromhex(digits)) * 2 == lengths[kind]
    refused(lambda: published("voc2021"), "did you mean 'voc2012'")
