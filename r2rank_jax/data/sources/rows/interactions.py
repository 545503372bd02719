"""Lines of users' interactions -> batches of the interaction table.

polars parses chunks of whole lines. A chunk that polars cannot parse is split line by line in Python, so that every
malformed line is reported with its number and a reason. Both paths share the checks of the values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl

from r2rank_jax.data.sources.rows.delimited import LineFormat, Record, split_lines
from r2rank_jax.data.sources.rows.ids import canonical_ids, fault_of_id, faulty_id
from r2rank_jax.data.sources.rows.objects import Parser, as_value, parse_json, parse_object
from r2rank_jax.data.sources.rows.reading import Chunk, chunks, cut_off, not_text
from r2rank_jax.data.sources.rows.times import SECONDS, TimeFormat
from r2rank_jax.data.sources.schema import BATCH_ROWS, INTERACTION_SCHEMA, OnError

Refused = list[tuple[int, str]]  # (line, reason)
_COLUMNS = ("user", "item", "rating", "timestamp")
_TEXT = pl.Schema({"line": pl.Int64} | dict.fromkeys(_COLUMNS, pl.String))


@dataclass(frozen=True)
class Fields:
    """The source's names for the fields of an interaction; None for a field that it lacks."""

    user: str
    item: str
    rating: str | None
    timestamp: str | None
    time: TimeFormat = SECONDS

    def named(self) -> dict[str, str]:
        """Map our names to the source's names."""
        names = {column: getattr(self, column) for column in _COLUMNS}
        return {column: name for column, name in names.items() if name is not None}


def in_order(files: Iterable[Iterator[pl.DataFrame]]) -> Iterator[pl.DataFrame]:
    """Chain the batches of several files as INTERACTION_SCHEMA, with `order` numbered across files."""
    start = 0
    for batches in files:
        for frame in batches:
            for part in frame.iter_slices(BATCH_ROWS):
                order = pl.int_range(start, start + part.height, dtype=pl.Int64, eager=True)
                yield part.with_columns(order=order).select(INTERACTION_SCHEMA.names())
                start += part.height


def read_delimited(path: Path, form: LineFormat, fields: Fields, on_error: OnError) -> Iterator[pl.DataFrame]:
    """Read a file with one interaction per line and fields separated by `form.separator`.

    Yields:
        Frames with user, item, rating, timestamp, in the file's order.

    Raises:
        DataError: an unreadable file; whatever `on_error` raises for a malformed line.
    """
    places = {column: form.columns.index(name) for column, name in fields.named().items()}
    for chunk in chunks(path, quoted=form.quoted):
        if form.header and chunk.first_line == 1:
            chunk = _without_first_line(chunk)
        refused: Refused = []
        frame = None if chunk.cut else _parse_delimited(chunk, form, places)
        if frame is None:
            frame = _split_delimited(chunk, form, places, refused)
        yield checked_values(path, frame, fields, refused, chunk.text_of, on_error)


def read_json_lines(
    path: Path, fields: Fields, on_error: OnError, *, parse: Parser = parse_json
) -> Iterator[pl.DataFrame]:
    """Read a file with one object per line; fields that are not in `fields` are ignored.

    Args:
        path: the file.
        fields: the objects' keys.
        on_error: handler of malformed lines.
        parse: parses one line; raises ValueError. Anything but `parse_json` is applied line by line.

    Yields and raises:
        as `read_delimited`.
    """
    for chunk in chunks(path):
        refused: Refused = []
        frame = _parse_json(chunk, fields) if parse is parse_json else None
        if frame is None:
            frame = _split_json(chunk, fields, parse, refused)
        yield checked_values(path, frame, fields, refused, chunk.text_of, on_error)


def _without_first_line(chunk: Chunk) -> Chunk:
    return Chunk(chunk.first_line + 1, chunk.data.split(b"\n", 1)[1], chunk.lines - 1) if not chunk.cut else chunk


def _parse_delimited(chunk: Chunk, form: LineFormat, places: dict[str, int]) -> pl.DataFrame | None:
    """Parse the chunk into text columns; None if a line needs closer inspection, as for a wrong number of fields."""
    separator, width = form.separator.encode(), len(form.columns)
    # With the right total, a line with too many fields implies one with too few, and polars refuses too many.
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
    """Parse the chunk into text columns; None if a line needs closer inspection."""
    names = fields.named()
    # polars keeps the first of two fields of one name, which are malformed.
    if any(chunk.data.count(json.dumps(name, ensure_ascii=False).encode()) > chunk.lines for name in names.values()):
        return None
    try:
        frame = pl.read_ndjson(BytesIO(chunk.data), schema=dict.fromkeys(names.values(), pl.String))
    except pl.exceptions.PolarsError:
        return None
    ids = [pl.col(names[column]) for column in ("user", "item")]
    # polars turns nested values into text, and an id must not be one. If an id is missing, the line may be no object.
    odd = pl.any_horizontal(*(column.is_null() | column.str.contains(r"^[\[{]") for column in ids))
    return None if frame.select(odd.any()).item() else _with_lines(chunk, frame, names)


def _with_lines(chunk: Chunk, frame: pl.DataFrame, names: dict[str, str]) -> pl.DataFrame | None:
    """Add our names and line numbers; None if there are not as many rows as lines, which would make numbers wrong."""
    if frame.height != chunk.lines:
        return None
    columns = [
        pl.col(names[column]).alias(column) if column in names else pl.lit(None, pl.String).alias(column)
        for column in _COLUMNS
    ]
    line = pl.int_range(chunk.first_line, chunk.first_line + frame.height, dtype=pl.Int64).alias("line")
    return frame.select(line, *columns)


def _split_delimited(chunk: Chunk, form: LineFormat, places: dict[str, int], refused: Refused) -> pl.DataFrame:
    rows = []
    if chunk.cut and not chunk.data.strip(b" \r"):
        pass  # a blank line
    elif chunk.cut:
        refused.append((chunk.first_line, cut_off(len(form.columns))))
    else:
        for record in split_lines(_decoded(chunk, form.encoding, refused), form):
            if isinstance(record, Record):
                rows.append((record.line, *(record.values[places[c]] if c in places else None for c in _COLUMNS)))
            else:
                refused.append((record[0], record[2]))
    return pl.DataFrame(rows, schema=_TEXT, orient="row")


def _decoded(chunk: Chunk, encoding: str, refused: Refused) -> Iterator[tuple[int, str]]:
    for line, data in enumerate(chunk.texts(), start=chunk.first_line):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError as error:
            refused.append((line, not_text(error)))
        else:
            yield line, text


def _split_json(chunk: Chunk, fields: Fields, parse: Parser, refused: Refused) -> pl.DataFrame:
    names, rows = fields.named(), []
    for line, data in enumerate(chunk.texts(), start=chunk.first_line):
        if not data.strip():
            continue
        try:
            record = parse_object(data.decode("utf-8"), parse)
            rows.append((line, *(as_value(record, names[c]) if c in names else None for c in _COLUMNS)))
        except UnicodeDecodeError as error:
            refused.append((line, not_text(error)))
        except ValueError as error:
            refused.append((line, str(error)))
    return pl.DataFrame(rows, schema=_TEXT, orient="row")


def checked_values(
    path: Path, frame: pl.DataFrame, fields: Fields, refused: Refused, text_of: Callable[[int], str], on_error: OnError
) -> pl.DataFrame:
    """Convert the valid rows to their types; all others go to `on_error`, in the order of their lines.

    Args:
        path: path of the file.
        frame: line (Int64), user, item, rating, timestamp (all String).
        fields: the source's names.
        refused: lines that were already refused and are not in the frame.
        text_of: returns the text of a line.
        on_error: handler of malformed rows.

    Returns:
        user, item (String, canonical), rating (Float32; null if blank), timestamp (Int64; 0 if the source has none).
    """
    typed = frame.with_columns(
        *(canonical_ids(frame[column]) for column in ("user", "item")),
        timestamp_value=fields.time.parsed(frame["timestamp"]),
        rating_value=pl.col("rating").str.strip_chars().cast(pl.Float64, strict=False).cast(pl.Float32),
    )
    wrong = [faulty_id(pl.col(column)) for column in ("user", "item")]
    if fields.rating is not None:
        wrong.append(~_unrated(pl.col("rating")) & ~pl.col("rating_value").is_finite().fill_null(False))
    if fields.timestamp is not None:
        wrong.append(pl.col("timestamp_value").is_null())
    faulty = typed.filter(pl.any_horizontal(wrong))
    if faulty.height:
        refused += [(row["line"], _reason(row, fields)) for row in faulty.iter_rows(named=True)]
        typed = typed.filter(~pl.any_horizontal(wrong))
    for line, reason in sorted(refused):
        on_error(path, line, reason, text_of(line))
    return typed.select("user", "item", rating="rating_value", timestamp=pl.col("timestamp_value").fill_null(0))


def _unrated(rating: pl.Expr) -> pl.Expr:
    """Whether a row has no rating: the user interacted with the item, and the row stays."""
    return rating.fill_null("").str.strip_chars() == ""


def _reason(row: dict[str, Any], fields: Fields) -> str:
    for column, name in (("user", fields.user), ("item", fields.item)):
        if fault := fault_of_id(name, row[column]):
            return fault
    rating = row["rating_value"]
    rated = (row["rating"] or "").strip() != ""
    if fields.rating is not None and rated and (rating is None or not math.isfinite(rating)):
        return f"{fields.rating} must be a number, got {row['rating']!r:.80}"
    return f"{fields.timestamp} {fields.time.fault(row['timestamp'])}, got {row['timestamp']!r:.80}"
