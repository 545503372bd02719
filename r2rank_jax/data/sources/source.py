"""Opens a source: tells from the files which data set lies there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from r2rank_jax.data.sources.plain import find_plain, open_plain
from r2rank_jax.data.sources.public import steam, yelp
from r2rank_jax.data.sources.public.amazon import find_amazon, open_amazon
from r2rank_jax.data.sources.public.movielens import open_movielens
from r2rank_jax.data.sources.public.recbole import open_recbole
from r2rank_jax.data.sources.schema import (
    BATCH_ROWS,
    INTERACTION_SCHEMA,
    ITEM_SCHEMA,
    OnError,
    Quarantine,
    Source,
    fatal,
)
from r2rank_jax.errors import DataError

__all__ = [
    "BATCH_ROWS",
    "INTERACTION_SCHEMA",
    "ITEM_SCHEMA",
    "KINDS",
    "OnError",
    "Quarantine",
    "Source",
    "fatal",
    "open_source",
]

KINDS = ("recbole", "movielens", "amazon-2014", "amazon-2018", "amazon-2023", "yelp", "steam", "plain")
_MOVIELENS = ({"u.data"}, {"ratings.dat"}, {"ratings.csv", "movies.csv"})


def open_source(
    path: Path, kind: str | None = None, columns: dict[str, str] | None = None, on_error: OnError = fatal
) -> Source:
    """Open the data set at a path. Nothing is read yet but first lines.

    Args:
        path: a folder with the source's files under their own names; or one file: the ratings of an Amazon category
            beside its metadata, or your own log.
        kind: one of KINDS; None: told by the files.
        columns: our name -> the source's, for plain files and for atomic files of unusual field names.
        on_error: what to do with a row that cannot be read.

    Raises:
        DataError: no known data set lies there, not all of it, or more than one.
    """
    if kind is not None and kind not in KINDS:
        raise DataError(f"kind of source must be one of {', '.join(KINDS)}, got {kind!r}; mend --kind")
    if not path.exists():
        raise DataError(f"--source must be a folder or a file, got {path}, which is not there; give the right path")
    known, plain = _readings(path, columns or {}, on_error)
    found = known or plain if kind is None else [reading for reading in known + plain if reading[0] == kind]
    if len(found) != 1:
        there = sorted(file.name for file in path.iterdir())[:8] if path.is_dir() else path.name
        several = f"files of {len(found)}: {', '.join(name for name, _ in found)}"
        raise DataError(
            f"{path} must hold {f'one source of kind {kind}' if kind else 'one known data set'}, got "
            f"{several if found else there}; docs/data_sources.md lists the files of each; say --kind, or give the "
            f"path of one file"
        )
    source = found[0][1]()
    for note in source.notes:
        print(f"{source.name}: {note}", file=sys.stderr)
    return source


Reading = tuple[str, Callable[[], Source]]  # kind, opener


def _readings(path: Path, columns: dict[str, str], on_error: OnError) -> tuple[list[Reading], list[Reading]]:
    """What the path can be opened as: known data sets, and plain files, which those may be, too."""
    names = {file.name.removesuffix(".gz") for file in path.iterdir()} if path.is_dir() else set()
    known: list[Reading] = []
    if any(name.endswith(".inter") for name in names):
        known.append(("recbole", partial(open_recbole, path, columns, on_error)))
    if any(files <= names for files in _MOVIELENS):
        known.append(("movielens", partial(open_movielens, path, on_error)))
    if yelp.REVIEWS in names:
        known.append(("yelp", partial(yelp.open_yelp, path, on_error)))
    if steam.REVIEWS in names:
        known.append(("steam", partial(steam.open_steam, path, on_error)))
    known += [(f"amazon-{f.edition.year}", partial(open_amazon, f, on_error)) for f in find_amazon(path)]
    return known, [("plain", partial(open_plain, file, columns, on_error)) for file in find_plain(path)]
