"""Convert a GGUF file's tokenizer to `tokenizer.json` and `tokenizer_config.json`.

A GGUF file gives the name of its pre-tokenizer (`tokenizer.ggml.pre`), but not its definition. "smollm" splits a text
twice: first every numeric character is isolated, then GPT-2's pattern splits the rest. Therefore the space before a
number is a separate token, and no token has two digits.
"""

from __future__ import annotations

from pathlib import Path

import gguf
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

from r2rank_jax.errors import PretrainedError
from r2rank_jax.pretrained.gguf_model import read_field, write_json

_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def build_tokenizer(reader: gguf.GGUFReader) -> Tokenizer:
    """Build the byte-level BPE that a GGUF file describes.

    Its control tokens are special tokens. With `encode_special_tokens = True`, a text that contains the name of one is
    encoded as text. A byte that is not in the vocabulary (SmolLM2: some control characters) is dropped, as in
    llama.cpp.

    Args:
        reader: the open file.

    Raises:
        PretrainedError: the tokenizer or its pre-tokenizer is of another kind, or a token is neither normal nor
            control.
    """
    for key, required in (("model", "gpt2"), ("pre", "smollm")):
        value = read_field(reader, f"tokenizer.ggml.{key}")
        if value != required:
            raise PretrainedError(
                f"tokenizer.ggml.{key} must be {required!r}, got {value!r}; import such a model from its Hugging Face "
                "folder instead"
            )
    tokens = read_field(reader, "tokenizer.ggml.tokens")
    types = read_field(reader, "tokenizer.ggml.token_type")
    other = sorted(set(types) - {gguf.TokenType.NORMAL, gguf.TokenType.CONTROL})
    if other or len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise PretrainedError(
            f"tokenizer.ggml.token_type must mark each of {len(tokens)} different tokens as normal (1) or control (3), "
            f"got {len(types)} types for {len(set(tokens))} different tokens, and the types {other or 'none'} besides "
            "1 and 3; import such a model from its Hugging Face folder instead"
        )
    merges = [tuple(merge.split(" ")) for merge in read_field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = ByteLevelDecoder()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == gguf.TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tokenizer


def write_tokenizer(reader: gguf.GGUFReader, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, the chat template included.

    Args:
        reader: the open GGUF file.
        folder: existing folder to write into.

    Raises:
        PretrainedError: `build_tokenizer` does not support the tokenizer.
    """
    tokenizer = build_tokenizer(reader)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {
        name: tokenizer.id_to_token(int(read_field(reader, f"tokenizer.ggml.{key}")))
        for name, key in _SPECIAL.items()
        if f"tokenizer.ggml.{key}" in reader.fields
    }
    write_json(
        folder / "tokenizer_config.json",
        {
            # Uses tokenizer.json unchanged. GPT2Tokenizer would replace the two splits by GPT-2's single one.
            "tokenizer_class": "PreTrainedTokenizerFast",
            **special,
            "model_max_length": int(read_field(reader, "llama.context_length")),
            "clean_up_tokenization_spaces": False,
            "chat_template": read_field(reader, "tokenizer.chat_template"),
        },
    )
