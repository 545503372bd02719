"""The tables that every source yields, and the handling of rows that cannot be read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import polars as pl

from r2rank_jax.errors import DataError

BATCH_ROWS = 500_000  # maximum rows of a batch

INTERACTION_SCHEMA = pl.Schema(
    {
        "user": pl.String(),
        "item": pl.String(),
        "rating": pl.Float32(),  # null if the source has none
        "timestamp": pl.Int64(),  # in `Source.time_unit`; 0 if the source has no times
        "order": pl.Int64(),  # row number over all files of the source
    }
)
ITEM_SCHEMA = pl.Schema(
    {
        "item": pl.String(),
        "title": pl.String(),  # cleaned by the reader's own rules; "" if missing
        "year": pl.String(),  # four digits; "" if unknown
        "genres": pl.List(pl.String()),
        "details": pl.List(pl.Struct({"name": pl.String(), "value": pl.String()})),  # in the source's order
    }
)
NO_ITEMS = "no table of items: no item has a title"
NO_RATINGS = "no ratings: every interaction counts the same"
NO_TIMES = "no times: all timestamps are 0, and the order of the file stands for time"
DAYS_ONLY = "times are days: what a user did on one day keeps the order of the file"


@dataclass(frozen=True)
class Source:
    """One data set on disk. Every call of `interactions` or `items` reads the files again."""

    name: str  # "ml-100k", "amazon-2023/Gift_Cards", ...
    domain: str  # "films" | "products" | "games" | "books" | "places"
    time_unit: str  # "s" | "ms"
    interactions: Callable[[], Iterator[pl.DataFrame]]  # INTERACTION_SCHEMA, at most BATCH_ROWS rows, source order
    items: Callable[[], Iterator[pl.DataFrame]]  # ITEM_SCHEMA; one row per id; may lack items or hold unused ones
    files: tuple[Path, ...]  # the files that are read
    notes: tuple[str, ...] = ()  # what the source lacks: NO_RATINGS, ...
    # What the reader cleaned or missed in the last complete pass: "texts with HTML entities", ...
    counts: Counter[str] = field(default_factory=Counter)


class OnError(Protocol):
    """Handler of a row that cannot be read."""

    def __call__(self, file: Path, line: int, reason: str, text: str) -> None:
        """Raise, or record the row and return; it is then skipped.

        Args:
            file: file of the row.
            line: its number, from 1.
            reason: what was expected and what was found.
            text: the row, decoded as far as possible.
        """


def fatal(file: Path, line: int, reason: str, text: str) -> None:
    """Stop at the first malformed row. This is the default.

    Raises:
        DataError: always.
    """
    shown = " ".join(reason[:600].splitlines())  # a reason may quote the file
    raise DataError(
        f"{file}, line {line}: {shown}; the line reads {text[:120]!r}; correct it or fetch the file again, or set "
        f"such rows aside with --on-error=quarantine"
    )


class Quarantine:
    """Writes malformed rows to a JSONL file: file, line, reason, text. Without such rows, no file is created.

    A row is written only once, even if its file is read several times.

    Args:
        path: the file, in an existing folder. The first row replaces an existing file.
    """

    def __init__(self, path: Path):
        self._path = path
        self._seen: set[tuple[str, int]] = set()
        self.counts: Counter[str] = Counter()  # rows set aside, by file name

    def __call__(self, file: Path, line: int, reason: str, text: str) -> None:
        """Record one row."""
        if (file.name, line) in self._seen:
            return
        record = {"file": file.name, "line": line, "reason": reason, "text": text}
        with self._path.open("a" if self._seen else "w", encoding="utf-8", newline="\n") as out:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._seen.add((file.name, line))
        self.counts[file.name] += 1
