"""`r2rank export`: write a run's policy or an imported model as a Hugging Face directory that transformers reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer

from r2rank_jax.checkpoint.folders import sealed_steps
from r2rank_jax.checkpoint.policy import LoadedPolicy, load_policy
from r2rank_jax.config import MeshConfig, ModelConfig, RunConfig, from_json, read
from r2rank_jax.data.prompts.frame import Frame, has_template
from r2rank_jax.data.prompts.tokenizer import read_tokenizer
from r2rank_jax.errors import ConfigError, PretrainedError
from r2rank_jax.evaluation.results import read_results
from r2rank_jax.files.atomic import replacing_folder
from r2rank_jax.lineage import require_same_prompts
from r2rank_jax.model.adapters import adapter_config, delta, merged, without_adapters
from r2rank_jax.model.hf_config import Form, config_to_hf, family_of
from r2rank_jax.model.hf_names import SCORE_HEAD, Tensor, adapter_tensors, tensors
from r2rank_jax.phases import PHASES, Phase
from r2rank_jax.pretrained.folder import (
    BASE,
    CARD,
    TOKENIZER_FOLDER,
    ModelOrigin,
    load_pretrained,
    read_model_card,
    tokenizer_hash,
)
from r2rank_jax.pretrained.importing import copy_license, require_free
from r2rank_jax.pretrained.page import ExportForm, Training, model_page
from r2rank_jax.pretrained.rounding import OutputChange, ParameterChange, described, output_changes
from r2rank_jax.pretrained.tokenizer_files import (
    TOKENIZER,
    SpecialIds,
    copy_tokenizer,
    set_padding,
    write_settings,
)
from r2rank_jax.pretrained.weights import SCORE_FILE, StoredDtype, write_file, write_sharded
from r2rank_jax.sharding import abstract_params, make_mesh
from r2rank_jax.types import Array, Params


@dataclass(frozen=True)
class Policy:
    """A model to export."""

    directory: Path
    """Folder with the tokenizer."""
    config: ModelConfig
    params: Params
    ids: SpecialIds
    positions: int
    """Longest sequence that the model supports."""
    base: ModelOrigin | None
    """The imported model, or the one that training started from; None if the policy was trained from scratch."""
    training: Training | None
    frame: Frame | None
    """Text around a prompt; None if the model was imported before frames were kept."""


def export(
    source: Path,
    out: Path,
    *,
    phase: Phase = "rl",
    form: ExportForm = "causal-lm",
    dtype: StoredDtype | None = None,
    shard_gib: float = 4.0,
) -> None:
    """Write a Hugging Face directory.

    The scoring head of a CausalLM, or of adapters, is stored in a separate file, `score_head.safetensors`. Transformers
    ignores this file, and `r2rank model import` reads it. A scorer has no language head, unless the embedding serves as
    one. In a CausalLM and a scorer, adapters are merged into the weights. What rounding to `dtype` changes is printed
    and written on the model's page.

    Args:
        source: a run directory, or a folder that `r2rank model import` wrote.
        out: directory to write. It must be empty or not exist, and it does not exist after a failure.
        phase: phase of a run directory: "sft", "sft_continued" or "rl".
        form: "causal-lm", "scorer", or "adapters" only, in PEFT's layout.
        dtype: type of the stored weights. None: the type that the model came in, or float32 if it was trained from
            scratch; a trained scorer is float32 too, because its scores should equal ours to 1e-4.
        shard_gib: maximum size of a file of a whole model, in GiB; adapters are one file.

    Raises:
        ConfigError: no supported architecture computes this model, or a setting is invalid.
        PretrainedError: there is nothing to export, or the imported model is damaged.
        CheckpointError: the run's checkpoint is damaged or was not finished.
    """
    require_free(out)
    if shard_gib <= 0:
        raise ConfigError(f"--shard-gib must be positive, got {shard_gib}; the default is 4")
    policy = _imported(source) if (source / CARD).is_file() and not (source / "checkpoints").is_dir() else None
    policy = policy or _trained(source, phase)
    dtype = dtype or _default_dtype(policy, form)
    change = ParameterChange(dtype)
    head = _score_head(policy.config)
    with replacing_folder(out) as partial:
        if form == "adapters":
            _write_adapters(policy, partial, change)
        else:
            _write_model(policy, partial, form, change, int(shard_gib * 2**30))
        if form != "scorer":
            write_file(partial / SCORE_FILE, {head.name: head.shape}, _reader(policy, [head]), "float32")
        _write_tokenizer(policy, partial, form)
        rounding = described(change, _output_changes(policy, form, dtype) if change.largest else [])
        page = model_page(
            name=out.name,
            config=policy.config,
            form=form,
            ids=policy.ids,
            base=policy.base,
            training=policy.training,
            frame=policy.frame or (None if has_template(partial) else Frame()),
            rounding=rounding,
        )
        (partial / "README.md").write_text(page, encoding="utf-8")
        copy_license(policy.directory, partial)
    print(f"{out}: {family_of(without_adapters(policy.config))}, {form}, {dtype}; {rounding}")


def _default_dtype(policy: Policy, form: ExportForm) -> StoredDtype:
    trained_scorer = form == "scorer" and policy.training is not None
    return "float32" if policy.base is None or trained_scorer else policy.base.dtype or "float32"


def _output_changes(policy: Policy, form: ExportForm, dtype: StoredDtype) -> list[OutputChange]:
    only_adapters, config, params = form == "adapters", policy.config, policy.params
    if config.lora_rank and not only_adapters:
        config, params = without_adapters(config), jax.jit(lambda params: merged(config, params))(params)
    scorer = form == "scorer"
    return output_changes(config, params, dtype, policy.positions, head=scorer, only_adapters=only_adapters)


def _write_model(policy: Policy, folder: Path, form: Form, change: ParameterChange, shard_bytes: int) -> None:
    config = without_adapters(policy.config)
    wanted = tensors(config, language_head=form == "causal-lm", score_head=form == "scorer")
    description = config_to_hf(
        config,
        form=form,
        pad=policy.ids.pad,
        stop=policy.ids.stop,
        bos=policy.ids.bos,
        positions=policy.positions,
        dtype=change.dtype,
    )
    (folder / "config.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    shapes = {tensor.name: tensor.shape for tensor in wanted}
    write_sharded(folder, shapes, change.watch(_reader(policy, wanted)), change.dtype, shard_bytes)


def _write_adapters(policy: Policy, folder: Path, change: ParameterChange) -> None:
    if not policy.config.lora_rank:
        raise ConfigError(
            "--form adapters needs a policy that was trained with trained=adapters, got one with model.lora_rank=0; "
            "export it as causal-lm or scorer"
        )
    if policy.base is None:
        raise ConfigError(
            "--form adapters needs a policy that started from an imported base model, got a run without `pretrained`, "
            "which started from random weights; export it as causal-lm or scorer"
        )
    wanted = adapter_tensors(policy.config)
    description = adapter_config(policy.config, policy.base.hub_id or "")
    (folder / "adapter_config.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    shapes = {tensor.name: tensor.shape for tensor in wanted}
    write_file(folder / "adapter_model.safetensors", shapes, change.watch(_reader(policy, wanted)), change.dtype)


def _imported(directory: Path) -> Policy:
    card = read_model_card(directory)
    params = load_pretrained(directory, abstract_params(_all_devices(), card.config))
    ids = SpecialIds(card.pad, card.stop, card.source.bos)
    return Policy(directory, card.config, params, ids, card.source.positions, card.source, None, card.frame)


def _trained(run_dir: Path, phase: Phase) -> Policy:
    """A run's policy, with the tokenizer of the imported model if the run started from one."""
    if not (run_dir / "config.json").is_file() or not (run_dir / "checkpoints").is_dir():
        raise PretrainedError(
            f"the model to export must be a run directory (config.json, checkpoints/) or an imported model ({CARD}), "
            f"got {run_dir}, which is neither"
        )
    trained = [name for name in PHASES if sealed_steps(run_dir / "checkpoints" / name)]
    if phase not in trained:
        raise PretrainedError(f"--phase must be one that {run_dir} has trained ({', '.join(trained)}), got {phase}")
    config = read(run_dir / "config.json")
    like = abstract_params(_all_devices(), config.model)
    policy = load_policy(run_dir / "checkpoints" / phase, like, config)
    params, record = policy.params, policy.record
    require_same_prompts(record, config, tokenizer_hash(run_dir))
    saved = from_json(dict(record.config))  # config.json may have changed since
    results = _results_of(policy, run_dir)
    training = Training(config=saved, record=record, identity=policy.identity, results=results)
    if config.pretrained is not None:
        base = run_dir / BASE  # the folder in pretrained may have been deleted
        card = read_model_card(base)
        ids = SpecialIds(card.pad, card.stop, card.source.bos)
        return Policy(base, config.model, params, ids, card.source.positions, card.source, training, card.frame)
    tokenizer = read_tokenizer(run_dir / TOKENIZER)
    ids = SpecialIds(tokenizer.pad, tokenizer.stop, None)
    return Policy(run_dir, config.model, params, ids, _prompt_tokens(saved), None, training, Frame())


def _results_of(policy: LoadedPolicy, run_dir: Path) -> dict[str, Any] | None:
    """The results of the run, if they are this policy's."""
    path, phase = run_dir / "results.json", policy.record.phase
    if not path.is_file():
        return None
    results = read_results(path)
    training = results["training"].get(phase)
    if not isinstance(training, dict) or training.get("checkpoint", policy.identity) == policy.identity:
        return results
    print(f"{path} evaluates another checkpoint of {phase}, so the page shows no results; run `r2rank eval` first")
    return None


def _prompt_tokens(config: RunConfig) -> int:
    return config.data.prefix_tokens + config.data.suffix_tokens + config.data.rationale_tokens


def _all_devices() -> Any:
    return make_mesh(MeshConfig(fsdp=jax.device_count()))


def _write_tokenizer(policy: Policy, target: Path, form: ExportForm) -> None:
    if policy.base is None:
        shutil.copyfile(policy.directory / TOKENIZER, target / TOKENIZER)
        write_settings(target, Tokenizer.from_file(str(target / TOKENIZER)), policy.ids, policy.positions)
        return
    copy_tokenizer(policy.directory / TOKENIZER_FOLDER, target)
    if form == "scorer":
        set_padding(target, policy.ids.pad)


def _score_head(config: ModelConfig) -> Tensor:
    return next(t for t in tensors(config, language_head=False, score_head=True) if t.name == SCORE_HEAD)


def _reader(policy: Policy, wanted: list[Tensor]) -> Callable[[str], np.ndarray]:
    """Return a function from a tensor's name to its value in Hugging Face's layout, with its adapter merged.

    A tensor is copied to the host only when it is requested.
    """
    by_name = {tensor.name: tensor for tensor in wanted}

    def value(name: str) -> np.ndarray:
        tensor, part = by_name[name], policy.params
        for key in tensor.path[:-1]:
            part = part[key]
        last = tensor.path[-1]
        a, b = f"{last}_a", f"{last}_b"
        own = {key: _of_layer(part[key], tensor.layer) for key in (last, a, b) if key in part}
        return tensor.to_hf(np.asarray(own[last] + delta(policy.config, own[a], own[b]) if a in own else own[last]))

    return value


def _of_layer(leaf: Array, layer: int | None) -> Array:
    return leaf if layer is None else leaf[layer]
