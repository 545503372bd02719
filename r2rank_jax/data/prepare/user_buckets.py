"""The steps for one bucket of users.

Each function takes a bucket's number, writes the bucket's files and returns facts about them. Buckets share no data.
Functions take the work folder and numbers, so that it can run in any process, or on any machine that sees the
folder. The files of a step are sealed in WORK/STEP/BUCKET/.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from r2rank_jax.data.prepare.partition import by_number, read_bucket
from r2rank_jax.data.prepared.settings import Array
from r2rank_jax.files.seals import Facts, sealed

TIME_BINS = 1 << 16


def step_folder(work: Path, step: str, bucket: int) -> Path:
    """Return the folder of a step's files for one bucket."""
    return work / step / f"{bucket:05d}"


def deduplicate(work: Path, buckets: int, bucket: int) -> Facts:
    """Keep the earliest interaction of every (user, item), and number the bucket's users and items.

    Ties in time are resolved by the source's order, in this and all later steps.

    Returns:
        users, interactions, and the number of dropped duplicates.
    """
    return sealed(
        step_folder(work, "deduplicated", bucket), partial(_deduplicate, work / "read/interactions", buckets, bucket)
    )


def _deduplicate(shards: Path, buckets: int, bucket: int, folder: Path) -> Facts:
    rows = read_bucket(shards, buckets, bucket)
    users, items = by_number(rows["user"].unique()), rows["item"].unique().sort()
    for name, ids in (("user", users), ("item", items)):  # sort numbers, because sorting text is many times slower
        rows = rows.join(
            pl.DataFrame({name: ids, "number": np.arange(len(ids), dtype=np.int32)}), on=name, how="left"
        ).with_columns(pl.col("number").alias(name))
        rows = rows.drop("number")
    rows = rows.sort("user", "timestamp", "order")
    kept = rows.unique(subset=["user", "item"], keep="first", maintain_order=True)
    kept.select("user", "item", "rating", "timestamp", "order").rechunk().write_parquet(folder / "rows.parquet")
    users.alias("source_id").to_frame().write_parquet(folder / "users.parquet")
    counts = np.bincount(kept["item"].to_numpy(), minlength=len(items))
    pl.DataFrame({"item": items, "interactions": counts}).write_parquet(folder / "items.parquet")
    return {"users": len(users), "interactions": kept.height, "duplicates": rows.height - kept.height}


def surviving(work: Path, k: int, alive: Array, bucket: int) -> pl.DataFrame:
    """Read the bucket's rows of kept items, for users with at least `k` of them, sorted by user, time, order.

    Args:
        work: the work folder, with the catalog.
        k: of the k-core.
        alive: bool [catalog], whether an item is kept.
        bucket: number of the bucket.

    Returns:
        user (number within the bucket), item (index in the catalog), rating, timestamp, order.
    """
    folder = step_folder(work, "deduplicated", bucket)
    catalog = pl.read_parquet(work / "catalog/catalog.parquet", columns=["item"]).with_row_index("index")
    items = pl.read_parquet(folder / "items.parquet").join(catalog, on="item", how="left", maintain_order="left")
    indices = items["index"].to_numpy().astype(np.int32)
    rows = pl.read_parquet(folder / "rows.parquet")
    rows = rows.with_columns(item=pl.Series(indices[rows["item"].to_numpy()]))
    rows = rows.filter(pl.Series(alive[rows["item"].to_numpy()]))
    counts = np.bincount(rows["user"].to_numpy(), minlength=1)
    return rows.filter(pl.Series(counts[rows["user"].to_numpy()] >= k))


def count_core(work: Path, k: int, alive_file: str, bucket: int) -> dict[str, Any]:
    """Count one round of the k-core.

    Returns:
        the remaining `users` and `interactions`, and their `item_counts`, int64 [catalog].
    """
    alive = np.load(work / alive_file)
    rows = surviving(work, k, alive, bucket)
    counts = np.bincount(rows["item"].to_numpy(), minlength=len(alive))
    return {"users": rows["user"].n_unique(), "interactions": rows.height, "item_counts": counts}


def write_interactions(work: Path, k: int, alive_file: str, first_user: int, bucket: int) -> Facts:
    """Write the bucket's final interactions and users, with dense ids.

    Args:
        work: the work folder.
        k: of the k-core.
        alive_file: name in the work folder of a bool [catalog]; dense item ids number the kept items.
        first_user: dense id of the bucket's first user.
        bucket: number of the bucket.

    Returns:
        users, interactions, tied_in_time (interactions at the same time as the user's previous one); first_time,
        last_time and highest_rating (None if there is none).
    """
    write = partial(_write_interactions, work, k, alive_file, first_user, bucket)
    return sealed(step_folder(work, "interactions", bucket), write)


def _write_interactions(work: Path, k: int, alive_file: str, first_user: int, bucket: int, folder: Path) -> Facts:
    alive = np.load(work / alive_file)
    rows = surviving(work, k, alive, bucket)
    user, time = rows["user"].to_numpy(), rows["timestamp"].to_numpy()
    dense_item = (np.cumsum(alive) - 1).astype(np.int32)
    starts = np.append(True, user[1:] != user[:-1])[: len(user)]
    dense_user = (first_user + np.cumsum(starts) - 1).astype(np.int32)
    rows.with_columns(
        user=pl.Series(dense_user), item=pl.Series(dense_item[rows["item"].to_numpy()])
    ).rechunk().write_parquet(folder / "interactions.parquet")
    source_id = pl.read_parquet(step_folder(work, "deduplicated", bucket) / "users.parquet")["source_id"]
    pl.DataFrame({"user": dense_user[starts], "source_id": source_id.gather(user[starts])}).write_parquet(
        folder / "users.parquet"
    )
    return {
        "users": int(starts.sum()),
        "interactions": rows.height,
        "tied_in_time": int(np.sum(~starts[1:] & (time[1:] == time[:-1]))),
        "first_time": int(time.min()) if len(time) else None,
        "last_time": int(time.max()) if len(time) else None,
        "highest_rating": rows["rating"].max(),
    }


def count_times(work: Path, low: int, width: int, bucket: int) -> Array:
    """Count interactions with a time in low + [bin * width, (bin + 1) * width); int64 [TIME_BINS]."""
    path = step_folder(work, "interactions", bucket) / "interactions.parquet"
    bins = (pl.read_parquet(path, columns=["timestamp"])["timestamp"].to_numpy() - low) // width
    return np.bincount(bins[(bins >= 0) & (bins < TIME_BINS)], minlength=TIME_BINS)
