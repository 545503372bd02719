"""The lines of delimited files: tab, comma with quotes, `::`, `|`."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from r2rank_jax.data.sources.rows.reading import QUOTED_LINES, numbered_lines
from r2rank_jax.data.sources.schema import OnError


@dataclass(frozen=True)
class Lines:
    """The form of a delimited file."""

    columns: tuple[str, ...]  # names of all fields of a line, in order
    separator: str  # one or more characters
    header: bool = False  # the first line has names, not values
    quoted: bool = False  # as RFC 4180 has it; a quoted field may hold line ends
    encoding: str = "utf-8"


@dataclass(frozen=True)
class Record:
    """The fields of one record, and where it stands."""

    line: int  # its first line, from 1
    text: str
    values: list[str]


class OpenQuoteError(ValueError):
    """A quote that is not closed on its line."""


def split_line(text: str, form: Lines) -> list[str]:
    """The fields of one record.

    Raises:
        ValueError: not as many as there should be, or quotes in wrong places.
    """
    values = text.split(form.separator)
    if form.quoted and '"' in text:
        try:
            # Not splitlines(): a text may hold one of the other line ends that Unicode knows.
            lines = [f"{line}\n" for line in text.split("\n")]
            (values,) = csv.reader([*lines[:-1], lines[-1][:-1]], delimiter=form.separator, strict=True)
        except csv.Error as error:
            kind = OpenQuoteError if "unexpected end" in str(error) else ValueError
            raise kind(f"expected fields in closed quotes, got: {error}") from error
    if len(values) != len(form.columns):
        name = {"\t": "tab", ",": "comma"}.get(form.separator, form.separator)
        raise ValueError(
            f"expected {len(form.columns)} {name}-separated fields ({', '.join(form.columns)}), got {len(values)}"
        )
    return values


def split_lines(lines: Iterable[tuple[int, str]], form: Lines) -> Iterator[Record | tuple[int, str, str]]:
    """Split numbered lines into records; a quoted field may go over several lines.

    Yields:
        A record, or (line, text, reason) of a malformed line.
    """
    stream = iter(lines)
    waiting: deque[tuple[int, str]] = deque()  # read ahead for a quote that was never closed
    while True:
        first = waiting.popleft() if waiting else next(stream, None)
        if first is None:
            return
        line, text = first
        try:
            yield Record(line, text, split_line(text, form))
            continue
        except OpenQuoteError as error:
            reason = str(error)
        except ValueError as error:
            yield line, text, str(error)
            continue
        whole = _closed(text, waiting, stream, form)
        yield (line, text, reason) if whole is None else Record(line, *whole)


def _closed(
    text: str, waiting: deque[tuple[int, str]], stream: Iterator[tuple[int, str]], form: Lines
) -> tuple[str, list[str]] | None:
    """The record that begins with `text`, if following lines close its quote; they are taken only then."""
    for more in range(1, QUOTED_LINES):
        if len(waiting) < more:
            following = next(stream, None)
            if following is None:
                return None
            waiting.append(following)
        text = f"{text}\n{waiting[more - 1][1]}"
        if text.count('"') % 2:
            continue
        try:
            values = split_line(text, form)
        except ValueError:
            return None
        for _ in range(more):
            waiting.popleft()
        return text, values
    return None


def records(path: Path, form: Lines, on_error: OnError) -> Iterator[Record]:
    """The records of a file one by one, after its header; malformed ones go to `on_error`."""
    lines = numbered_lines(path, on_error, encoding=form.encoding, fields=len(form.columns))
    if form.header:
        next(lines, None)
    for found in split_lines(lines, form):
        if isinstance(found, Record):
            yield found
        else:
            line, text, reason = found
            on_error(path, line, reason, text)
