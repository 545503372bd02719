"""Text files of any size, gzipped or not, as chunks of whole lines: what bounds the memory of every reader."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from r2rank_jax.data.sources.schema import OnError
from r2rank_jax.errors import DataError
from r2rank_jax.files.progress import Progress

CHUNK_BYTES = 1 << 23  # of text; a reader holds a few of them
LINE_BYTES = 1 << 26  # no source has lines as long; a file that does is not text, and would fill the memory
QUOTED_LINES = 100  # a quoted field has no more: a stray quote must not swallow the rest of the file
_GZIP = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Chunk:
    """Some whole lines of a file, ended by \\n alone."""

    first_line: int  # number of its first line, from 1
    data: bytes
    lines: int
    cut: bool = False  # the file's last line, which has no line end; alone in its chunk

    def texts(self) -> list[bytes]:
        """The lines, without their ends."""
        return self.data.removesuffix(b"\n").split(b"\n") if self.lines else []

    def text_of(self, line: int) -> str:
        """A line as it stands there, as well as it can be decoded."""
        return as_text(self.texts()[line - self.first_line])


def chunks(path: Path, *, quoted: bool = False) -> Iterator[Chunk]:
    """Read a file in chunks of about CHUNK_BYTES; says how far it is where that takes long.

    Args:
        path: the file, gzipped or not.
        quoted: whether a line end between two quotes is no line end.

    Raises:
        DataError: no such file, a damaged or incomplete gzip file, or a line longer than LINE_BYTES.
    """
    line, rest = 1, b""
    with _open(path) as raw, Progress(path.name, path.stat().st_size) as progress:
        for block in _blocks(path, raw, CHUNK_BYTES):
            rest += block
            end = _last_end(rest, quoted)
            if end:
                chunk = _chunk(rest[:end], line)
                rest, line = rest[end:], line + chunk.lines
                progress.update(raw.tell(), line - 1)
                yield chunk
            elif len(rest) > LINE_BYTES:
                raise DataError(
                    f"{path}, line {line}: a line must have at most {LINE_BYTES:,} bytes, got more without a line end; "
                    f"this is no text file of one record a line: give the right file"
                )
    end = rest.rfind(b"\n") + 1
    if end:  # an open quote held these lines back
        chunk = _chunk(rest[:end], line)
        line += chunk.lines
        yield chunk
    if rest[end:]:
        yield Chunk(line, rest[end:], 1, cut=True)


def present(folder: Path, name: str) -> Path | None:
    """The file of that name, or the gzipped one."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def required(folder: Path, name: str, all_of: tuple[str, ...]) -> Path:
    """`present`, or an error that says which files belong there."""
    path = present(folder, name)
    if path is None:
        raise DataError(
            f"{folder} must hold {' and '.join(all_of)} (or {name}.gz), got no {name}; put it there, or fetch or "
            f"unpack the source again"
        )
    return path


def first_line(path: Path, encoding: str = "utf-8") -> str:
    """The first line of a file, without its end; undecodable bytes are replaced."""
    with _open(path) as raw:
        head = b""
        for block in _blocks(path, raw, 1 << 16):
            head += block
            if b"\n" in head or len(head) > 1 << 20:
                break
    return head.split(b"\n", 1)[0].rstrip(b"\r").decode(encoding, errors="replace")


def numbered_lines(
    path: Path, on_error: OnError, *, encoding: str = "utf-8", fields: int | None = None
) -> Iterator[tuple[int, str]]:
    """The lines of a file one by one, for records that are read in Python.

    Args:
        path: the file.
        on_error: gets lines that are not text.
        encoding: of the file.
        fields: of a delimited line. Then a last line without a line end is refused: it may be cut off and still look
            whole. None: objects, whose braces tell.

    Yields:
        (line number from 1, text without its end).
    """
    for chunk in chunks(path):
        for number, data in enumerate(chunk.texts(), start=chunk.first_line):
            if chunk.cut and fields is not None:
                on_error(path, number, cut_off(fields), as_text(data))
                continue
            try:
                text = data.decode(encoding)
            except UnicodeDecodeError as error:
                on_error(path, number, not_text(error), as_text(data))
                continue
            yield number, text


def encoding_of(path: Path) -> str:
    """UTF-8 if the whole file is, else ISO-8859-1, in which the older sources are written."""
    try:
        for chunk in chunks(path):
            chunk.data.decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


def cut_off(fields: int) -> str:
    """Why a last line without a line end is refused."""
    return (
        f"expected {fields} fields and a line end, got the end of the file: it was cut off, or add the line end if the "
        f"line is whole"
    )


def not_text(error: UnicodeDecodeError) -> str:
    """Why a line with this fault is refused."""
    return f"expected {error.encoding.upper()} text, got byte {error.object[error.start]:#04x}"


def as_text(data: bytes) -> str:
    """A damaged line as text that can be shown."""
    return data.decode("utf-8", errors="backslashreplace")


def _chunk(data: bytes, line: int) -> Chunk:
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n")
    return Chunk(line, data, data.count(b"\n"))


def _last_end(data: bytes, quoted: bool) -> int:
    """Where the last whole record ends; 0 where there is none."""
    last = end = data.rfind(b"\n") + 1
    if not quoted or b'"' not in data:
        return end
    quotes = data.count(b'"', 0, end)
    for _ in range(QUOTED_LINES):
        if quotes % 2 == 0:
            return end
        earlier = data.rfind(b"\n", 0, end - 1) + 1
        quotes -= data.count(b'"', earlier, end)
        end = earlier
    return last  # a stray quote: whoever splits the lines will find it


def _open(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(
            f"{path} must be a file that can be read, got: {error.strerror}; give the right path"
        ) from error


def _blocks(path: Path, raw: IO[bytes], size: int) -> Iterator[bytes]:
    """The file's text in blocks; gzip is told by its first bytes, since names lie."""
    packed = raw.read(2) == _GZIP
    raw.seek(0)
    stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw, mode="rb")) if packed else raw
    try:
        block = stream.read(size).removeprefix(_BYTE_ORDER_MARK)
        while block:
            yield block
            block = stream.read(size)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path} must be a whole gzip file, and is not ({error}); it was cut off or damaged: fetch it again"
        ) from error
