"""Resumable HTTP downloads. A part file holds the received bytes, and a note records where they came from."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from r2rank_jax.errors import DataError
from r2rank_jax.files.atomic import replacing_file
from r2rank_jax.files.progress import Progress

ATTEMPTS = 5
PAUSE_S = 1.0  # before the second attempt; doubles with each attempt
PAUSE_AT_MOST_S = 60.0  # even if a server asks for more
TIMEOUT_S = 60.0  # without receiving a byte
BLOCK_BYTES = 1 << 20
_TRANSIENT = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


class _RetryError(Exception):
    """A failed attempt that may succeed when repeated."""

    def __init__(self, reason: str, pause_s: float | None = None):
        super().__init__(reason)
        self.pause_s = pause_s


@dataclass(frozen=True)
class _Part:
    """The bytes of one file received so far."""

    path: Path
    url: str

    @property
    def _note(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    def size_and_validator(self) -> tuple[int, str]:
        """Number of bytes on disk and the validator (ETag or date) of the server's file; (0, "") to start over."""
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            if note["url"] == self.url and note["validator"]:
                return self.path.stat().st_size, note["validator"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return 0, ""

    def begin(self, validator: str) -> None:
        """Discard earlier bytes and record the source of the next ones."""
        self.path.unlink(missing_ok=True)
        with replacing_file(self._note) as temporary:
            temporary.write_text(json.dumps({"url": self.url, "validator": validator}), encoding="utf-8")

    def remove(self) -> None:
        """Delete the part file and its note."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)


def download(url: str, path: Path, *, md5: dict[str, str]) -> int:
    """Download a file, resuming an earlier interrupted download.

    Bytes are written to `.NAME.part` beside `path`. A download resumes if the server still has the same file
    (If-Range with its ETag or date); otherwise it starts over. `path` is created only after size and checksums match.

    Args:
        url: address of the file.
        path: the file to write.
        md5: origin of a checksum -> the checksum; all of them must match.

    Returns:
        The file's size in bytes.

    Raises:
        DataError: the server refused the request or failed ATTEMPTS times, or a checksum does not match.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(path.with_name(f".{path.name}.part"), url)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _attempt(part, path.name)
            break
        except _RetryError as error:
            if attempt == ATTEMPTS:
                raise DataError(
                    f"{url} must be downloaded completely, but {ATTEMPTS} attempts failed, the last with: {error}; run "
                    f"this again to resume the download, or put {path.name} into the folder by hand"
                ) from error
            time.sleep(min(error.pause_s or PAUSE_S * 2 ** (attempt - 1), PAUSE_AT_MOST_S))
    size = part.path.stat().st_size
    digest = _md5(part.path) if md5 else ""
    for origin, expected in md5.items():
        if digest != expected:
            part.remove()
            raise DataError(
                f"{url} must have MD5 {expected} ({origin}), got {digest} over {size:,} bytes; it was damaged in "
                f"transfer or is another file: run this again, and do not use the file if that does not help"
            )
    os.replace(part.path, path)
    part.remove()
    return size


def text_at(url: str) -> str | None:
    """Download a short text, such as a published checksum; None if the server does not have it.

    Raises:
        DataError: the server failed ATTEMPTS times.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with _open(url, {}) as response:
                return response.read(1 << 16).decode("utf-8", errors="replace")
        except _RetryError as error:
            if attempt == ATTEMPTS:
                raise DataError(
                    f"{url} must be readable, got: {error}; check the network and run this again"
                ) from error
            time.sleep(min(error.pause_s or PAUSE_S * 2 ** (attempt - 1), PAUSE_AT_MOST_S))
        except DataError:
            return None
    return None


def _attempt(part: _Part, name: str) -> None:
    have, validator = part.size_and_validator()
    headers = {"Range": f"bytes={have}-", "If-Range": validator} if have else {}
    with _open(part.url, headers) as response:
        if response.status == 416:
            _require_whole(part, response, have)
            return
        if response.status == 206:
            start, total = _range(response)
            if start != have:
                part.remove()
                raise _RetryError(f"asked for bytes from {have}, got them from {start}")
        else:
            have, total = 0, _length(response)
            part.begin(_validator(response))
        _append(part, response, have, total, name)


def _append(part: _Part, response: http.client.HTTPResponse, have: int, total: int | None, name: str) -> None:
    with Progress(name, total) as progress, part.path.open("ab") as out:
        while True:
            try:
                block = response.read(BLOCK_BYTES)
            except http.client.IncompleteRead as error:
                out.write(error.partial)
                raise _RetryError(f"the connection ended after {out.tell():,} of {total} bytes") from error
            except (*_TRANSIENT, OSError) as error:
                raise _RetryError(f"{type(error).__name__}: {error}") from error
            if not block:
                break
            out.write(block)
            progress.update(out.tell())
        size = out.tell()
    if total is not None and size != total:
        if size > total:
            part.remove()
        raise _RetryError(f"the server announced {total:,} bytes, got {size:,}")


def _require_whole(part: _Part, response: http.client.HTTPResponse, have: int) -> None:
    """Handle status 416 (no such range): the part file is either complete or belongs to another file."""
    if response.headers.get("Content-Range", "") != f"bytes */{have}":
        part.remove()
        raise _RetryError(f"the server has no bytes after {have:,}")


def _open(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    """Return a response with status 200, 206 or 416."""
    request = urllib.request.Request(url, headers={"User-Agent": "r2rank-jax", "Accept-Encoding": "identity"} | headers)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            return cast(http.client.HTTPResponse, error)  # it has every attribute that the caller reads
        if error.code == 429 or error.code >= 500:
            raise _RetryError(f"HTTP {error.code} {error.reason}", _retry_after(error)) from error
        raise DataError(
            f"{url} must exist, but the server answered {error.code} {error.reason}; the address may have changed: "
            f"download the file by hand"
        ) from error
    except (*_TRANSIENT, OSError) as error:
        raise _RetryError(f"{type(error).__name__}: {error}") from error
    if url.startswith("https:") and not response.url.startswith("https:"):
        response.close()
        raise DataError(f"{url} must stay on https, but redirects to {response.url}; download the file by hand")
    return response


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    seconds = error.headers.get("Retry-After", "")
    return float(seconds) if seconds.isdecimal() else None


def _validator(response: http.client.HTTPResponse) -> str:
    """A strong ETag, or else the date: a weak ETag does not guarantee identical bytes."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _length(response: http.client.HTTPResponse) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _range(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """(first byte, total size) of a response with status 206."""
    span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    start = span.partition("-")[0]
    return int(start) if start.isdecimal() else -1, int(total) if total.isdecimal() else None


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
