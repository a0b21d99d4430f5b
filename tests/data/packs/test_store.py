"""Stores give the bytes that were put, whatever the connection does, and say in one line what they can't give."""

import base64
import hashlib
import json
import multiprocessing
import pickle
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from object_stores import KEYS, Site, gs_server, s3_server, web_server
from torch.utils.data import DataLoader, Dataset

from regard.data.packs import remote, store
from regard.data.packs.chunk_cache import ChunkCache
from regard.data.packs.store import Store, is_remote
from regard.data.source import open_source
from regard.errors import InputError

BYTES = np.random.default_rng(0).bytes(300_000)
SHA = hashlib.sha256(BYTES).hexdigest()
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def _quick(monkeypatch) -> None:
    """Three blocks and a bit to `BYTES`, and hardly a wait."""
    monkeypatch.setattr(store, "BLOCK", 90_000)
    monkeypatch.setattr(store, "SMALLEST", 20_000)
    monkeypatch.setattr(store, "WAIT", 0.001)


@pytest.fixture
def site() -> Iterator[Site]:
    with web_server() as site:
        site.files["pack/train/a.bin"] = BYTES
        yield site


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server("bucket") as url:
        yield url


@pytest.fixture(scope="module")
def gs() -> Iterator[str]:
    with gs_server("bucket") as url:
        yield url


@pytest.fixture(params=["folder", "s3", "gs"])
def writable(request, tmp_path) -> Store:
    if request.param == "folder":
        return Store(tmp_path / "pack")
    request.getfixturevalue(request.param)
    return Store(f"{request.param}://bucket/some/{tmp_path.name}")


def line(call, *args) -> str:
    """The one line that a call fails with."""
    with pytest.raises(InputError) as raised:
        call(*args)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_urls_are_told_from_paths() -> None:
    assert all(map(is_remote, ["s3://a/b", "gs://a", "https://a/b", "http://a", "az://a"]))
    assert not any(map(is_remote, ["a/b", "/a", "C:/a", "C:\\a", "s3:/a", Path("s3://a"), "."]))


def test_what_is_put_is_read_again(writable, tmp_path) -> None:
    file = tmp_path / "file"
    file.write_bytes(BYTES)
    assert not writable.exists("train/a.bin")
    writable.put(file.read_bytes(), "train/a.bin")
    assert writable.exists("train/a.bin")
    assert not writable.exists("train/a")
    assert writable.read("train/a.bin") == BYTES
    writable.fetch("train/a.bin", tmp_path / "new" / "copy", len(BYTES), SHA)
    assert (tmp_path / "new" / "copy").read_bytes() == BYTES
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["copy"]
    assert writable.digest("train/a.bin", len(BYTES)) == SHA
    for name, size in (("train/a.bin", len(BYTES) - 1), ("train/a.bin", len(BYTES) + 5), ("train/b.bin", 5)):
        assert (writable.holds(name, size), writable.digest(name, size)) == (False, None)
    assert writable.holds("train/a.bin", len(BYTES))
    file.write_bytes(b"other")
    writable.put(file.read_bytes(), "train/a.bin")
    assert writable.read("train/a.bin") == b"other"


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # of aiohttp, for bytes above 1 MB
def test_a_large_file_goes_up_whole(s3, gs, tmp_path) -> None:
    file = tmp_path / "file"
    file.write_bytes(BYTES * 20)
    for scheme in ("s3", "gs"):
        Store(f"{scheme}://bucket/large").put(BYTES * 20, "a.bin")
        assert Store(f"{scheme}://bucket/large").read("a.bin") == BYTES * 20


def test_the_web_is_read_by_ranges_and_not_written(site, tmp_path) -> None:
    web = Store(f"{site.url}/pack/")
    assert web.read("train/a.bin") == BYTES
    assert (web.exists("train/a.bin"), web.exists("train/b.bin")) == (True, False)
    site.asked.clear()
    web.fetch("train/a.bin", tmp_path / "copy", len(BYTES), SHA)
    assert (tmp_path / "copy").read_bytes() == BYTES
    assert site.ranges_asked == ["bytes=0-89999", "bytes=90000-179999", "bytes=180000-269999", "bytes=270000-299999"]
    assert "can only be read from" in line(web.put, b"a", "a")


def test_names_are_quoted_once(site) -> None:
    site.files["my%20pack/a%20%23%25.bin"] = b"here"
    assert Store(f"{site.url}/my%20pack").read("a #%.bin") == b"here"


def test_a_server_without_ranges_sends_it_once(site, tmp_path) -> None:
    site.ranges = False
    web = Store(f"{site.url}/pack")
    web.fetch("train/a.bin", tmp_path / "copy", len(BYTES), SHA)
    assert (tmp_path / "copy").read_bytes() == BYTES
    assert len(site.asked) == 1
    assert (web.digest("train/a.bin", len(BYTES)), web.digest("train/a.bin", len(BYTES) - 1)) == (SHA, None)


def test_a_cut_connection_goes_on_from_the_last_block(site, tmp_path) -> None:
    site.cuts = [90_000, 50_000, 10_000]
    Store(f"{site.url}/pack").fetch("train/a.bin", tmp_path / "copy", len(BYTES), SHA)
    assert (tmp_path / "copy").read_bytes() == BYTES
    # Each further try asks for a quarter, but 20,000 at least; after that, for blocks again.
    cut = ["bytes=90000-179999", "bytes=90000-112499", "bytes=90000-109999"]
    assert site.ranges_asked == [
        "bytes=0-89999",
        *cut,
        "bytes=110000-199999",
        "bytes=200000-289999",
        "bytes=290000-299999",
    ]


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_busy_server_is_asked_again(site, tmp_path, status) -> None:
    site.statuses = [status] * 3
    Store(f"{site.url}/pack").fetch("train/a.bin", tmp_path / "copy", len(BYTES), SHA)
    assert (tmp_path / "copy").read_bytes() == BYTES
    site.statuses = [status]
    assert Store(f"{site.url}/pack").read("train/a.bin") == BYTES


def test_what_stays_broken_is_one_line_and_is_gone_on_with_later(site, tmp_path) -> None:
    site.cuts = [90_000, *[100] * 5]
    web = Store(f"{site.url}/pack")
    assert "can't be had after 5 tries (the connection broke off)" in line(
        web.fetch, "train/a.bin", tmp_path / "copy", len(BYTES), SHA
    )
    assert [(path.name, path.stat().st_size) for path in tmp_path.iterdir()] == [("copy.partial", 90_000)]
    site.asked.clear()
    web.fetch("train/a.bin", tmp_path / "copy", len(BYTES), SHA)
    assert (tmp_path / "copy").read_bytes() == BYTES
    assert site.ranges_asked[0] == "bytes=90000-179999"


@pytest.mark.parametrize("begun", [b"x" * 90_000, b"x" * 300_000, b"x" * 300_001])
def test_a_damaged_beginning_is_fetched_again(site, tmp_path, begun) -> None:
    (tmp_path / "copy.partial").write_bytes(begun)
    Store(f"{site.url}/pack").fetch("train/a.bin", tmp_path / "copy", len(BYTES), SHA)
    assert (tmp_path / "copy").read_bytes() == BYTES


def test_a_chunk_that_is_another_is_one_line(site, tmp_path) -> None:
    site.files["pack/train/a.bin"] = BYTES[::-1]
    web = Store(f"{site.url}/pack")
    assert "train/a.bin is not what was packed" in line(web.fetch, "train/a.bin", tmp_path / "copy", len(BYTES), SHA)
    assert len(site.asked) == 4 * store.ROUNDS
    site.files["pack/train/a.bin"] = BYTES[:90_000]
    assert "has fewer bytes" in line(web.fetch, "train/a.bin", tmp_path / "copy", len(BYTES), SHA)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("status", [401, 403, 404, 410, 400])
def test_a_refusal_is_one_line_at_once(site, tmp_path, status) -> None:
    site.statuses = [status] * 3
    message = line(Store(f"{site.url}/pack").fetch, "train/a.bin", tmp_path / "copy", len(BYTES), SHA)
    assert f"{site.url}/pack/train/a.bin" in message
    assert ("is not there" if status == 404 else str(status)) in message
    assert len(site.asked) == 1
    assert not list(tmp_path.iterdir())


def test_a_user_and_a_query_open_a_site_and_are_not_shown(site, tmp_path) -> None:
    """Not even in what is linked to an error: a loader's worker sends all of its text home."""
    secret = "".join(["s3", "cret"])  # in no line of code that a traceback shows
    site.authorization = "Basic " + base64.b64encode(f"user:{secret}".encode()).decode()
    site.query = f"X-Amz-Signature={secret}"
    url = site.url.replace("//", f"//user:{secret}@") + f"/pack?X-Amz-Signature={secret}"
    web, copy = Store(url), tmp_path / "copy"
    assert web.read("train/a.bin") == BYTES
    assert web.shown == f"{site.url}/pack"
    shown = [web.shown, repr(web)]

    def note(call, *args) -> None:
        with pytest.raises(InputError) as raised:
            call(*args)
        shown.append("".join(traceback.format_exception(raised.value)))

    for cuts, statuses in [([1] * 9, []), ([], [403]), ([], [404]), ([], [503] * 9), ([], [418])]:
        site.cuts, site.statuses = cuts, statuses
        note(web.fetch, "train/a.bin", copy, len(BYTES), SHA)
    site.cuts, site.statuses = [], []
    note(web.fetch, "train/a.bin", copy, len(BYTES) + 1, SHA)
    note(web.read, "train/b.bin")
    note(web.put, b"a", "a")
    note(Store(url.replace("127.0.0.1", "nowhere.invalid")).read, "a")
    for wrong in ("s3://key:{}@bucket/a", "gs://bucket/a?token={}", "ftp://user:{}@host/a", "https://user:{}@/a"):
        note(Store, wrong.format(secret))
    assert len(shown) == 15
    assert not [text for text in shown if secret in text]


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAKEY:abc/{}@bucket/x",
        "s3://AKIAKEY:{}",
        "s3://AKIAKEY:ab?{}@bucket/x",
        "gs://bucket/x#{}@y",
        "http://joe:S3C/{}@host/x",
        "http://joe:S3C#{}@host/x",
        "http://joe:S3C?{}@host/x",
        "http://joe:{}@RET@host/x",
        "https://joe:{}@[::1/p1",
        "ftp://joe:{}@host/p1",
        "https:/joe:{}@host/p1",
        "https:/host/p1?token={}",
        "git+https://joe:{}@host/p1",
    ],
)
def test_a_secret_in_a_url_that_is_wrong_is_not_shown(url) -> None:
    for secret in ("S3CRET", "S3CRET/MORE"):
        said = line(open_source, url.format(secret))
        assert "S3C" not in said
        assert "joe" not in said
        assert "AKIAKEY" not in said
        assert "MORE" not in said
        assert "would work" in said or "known:" in said or "from the environment" in said


@pytest.mark.parametrize("url", ["s3://bucket/v#1", "gs://bucket/v#1", "http://host/v#1"])
def test_what_follows_a_hash_is_not_dropped(url) -> None:
    assert line(Store, url).startswith(f"{url[:-2]} is followed by a #, which ends a URL: ")


def test_what_can_not_be_reached_is_one_line_within_seconds(tmp_path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        began = time.monotonic()
        assert "(the connection is refused)" in line(Store(f"{url}/pack").read, "a")
        assert "(the host is not known, or there is no network)" in line(Store("http://nowhere.invalid").read, "a")
        assert time.monotonic() - began < 10


def test_a_silent_server_is_one_line(site, monkeypatch) -> None:
    monkeypatch.setattr(remote, "SILENCE", 0.05)
    site.delay = 60
    assert "(no answer in time)" in line(Store(f"{site.url}/pack").read, "train/a.bin")


def test_s3_says_what_is_wrong(s3, monkeypatch, tmp_path) -> None:
    assert "there is no such bucket" in line(Store("s3://absent/a").read, "b")
    assert "there is no such bucket" in line(Store("s3://absent/a").exists, "b")
    assert "s3://bucket/a/b is not there" in line(Store("s3://bucket/a").read, "b")
    (tmp_path / "a").write_bytes(b"a")
    assert "there is no such bucket" in line(Store("s3://absent/a").put, b"a", "b")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert "(the connection is refused)" in line(Store("s3://bucket/a").read, "b")


def test_gs_says_what_is_wrong(gs, monkeypatch, tmp_path) -> None:
    assert "gs://absent/a/b: there is no such bucket" in line(Store("gs://absent/a").read, "b")
    assert "there is no such bucket" in line(Store("gs://absent/a").exists, "b")
    assert "gs://bucket/a/b is not there" in line(Store("gs://bucket/a").read, "b")
    (tmp_path / "a").write_bytes(b"a")
    assert "there is no such bucket" in line(Store("gs://absent/a").put, b"a", "b")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert "(the connection is refused)" in line(Store("gs://bucket/a").read, "b")


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "AWS_ACCESS_KEY_ID"),
        (403, "AccessDenied", "AWS_ACCESS_KEY_ID"),
        (400, "ExpiredToken", "AWS_ACCESS_KEY_ID"),
        (400, "AuthorizationHeaderMalformed", "check the URL, the region"),
    ],
)
def test_s3_credentials_that_are_refused_are_one_line_at_once(site, s3, monkeypatch, status, code, words) -> None:
    """The answers of Amazon's servers, as moto gives them only when told to, to all tests at once."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", site.url)
    site.statuses, site.body = [status] * 9, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    message = line(Store("s3://bucket/a").read, "b")
    assert "s3://bucket/a/b is refused" in message
    assert f"{status} {code}" in message
    assert words in message
    assert len(site.asked) == 1


def test_s3_is_asked_as_often_as_is_said(site, s3, monkeypatch) -> None:
    """And not as often again by s3fs and by botocore."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", site.url)
    for name in KEYS:
        monkeypatch.delenv(name)
    site.files["bucket/a/b"], site.cuts = BYTES, [100] * 20
    assert "after 2 tries (the connection broke off)" in line(Store("s3://bucket/a").read, "b")
    assert len(site.asked) == store.TRIES_TO_READ


def test_a_busy_s3_is_asked_again(site, s3, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", site.url)
    for name in KEYS:
        monkeypatch.delenv(name)
    site.files["bucket/a/b"], site.body = BYTES, b"<Error><Code>SlowDown</Code></Error>"
    site.statuses, site.cuts = [503, 500], [90_000, 50_000]
    Store("s3://bucket/a").fetch("b", tmp_path / "copy", len(BYTES), SHA)
    assert (tmp_path / "copy").read_bytes() == BYTES


def test_moto_refuses_wrong_keys(s3, monkeypatch) -> None:
    from moto.core import set_initial_no_auth_action_count

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with_keys = set_initial_no_auth_action_count(0)(lambda: line(Store("s3://bucket/a").read, "b"))
    assert "403 InvalidAccessKeyId" in with_keys()


def test_a_public_bucket_needs_no_credentials(site, s3, monkeypatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", site.url)
    site.files["bucket/a/b"] = b"public"  # and the site refuses what has an Authorization header
    assert Store("s3://bucket/a").read("b") == b"public"


@pytest.mark.parametrize("status", [401, 403])
def test_gs_credentials_that_are_refused_are_one_line_at_once(site, monkeypatch, status) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", site.url)
    site.statuses, site.body = [status] * 9, b'{"error": {"code": %d, "message": "Invalid Credentials"}}' % status
    message = line(Store("gs://bucket/a").read, "b")
    assert f"gs://bucket/a/b is refused ({status}): `gcloud auth application-default login`" in message
    assert len(site.asked) == 1


@pytest.mark.parametrize("key", [None, "{}", "a key"])
def test_gs_keys_that_do_not_work_are_one_line(site, tmp_path, monkeypatch, key) -> None:
    """No file, a file of something else, and a key that Google's server (here the site) does not take."""
    file = tmp_path / "key.json"
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    if key == "a key":
        private = rsa.generate_private_key(65537, 2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        account = {"type": "service_account", "client_email": "a@b", "private_key": private.decode()}
        key = json.dumps(account | {"project_id": "p", "token_uri": f"{site.url}/token"})
        site.statuses, site.body = [400], b'{"error": "invalid_grant"}'
    if key:
        file.write_text(key)
    message = line(Store("gs://bucket/a").read, "b")
    assert message.endswith("or a key file named in GOOGLE_APPLICATION_CREDENTIALS, would work")
    assert not site.statuses


def test_an_unknown_profile_is_one_line(site, monkeypatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "the credentials can't be had (ProfileNotFound)" in line(Store("s3://bucket/a").read, "b")


def test_a_busy_gs_is_asked_again(site, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", site.url)
    monkeypatch.setattr(site, "statuses", [503, 502, 429])
    site.files["download/storage/v1/b/bucket/o/a%2Fb"] = BYTES
    site.query = "alt=media"
    Store("gs://bucket/a").fetch("b", tmp_path / "copy", len(BYTES), SHA)
    assert (tmp_path / "copy").read_bytes() == BYTES


def test_a_missing_package_is_one_line(monkeypatch) -> None:
    for scheme, package in (("s3", "s3fs"), ("gs", "gcsfs.core"), ("http", "fsspec.implementations.http")):
        monkeypatch.setitem(sys.modules, package, None)
        message = line(Store(f"{scheme}://bucket/a").read, "b")
        assert message.endswith(f'needs {package.split(".")[0]}: pip install "regard[stream]"')


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://", "names no bucket or host: s3://NAME/FOLDER would work"),
        ("az://a/b", "unknown kind of URL 'az://'"),
        ("s3://Not_A+Bucket!/b", "can't be a URL of a bucket"),
    ],
)
def test_urls_that_can_not_be_are_one_line(s3, url, words) -> None:
    assert words in line(lambda: Store(url).read("a"))


def test_local_errors_name_the_file(tmp_path) -> None:
    assert line(Store(tmp_path).read, "a") == f"{tmp_path / 'a'} can't be read: No such file or directory"


# The cache.


def make_cache(site: Site, folder: Path, limit: int = 10**9) -> ChunkCache:
    return ChunkCache(Store(f"{site.url}/pack"), folder, limit)


def chunks(site: Site, count: int, size: int = 1000) -> list[tuple[str, int, str]]:
    """Chunks of different content on the site."""
    made = []
    for number in range(count):
        data = bytes([number]) * size
        site.files[f"pack/{number}.bin"] = data
        made.append((f"{number}.bin", size, hashlib.sha256(data).hexdigest()))
    return made


def held(folder: Path) -> int:
    """Bytes of chunks, whole or begun, that a folder holds."""
    total = 0
    for path in folder.iterdir():
        try:
            total += 0 if path.name.endswith("lock") else path.stat().st_size
        except FileNotFoundError:  # removed since
            continue
    return total


def test_a_chunk_is_fetched_once(site, tmp_path) -> None:
    cache = make_cache(site, tmp_path)
    (chunk,) = chunks(site, 1)
    paths = {cache.path(*chunk), cache.path(*chunk), make_cache(site, tmp_path).path(*chunk)}
    assert len(paths) == len(site.asked) == 1
    assert paths.pop().read_bytes() == site.files["pack/0.bin"]


def test_a_local_store_gives_its_own_files(tmp_path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "a").write_bytes(BYTES)
    cache = ChunkCache(Store(tmp_path / "pack"), tmp_path / "cache")
    assert cache.path("a", len(BYTES), SHA) == tmp_path / "pack" / "a"
    cache.prefetch([("a", len(BYTES), SHA)])
    assert not (tmp_path / "cache").exists()
    assert "300,000 bytes, and 5 are listed" in line(cache.path, "a", 5, SHA)
    assert "No such file" in line(cache.path, "b", 5, SHA)


@pytest.mark.parametrize("name", ["{}", "{}.partial"])
def test_what_a_killed_process_left_is_mended(site, tmp_path, name) -> None:
    (chunk,) = chunks(site, 1)
    (tmp_path / name.format(f"{chunk[2]}-1000")).write_bytes(b"\1" * 10)
    assert make_cache(site, tmp_path).path(*chunk).read_bytes() == site.files["pack/0.bin"]


def test_a_pack_made_anew_is_not_taken_for_the_old_one(site, tmp_path) -> None:
    cache = make_cache(site, tmp_path)
    (old,) = chunks(site, 1)
    cache.path(*old)
    site.files["pack/0.bin"] = b"\7" * 1000
    new = ("0.bin", 1000, hashlib.sha256(b"\7" * 1000).hexdigest())
    assert cache.path(*new).read_bytes() == b"\7" * 1000


def test_the_least_recently_used_goes_first(site, tmp_path) -> None:
    cache, (a, b, c, d) = make_cache(site, tmp_path, 3000), chunks(site, 4)
    for chunk in (a, b, c, a):
        cache.path(*chunk)
    kept = open(cache.path(*b), "rb")  # noqa: SIM115
    cache.path(*a)
    cache.path(*d)  # c goes
    assert sorted(path.name for path in tmp_path.iterdir() if "lock" not in path.name) == sorted(
        f"{chunk[2]}-1000" for chunk in (a, b, d)
    )
    for chunk in (c, a, d):  # b goes
        cache.path(*chunk)
    assert not (tmp_path / f"{b[2]}-1000").exists()
    assert kept.read() == site.files["pack/1.bin"]  # what is open stays readable
    kept.close()
    assert cache.path(*b).read_bytes() == site.files["pack/1.bin"]
    assert held(tmp_path) == 3000


def test_a_lock_goes_with_its_chunk(site, tmp_path) -> None:
    cache, made = make_cache(site, tmp_path, 2000), chunks(site, 5)
    for chunk in made:
        cache.path(*chunk)
    left = {f"{chunk[2]}-1000" for chunk in made[3:]}
    assert {path.name for path in tmp_path.iterdir()} == left | {f"{name}.lock" for name in left} | {".lock"}


def test_a_chunk_that_went_bad_is_discarded_and_a_good_one_is_not(site, tmp_path) -> None:
    cache, made = make_cache(site, tmp_path), chunks(site, 2)
    for chunk in made:
        file = cache.path(*chunk)
    file.write_bytes(bytes(1000))
    for chunk in made:
        cache.discard(*chunk[1:])
    cache.discard(1000, "0" * 64)  # and one that is not there
    assert [(tmp_path / f"{chunk[2]}-1000").exists() for chunk in made] == [True, False]


def test_a_later_gcsfs_without_the_tries_that_are_left_out_still_opens(gs, monkeypatch) -> None:
    from gcsfs.core import GCSFileSystem

    monkeypatch.delattr(GCSFileSystem, "_request")
    assert remote.open_gs().protocol


def test_what_killed_processes_had_begun_makes_room(site, tmp_path) -> None:
    cache, (a, b, c) = make_cache(site, tmp_path, 2000), chunks(site, 3)
    for chunk in (a, b):
        (tmp_path / f"{chunk[2]}-1000.partial").write_bytes(b"")
    assert cache.path(*c).exists()
    assert sum(path.name.endswith(".partial") for path in tmp_path.iterdir()) == 1


def test_a_bound_below_a_chunk_is_one_line(site, tmp_path) -> None:
    (chunk,) = chunks(site, 1)
    message = line(make_cache(site, tmp_path / "none", 999).path, *chunk)
    assert message.endswith("can't hold 0.bin, which has 1e-06 GB: a larger REGARD_CACHE_GB would work")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("text", ["much", "0", "-1", "nan", "inf"])
def test_a_bound_that_is_none_is_one_line(monkeypatch, text) -> None:
    monkeypatch.setenv("REGARD_CACHE_GB", text)
    assert f"REGARD_CACHE_GB is '{text}': a number" in line(ChunkCache, Store("http://host/pack"))


def test_folder_and_bound_come_from_the_environment(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path / "here"))
    monkeypatch.setenv("REGARD_CACHE_GB", "0.5")
    cache = ChunkCache(Store("http://host/pack"))
    assert (cache.folder, cache.limit) == (tmp_path / "here" / "chunks", 500_000_000)
    monkeypatch.delenv("REGARD_CACHE")
    monkeypatch.delenv("REGARD_CACHE_GB")
    cache = ChunkCache(Store("http://host/pack"))
    assert (cache.folder, cache.limit) == (Path.home() / ".cache/regard/chunks", 20_000_000_000)


def test_a_folder_that_can_not_be_written_is_one_line(site, tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (chunk,) = chunks(site, 1)
    message = line(make_cache(site, tmp_path / "file" / "cache").path, *chunk)
    assert message.endswith("can't be written: Not a directory; another folder in REGARD_CACHE would work")


def test_fetching_ahead_takes_half_of_the_bound_and_leaves_errors_to_the_reader(site, tmp_path) -> None:
    cache, made = make_cache(site, tmp_path, 8000), chunks(site, 6)
    del site.files["pack/0.bin"]
    cache.prefetch(made)
    until = time.monotonic() + 10
    while time.monotonic() < until and held(tmp_path) < 3000:
        time.sleep(0.01)
    assert {path for path, _ in site.asked} == {f"pack/{number}.bin" for number in range(4)}
    asked = len(site.asked)
    assert [cache.path(*chunk).read_bytes()[0] for chunk in made[1:4]] == [1, 2, 3]
    assert len(site.asked) == asked
    assert "is not there" in line(cache.path, *made[0])


def has_all_soon(cache: ChunkCache, made: list) -> None:
    """Of a process: exit status 0 if chunks that are fetched ahead come."""
    cache.prefetch(made)
    until = time.monotonic() + 20
    while any(not (cache.folder / f"{sha256}-{size}").exists() for _, size, sha256 in made):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_fork_fetches_ahead_by_itself(site, tmp_path) -> None:
    cache, made = make_cache(site, tmp_path), chunks(site, 4)
    has_all_soon(cache, made[:2])
    child = FORK.Process(target=has_all_soon, args=(cache, made))
    child.start()
    child.join(30)
    assert child.exitcode == 0


def read_all(cache: ChunkCache, made: list, order: list[int]) -> None:
    """Of a process: exit status 0 if each chunk has its bytes, also one that goes between `path` and `open`."""
    for number in order:
        while True:
            try:
                assert cache.path(*made[number]).read_bytes() == bytes([number]) * made[number][1]
                break
            except FileNotFoundError:
                continue


def test_processes_that_ask_at_once_fetch_once(site, tmp_path) -> None:
    cache, made = make_cache(site, tmp_path), chunks(site, 1)
    site.delay = 0.2
    workers = [FORK.Process(target=read_all, args=(cache, made, [0])) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert site.asked == [("pack/0.bin", "bytes=0-999")]


def test_what_a_killed_process_had_fetched_is_gone_on_with(site, tmp_path) -> None:
    cache, chunk = make_cache(site, tmp_path), ("train/a.bin", len(BYTES), SHA)
    site.cuts, site.delay = [90_000, 90_000, 10, 10, 10, 10], 0.2  # the third block takes its time
    killed = FORK.Process(target=cache.path, args=chunk)
    killed.start()
    while not (partial := tmp_path / f"{SHA}-{len(BYTES)}.partial").exists() or len(site.asked) < 4:
        time.sleep(0.01)
    killed.kill()
    killed.join()
    begun = partial.stat().st_size
    site.cuts, site.delay, before = [], 0.0, len(site.asked)
    assert cache.path(*chunk).read_bytes() == BYTES
    assert 0 < begun < len(BYTES)
    assert site.ranges_asked[before].startswith(f"bytes={begun}-")


def test_the_bound_holds_for_several_processes(site, tmp_path) -> None:
    made = chunks(site, 9, 60_000)
    cache = make_cache(site, tmp_path, 200_000)  # three of nine
    orders = [np.random.default_rng(seed).permutation(9).tolist() * 3 for seed in range(3)]
    workers = [FORK.Process(target=read_all, args=(cache, made, order)) for order in orders]
    for worker in workers:
        worker.start()
    most = 0
    until = time.monotonic() + 60
    while any(worker.is_alive() for worker in workers) and time.monotonic() < until:
        most = max(most, held(tmp_path))
    for worker in workers:
        worker.join(1)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert 60_000 <= most <= 200_000


class Chunks(Dataset):
    """The first byte of each chunk, by way of a cache that was used before."""

    def __init__(self, cache: ChunkCache, made: list) -> None:
        self.cache, self.made = cache, made

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, index: int) -> int:
        self.cache.store.read(self.made[index][0])
        return self.cache.path(*self.made[index]).read_bytes()[0]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of one core
@pytest.mark.parametrize("scheme", ["http", "s3", "gs"])
def test_workers_go_on_with_a_store_that_was_used_before(request, site, tmp_path, scheme) -> None:
    made = chunks(site, 6)
    url = f"{site.url}/pack"
    if scheme != "http":
        request.getfixturevalue(scheme)
        url = f"{scheme}://bucket/{tmp_path.name}"
        for name, _, _ in made:
            (tmp_path / name).write_bytes(site.files[f"pack/{name}"])
            Store(url).put(site.files[f"pack/{name}"], name)
    cache = ChunkCache(Store(url), tmp_path / "cache", 10**6)
    cache.path(*made[0])
    cache.prefetch(made[1:4])  # may be under way while the workers are made
    loader = DataLoader(Chunks(cache, made), batch_size=2, num_workers=2, multiprocessing_context=FORK, timeout=60)
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3], [4, 5]]
    assert cache.store.read("0.bin") == site.files["pack/0.bin"]  # the parent's connections are as they were


def test_a_pickled_cache_is_the_same(site, tmp_path) -> None:
    cache, made = make_cache(site, tmp_path), chunks(site, 2)
    cache.prefetch(made[:1])
    cache.path(*made[0])
    other = pickle.loads(pickle.dumps(cache))
    assert other.path(*made[1]).read_bytes() == site.files["pack/1.bin"]
    assert other.path(*made[0]) == cache.path(*made[0])


LEAVES = """
import sys
from pathlib import Path
from regard.data.packs.chunk_cache import ChunkCache
from regard.data.packs.store import Store
cache = ChunkCache(Store(sys.argv[1]), Path(sys.argv[2]), 10**9)
cache.path("0.bin", 1000, sys.argv[3])
cache.prefetch([("1.bin", 1000, sys.argv[4])] * 3)
"""


def test_a_process_ends_while_chunks_are_fetched_ahead(site, tmp_path) -> None:
    made = chunks(site, 2)
    site.delay = 0.5
    args = [f"{site.url}/pack", str(tmp_path / "cache"), made[0][2], made[1][2]]
    ended = subprocess.run([sys.executable, "-c", LEAVES, *args], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_help_needs_no_fsspec() -> None:
    """The libraries of the stores take a second to import: only a store that is used needs them."""
    code = (
        "import sys, regard.data.packs.chunk_cache; print(*{'fsspec', 's3fs', 'gcsfs', 'aiohttp'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == ""
