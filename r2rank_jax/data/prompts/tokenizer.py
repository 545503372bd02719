"""Tokenizers: our own, trained on the prompts, and anybody's, made safe for text that comes from strangers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from r2rank_jax.errors import DataError

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

    No text makes one of its added tokens, pad, stop or the unknown token: characters without a token are left out.

    Args:
        backend: for transformers, `tokenizer.backend_tokenizer`; it is copied, not changed.
        pad: id of the padding token.
        stop: id of the token that ends a rationale (transformers: `eos_token_id`).
        opening: in front of every prefix, as the chat template of `chat` has it.
        closing: behind every item.
    """

    def __init__(self, backend: Tokenizer, pad: int, stop: int, opening: Ids = (), closing: Ids = ()):
        self.backend = Tokenizer.from_str(backend.to_str())
        self.pad, self.stop = pad, stop
        self.opening, self.closing = opening, closing
        self.vocabulary = self.backend.get_vocab_size(with_added_tokens=True)
        self._of_text, self._unknown = _of_text_alone(self.backend, (pad, stop))

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker process makes it anew: what a pickled backend forgets would let text spell special tokens."""
        return FastTokenizer, (self.backend, self.pad, self.stop, self.opening, self.closing)

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text, without special tokens."""
        found = self._of_text.encode_batch_fast(list(texts), add_special_tokens=False)
        if self._unknown is None:
            return [tuple(encoding.ids) for encoding in found]
        return [tuple(i for i in encoding.ids if i != self._unknown) for encoding in found]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of some ids; special tokens are skipped."""
        return self.backend.decode(list(ids), skip_special_tokens=True)


def _of_text_alone(backend: Tokenizer, more: tuple[int, ...]) -> tuple[Tokenizer, int | None]:
    """A copy that cannot write added tokens nor the ids `more`, and the id of its unknown token.

    `encode_special_tokens` is not enough: added tokens need not be special (Qwen3's `<think>`, DeepSeek's
    `<｜User｜>`), a Unigram model finds `</s>` among its ordinary pieces, and the setting is lost when the tokenizer is
    pickled. So added tokens are taken out, and their names in the model's own vocabulary become ones that no text has.
    """
    form = json.loads(backend.to_str())
    model, added = form["model"], {token["content"] for token in form["added_tokens"]}
    added |= {name for name in map(backend.id_to_token, more) if name is not None}
    unknown = model.get("unk_token")
    if model["type"] == "Unigram":
        id_of_unknown = model.get("unk_id")
        model["vocab"] = [[_unwritten(piece, added), score] for piece, score in model["vocab"]]
    else:
        id_of_unknown = None if unknown is None else backend.token_to_id(unknown)
        model["vocab"] = {_unwritten(piece, added - {unknown}): i for piece, i in model["vocab"].items()}
    if "merges" in model:
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if not added & {*pair, "".join(pair)}]
    form |= {"added_tokens": [], "padding": None, "truncation": None}
    return Tokenizer.from_str(json.dumps(form)), id_of_unknown


def _unwritten(piece: str, added: set[str]) -> str:
    return f"\0{piece}\0" if piece in added else piece


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
