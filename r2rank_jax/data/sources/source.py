"""Open a source: detect from its files which data set it is."""

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
_VARIED = ("plain", "recbole")  # formats whose columns and units vary
_MOVIELENS = ({"u.data"}, {"ratings.dat"}, {"ratings.csv", "movies.csv"})


def open_source(
    path: Path,
    kind: str | None = None,
    columns: dict[str, str] | None = None,
    on_error: OnError = fatal,
    *,
    time_unit: str | None = None,
    quote: str | None = None,
) -> Source:
    """Open the data set at a path. Only the names of columns and the unit of time are read at this point.

    Args:
        path: a folder with the source's files under their original names; or one file: the ratings of an Amazon
            category with its metadata beside it, or your own log.
        kind: one of KINDS; None detects it from the files.
        columns: our name -> the source's name, for plain files and for atomic files with unusual field names.
        on_error: handler of rows that cannot be read.
        time_unit: "s" or "ms", for plain and atomic files; None detects it.
        quote: "double" or "none", for plain files: whether fields may be quoted.

    Raises:
        DataError: the path holds no known data set, an incomplete one, or more than one.
    """
    if kind is not None and kind not in KINDS:
        raise DataError(f"kind of source must be one of {', '.join(KINDS)}, got {kind!r}; correct --kind")
    if not path.exists():
        raise DataError(f"--source must be a folder or a file, got {path}, which does not exist; correct the path")
    public, plain = _readings(path, columns or {}, on_error, time_unit, quote)
    matches = public or plain if kind is None else [reading for reading in public + plain if reading[0] == kind]
    if len(matches) != 1:
        files = sorted(file.name for file in path.iterdir())[:8] if path.is_dir() else path.name
        several = f"files of {len(matches)}: {', '.join(name for name, _ in matches)}"
        raise DataError(
            f"{path} must hold {f'one source of kind {kind}' if kind else 'one known data set'}, got "
            f"{several if matches else files}; docs/data_sources.md lists the files of each; set --kind, or give the "
            f"path of one file"
        )
    chosen, opener = matches[0]
    for flag, value, kinds in (
        ("time-unit", time_unit, _VARIED),
        ("quote", quote, ("plain",)),
        ("column", columns, _VARIED),
    ):
        if value and chosen not in kinds:
            raise DataError(
                f"--{flag} is for sources of kind {' and '.join(kinds)}, got a source of kind {chosen}, whose format "
                f"is fixed; omit --{flag}"
            )
    source = opener()
    for note in source.notes:
        print(f"{source.name}: {note}", file=sys.stderr)
    return source


Reading = tuple[str, Callable[[], Source]]  # kind, opener


def _readings(
    path: Path, columns: dict[str, str], on_error: OnError, time_unit: str | None, quote: str | None
) -> tuple[list[Reading], list[Reading]]:
    """Return what the path can be opened as: public data sets, and plain files, which may be the same files."""
    names = {file.name.removesuffix(".gz") for file in path.iterdir()} if path.is_dir() else set()
    public: list[Reading] = []
    if any(name.endswith(".inter") for name in names):
        public.append(("recbole", partial(open_recbole, path, columns, on_error, time_unit)))
    if any(files <= names for files in _MOVIELENS):
        public.append(("movielens", partial(open_movielens, path, on_error)))
    if yelp.REVIEWS in names:
        public.append(("yelp", partial(yelp.open_yelp, path, on_error)))
    if steam.REVIEWS in names:
        public.append(("steam", partial(steam.open_steam, path, on_error)))
    public += [(f"amazon-{f.edition.year}", partial(open_amazon, f, on_error)) for f in find_amazon(path)]
    return public, [
        ("plain", partial(open_plain, file, columns, on_error, time_unit, quote)) for file in find_plain(path)
    ]
