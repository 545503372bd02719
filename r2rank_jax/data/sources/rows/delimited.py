"""LineFormat of delimited files: tab, comma with quotes, `::`, `|`."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from r2rank_jax.data.sources.rows.reading import QUOTED_LINES, numbered_lines
from r2rank_jax.data.sources.schema import OnError


@dataclass(frozen=True)
class LineFormat:
    """The format of a delimited file."""

    columns: tuple[str, ...]  # names of all fields of a line, in order
    separator: str  # one or more characters
    header: bool = False  # whether the first line holds names instead of values
    quoted: bool = False  # whether fields may be quoted as in RFC 4180; a quoted field may hold line ends
    encoding: str = "utf-8"
    quote_remedy: str = ""  # what to do if quotes are misplaced because the file quotes nothing


@dataclass(frozen=True)
class Record:
    """The fields of one record, and its location."""

    line: int  # number of its first line, from 1
    text: str
    values: list[str]


class OpenQuoteError(ValueError):
    """A quote that is not closed on its line."""


def split_line(text: str, form: LineFormat) -> list[str]:
    """Split one record into its fields.

    Raises:
        ValueError: a wrong number of fields, or misplaced quotes.
    """
    values = split_fields(text, form)
    if len(values) != len(form.columns):
        name = {"\t": "tab", ",": "comma"}.get(form.separator, form.separator)
        raise ValueError(
            f"expected {len(form.columns)} {name}-separated fields ({', '.join(form.columns)}), got {len(values)}"
        )
    return values


def split_fields(text: str, form: LineFormat) -> list[str]:
    """Split one record into any number of fields.

    Raises:
        ValueError: misplaced quotes.
    """
    if not (form.quoted and '"' in text):
        return text.split(form.separator)
    try:
        # Not splitlines(), which would also split at the other line ends of Unicode.
        lines = [f"{line}\n" for line in text.split("\n")]
        (values,) = csv.reader([*lines[:-1], lines[-1][:-1]], delimiter=form.separator, strict=True)
    except (csv.Error, ValueError) as error:
        kind = OpenQuoteError if "unexpected end" in str(error) else ValueError
        raise kind(f"expected fields in closed quotes, got: {error}{form.quote_remedy}") from error
    return values


def is_blank(text: str) -> bool:
    """Whether a line is blank and can be ignored. A line of tabs is a record of empty fields."""
    return not text.strip(" \r")


def split_lines(lines: Iterable[tuple[int, str]], form: LineFormat) -> Iterator[Record | tuple[int, str, str]]:
    """Split numbered lines into records; a quoted field may span several lines.

    Yields:
        A record, or (line, text, reason) of a malformed line.
    """
    stream = iter(lines)
    waiting: deque[tuple[int, str]] = deque()  # lines read ahead for a quote that was never closed
    while True:
        first = waiting.popleft() if waiting else next(stream, None)
        if first is None:
            return
        line, text = first
        if is_blank(text):
            continue
        try:
            yield Record(line, text, split_line(text, form))
            continue
        except OpenQuoteError as error:
            reason = str(error)
        except ValueError as error:
            yield line, text, str(error)
            continue
        multiline = _closed(text, waiting, stream, form)
        yield (line, text, reason) if multiline is None else Record(line, *multiline)


def _closed(
    text: str, waiting: deque[tuple[int, str]], stream: Iterator[tuple[int, str]], form: LineFormat
) -> tuple[str, list[str]] | None:
    """Return the record that begins with `text` if the following lines close its quote; only then consume them."""
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
        if form.separator == "\t" and _are_records([waiting[k][1] for k in range(more)], form):
            return None
        for _ in range(more):
            waiting.popleft()
        return text, values
    return None


def _are_records(lines: list[str], form: LineFormat) -> bool:
    """Whether a line is itself a record, so that the quotes belong to two titles and not to one field.

    Tabs hardly occur within a field; commas do, so this shows nothing about files that are separated by commas.
    """
    return any(line.count(form.separator) == len(form.columns) - 1 for line in lines)


def records(path: Path, form: LineFormat, on_error: OnError) -> Iterator[Record]:
    """Iterate over the records of a file after its header. Malformed ones go to `on_error`."""
    lines = numbered_lines(path, on_error, encoding=form.encoding, fields=len(form.columns))
    if form.header:
        next(lines, None)
    for record in split_lines(lines, form):
        if isinstance(record, Record):
            yield record
        else:
            line, text, reason = record
            on_error(path, line, reason, text)
