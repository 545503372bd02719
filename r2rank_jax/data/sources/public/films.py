"""Normalize MovieLens titles: remove the year, move the article to the front, drop a second title in parentheses."""

from __future__ import annotations

import re
from collections import Counter

from r2rank_jax.data.sources.rows.items import ENTITIES, one_line, unescaped

PLACEHOLDER_TITLES = {"unkonwn", "unknown", ""}  # item 267 of MovieLens-100K, in RecBole's spelling and its own
ARTICLES = "The|A|An|Les|Le|La|L'|Il|I|Lo|Der|Die|Das|Det|Den|El|Los|Las|Una|Un|O|Os"
_TRAILING_ARTICLE = re.compile(rf"^(.+), ({ARTICLES})$")
_ALTERNATIVE = re.compile(r"\s*\([^()]*\)$")
_YEAR = re.compile(r"\s*\((\d{4})(?:[-–]\s?(?:\d{4})?)?\)\s*(\((?:TV|V)\))?$")  # "(1995)", "(1975-1979)", "(1995) (V)"


def without_year(title: str) -> tuple[str, str]:
    """Remove the year from the end of a title.

    Returns:
        The title, and the year as four digits, or "" if there is none.

    >>> without_year("Toy Story (1995)")
    ('Toy Story', '1995')
    """
    match = _YEAR.search(title.rstrip())
    return (title.rstrip()[: match.start()], match.group(1)) if match else (title.strip(), "")


def film_title(title: str, counts: Counter[str]) -> str:
    """Unescape HTML (counted), drop an alternative title in parentheses, put the article first; "" for a placeholder.

    In 82 items of ML-100K, parentheses hold the original or a translated title, which would cost tokens in every
    prompt.

    >>> film_title("Horseman on the Roof, The (Hussard sur le toit, Le)", Counter())
    'The Horseman on the Roof'
    """
    shown = unescaped(title)
    counts[ENTITIES] += shown != title
    text = one_line(shown)
    if text.lower() in PLACEHOLDER_TITLES:
        return ""
    text = _ALTERNATIVE.sub("", text) or text
    match = _TRAILING_ARTICLE.match(text)
    if not match:
        return text
    name, article = match.groups()
    return f"{article}{name}" if article.endswith("'") else f"{article} {name}"
