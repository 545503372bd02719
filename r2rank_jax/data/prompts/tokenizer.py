"""Tokenizers: our own, trained on prompts, and any other, wrapped so that untrusted text is safe to encode."""

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
    """The tokenizer interface that the data path uses."""

    pad: int
    stop: int
    vocabulary: int
    opening: Ids  # precedes every prefix
    closing: Ids  # follows every item

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text, never of special tokens, because the text is data."""

    def decode(self, ids: Sequence[int]) -> str:
        """Inverse of `encode` for one text."""


class FastTokenizer:
    """Wrap a `tokenizers.Tokenizer`, such as the backend of a transformers fast tokenizer, as a `TextTokenizer`.

    No text is ever encoded as an added token, pad, stop or the unknown token. Characters without a token are dropped.

    Args:
        backend: for transformers, `tokenizer.backend_tokenizer`; it is copied, not changed.
        pad: id of the padding token.
        stop: id of the token that ends a rationale (transformers: `eos_token_id`).
        opening: ids that precede every prefix, as given by a chat template (see `chat`).
        closing: ids that follow every item.
    """

    def __init__(self, backend: Tokenizer, pad: int, stop: int, opening: Ids = (), closing: Ids = ()):
        self.backend = Tokenizer.from_str(backend.to_str())
        self.pad, self.stop = pad, stop
        self.opening, self.closing = opening, closing
        self.vocabulary = self.backend.get_vocab_size(with_added_tokens=True)
        self._text_only, self._unknown = _text_only(self.backend, (pad, stop))

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild in a worker process: a pickled backend loses settings that keep text from becoming special tokens."""
        return FastTokenizer, (self.backend, self.pad, self.stop, self.opening, self.closing)

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text, without special tokens."""
        encodings = self._text_only.encode_batch_fast(list(texts), add_special_tokens=False)
        if self._unknown is None:
            return [tuple(encoding.ids) for encoding in encodings]
        return [tuple(i for i in encoding.ids if i != self._unknown) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; special tokens are skipped."""
        return self.backend.decode(list(ids), skip_special_tokens=True)


def _text_only(backend: Tokenizer, reserved: tuple[int, ...]) -> tuple[Tokenizer, int | None]:
    """A copy that never produces added tokens or the ids `reserved`, and the id of its unknown token.

    `encode_special_tokens` is not enough: added tokens need not be special (Qwen3's `<think>`, DeepSeek's
    `<｜User｜>`), a Unigram model has `</s>` among its ordinary pieces, and the setting is lost when the tokenizer is
    pickled. Therefore the copy has no added tokens, and their names in the model's own vocabulary are replaced by
    strings that no text contains.
    """
    description = json.loads(backend.to_str())
    model, added = description["model"], {token["content"] for token in description["added_tokens"]}
    added |= {name for name in map(backend.id_to_token, reserved) if name is not None}
    unknown = model.get("unk_token")
    if model["type"] == "Unigram":
        id_of_unknown = model.get("unk_id")
        model["vocab"] = [[_unspellable(piece, added), score] for piece, score in model["vocab"]]
    else:
        id_of_unknown = None if unknown is None else backend.token_to_id(unknown)
        model["vocab"] = {_unspellable(piece, added - {unknown}): i for piece, i in model["vocab"].items()}
    if "merges" in model:
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if not added & {*pair, "".join(pair)}]
    description |= {"added_tokens": [], "padding": None, "truncation": None}
    return Tokenizer.from_str(json.dumps(description)), id_of_unknown


def _unspellable(piece: str, added: set[str]) -> str:
    return f"\0{piece}\0" if piece in added else piece


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Train a byte-level BPE whose tokens may span words but not lines or clauses.

    Because tokens may span words, "Star Wars" or " (1977) 5\\n" can be one token, which halves the length of a prompt.
    Tokens end after a line end, "; " and ": ", and before a year. The encoding of a title, or of a statement in a
    rationale, therefore does not depend on the text around it.

    Args:
        texts: the texts to be encoded later; prefixes, suffixes and rationales are separate texts.
        vocabulary: size of the vocabulary, including the special tokens and the 256 bytes.

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
        DataError: there is no such file, or the tokenizer lacks `<pad>` or `<stop>`.
    """
    if not path.is_file():
        raise DataError(f"{path} must be a tokenizer, got no such file; `r2rank sft` writes it")
    return as_text_tokenizer(Tokenizer.from_file(str(path)))


def as_text_tokenizer(backend: Tokenizer) -> FastTokenizer:
    """Wrap a tokenizer that `train_tokenizer` made.

    Raises:
        DataError: the tokenizer lacks `<pad>` or `<stop>`.
    """
    pad, stop = backend.token_to_id(PAD), backend.token_to_id(STOP)
    if pad is None or stop is None:
        raise DataError(
            f"the tokenizer must have {PAD} and {STOP}, got ids {pad} and {stop}; wrap another tokenizer as "
            "FastTokenizer(backend, pad=..., stop=...)"
        )
    return FastTokenizer(backend, pad, stop)
