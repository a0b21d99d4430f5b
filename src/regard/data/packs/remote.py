"""The file systems of fsspec: how each is opened, and what went wrong in words for people.

s3fs, gcsfs and fsspec's HTTP are asynchronous: one loop in a thread of its own serves all calls of a process. That
thread does not survive a fork, so an instance belongs to the process that made it. Their own retries are turned off:
HTTP has none, and those of gcsfs take a minute over wrong credentials. Credentials come from where the libraries look
for them; without any, the bucket must be public.
"""

import inspect
import logging
import os
import re
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

from regard.errors import InputError

CONNECT = 5.0  # seconds to reach a server
SILENCE = 30.0  # seconds without a byte after which a connection counts as broken
PASSING = (408, 425, 429)  # statuses below 500 of a server that may answer later
KINDS = {"s3": "s3", "gs": "gs", "gcs": "gs", "https": "http", "http": "http"}  # of store, by the scheme of a URL
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, of an account that may use it would work",
    "gs": "`gcloud auth application-default login`, or a key file named in GOOGLE_APPLICATION_CREDENTIALS, would work",
    "http": "a signed URL that has not run out, or https://USER:PASSWORD@HOST/..., would work",
}
NO_CREDENTIALS = r"google\.auth\S*(Refresh|DefaultCredentials)|botocore\S*(Credential|Profile|SSO|TokenRetrieval)"
BROKEN = {  # by the names of errors where no server said anything
    "gaierror": "the host is not known, or there is no network",
    "ConnectionRefused": "the connection is refused",
    "Timeout": "no answer in time",
    "Certificate|CertVerification": "the certificate of the server is not valid",
    "ValueError|ParamValidation": "there can be no bucket or server of that name",
    "OSError|aiohttp|botocore|google.auth": "the connection broke off",
}


class Passing(Exception):
    """What may be over at the next try, in words: a connection cut short, a time-out, a busy server."""


def open_s3() -> Any:
    """S3, and all that speaks as it does (AWS_ENDPOINT_URL)."""
    import botocore.session
    from s3fs import S3FileSystem

    wait = {"connect_timeout": CONNECT, "read_timeout": SILENCE, "retries": {"total_max_attempts": 1}}
    public = botocore.session.Session().get_credentials() is None
    # One request at a time for a file: with more, the size is asked for first, and the answer to that gives no reason.
    store = S3FileSystem(anon=public, config_kwargs=wait, max_concurrency=1, skip_instance_cache=True)
    store.retries = 1
    return store


def open_gs() -> Any:
    """Google Cloud Storage, or the emulator that STORAGE_EMULATOR_HOST names, which asks for no credentials."""
    from aiohttp import ClientTimeout
    from gcsfs.core import GCSFileSystem  # not gcsfs's own choice, which asks by gRPC: that does not survive a fork
    from google.auth.exceptions import DefaultCredentialsError

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs each error that it raises, with its URL
    wait = ClientTimeout(total=None, sock_connect=CONNECT, sock_read=SILENCE)
    make = partial(GCSFileSystem, requests_timeout=wait, session_kwargs={"trust_env": True}, skip_instance_cache=True)
    try:
        is_emulator = os.environ.get("STORAGE_EMULATOR_HOST", "default") not in ("", "default")
        store = make(token="anon" if is_emulator else "google_default")
    except DefaultCredentialsError:
        if os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):  # what it names can't be read
            raise
        store = make(token="anon")
    store._request = partial(inspect.unwrap(GCSFileSystem._request), store)  # without the six tries around it
    return store


def open_http() -> Any:
    """A web server, also by way of the proxies that the environment names."""
    from aiohttp import ClientTimeout
    from fsspec.implementations.http import HTTPFileSystem

    headers = {"User-Agent": "regard", "Accept-Encoding": "identity"}  # the bytes of the file, never packed once more
    wait = ClientTimeout(total=None, sock_connect=CONNECT, sock_read=SILENCE)
    options = {"timeout": wait, "headers": headers, "trust_env": True}
    return HTTPFileSystem(client_kwargs=options, encoded=True, skip_instance_cache=True)


@cache  # a fork holds its parent's, too: to close them would take the parent's connections out of the queue they share
def file_system(kind: str, process: int) -> Any:
    """The file system of a process: "file" for its disks, or one of `KINDS`."""
    if kind == "file":
        from fsspec.implementations.local import LocalFileSystem

        return LocalFileSystem()
    return {"s3": open_s3, "gs": open_gs, "http": open_http}[kind]()


def is_absent(error: Exception) -> bool:
    """Whether an error of a file system says that there is no such file, or no such part of it, or no such bucket."""
    return _answer(error)[0] in (404, 416)


def explain(error: Exception, kind: str, shown: str) -> Exception:
    """What to raise for an error of a file system: an InputError, a `Passing`, or the error itself if it is a bug.

    None of the libraries' own words are passed on: they hold whole URLs, with the signatures and tokens in them.
    """
    if kind == "file":
        return InputError(f"{shown} can't be read: {getattr(error, 'strerror', '') or type(error).__name__}")
    if isinstance(error, ImportError):
        package = str(error.name).partition(".")[0]
        return InputError(f'{shown} needs {package}: pip install "regard[stream]"')
    status, code = _answer(error)
    answer = f"{status} {code}".strip() if status else type(error).__name__
    # By name, as their packages may not be installed.
    names = " ".join(f"{of.__module__}.{of.__name__}" for link in _chain(error) for of in type(link).__mro__)
    if status in (404, 416):
        why = "there is no such file or bucket, or the file has fewer bytes than are listed"
        return InputError(f"{shown} can't be had: {why}: check the URL, and whether it was packed to its end")
    if re.search(NO_CREDENTIALS, names) or (status and status < 500 and status not in PASSING):
        return InputError(f"{shown} is refused ({answer}): {CREDENTIALS[kind]}")
    words = f"the server answers {answer}" if status else ""
    words = words or next((words for pattern, words in BROKEN.items() if re.search(pattern, names)), "")
    return Passing(words) if words else error


def _answer(error: Exception) -> tuple[int | None, str]:
    """(status, S3's word for it) of a server's answer; (None, "") where there was none."""
    for link in _chain(error):
        if isinstance(answer := getattr(link, "response", None), dict):  # botocore
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status, str(answer.get("Error", {}).get("Code", ""))
        for package, name in (("aiohttp.client", "status"), ("gcsfs", "code")):  # others' have other meanings
            if type(link).__module__.startswith(package) and str(value := getattr(link, name, "")).isdigit():
                return int(value), ""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return 404, ""
    if isinstance(error, PermissionError) or str(error).startswith("Forbidden"):  # gcsfs: an OSError without a number
        return 403, ""
    return None, ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__
