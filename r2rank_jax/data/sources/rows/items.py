"""Rows of an item table -> batches, with counts of what was cleaned."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl

from r2rank_jax.data.sources.rows.ids import canonical_id, fault_of_id
from r2rank_jax.data.sources.rows.objects import joined_surrogates
from r2rank_jax.data.sources.schema import ITEM_SCHEMA, OnError

ITEM_ROWS = 50_000  # of a batch; few, because titles and details are long
ENTITIES, MARKUP, UNTITLED, NO_ID, REPEATED = (
    "texts with HTML entities",
    "texts with HTML markup",
    "items without a title",
    "item rows without a usable id: left out",
    "item rows that repeat an id: the first was kept",
)
# HTML tags left over from web pages, complete or cut off at the end. "<3", "a < b" and "<pad>" are not tags.
_TAG = re.compile(
    r"</?(?:a|b|br|div|em|font|h[1-6]|hr|i|img|li|ol|p|script|small|span|strong|style|sub|sup|table|td|th|tr|u|ul)\b"
    r"[^<>]*(?:>|$)|<!--.*?(?:-->|$)",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class ItemRow(NamedTuple):
    """One item; `line` and `text` are its location in its file."""

    item: str
    title: str
    year: str = ""
    genres: tuple[str, ...] = ()
    details: tuple[tuple[str, str], ...] = ()
    line: int = 0
    text: str = ""


def clean_text(text: str, counts: Counter[str]) -> str:
    """Resolve HTML entities and remove remains of markup, counting both; collapse blanks and control characters.

    >>> clean_text('Tom &amp;amp; Jerry <span id="x', Counter())
    'Tom & Jerry'
    """
    shown = unescaped(text)
    if shown != text:
        counts[ENTITIES] += 1
    bare = _TAG.sub(" ", shown) if "<" in shown else shown
    if bare != shown:
        counts[MARKUP] += 1
    return one_line(bare)


def unescaped(text: str) -> str:
    """Resolve HTML entities until none is left, because some sources escape them twice."""
    while "&" in text and (shown := html.unescape(text)) != text:
        text = shown
    return text


def one_line(text: str) -> str:
    """Collapse runs of blanks and control characters into single blanks, and strip the ends.

    >>> one_line("Tom\\x00 and\\n Jerry ")
    'Tom and Jerry'
    """
    return " ".join(_CONTROL.sub(" ", joined_surrogates(text)).split())


def item_batches(
    path: Path, rows: Iterable[ItemRow], on_error: OnError | None, counts: Counter[str]
) -> Iterator[pl.DataFrame]:
    """Collect rows into batches of ITEM_SCHEMA, with canonical ids.

    Args:
        path: file of the rows.
        rows: rows in the file's order.
        on_error: handler of rows with a repeated id. None for a source that is known to repeat ids: the first row of an
            id is kept, and the others are counted.
        counts: cleared first; the reader of the rows then adds what it cleans.
    """
    counts.clear()
    seen: set[str] = set()
    batch: list[ItemRow] = []
    for row in rows:
        item = canonical_id(row.item)
        if fault := fault_of_id("the id of an item", item):
            if on_error is None:
                counts[NO_ID] += 1
            else:
                on_error(path, row.line, fault, row.text)
            continue
        row = row._replace(item=item)
        if item in seen:
            if on_error is None:
                counts[REPEATED] += 1
            else:
                on_error(path, row.line, f"item_id {row.item!r} repeats; ids must be unique: keep one line", row.text)
            continue
        seen.add(row.item)
        counts[UNTITLED] += not row.title
        batch.append(row)
        if len(batch) == ITEM_ROWS:
            yield _frame(batch)
            batch = []
    yield _frame(batch)


def _frame(rows: list[ItemRow]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "item": [row.item for row in rows],
            "title": [row.title for row in rows],
            "year": [row.year for row in rows],
            "genres": [list(row.genres) for row in rows],
            "details": [[{"name": name, "value": value} for name, value in row.details] for row in rows],
        },
        schema=ITEM_SCHEMA,
    )
