"""The folder of an imported model: what it is, its parameters, its tokenizer, and a seal over all files.

model.json   `ModelCard`
params/      Orbax, float32
tokenizer/   the files of `tokenizer_files.COPIED`
LICENSE*     the base model's, where it came with one
seal.json    SHA-256 of every file, written last
"""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from flax.core import meta

from r2rank_jax.checkpoint import damage, without_machine_settings
from r2rank_jax.config import ModelConfig, differences, from_json
from r2rank_jax.errors import ConfigError, PretrainedError
from r2rank_jax.model.transformer import initial_params
from r2rank_jax.pretrained.tokenizer_files import read_json
from r2rank_jax.types import Params

CARD, PARAMS, TOKENIZER_FOLDER = "model.json", "params", "tokenizer"
BASE = "base"
"""Inside a run directory: `model.json` and `tokenizer/` of the imported model that the run started from."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a model comes from."""

    architecture: str
    sha256: str
    """Over the bytes of its safetensors files, one after the other by name."""
    positions: int
    """Longest sequence that it was trained on."""
    bos: int | None
    """Id that its tokenizer puts before a text; never used here."""
    hub_id: str | None
    licence: str | None
    """As its README names it."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Everything about an imported model but its parameters and its tokenizer."""

    config: ModelConfig
    """Computation (dtype, attention, remat) as by default: that is a run's choice."""
    pad: int
    stop: int
    source: Source


def write_model_card(directory: Path, card: ModelCard) -> None:
    """Write `model.json`."""
    (directory / CARD).write_text(json.dumps(dataclasses.asdict(card), indent=2) + "\n", encoding="utf-8")


def read_model_card(directory: Path) -> ModelCard:
    """Read `model.json`.

    Raises:
        PretrainedError: there is none, or it cannot be read.
        ConfigError: a field of the model that this version does not know.
    """
    if not (directory / CARD).is_file():
        raise PretrainedError(
            f"{directory} must be the folder of an imported model, got no {CARD} in it; run "
            "`r2rank model import HF_DIR --out DIR`"
        )
    values = read_json(directory / CARD)
    try:
        model = from_json({"name": "imported", "model": values["config"]}).model
        return ModelCard(config=model, pad=values["pad"], stop=values["stop"], source=Source(**values["source"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise PretrainedError(f"{directory / CARD} is not complete ({error!r}); import the model again") from error


def save_params(directory: Path, params: Params) -> None:
    """Write `params/` from this one process.

    Uncompressed and a file per shard: each is written straight from where it lies, while compression and Orbax's
    database of small pieces would hold copies of them. From an accelerator, one array at a time passes through.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every barrier
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False, save_device_host_concurrent_gb=1)
    with ocp.Checkpointer(handler) as writer:
        writer.save(directory.absolute() / PARAMS, args=ocp.args.PyTreeSave(params))


def load_pretrained(directory: Path, like: Params, config: ModelConfig | None = None) -> Params:
    """The parameters of an imported model, under any sharding.

    Args:
        directory: that `r2rank model import` wrote.
        like: abstract parameters with shapes, types and shardings, without adapters.
        config: of the model that is to use them, with adapters or without; of equal shapes, another model would load
            all the same. None where it was read from this very folder.

    Raises:
        PretrainedError: no model there, or files that do not match their seal.
        ConfigError: the model there is another one.
    """
    card = read_model_card(directory)
    problem = damage(directory)
    if problem is not None:
        raise PretrainedError(f"the model in {directory} is damaged ({problem}); import it again")
    _require_same_model(directory, card.config, card.config if config is None else config, like)
    with ocp.PyTreeCheckpointer() as reader:
        restore_args = ocp.checkpoint_utils.construct_restore_args(like)
        return reader.restore(
            directory.absolute() / PARAMS, args=ocp.args.PyTreeRestore(item=like, restore_args=restore_args)
        )


def _require_same_model(directory: Path, there: ModelConfig, here: ModelConfig, like: Params) -> None:
    no_matter = {field: getattr(there, field) for field in ("dtype", "lora_rank", "lora_alpha")}
    saved, now = (
        without_machine_settings(dataclasses.asdict(dataclasses.replace(c, **no_matter))) for c in (there, here)
    )
    changed = differences(saved, now, "model.")
    if not changed:
        shapes = meta.unbox(jax.eval_shape(lambda: initial_params(there, jax.random.key(0))))
        changed = differences(_shapes(shapes), _shapes(like))
    if changed:
        raise ConfigError(
            f"the model in {directory} is another one than the configuration says; differing (there -> here): "
            f"{'; '.join(changed)}. Take the fields from its {CARD}, or name another model"
        )


def _shapes(tree: Params) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): str(leaf.shape) for path, leaf in leaves}
