"""The folder of an imported model: its description, parameters, tokenizer, and a seal over all files.

model.json   `ModelCard`, with the frame that the chat template gave at import
params/      Orbax, float32
tokenizer/   the files of `tokenizer_files.COPIED`
LICENSE*     the base model's license, if it has one
seal.json    SHA-256 of every file, written last
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from flax.core import meta

from r2rank_jax.config import ModelConfig, differences, from_json
from r2rank_jax.data.prompts.frame import Frame
from r2rank_jax.errors import ConfigError, PretrainedError
from r2rank_jax.files.checksums import damage
from r2rank_jax.lineage import without_machine_settings
from r2rank_jax.model.transformer import initial_params
from r2rank_jax.pretrained.tokenizer_files import TOKENIZER, read_json
from r2rank_jax.pretrained.weights import StoredDtype
from r2rank_jax.types import Params

CARD, PARAMS, TOKENIZER_FOLDER = "model.json", "params", "tokenizer"
BASE = "base"
"""Folder inside a run directory, with `model.json` and `tokenizer/` of the imported model that the run started from."""


@dataclass(frozen=True, kw_only=True)
class ModelOrigin:
    """Where an imported model comes from."""

    architecture: str
    sha256: str
    """Hash of the bytes of its safetensors files, concatenated in order of their names."""
    positions: int
    """Longest sequence that it was trained on."""
    bos: int | None
    """Id that its tokenizer puts before a text; not used by this package."""
    hub_id: str | None
    licence: str | None
    """The license, as named in its README."""
    dtype: StoredDtype | None = None
    """Type of its weights, float32 if they have several; None if it was imported before this was recorded."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Description of an imported model, without its parameters and its tokenizer."""

    config: ModelConfig
    """Fields of the computation (dtype, attention, remat) have their defaults, because a run chooses them."""
    pad: int
    stop: int
    source: ModelOrigin
    frame: Frame | None = None
    """What its chat template puts around a prompt, rendered at import; None if it was imported before this was kept."""


def write_model_card(directory: Path, card: ModelCard) -> None:
    """Write `model.json`."""
    (directory / CARD).write_text(json.dumps(dataclasses.asdict(card), indent=2) + "\n", encoding="utf-8")


def read_model_card(directory: Path) -> ModelCard:
    """Read `model.json`.

    Raises:
        PretrainedError: the file is missing or cannot be read.
        ConfigError: the model has a field that this version does not know.
    """
    if not (directory / CARD).is_file():
        raise PretrainedError(
            f"{directory} must be the folder of an imported model, got no {CARD} in it; run "
            "`r2rank model import HF_DIR --out DIR`"
        )
    values = read_json(directory / CARD)
    try:
        model = from_json({"name": "imported", "model": values["config"]}).model
        frame = None if values.get("frame") is None else Frame(**values["frame"])
        source = ModelOrigin(**values["source"])
        return ModelCard(config=model, pad=values["pad"], stop=values["stop"], source=source, frame=frame)
    except (KeyError, TypeError, AttributeError) as error:
        raise PretrainedError(f"{directory / CARD} is not complete ({error!r}); import the model again") from error


def tokenizer_hash(run_dir: Path) -> str:
    """SHA-256 of a run's tokenizer: of its files, special ids and frame if the run started from an imported model."""
    base = run_dir / BASE
    if not base.is_dir():
        return hashlib.sha256((run_dir / TOKENIZER).read_bytes()).hexdigest()
    return imported_tokenizer_hash(base)


def imported_tokenizer_hash(directory: Path) -> str:
    """SHA-256 of an imported model's tokenizer, which is that of a run that starts from the model."""
    card, folder = read_model_card(directory), directory / TOKENIZER_FOLDER
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}
    identity = [files, card.pad, card.stop] + ([] if card.frame is None else [dataclasses.asdict(card.frame)])
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def save_params(directory: Path, params: Params) -> None:
    """Write `params/` from a single process.

    The files are uncompressed, one per shard, because each shard is then written directly from its buffer. Compression
    and Orbax's database of small pieces would hold copies. From an accelerator, arrays are copied one at a time.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every barrier
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False, save_device_host_concurrent_gb=1)
    with ocp.Checkpointer(handler) as writer:
        writer.save(directory.absolute() / PARAMS, args=ocp.args.PyTreeSave(params))


def load_pretrained(directory: Path, like: Params, config: ModelConfig | None = None) -> Params:
    """Load the parameters of an imported model, under any sharding.

    Args:
        directory: folder that `r2rank model import` wrote.
        like: abstract parameters with shapes, types and shardings, without adapters.
        config: configuration of the model that will use the parameters, with or without adapters. It is compared with
            the stored one, because a different model with equal shapes would load without an error. None if it was read
            from this folder.

    Raises:
        PretrainedError: the folder holds no model, or its files do not match their seal.
        ConfigError: the folder holds a different model.
    """
    card = read_model_card(directory)
    problem = damage(directory)
    if problem is not None:
        raise PretrainedError(f"the model in {directory} is damaged ({problem}); import it again")
    require_model_of(directory, card.config, card.config if config is None else config, like)
    with ocp.PyTreeCheckpointer() as reader:
        restore_args = ocp.checkpoint_utils.construct_restore_args(like)
        return reader.restore(
            directory.absolute() / PARAMS, args=ocp.args.PyTreeRestore(item=like, restore_args=restore_args)
        )


def require_model_of(directory: Path, stored: ModelConfig, required: ModelConfig, like: Params) -> None:
    """Refuse an imported model that is not the one of a configuration.

    Args:
        directory: of the imported model.
        stored: the configuration in its card.
        required: the configuration of the run, without adapters.
        like: abstract parameters of `required`.

    Raises:
        ConfigError: a field or a shape differs.
    """
    ignored = {field: getattr(stored, field) for field in ("dtype", "lora_rank", "lora_alpha")}
    old, new = (
        without_machine_settings(dataclasses.asdict(dataclasses.replace(c, **ignored))) for c in (stored, required)
    )
    changed = differences(old, new, "model.")
    if not changed:
        shapes = meta.unbox(jax.eval_shape(lambda: initial_params(stored, jax.random.key(0))))
        changed = differences(_shapes(shapes), _shapes(like))
    if changed:
        raise ConfigError(
            f"the model in {directory} must match the configuration, got differences (stored -> configured): "
            f"{'; '.join(changed)}. Take the fields from its {CARD}, or name another model"
        )


def _shapes(tree: Params) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): str(leaf.shape) for path, leaf in leaves}
