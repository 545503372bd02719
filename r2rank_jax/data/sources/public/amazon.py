"""Amazon reviews of 2014, 2018 and 2023: interactions of one category, and its metadata.

Files of each edition and the order of their columns:

    2014  ratings_X.csv (user,item,rating,s) or reviews_X[_5].json.gz;  meta_X.json.gz, Python literals
    2018  X.csv (item,user,rating,s: the other way round) or X[_5].json.gz;  meta_X.json.gz, JSON
    2023  X[.train|.valid|.test].csv (user,item,rating,ms[,history]; with a header or without) or X.jsonl.gz;
          meta_X.jsonl.gz, joined on `parent_asin`
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl

from r2rank_jax.data.sources.public.products import ReadItem, item_2014, item_2018, item_2023
from r2rank_jax.data.sources.rows.delimited import LineFormat
from r2rank_jax.data.sources.rows.interactions import Fields, in_order, read_delimited, read_json_lines
from r2rank_jax.data.sources.rows.items import item_batches
from r2rank_jax.data.sources.rows.objects import objects, parser_of
from r2rank_jax.data.sources.rows.reading import first_line, present
from r2rank_jax.data.sources.rows.times import MILLISECONDS_FROM, TimeFormat
from r2rank_jax.data.sources.schema import NO_ITEMS, OnError, Source
from r2rank_jax.errors import DataError

PARTS = ("train", "valid", "test")
_CSV, _GZ = r"\.csv(?:\.gz)?", r"(?:\.gz)?"
_ASIN = re.compile(r"[0-9A-Z]{10}")


@dataclass(frozen=True)
class Edition:
    """One release: the names and contents of its files."""

    year: int
    time_unit: str
    csv: re.Pattern[str]  # names of rating files; group 1 is the category, group 2 the part
    reviews: re.Pattern[str]
    metadata: str  # name of the metadata file, with {} for the category
    columns: tuple[str, ...]  # of the rating files
    csv_fields: Fields
    review_fields: Fields
    item_key: str
    read_item: ReadItem


_2014_FIELDS = Fields("reviewerID", "asin", "overall", "unixReviewTime")
_2023_FIELDS = Fields("user_id", "parent_asin", "rating", "timestamp", TimeFormat("ms", after=MILLISECONDS_FROM))
EDITIONS = (
    Edition(
        2014,
        "s",
        re.compile(rf"ratings_(\w+?)(){_CSV}"),
        re.compile(rf"reviews_(\w+?)(?:_5)?()\.json{_GZ}"),
        "meta_{}.json",
        ("user", "item", "rating", "timestamp"),
        Fields("user", "item", "rating", "timestamp"),
        _2014_FIELDS,
        "asin",
        item_2014,
    ),
    Edition(
        2018,
        "s",
        re.compile(rf"(?!ratings_|meta_)(\w+?)(){_CSV}"),
        re.compile(rf"(?!reviews_|meta_)(\w+?)(?:_5)?()\.json{_GZ}"),
        "meta_{}.json",
        ("item", "user", "rating", "timestamp"),
        Fields("user", "item", "rating", "timestamp"),
        _2014_FIELDS,
        "asin",
        item_2018,
    ),
    Edition(
        2023,
        "ms",
        re.compile(rf"(?!ratings_|meta_)(\w+?)(?:\.({'|'.join(PARTS)}))?{_CSV}"),
        re.compile(rf"(?!meta_)(\w+?)()\.jsonl{_GZ}"),
        "meta_{}.jsonl",
        ("user_id", "parent_asin", "rating", "timestamp", "history"),
        _2023_FIELDS,
        _2023_FIELDS,
        "parent_asin",
        item_2023,
    ),
)


@dataclass(frozen=True)
class AmazonFiles:
    """The interaction files of one category in one format."""

    edition: Edition
    category: str
    files: tuple[Path, ...]  # parts in the order train, valid, test


def find_amazon(path: Path) -> list[AmazonFiles]:
    """Return every way to read a folder (or one file) as an Amazon edition; it may be none or several."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    readings = []
    for edition in EDITIONS:
        for pattern in (edition.csv, edition.reviews):
            by_category: dict[str, list[tuple[int, Path]]] = {}
            for file in files:
                match = pattern.fullmatch(file.name)
                if match and file.is_file() and _is_of(edition, file):
                    part = PARTS.index(match[2]) if match[2] else 0
                    by_category.setdefault(match[1], []).append((part, file))
            readings += [
                AmazonFiles(edition, name, tuple(f for _, f in sorted(parts))) for name, parts in by_category.items()
            ]
    return readings


def _is_of(edition: Edition, file: Path) -> bool:
    """Whether a file's first line fits this edition; names alone do not distinguish 2018 from 2023."""
    head = first_line(file)
    if edition.csv.fullmatch(file.name):
        values = head.split(",")
        if edition.year == 2023 and values[:4] == list(edition.columns[:4]):
            return True
        places = dict(zip(edition.columns, values))
        item, time = places.get(edition.csv_fields.item, ""), places.get("timestamp", "")
        # Longer numbers are no times, and Python refuses to convert the longest.
        unit = "ms" if time.isdecimal() and len(time) < 20 and int(time) >= MILLISECONDS_FROM else "s"
        width = len(values) == 4 or (edition.year == 2023 and len(values) == 5)
        return width and bool(_ASIN.fullmatch(item)) and time.isdecimal() and unit == edition.time_unit
    return edition.review_fields.user in head and edition.review_fields.item in head


def open_amazon(files: AmazonFiles, on_error: OnError) -> Source:
    """Open one category.

    Items come from the metadata beside the interactions; without metadata, no item has a title.

    Args:
        files: a result of `find_amazon`.
        on_error: handler of malformed rows.

    Raises:
        DataError: item and user columns are swapped.
    """
    edition, counts = files.edition, Counter[str]()
    name = edition.metadata.format(files.category)
    folder = files.files[0].parent
    metadata = present(folder, name)
    read = [partial(_read, edition, file, on_error) for file in files.files]

    def items() -> Iterator[pl.DataFrame]:
        if metadata is None:
            return
        lines = objects(metadata, on_error, key=edition.item_key, parse=parser_of(metadata))
        rows = (edition.read_item(line, counts) for line in lines)
        yield from item_batches(metadata, rows, None, counts)

    return Source(
        f"amazon-{edition.year}/{files.category}",
        domain_of(files.category),
        edition.time_unit,
        lambda: in_order(one() for one in read),
        items,
        (*files.files, *([metadata] if metadata else [])),
        () if metadata else (NO_ITEMS,),
        counts,
    )


def domain_of(category: str) -> str:
    """Return the domain of a category."""
    domains = {"Books": "books", "Kindle_Store": "books", "Video_Games": "games", "Movies_and_TV": "films"}
    return domains.get(category, "products")


def _read(edition: Edition, file: Path, on_error: OnError) -> Iterator[pl.DataFrame]:
    if not edition.csv.fullmatch(file.name):
        return read_json_lines(file, edition.review_fields, on_error, parse=parser_of(file))
    head = first_line(file).split(",")
    header = head[:2] == list(edition.columns[:2])
    form = LineFormat(edition.columns[: len(head)], ",", header=header, quoted=True)
    return _not_swapped(file, form, read_delimited(file, form, edition.csv_fields, on_error))


def _not_swapped(file: Path, form: LineFormat, batches: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Raise if users and items are swapped. Item ids have ten characters and most user ids more; editions differ in
    the order of the two columns.
    """
    for frame in batches:
        users, items = (frame[column].str.len_chars() for column in ("user", "item"))
        if frame.height and (items.max() != 10 or items.min() != 10) and users.min() == users.max() == 10:
            raise DataError(
                f"{file} must have the columns {','.join(form.columns)}, but users and items look swapped "
                f"({frame['user'][0]!r}, {frame['item'][0]!r}); name the file as its edition does: "
                f"ratings_X.csv (2014: user,item) or X.csv (2018: item,user)"
            )
        yield frame
