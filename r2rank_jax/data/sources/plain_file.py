"""One file of your own, as CSV, TSV, JSON lines or Parquet: its columns, and its rows as values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from r2rank_jax.data.sources.rows.delimited import LineFormat, records, split_fields
from r2rank_jax.data.sources.rows.interactions import Fields, checked_values, read_delimited, read_json_lines
from r2rank_jax.data.sources.rows.objects import as_value, keys_of, objects
from r2rank_jax.data.sources.rows.reading import first_line
from r2rank_jax.data.sources.schema import BATCH_ROWS, OnError
from r2rank_jax.errors import DataError

KINDS = (".csv", ".tsv", ".parquet", ".jsonl")
_QUOTE_REMEDY = "; if quotation marks are part of the text, as in a file that quotes nothing, set --quote none"


@dataclass(frozen=True)
class PlainFile:
    """A plain file and the names of its columns."""

    path: Path
    columns: tuple[str, ...]  # of JSON lines: the names of the fields of all lines that matter
    form: LineFormat | None = None  # of a delimited file

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return kind_of(self.path)


def kind_of(path: Path) -> str:
    """Return the file's format by its name, gzipped or not; "" if it is none of KINDS."""
    suffix = Path(path.name.removesuffix(".gz")).suffix
    return suffix if suffix in KINDS else ""


def open_file(path: Path, wanted: Collection[str], quote: str | None) -> PlainFile:
    """Read a file's column names.

    Args:
        path: the file.
        wanted: the names that matter. The fields of JSON lines are the union over all lines, which are read until each
            of these names has appeared.
        quote: "none" if a delimited file quotes nothing; None and "double": fields may be quoted.

    Raises:
        DataError: an unreadable file, or two columns of one name.
    """
    kind = kind_of(path)
    if kind == ".parquet":
        with _readable_parquet(path):
            return PlainFile(path, tuple(pl.read_parquet_schema(path)))
    head = first_line(path)
    if kind == ".jsonl":
        columns = keys_of(path, wanted)
        if not columns:
            raise DataError(f"{path} must hold one JSON object per line, got {head[:120]!r}; give the right file")
        return PlainFile(path, columns)
    if not head.strip():
        raise DataError(f"{path}, line 1: expected the names of the columns, got an empty line; add a line of names")
    if "\ufffd" in head:
        raise DataError(f"{path}, line 1: expected UTF-8 text, got {head[:120]!r}; convert the file to UTF-8")
    separator = next((mark for mark in ("\t", ",", ";") if mark in head), ",")
    form = LineFormat((), separator, header=True, quoted=quote != "none", quote_remedy=_QUOTE_REMEDY)
    try:
        columns = tuple(split_fields(head, form))
    except ValueError as error:
        raise DataError(f"{path}, line 1: {error}; the first line must hold the names of the columns") from error
    require_unique(path, columns)
    return PlainFile(path, columns, LineFormat(columns, separator, True, form.quoted, quote_remedy=_QUOTE_REMEDY))


def require_unique(path: Path, columns: Collection[str]) -> None:
    """Raise DataError if two columns share a name. Columns without a name cannot be meant, so they may repeat."""
    repeated = [name for name, count in Counter(columns).items() if count > 1 and name.strip()]
    if repeated:
        raise DataError(
            f"{path}, line 1: each column must have its own name, got {repeated[0]!r:.80} more than once; "
            f"rename or remove one of them"
        )


def require_column(table: PlainFile, name: str, key: str) -> str:
    """Return the name, or raise an error that lists the columns."""
    if name not in table.columns:
        shown = ", ".join(table.columns).encode("unicode_escape").decode()[:300]
        raise DataError(
            f"{table.path} must have a column {name!r}, got {shown}; set the right one with --column {key}=NAME"
        )
    return name


def read_interactions(table: PlainFile, fields: Fields, on_error: OnError) -> Iterator[pl.DataFrame]:
    """Read user, item, rating and timestamp, as `read_delimited` does."""
    if table.kind == ".jsonl":
        yield from read_json_lines(table.path, fields, on_error)
    elif table.form is not None:
        yield from read_delimited(table.path, table.form, fields, on_error)
    else:
        yield from _read_parquet(table.path, fields, on_error)


def values(table: PlainFile, columns: Collection[str], on_error: OnError) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Iterate over (line, text, column -> value) of every row.

    Args:
        table: the file.
        columns: the columns that are read from a Parquet file; other files are read whole.
        on_error: handler of malformed rows.
    """
    if table.kind == ".jsonl":
        for parsed in objects(table.path, on_error):
            yield parsed.line, parsed.text, parsed.fields
    elif table.form is not None:
        for record in records(table.path, table.form, on_error):
            yield record.line, record.text, dict(zip(table.columns, record.values))
    else:
        for start, frame in _batches(table.path, [name for name in table.columns if name in columns]):
            for row, named in enumerate(frame.iter_rows(named=True), start=start + 1):
                yield row, "", named


def times(table: PlainFile, name: str) -> Iterator[str | None]:
    """Iterate over a column of times as text; malformed rows are skipped, since reading the rows will report them."""
    if table.kind == ".parquet":
        for _, frame in _batches(table.path, [name]):
            yield from _as_text(table.path, frame[name])
        return
    for _, _, row in values(table, (name,), lambda *_: None):
        try:
            yield as_value(row, name)
        except ValueError:
            yield None


def is_temporal(table: PlainFile, name: str) -> bool:
    """Whether a column of a Parquet file has the type of a time, which has a unit."""
    if table.kind != ".parquet":
        return False
    with _readable_parquet(table.path):
        kind = pl.read_parquet_schema(table.path)[name]
    return kind == pl.Date or kind == pl.Datetime


def _read_parquet(path: Path, fields: Fields, on_error: OnError) -> Iterator[pl.DataFrame]:
    names = fields.named()
    for start, frame in _batches(path, list(dict.fromkeys(names.values()))):
        columns = [
            _as_text(path, frame[names[key]]).alias(key) if key in names else pl.lit(None, pl.String).alias(key)
            for key in ("user", "item", "rating", "timestamp")
        ]
        line = pl.int_range(start + 1, start + 1 + frame.height, dtype=pl.Int64, eager=True).alias("line")
        typed = frame.select(line, *columns)

        def text_of(row: int, frame: pl.DataFrame = frame, start: int = start) -> str:
            return str(frame.row(row - 1 - start))

        yield checked_values(path, typed, fields, [], text_of, on_error)


def _as_text(path: Path, column: pl.Series) -> pl.Series:
    kind = column.dtype
    if kind == pl.Date or kind == pl.Datetime:
        return column.dt.epoch("ms").cast(pl.String)
    if kind.is_nested() or kind.is_temporal() or kind in (pl.Binary, pl.Object):
        raise DataError(f"{path}: column {column.name!r} must hold text, numbers or times, got {kind}; convert it")
    if kind.is_float() and (column.is_nan() | (column == column.round())).all():
        whole = column.cast(pl.Float64).cast(pl.Int64, strict=False)  # not 1e+20 for an id
        return pl.select(pl.coalesce(whole.cast(pl.String), column.cast(pl.String))).to_series().alias(column.name)
    return column.cast(pl.String)


def _batches(path: Path, columns: list[str]) -> Iterator[tuple[int, pl.DataFrame]]:
    """(first row's number from 0, rows), BATCH_ROWS at a time."""
    with _readable_parquet(path):
        rows = pl.scan_parquet(path).select(pl.len()).collect().item()
    for start in range(0, rows, BATCH_ROWS):
        with _readable_parquet(path):
            frame = pl.scan_parquet(path).select(columns).slice(start, BATCH_ROWS).collect()
        yield start, frame


@contextmanager
def _readable_parquet(path: Path) -> Iterator[None]:
    """Turn the exceptions of a damaged file into one of ours. polars panics at some of them."""
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError, MemoryError) as error:
        reason = str(error).split("\n")[0][:160]
        raise DataError(f"{path} must be a complete Parquet file, got: {reason}; write the file again") from error
