"""The encoder that turns lists into the arrays of `types.ListBatch`, and what fits a prompt into its tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from r2rank_jax.config import DataConfig
from r2rank_jax.data.prepared.dataset import Dataset, Lists
from r2rank_jax.data.prepared.tables import Array
from r2rank_jax.data.prepared.traces import Traces
from r2rank_jax.data.prompts import prompts
from r2rank_jax.data.prompts.prompts import Details, Shown
from r2rank_jax.data.prompts.templates import FILMS_1, Template, find_template
from r2rank_jax.data.prompts.tokenizer import (
    Ids,
    TextTokenizer,
)
from r2rank_jax.errors import DataError
from r2rank_jax.types import ListBatch

_TICKS = {"s": 1, "ms": 1000}  # of a timestamp, in a second


class Encoder:
    """Lists and rationales as token arrays. `counts` tells how often something had to be cut to fit.

    Args:
        tokenizer: any `TextTokenizer`.
        dataset: whose items and histories are written out.
        config: which template, and how many interactions and tokens each part may take.

    Raises:
        DataError: a tokenizer that cannot write the end of a line, on which a prompt's structure rests.
    """

    def __init__(self, tokenizer: TextTokenizer, dataset: Dataset, config: DataConfig):
        self.tokenizer, self.dataset, self.config = tokenizer, dataset, config
        self.template = find_template(config.template)
        self.counts: Counter[str] = Counter()
        _require_line_ends(tokenizer)
        self._lines: dict[tuple[int, float | None, str], Ids] = {}  # the same item, rating and time: the same line
        self._instruction = tokenizer.opening + tokenizer.encode([self.template.instruction])[0]
        self._by_line = _splits_at_lines(tokenizer, dataset, self.template)
        self._suffix, self._suffix_length = self._encode_suffixes()

    def encode(self, users: Array, positions: Array, items: Array, labels: Array) -> ListBatch:
        """Encode lists.

        Args:
            users: [U] dense ids.
            positions: [U]; the history is what lies strictly before.
            items: [U, N] dense ids.
            labels: [U, N]; they pass through and never meet the text.

        Returns:
            A `ListBatch` of numpy arrays, every item real.

        Raises:
            DataError: a user without history, or a last interaction that alone exceeds `prefix_tokens`.
        """
        prefixes = [self.prefix(int(user), int(position)) for user, position in zip(users, positions)]
        prefix, prefix_length = padded(prefixes, self.config.prefix_tokens, self.tokenizer.pad)
        items = np.asarray(items, np.int32)
        arrays: dict[str, Any] = dict(  # numpy, until a mesh takes them
            user=np.asarray(users, np.int32),
            items=items,
            prefix=prefix,
            prefix_length=prefix_length,
            suffix=self._suffix[items],
            suffix_length=self._suffix_length[items],
            labels=np.asarray(labels, np.float32),
            mask=np.ones(items.shape, bool),
        )
        return ListBatch(**arrays)

    def encode_lists(self, lists: Lists) -> ListBatch:
        """`encode` for a `Lists`."""
        return self.encode(lists.user, lists.position, lists.items, lists.labels)

    def encode_rationales(self, texts: Sequence[Sequence[str]]) -> tuple[Array, Array, Array]:
        """Encode one rationale per item, each with a stop token at its end.

        Args:
            texts: [U, N] rationales.

        Returns:
            tokens int32 [U, N, 1, T]; length int32 [U, N, 1], the stop token included; stopped bool [U, N,
            1], False where the rationale was cut off at T tokens (it then has no stop token). With T = 0, where nothing
            is to be said, nothing counts as cut off.
        """
        limit = self.config.rationale_tokens
        flat = [text for row in texts for text in row]
        ids = [(*found, self.tokenizer.stop) for found in self.tokenizer.encode(flat)]
        stopped = np.array([len(found) <= limit or not limit for found in ids], bool)
        self.counts["rationales"] += len(ids)
        self.counts["rationales_truncated"] += int(np.sum(~stopped))
        tokens, length = padded([found[:limit] for found in ids], limit, self.tokenizer.pad)
        shape = (len(texts), len(texts[0]), 1)
        return tokens.reshape(*shape, limit), length.reshape(shape), stopped.reshape(shape)

    def decode(self, tokens: Sequence[int] | Array) -> str:
        """Text of one rationale [T], up to its first stop or padding token."""
        ids = [int(token) for token in tokens]
        ends = [i for i, token in enumerate(ids) if token in (self.tokenizer.stop, self.tokenizer.pad)]
        return self.tokenizer.decode(ids[: ends[0]] if ends else ids)

    def prefix(self, user: int, position: int) -> Ids:
        """Ids of a prefix; the oldest interactions are dropped until it fits.

        Raises:
            DataError: a user without history, or a last interaction of which not even a letter fits.
        """
        seen = _seen(self.dataset, user, position, self.config.history_items, self.template)
        prompts.require_history(len(seen))
        if self._by_line:
            lines = [self._line(*each) for each in seen]
            for first in range(len(lines)):
                ids = self._instruction + sum(lines[first:], ())
                if len(ids) <= self.config.prefix_tokens:
                    _count_prefix(self.counts, first)
                    return ids
            seen = seen[-1:]
            self.counts["prefix_interactions_dropped"] += len(lines) - 1
        shown = [_shown(self.dataset, *each) for each in seen]
        return fit_prefix(self.tokenizer, shown, self.config.prefix_tokens, self.counts, self.template)

    def suffix_lengths(self, items: Array) -> Array:
        """int32, like `items`: true tokens of each item's suffix."""
        return self._suffix_length[items]

    def _line(self, item: int, rating: float | None, before: str) -> Ids:
        key = (item, rating, before)
        if key not in self._lines:
            text = prompts.history_line(*_shown(self.dataset, *key), template=self.template)
            self._lines[key] = self.tokenizer.encode([text])[0]
        return self._lines[key]

    def _encode_suffixes(self) -> tuple[Array, Array]:
        """int32 [items, S] and [items]; where a suffix is too long, `fit_suffix` cuts it."""
        limit, words = self.config.suffix_tokens, self._words
        rows = [_candidate(self.dataset, item) for item in range(len(self.dataset.items))]
        texts = self.tokenizer.encode([prompts.suffix_text(*row, **words) for row in rows])
        ids = [found + self.tokenizer.closing for found in texts]
        for item, found in enumerate(ids):
            if len(found) > limit:
                title, year, genres, details = rows[item]
                ids[item] = fit_suffix(
                    self.tokenizer, title, year, genres, limit, self.counts, details=details, **words
                )
        return padded(ids, limit, self.tokenizer.pad)

    @property
    def _words(self) -> dict[str, Any]:
        return {"template": self.template, "reasoning": self.config.rationale_tokens > 0}


def fit_prefix(
    tokenizer: TextTokenizer,
    shown: Sequence[tuple[str, str, float | None] | Shown],
    limit: int,
    counts: Counter[str],
    template: Template = FILMS_1,
) -> Ids:
    """Ids of a prefix of at most `limit` tokens; the oldest interactions are dropped, then the last title's end is.

    Args:
        tokenizer: any.
        shown: (title, year, rating[, time words]), oldest first.
        limit: tokens.
        counts: what was cut is added to it.
        template: whose words.

    Raises:
        DataError: no history, or one letter of the last interaction alone is too long.
    """
    prompts.require_history(len(shown))

    def ids_of(history: Sequence[tuple[str, str, float | None] | Shown]) -> Ids:
        return tokenizer.opening + tokenizer.encode([prompts.prefix_text(history, template)])[0]

    for first in range(len(shown)):
        ids = ids_of(shown[first:])
        if len(ids) <= limit:
            _count_prefix(counts, first)
            return ids
    last = Shown(*shown[-1])
    for shorter in _shortened(last.title):  # one title, however long, stops no run
        ids = ids_of([last._replace(title=shorter)])
        if len(ids) <= limit:
            _count_prefix(counts, len(shown) - 1)
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
    """Ids of a suffix of at most `limit` tokens; details, genres, then the title's end are dropped until it fits.

    Raises:
        DataError: even one letter of the title is too long.
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
    for shorter in _shortened(title):
        ids = ids_of(shorter, (), ())
        if len(ids) <= limit:
            counts["suffixes_with_cut_title"] += 1
            return ids
    raise DataError(
        f"data.suffix_tokens must hold the words around a title, at least {len(ids)} tokens, got {limit}; raise "
        "data.suffix_tokens"
    )


def _shortened(title: str) -> Iterator[str]:
    """A title without its last letter, without its last two, ... down to its first."""
    shown = prompts.as_data(title)
    for characters in range(max(len(shown) - 1, 1), 0, -1):
        yield shown[:characters]


def _count_prefix(counts: Counter[str], dropped: int) -> None:
    counts["prefixes"] += 1
    counts["prefix_interactions_dropped"] += dropped


def prefix_of(dataset: Dataset, user: int, position: int, history_items: int, template: Template = FILMS_1) -> str:
    """Text of the prefix that shows the last `history_items` interactions before `position`."""
    seen = _seen(dataset, user, position, history_items, template)
    return prompts.prefix_text([_shown(dataset, *each) for each in seen], template)


def suffixes_of(
    dataset: Dataset, items: Iterable[int], template: Template = FILMS_1, *, reasoning: bool = True
) -> list[str]:
    """Texts of the suffixes of some items."""
    return [prompts.suffix_text(*_candidate(dataset, i), template=template, reasoning=reasoning) for i in items]


def corpus(
    dataset: Dataset, traces: Traces, history_items: int, template: Template = FILMS_1, *, reasoning: bool = True
) -> Iterator[str]:
    """Every segment of some traces, once per use: what `train_tokenizer` should see."""
    for row, (user, position) in enumerate(zip(traces.lists.user.tolist(), traces.lists.position.tolist())):
        yield prefix_of(dataset, user, position, history_items, template)
        yield from suffixes_of(dataset, traces.lists.items[row].tolist(), template, reasoning=reasoning)
        yield from traces.rationales[row]


def _seen(
    dataset: Dataset, user: int, position: int, history_items: int, template: Template
) -> list[tuple[int, float | None, str]]:
    """(item, rating, time words) of the interactions that a prefix shows, oldest first."""
    rows = dataset.history(user, position, history_items)
    ratings = [None if rating != rating else rating for rating in dataset.rating[rows].tolist()]
    if not template.times:
        return [(item, rating, "") for item, rating in zip(dataset.item[rows].tolist(), ratings)]
    # The list is shown when its positive was chosen; behind a user's last interaction no time is known.
    now = int(dataset.timestamp[min(rows.stop, int(dataset.offsets[user + 1]) - 1)])
    ticks = _TICKS[dataset.time_unit]
    times = [prompts.time_words((now - then) // ticks) for then in dataset.timestamp[rows].tolist()]
    return list(zip(dataset.item[rows].tolist(), ratings, times))


def _shown(dataset: Dataset, item: int, rating: float | None, before: str) -> Shown:
    return Shown(dataset.items.title[item], dataset.items.year[item], rating, before)


def _candidate(dataset: Dataset, item: int) -> tuple[str, str, tuple[str, ...], Details]:
    catalogue = dataset.items
    details = catalogue.details[item] if catalogue.details else ()
    return catalogue.title[item], catalogue.year[item], catalogue.genres[item], details


def _require_line_ends(tokenizer: TextTokenizer) -> None:
    text = tokenizer.decode(tokenizer.encode(["one\ntwo\n"])[0])
    if text.count("\n") < 1:
        raise DataError(
            f"the tokenizer must keep the ends of lines, which hold a prompt's parts apart, but it reads "
            f"'one\\ntwo\\n' back as {text!r}; choose a model whose tokenizer has a token for them (Llama, Qwen)"
        )


def _splits_at_lines(tokenizer: TextTokenizer, dataset: Dataset, template: Template) -> bool:
    """Whether encoding line by line gives what encoding the whole prefix gives; tried, not assumed.

    It holds for the tokenizers of `train_tokenizer` and for byte-level BPEs that end a word at a line end
    (Qwen, GPT); it fails where a text's first word is special (SentencePiece). Caching lines is what makes
    encoding fast.
    """
    step = max(1, len(dataset.items) // 64)
    shown = [
        _shown(dataset, item, float(1 + item % 5), prompts.time_words(3600 << item % 16))
        for item in range(0, len(dataset.items), step)
    ]
    lines = tokenizer.encode([template.instruction, *(prompts.history_line(*s, template=template) for s in shown)])
    (whole,) = tokenizer.encode([prompts.prefix_text(shown, template)])
    return whole == sum(lines, ())


def padded(rows: Sequence[Ids], width: int, pad: int) -> tuple[Array, Array]:
    """int32 [len(rows), width] right-padded, and int32 lengths."""
    length = np.fromiter((len(row) for row in rows), np.int32, len(rows))
    tokens = np.full((len(rows), width), pad, np.int32)
    tokens[np.arange(width) < length[:, None]] = [token for row in rows for token in row]
    return tokens, length
