"""Read a prepared folder that may be damaged: unreadable parts become findings, and the rest is still checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from r2rank_jax.data.audit.findings import Check, Findings
from r2rank_jax.data.audit.tables import AGAIN, USERS_TABLE, Bucket
from r2rank_jax.data.prepared.folder import interactions_file, users_file

FILES = Check(
    "files", "every file that the manifest names exists, is readable, and has its columns", f"restore it, or {AGAIN}"
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


def read_table(directory: Path, file: str, schema: dict, findings: Findings) -> pl.DataFrame | None:
    """Read a parquet file and check its columns. If something is wrong, add a finding and return None.

    Args:
        directory: the prepared folder.
        file: path relative to the folder.
        schema: names and types of its columns. Only ratings may be missing.
        findings: updated with what is wrong.
    """
    path = directory / file
    if not path.is_file():
        findings.add(FILES, file, "does not exist")
        return None
    try:
        frame = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        findings.add(FILES, file, f"is not a parquet file: {str(error).splitlines()[0][:120]}")
        return None
    if dict(frame.schema) != schema:
        findings.add(FILES, file, f"must have the columns {_columns(schema)}, got {_columns(dict(frame.schema))}")
        return None
    missing = [name for name in schema if name != "rating" and frame[name].null_count()]
    for name in missing:
        findings.add(FILES, f"{file}, row {frame[name].is_null().arg_max()}", f"{name} is missing")
    return None if missing else frame


def read_bucket(directory: Path, bucket: int, first_user: int, findings: Findings) -> tuple[Bucket | None, list[str]]:
    """Read a bucket's interactions, and its users' source ids in the order of their dense ids.

    Args:
        directory: the prepared folder.
        bucket: number of the bucket.
        first_user: dense id of its first user.
        findings: updated with what is wrong.

    Returns:
        The interactions, or None if they cannot be read, and the source ids in the users' table.
    """
    users = read_table(directory, users_file(bucket), USERS, findings)
    rows = read_table(directory, interactions_file(bucket), INTERACTIONS, findings)
    ids = [] if users is None else users["source_id"].to_list()
    if rows is None:
        return None, ids
    count = rows["user"].n_unique() if users is None else users.height
    if users is not None:
        _check_users_table(users, users_file(bucket), first_user, findings)
    columns = {name: rows[name].to_numpy() for name in INTERACTIONS}
    places = columns["user"] - first_user
    counts = np.bincount(places[(places >= 0) & (places < count)], minlength=count)
    return Bucket(interactions_file(bucket), first_user, np.append(0, np.cumsum(counts)), **columns), ids


def _check_users_table(users: pl.DataFrame, file: str, first_user: int, findings: Findings) -> None:
    dense = users["user"].to_numpy()
    wrong = np.flatnonzero(dense != first_user + np.arange(len(dense)))
    findings.add_rows(USERS_TABLE, file, wrong, lambda row: f"user must be {first_user + row}, got {dense[row]}")
    again = (~users["source_id"].is_first_distinct() | (users["source_id"] == "")).arg_true().to_numpy()
    findings.add_rows(
        USERS_TABLE, file, again, lambda row: f"source id {users['source_id'][row]!r} is empty or not unique"
    )


def _columns(schema: dict) -> str:
    return ", ".join(f"{name}: {kind}" for name, kind in schema.items())
