"""The words of a prompt. Pure text: no ids, and no labels, which are not an argument of anything here.

A prompt is three segments, tokenised apart: a prefix per user, a suffix per candidate, then the rationale.
Titles stand at the start of a line or after ": ", so that a tokenizer trained on these texts writes a title
the same way in the history, as a candidate, and in a rationale.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from r2rank_jax.data.errors import DataError

INSTRUCTION = "Films seen, oldest first, rated 1 to 5; then a candidate:\n"
REASON = "Reason:"
TITLE_CHARACTERS = 120  # catalogues hold titles of 600 and more

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def prefix_text(history: Sequence[tuple[str, str, float]]) -> str:
    """Instructions and history, the part that all candidates of a user share.

    Args:
        history: (title, year or "", rating) of each shown interaction, oldest first.

    Raises:
        DataError: the history is empty.

    >>> prefix_text([("Toy Story", "1995", 4.0)])
    'Films seen, oldest first, rated 1 to 5; then a candidate:\\nToy Story (1995) 4\\n'
    """
    require_history(len(history))
    return INSTRUCTION + "".join(history_line(*shown) for shown in history)


def history_line(title: str, year: str, rating: float) -> str:
    """One interaction; ends the line."""
    return f"{named(title, year)} {rating:g}\n"


def suffix_text(title: str, year: str, genres: Sequence[str]) -> str:
    """One candidate, ending where its rationale starts.

    >>> suffix_text("Titanic", "1997", ("Drama", "Romance"))
    'Titanic (1997); Drama Romance\\nReason:'
    """
    kinds = "; " + " ".join(map(as_data, genres)) if genres else ""
    return f"{named(title, year)}{kinds}\n{REASON}"


def as_data(text: str) -> str:
    """Item text as data: one line, no control characters, one space at a time, of bounded length."""
    flat = " ".join(_CONTROL.sub(" ", text).split())
    return flat if len(flat) <= TITLE_CHARACTERS else flat[: TITLE_CHARACTERS - 1] + "…"


def require_history(interactions: int) -> None:
    """Raise unless a user has something to reason from.

    Raises:
        DataError: no interactions.
    """
    if interactions < 1:
        raise DataError(
            "a prompt needs at least 1 interaction before the positive, got a user with no history; leave "
            "the user out (data prepare does) or rank by popularity"
        )


def named(title: str, year: str) -> str:
    """Title with its year, as data."""
    return f"{as_data(title)} ({as_data(year)})" if year else as_data(title)
