"""Reading a prepared folder that may be broken: what cannot be read is a finding, and the rest is still checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from r2rank_jax.data.audit.findings import Check, Findings
from r2rank_jax.data.audit.tables import AGAIN, USERS_TABLE, Bucket
from r2rank_jax.data.prepared.folder import interactions_file, users_file

FILES = Check(
    "files", "every file that the manifest names is there, can be read, and has its columns", f"restore it, or {AGAIN}"
)

INTERACTIONS = {"user": pl.Int32, "item": pl.Int32, "rating": pl.Float32, "timestamp": pl.Int64, "order": pl.Int64}
USERS = {"user": pl.Int32, "source_id": pl.String}
ITEMS = {
    "item": pl.Int32,
    "source_id": pl.String,
    "title": pl.String,
    "year": pl.String,
    "genres": pl.List(pl.String),
    "details": pl.List(pl.Struct({"name": pl.String, "value": pl.String})),
}


def read_table(directory: Path, file: str, schema: dict, found: Findings) -> pl.DataFrame | None:
    """A parquet file as it must be; None, and a finding, where it is not.

    Args:
        directory: the prepared folder.
        file: relative to it.
        schema: names and types of its columns. No value may be missing but a rating.
        found: added to.
    """
    path = directory / file
    if not path.is_file():
        found.add(FILES, file, "is not there")
        return None
    try:
        frame = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        found.add(FILES, file, f"is no parquet file: {str(error).splitlines()[0][:120]}")
        return None
    if dict(frame.schema) != schema:
        found.add(FILES, file, f"must have the columns {_columns(schema)}, got {_columns(dict(frame.schema))}")
        return None
    missing = [name for name in schema if name != "rating" and frame[name].null_count()]
    for name in missing:
        found.add(FILES, f"{file}, row {frame[name].is_null().arg_max()}", f"{name} is missing")
    return None if missing else frame


def read_bucket(directory: Path, bucket: int, first_user: int, found: Findings) -> tuple[Bucket | None, list[str]]:
    """A bucket's interactions, and its users' source ids in the order of their dense ids.

    Args:
        directory: the prepared folder.
        bucket: which one.
        first_user: dense id of its first user.
        found: added to.

    Returns:
        None where the interactions cannot be read; the users are then those of their table alone.
    """
    users = read_table(directory, users_file(bucket), USERS, found)
    rows = read_table(directory, interactions_file(bucket), INTERACTIONS, found)
    ids = [] if users is None else users["source_id"].to_list()
    if rows is None:
        return None, ids
    count = rows["user"].n_unique() if users is None else users.height
    if users is not None:
        _check_users_table(users, users_file(bucket), first_user, found)
    columns = {name: rows[name].to_numpy() for name in INTERACTIONS}
    places = columns["user"] - first_user
    counts = np.bincount(places[(places >= 0) & (places < count)], minlength=count)
    return Bucket(interactions_file(bucket), first_user, np.append(0, np.cumsum(counts)), **columns), ids


def _check_users_table(users: pl.DataFrame, file: str, first_user: int, found: Findings) -> None:
    dense = users["user"].to_numpy()
    wrong = np.flatnonzero(dense != first_user + np.arange(len(dense)))
    found.add_rows(USERS_TABLE, file, wrong, lambda row: f"user must be {first_user + row}, got {dense[row]}")
    again = (~users["source_id"].is_first_distinct() | (users["source_id"] == "")).arg_true().to_numpy()
    found.add_rows(
        USERS_TABLE, file, again, lambda row: f"source id {users['source_id'][row]!r} is empty or of another user too"
    )


def _columns(schema: dict) -> str:
    return ", ".join(f"{name}: {kind}" for name, kind in schema.items())
