"""The items of all buckets as one table: the catalog, the items that a k-core keeps, and their dense ids."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from r2rank_jax.data.prepare.partition import by_number
from r2rank_jax.data.prepare.user_buckets import count_core, step_folder
from r2rank_jax.data.prepare.workers import OverBuckets
from r2rank_jax.data.prepared.settings import Array
from r2rank_jax.data.prepared.tables import hash_of_items
from r2rank_jax.errors import DataError
from r2rank_jax.files.atomic import replacing_file
from r2rank_jax.files.seals import Facts


def write_catalog(work: Path, buckets: int, folder: Path) -> Facts:
    """Write all items that the source describes or a user interacted with, with their texts, ordered by id."""
    seen = [pl.scan_parquet(step_folder(work, "deduplicated", bucket) / "items.parquet") for bucket in range(buckets)]
    touched = pl.concat(seen).group_by("item").agg(pl.col("interactions").sum()).collect()
    described = pl.read_parquet(work / "read/items.parquet")
    ids = by_number(pl.concat([touched["item"], described["item"]]).unique()).alias("item").to_frame()
    empty = {"title": "", "year": "", "interactions": 0}
    ids.join(touched, on="item", how="left", maintain_order="left").join(
        described, on="item", how="left", maintain_order="left"
    ).with_columns(
        *(pl.col(name).fill_null(value) for name, value in empty.items()),
        *(pl.col(name).fill_null([]) for name in ("genres", "details")),
    ).write_parquet(folder / "catalog.parquet")
    return {"items": len(ids), "touched": touched.height}


def find_core(work: Path, k: int, unique: list[Facts], over_buckets: OverBuckets, folder: Path) -> Facts:
    """Drop rare items and users in turn until every remaining one has `k` of the other. The result is unique."""
    counts = pl.read_parquet(work / "catalog/catalog.parquet", columns=["interactions"])["interactions"].to_numpy()
    alive = np.ones(len(counts), bool)
    users = [facts["users"] for facts in unique]
    rounds = 0
    while k > 1:
        rounds += 1
        alive = alive & (counts >= k)
        round_file = f"alive-{rounds:03d}.npy"
        with replacing_file(work / round_file) as temporary:
            save_array(temporary, alive)
        remaining = over_buckets(f"{k}-core, round {rounds}", partial(count_core, work, k, round_file))
        (work / round_file).unlink()
        counts = sum(bucket["item_counts"] for bucket in remaining)
        users = [bucket["users"] for bucket in remaining]
        if not sum(users):
            raise DataError(
                f"the {k}-core must keep some users, got none: no group of users and items has {k} of each other; "
                f"lower --k-core"
            )
        if (counts[alive] >= k).all():
            break
    save_array(folder / "alive.npy", alive)
    return {"users_of_buckets": users, "touched": int(np.sum(counts[alive] > 0)), "rounds": rounds}


def write_items_table(work: Path, folder: Path) -> Facts:
    """Write `items.parquet`: the items that the k-core keeps, by dense id. A missing title stays empty."""
    alive = np.load(work / "core/alive.npy")
    items = pl.read_parquet(work / "catalog/catalog.parquet").filter(pl.Series(alive))
    touched = items["interactions"] > 0
    items = items.select(
        pl.int_range(pl.len(), dtype=pl.Int32).alias("item"),
        pl.col("item").alias("source_id"),
        "title",
        "year",
        "genres",
        "details",
    )
    items.write_parquet(folder / "items.parquet")
    return {
        "items": items.height,
        "items_without_title": int((items["title"] == "").sum()),
        "items_without_interactions": int((~touched).sum()),
        "items_sha256": hash_of_items(folder / "items.parquet"),
    }


def save_array(path: Path, array: Array) -> None:
    """Write an array as a .npy file; unlike `np.save`, appends nothing to the name."""
    with path.open("wb") as file:
        np.save(file, array)
