"""A folder of objects in a store such as Amazon S3 or Google Cloud Storage, through fsspec.

An object is written as a whole or not at all. Nothing can be renamed or appended to, and folders exist only as parts of
names. Credentials, regions and endpoints come from where the store's own tools read them.
"""

from __future__ import annotations

import errno
import importlib.util
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path
from typing import Any, TypeVar

from r2rank_jax.errors import FAILED, REFUSED, StorageError, UsageError

T = TypeVar("T")

EXTRAS = {"s3": "s3fs", "gs": "gcsfs"}
"""Scheme of an address -> the package that accesses the store, installed by the extra of the scheme's name."""
AT_ONCE = 8
"""Objects that are sent or fetched at the same time, each in up to `_PARTS` parts of 50 MiB, which are in memory."""
PATIENCE_S = 120.0
"""Seconds after which a request that failed is not made again."""
_PARTS = 2
_PAUSES_S = (1, 2, 4, 8, 15)
"""Before further attempts; the last one again and again."""
_CONNECT_S, _SILENT_S = 10, 60
"""Seconds without an answer after which an attempt has failed."""
_LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE)
"""Errors of this machine's disk rather than the store."""


def is_address(text: str) -> bool:
    """Whether a text is an address such as s3://bucket/run rather than a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


class ObjectFolder:
    """All objects whose names begin with an address.

    Names of objects are relative to it and have slashes. All methods raise `StorageError` if the store refuses, or if
    it still fails after `PATIENCE_S`, and `OSError` if a file of this machine cannot be read or written.
    """

    def __init__(self, address: str, *, patience_s: float = PATIENCE_S):
        """Check an address. The store is not asked for anything yet.

        Args:
            address: s3://BUCKET/NAME or gs://BUCKET/NAME.
            patience_s: see `PATIENCE_S`.

        Raises:
            UsageError: it is no such address, or the package for its store is not installed.
        """
        scheme, _, rest = address.partition("://")
        parts = rest.rstrip("/").split("/")
        if scheme not in EXTRAS or len(parts) < 2 or not all(parts) or {".", ".."} & set(parts):
            raise UsageError(
                f"an address in an object store must be s3://BUCKET/NAME or gs://BUCKET/NAME, got {address}; mount "
                "other storage and give its path"
            )
        if importlib.util.find_spec(EXTRAS[scheme]) is None:
            raise UsageError(
                f"{address} needs the package {EXTRAS[scheme]}; run `pip install 'r2rank-jax[{scheme}]'`, or `pip "
                f"install -e '.[{scheme}]'` in a checkout"
            )
        self.address = address.rstrip("/")
        self._root = "/".join(parts)
        self._patience_s = patience_s
        self._store = _open(scheme)
        self._troubled = False  # the last request failed, and the user was told

    def tags(self, under: str = "") -> dict[str, str]:
        """The objects whose names begin with `under`, a folder: name -> a text that changes with the content."""

        def find() -> dict[str, str]:
            self._store.invalidate_cache()
            found = self._store.find(f"{self._root}/{under}".rstrip("/"), detail=True)
            return {
                name.removeprefix(f"{self._root}/"): f"{info['size']} {info.get('ETag') or info.get('etag')}"
                for name, info in found.items()
                if name.startswith(f"{self._root}/") and info["type"] == "file" and not name.endswith("/")
            }

        return self._ask(f"list {under or 'it'}", find)

    def read(self, name: str) -> bytes | None:
        """The content of a small object; None if there is none."""
        try:
            return self._ask(f"read {name}", lambda: bytes(self._store.cat_file(f"{self._root}/{name}")), missing=True)
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write a small object, or replace it."""
        self._ask(f"write {name}", lambda: self._store.pipe_file(f"{self._root}/{name}", content))

    def create(self, name: str, content: bytes) -> bool:
        """Write a small object unless there is one. False if there is: of several writers, one gets True.

        An answer that is lost can make the winner's further attempt return False as well.
        """
        path = f"{self._root}/{name}"
        try:
            self._ask(f"write {name}", lambda: self._store.pipe_file(path, content, mode="create"), taken=True)
        except FileExistsError:
            return False
        return True

    def send(self, files: dict[str, Path], done: Callable[[int], None] = lambda _: None) -> None:
        """Write files as objects, several at a time and in pieces.

        Args:
            files: name -> file.
            done: is told after every file how many bytes have been written so far.
        """
        self._copy(files, done, "write", lambda name, file: self._store.put_file(str(file), f"{self._root}/{name}"))

    def fetch(self, files: dict[str, Path], done: Callable[[int], None] = lambda _: None) -> None:
        """Write objects into files, whose folders are made. Arguments are those of `send`.

        Raises:
            FileNotFoundError: there is no such object.
        """
        for folder in {file.parent for file in files.values()}:
            folder.mkdir(parents=True, exist_ok=True)
        self._copy(files, done, "read", lambda name, file: self._store.get_file(f"{self._root}/{name}", str(file)))

    def _copy(
        self, files: dict[str, Path], done: Callable[[int], None], verb: str, copy: Callable[[str, Path], object]
    ) -> None:
        sizes = []

        def one(item: tuple[str, Path]) -> None:
            name, file = item
            self._ask(f"{verb} {name}", lambda: copy(name, file), missing=verb == "read")
            sizes.append(file.stat().st_size)
            done(sum(sizes))

        self._each(one, files.items())

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; missing ones are no error."""

        def one(name: str) -> None:
            with suppress(FileNotFoundError):
                self._ask(f"delete {name}", lambda: self._store.rm_file(f"{self._root}/{name}"), missing=True)

        self._each(one, names)

    def _each(self, one: Callable[[T], None], items: Iterable[T]) -> None:
        with ThreadPoolExecutor(AT_ONCE) as threads:
            for _ in threads.map(one, items):
                pass

    def _ask(self, what: str, request: Callable[[], T], *, missing: bool = False, taken: bool = False) -> T:
        """Make a request, again after a pause if the store fails in a way that may pass.

        Args:
            what: of the request, for the message.
            request: to make.
            missing: raise `FileNotFoundError` as it is.
            taken: raise `FileExistsError` if the object exists.
        """
        deadline, pauses = time.monotonic() + self._patience_s, chain(_PAUSES_S, repeat(_PAUSES_S[-1]))
        while True:
            try:
                answer = request()
            except Exception as error:  # of many types; botocore, aiohttp and google.auth have their own
                if (missing and isinstance(error, FileNotFoundError)) or _is_local(error):
                    raise
                if taken and _is_taken(error):
                    raise FileExistsError(what) from error
                if _is_refused(error):
                    raise self._error(what, error, REFUSED) from error
                pause_s = next(pauses)
                if time.monotonic() + pause_s > deadline:
                    raise self._error(what, error, FAILED) from error
                if not self._troubled:
                    self._troubled = True
                    line = f"{self.address} failed to {what} ({_reason(error)}); trying for {self._patience_s:.0f} s"
                    print(line, file=sys.stderr, flush=True)
                time.sleep(pause_s)
            else:
                self._troubled = False
                return answer

    def _error(self, what: str, error: Exception, code: int) -> StorageError:
        remedy = "check its name and your credentials" if code == REFUSED else "run the command again"
        return StorageError(f"{self.address} must let this machine {what}, got {_reason(error)}; {remedy}", code)


def _open(scheme: str) -> Any:
    """The file system of fsspec, with its own connections."""
    import fsspec  # takes a second

    for package in ("gcsfs", "fsspec", "aiobotocore", "botocore"):
        logging.getLogger(package).setLevel(logging.CRITICAL)  # they log every repeated request
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if scheme == "s3":
        options["max_concurrency"] = _PARTS
        options["config_kwargs"] = {
            "connect_timeout": _CONNECT_S,
            "read_timeout": _SILENT_S,
            "retries": {"max_attempts": 2},
            "max_pool_connections": AT_ONCE * _PARTS,
        }
    else:
        import aiohttp

        options["requests_timeout"] = aiohttp.ClientTimeout(sock_connect=_CONNECT_S, sock_read=_SILENT_S)
    store = fsspec.filesystem(scheme, **options)
    if scheme == "s3":
        store.retries = 2
    return store


def _is_local(error: Exception) -> bool:
    """Whether an error is one of this machine: of its disk, or because the process ends."""
    if isinstance(error, OSError):
        return error.errno in _LOCAL or str(error.filename).startswith("/")
    return isinstance(error, RuntimeError) and "interpreter shutdown" in str(error)


def _is_taken(error: Exception) -> bool:
    """Whether an object exists; not every store says so in the way that the packages expect."""
    return isinstance(error, FileExistsError) or "precondition" in str(error).lower()


def _is_refused(error: Exception) -> bool:
    """Whether a store or its package denies a request for reasons that will not pass."""
    denied = isinstance(error, (FileNotFoundError, PermissionError)) or getattr(error, "code", None) in (401, 403)
    words = ("credentials", "profilenotfound")
    return denied or str(error).startswith("Forbidden") or any(word in type(error).__name__.lower() for word in words)


def _reason(error: Exception) -> str:
    return f"{' '.join(str(error).split()) or type(error).__name__:.200}"
