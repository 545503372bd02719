"""The text of a user's file of lists: gzipped or not, in UTF-8 or marked UTF-16, with any line ends."""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from r2rank_jax.errors import DataError

TEXT_BYTES = 1 << 30  # of unpacked text: a small gzip file must not fill the memory
_GZIP = b"\x1f\x8b"
# UTF-32 first: its mark begins with UTF-16's.
_MARKED = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# JSON has no control characters inside strings, so that each of these ends a line. str.splitlines() has more, such as
# U+2028, which a title may contain.
_LINE_END = re.compile("\r\n|\n|\r")


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Iterate over the lines of a file that are not blank.

    Yields:
        (line number from 1, text without its line end).

    Raises:
        DataError: there is no such file, it cannot be read, is a damaged gzip file or too large, or is not text.
    """
    for number, line in enumerate(_LINE_END.split(_decoded(path, _unpacked(path))), start=1):
        if line.strip():
            yield number, line


def _unpacked(path: Path) -> bytes:
    if not path.exists():
        raise DataError(f"--input must name a JSONL file of lists to rank, got {path}, which does not exist")
    if not path.is_file():
        raise DataError(f"--input must name a JSONL file of lists to rank, got {path}, which is not a file")
    try:
        with path.open("rb") as file:
            packed = file.read(len(_GZIP)) == _GZIP  # names are unreliable
            file.seek(0)
            data = (gzip.GzipFile(fileobj=file) if packed else file).read(TEXT_BYTES + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path} must be a complete gzip file, got: {error}; it was cut off or damaged: make it again"
        ) from error
    except OSError as error:
        raise DataError(f"{path} must be a readable file, got: {error.strerror}; give the right path") from error
    if len(data) > TEXT_BYTES:
        raise DataError(f"{path} must hold at most {TEXT_BYTES:,} bytes of text, got more; split it into several files")
    return data


def _decoded(path: Path, data: bytes) -> str:
    encoding = next((name for mark, name in _MARKED if data.startswith(mark)), "utf-8")
    if encoding.startswith("utf-8") and b"\0" in data:
        raise DataError(
            f"{path}, line {_line_at(data, data.index(0), encoding)}: expected text in UTF-8, got a NUL byte; convert "
            "the file, as with `iconv -f UTF-16LE -t UTF-8`, or give the right one"
        )
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-sig").upper()
        raise DataError(
            f"{path}, line {_line_at(data, error.start, encoding)}: expected text in {name}, got the byte "
            f"{data[error.start]:#04x}; convert the file, as with `iconv -f ISO-8859-1 -t UTF-8`"
        ) from error


def _line_at(data: bytes, place: int, encoding: str) -> int:
    return len(_LINE_END.split(data[:place].decode(encoding, errors="replace")))
