"""Low-rank adapters (LoRA, Hu et al. 2022): a small product beside each matrix of a layer, trained instead of it.

A matrix W [in, out] named "q" gets q_a [in, r] and q_b [r, out] beside it: x W becomes x W + (x a) b · alpha / r.
b starts at zero, so a fresh adapter changes nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from r2rank_jax.config import ModelConfig
from r2rank_jax.model.hf_names import adapter_tensors
from r2rank_jax.types import Array, Params

# The matrices that are adapted, and how many axes of each, in one layer, are its input's.
INPUT_AXES = {
    "attention": {"q": 1, "k": 1, "v": 1, "o": 2},
    "mlp": {"gate": 1, "up": 1, "down": 1},
}


def is_adapter(name: str) -> bool:
    """Whether this is what a factor of an adapter is called."""
    return name[-2:] in ("_a", "_b") and any(name[:-2] in matrices for matrices in INPUT_AXES.values())


def merged(config: ModelConfig, params: Params) -> Params:
    """The parameters of the same model without adapters: each product is added to its matrix.

    Args:
        config: shape of the model; `without_adapters` gives that of the result.
        params: layers stacked, or anything where there are no adapters.
    """
    if not config.lora_rank:
        return params

    def one_layer(layer: Params) -> Params:
        found = dict(layer)
        for part, matrices in INPUT_AXES.items():
            weights = layer[part]
            found[part] = {name: weight for name, weight in weights.items() if not is_adapter(name)}
            for name in matrices:
                found[part][name] = weights[name] + delta(config, weights[f"{name}_a"], weights[f"{name}_b"])
        return found

    return params | {"layers": jax.vmap(one_layer)(params["layers"])}


def delta(config: ModelConfig, a: Array, b: Array) -> Array:
    """What one adapter adds to its matrix: [in.., r] and [r, out..] -> [in.., out..]."""
    return jnp.tensordot(a, b, axes=1) * (config.lora_alpha / config.lora_rank)


def without_adapters(config: ModelConfig) -> ModelConfig:
    """The shape of the model that `merged` gives parameters of."""
    return dataclasses.replace(config, lora_rank=0)


def adapter_config(config: ModelConfig, base: str) -> dict[str, Any]:
    """PEFT's `adapter_config.json`.

    Args:
        config: of the model, with adapters.
        base: hub id or folder of the model they belong to; may be empty.
    """
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": config.lora_rank,
        "lora_alpha": config.lora_alpha,  # PEFT, too, multiplies by lora_alpha / r
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(dict.fromkeys(tensor.name.split(".")[-3] for tensor in adapter_tensors(config))),
    }
