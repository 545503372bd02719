"""The read step: write a source of any length to shards on disk, each sorted by a hash of the user.

Buckets are ranges of this hash. The number of buckets is chosen after reading, when the number of rows is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import polars as pl

from r2rank_jax.data.sources.source import INTERACTION_SCHEMA, ITEM_SCHEMA
from r2rank_jax.errors import DataError

HASH_BITS = 63  # fits into a signed 64-bit column
SHARD_ROWS = 1_000_000  # held in memory while reading
_GROUP_ROWS = 1 << 16  # of a parquet row group, which a bucket's reader reads or skips as a whole


def user_hash(user: str) -> int:
    """Hash a user to [0, 2^63), the same on every machine and with every version: BLAKE2b's first 8 bytes.

    >>> user_hash("ada")
    781494526275158675
    """
    return int.from_bytes(blake2b(user.encode(), digest_size=8).digest(), "big") >> 1


def write_shards(batches: Iterator[pl.DataFrame], folder: Path) -> int:
    """Write rows in the order of arrival, each shard sorted by the hash of `user`.

    Args:
        batches: frames with a text column `user`.
        folder: new folder for the shards.

    Returns:
        Number of rows.
    """
    folder.mkdir()
    pending: list[pl.DataFrame] = []
    rows = shards = 0
    for batch in batches:
        pending.append(_with_hash(batch))
        if sum(frame.height for frame in pending) >= SHARD_ROWS:
            rows += _write_shard(pending, folder / f"{shards:05d}.parquet")
            shards += 1
            pending = []
    if pending:
        rows += _write_shard(pending, folder / f"{shards:05d}.parquet")
    return rows


def number_of_buckets(rows: int, bucket_rows: int) -> int:
    """Return the smallest power of two that leaves at most `bucket_rows` rows per bucket on average."""
    buckets = 1
    while rows > buckets * bucket_rows:
        buckets *= 2
    return buckets


def read_bucket(folder: Path, buckets: int, bucket: int) -> pl.DataFrame:
    """Read the rows of one bucket from all shards, in the order of arrival and without the hash."""
    width = 2**HASH_BITS // buckets
    inside = pl.col("hash").is_between(bucket * width, (bucket + 1) * width - 1)
    return pl.concat([pl.scan_parquet(path).filter(inside).drop("hash").collect() for path in sorted(folder.iterdir())])


def checked_interactions(batches: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Yield the batches after checking their schema, so that a faulty reader is found early.

    Raises:
        DataError: other columns, or a missing value in a required column.
    """
    for batch in batches:
        if batch.schema != INTERACTION_SCHEMA:
            raise DataError(
                f"a source's interactions must have {INTERACTION_SCHEMA}, got {batch.schema}; fix the reader"
            )
        missing = [name for name in ("user", "item", "timestamp", "order") if batch[name].null_count()]
        if missing:
            raise DataError(
                f"a source's interactions must have a value in {', '.join(missing)} in every row, got rows without one "
                f"near row {batch['order'][0]}; fix the reader"
            )
        yield batch


def write_items(batches: Iterator[pl.DataFrame], path: Path) -> int:
    """Write the item table of a source as one file.

    Returns:
        Number of items.

    Raises:
        DataError: other columns, or an id that repeats.
    """
    frames = [batch for batch in batches if batch.height] or [pl.DataFrame(schema=ITEM_SCHEMA)]
    for frame in frames:
        if frame.schema != ITEM_SCHEMA:
            raise DataError(f"a source's items must have {ITEM_SCHEMA}, got {frame.schema}; fix the reader")
    items = pl.concat(frames, rechunk=True)
    repeated = items.filter(pl.col("item").is_duplicated())["item"].head(1).to_list()
    if repeated:
        raise DataError(f"a source's item ids must be unique, got {repeated[0]!r} twice; fix the reader")
    items.write_parquet(path)
    return items.height


def by_number(ids: pl.Series) -> pl.Series:
    """Sort ids as numbers ("9" before "10") if all of them are numbers, otherwise as text."""
    frame = ids.alias("id").to_frame()
    if ids.str.contains(r"^[0-9]{1,18}$").all():
        return frame.sort(pl.col("id").cast(pl.Int64), pl.col("id"))["id"]
    return frame.sort("id")["id"]


def _with_hash(batch: pl.DataFrame) -> pl.DataFrame:
    users = batch["user"].unique()
    hashes = pl.DataFrame({"user": users, "hash": [user_hash(user) for user in users.to_list()]})
    return batch.join(hashes, on="user", how="left", maintain_order="left")


def _write_shard(frames: list[pl.DataFrame], path: Path) -> int:
    shard = pl.concat(frames).sort("hash", maintain_order=True)
    shard.write_parquet(path, compression="lz4", row_group_size=_GROUP_ROWS)
    return shard.height
