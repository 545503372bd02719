"""MovieLens as distributed by GroupLens: 100K (`u.data`), 1M and 10M (`ratings.dat`), later releases (`ratings.csv`).

Pitfalls: `u.item` and the 1M's `movies.dat` are ISO-8859-1; `::` separates the fields of `.dat` files; titles include
the year ("Toy Story (1995)"), articles come last, and foreign titles follow in parentheses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from r2rank_jax.data.sources.public.films import film_title, without_year
from r2rank_jax.data.sources.rows.delimited import LineFormat, Record, records
from r2rank_jax.data.sources.rows.interactions import Fields, in_order, read_delimited
from r2rank_jax.data.sources.rows.items import ItemRow, item_batches
from r2rank_jax.data.sources.rows.reading import encoding_of, first_line, present, required
from r2rank_jax.data.sources.schema import OnError, Source
from r2rank_jax.errors import DataError

RATINGS = ("userId", "movieId", "rating", "timestamp")
MOVIES = ("movieId", "title", "genres")
GENRES_100K = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
NO_GENRES = "(no genres listed)"


@dataclass(frozen=True)
class Release:
    """One of MovieLens' formats: two files, and a function that reads the row of an item."""

    name: str
    ratings: str
    movies: str
    ratings_form: LineFormat
    movies_form: LineFormat
    row: Callable[[Record, Counter[str]], ItemRow]


def open_movielens(folder: Path, on_error: OnError) -> Source:
    """Open a folder of MovieLens' own files.

    Raises:
        DataError: one of the two files is missing, or has an unexpected header.
    """
    release = _release(folder)
    names = (release.ratings, release.movies)
    ratings, movies = (required(folder, name, names) for name in names)
    for path, form in ((ratings, release.ratings_form), (movies, release.movies_form)):
        if form.header and first_line(path) != ",".join(form.columns):
            raise DataError(
                f"{path}, line 1: expected the header {','.join(form.columns)}, got {first_line(path)[:120]!r}; fetch "
                f"MovieLens again"
            )
    movies_form = replace(release.movies_form, encoding=encoding_of(movies))
    counts: Counter[str] = Counter()

    def interactions() -> Iterator[pl.DataFrame]:
        return in_order([read_delimited(ratings, release.ratings_form, Fields(*RATINGS), on_error)])

    def rows() -> Iterator[ItemRow]:
        for record in records(movies, movies_form, on_error):
            try:
                yield release.row(record, counts)
            except ValueError as error:
                on_error(movies, record.line, str(error), record.text)

    def items() -> Iterator[pl.DataFrame]:
        return item_batches(movies, rows(), on_error, counts)

    return Source(release.name, "films", "s", interactions, items, (ratings, movies), counts=counts)


def _release(folder: Path) -> Release:
    if present(folder, "u.data"):
        items = LineFormat(("movie id", "movie title", "release date", "video release date", "URL", *GENRES_100K), "|")
        return Release("ml-100k", "u.data", "u.item", LineFormat(RATINGS, "\t"), items, _item_100k)
    if present(folder, "ratings.dat"):
        name = "ml-10m" if present(folder, "tags.dat") else "ml-1m"
        return Release(name, "ratings.dat", "movies.dat", LineFormat(RATINGS, "::"), LineFormat(MOVIES, "::"), _item)
    ratings, movies = (LineFormat(names, ",", header=True, quoted=True) for names in (RATINGS, MOVIES))
    name = folder.resolve().name  # the files of all later releases look alike
    return Release(name if name.startswith("ml-") else "movielens", "ratings.csv", "movies.csv", ratings, movies, _item)


def _item(record: Record, counts: Counter[str]) -> ItemRow:
    key, title, genres = record.values
    if not key:
        raise ValueError("movieId must not be empty")
    name, year = without_year(title)
    kinds = () if genres == NO_GENRES else tuple(genre for genre in genres.split("|") if genre)
    return ItemRow(key, film_title(name, counts), year, kinds, (), record.line, record.text)


def _item_100k(record: Record, counts: Counter[str]) -> ItemRow:
    key, title, released, _, _, *flags = record.values
    if not key or set(flags) - {"0", "1"}:
        raise ValueError(
            f"expected an id and {len(GENRES_100K)} genres as 0 or 1, got {key!r:.40} and {''.join(flags)!r:.40}"
        )
    name, year = without_year(title)
    kinds = tuple(genre for genre, flag in zip(GENRES_100K, flags) if flag == "1" and genre != "unknown")
    # The year of the release date often differs; it is used only if the title has no year.
    return ItemRow(key, film_title(name, counts), year or released[-4:], kinds, (), record.line, record.text)
