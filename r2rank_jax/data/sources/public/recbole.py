"""RecBole's atomic files: tab-separated, with a typed header line (`user_id:token`); `.inter` and usually `.item`.

One reader handles all of RecBole's data sets, because names and types of the fields show their purpose. `.inter` may
lack a rating or a time, it may come in three parts (`X.train.inter`, `X.valid.inter`, `X.test.inter`), and an item
table may have any fields. Pitfalls of the ML-100K copy: years are stripped from titles (so 22 titles repeat), "Usual
Suspects, The", alternative titles in parentheses, HTML entities, and item 267, whose title is the placeholder
"unkonwn".
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from r2rank_jax.data.sources.public.films import film_title
from r2rank_jax.data.sources.rows.delimited import LineFormat, records
from r2rank_jax.data.sources.rows.ids import canonical_id
from r2rank_jax.data.sources.rows.interactions import Fields, in_order, read_delimited
from r2rank_jax.data.sources.rows.items import ItemRow, clean_text, item_batches
from r2rank_jax.data.sources.rows.reading import first_line
from r2rank_jax.data.sources.rows.times import detect
from r2rank_jax.data.sources.schema import NO_ITEMS, NO_RATINGS, NO_TIMES, OnError, Source
from r2rank_jax.errors import DataError

PARTS = ("train", "valid", "test")
USERS = ("user_id", "session_id", "uid", "user", "userid", "username", "reviewer_id")
ITEMS = (
    *("item_id", "business_id", "venue_id", "product_id", "movie_id", "book_id", "artist_id", "album_id", "track_id"),
    *("song_id", "music_id", "game_id", "news_id", "beer_id", "recipe_id", "joke_id", "ad_id", "iid", "asin", "item"),
)
RATINGS = ("rating", "stars", "overall", "score", "review_overall", "user_rating")
TIMES = ("timestamp", "time", "date", "unix_time")
TITLES = ("movie_title", "title", "item_name", "app_name", "name", "movie_name", "book_title", "product_name")
YEARS = ("release_year", "year", "publication_year", "year_of_publication", "release_date")
GENRES = ("class", "genre", "genres", "categories", "category", "type")
FILM_TITLES = ("movie_title", "movie_name")
_FOUR_DIGITS = re.compile(r"(?<!\d)\d{4}(?!\d)")


@dataclass(frozen=True)
class Header:
    """Names and types of a file's fields, in order."""

    path: Path
    names: tuple[str, ...]
    types: tuple[str, ...]  # token, token_seq, float, float_seq

    @property
    def form(self) -> LineFormat:
        """The format of the file's lines."""
        return LineFormat(self.names, "\t", header=True)

    def first_of(self, names: tuple[str, ...], kinds: tuple[str, ...] = ()) -> str | None:
        """Return the first of `names` among the fields of the given types; None if there is none."""
        available = [name for name, kind in zip(self.names, self.types) if not kinds or kind in kinds]
        return next((name for name in names if name in available), None)

    def required(self, what: str, names: tuple[str, ...], key: str) -> str:
        """Return `first_of`, or raise an error that lists the fields."""
        field = self.first_of(names)
        if field is None:
            raise DataError(
                f"{self.path}, line 1: expected a tab-separated header with {names[0]}:token, or another field for the "
                f"{what}, got {', '.join(self.names)[:200]!r}; set the field with --column {key}=FIELD"
            )
        return field


def open_recbole(folder: Path, columns: dict[str, str], on_error: OnError, time_unit: str | None = None) -> Source:
    """Open a folder of atomic files.

    Args:
        folder: holds one `X.inter`, or X.train.inter, X.valid.inter and X.test.inter, and at most one `.item`.
        columns: user, item, rating, timestamp -> the field, where the header's names do not show it.
        on_error: handler of malformed rows.
        time_unit: "s" or "ms"; None detects it from the rows.

    Raises:
        DataError: other files, or a header without the required fields.
    """
    inter = _interaction_files(folder)
    tables = sorted(folder.glob("*.item"))
    if len(tables) > 1:
        raise DataError(f"{folder} must have at most one .item file, got {[p.name for p in tables]}; keep one of them")
    name = inter[0].name.removesuffix(".inter").removesuffix(".train")
    headers = [_header(path) for path in inter]
    fields = _with_time(headers, [_fields(header, columns) for header in headers], time_unit)
    counts: Counter[str] = Counter()
    table = _header(tables[0]) if tables else None
    films = name.startswith("ml-") or (table is not None and table.first_of(FILM_TITLES) is not None)

    def interactions() -> Iterator[pl.DataFrame]:
        files = zip(headers, fields, strict=True)
        return in_order(read_delimited(header.path, header.form, names, on_error) for header, names in files)

    def items() -> Iterator[pl.DataFrame]:
        if table is not None:
            yield from item_batches(table.path, _item_rows(table, films, on_error, counts), on_error, counts)

    domain = "films" if films else _domain(name)
    lacks = ((not tables, NO_ITEMS), (not fields[0].rating, NO_RATINGS), (not fields[0].timestamp, NO_TIMES))
    notes = tuple(note for missing, note in lacks if missing)
    return Source(name, domain, fields[0].time.unit, interactions, items, (*inter, *tables), notes, counts)


def _interaction_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.inter"))
    parts = [path for part in PARTS for path in files if path.name.endswith(f".{part}.inter")]
    whole = [path for path in files if path not in parts]
    if len(whole) == 1 and not parts:
        return whole
    names = {path.name.removesuffix(".inter").rpartition(".")[0] for path in parts}
    if parts and not whole and len(names) == 1:
        return parts
    raise DataError(
        f"{folder} must be a folder with exactly one .inter file, or one each for train, valid and test, got "
        f"{[path.name for path in files]}; give the right folder"
    )


def _header(path: Path) -> Header:
    columns = first_line(path).split("\t")
    names, kinds = zip(*((c.rpartition(":")[0] or c, c.rpartition(":")[2]) for c in columns))
    if repeated := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{path}, line 1: each field must have its own name, got {repeated[0]!r:.80} more than once")
    if not all(":" in column for column in columns):
        raise DataError(
            f"{path}, line 1: expected a tab-separated header with user_id:token, item_id:token and the like, got "
            f"{first_line(path)[:120]!r}; give RecBole's atomic file"
        )
    return Header(path, names, kinds)


def _fields(header: Header, columns: dict[str, str]) -> Fields:
    """Assign fields to user, item, rating and timestamp. Names in `columns` take precedence."""

    def first(key: str, names: tuple[str, ...]) -> tuple[str, ...]:
        return (columns[key],) if key in columns else names

    return Fields(
        header.required("user", first("user", USERS), "user"),
        header.required("item", first("item", ITEMS), "item"),
        header.first_of(first("rating", RATINGS), ("float",)),
        header.first_of(first("timestamp", TIMES), ("float",)),
    )


def _with_time(headers: list[Header], fields: list[Fields], unit: str | None) -> list[Fields]:
    """Add the format and unit of the times, which the parts of a data set share."""
    if fields[0].timestamp is None:
        return fields

    def times() -> Iterator[str | None]:
        for header, names in zip(headers, fields, strict=True):
            if names.timestamp is not None:
                place = header.names.index(names.timestamp)
                for record in records(header.path, header.form, lambda *_: None):
                    yield record.values[place]

    time = detect(headers[0].path, fields[0].timestamp, times(), unit)
    return [replace(names, time=time) for names in fields]


def _item_rows(header: Header, films: bool, on_error: OnError, counts: Counter[str]) -> Iterator[ItemRow]:
    form = header.form
    key = form.columns.index(header.required("item", ITEMS, "item"))
    title, year, genres = (
        form.columns.index(field) if (field := header.first_of(names)) else None for names in (TITLES, YEARS, GENRES)
    )
    details = [place for place in range(len(form.columns)) if place not in (key, title, year, genres)]
    for record in records(header.path, form, on_error):
        values = record.values
        if not canonical_id(values[key]):
            on_error(header.path, record.line, f"{header.names[key]} must not be empty", record.text)
            continue
        shown = "" if title is None else values[title]
        yield ItemRow(
            values[key],
            film_title(shown, counts) if films else clean_text(shown, counts),
            "" if year is None else _year(values[year]),
            () if genres is None else _genres(values[genres]),
            tuple((header.names[p], clean_text(values[p], counts)) for p in details if values[p].strip()),
            record.line,
            record.text,
        )


def _year(text: str) -> str:
    year = _FOUR_DIGITS.search(text)
    return year.group() if year else ""


def _genres(text: str) -> tuple[str, ...]:
    """Split genres. RecBole separates values by spaces, but keeps the source's commas if the names contain spaces."""
    parts = text.split(",") if "," in text else text.split()
    kinds = (html.unescape(part).strip().strip("'\"[]").strip() for part in parts)
    return tuple(kind for kind in kinds if kind and kind != "unknown")


def _domain(name: str) -> str:
    marks = {"book": "books", "goodreads": "books", "game": "games", "steam": "games"} | dict.fromkeys(
        ("yelp", "foursquare", "gowalla"), "places"
    )
    return next((domain for mark, domain in marks.items() if mark in name.lower()), "products")
