"""Lines of users' interactions -> batches of the interaction table.

Chunks of whole lines are parsed by polars. A chunk that polars does not take as it stands is split line by line in
Python, so that every malformed line gets its number and a reason. The values are checked afterwards, by the same rules
for both.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl

from r2rank_jax.data.sources.reading import Chunk, as_text, chunks, cut_off, not_text
from r2rank_jax.data.sources.schema import BATCH_ROWS, INTERACTION_SCHEMA, OnError

Refused = list[tuple[int, str]]  # (line, reason)
_COLUMNS = ("user", "item", "rating", "timestamp")
_TEXT = pl.Schema({"line": pl.Int64} | dict.fromkeys(_COLUMNS, pl.String))


@dataclass(frozen=True)
class Fields:
    """The source's own names of what an interaction has; None where it has no such thing."""

    user: str
    item: str
    rating: str | None
    timestamp: str | None
    time_format: str | None = None  # of a date, as strptime has it; None: a number

    def named(self) -> dict[str, str]:
        """Our name -> the source's."""
        names = {column: getattr(self, column) for column in _COLUMNS}
        return {column: name for column, name in names.items() if name is not None}


@dataclass(frozen=True)
class Lines:
    """The form of a delimited file."""

    columns: tuple[str, ...]  # names of all fields of a line, in order
    separator: str  # one or more characters
    header: bool = False  # the first line has names, not values
    quoted: bool = False  # as RFC 4180 has it
    encoding: str = "utf-8"


def in_order(files: Iterable[Iterator[pl.DataFrame]]) -> Iterator[pl.DataFrame]:
    """Batches of several files, one after the other, as INTERACTION_SCHEMA: `order` runs on."""
    start = 0
    for batches in files:
        for frame in batches:
            for part in frame.iter_slices(BATCH_ROWS):
                order = pl.int_range(start, start + part.height, dtype=pl.Int64, eager=True)
                yield part.with_columns(order=order).select(INTERACTION_SCHEMA.names())
                start += part.height


def read_delimited(path: Path, form: Lines, fields: Fields, on_error: OnError) -> Iterator[pl.DataFrame]:
    """Read a file with one interaction a line, its fields parted by `form.separator`.

    Yields:
        Frames with user, item, rating, timestamp, in the file's order.

    Raises:
        DataError: an unreadable file; whatever `on_error` raises for a malformed line.
    """
    places = {column: form.columns.index(name) for column, name in fields.named().items()}
    for chunk in chunks(path):
        if form.header and chunk.first_line == 1:
            chunk = _without_first_line(chunk)
        refused: Refused = []
        frame = None if chunk.cut else _parse_delimited(chunk, form, places)
        if frame is None:
            frame = _split_delimited(chunk, form, places, refused)
        yield _checked(path, chunk, frame, fields, refused, on_error)


def read_json_lines(
    path: Path, fields: Fields, on_error: OnError, *, parse: Callable[[str], Any] = json.loads
) -> Iterator[pl.DataFrame]:
    """Read a file with one object a line; other fields than those of `fields` are passed over.

    Args:
        path: the file.
        fields: the objects' keys.
        on_error: what to do with a malformed line.
        parse: reads one line; raises ValueError. Other than JSON goes line by line.

    Yields and raises:
        as `read_delimited`.
    """
    for chunk in chunks(path):
        refused: Refused = []
        frame = _parse_json(chunk, fields) if parse is json.loads else None
        if frame is None:
            frame = _split_json(chunk, fields, parse, refused)
        yield _checked(path, chunk, frame, fields, refused, on_error)


def _without_first_line(chunk: Chunk) -> Chunk:
    return Chunk(chunk.first_line + 1, chunk.data.split(b"\n", 1)[1], chunk.lines - 1) if not chunk.cut else chunk


def _parse_delimited(chunk: Chunk, form: Lines, places: dict[str, int]) -> pl.DataFrame | None:
    """The chunk as text columns; None where not every line has the right number of fields, or needs a closer look."""
    separator, width = form.separator.encode(), len(form.columns)
    # No line can have too many fields without another having too few, and polars refuses too many.
    if not chunk.lines or chunk.data.count(separator) != chunk.lines * (width - 1):
        return None
    data = chunk.data
    if form.quoted and b'"' in data:
        return None
    if len(separator) > 1:
        if b"\t" in data:
            return None
        data, separator = data.replace(separator, b"\t"), b"\t"
    try:
        if form.encoding != "utf-8":
            data = data.decode(form.encoding).encode()
        frame = pl.read_csv(
            data,
            has_header=False,
            separator=separator.decode(),
            quote_char=None,
            schema={str(place): pl.String for place in range(width)},
            columns=sorted(places.values()),
        ).fill_null("")
    except (pl.exceptions.PolarsError, UnicodeDecodeError):
        return None
    return _with_lines(chunk, frame, {column: str(place) for column, place in places.items()})


def _parse_json(chunk: Chunk, fields: Fields) -> pl.DataFrame | None:
    """The chunk as text columns; None where a line needs a closer look."""
    names = fields.named()
    try:
        frame = pl.read_ndjson(BytesIO(chunk.data), schema=dict.fromkeys(names.values(), pl.String))
    except pl.exceptions.PolarsError:
        return None
    ids = [pl.col(names[column]) for column in ("user", "item")]
    # polars writes nested values out as text; no id may be one.
    odd = pl.any_horizontal(*(column.str.starts_with(mark) for column in ids for mark in "[{"))
    return None if frame.select(odd.any()).item() else _with_lines(chunk, frame, names)


def _with_lines(chunk: Chunk, frame: pl.DataFrame, names: dict[str, str]) -> pl.DataFrame | None:
    """With our names and line numbers; None where rows and lines differ in number, so that no line would be sure."""
    if frame.height != chunk.lines:
        return None
    columns = [
        pl.col(names[column]).alias(column) if column in names else pl.lit(None, pl.String).alias(column)
        for column in _COLUMNS
    ]
    line = pl.int_range(chunk.first_line, chunk.first_line + frame.height, dtype=pl.Int64).alias("line")
    return frame.select(line, *columns)


def _split_delimited(chunk: Chunk, form: Lines, places: dict[str, int], refused: Refused) -> pl.DataFrame:
    rows = []
    for line, data in enumerate(chunk.texts() if chunk.lines else [], start=chunk.first_line):
        if chunk.cut:
            refused.append((line, cut_off(len(form.columns))))
            continue
        try:
            values = split_line(data.decode(form.encoding), form)
        except UnicodeDecodeError as error:
            refused.append((line, not_text(error)))
        except ValueError as error:
            refused.append((line, str(error)))
        else:
            rows.append((line, *(values[places[column]] if column in places else None for column in _COLUMNS)))
    return pl.DataFrame(rows, schema=_TEXT, orient="row")


def split_line(text: str, form: Lines) -> list[str]:
    """The fields of one line.

    Raises:
        ValueError: not as many as there should be, or a quote that is not closed.
    """
    values = text.split(form.separator)
    if form.quoted and '"' in text:
        try:
            (values,) = csv.reader([text], delimiter=form.separator, strict=True)
        except csv.Error as error:
            raise ValueError(f"expected fields in closed quotes, got: {error}") from error
    if len(values) != len(form.columns):
        name = {"\t": "tab", ",": "comma"}.get(form.separator, form.separator)
        raise ValueError(
            f"expected {len(form.columns)} {name}-separated fields ({', '.join(form.columns)}), got {len(values)}"
        )
    return values


def _split_json(chunk: Chunk, fields: Fields, parse: Callable[[str], Any], refused: Refused) -> pl.DataFrame:
    names, rows = fields.named(), []
    for line, data in enumerate(chunk.texts(), start=chunk.first_line):
        try:
            record = parse_object(data.decode("utf-8"), parse)
            rows.append((line, *(as_value(record, names[c]) if c in names else None for c in _COLUMNS)))
        except UnicodeDecodeError as error:
            refused.append((line, not_text(error)))
        except ValueError as error:
            refused.append((line, str(error)))
    return pl.DataFrame(rows, schema=_TEXT, orient="row")


def parse_object(text: str, parse: Callable[[str], Any]) -> dict[str, Any]:
    """One line as a dictionary.

    Raises:
        ValueError: it is something else.
    """
    try:
        record = parse(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError) as error:
        raise ValueError(f"expected a whole object, got: {error or type(error).__name__}") from error
    if not isinstance(record, dict):
        raise ValueError(f"expected an object with named fields, got {type(record).__name__}")
    return record


def as_value(record: dict[str, Any], name: str) -> str | None:
    """A field's value as text; None where it is missing or null.

    Raises:
        ValueError: the value is a list or an object.
    """
    value = record.get(name)
    if value is None:
        return None
    if isinstance(value, (dict, list, tuple)):
        raise ValueError(f"{name} must be one value, got {value!r:.80}")
    return joined_surrogates(value) if isinstance(value, str) else json.dumps(value)


def joined_surrogates(text: str) -> str:
    """Halves of a character, as Python 2 and some JSON write them, made one; a half alone becomes U+FFFD."""
    if not any("\ud800" <= c <= "\udfff" for c in text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _checked(
    path: Path, chunk: Chunk, frame: pl.DataFrame, fields: Fields, refused: Refused, on_error: OnError
) -> pl.DataFrame:
    """The rows whose values are right, typed; all others go to `on_error`, in the order of their lines."""
    typed = frame.with_columns(_number("rating", pl.Float32), _time(fields.time_format))
    missing = pl.any_horizontal(*((pl.col(column).fill_null("") == "") for column in ("user", "item")))
    wrong = {"id": missing}
    if fields.rating is not None:
        wrong["rating"] = ~pl.col("rating_value").is_finite().fill_null(False)
    if fields.timestamp is not None:
        wrong["timestamp"] = pl.col("timestamp_value").is_null()
    faulty = typed.filter(pl.any_horizontal(*wrong.values()))
    if faulty.height:
        refused += [(row["line"], _reason(row, fields)) for row in faulty.iter_rows(named=True)]
        typed = typed.filter(~pl.any_horizontal(*wrong.values()))
    if refused:
        texts = chunk.texts()
        for line, reason in sorted(refused):
            on_error(path, line, reason, as_text(texts[line - chunk.first_line]))
    return typed.select("user", "item", rating="rating_value", timestamp=pl.col("timestamp_value").fill_null(0))


def _number(column: str, kind: type[pl.DataType]) -> pl.Expr:
    return pl.col(column).cast(pl.Float64, strict=False).cast(kind).alias(f"{column}_value")


def _time(time_format: str | None) -> pl.Expr:
    """Whole numbers, also as 881250949.0 or 8.8e8; or a date in UTC, as seconds."""
    text = pl.col("timestamp")
    if time_format is not None:
        value = text.str.to_datetime(time_format, strict=False, time_unit="ms").dt.epoch("s")
    else:
        real = text.cast(pl.Float64, strict=False)
        whole = pl.when(real == real.floor()).then(real).cast(pl.Int64, strict=False)
        value = pl.coalesce(text.cast(pl.Int64, strict=False), whole)
    return value.alias("timestamp_value")


def _reason(row: dict[str, Any], fields: Fields) -> str:
    for column, name in (("user", fields.user), ("item", fields.item)):
        if not row[column]:
            return f"{name} must not be missing or empty"
    rating = row["rating_value"]
    if fields.rating is not None and (rating is None or rating != rating or rating in (float("inf"), -float("inf"))):
        return f"{fields.rating} must be a number, got {row['rating']!r}"
    kind = f"a date as {fields.time_format}" if fields.time_format else "a whole number"
    return f"{fields.timestamp} must be {kind}, got {row['timestamp']!r}"
