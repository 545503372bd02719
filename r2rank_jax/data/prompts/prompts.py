"""The text of a prompt. Functions here take and return plain text. No function takes labels, so none can leak them.

A prompt has three segments, which are tokenized separately: a prefix per user, a suffix per candidate, and the
rationale. Titles appear at the start of a line or after ": ", so that a tokenizer trained on these texts encodes a
title the same way in the history, as a candidate, and in a rationale.

Whatever an item's text contains, a prompt is one line of instruction, one line per interaction, one line for the
candidate, and one closing mark ("Reason:" or "Score:"). Fields follow the title in a fixed order, and no item text can
imitate a field: see `item_text.as_data`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from r2rank_jax.data.prompts.item_text import TITLE_CHARACTERS as TITLE_CHARACTERS
from r2rank_jax.data.prompts.item_text import as_data as as_data
from r2rank_jax.data.prompts.templates import FILMS_1, Template
from r2rank_jax.errors import DataError

INSTRUCTION, REASON = FILMS_1.instruction, FILMS_1.mark
UNRATED = "-"
GENRES = 16  # maximum number of genres shown for a candidate

_UNITS = (("hour", 3600, 24), ("day", 86_400, 14), ("week", 604_800, 9), ("month", 2_629_746, 24))
_YEAR = ("year", 31_556_952)

Details = Sequence[tuple[str, str]]  # (name, value): brand, author, price, developer, city, ...


class Shown(NamedTuple):
    """One interaction as a prompt shows it."""

    title: str
    year: str  # "" where unknown
    rating: float | None  # None if the source has none
    before: str = ""  # as returned by `time_words`; "" if the time is unknown


def prefix_text(history: Sequence[tuple[str, str, float | None] | Shown], template: Template = FILMS_1) -> str:
    """Instruction and history: the part that all candidates of a user share.

    Args:
        history: (title, year or "", rating[, time words]) of each shown interaction, oldest first.
        template: gives the words of the prompt.

    Raises:
        DataError: the history is empty.

    >>> prefix_text([("Toy Story", "1995", 4.0)])
    'Films seen, oldest first, rated 1 to 5; then a candidate:\\nToy Story (1995) 4\\n'
    """
    require_history(len(history))
    lines = [history_line(*Shown(*shown), template) for shown in history]
    return template.instruction + "".join(lines)


def history_line(title: str, year: str, rating: float | None, before: str = "", template: Template = FILMS_1) -> str:
    """One interaction as one line, line end included. It always shows a rating or a dash: "Speed 2" is not rated 2."""
    unrated = rating is None or math.isnan(rating)
    time = f", {before}" if template.times and before else ""
    return f"{named(title, year, template)} {UNRATED if unrated else format(rating, 'g')}{time}\n"


def suffix_text(
    title: str,
    year: str,
    genres: Sequence[str],
    details: Details = (),
    *,
    template: Template = FILMS_1,
    reasoning: bool = True,
) -> str:
    """One candidate, up to where its rationale starts or, without reasoning, where the head reads.

    >>> suffix_text("Titanic", "1997", ("Drama", "Romance"))
    'Titanic (1997); Drama Romance\\nReason:'
    """
    fields = [named(title, year, template)]
    kinds = [kind for kind in map(as_data, genres[:GENRES]) if kind]
    if template.between_kinds != " ":
        kinds = [" ".join(kind.replace(",", " ").split()) for kind in kinds]
    if kinds:
        fields.append(template.kinds + template.between_kinds.join(kinds))
    words = dict(template.details)
    fields += [words[name] + as_data(value) for name, value in shown_details(details, template)]
    return "; ".join(fields) + "\n" + (template.mark if reasoning else template.mark_without_reasoning)


def shown_details(details: Details, template: Template) -> Details:
    """The details that a candidate shows, in the template's order: for each name, the first value with visible text."""
    first: dict[str, str] = {}
    for name, value in details:
        if as_data(value):
            first.setdefault(name, value)
    return [(name, first[name]) for name, _ in template.details if name in first]


def time_words(seconds: int) -> str:
    """How long before the list an interaction happened, in coarse units, so that few distinct phrases occur.

    Few phrases are easier to learn and to cache.

    Raises:
        DataError: the interaction happened after the list.

    >>> time_words(3 * 86_400 + 7)
    '3 days before'
    """
    if seconds < 0:
        raise DataError(f"a history must precede its list, got an interaction {-seconds} s after it; sort by time")
    if seconds < _UNITS[0][1]:
        return "minutes before"
    name, size = next(((name, size) for name, size, limit in _UNITS if seconds < limit * size), _YEAR)
    return f"{seconds // size} {name}{'s' if seconds >= 2 * size else ''} before"


def require_history(interactions: int) -> None:
    """Require that a user has a history to reason from.

    Raises:
        DataError: there are no interactions.
    """
    if interactions < 1:
        raise DataError(
            "a prompt needs at least 1 interaction before the positive, got a user with no history; leave "
            "the user out (data prepare does) or rank by popularity"
        )


def named(title: str, year: str, template: Template = FILMS_1) -> str:
    """Title with its year, as data; the template's words where the title is missing."""
    shown, when = as_data(template.title_or_missing(title)), as_data(year)
    return f"{shown} ({when})" if when else shown
