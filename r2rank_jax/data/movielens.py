"""MovieLens in RecBole's atomic files as whole tables with dense ids, for sources that fit into memory."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl

from r2rank_jax.data.errors import DataError
from r2rank_jax.data.sources.films import film_title
from r2rank_jax.data.sources.schema import INTERACTION_SCHEMA, ITEM_SCHEMA, UNTITLED
from r2rank_jax.data.sources.source import open_source
from r2rank_jax.data.tables import Interactions, Items


def read(source: Path) -> tuple[Interactions, Items]:
    """Read the one `.inter` file and the one `.item` file of a folder.

    Args:
        source: folder that `r2rank data fetch` wrote.

    Returns:
        Interactions in source order, and the items; dense ids follow the numeric order of the source's ids.

    Raises:
        DataError: a file is missing, malformed or cut off, with its name, the line and what was expected.
    """
    item_path, inter_path = _only(source, ".item"), _only(source, ".inter")
    opened = open_source(source, "recbole")
    table = pl.concat([pl.DataFrame(schema=ITEM_SCHEMA), *opened.items()])
    rows = pl.concat([pl.DataFrame(schema=INTERACTION_SCHEMA), *opened.interactions()], rechunk=True)
    for path, frame, what in ((item_path, table, "items"), (inter_path, rows, "interactions")):
        if frame.is_empty():
            raise DataError(f"{path}: expected {what} after the header, got none; fetch the file again")
    found = {row["item"]: row for row in table.iter_rows(named=True)}
    ids = tuple(_by_number(set(found)))
    items = Items(
        ids,
        tuple(found[item]["title"] or UNTITLED["films"] for item in ids),
        tuple(found[item]["year"] for item in ids),
        tuple(tuple(found[item]["genres"]) for item in ids),
    )
    dense_item = {name: i for i, name in enumerate(ids)}
    dense_user = {name: u for u, name in enumerate(_by_number(set(rows["user"])))}
    _require_known_and_unique(rows, dense_item, item_path, inter_path)
    interactions = Interactions(
        user=np.array([dense_user[user] for user in rows["user"]], np.int32),
        item=np.array([dense_item[item] for item in rows["item"]], np.int32),
        rating=rows["rating"].to_numpy(),
        timestamp=rows["timestamp"].to_numpy(),
        order=rows["order"].to_numpy().astype(np.int32),
    )
    return interactions, items


def clean_title(title: str) -> str:
    """A film's title as prompts show it; the placeholder of a missing one has words.

    >>> clean_title("unkonwn")
    'Unknown film'
    """
    return film_title(title, Counter()) or UNTITLED["films"]


def _require_known_and_unique(rows: pl.DataFrame, dense_item: dict[str, int], item_path: Path, path: Path) -> None:
    seen: dict[tuple[str, str], int] = {}
    for line, (user, item) in enumerate(rows.select("user", "item").iter_rows(), start=2):
        if item not in dense_item:
            raise DataError(
                f"{path}, line {line}: item_id must be one of the {len(dense_item)} in {item_path.name}, "
                f"got {item!r}; one of the two files is incomplete: fetch both again"
            )
        first = seen.setdefault((user, item), line)
        if first != line:
            raise DataError(
                f"{path}, line {line}: a user rates an item once, but user {user!r} rated item "
                f"{item!r} on line {first} already; keep one of the two lines"
            )


def _by_number(ids: set[str]) -> list[str]:
    """Numeric order where all ids are numbers ("9" before "10"), else text order."""
    return sorted(ids, key=int) if all(name.isdecimal() for name in ids) else sorted(ids)


def _only(source: Path, suffix: str) -> Path:
    found = sorted(source.glob(f"*{suffix}")) if source.is_dir() else []
    if len(found) != 1:
        raise DataError(
            f"{source} must be a folder with exactly one {suffix} file, got {[path.name for path in found]}; "
            f"run `r2rank data fetch ml-100k --out {source}` or give the right folder"
        )
    return found[0]
