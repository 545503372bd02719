"""The imported model that a run starts from: its weights, and its tokenizer, which the run directory keeps."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from r2rank_jax.config import RunConfig
from r2rank_jax.data.prompts.frame import require_lasting_frame
from r2rank_jax.data.prompts.tokenizer import FastTokenizer, read_tokenizer
from r2rank_jax.errors import CheckpointError
from r2rank_jax.model.adapters import without_adapters
from r2rank_jax.pretrained.folder import BASE, CARD, TOKENIZER_FOLDER, load_pretrained, read_model_card
from r2rank_jax.sharding import abstract_params
from r2rank_jax.types import Params


def adopt(directory: Path, run_dir: Path) -> None:
    """Copy the model card and the tokenizer of an imported model into the run directory that starts from it.

    The copy appears as a whole or not at all. A run directory that has one already stays as it is.

    Raises:
        CheckpointError: `directory` holds no imported model, or the run started from another one.
        DataError: the prompts would differ from day to day, see `require_lasting_frame`.
    """
    card, base = read_model_card(directory), run_dir / BASE
    if base.is_dir():
        own_card = read_model_card(base)
        if own_card.source.sha256 != card.source.sha256:
            raise CheckpointError(
                f"the run in {run_dir} started from weights with SHA-256 {own_card.source.sha256[:12]}, the model in "
                f"{directory} has {card.source.sha256[:12]}; set pretrained to that model, or choose another --run-dir"
            )
        return
    require_lasting_frame(directory / TOKENIZER_FOLDER, card.frame)
    partial = base.with_name(f"{base.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(directory / TOKENIZER_FOLDER, partial / TOKENIZER_FOLDER)
    shutil.copy(directory / CARD, partial / CARD)
    for license_file in directory.glob("LICENSE*"):
        shutil.copy(license_file, partial)
    partial.rename(base)


def starting_params(mesh: Mesh, config: RunConfig, fresh: Params) -> Params:
    """The weights of the imported model that a run starts from; adapters and a critic, which it lacks, are `fresh`."""
    plain = replace(without_adapters(config.model), critic=False)
    loaded = load_pretrained(Path(str(config.pretrained)), abstract_params(mesh, plain), plain)

    def overlay(new: Any, old: Any) -> Any:
        return (
            {name: overlay(new[name], old[name]) if name in new else old[name] for name in old}
            if isinstance(old, dict)
            else new
        )

    return overlay(loaded, fresh)


def read_run_tokenizer(run_dir: Path) -> FastTokenizer:
    """The tokenizer of a run: its starting model's, with the chat frame, or the one trained on its traces."""
    base = run_dir / BASE
    if not base.is_dir():
        return read_tokenizer(run_dir / "tokenizer.json")
    from r2rank_jax.data.prompts.chat import read_chat_tokenizer  # transformers takes seconds to import

    card = read_model_card(base)
    return read_chat_tokenizer(base / TOKENIZER_FOLDER, pad=card.pad, stop=card.stop, frame=card.frame)
