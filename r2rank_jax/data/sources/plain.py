"""Your own logs: CSV, Parquet or JSON lines, with a mapping of column names.

There is one file of interactions and, optionally beside it, a table of items named `items.csv`, `items.parquet` or
`items.jsonl`. Without a table of items, the file of interactions may have the titles.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from r2rank_jax.data.sources.plain_file import (
    KINDS,
    PlainFile,
    is_temporal,
    kind_of,
    open_file,
    read_interactions,
    require_column,
    times,
    values,
)
from r2rank_jax.data.sources.rows.ids import canonical_id
from r2rank_jax.data.sources.rows.interactions import Fields, in_order
from r2rank_jax.data.sources.rows.items import ItemRow, clean_text, item_batches, one_line
from r2rank_jax.data.sources.rows.objects import as_list, as_value
from r2rank_jax.data.sources.rows.times import TimeFormat, detect
from r2rank_jax.data.sources.schema import NO_ITEMS, NO_RATINGS, NO_TIMES, OnError, Source
from r2rank_jax.errors import DataError

KEYS = ("user", "item", "rating", "timestamp", "title", "year", "genres", "items.item")
_INTERACTION_KEYS, _ITEM_KEYS = KEYS[:4], KEYS[4:7]
_YEAR = re.compile(r"(?<!\d)\d{4}(?!\d)")


def find_plain(path: Path) -> list[Path]:
    """Find the file of interactions: `path` itself, or `interactions.csv` and the like in a folder."""
    if path.is_file():
        return [path] if kind_of(path) else []
    return _named(path, "interactions")


def open_plain(
    path: Path, columns: dict[str, str], on_error: OnError, time_unit: str | None = None, quote: str | None = None
) -> Source:
    """Open a file of interactions as a source.

    Args:
        path: `X.csv`, `X.tsv`, `X.jsonl` (gzipped or not) or `X.parquet`; the first line of a CSV file holds the names.
        columns: our name (one of KEYS) -> the file's name. Names that are not mapped are used as they are. "items.item"
            is the name of the id in the table of items, if it differs.
        on_error: handler of malformed rows.
        time_unit: "s" or "ms"; None detects it from the rows.
        quote: "none" if quotation marks have no meaning in the files; None and "double": fields may be quoted.

    Raises:
        DataError: a missing column, or times that are neither whole seconds, whole milliseconds nor dates.
    """
    if unknown := sorted(set(columns) - set(KEYS)):
        raise DataError(f"--column must name one of {', '.join(KEYS)}, got {', '.join(unknown)}; correct the name")
    names = {key: columns.get(key, key) for key in KEYS[:7]}
    _require_distinct(columns)
    tables = _named(path.parent, "items")
    table = open_file(path, [names[key] for key in (KEYS[:4] if tables else KEYS[:7])], quote)
    fields = _with_time(table, _fields(table, columns), time_unit)
    names["item"] = columns.get("items.item", fields.item) if tables else fields.item
    wanted = [names[key] for key in ("item", *_ITEM_KEYS)]
    catalog = open_file(tables[0], wanted, quote) if tables else table
    if tables:
        require_column(catalog, names["item"], "items.item")
    for key in columns.keys() & set(_ITEM_KEYS):
        require_column(catalog, names[key], key)
    counts: Counter[str] = Counter()
    untitled = not tables and names["title"] not in table.columns

    def items() -> Iterator[pl.DataFrame]:
        if untitled:
            return
        rows = _item_rows(catalog, names, bool(tables), on_error, counts)
        if not tables:
            rows = _first_rows(rows)
        yield from item_batches(catalog.path, rows, on_error, counts)

    name = path.name.removesuffix(".gz").removesuffix(table.kind)
    name = path.resolve().parent.name if name == "interactions" else name
    lacks = ((untitled, NO_ITEMS), (not fields.rating, NO_RATINGS), (not fields.timestamp, NO_TIMES))
    return Source(
        name,
        "products",
        fields.time.unit,
        lambda: in_order([read_interactions(table, fields, on_error)]),
        items,
        (path, *tables),
        tuple(note for missing, note in lacks if missing),
        counts,
    )


def _named(folder: Path, stem: str) -> list[Path]:
    candidates = [folder / f"{stem}{kind}{packed}" for kind in KINDS for packed in ("", ".gz")]
    files = [path for path in candidates if path.is_file()]
    if len(files) > 1:
        raise DataError(f"{folder} must have one file {stem}.*, got {[path.name for path in files]}; keep one of them")
    return files


def _require_distinct(columns: dict[str, str]) -> None:
    names = {key: columns.get(key, key) for key in _INTERACTION_KEYS}
    for name, count in Counter(names.values()).items():
        keys = [key for key in names if names[key] == name]
        if count > 1 and columns.keys() >= set(keys):
            raise DataError(f"--column must give each of {' and '.join(keys)} its own column, got {name!r} for both")


def _fields(table: PlainFile, columns: dict[str, str]) -> Fields:
    """Return the columns that hold an interaction."""
    user, item = (require_column(table, columns.get(key, key), key) for key in ("user", "item"))
    rating, timestamp = (
        require_column(table, columns[key], key) if key in columns else (key if key in table.columns else None)
        for key in ("rating", "timestamp")
    )
    return Fields(user, item, rating, timestamp)


def _with_time(table: PlainFile, fields: Fields, unit: str | None) -> Fields:
    """Add the format and unit of the times."""
    if fields.timestamp is None:
        return fields
    if is_temporal(table, fields.timestamp):
        if unit == "s":
            raise DataError(
                f"--time-unit must be ms for the times of {table.path}, whose column {fields.timestamp!r} has a type "
                f"with fractions of a second, got s; omit it"
            )
        return replace(fields, time=TimeFormat("ms"))
    return replace(fields, time=detect(table.path, fields.timestamp, times(table, fields.timestamp), unit))


def _item_rows(
    table: PlainFile, names: dict[str, str], details: bool, on_error: OnError, counts: Counter[str]
) -> Iterator[ItemRow]:
    taken = {names[key] for key in ("item", *_ITEM_KEYS)}
    columns = table.columns if details else taken
    for line, text, row in values(table, columns, on_error):
        try:
            key = as_value(row, names["item"])
        except ValueError as error:
            if details:  # otherwise the reader of interactions reports it
                on_error(table.path, line, str(error), text or str(row))
            continue
        if not canonical_id(key or ""):
            if details:
                on_error(table.path, line, f"{names['item']} must not be missing or empty", text or str(row))
            continue
        year = _YEAR.search(_shown(row.get(names["year"])))
        others = [(name, _shown(row[name])) for name in row if name.strip() and name not in taken] if details else []
        yield ItemRow(
            str(key),
            clean_text(_shown(row.get(names["title"])), counts),
            year.group() if year else "",
            _genres(row.get(names["genres"]), counts),
            tuple((one_line(name), clean_text(value, counts)) for name, value in others if value),
            line,
            text,
        )


def _first_rows(rows: Iterator[ItemRow]) -> Iterator[ItemRow]:
    """Keep the first row of each item of a file of interactions, but prefer one that has a title.

    The rows of an item without any title come last.
    """
    seen: set[str] = set()
    untitled: dict[str, ItemRow] = {}
    for row in rows:
        item = canonical_id(row.item)
        if item in seen:
            continue
        if row.title:
            seen.add(item)
            untitled.pop(item, None)
            yield row
        else:
            untitled.setdefault(item, row)
    yield from untitled.values()


def _genres(value: Any, counts: Counter[str]) -> tuple[str, ...]:
    text = _shown(value)
    parts = as_list(value) if isinstance(value, (list, tuple)) else text.split("|" if "|" in text else ",")
    kinds = (clean_text(str(part), counts) for part in parts)
    return tuple(kind for kind in kinds if kind)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
