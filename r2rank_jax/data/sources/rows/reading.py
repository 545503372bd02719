"""Read text files of any size, gzipped or not, in chunks of whole lines, which bound the memory of every reader."""

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

CHUNK_BYTES = 1 << 23  # of text; a reader holds a few chunks
LINE_BYTES = 1 << 26  # longer than any source's lines; a longer line is not text and would fill the memory
QUOTED_LINES = 100  # limit of a quoted field, so that a stray quote does not consume the rest of the file
_GZIP = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# First bytes of files that are no UTF-8 text; UTF-16 and UTF-32 begin with their byte order mark.
_OTHER_FORMATS = {
    b"\xff\xfe": "UTF-16 text: convert it with `iconv -f UTF-16 -t UTF-8`",
    b"\xfe\xff": "UTF-16 text: convert it with `iconv -f UTF-16 -t UTF-8`",
    b"\x00\x00\xfe\xff": "UTF-32 text: convert it with `iconv -f UTF-32 -t UTF-8`",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"BZh": "a bzip2 file: unpack it",
    b"\xfd7zXZ": "an xz file: unpack it",
    b"\x28\xb5\x2f\xfd": "a zstandard file: unpack it",
    b"PAR1": "a Parquet file: name it X.parquet",
}


@dataclass(frozen=True)
class Chunk:
    """Some whole lines of a file, with \\n as line end."""

    first_line: int  # number of its first line, from 1
    data: bytes
    lines: int
    cut: bool = False  # whether it holds only the file's last line, without a line end

    def texts(self) -> list[bytes]:
        """Return the lines without their line ends."""
        return self.data.removesuffix(b"\n").split(b"\n") if self.lines else []

    def text_of(self, line: int) -> str:
        """Return a line, decoded as far as possible."""
        return as_text(self.texts()[line - self.first_line])


def chunks(path: Path, *, quoted: bool = False) -> Iterator[Chunk]:
    """Read a file in chunks of about CHUNK_BYTES, showing progress if it takes long.

    Args:
        path: the file, gzipped or not.
        quoted: whether line ends between two quotes belong to a field.

    Raises:
        DataError: a missing file, a damaged or incomplete gzip file, or a line longer than LINE_BYTES.
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
                    f"this is not a text file with one record per line: give the right file"
                )
    end = rest.rfind(b"\n") + 1
    if end:  # an open quote held these lines back
        chunk = _chunk(rest[:end], line)
        line += chunk.lines
        yield chunk
    if rest[end:]:
        yield Chunk(line, rest[end:], 1, cut=True)


def present(folder: Path, name: str) -> Path | None:
    """Return the file of that name or its gzipped version; None if neither exists."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def required(folder: Path, name: str, all_of: tuple[str, ...]) -> Path:
    """Return `present`, or raise an error that names the required files."""
    path = present(folder, name)
    if path is None:
        raise DataError(
            f"{folder} must hold {' and '.join(all_of)} (or {name}.gz), got no {name}; add it, or fetch or unpack the "
            f"source again"
        )
    return path


def first_line(path: Path, encoding: str = "utf-8") -> str:
    """Return the first line of a file without its line end; undecodable bytes are replaced."""
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
    """Iterate over the lines of a file, for records that are parsed in Python.

    Args:
        path: the file.
        on_error: handler of lines that are not text.
        encoding: encoding of the file.
        fields: number of fields of a delimited line. A last line without a line end is then refused, because a
            truncated line may look complete. None for objects, whose braces show whether they are complete.

    Yields:
        (line number from 1, text without its line end).
    """
    for chunk in chunks(path):
        for number, data in enumerate(chunk.texts(), start=chunk.first_line):
            if chunk.cut and fields is not None and data.strip(b" \r"):
                on_error(path, number, cut_off(fields), as_text(data))
                continue
            try:
                text = data.decode(encoding)
            except UnicodeDecodeError as error:
                on_error(path, number, not_text(error), as_text(data))
                continue
            yield number, text


def encoding_of(path: Path) -> str:
    """Return UTF-8 if the whole file is valid UTF-8, otherwise ISO-8859-1, the encoding of older sources."""
    try:
        for chunk in chunks(path):
            chunk.data.decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


def cut_off(fields: int) -> str:
    """Return the reason for refusing a last line without a line end."""
    return (
        f"expected {fields} fields and a line end, got the end of the file: it was cut off, or add the line end if the "
        f"line is complete"
    )


def not_text(error: UnicodeDecodeError) -> str:
    """Return the reason for refusing a line that cannot be decoded."""
    return f"expected {error.encoding.upper()} text, got byte {error.object[error.start]:#04x}"


def as_text(data: bytes) -> str:
    """Decode a damaged line for display."""
    return data.decode("utf-8", errors="backslashreplace")


def _chunk(data: bytes, line: int) -> Chunk:
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n")
    return Chunk(line, data, data.count(b"\n"))


def _last_end(data: bytes, quoted: bool) -> int:
    """Return the end of the last complete record; 0 if there is none."""
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
    return last  # a stray quote, which is reported when the lines are split


def _open(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path} must be a readable file, got: {error.strerror}; give the right path") from error


def _blocks(path: Path, raw: IO[bytes], size: int) -> Iterator[bytes]:
    """Read the file's text in blocks. gzip is detected from the first bytes, since names are unreliable."""
    packed = raw.read(2) == _GZIP
    raw.seek(0)
    stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw, mode="rb")) if packed else raw
    try:
        block = stream.read(size).removeprefix(_BYTE_ORDER_MARK)
        _require_text(path, block)
        # A file of the first Macintosh ends its lines with \r alone.
        only_returns = b"\r" in block and b"\n" not in block
        while block:
            yield block.replace(b"\r", b"\n") if only_returns else block
            block = stream.read(size)
    except (EOFError, OSError, zlib.error) as error:  # OSError includes gzip.BadGzipFile
        if not packed:
            raise DataError(f"{path} must be a readable file, got: {error}; give the right path") from error
        raise DataError(
            f"{path} must be a complete gzip file, got: {error}; it was cut off or damaged: fetch it again"
        ) from error


def _require_text(path: Path, block: bytes) -> None:
    for mark, what in _OTHER_FORMATS.items():
        if block.startswith(mark):
            raise DataError(f"{path} must be UTF-8 text, gzipped or not, got {what}")
    head = block[: 1 << 12]
    if head.count(b"\0") * 4 > len(head):  # every other byte of UTF-16 without a mark
        raise DataError(
            f"{path} must be UTF-8 text, gzipped or not, got many NUL bytes, as UTF-16 has without a byte order "
            f"mark: convert the file to UTF-8"
        )
