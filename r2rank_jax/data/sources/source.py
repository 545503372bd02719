"""Opens a source: tells from the files which data set lies there."""

from __future__ import annotations

from pathlib import Path

from r2rank_jax.data.errors import DataError
from r2rank_jax.data.sources.recbole import open_recbole
from r2rank_jax.data.sources.schema import (
    BATCH_ROWS,
    INTERACTION_SCHEMA,
    ITEM_SCHEMA,
    UNTITLED,
    OnError,
    Quarantine,
    Source,
    fatal,
)

__all__ = [
    "BATCH_ROWS",
    "INTERACTION_SCHEMA",
    "ITEM_SCHEMA",
    "UNTITLED",
    "OnError",
    "Quarantine",
    "Source",
    "fatal",
    "open_source",
]


def open_source(
    path: Path, kind: str | None = None, columns: dict[str, str] | None = None, on_error: OnError = fatal
) -> Source:
    """Open the data set at a path. Nothing is read yet but first lines.

    Args:
        path: a folder with the source's files under their own names, or one plain file.
        kind: "recbole"; None: told by the files.
        columns: our name -> the source's, for plain files and for atomic files of unusual field names.
        on_error: what to do with a row that cannot be read.

    Raises:
        DataError: no known data set lies there, or not all of it.
    """
    if kind in (None, "recbole") and path.is_dir() and any(path.glob("*.inter")):
        return open_recbole(path, columns or {}, on_error)
    there = sorted(file.name for file in path.iterdir())[:8] if path.is_dir() else "nothing"
    raise DataError(f"{path} must be a folder with a known data set's files, got {there}; give the right folder")
