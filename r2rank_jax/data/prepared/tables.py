"""The interactions and items of a prepared folder in memory, with dense ids, and their hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from r2rank_jax.data.prepared.settings import Array
from r2rank_jax.errors import DataError

_HASHED = {"user": "<i8", "item": "<i8", "rating": "<f8", "timestamp": "<i8", "order": "<i8"}


@dataclass(frozen=True)
class Interactions:
    """n rows, one per (user, item) event, sorted by user, then time, then order in the source."""

    user: Array  # int32 [n]    dense
    item: Array  # int32 [n]    dense
    rating: Array  # float32 [n]  NaN where the source has none
    timestamp: Array  # int64 [n]    in the source's unit

    @classmethod
    def read(cls, paths: Sequence[Path]) -> Interactions:
        """Read the files of all buckets in order and concatenate them."""
        return cls(*(np.concatenate([_column(path, name) for path in paths]) for name in cls.__dataclass_fields__))


def hash_of_interactions(paths: Sequence[Path]) -> str:
    """Hash of the values, column by column over all files. Parquet's bytes change with the version of its writer."""
    digest = hashlib.sha256()
    for name, kind in _HASHED.items():
        for path in paths:
            digest.update(np.ascontiguousarray(_column(path, name), dtype=kind).tobytes())
    return digest.hexdigest()


def hash_of_items(path: Path) -> str:
    """Hash of the values in a file of items."""
    digest = hashlib.sha256()
    for row in _item_rows(path):
        digest.update(repr(row).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Items:
    """The catalog. The dense item id is the index into every tuple."""

    source_id: tuple[str, ...]
    title: tuple[str, ...]  # "" where missing; a prompt's template has words for it
    year: tuple[str, ...]  # "" where unknown
    genres: tuple[tuple[str, ...], ...]
    details: tuple[tuple[tuple[str, str], ...], ...] = ()  # (name, value) pairs: brand, author, ...; () = no details

    def __len__(self) -> int:
        return len(self.title)

    def shown(self, item: int, missing: str) -> str:
        """Title and year. Titles alone are not unique (22 of them repeat in MovieLens-100K).

        Args:
            item: dense id.
            missing: text for a title that is missing, from a template (`Template.missing`).
        """
        title = self.title[item] or missing
        return f"{title} ({self.year[item]})" if self.year[item] else title

    @classmethod
    def read(cls, path: Path) -> Items:
        """Read `items.parquet`."""
        return cls(*_columns(_item_rows(path), len(cls.__dataclass_fields__)))


def _columns(rows: Iterable[tuple], width: int) -> tuple:
    return tuple(zip(*rows, strict=True)) or ((),) * width


def _column(path: Path, name: str) -> Array:
    return _read(path, [name])[name].to_numpy()


def _item_rows(path: Path) -> Iterator[tuple]:
    frame = _read(path, ["source_id", "title", "year", "genres", "details"])
    for source_id, title, year, genres, details in frame.iter_rows():
        yield source_id, title, year, tuple(genres), tuple((part["name"], part["value"]) for part in details)


def _read(path: Path, columns: list[str]) -> pl.DataFrame:
    try:
        return pl.read_parquet(path, columns=columns)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"{path} must be a table that `r2rank data prepare` wrote, with columns {', '.join(columns)}, but it "
            f"cannot be read: {str(error).splitlines()[0]}; restore it, or prepare the data again in a new folder"
        ) from error
