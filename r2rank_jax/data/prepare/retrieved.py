"""A retriever's run file as the source of negatives: its highest-ranked items that the user never interacted with.

The first character of a line tells the format: TREC's six columns (`user Q0 item rank score tag`, the highest score is
best), or JSONL (`{"user": "u1", "items": ["i7", "i2"]}`, best first). Ids are the source's own.

A list always contains its positives, whether or not the retriever found them, because the lists measure re-ranking.
The number of positives that the retriever found is counted, so that the whole pipeline can be assessed too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NoReturn

import numpy as np
import polars as pl

from r2rank_jax.data.prepare.partition import read_bucket
from r2rank_jax.data.prepare.user_buckets import step_folder
from r2rank_jax.data.prepared.negatives import sample_outside
from r2rank_jax.data.prepared.settings import Array
from r2rank_jax.data.sources.rows.ids import canonical_id
from r2rank_jax.data.sources.rows.objects import as_value, parse_json, parse_object
from r2rank_jax.data.sources.rows.reading import numbered_lines
from r2rank_jax.errors import DataError

_BATCH_ROWS = 200_000
_SCHEMA = pl.Schema({"user": pl.String, "item": pl.String, "score": pl.Float64, "rank": pl.Int64})
Row = tuple[str, str, float, int]


@dataclass
class Retrieved:
    """One bucket's part of a run. Items offsets[u]:offsets[u + 1] are the u-th user's, best first, each once."""

    items: int  # size of the catalog
    offsets: Array  # int64 [users + 1]
    item: Array  # int32 [n]
    counts: dict[str, int] = field(
        default_factory=lambda: {
            "rows_of_unknown_users": 0,  # not in the prepared data
            "rows_of_unknown_items": 0,
            "positives": 0,  # in all lists
            "positives_found": 0,  # by the retriever, at any rank
            "negatives_filled_uniformly": 0,  # because the retriever returned too few
        }
    )

    def best(self, rng: np.random.Generator, history: Array, user: int, count: int) -> Array:
        """A `Draw`: the user's best items outside the history; if there are too few, the rest is drawn uniformly."""
        ranked = self.item[self.offsets[user] : self.offsets[user + 1]]
        negatives = ranked[~np.isin(ranked, history)][:count]
        missing = count - len(negatives)
        self.counts["negatives_filled_uniformly"] += missing
        if not missing:
            return negatives
        return np.append(negatives, sample_outside(rng, np.append(history, negatives), self.items, missing))

    def look_for(self, user: int, items: list[int], labels: list[int]) -> None:
        """Count the positives of a list that the retriever found."""
        positives = np.array(items)[np.array(labels) > 0]
        self.counts["positives"] += len(positives)
        ranked = self.item[self.offsets[user] : self.offsets[user + 1]]
        self.counts["positives_found"] += int(np.isin(positives, ranked).sum())


def read_run(path: Path) -> Iterator[pl.DataFrame]:
    """Read batches of a run file: user, item, score, rank.

    Raises:
        DataError: the file does not exist, or a line has neither format.
    """
    rows = _rows(path)
    while batch := list(islice(rows, _BATCH_ROWS)):
        yield pl.DataFrame(batch, schema=_SCHEMA, orient="row")


def read_retrieved(work: Path, items: int, bucket: int) -> Retrieved:
    """Read the run of one bucket's users, with dense ids.

    Args:
        work: the work folder, with the run's shards, the interactions and the table of items.
        items: size of the catalog.
        bucket: number of the bucket.
    """
    buckets = len(list((work / "interactions").iterdir()))
    users = pl.read_parquet(step_folder(work, "interactions", bucket) / "users.parquet")
    table = pl.read_parquet(work / "table/items.parquet", columns=["item", "source_id"])
    rows = read_bucket(work / "run/rows", buckets, bucket)
    of_users = rows.join(users.select(pl.col("source_id").alias("user"), pl.col("user").alias("dense_user")), on="user")
    of_items = of_users.join(
        table.select(pl.col("source_id").alias("item"), pl.col("item").alias("dense_item")), on="item"
    )
    best_first = of_items.sort(
        "dense_user", "score", "rank", "dense_item", descending=[False, True, False, False]
    ).unique(subset=["dense_user", "dense_item"], keep="first", maintain_order=True)
    offsets = np.searchsorted(best_first["dense_user"].to_numpy(), np.append(users["user"].to_numpy(), 2**31 - 1))
    retrieved = Retrieved(items, offsets, best_first["dense_item"].to_numpy())
    retrieved.counts["rows_of_unknown_users"] = rows.height - of_users.height
    retrieved.counts["rows_of_unknown_items"] = of_users.height - of_items.height
    return retrieved


def _rows(path: Path) -> Iterator[Row]:
    for line, text in numbered_lines(path, _refuse):
        if text.startswith("{"):
            yield from _json_rows(path, line, text)
        elif text.strip():
            parts = text.split()
            try:
                user, _, item, rank, score, _ = parts
                row = (canonical_id(user), canonical_id(item), float(score), int(rank))
            except ValueError:
                _refuse(path, line, f"expected `user Q0 item rank score tag`, got {len(parts)} columns", text)
            if not math.isfinite(row[2]):
                _refuse(path, line, f"expected a finite score, got {score}", text)
            yield row


def _json_rows(path: Path, line: int, text: str) -> Iterator[Row]:
    try:
        record = parse_object(text, parse_json)
        user, items = as_value(record, "user"), record["items"]
        if not user or not isinstance(items, list):
            raise TypeError
        ids = [as_value({"item": item}, "item") for item in items]
        if not all(ids):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        _refuse(path, line, 'expected {"user": id, "items": [ids, best first]}', text)
    for rank, item in enumerate(ids, start=1):
        yield canonical_id(user), canonical_id(str(item)), -float(rank), rank


def _refuse(file: Path, line: int, reason: str, text: str) -> NoReturn:
    raise DataError(f"{file}, line {line}: {reason}; the line reads {text[:120]!r}: correct the run file")
