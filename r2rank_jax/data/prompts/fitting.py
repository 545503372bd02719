"""Shorten prompts to a token limit: which parts are dropped first, and which are never dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from r2rank_jax.data.prompts import prompts
from r2rank_jax.data.prompts.prompts import Details, Shown
from r2rank_jax.data.prompts.templates import FILMS_1, Template
from r2rank_jax.data.prompts.tokenizer import Ids, TextTokenizer
from r2rank_jax.errors import DataError


def fit_prefix(
    tokenizer: TextTokenizer,
    shown: Sequence[tuple[str, str, float | None] | Shown],
    limit: int,
    counts: Counter[str],
    template: Template = FILMS_1,
) -> Ids:
    """Ids of a prefix of at most `limit` tokens.

    The oldest interactions are dropped first. If the last interaction alone is too long, its title is cut at the end.

    Args:
        tokenizer: any tokenizer.
        shown: (title, year, rating[, time words]), oldest first.
        limit: maximum number of tokens.
        counts: updated with what was cut.
        template: gives the words of the prompt.

    Raises:
        DataError: the history is empty, or the last interaction does not fit even with a title of one letter.
    """
    prompts.require_history(len(shown))

    def ids_of(history: Sequence[tuple[str, str, float | None] | Shown]) -> Ids:
        return tokenizer.opening + tokenizer.encode([prompts.prefix_text(history, template)])[0]

    for first in range(len(shown)):
        ids = ids_of(shown[first:])
        if len(ids) <= limit:
            count_prefix(counts, first)
            return ids
    last = Shown(*shown[-1])
    for shorter in _shortened(template.title_or_missing(last.title)):  # a single long title must not stop a run
        ids = ids_of([last._replace(title=shorter)])
        if len(ids) <= limit:
            count_prefix(counts, len(shown) - 1)
            counts["prefixes_with_cut_title"] += 1
            return ids
    raise DataError(
        f"data.prefix_tokens must hold the instruction and one interaction, {len(ids)} tokens, got {limit}; raise "
        "data.prefix_tokens"
    )


def fit_suffix(
    tokenizer: TextTokenizer,
    title: str,
    year: str,
    genres: Sequence[str],
    limit: int,
    counts: Counter[str],
    *,
    details: Details = (),
    template: Template = FILMS_1,
    reasoning: bool = True,
) -> Ids:
    """Ids of a suffix of at most `limit` tokens.

    Details are dropped first, the last one first; then genres; then the title is cut at the end.

    Raises:
        DataError: the suffix does not fit even with a title of one letter.
    """

    def ids_of(title: str, genres: Sequence[str], details: Details) -> Ids:
        text = prompts.suffix_text(title, year, genres, details, template=template, reasoning=reasoning)
        return tokenizer.encode([text])[0] + tokenizer.closing

    details, genres = prompts.shown_details(details, template), genres[: prompts.GENRES]
    for kept in range(len(details), 0, -1):
        ids = ids_of(title, genres, details[:kept])
        if len(ids) <= limit:
            counts["suffixes_without_some_details"] += kept < len(details)
            return ids
    if details:
        counts["suffixes_without_some_details"] += 1
    for kept in range(len(genres), -1, -1):
        ids = ids_of(title, genres[:kept], ())
        if len(ids) <= limit:
            counts["suffixes_without_some_genres"] += kept < len(genres)
            return ids
    for shorter in _shortened(template.title_or_missing(title)):
        ids = ids_of(shorter, (), ())
        if len(ids) <= limit:
            counts["suffixes_with_cut_title"] += 1
            return ids
    raise DataError(
        f"data.suffix_tokens must hold the words around a title, at least {len(ids)} tokens, got {limit}; raise "
        "data.suffix_tokens"
    )


def _shortened(title: str) -> Iterator[str]:
    """The title without its last letter, without its last two, and so on, down to its first letter."""
    shown = prompts.as_data(title)
    for characters in range(max(len(shown) - 1, 1), 0, -1):
        yield shown[:characters]


def count_prefix(counts: Counter[str], dropped: int) -> None:
    """Count one prefix from which `dropped` interactions were dropped."""
    counts["prefixes"] += 1
    counts["prefix_interactions_dropped"] += dropped
