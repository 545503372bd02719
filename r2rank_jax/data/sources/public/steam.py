"""Steam reviews and games: one Python 2 literal per line (u'...'), gzipped.

Pitfalls: only the day is known, so many of a user's reviews tie in time; there is no rating; `user_id` is missing from
many rows, so the user is `username`; two games have no id; some games have an `app_name` but no title.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from r2rank_jax.data.sources.rows.interactions import Fields, in_order, read_json_lines
from r2rank_jax.data.sources.rows.items import ItemRow, clean_text, item_batches
from r2rank_jax.data.sources.rows.objects import as_list, as_value, objects, parser_of
from r2rank_jax.data.sources.rows.reading import required
from r2rank_jax.data.sources.rows.times import TimeFormat
from r2rank_jax.data.sources.schema import DAYS_ONLY, NO_RATINGS, OnError, Source

REVIEWS, GAMES = "steam_reviews.json", "steam_games.json"
DETAILS = ("developer", "publisher", "price")
_FIELDS = Fields("username", "product_id", None, "date", TimeFormat(dates=True))


def open_steam(folder: Path, on_error: OnError) -> Source:
    """Open a folder with the reviews and the games, gzipped or not.

    Raises:
        DataError: one of the two files is missing.
    """
    reviews, games = (required(folder, name, (REVIEWS, GAMES)) for name in (REVIEWS, GAMES))
    counts: Counter[str] = Counter()

    def interactions() -> Iterator[pl.DataFrame]:
        return in_order([read_json_lines(reviews, _FIELDS, on_error, parse=parser_of(reviews))])

    def rows() -> Iterator[ItemRow]:
        for parsed in objects(games, on_error, key="id", parse=parser_of(games)):
            game = parsed.fields
            released = re.search(r"\b(19|20)\d\d\b", str(game.get("release_date") or ""))
            kinds = as_list(game.get("genres")) or as_list(game.get("tags"))
            details = ((name, clean_text(str(game.get(name) or ""), counts)) for name in DETAILS)
            yield ItemRow(
                str(as_value(game, "id")),
                clean_text(str(game.get("title") or game.get("app_name") or ""), counts),
                released.group() if released else "",
                tuple(clean_text(str(kind), counts) for kind in kinds),
                tuple(detail for detail in details if detail[1]),
                parsed.line,
                parsed.text,
            )

    return Source(
        "steam",
        "games",
        "s",
        interactions,
        lambda: item_batches(games, rows(), None, counts),
        (reviews, games),
        (NO_RATINGS, DAYS_ONLY),
        counts,
    )
