"""The encoder that turns lists into the arrays of `types.ListBatch`."""

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
from r2rank_jax.data.prompts.templates import Template, find_template
from r2rank_jax.data.prompts.tokenizer import (
    Ids,
    TextTokenizer,
)
from r2rank_jax.errors import DataError
from r2rank_jax.types import ListBatch


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

    def encode_lists(self, lists: CandidateLists) -> ListBatch:
        """`encode` for a `CandidateLists`."""
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
        seen = seen_before(self.dataset, user, position, self.config.history_items, self.template)
        prompts.require_history(len(seen))
        if self._by_line:
            lines = [self._line(*each) for each in seen]
            for first in range(len(lines)):
                ids = self._instruction + sum(lines[first:], ())
                if len(ids) <= self.config.prefix_tokens:
                    count_prefix(self.counts, first)
                    return ids
            seen = seen[-1:]
            self.counts["prefix_interactions_dropped"] += len(lines) - 1
        shown = [as_shown(self.dataset, *each) for each in seen]
        return fit_prefix(self.tokenizer, shown, self.config.prefix_tokens, self.counts, self.template)

    def suffix_lengths(self, items: Array) -> Array:
        """int32, like `items`: true tokens of each item's suffix."""
        return self._suffix_length[items]

    def _line(self, item: int, rating: float | None, before: str) -> Ids:
        key = (item, rating, before)
        if key not in self._lines:
            text = prompts.history_line(*as_shown(self.dataset, *key), template=self.template)
            self._lines[key] = self.tokenizer.encode([text])[0]
        return self._lines[key]

    def _encode_suffixes(self) -> tuple[Array, Array]:
        """int32 [items, S] and [items]; where a suffix is too long, `fit_suffix` cuts it."""
        limit, words = self.config.suffix_tokens, self._words
        rows = [candidate_fields(self.dataset, item) for item in range(len(self.dataset.items))]
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
        as_shown(dataset, item, float(1 + item % 5), prompts.time_words(3600 << item % 16))
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
