"""Your own logs: CSV, Parquet or JSON lines, with a mapping of column names.

There is one file of interactions and, optionally beside it, a table of items named `items.csv`, `items.parquet` or
`items.jsonl`. Without a table of items, the file of interactions may have the titles.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from r2rank_jax.data.sources.rows.delimited import LineFormat, records, split_line
from r2rank_jax.data.sources.rows.interactions import Fields, checked_values, in_order, read_delimited, read_json_lines
from r2rank_jax.data.sources.rows.items import ItemRow, clean_text, item_batches
from r2rank_jax.data.sources.rows.objects import objects, parse_object
from r2rank_jax.data.sources.rows.reading import first_line
from r2rank_jax.data.sources.schema import BATCH_ROWS, NO_ITEMS, NO_RATINGS, NO_TIMES, OnError, Source
from r2rank_jax.errors import DataError

KINDS = (".csv", ".tsv", ".parquet", ".jsonl")
KEYS = ("user", "item", "rating", "timestamp", "title", "year", "genres", "items.item")
MILLISECONDS_FROM, MICROSECONDS_FROM = 10**11, 10**14  # the year 5138 in seconds and in milliseconds
TIME_FORMATS = tuple(
    f"%Y-%m-%d{between}%H:%M:%S{part}{zone}" for between in " T" for part in ("", "%.f") for zone in ("", "Z", "%z")
)
_YEAR = re.compile(r"(?<!\d)\d{4}(?!\d)")


@dataclass(frozen=True)
class PlainFile:
    """A plain file and the names of its columns."""

    path: Path
    columns: tuple[str, ...]

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return kind_of(self.path)

    @property
    def form(self) -> LineFormat:
        """The format of a delimited file."""
        return LineFormat(self.columns, _separator(self.path), header=True, quoted=True)


def kind_of(path: Path) -> str:
    """Return the file's format by its name, gzipped or not; "" if it is none of KINDS."""
    suffix = Path(path.name.removesuffix(".gz")).suffix
    return suffix if suffix in KINDS else ""


def find_plain(path: Path) -> list[Path]:
    """Find the file of interactions: `path` itself, or `interactions.csv` and the like in a folder."""
    if path.is_file():
        return [path] if kind_of(path) else []
    return _named(path, "interactions")


def open_plain(path: Path, columns: dict[str, str], on_error: OnError) -> Source:
    """Open a file of interactions as a source.

    Args:
        path: `X.csv`, `X.tsv`, `X.jsonl` (gzipped or not) or `X.parquet`; the first line of a CSV file holds the names.
        columns: our name (one of KEYS) -> the file's name. Names that are not mapped are used as they are. "items.item"
            is the name of the id in the table of items, if it differs.
        on_error: handler of malformed rows.

    Raises:
        DataError: a missing column, or times that are neither whole seconds, whole milliseconds nor dates.
    """
    if unknown := sorted(set(columns) - set(KEYS)):
        raise DataError(f"--column must name one of {', '.join(KEYS)}, got {', '.join(unknown)}; correct the name")
    table = _table(path)
    fields, time_unit = _fields(table, columns)
    tables = _named(path.parent, "items")
    catalog = _table(tables[0]) if tables else table
    names = {key: columns.get(key, key) for key in ("title", "year", "genres")}
    names["item"] = columns.get("items.item", fields.item) if tables else fields.item
    if tables:
        _require(catalog, names["item"], "items.item")
    for key in columns.keys() & {"title", "year", "genres"}:
        _require(catalog, names[key], key)
    counts: Counter[str] = Counter()

    def items() -> Iterator[pl.DataFrame]:
        if not tables and names["title"] not in table.columns:
            return
        rows = _item_rows(catalog, names, bool(tables), on_error, counts)
        if not tables:
            rows = _first_rows(rows)
        yield from item_batches(catalog.path, rows, on_error, counts)

    name = path.name.removesuffix(".gz").removesuffix(table.kind)
    name = path.resolve().parent.name if name == "interactions" else name
    lacks = ((not tables and names["title"] not in table.columns, NO_ITEMS), (not fields.rating, NO_RATINGS))
    notes = tuple(note for missing, note in (*lacks, (not fields.timestamp, NO_TIMES)) if missing)
    return Source(
        name,
        "products",
        time_unit,
        lambda: in_order([_read(table, fields, on_error)]),
        items,
        (path, *tables),
        notes,
        counts,
    )


def _named(folder: Path, stem: str) -> list[Path]:
    candidates = [folder / f"{stem}{kind}{packed}" for kind in KINDS for packed in ("", ".gz")]
    files = [path for path in candidates if path.is_file()]
    if len(files) > 1:
        raise DataError(f"{folder} must have one file {stem}.*, got {[path.name for path in files]}; keep one of them")
    return files


def _table(path: Path) -> PlainFile:
    kind = kind_of(path)
    if kind == ".parquet":
        return PlainFile(path, tuple(pl.read_parquet_schema(path)))
    head = first_line(path)
    try:
        if kind == ".jsonl":
            return PlainFile(path, tuple(parse_object(head, json.loads)))
        separator = _separator(path)
        return PlainFile(
            path, tuple(split_line(head, LineFormat(("",) * len(head.split(separator)), separator, quoted=True)))
        )
    except ValueError as error:
        raise DataError(f"{path}, line 1: {error}; the first line must hold the column names") from error


def _separator(path: Path) -> str:
    head = first_line(path)
    return next((mark for mark in ("\t", ",", ";") if mark in head), ",")


def _require(table: PlainFile, name: str, key: str) -> str:
    if name not in table.columns:
        raise DataError(
            f"{table.path} must have a column {name!r}, got {', '.join(table.columns)}; set the right one with "
            f"--column {key}=NAME"
        )
    return name


def _fields(table: PlainFile, columns: dict[str, str]) -> tuple[Fields, str]:
    """Return the columns that hold an interaction, and the unit of its time."""
    user, item = (_require(table, columns.get(key, key), key) for key in ("user", "item"))
    rating, timestamp = (
        _require(table, columns[key], key) if key in columns else (key if key in table.columns else None)
        for key in ("rating", "timestamp")
    )
    fields = Fields(user, item, rating, timestamp)
    if fields.timestamp is None:
        return fields, "s"
    if table.kind == ".parquet":
        kind = pl.read_parquet_schema(table.path)[fields.timestamp]
        if kind.is_temporal():
            return fields, "ms"
    return _with_time(table, fields, _first_time(table, fields.timestamp))


def _with_time(table: PlainFile, fields: Fields, first: str) -> tuple[Fields, str]:
    """Add the format and unit of the times, detected from the first one."""
    try:
        size = abs(float(first))
    except ValueError:
        for time_format in ("%Y-%m-%d", *TIME_FORMATS):
            if pl.Series([first]).str.to_datetime(time_format, strict=False)[0] is not None:
                unit = "ms" if "%.f" in time_format else "s"
                return Fields(fields.user, fields.item, fields.rating, fields.timestamp, time_format, unit), unit
        size = float("nan")
    if not size < MICROSECONDS_FROM:
        raise DataError(
            f"{table.path}: {fields.timestamp} must be whole seconds, whole milliseconds or a date as 2024-05-31 or "
            f"2024-05-31T12:59:00, got {first!r} in the first row; convert the times"
        )
    return fields, "ms" if size >= MILLISECONDS_FROM else "s"


def _first_time(table: PlainFile, name: str) -> str:
    if table.kind == ".parquet":
        return str(pl.scan_parquet(table.path).select(name).head(1).collect().cast(pl.String).to_series().first())
    rows = _values(table, _ignore)
    return str(next(rows, (0, "", {}))[2].get(name, ""))


def _ignore(file: Path, line: int, reason: str, text: str) -> None:
    """Skip malformed rows in a first look at the file; the actual reading reports them."""


def _read(table: PlainFile, fields: Fields, on_error: OnError) -> Iterator[pl.DataFrame]:
    if table.kind == ".jsonl":
        yield from read_json_lines(table.path, fields, on_error)
    elif table.kind != ".parquet":
        yield from read_delimited(table.path, table.form, fields, on_error)
    else:
        for start, frame in _parquet(table.path, list(fields.named().values())):
            columns = [
                _as_text(frame[fields.named()[key]]).alias(key)
                if key in fields.named()
                else pl.lit(None, pl.String).alias(key)
                for key in ("user", "item", "rating", "timestamp")
            ]
            line = pl.int_range(start + 1, start + 1 + frame.height, dtype=pl.Int64, eager=True).alias("line")
            typed = frame.select(line, *columns)

            def text_of(row: int, frame: pl.DataFrame = frame, start: int = start) -> str:
                return str(frame.row(row - 1 - start))

            yield checked_values(table.path, typed, fields, [], text_of, on_error)


def _as_text(column: pl.Series) -> pl.Series:
    return (column.dt.epoch("ms") if column.dtype.is_temporal() else column).cast(pl.String)


def _parquet(path: Path, columns: list[str]) -> Iterator[tuple[int, pl.DataFrame]]:
    """(first row's number from 0, rows), BATCH_ROWS at a time."""
    scan = pl.scan_parquet(path).select(columns)
    rows = pl.scan_parquet(path).select(pl.len()).collect().item()
    for start in range(0, rows, BATCH_ROWS):
        yield start, scan.slice(start, BATCH_ROWS).collect()


def _values(table: PlainFile, on_error: OnError) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(line, text, column -> value) of every row."""
    if table.kind == ".parquet":
        for start, frame in _parquet(table.path, list(table.columns)):
            for row, values in enumerate(frame.iter_rows(named=True), start=start + 1):
                yield row, "", values
    elif table.kind == ".jsonl":
        for parsed in objects(table.path, on_error):
            yield parsed.line, parsed.text, parsed.fields
    else:
        for record in records(table.path, table.form, on_error):
            yield record.line, record.text, dict(zip(table.columns, record.values))


def _item_rows(
    table: PlainFile, names: dict[str, str], details: bool, on_error: OnError, counts: Counter[str]
) -> Iterator[ItemRow]:
    taken = set(names.values())
    for line, text, values in _values(table, on_error):
        key = values.get(names["item"])
        if key is None or str(key) == "":
            if details:  # otherwise the reader of interactions reports it
                on_error(table.path, line, f"{names['item']} must not be missing or empty", text or str(values))
            continue
        year = _YEAR.search(_shown(values.get(names["year"])))
        others = [(name, _shown(values[name])) for name in values if name not in taken] if details else []
        yield ItemRow(
            str(key),
            clean_text(_shown(values.get(names["title"])), counts),
            year.group() if year else "",
            _genres(values.get(names["genres"]), counts),
            tuple((name, clean_text(value, counts)) for name, value in others if value),
            line,
            text,
        )


def _first_rows(rows: Iterator[ItemRow]) -> Iterator[ItemRow]:
    """Keep the first row of each item of a file of interactions."""
    seen: set[str] = set()
    for row in rows:
        if row.item not in seen:
            seen.add(row.item)
            yield row


def _genres(value: Any, counts: Counter[str]) -> tuple[str, ...]:
    text = _shown(value)
    parts = value if isinstance(value, (list, tuple)) else text.split("|" if "|" in text else ",")
    kinds = (clean_text(str(part), counts) for part in parts)
    return tuple(kind for kind in kinds if kind)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
