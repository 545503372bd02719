"""One object of Amazon's metadata -> one row of the item table, for each edition.

Pitfalls: titles are often missing; titles, categories and prices contain HTML entities, `<span id` and scripts of the
web page; ids repeat (the first is kept).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from r2rank_jax.data.sources.rows.items import MARKUP, ItemRow, clean_text
from r2rank_jax.data.sources.rows.objects import ParsedObject, as_list, as_value

ReadItem = Callable[[ParsedObject, Counter[str]], ItemRow]
# Style sheets and scripts that the 2018 edition holds in place of text.
_SCRIPT = re.compile(r"getTime\(\)|\{\s*[a-z-]+\s*:|^\s*var ")
_PRICE = re.compile(r"\$?[\d,]+(?:\.\d+)?(?:\s*-\s*\$?[\d,]+(?:\.\d+)?)?")
_YEAR = re.compile(r"(?<!\d)(?:19|20)\d{2}(?!\d)")


def item_2014(metadata: ParsedObject, counts: Counter[str]) -> ItemRow:
    """Read asin, title, price, brand, categories [[...], ...]."""
    item = metadata.fields
    kinds = [kind for path in as_list(item.get("categories")) for kind in as_list(path)]
    return _row(metadata, "asin", kinds, ("brand", "price"), counts)


def item_2018(metadata: ParsedObject, counts: Counter[str]) -> ItemRow:
    """Read asin, title, price ("$7.86" or ""), brand, category [...]."""
    return _row(metadata, "asin", as_list(metadata.fields.get("category")), ("brand", "price"), counts)


def item_2023(metadata: ParsedObject, counts: Counter[str]) -> ItemRow:
    """Read parent_asin, title, author (an object, for books), store, price, categories [...], details {...}."""
    kinds = as_list(metadata.fields.get("categories"))
    return _row(metadata, "parent_asin", kinds, ("author", "store", "price"), counts)


def _row(
    metadata: ParsedObject, key: str, kinds: Iterable[Any], details: tuple[str, ...], counts: Counter[str]
) -> ItemRow:
    item = metadata.fields
    shown = [(name, _detail(name, item.get(name), counts)) for name in details]
    named = item.get("details")
    released = (
        [str(named.get(name) or "") for name in ("Release date", "Publication date")] if isinstance(named, dict) else []
    )
    year = _YEAR.search(" ".join(released))
    genres = dict.fromkeys(_clean(kind, counts) for kind in kinds)
    return ItemRow(
        str(as_value(item, key)),
        _clean(item.get("title"), counts),
        year.group() if year else "",
        tuple(genre for genre in genres if genre),
        tuple(detail for detail in shown if detail[1]),
        metadata.line,
        metadata.text,
    )


def _clean(value: Any, counts: Counter[str]) -> str:
    if value is None:
        return ""
    text = str(value)
    if _SCRIPT.search(text):
        counts[MARKUP] += 1
        return ""
    return clean_text(text, counts)


def _detail(name: str, value: Any, counts: Counter[str]) -> str:
    if isinstance(value, dict):
        value = value.get("name")
    if name != "price":
        return _clean(value, counts)
    text = "" if value is None else str(value).strip()
    if text and not _PRICE.fullmatch(text):
        counts["prices that are none"] += 1
        return ""
    return text
