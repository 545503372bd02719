"""The tokenizer of an imported model, and the frame that its chat template puts around a prompt.

A template is rendered once, around a mark. What it puts before the mark opens every prefix, what it puts after the mark
closes every item; both may hold special tokens. The words between, which come from data, may not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from r2rank_jax.data.prompts.tokenizer import FastTokenizer, Ids
from r2rank_jax.errors import DataError

MARK = "⟪the prompt stands here⟫"


def read_chat_tokenizer(folder: Path, *, pad: int, stop: int) -> FastTokenizer:
    """Read a tokenizer of `transformers`, with the frame of its chat template; a base model without one has no frame.

    Args:
        folder: with `tokenizer.json`, `tokenizer_config.json` and what belongs to them.
        pad: id of the padding token.
        stop: id of the token that ends a rationale.

    Raises:
        DataError: no fast tokenizer there, or a template that does not pass a message on as it is.
    """
    if not (folder / "tokenizer.json").is_file():
        raise DataError(
            f"a tokenizer must be at {folder}, got no tokenizer.json there; `r2rank model import` copies it"
        )
    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    opening: Ids = ()
    closing: Ids = ()
    if tokenizer.chat_template:
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": MARK}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,  # Qwen3: the rationale is the answer; templates without such a switch ignore it
        )
        if rendered.count(MARK) != 1:
            raise DataError(
                f"the chat template in {folder} must show a user's message once and unchanged, got it "
                f"{rendered.count(MARK)} times; remove the template to write prompts without one"
            )
        before, after = rendered.split(MARK)
        template_tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        opening, closing = (
            tuple(template_tokenizer.encode(part, add_special_tokens=False).ids) for part in (before, after)
        )
    return FastTokenizer(tokenizer.backend_tokenizer, pad=pad, stop=stop, opening=opening, closing=closing)
