"""Servers on loopback for the tests of stores and downloads: S3 (moto), Google Cloud Storage (an emulator), the web,
and a stand-in for the Hugging Face hub.

Each is a context manager. `s3_server` and `gs_server` set what the libraries read from the environment, so that
processes started within reach them too.
"""

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

NO_CREDENTIALS = {  # nothing of the machine's own, and no search for a metadata server
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": "us-east-1",
    "NO_GCE_CHECK": "true",
    "no_proxy": "*",
}
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test-secret"}


@dataclass
class Site:
    """What a web server has and does, and what it was asked for."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)  # by path, without the first "/"
    ranges: bool = True
    tag: str | None = None  # ETag of every file, which If-Range is compared with
    conditions: bool = True  # whether If-Range is looked at
    delay: float = 0.0  # seconds before each answer
    cuts: list[int] = field(default_factory=list)  # bytes of each answer after which the connection is closed
    statuses: list[int] = field(default_factory=list)  # of the first answers, in the place of a file
    body: bytes = b""  # of those answers
    authorization: str | None = None  # the header that is asked for
    query: str = ""  # that is asked for
    commit: str | None = None  # of all repositories of a stand-in for the Hugging Face hub, which says it
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # (path, Range) of each request

    def serve(self, folder: Path, at: str) -> None:
        """All files of a folder, below a path."""
        for path in folder.rglob("*.*"):
            self.files[f"{at}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()

    @property
    def ranges_asked(self) -> list[str | None]:
        return [asked for _, asked in self.asked]


@contextmanager
def web_server() -> Iterator[Site]:
    """A web server that fails as it is told to."""
    site, stop = Site(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path, _, query = self.path.lstrip("/").partition("?")
            site.asked.append((path, self.headers["Range"]))
            stop.wait(site.delay)
            body = site.files.get(path)
            if site.statuses:
                return self.refuse(site.statuses.pop(0))
            if self.headers["Authorization"] != site.authorization or query != site.query:
                return self.refuse(401)
            if body is None:
                return self.refuse(404)
            whole, begin, end = len(body), 0, len(body)
            is_same = not site.conditions or self.headers["If-Range"] in (None, site.tag)
            if site.ranges and self.headers["Range"] and is_same:
                first, last = self.headers["Range"].removeprefix("bytes=").split("-")
                begin, end = int(first), min(whole, int(last or whole) + 1)
                if begin >= whole:
                    return self.refuse(416, f"bytes */{whole}")
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{whole}")
            else:
                self.send_response(200)
            if site.tag:
                self.send_header("ETag", site.tag)
            if site.commit:
                self.send_header("ETag", hashlib.sha256(body).hexdigest())
                self.send_header("X-Repo-Commit", site.commit)
            self.send_header("Content-Length", str(end - begin))
            self.end_headers()
            if self.command == "HEAD":
                return None
            cut = site.cuts.pop(0) if site.cuts else end
            self.wfile.write(body[begin:end][:cut])
            self.close_connection = cut < end - begin

        do_HEAD = do_GET

        def do_POST(self) -> None:
            """Of those who trade a key for a token."""
            self.rfile.read(int(self.headers["Content-Length"]))
            self.refuse(site.statuses.pop(0))

        def refuse(self, status: int, range_: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Range", range_)
            if site.commit:  # of a file, or of a repository of which there is none
                repository = "/".join(self.path.split("/")[1:3])
                there = any(path.startswith(f"{repository}/") for path in site.files)
                self.send_header("X-Error-Code", "EntryNotFound" if there and status == 404 else "RepoNotFound")
            self.send_header("Content-Length", str(len(site.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(site.body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False  # connections that a client keeps open
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    try:
        with mock.patch.dict(os.environ, NO_CREDENTIALS):
            yield site
    finally:
        stop.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def hub(cache: Path) -> Iterator[Site]:
    """A stand-in for the Hugging Face hub, for what runs within; `publish` puts a folder there."""
    from huggingface_hub import constants, file_download

    with web_server() as site:
        site.commit = "0123456789" * 4
        settings = {"ENDPOINT": site.url, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": False}
        settings["HUGGINGFACE_CO_URL_TEMPLATE"] = site.url + "/{repo_id}/resolve/{revision}/{filename}"
        with ExitStack() as stack:
            for name, value in settings.items():
                stack.enter_context(mock.patch.object(constants, name, value))
            template = "HUGGINGFACE_CO_URL_TEMPLATE"  # before 1.0, it is copied
            stack.enter_context(mock.patch.object(file_download, template, settings[template], create=True))
            yield site


def publish(site: Site, folder: Path, name: str) -> None:
    """The files of a folder, as those of a repository on the stand-in."""
    for revision in ("main", site.commit):
        site.serve(folder, f"{name}/resolve/{revision}")


@contextmanager
def s3_server(*buckets: str) -> Iterator[str]:
    """S3 by moto, with empty buckets; its URL, which AWS_ENDPOINT_URL is set to, with credentials that it takes."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    try:
        with mock.patch.dict(os.environ, {**NO_CREDENTIALS, **KEYS, "AWS_ENDPOINT_URL": url}):
            client = boto3.client("s3")
            for bucket in buckets:
                client.create_bucket(Bucket=bucket)
            client.close()
            yield url
    finally:
        server.stop()


@contextmanager
def gs_server(*buckets: str) -> Iterator[str]:
    """Google Cloud Storage by an emulator in memory; its URL, which STORAGE_EMULATOR_HOST is set to."""
    from gcp_storage_emulator.handlers.buckets import create_bucket
    from gcp_storage_emulator.server import create_server

    with ExitStack() as stack:
        server = create_server("127.0.0.1", 0, in_memory=True)
        server.start()
        stack.callback(server.stop)
        for bucket in buckets:
            create_bucket(bucket, server._storage)
        port = server._api._httpd.server_port
        url = f"http://127.0.0.1:{port}"
        stack.enter_context(mock.patch.dict(os.environ, {**NO_CREDENTIALS, "STORAGE_EMULATOR_HOST": url}))
        yield url
