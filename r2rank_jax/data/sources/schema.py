"""What every source gives: two streams of tables; and what becomes of a row that cannot be read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import polars as pl

from r2rank_jax.errors import DataError

BATCH_ROWS = 500_000  # most rows of a batch

INTERACTION_SCHEMA = pl.Schema(
    {
        "user": pl.String(),
        "item": pl.String(),
        "rating": pl.Float32(),  # null where the source has none
        "timestamp": pl.Int64(),  # of `Source.time_unit`; 0 where the source has no times
        "order": pl.Int64(),  # running number over all files of the source
    }
)
ITEM_SCHEMA = pl.Schema(
    {
        "item": pl.String(),
        "title": pl.String(),  # cleaned by the reader's own rules; "" = missing
        "year": pl.String(),  # four digits, or "" = unknown
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
    """One data set as it lies on disk. Every call of `interactions` or `items` reads the files anew."""

    name: str  # "ml-100k", "amazon-2023/Gift_Cards", ...
    domain: str  # "films" | "products" | "games" | "books" | "places"
    time_unit: str  # "s" | "ms"
    interactions: Callable[[], Iterator[pl.DataFrame]]  # INTERACTION_SCHEMA, at most BATCH_ROWS a batch, source order
    items: Callable[[], Iterator[pl.DataFrame]]  # ITEM_SCHEMA; one row per id; some may be unused, some missing
    files: tuple[Path, ...]  # what is read
    notes: tuple[str, ...] = ()  # what the source lacks: NO_RATINGS, ...
    # What the reader changed or did not find, of the last complete reading: "titles with HTML entities", ...
    counts: Counter[str] = field(default_factory=Counter)


class OnError(Protocol):
    """What is done with a row that cannot be read."""

    def __call__(self, file: Path, line: int, reason: str, text: str) -> None:
        """Raise, or take note and return: then the row is left out.

        Args:
            file: where the row stands.
            line: its number, from 1.
            reason: what was expected and what came.
            text: the row as it stands there, decoded as well as possible.
        """


def fatal(file: Path, line: int, reason: str, text: str) -> None:
    """The default: the first malformed row ends the work.

    Raises:
        DataError: always.
    """
    raise DataError(
        f"{file}, line {line}: {reason}; the line reads {text[:120]!r}; mend it or fetch the file again, or set such "
        f"rows aside with --on-error=quarantine"
    )


class Quarantine:
    """Sets malformed rows aside in a JSONL file: file, line, reason, text. Without such rows there is no file.

    A row is written once, however often its file is read.

    Args:
        path: the file, in an existing folder; a file that is there already is replaced by the first row.
    """

    def __init__(self, path: Path):
        self._path = path
        self._seen: set[tuple[str, int]] = set()
        self.counts: Counter[str] = Counter()  # rows set aside, by file name

    def __call__(self, file: Path, line: int, reason: str, text: str) -> None:
        """Write one row down."""
        if (file.name, line) in self._seen:
            return
        record = {"file": file.name, "line": line, "reason": reason, "text": text}
        with self._path.open("a" if self._seen else "w", encoding="utf-8", newline="\n") as out:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._seen.add((file.name, line))
        self.counts[file.name] += 1
