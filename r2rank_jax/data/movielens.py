"""Reader of MovieLens in RecBole's atomic files: tab-separated, one typed header line (`user_id:token`).

Traps of the ML-100K copy, handled here: years are stripped from titles (so titles repeat), "Usual Suspects, The",
alternative titles in brackets, HTML entities, and item 267, whose title is the placeholder "unkonwn".
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from r2rank_jax.data.errors import DataError
from r2rank_jax.data.tables import Interactions, Items

PLACEHOLDER_TITLES = {"unkonwn", "unknown", ""}
ARTICLES = "The|A|An|Les|Le|La|L'|Il|I|Lo|Der|Die|Das|Det|Den|El|Los|Las|Una|Un|O|Os"
_TRAILING_ARTICLE = re.compile(rf"^(.+), ({ARTICLES})$")
_ALTERNATIVE = re.compile(r"\s*\([^()]*\)$")
_INTERACTION_FIELDS = ("user_id:token", "item_id:token", "rating:float", "timestamp:float")
_ITEM_FIELDS = ("item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq")


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
    items = read_items(item_path)
    dense_item = {name: i for i, name in enumerate(items.source_id)}
    users: list[str] = []
    rows: list[tuple[int, float, int]] = []
    seen: dict[tuple[str, str], int] = {}
    for line, (user, item, rating, timestamp) in _records(inter_path, _INTERACTION_FIELDS):
        if item not in dense_item:
            raise DataError(
                f"{inter_path}, line {line}: item_id must be one of the {len(items)} in {item_path.name}, "
                f"got {item!r}; one of the two files is incomplete: fetch both again"
            )
        first = seen.setdefault((user, item), line)
        if first != line:
            raise DataError(
                f"{inter_path}, line {line}: a user rates an item once, but user {user!r} rated item "
                f"{item!r} on line {first} already; keep one of the two lines"
            )
        users.append(user)
        rows.append(
            (
                dense_item[item],
                _number(inter_path, line, "rating", rating),
                int(_number(inter_path, line, "timestamp", timestamp)),
            )
        )
    if not rows:
        raise DataError(f"{inter_path}: expected interactions after the header, got none; fetch the file again")
    dense_user = {name: u for u, name in enumerate(_by_number(set(users)))}
    item_column, rating_column, timestamp_column = zip(*rows, strict=True)
    interactions = Interactions(
        user=np.array([dense_user[user] for user in users], np.int32),
        item=np.array(item_column, np.int32),
        rating=np.array(rating_column, np.float32),
        timestamp=np.array(timestamp_column, np.int64),
        order=np.arange(len(rows), dtype=np.int32),
    )
    return interactions, items


def read_items(path: Path) -> Items:
    """Read an `.item` file; titles are cleaned by `clean_title`.

    Raises:
        DataError: the file is malformed or cut off, or an id repeats.
    """
    found: dict[str, tuple[str, str, tuple[str, ...]]] = {}
    for line, (item, title, year, genres) in _records(path, _ITEM_FIELDS):
        if item in found:
            raise DataError(f"{path}, line {line}: item_id {item!r} repeats; ids must be unique: keep one line")
        kinds = tuple(html.unescape(genre) for genre in genres.split() if genre != "unknown")
        year = year.strip() if year.strip().isdigit() else ""
        found[item] = (clean_title(title), year, kinds)
    if not found:
        raise DataError(f"{path}: expected items after the header, got none; fetch the file again")
    ids = tuple(_by_number(set(found)))
    titles, years, kinds_of = zip(*(found[item] for item in ids), strict=True)
    return Items(ids, titles, years, kinds_of)


def clean_title(title: str) -> str:
    """Unescape HTML, name the placeholder, drop an alternative title in brackets, put the article first.

    Brackets hold the original or a translated title in 82 of ML-100K's items. Every prompt would pay for its tokens.

    >>> clean_title("Horseman on the Roof, The (Hussard sur le toit, Le)")
    'The Horseman on the Roof'
    """
    text = " ".join(html.unescape(title).split())
    if text.lower() in PLACEHOLDER_TITLES:
        return "Unknown film"
    text = _ALTERNATIVE.sub("", text) or text
    match = _TRAILING_ARTICLE.match(text)
    if not match:
        return text
    name, article = match.groups()
    return f"{article}{name}" if article.endswith("'") else f"{article} {name}"


def _records(path: Path, fields: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield (line number from 1, the values of `fields` in this order) for every line after the header."""
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: expected UTF-8 text, got byte {error.object[error.start]:#04x}; convert "
            f"or fetch again"
        ) from error
    header = lines[0].rstrip("\r").split("\t")
    missing = [field for field in fields if field not in header]
    if missing:
        raise DataError(
            f"{path}, line 1: expected a tab-separated header with {', '.join(fields)}, got "
            f"{lines[0][:120]!r}; give RecBole's atomic file with {missing[0]}"
        )
    columns = [header.index(field) for field in fields]
    # A complete file ends in a line end, so the last piece is empty. A last line without one may hold a
    # shortened number that still parses: refuse it rather than read 881250949 as 88125.
    if lines[-1] != "":
        raise DataError(
            f"{path}, line {len(lines)}: expected {len(header)} fields and a line end, got "
            f"{lines[-1][:120]!r} at the end of the file; it was cut off: fetch it again (or add the line "
            f"end if the line is whole)"
        )
    for number, text in enumerate(lines[1:-1], start=2):
        values = text.rstrip("\r").split("\t")
        if len(values) != len(header):
            raise DataError(
                f"{path}, line {number}: expected {len(header)} tab-separated fields ({', '.join(header)}), "
                f"got {len(values)}: {text[:120]!r}; fetch the file again or mend the line"
            )
        yield number, tuple(values[column] for column in columns)


def _number(path: Path, line: int, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}, line {line}: {name} must be a number, got {text!r}; mend the line")
    return value


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
