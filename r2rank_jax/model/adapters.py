"""Low-rank adapters (LoRA, Hu et al. 2022): trained low-rank products that are added to the frozen matrices.

The matrix W [in, out] named "q" gets the factors q_a [in, r] and q_b [r, out]: x W becomes x W + (x a) b · alpha / r.
b starts at zero, so a new adapter changes nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from r2rank_jax.config import ModelConfig
from r2rank_jax.model.hf_names import adapter_tensors
from r2rank_jax.types import Array, Params

# The adapted matrices, and the number of input axes of each matrix in one layer.
INPUT_AXES = {
    "attention": {"q": 1, "k": 1, "v": 1, "o": 2},
    "mlp": {"gate": 1, "up": 1, "down": 1},
}


def is_adapter(name: str) -> bool:
    """Whether this is the name of an adapter's factor."""
    return name[-2:] in ("_a", "_b") and any(name[:-2] in matrices for matrices in INPUT_AXES.values())


def merged(config: ModelConfig, params: Params) -> Params:
    """Parameters of the same model without adapters: each low-rank product is added to its matrix.

    Args:
        config: shape of the model; `without_adapters` gives the shape of the result.
        params: with stacked layers. Without adapters they are returned as they are, stacked or not.
    """
    if not config.lora_rank:
        return params

    def one_layer(layer: Params) -> Params:
        result = dict(layer)
        for part, matrices in INPUT_AXES.items():
            weights = layer[part]
            result[part] = {name: weight for name, weight in weights.items() if not is_adapter(name)}
            for name in matrices:
                result[part][name] = weights[name] + delta(config, weights[f"{name}_a"], weights[f"{name}_b"])
        return result

    return params | {"layers": jax.vmap(one_layer)(params["layers"])}


def delta(config: ModelConfig, a: Array, b: Array) -> Array:
    """The term that an adapter adds to its matrix: [in.., r] and [r, out..] -> [in.., out..]."""
    return jnp.tensordot(a, b, axes=1) * (config.lora_alpha / config.lora_rank)


def without_adapters(config: ModelConfig) -> ModelConfig:
    """The shape of the model whose parameters `merged` returns."""
    return dataclasses.replace(config, lora_rank=0)


def adapter_config(config: ModelConfig, base: str) -> dict[str, Any]:
    """The content of PEFT's `adapter_config.json`.

    Args:
        config: shape of the model, with adapters.
        base: hub id or folder of the model that the adapters were trained on; may be empty.
    """
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": config.lora_rank,
        "lora_alpha": config.lora_alpha,  # PEFT also multiplies by lora_alpha / r
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(dict.fromkeys(tensor.name.split(".")[-3] for tensor in adapter_tensors(config))),
    }
