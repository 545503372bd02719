"""What every source's reader returns: interactions and items with dense ids.

A reader of another source (Amazon, Yelp, ...) is a function that returns these two tables.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

Array = np.ndarray


@dataclass(frozen=True)
class Interactions:
    """One row per (user, item) event; n rows."""

    user: Array  # int32 [n]    dense, by numeric order of the source's ids
    item: Array  # int32 [n]    dense
    rating: Array  # float32 [n]
    timestamp: Array  # int64 [n]    seconds
    order: Array  # int32 [n]    place in the source file; breaks ties in time

    def sorted(self) -> Interactions:
        """Sorted by user, then time, then source order: a user's rows are contiguous, oldest first."""
        by = np.lexsort((self.order, self.timestamp, self.user))
        return Interactions(*(getattr(self, f.name)[by] for f in dataclasses.fields(self)))

    def sha256(self) -> str:
        """Hash of the values, not of a file: parquet's bytes change with the writer's version."""
        digest = hashlib.sha256()
        for field in dataclasses.fields(self):
            kind = "<f8" if field.name == "rating" else "<i8"
            digest.update(np.ascontiguousarray(getattr(self, field.name), dtype=kind).tobytes())
        return digest.hexdigest()

    def write(self, path: Path) -> None:
        """Write as parquet, one column per field."""
        pl.DataFrame({f.name: getattr(self, f.name) for f in dataclasses.fields(self)}).write_parquet(path)

    @classmethod
    def read(cls, path: Path) -> Interactions:
        """Inverse of `write`."""
        frame = pl.read_parquet(path)
        return cls(*(frame[f.name].to_numpy() for f in dataclasses.fields(cls)))


@dataclass(frozen=True)
class Items:
    """The catalogue; the dense item id is the index into every tuple."""

    source_id: tuple[str, ...]
    title: tuple[str, ...]
    year: tuple[str, ...]  # "" where unknown
    genres: tuple[tuple[str, ...], ...]
    details: tuple[tuple[tuple[str, str], ...], ...] = ()  # (name, value) pairs: brand, author, ...; () = none at all

    def __len__(self) -> int:
        return len(self.title)

    def shown(self, item: int) -> str:
        """Title with its year: titles alone repeat (22 of them in MovieLens-100K)."""
        return f"{self.title[item]} ({self.year[item]})" if self.year[item] else self.title[item]

    def sha256(self) -> str:
        """Hash of the values."""
        rows = zip(self.source_id, self.title, self.year, self.genres, strict=True)
        return hashlib.sha256(repr(list(rows)).encode()).hexdigest()

    def write(self, path: Path) -> None:
        """Write as parquet: item, source_id, title, year, genres."""
        pl.DataFrame(
            {
                "item": np.arange(len(self), dtype=np.int32),
                "source_id": list(self.source_id),
                "title": list(self.title),
                "year": list(self.year),
                "genres": [list(genres) for genres in self.genres],
            },
            schema_overrides={"genres": pl.List(pl.String)},
        ).write_parquet(path)

    @classmethod
    def read(cls, path: Path) -> Items:
        """Inverse of `write`."""
        frame = pl.read_parquet(path)
        return cls(
            tuple(frame["source_id"].to_list()),
            tuple(frame["title"].to_list()),
            tuple(frame["year"].to_list()),
            tuple(tuple(genres) for genres in frame["genres"].to_list()),
        )
