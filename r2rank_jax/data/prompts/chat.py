"""The tokenizer of an imported model, and the frame that its chat template puts around a prompt.

The chat template is rendered once, around a marker. The text before the marker opens every prefix, and the text after
it closes every item. Both may contain special tokens. The text in between comes from data and may not.
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
    """Read a `transformers` tokenizer with the frame of its chat template; without a template there is no frame.

    Args:
        folder: contains `tokenizer.json`, `tokenizer_config.json` and their companion files.
        pad: id of the padding token.
        stop: id of the token that ends a rationale.

    Raises:
        DataError: the folder has no fast tokenizer, or its chat template does not show a message once and unchanged.
    """
    if not (folder / "tokenizer.json").is_file():
        raise DataError(f"{folder} must hold a tokenizer, got no tokenizer.json; `r2rank model import` copies it there")
    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    opening: Ids = ()
    closing: Ids = ()
    if tokenizer.chat_template:
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": MARK}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,  # Qwen3: the rationale is the answer itself; other templates ignore this argument
        )
        if rendered.count(MARK) != 1:
            raise DataError(
                f"the chat template in {folder} must show a user's message once and unchanged, got it "
                f"{rendered.count(MARK)} times; remove the template to use prompts without a frame"
            )
        before, after = rendered.split(MARK)
        template_tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        opening, closing = (
            tuple(template_tokenizer.encode(part, add_special_tokens=False).ids) for part in (before, after)
        )
    return FastTokenizer(tokenizer.backend_tokenizer, pad=pad, stop=stop, opening=opening, closing=closing)
