"""A folder of objects in a store such as Amazon S3 or Google Cloud Storage, through fsspec.

An object is written as a whole or not at all. Nothing can be renamed or appended to, and folders exist only as parts of
names. Credentials, regions and endpoints come from where the store's own tools read them.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from r2rank_jax.errors import FAILED, REFUSED, StorageError, UsageError

T = TypeVar("T")

EXTRAS = {"s3": "s3fs", "gs": "gcsfs"}
"""Scheme of an address -> the package that speaks with the store, installed by the extra of the scheme's name."""
AT_ONCE = 8
"""Objects that are sent or fetched at the same time."""
_PAUSES_S = (1, 2, 4, 8, 15, 30)
"""Before further attempts. The packages themselves repeat a request a few times within seconds."""


def is_address(text: str) -> bool:
    """Whether a text is an address such as s3://bucket/run rather than a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


class ObjectFolder:
    """All objects whose names begin with an address.

    Names of objects are relative to it and have slashes. All methods raise `StorageError` if the store refuses, or if
    it still does not answer after a minute of attempts.
    """

    def __init__(self, address: str):
        """Check an address. The store is not asked for anything yet.

        Args:
            address: s3://BUCKET/NAME or gs://BUCKET/NAME.

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
        import fsspec  # takes a second

        for package in ("gcsfs", "fsspec", "aiobotocore", "botocore"):
            logging.getLogger(package).setLevel(logging.ERROR)  # they log every repeated request
        self.address = address.rstrip("/")
        self._root = "/".join(parts)
        self._store = fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False)

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
            done: is told the bytes sent after every file.
        """
        sizes = []

        def one(item: tuple[str, Path]) -> None:
            name, file = item
            sizes.append(file.stat().st_size)
            self._ask(f"write {name}", lambda: self._store.put_file(str(file), f"{self._root}/{name}"))
            done(sum(sizes))

        self._each(one, files.items())

    def fetch(self, files: dict[str, Path], done: Callable[[int], None] = lambda _: None) -> None:
        """Write objects into files, whose folders are made. Arguments are those of `send`."""
        sizes = []

        def one(item: tuple[str, Path]) -> None:
            name, file = item
            file.parent.mkdir(parents=True, exist_ok=True)
            self._ask(f"read {name}", lambda: self._store.get_file(f"{self._root}/{name}", str(file)))
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
            taken: raise `FileExistsError` as it is.
        """
        for pause_s in (*_PAUSES_S, None):
            try:
                return request()
            except Exception as error:  # of many types; botocore, aiohttp and google.auth have their own
                if (missing and isinstance(error, FileNotFoundError)) or (taken and isinstance(error, FileExistsError)):
                    raise
                if isinstance(error, RuntimeError) and "interpreter shutdown" in str(error):
                    raise
                refused = isinstance(error, (FileNotFoundError, PermissionError)) or _no_credentials(error)
                if refused or pause_s is None:
                    raise self._error(what, error, REFUSED if refused else FAILED) from error
                time.sleep(pause_s)
        raise AssertionError("unreachable")

    def _error(self, what: str, error: Exception, code: int) -> StorageError:
        reason = " ".join(str(error).split()) or type(error).__name__
        remedy = "check its name and your credentials" if code == REFUSED else "run the command again"
        return StorageError(f"{self.address} must let this machine {what}, got {reason:.200}; {remedy}", code)


def _no_credentials(error: Exception) -> bool:
    """Whether an error says that no credentials were given; it has a type of each package."""
    return "credentials" in type(error).__name__.lower() or "Could not parse" in str(error)
