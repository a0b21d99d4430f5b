"""Stores give the bytes that were put, whatever the connection does, and say in one line what they can't give."""

import base64
import hashlib
import json
import multiprocessing
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from commands import line
from regard.data.packs import remote, store
from regard.data.packs.store import Store, is_remote
from regard.data.source import open_source
from regard.errors import InputError
from servers import KEYS, Site, gs_server, s3_server, web_server

BYTES = np.random.default_rng(0).bytes(300_000)
SHA = hashlib.sha256(BYTES).hexdigest()
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def _quick(monkeypatch) -> None:
    """Three blocks and a bit to `BYTES`, hardly a wait, and what the environment says now."""
    monkeypatch.setattr(store, "BLOCK", 90_000)
    monkeypatch.setattr(store, "WAIT", 0.001)
    remote.file_system.cache_clear()


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


def test_urls_are_told_from_paths() -> None:
    assert all(map(is_remote, ["s3://a/b", "gs://a", "https://a/b", "http://a", "az://a"]))
    assert not any(map(is_remote, ["a/b", "/a", "C:/a", "C:\\a", "s3:/a", Path("s3://a"), "."]))


def test_what_is_put_is_read_again(writable, tmp_path) -> None:
    assert writable.read("train/a.bin") is None
    assert writable.names() == []
    writable.put(BYTES, "train/a.bin")
    assert writable.read("train/a") is None
    assert writable.read("train/a.bin") == BYTES
    assert writable.names() == ["train"]
    writable.fetch("train/a.bin", tmp_path / "new" / "copy", len(BYTES), SHA)
    assert (tmp_path / "new" / "copy").read_bytes() == BYTES
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["copy"]
    for name, size in (("train/a.bin", len(BYTES) - 1), ("train/a.bin", len(BYTES) + 5), ("train/b.bin", 5)):
        assert not writable.holds(name, size)
    assert writable.holds("train/a.bin", len(BYTES))
    assert writable.holds("train/a.bin", len(BYTES), SHA)
    assert not writable.holds("train/a.bin", len(BYTES), SHA[::-1])
    writable.put(b"other", "train/a.bin")
    assert writable.read("train/a.bin") == b"other"


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # of aiohttp, for bytes above 1 MB
def test_a_large_file_goes_up_whole(s3, gs) -> None:
    for scheme in ("s3", "gs"):
        Store(f"{scheme}://bucket/large").put(BYTES * 20, "a.bin")
        assert Store(f"{scheme}://bucket/large").read("a.bin") == BYTES * 20


def test_the_web_is_read_by_ranges_and_not_written(site, tmp_path) -> None:
    web = Store(f"{site.url}/pack/")
    assert web.read("train/a.bin") == BYTES
    assert web.read("train/b.bin") is None
    site.asked.clear()
    web.fetch("train/a.bin", tmp_path / "copy", len(BYTES), SHA)
    assert (tmp_path / "copy").read_bytes() == BYTES
    assert site.ranges_asked == ["bytes=0-89999", "bytes=90000-179999", "bytes=180000-269999", "bytes=270000-299999"]


def test_names_are_quoted_once(site) -> None:
    site.files["my%20pack/a%20%23%25.bin"] = b"here"
    assert Store(f"{site.url}/my%20pack").read("a #%.bin") == b"here"


def test_a_server_without_ranges_sends_it_once(site, tmp_path) -> None:
    site.ranges = False
    web = Store(f"{site.url}/pack")
    web.fetch("train/a.bin", tmp_path / "copy", len(BYTES), SHA)
    assert (tmp_path / "copy").read_bytes() == BYTES
    assert len(site.asked) == 1
    assert web.holds("train/a.bin", len(BYTES), SHA)
    assert not web.holds("train/a.bin", len(BYTES) - 1, SHA)


def test_a_cut_connection_goes_on_from_the_last_block(site, tmp_path) -> None:
    site.cuts = [90_000, 50_000, 10_000]
    Store(f"{site.url}/pack").fetch("train/a.bin", tmp_path / "copy", len(BYTES), SHA)
    assert (tmp_path / "copy").read_bytes() == BYTES
    first, second, *others = ("bytes=0-89999", "bytes=90000-179999", "bytes=180000-269999", "bytes=270000-299999")
    assert site.ranges_asked == [first, second, second, second, *others]


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_busy_server_is_asked_again(site, tmp_path, status) -> None:
    site.statuses = [status] * 3
    Store(f"{site.url}/pack").fetch("train/a.bin", tmp_path / "copy", len(BYTES), SHA)
    assert (tmp_path / "copy").read_bytes() == BYTES
    site.statuses = [status]
    assert Store(f"{site.url}/pack").read("train/a.bin") == BYTES


def test_what_stays_broken_is_one_line_and_leaves_nothing(site, tmp_path) -> None:
    site.cuts = [90_000, *[100] * 5]
    said = line(Store(f"{site.url}/pack").fetch, "train/a.bin", tmp_path / "copy", len(BYTES), SHA)
    assert "can't be had after 4 tries (the connection broke off)" in said
    assert not list(tmp_path.iterdir())


def test_a_chunk_that_is_another_is_one_line(site, tmp_path) -> None:
    site.files["pack/train/a.bin"] = BYTES[::-1]
    web = Store(f"{site.url}/pack")
    assert "it is not what was packed" in line(web.fetch, "train/a.bin", tmp_path / "copy", len(BYTES), SHA)
    assert len(site.asked) == 4 * store.TRIES
    site.files["pack/train/a.bin"] = BYTES[:90_000]
    assert "has fewer bytes" in line(web.fetch, "train/a.bin", tmp_path / "copy", len(BYTES), SHA)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("status", [401, 403, 404, 410, 400])
def test_a_refusal_is_one_line_at_once(site, tmp_path, status) -> None:
    site.statuses = [status] * 3
    message = line(Store(f"{site.url}/pack").fetch, "train/a.bin", tmp_path / "copy", len(BYTES), SHA)
    assert f"{site.url}/pack/train/a.bin" in message
    assert ("there is no such file" if status == 404 else str(status)) in message
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
    site.statuses = [400]
    note(web.read, "train/b.bin")
    note(Store(url.replace("127.0.0.1", "nowhere.invalid")).read, "a")
    for wrong in ("s3://key:{}@bucket/a", "gs://bucket/a?token={}", "ftp://user:{}@host/a", "https://user:{}@/a"):
        note(Store, wrong.format(secret))
    assert len(shown) == 14
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
        "s3://bucket/v#{}",
        "http://host/v#{}",
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


@pytest.mark.parametrize(("scheme", "endpoint"), [("s3", "AWS_ENDPOINT_URL"), ("gs", "STORAGE_EMULATOR_HOST")])
def test_a_bucket_or_a_server_that_is_not_there_is_one_line(request, monkeypatch, tmp_path, scheme, endpoint) -> None:
    request.getfixturevalue(scheme)
    for bucket in ("absent", "bucket"):
        said = line(Store(f"{scheme}://{bucket}/a").fetch, "b", tmp_path / "copy", 5, SHA)
        assert f"{scheme}://{bucket}/a/b can't be had: there is no such file or bucket" in said
    assert "no such file or bucket" in line(Store(f"{scheme}://absent/a").put, b"a", "b")
    assert "no such bucket" in line(open_source, f"{scheme}://absent/a")
    remote.file_system.cache_clear()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv(endpoint, f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert "(the connection is refused)" in line(Store(f"{scheme}://bucket/a").read, "b")


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "InvalidAccessKeyId"),
        (403, "SignatureDoesNotMatch"),
        (403, "AccessDenied"),
        (400, "ExpiredToken"),
        (400, "AuthorizationHeaderMalformed"),
    ],
)
def test_s3_credentials_that_are_refused_are_one_line_at_once(site, s3, monkeypatch, status, code) -> None:
    """The answers of Amazon's servers, as moto gives them only when told to, to all tests at once."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", site.url)
    site.statuses, site.body = [status] * 9, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    message = line(Store("s3://bucket/a").read, "b")
    assert "s3://bucket/a/b is refused" in message
    assert f"{status} {code}" in message
    assert "AWS_ACCESS_KEY_ID" in message
    assert len(site.asked) == 1


@pytest.fixture
def public(site, s3, monkeypatch) -> Site:
    """The site in the place of S3, without credentials: it refuses what has an Authorization header."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", site.url)
    for name in KEYS:
        monkeypatch.delenv(name)
    return site


def test_s3_is_asked_as_often_as_is_said(public) -> None:
    """And not as often again by s3fs and by botocore."""
    public.files["bucket/a/b"], public.cuts = BYTES, [100] * 20
    assert "after 4 tries (the connection broke off)" in line(Store("s3://bucket/a").read, "b")
    assert len(public.asked) == store.TRIES


def test_a_busy_s3_is_asked_again(public, tmp_path) -> None:
    public.files["bucket/a/b"], public.body = BYTES, b"<Error><Code>SlowDown</Code></Error>"
    public.statuses, public.cuts = [503, 500], [90_000, 50_000]
    Store("s3://bucket/a").fetch("b", tmp_path / "copy", len(BYTES), SHA)
    assert (tmp_path / "copy").read_bytes() == BYTES


def test_moto_refuses_wrong_keys(s3, monkeypatch) -> None:
    from moto.core import set_initial_no_auth_action_count

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with_keys = set_initial_no_auth_action_count(0)(lambda: line(Store("s3://bucket/a").read, "b"))
    assert "403 InvalidAccessKeyId" in with_keys()


def test_a_public_bucket_needs_no_credentials(public) -> None:
    public.files["bucket/a/b"] = b"public"
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
    assert "is refused (ProfileNotFound): AWS_ACCESS_KEY_ID" in line(Store("s3://bucket/a").read, "b")


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
        ("s3://", "that s3:// URL can't be read: s3://NAME/FOLDER would work"),
        ("az://a/b", "unknown kind of URL 'az://'"),
        ("s3://Not_A+Bucket!/b", "there can be no bucket or server of that name"),
    ],
)
def test_urls_that_can_not_be_are_one_line(s3, url, words) -> None:
    assert words in line(lambda: Store(url).read("a"))


def test_local_errors_name_the_file(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    assert line(Store(tmp_path).read, "a") == f"{tmp_path / 'a'} can't be read: Is a directory"
