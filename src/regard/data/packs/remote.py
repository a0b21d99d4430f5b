"""Object stores and web servers by way of fsspec: how each is opened, and what went wrong in words for people.

s3fs, gcsfs and fsspec's HTTP are asynchronous: one loop in a thread of its own serves all calls of a process. That
thread does not survive a fork, so an instance belongs to the process that made it (`regard.data.packs.store`).

Their own retries are turned off: those of gcsfs take a minute over wrong credentials, and none goes on from the bytes
that are already here. Credentials come from where the libraries look for them; without any, the bucket must be public.
"""

import errno
import inspect
import logging
import os
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from regard.errors import InputError

CONNECT = 5.0  # seconds to reach a server
SILENCE = 30.0  # seconds without a byte after which a connection counts as broken
PASSING = (408, 425, 429)  # statuses below 500 of a server that may answer later
STALE = ("ExpiredToken", "InvalidToken", "TokenRefreshRequired")  # S3 answers 400 to these, not 403
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, of an account that may use it would work",
    "gs": "`gcloud auth application-default login`, or a key file named in GOOGLE_APPLICATION_CREDENTIALS, would work",
    "http": "a signed URL that has not run out, or https://USER:PASSWORD@HOST/..., would work",
}
ENDPOINT = {
    "s3": "check the network, and AWS_ENDPOINT_URL where it is another server than Amazon's",
    "gs": "check the network, and STORAGE_EMULATOR_HOST where that is set",
    "http": "check the URL and the network",
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
    if os.environ.get("STORAGE_EMULATOR_HOST", "default") not in ("", "default"):
        store = make(token="anon")
    else:
        try:
            store = make(token="google_default")
        except DefaultCredentialsError:
            if os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):  # what it names can't be read
                raise
            store = make(token="anon")
    if plain := getattr(GCSFileSystem, "_request", None):  # gcsfs's own, which a later one may not have
        store._request = partial(inspect.unwrap(plain), store)  # without the six tries around it
    return store


def open_http() -> Any:
    """A web server, also by way of the proxies that the environment names."""
    from aiohttp import ClientTimeout
    from fsspec.implementations.http import HTTPFileSystem

    headers = {"User-Agent": "regard", "Accept-Encoding": "identity"}  # the bytes of the file, never packed once more
    wait = ClientTimeout(total=None, sock_connect=CONNECT, sock_read=SILENCE)
    options = {"timeout": wait, "headers": headers, "trust_env": True}
    return HTTPFileSystem(client_kwargs=options, encoded=True, skip_instance_cache=True)


KINDS = {"s3": "s3", "gs": "gs", "gcs": "gs", "https": "http", "http": "http"}  # of store, by the scheme of a URL
OPEN: dict[str, Callable[[], Any]] = {"s3": open_s3, "gs": open_gs, "http": open_http}


def open_remote(kind: str, shown: str) -> Any:
    """A new fsspec file system of a kind of `OPEN`. Raises InputError, in which it is called `shown`."""
    try:
        return OPEN[kind]()
    except ImportError as error:
        package = str(error.name).partition(".")[0]
        raise InputError(f'{shown} needs {package}: pip install "regard[stream]"') from error
    except Exception as error:  # of the many that look for credentials, each has its own
        raise explain(error, kind, shown) from None


def is_absent(error: Exception) -> bool:
    """Whether an error of a file system says that there is no such file, or no such part of it; not of a bucket."""
    status, code = _answer(error)
    return status in (404, 416) and code != "NoSuchBucket"


def lacks_bucket(files: Any, kind: str, path: str) -> bool:
    """Whether what is absent at `path` is its bucket, for Google's, of which gcsfs does not hand on what it says."""
    if kind != "gs":
        return False
    try:
        files.call("GET", "b/{}", path.partition("/")[0])
    except FileNotFoundError:
        return True
    except Exception:  # who may read files may not ask for buckets
        return False
    return False


def no_bucket(shown: str) -> InputError:
    """The error for a bucket that is not there."""
    return InputError(f"{shown}: there is no such bucket: check its name, or make it, to pack into it")


def explain(error: Exception, kind: str, shown: str) -> Exception:
    """What to raise for an error of a file system: an InputError, a `Passing`, or the error itself if it is a bug.

    None of the libraries' own words are passed on: they hold whole URLs, with the signatures and tokens in them.
    """
    status, code = _answer(error)
    answer = f"{status} {code}".strip()
    if status in (401, 403) or code in STALE:
        unsaid = "; S3 says the same of a file that is not there" if code == "AccessDenied" else ""
        return InputError(f"{shown} is refused ({answer}): {CREDENTIALS[kind]}{unsaid}")
    if code == "NoSuchBucket":
        return no_bucket(shown)
    if status == 404:
        return InputError(f"{shown} is not there: check the URL; a pack that was begun lacks files until it is done")
    if status == 416:
        return InputError(f"{shown} has fewer bytes than are listed: packing it again would work")
    if status is not None and (status >= 500 or status in PASSING):
        return Passing(f"the server answers {answer}")
    if status is not None:
        return InputError(f"{shown} is refused with {answer}: check the URL, the region and the endpoint")
    return _without_an_answer(error, kind, shown)


def _without_an_answer(error: Exception, kind: str, shown: str) -> Exception:
    """What to raise where no server said anything."""
    if _is(error, "google.auth", "RefreshError", "DefaultCredentialsError"):
        return InputError(f"{shown}: the credentials that were found are not accepted: {CREDENTIALS[kind]}")
    if _is(error, "botocore", "Credential", "Profile", "SSO", "TokenRetrieval"):
        return InputError(f"{shown}: the credentials can't be had ({type(error).__name__}): {CREDENTIALS[kind]}")
    if isinstance(error, ValueError) or _is(error, "botocore", "ParamValidation"):
        return InputError(f"{shown} can't be a URL of a bucket or server: {ENDPOINT[kind]}")
    if _is(error, "aiohttp", "Certificate") or _is(error, "ssl", "CertVerification"):
        return InputError(f"{shown}: the certificate of the server is not valid: {ENDPOINT[kind]}")
    for link in _chain(error):
        if isinstance(link, socket.gaierror):
            return Passing("the host is not known, or there is no network")
        if getattr(link, "errno", None) == errno.ECONNREFUSED:
            return Passing("the connection is refused")
        if isinstance(link, TimeoutError) or "Timeout" in type(link).__name__:
            return Passing("no answer in time")
    if isinstance(error, OSError) or any(_is(error, package) for package in ("aiohttp", "botocore", "google.auth")):
        return Passing("the connection broke off")
    return error


def _answer(error: Exception) -> tuple[int | None, str]:
    """(status, S3's word for it) of a server's answer; (None, "") where there was none."""
    for link in _chain(error):
        if isinstance(answer := getattr(link, "response", None), dict):  # botocore
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status, str(answer.get("Error", {}).get("Code", ""))
        for package, name in (("aiohttp.client", "status"), ("gcsfs", "code")):  # others' have other meanings
            if type(link).__module__.startswith(package) and str(value := getattr(link, name, "")).isdigit():
                return int(value), ""
    if isinstance(error, FileNotFoundError):
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


def _is(error: BaseException, package: str, *names: str) -> bool:
    """Whether an error, or what led to it, is of a package and has one of these in its name, if any are given.

    By names, as the packages may not be installed.
    """
    kinds = [kind for link in _chain(error) for kind in type(link).__mro__ if kind.__module__.startswith(package)]
    return any(not names or any(name in kind.__name__ for name in names) for kind in kinds)
