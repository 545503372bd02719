"""Small source files, and what a source reads from them."""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl

from r2rank_jax.data.sources.source import INTERACTION_SCHEMA, ITEM_SCHEMA, Source


def write(path: Path, content: str | bytes) -> Path:
    """Write a file, gzipped if its name ends in .gz."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def interactions(source: Source) -> pl.DataFrame:
    """All batches as one, each checked against the schema."""
    frames = list(source.interactions())
    assert all(frame.schema == INTERACTION_SCHEMA and 0 < frame.height <= 500_000 for frame in frames)
    table = pl.concat([pl.DataFrame(schema=INTERACTION_SCHEMA), *frames])
    assert table["order"].to_list() == list(range(table.height))
    return table


def rows(source: Source) -> list[tuple]:
    """(user, item, rating, timestamp) of every interaction."""
    return interactions(source).drop("order").rows()


def items(source: Source) -> dict[str, dict]:
    """The item table by id."""
    frames = list(source.items())
    assert all(frame.schema == ITEM_SCHEMA for frame in frames)
    table = pl.concat([pl.DataFrame(schema=ITEM_SCHEMA), *frames])
    assert table["item"].is_unique().all()
    return {row["item"]: row | {"details": [tuple(d.values()) for d in row["details"]]} for row in table.to_dicts()}
