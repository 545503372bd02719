"""Tokenizers, and the encoder that turns lists into the arrays of `types.ListBatch`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from r2rank_jax.config import DataConfig
from r2rank_jax.data import prompts
from r2rank_jax.data.dataset import Dataset, Lists
from r2rank_jax.data.errors import DataError
from r2rank_jax.data.tables import Array
from r2rank_jax.data.traces import Traces
from r2rank_jax.types import ListBatch

PAD, STOP = "<pad>", "<stop>"
Ids = tuple[int, ...]


class TextTokenizer(Protocol):
    """All that the data path needs of a tokenizer."""

    pad: int
    stop: int
    vocabulary: int
    opening: Ids  # in front of every prefix
    closing: Ids  # behind every item

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text, without special tokens: text is data."""

    def decode(self, ids: Sequence[int]) -> str:
        """Inverse of `encode` for one text."""


class FastTokenizer:
    """A `tokenizers.Tokenizer` as a `TextTokenizer`; also the one inside a transformers fast tokenizer.

    Args:
        backend: for transformers, `tokenizer.backend_tokenizer`; it is copied, not changed.
        pad: id of the padding token.
        stop: id of the token that ends a rationale (transformers: `eos_token_id`).
        opening: in front of every prefix, as the chat template of `data.chat` has it.
        closing: behind every item.
    """

    def __init__(self, backend: Tokenizer, pad: int, stop: int, opening: Ids = (), closing: Ids = ()):
        self.backend = Tokenizer.from_str(backend.to_str())
        self.backend.no_padding()
        self.backend.no_truncation()
        # A title that reads "<stop>" must not become the stop token. This setting is not part of the saved
        # file, so it has to be made here, every time.
        self.backend.encode_special_tokens = True
        self.pad, self.stop = pad, stop
        self.opening, self.closing = opening, closing
        self.vocabulary = self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text, without special tokens."""
        found = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [tuple(encoding.ids) for encoding in found]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of some ids; special tokens are skipped."""
        return self.backend.decode(list(ids), skip_special_tokens=True)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Train a byte-level BPE whose tokens may span words but not lines or clauses.

    Spanning words makes "Star Wars" or " (1977) 5\\n" one token, which halves a prompt. Tokens end after a
    line end, "; " and ": ", and before a year, so that a title and each statement of a rationale are spelled
    the same whatever stands beside them.

    Args:
        texts: what will be encoded: prefixes, suffixes and rationales apart.
        vocabulary: size, the special tokens and the 256 bytes included.

    Returns:
        A tokenizer with `<pad>` = 0 and `<stop>` = 1; save it with `.save("tokenizer.json")`.

    Raises:
        DataError: the vocabulary cannot hold the bytes.
    """
    if vocabulary < 258:
        raise DataError(
            f"vocabulary must be at least 258 (256 bytes, {PAD}, {STOP}), got {vocabulary}; raise model.vocabulary"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("\n|; |: "), behavior="merged_with_previous"),
            pre_tokenizers.Split(Regex(r" \(\d{4}\).*\n?"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, STOP],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def read_tokenizer(path: Path) -> FastTokenizer:
    """Read a `tokenizer.json` that `train_tokenizer` made.

    Raises:
        DataError: no such file, or it lacks `<pad>` or `<stop>`.
    """
    if not path.is_file():
        raise DataError(f"a tokenizer must be at {path}, got nothing; `r2rank sft` writes it")
    return as_text_tokenizer(Tokenizer.from_file(str(path)))


def as_text_tokenizer(backend: Tokenizer) -> FastTokenizer:
    """Wrap a tokenizer that `train_tokenizer` made.

    Raises:
        DataError: it lacks `<pad>` or `<stop>`.
    """
    pad, stop = backend.token_to_id(PAD), backend.token_to_id(STOP)
    if pad is None or stop is None:
        raise DataError(
            f"the tokenizer must have {PAD} and {STOP}, got ids {pad} and {stop}; wrap another tokenizer as "
            "FastTokenizer(backend, pad=..., stop=...)"
        )
    return FastTokenizer(backend, pad, stop)


class Encoder:
    """Lists and rationales as token arrays. `counts` tells how often something had to be cut to fit.

    Args:
        tokenizer: any `TextTokenizer`.
        dataset: whose items and histories are written out.
        config: how many interactions and tokens each part may take.
    """

    def __init__(self, tokenizer: TextTokenizer, dataset: Dataset, config: DataConfig):
        self.tokenizer, self.dataset, self.config = tokenizer, dataset, config
        self.counts: Counter[str] = Counter()
        self._lines: dict[tuple[int, float], Ids] = {}
        self._instruction = tokenizer.opening + tokenizer.encode([prompts.INSTRUCTION])[0]
        self._by_line = _splits_at_lines(tokenizer, dataset)
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
        prefixes = [self._prefix(int(user), int(position)) for user, position in zip(users, positions)]
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

    def _prefix(self, user: int, position: int) -> Ids:
        """Ids of a prefix; the oldest interactions are dropped until it fits."""
        rows = self.dataset.history(user, position, self.config.history_items)
        prompts.require_history(rows.stop - rows.start)
        pairs = list(zip(self.dataset.item[rows].tolist(), self.dataset.rating[rows].tolist()))
        lines = [self._line(*pair) for pair in pairs] if self._by_line else []
        if not self._by_line:
            shown = [_shown(self.dataset, *pair) for pair in pairs]
            return fit_prefix(self.tokenizer, shown, self.config.prefix_tokens, self.counts)
        return _newest_that_fit(
            lambda first: self._instruction + sum(lines[first:], ()), len(lines), self.config.prefix_tokens, self.counts
        )

    def _line(self, item: int, rating: float) -> Ids:
        key = (item, rating)
        if key not in self._lines:
            text = prompts.history_line(*_shown(self.dataset, item, rating))
            self._lines[key] = self.tokenizer.encode([text])[0]
        return self._lines[key]

    def _encode_suffixes(self) -> tuple[Array, Array]:
        """int32 [items, S] and [items]; where a suffix is too long, genres and then the title's end go."""
        catalogue, limit = self.dataset.items, self.config.suffix_tokens
        rows = list(zip(catalogue.title, catalogue.year, catalogue.genres))
        texts = self.tokenizer.encode([prompts.suffix_text(*row) for row in rows])
        ids = [found + self.tokenizer.closing for found in texts]
        for item, found in enumerate(ids):
            if len(found) > limit:
                ids[item] = fit_suffix(self.tokenizer, *rows[item], limit, self.counts)
        return padded(ids, limit, self.tokenizer.pad)


def fit_prefix(
    tokenizer: TextTokenizer, shown: Sequence[tuple[str, str, float]], limit: int, counts: Counter[str]
) -> Ids:
    """Ids of a prefix of at most `limit` tokens; the oldest interactions are dropped until it fits.

    Args:
        tokenizer: any.
        shown: (title, year, rating), oldest first.
        limit: tokens.
        counts: what was cut is added to it.

    Raises:
        DataError: no history, or one interaction alone is too long.
    """
    prompts.require_history(len(shown))
    return _newest_that_fit(
        lambda first: tokenizer.opening + tokenizer.encode([prompts.prefix_text(shown[first:])])[0],
        len(shown),
        limit,
        counts,
    )


def fit_suffix(
    tokenizer: TextTokenizer, title: str, year: str, genres: Sequence[str], limit: int, counts: Counter[str]
) -> Ids:
    """Ids of a suffix of at most `limit` tokens; genres, then the title's end, are dropped until it fits.

    Raises:
        DataError: even one letter of the title is too long.
    """
    ids: Ids = ()
    for kept in range(len(genres), -1, -1):
        ids = tokenizer.encode([prompts.suffix_text(title, year, genres[:kept])])[0] + tokenizer.closing
        if len(ids) <= limit:
            counts["suffixes_without_some_genres"] += kept < len(genres)
            return ids
    for characters in range(min(len(title), prompts.TITLE_CHARACTERS) - 1, 0, -1):
        ids = tokenizer.encode([prompts.suffix_text(title[:characters], year, ())])[0] + tokenizer.closing
        if len(ids) <= limit:
            counts["suffixes_with_cut_title"] += 1
            return ids
    raise DataError(
        f"data.suffix_tokens must hold the words around a title, at least {len(ids)} tokens, got {limit}; raise "
        "data.suffix_tokens"
    )


def _newest_that_fit(ids_from: Callable[[int], Ids], interactions: int, limit: int, counts: Counter[str]) -> Ids:
    ids: Ids = ()
    for first in range(interactions):
        ids = ids_from(first)
        if len(ids) <= limit:
            counts["prefixes"] += 1
            counts["prefix_interactions_dropped"] += first
            return ids
    raise DataError(
        f"data.prefix_tokens must hold the instruction and one interaction, {len(ids)} tokens, got {limit}; raise "
        "data.prefix_tokens"
    )


def prefix_of(dataset: Dataset, user: int, position: int, history_items: int) -> str:
    """Text of the prefix that shows the last `history_items` interactions before `position`."""
    rows = dataset.history(user, position, history_items)
    pairs = zip(dataset.item[rows].tolist(), dataset.rating[rows].tolist())
    return prompts.prefix_text([_shown(dataset, item, rating) for item, rating in pairs])


def suffixes_of(dataset: Dataset, items: Iterable[int]) -> list[str]:
    """Texts of the suffixes of some items."""
    catalogue = dataset.items
    return [prompts.suffix_text(catalogue.title[i], catalogue.year[i], catalogue.genres[i]) for i in items]


def corpus(dataset: Dataset, traces: Traces, history_items: int) -> Iterator[str]:
    """Every segment of some traces, once per use: what `train_tokenizer` should see."""
    for row, (user, position) in enumerate(zip(traces.lists.user.tolist(), traces.lists.position.tolist())):
        yield prefix_of(dataset, user, position, history_items)
        yield from suffixes_of(dataset, traces.lists.items[row].tolist())
        yield from traces.rationales[row]


def _shown(dataset: Dataset, item: int, rating: float) -> tuple[str, str, float]:
    return dataset.items.title[item], dataset.items.year[item], rating


def _splits_at_lines(tokenizer: TextTokenizer, dataset: Dataset) -> bool:
    """Whether encoding line by line gives what encoding the whole prefix gives; tried, not assumed.

    It holds for the tokenizers of `train_tokenizer` and for byte-level BPEs that end a word at a line end
    (Qwen, GPT); it fails where a text's first word is special (SentencePiece). Caching lines is what makes
    encoding fast.
    """
    step = max(1, len(dataset.items) // 64)
    shown = [_shown(dataset, item, float(1 + item % 5)) for item in range(0, len(dataset.items), step)]
    lines = tokenizer.encode([prompts.INSTRUCTION, *(prompts.history_line(*line) for line in shown)])
    (whole,) = tokenizer.encode([prompts.prefix_text(shown)])
    return whole == sum(lines, ())


def padded(rows: Sequence[Ids], width: int, pad: int) -> tuple[Array, Array]:
    """int32 [len(rows), width] right-padded, and int32 lengths."""
    length = np.fromiter((len(row) for row in rows), np.int32, len(rows))
    tokens = np.full((len(rows), width), pad, np.int32)
    tokens[np.arange(width) < length[:, None]] = [token for row in rows for token in row]
    return tokens, length
