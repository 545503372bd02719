"""Changed rationales: exchanged between items, deleted, halved, only their verdict, all but their verdict.

A verdict is the last part of a rationale: the words after its last separator ";" or, without one, its last word.
Changes act on tokens, not on text, because a policy may spell a word with other tokens than the tokenizer would. Text
is encoded anew only where a part begins inside a token.

Every changed rationale ends with a stop token, as if the policy had ended it there; if T tokens leave no room for one,
it has none.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from r2rank_jax.data.prepared.tables import Array
from r2rank_jax.data.prompts.tokenizer import Ids, TextTokenizer

SEPARATOR = ";"
_END = re.compile(rf"[\s{SEPARATOR}]*\Z")  # separators and blanks, which are any white space that a policy may write
_LAST_WORD = re.compile(r"\s*\S+\Z")


def lengths(tokens: Array, stop: int) -> Array:
    """int64 [...]: tokens of each rationale [..., T] up to its stop token, which counts; T if it has none."""
    ends = tokens == stop
    if not tokens.shape[-1]:
        return np.zeros(tokens.shape[:-1], np.int64)
    return np.where(ends.any(axis=-1), ends.argmax(axis=-1) + 1, tokens.shape[-1])


def exchanged(values: Array, partners: Array) -> Array:
    """Give every item what belongs to another item of its list.

    Args:
        values: [L, N, ...], rationales or scores.
        partners: int [L, N], the item whose value each item receives.
    """
    return np.take_along_axis(values, partners.reshape(partners.shape + (1,) * (values.ndim - 2)), axis=1)


def changed_rationales(tokens: Array, partners: Array, tokenizer: TextTokenizer) -> dict[str, Array]:
    """All variants of some rationales.

    Args:
        tokens: int32 [L, N, G, T].
        partners: int [L, N], from `derangements`; all G rationales of an item are exchanged together.
        tokenizer: of the rationales.

    Returns:
        Name -> int32 [L, N, G, T]: own, exchanged, deleted, first_half, verdict_only, verdict_left_out.
    """

    def edited(edit: Callable[[Ids], Ids]) -> Array:
        return edit_rationales(tokens, edit, stop=tokenizer.stop, pad=tokenizer.pad)

    return {
        "own": tokens,
        "exchanged": exchanged(tokens, partners),
        "deleted": edited(lambda words: ()),
        "first_half": edited(first_half),
        "verdict_only": edited(lambda words: split_verdict(tokenizer, words)[1]),
        "verdict_left_out": edited(lambda words: split_verdict(tokenizer, words)[0]),
    }


def edit_rationales(tokens: Array, edit: Callable[[Ids], Ids], *, stop: int, pad: int) -> Array:
    """Change the words of every rationale.

    Args:
        tokens: int32 [..., T].
        edit: the words of a rationale, without its stop token -> the new words. Called once per distinct rationale.
        stop: id of the stop token, which is put after the new words.
        pad: id that fills the rest.

    Returns:
        int32 [..., T]; new words beyond T tokens are cut off.
    """
    width = tokens.shape[-1]
    distinct, place = np.unique(tokens.reshape(-1, width), axis=0, return_inverse=True)
    changed = np.full(distinct.shape, pad, tokens.dtype)
    for row, words in enumerate(words_of(distinct, stop)):
        new = (*edit(words), stop)[:width]
        changed[row, : len(new)] = new
    return changed[place.reshape(-1)].reshape(tokens.shape)


def words_of(rows: Array, stop: int) -> Iterator[Ids]:
    """The tokens of each rationale of [rows, T] before its stop token."""
    for row in rows.tolist():
        yield tuple(row[: row.index(stop)] if stop in row else row)


def first_half(words: Ids) -> Ids:
    """The first half of the tokens, rounded down.

    >>> first_half((5, 6, 7))
    (5,)
    """
    return words[: len(words) // 2]


def split_verdict(tokenizer: TextTokenizer, words: Ids) -> tuple[Ids, Ids]:
    """The tokens before the verdict, its separator included, and the tokens of the verdict.

    Separators and blanks at the end belong to the verdict, so that "match; yes;" has the verdict "yes;". Without a
    separator the verdict is the last word. An empty rationale has an empty verdict.
    """
    text = tokenizer.decode(words)
    start = _start_of_verdict(text)
    if start == len(text):
        return words, ()
    blanks = len(text[start:]) - len(text[start:].lstrip())
    for position in (start + blanks, start):  # tokenizers differ in where they put the blank between two words
        place = _token_at(tokenizer, words, text, position)
        if place is not None:
            return words[:place], words[place:]
    before, verdict = tokenizer.encode([text[:start], text[start:]])
    return before, verdict


def verdict_text(tokenizer: TextTokenizer, words: Ids) -> str:
    """The verdict as text, without separators and blanks around it."""
    text = tokenizer.decode(words)
    return text[_start_of_verdict(text) : _end_of_words(text)].lstrip()


def derangements(lists: int, items: int, rng: np.random.Generator) -> Array:
    """int64 [lists, items]: for each list a random cycle through its items, so that no item is its own partner.

    Raises:
        ValueError: fewer than 2 items.
    """
    if items < 2:
        raise ValueError(f"items must be at least 2 to be exchanged, got {items}")
    order = rng.permuted(np.tile(np.arange(items), (lists, 1)), axis=1)
    partners = np.empty_like(order)
    np.put_along_axis(partners, order, np.roll(order, 1, axis=1), axis=1)
    return partners


def _start_of_verdict(text: str) -> int:
    """Where the verdict starts, with the blanks before it; the end of the text if it has no words."""
    end = _end_of_words(text)
    if not end:
        return len(text)
    separator = text.rfind(SEPARATOR, 0, end)
    if separator >= 0:
        return separator + 1
    word = _LAST_WORD.search(text, 0, end)
    assert word is not None  # the character before `end` is neither a blank nor a separator
    return word.start()


def _end_of_words(text: str) -> int:
    end = _END.search(text)
    assert end is not None  # the pattern matches the empty string at the end
    return end.start()


def _token_at(tokenizer: TextTokenizer, words: Sequence[int], text: str, position: int) -> int | None:
    """Number of tokens whose text is exactly `text[:position]`; None if the position lies inside a token."""
    first = bisect.bisect_left(range(len(words) + 1), position, key=lambda n: len(tokenizer.decode(words[:n])))
    for place in range(first, len(words) + 1):
        before = tokenizer.decode(words[:place])
        if before == text[:position]:
            return place
        if len(before) > position:
            break
    return None
