"""The tokenizer of an imported model, with the frame that its chat template puts around a prompt.

The frame's text before the message opens every prefix, and the text after it closes every item. Both may contain
special tokens. The text in between comes from data and may not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from r2rank_jax.data.prompts.frame import Frame, render_frame, require_lasting_frame
from r2rank_jax.data.prompts.tokenizer import FastTokenizer
from r2rank_jax.errors import DataError


def read_chat_tokenizer(folder: Path, *, pad: int, stop: int, frame: Frame | None = None) -> FastTokenizer:
    """Read a `transformers` tokenizer with the frame of its chat template.

    Args:
        folder: contains `tokenizer.json`, `tokenizer_config.json` and their companion files.
        pad: id of the padding token.
        stop: id of the token that ends a rationale.
        frame: the frame that is kept with the model. None for models that were imported before frames were kept: the
            template is rendered now, which gives the same frame every time unless it reads the clock.

    Raises:
        DataError: the folder has no fast tokenizer, or no frame is given and the template reads the clock or cannot be
            rendered.
    """
    if not (folder / "tokenizer.json").is_file():
        raise DataError(f"{folder} must hold a tokenizer, got no tokenizer.json; `r2rank model import` copies it there")
    require_lasting_frame(folder, frame)
    frame = render_frame(folder) if frame is None else frame
    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    with_special_tokens = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    opening, closing = (
        tuple(with_special_tokens.encode(part, add_special_tokens=False).ids) for part in (frame.before, frame.after)
    )
    return FastTokenizer(tokenizer.backend_tokenizer, pad=pad, stop=stop, opening=opening, closing=closing)
