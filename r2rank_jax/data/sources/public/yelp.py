"""Yelp's open data set: one JSON object per line.

Pitfalls: times are texts ("2018-07-07 22:09:11"; only days in older editions); `categories` is a comma-separated text
or null.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from r2rank_jax.data.sources.rows.interactions import Fields, in_order, read_json_lines
from r2rank_jax.data.sources.rows.items import ItemRow, clean_text, item_batches
from r2rank_jax.data.sources.rows.objects import as_value, objects
from r2rank_jax.data.sources.rows.reading import first_line, required
from r2rank_jax.data.sources.rows.times import TimeFormat
from r2rank_jax.data.sources.schema import DAYS_ONLY, OnError, Source

REVIEWS, BUSINESSES = "yelp_academic_dataset_review.json", "yelp_academic_dataset_business.json"
_DAY_ALONE = re.compile(r'"date":\s*"\d{4}-\d\d-\d\d"')


def open_yelp(folder: Path, on_error: OnError) -> Source:
    """Open a folder with Yelp's reviews and businesses, gzipped or not.

    Raises:
        DataError: one of the two files is missing.
    """
    reviews, businesses = (required(folder, name, (REVIEWS, BUSINESSES)) for name in (REVIEWS, BUSINESSES))
    fields = Fields("user_id", "business_id", "stars", "date", TimeFormat(dates=True))
    days_only = _DAY_ALONE.search(first_line(reviews)) is not None
    counts: Counter[str] = Counter()

    def interactions() -> Iterator[pl.DataFrame]:
        return in_order([read_json_lines(reviews, fields, on_error)])

    def rows() -> Iterator[ItemRow]:
        for parsed in objects(businesses, on_error, key="business_id"):
            place = parsed.fields
            kinds = (clean_text(kind, counts) for kind in str(place.get("categories") or "").split(","))
            details = ((name, clean_text(str(place.get(name) or ""), counts)) for name in ("city", "state"))
            yield ItemRow(
                str(as_value(place, "business_id")),
                clean_text(str(place.get("name") or ""), counts),
                "",
                tuple(kind for kind in kinds if kind),
                tuple(detail for detail in details if detail[1]),
                parsed.line,
                parsed.text,
            )

    return Source(
        "yelp",
        "places",
        "s",
        interactions,
        lambda: item_batches(businesses, rows(), on_error, counts),
        (reviews, businesses),
        (DAYS_ONLY,) if days_only else (),
        counts,
    )
