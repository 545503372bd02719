"""Encode lists as the arrays of `types.ListBatch`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from r2rank_jax.config import DataConfig
from r2rank_jax.data.prepared.dataset import CandidateLists, Dataset
from r2rank_jax.data.prepared.tables import Array
from r2rank_jax.data.prompts import prompts
from r2rank_jax.data.prompts.fitting import count_prefix, fit_prefix, fit_suffix
from r2rank_jax.data.prompts.from_dataset import as_shown, candidate_fields, seen_before
from r2rank_jax.data.prompts.prompts import Details
from r2rank_jax.data.prompts.templates import Template, find_template
from r2rank_jax.data.prompts.tokenizer import (
    Ids,
    TextTokenizer,
)
from r2rank_jax.errors import DataError
from r2rank_jax.types import ListBatch

Seen = tuple[int, float | None, str]  # item, rating and time words of an interaction, from `seen_before`
Fields = tuple[str, str, tuple[str, ...], Details]  # title, year, genres and details, from `candidate_fields`


class Encoder:
    """Encodes lists and rationales as token arrays. `counts` records how often a part had to be cut to fit.

    Args:
        tokenizer: any `TextTokenizer`.
        dataset: provides the items and histories.
        config: sets the template, and the number of interactions and tokens that each part may take.

    Raises:
        DataError: the tokenizer cannot encode line ends, which separate the parts of a prompt.
    """

    def __init__(self, tokenizer: TextTokenizer, dataset: Dataset, config: DataConfig):
        self.tokenizer, self.dataset, self.config = tokenizer, dataset, config
        self.template = find_template(config.template)
        self.counts: Counter[str] = Counter()
        _require_line_ends(tokenizer)
        self._lines: dict[tuple[int, float | None, str], Ids] = {}  # by (item, rating, time words)
        self._instruction = tokenizer.opening + tokenizer.encode([self.template.instruction])[0]
        self._by_line = _splits_at_lines(tokenizer, dataset, self.template)
        items = range(len(dataset.items))
        self._suffix, self._suffix_length = self.encode_suffixes([candidate_fields(dataset, item) for item in items])

    def encode(self, users: Array, positions: Array, items: Array, labels: Array) -> ListBatch:
        """Encode lists.

        Args:
            users: [U] dense ids.
            positions: [U]; the history is everything strictly before this position.
            items: [U, N] dense ids.
            labels: [U, N]; copied to the batch and not used for the text.

        Returns:
            A `ListBatch` of NumPy arrays in which every item is real.

        Raises:
            DataError: a user has no history, or a last interaction does not fit into `prefix_tokens`.
        """
        prefixes = [self.prefix(int(user), int(position)) for user, position in zip(users, positions)]
        prefix, prefix_length = padded(prefixes, self.config.prefix_tokens, self.tokenizer.pad)
        items = np.asarray(items, np.int32)
        arrays: dict[str, Any] = dict(  # NumPy arrays, until they are placed on a mesh
            user=np.asarray(users, np.int32),
            position=np.asarray(positions, np.int32),
            items=items,
            prefix=prefix,
            prefix_length=prefix_length,
            suffix=self._suffix[items],
            suffix_length=self._suffix_length[items],
            labels=np.asarray(labels, np.float32),
            mask=np.ones(items.shape, bool),
        )
        return ListBatch(**arrays)

    def encode_lists(self, lists: CandidateLists) -> ListBatch:
        """`encode` for `CandidateLists`."""
        return self.encode(lists.user, lists.position, lists.items, lists.labels)

    def encode_rationales(self, texts: Sequence[Sequence[str]]) -> tuple[Array, Array, Array]:
        """Encode one rationale per item, each followed by a stop token.

        Args:
            texts: [U, N] rationales.

        Returns:
            tokens int32 [U, N, 1, T]; length int32 [U, N, 1], including the stop token; stopped bool [U, N, 1], False
            where the rationale was truncated at T tokens and so has no stop token. With T = 0 there are no rationales,
            and none counts as truncated.
        """
        limit = self.config.rationale_tokens
        flat = [text for row in texts for text in row]
        ids = [(*rationale, self.tokenizer.stop) for rationale in self.tokenizer.encode(flat)]
        stopped = np.array([len(rationale) <= limit or not limit for rationale in ids], bool)
        self.counts["rationales"] += len(ids)
        self.counts["rationales_truncated"] += int(np.sum(~stopped))
        tokens, length = padded([rationale[:limit] for rationale in ids], limit, self.tokenizer.pad)
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
            DataError: the user has no history, or the last interaction does not fit even with a title of one letter.
        """
        return self.fit_history(self._seen(user, position))[0]

    def visible(self, user: int, position: int) -> list[Seen]:
        """The interactions that the prefix of a list shows, oldest first; raises as `prefix`."""
        seen = self._seen(user, position)
        return seen[self.fit_history(seen)[1] :]

    def fit_history(self, seen: Sequence[Seen]) -> tuple[Ids, int]:
        """Ids of a prefix that shows these interactions, and how many of the first ones were dropped until it fits.

        Raises:
            DataError: there are none, or the last one does not fit even with a title of one letter.
        """
        prompts.require_history(len(seen))
        counts: Counter[str] = Counter()
        if self._by_line:
            lines = [self._line(*each) for each in seen]
            for first in range(len(lines)):
                ids = self._instruction + sum(lines[first:], ())
                if len(ids) <= self.config.prefix_tokens:
                    count_prefix(self.counts, first)
                    return ids, first
            seen = seen[-1:]
            counts["prefix_interactions_dropped"] += len(lines) - 1
        shown = [as_shown(self.dataset, *each) for each in seen]
        ids = fit_prefix(self.tokenizer, shown, self.config.prefix_tokens, counts, self.template)
        self.counts.update(counts)
        return ids, counts["prefix_interactions_dropped"]

    def suffix_lengths(self, items: Array) -> Array:
        """int32, same shape as `items`: number of tokens in each item's suffix, without padding."""
        return self._suffix_length[items]

    def _line(self, item: int, rating: float | None, before: str) -> Ids:
        key = (item, rating, before)
        if key not in self._lines:
            text = prompts.history_line(*as_shown(self.dataset, *key), template=self.template)
            self._lines[key] = self.tokenizer.encode([text])[0]
        return self._lines[key]

    def encode_suffixes(self, fields: Sequence[Fields]) -> tuple[Array, Array]:
        """Encode candidates; those that are too long are shortened, see `fit_suffix`.

        Args:
            fields: title, year, genres and details of each, as `candidate_fields` returns them.

        Returns:
            tokens int32 [len(fields), S] and lengths int32 [len(fields)].

        Raises:
            DataError: a candidate does not fit into `suffix_tokens` even with a title of one letter.
        """
        limit, words = self.config.suffix_tokens, self._words
        texts = self.tokenizer.encode([prompts.suffix_text(*each, **words) for each in fields])
        ids = [text + self.tokenizer.closing for text in texts]
        for row, suffix in enumerate(ids):
            if len(suffix) > limit:
                title, year, genres, details = fields[row]
                ids[row] = fit_suffix(self.tokenizer, title, year, genres, limit, self.counts, details=details, **words)
        return padded(ids, limit, self.tokenizer.pad)

    def _seen(self, user: int, position: int) -> list[Seen]:
        return seen_before(self.dataset, user, position, self.config.history_items, self.template)

    @property
    def _words(self) -> dict[str, Any]:
        return {"template": self.template, "reasoning": self.config.rationale_tokens > 0}


def _require_line_ends(tokenizer: TextTokenizer) -> None:
    text = tokenizer.decode(tokenizer.encode(["one\ntwo\n"])[0])
    if text.count("\n") < 1:
        raise DataError(
            f"the tokenizer must keep line ends, which separate the parts of a prompt, but it decodes "
            f"'one\\ntwo\\n' as {text!r}; choose a model whose tokenizer has a token for line ends (Llama, Qwen)"
        )


def _splits_at_lines(tokenizer: TextTokenizer, dataset: Dataset, template: Template) -> bool:
    """Test whether encoding a prefix line by line gives the same ids as encoding it whole.

    If it does, encoded lines can be cached, which makes encoding fast. It holds for the tokenizers of `train_tokenizer`
    and for byte-level BPEs that end a word at a line end (Qwen, GPT). It fails if the first word of a text is encoded
    differently (SentencePiece).
    """
    step = max(1, len(dataset.items) // 64)
    shown = [
        as_shown(dataset, item, float(1 + item % 5), prompts.time_words(3600 << item % 16))
        for item in range(0, len(dataset.items), step)
    ]
    lines = tokenizer.encode([template.instruction, *(prompts.history_line(*s, template=template) for s in shown)])
    (whole,) = tokenizer.encode([prompts.prefix_text(shown, template)])
    return whole == sum(lines, ())


def padded(rows: Sequence[Ids], width: int, pad: int) -> tuple[Array, Array]:
    """Right-padded tokens int32 [len(rows), width], and lengths int32 [len(rows)]."""
    length = np.fromiter((len(row) for row in rows), np.int32, len(rows))
    tokens = np.full((len(rows), width), pad, np.int32)
    tokens[np.arange(width) < length[:, None]] = [token for row in rows for token in row]
    return tokens, length
