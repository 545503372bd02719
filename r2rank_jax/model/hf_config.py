"""Read and write the config.json of a Hugging Face checkpoint.

A null counts as a missing value, and a missing value is the one that the family's class in transformers takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from r2rank_jax.config import ModelConfig
from r2rank_jax.errors import ConfigError

Form = Literal["causal-lm", "scorer"]
"""`...ForCausalLM`, which writes rationales, or `...ForSequenceClassification` with one label, which scores them."""

_CLASSES: dict[str, Form] = {"ForCausalLM": "causal-lm", "ForSequenceClassification": "scorer"}
_FAMILIES = ("Qwen2", "Qwen3", "Llama")
ARCHITECTURES = tuple(f"{family}{kind}" for kind in _CLASSES for family in _FAMILIES)
_T = TypeVar("_T")
_POSITIONS = {"Qwen2": 32768, "Qwen3": 32768, "Llama": 2048}


def architecture_of(values: Mapping[str, Any]) -> tuple[str, Form]:
    """The family ("Qwen2", "Qwen3", "Llama") and the form that a config.json names.

    Raises:
        ConfigError: the architecture is not supported.
    """
    named = values.get("architectures") or []
    for kind, form in _CLASSES.items():
        for family in _FAMILIES:
            if named == [family + kind]:
                return family, form
    raise ConfigError(
        f"config.json must name one architecture of {', '.join(ARCHITECTURES)}, got {named}; import one of these"
    )


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Convert the content of a Hugging Face config.json.

    Args:
        values: the content. RoPE settings may be in `rope_parameters` (transformers 5) or in `rope_theta` and
            `rope_scaling`.

    Raises:
        ConfigError: a setting that this decoder does not support, or a missing value.
    """
    family, form = architecture_of(values)
    _refuse_what_differs(values, family, form)
    # In Qwen's classes, a missing number of key and value heads is 32, and null is the number of heads.
    one_each = values.get("num_key_value_heads", None if family == "Llama" else "missing") is None
    values = _without_nulls(values)
    heads, width = _integer(values, "num_attention_heads"), _integer(values, "hidden_size")
    return ModelConfig(
        vocabulary=_integer(values, "vocab_size"),
        width=width,
        layers=_integer(values, "num_hidden_layers"),
        heads=heads,
        kv_heads=heads if one_each else _integer(values, "num_key_value_heads"),
        head_size=_integer(values, "head_dim", 128 if family == "Qwen3" else width // heads),
        mlp_width=_integer(values, "intermediate_size"),
        qk_norm=family == "Qwen3",
        attention_bias=family == "Qwen2",
        tied_embeddings=_typed(values, "tie_word_embeddings", bool, False),
        norm_epsilon=_number(values, "rms_norm_eps", 1e-6),
        **_rope(values),
    )


def positions_from_hf(values: Mapping[str, Any]) -> int:
    """The longest sequence that the model of a config.json was trained on.

    Raises:
        ConfigError: the architecture is not supported, or the value is not a positive integer.
    """
    family, _ = architecture_of(values)
    return _integer(_without_nulls(values), "max_position_embeddings", _POSITIONS[family])


def family_of(config: ModelConfig) -> str:
    """The family whose classes in transformers compute this model.

    Raises:
        ConfigError: no family does.
    """
    if config.qk_norm and config.attention_bias:
        raise ConfigError(
            "no supported architecture has both model.qk_norm (Qwen3) and model.attention_bias (Qwen2); the model can "
            "be trained and used here but not exported"
        )
    if not config.qk_norm and not config.attention_bias and config.width % config.heads:
        raise ConfigError(
            f"transformers accepts a Llama only if its number of heads divides its width, got "
            f"model.heads={config.heads} and model.width={config.width}; the model can be trained and used here but "
            "not exported"
        )
    return "Qwen3" if config.qk_norm else "Qwen2" if config.attention_bias else "Llama"


def config_to_hf(
    config: ModelConfig, *, form: Form, pad: int, stop: int, bos: int | None, positions: int, dtype: str
) -> dict[str, Any]:
    """Inverse of `config_from_hf`, with keys that transformers 4 and 5 and other readers understand.

    Args:
        config: shape of the model.
        form: which of the two heads is exported.
        pad: id of the padding token; a scorer reads the last token that is not padding.
        stop: id of the token that ends a rationale.
        bos: id of the token that the tokenizer puts before a text, if any.
        positions: the longest supported sequence.
        dtype: of the stored weights, "float32", "bfloat16" or "float16".

    Raises:
        ConfigError: no family computes the model, or a scorer's padding token is its stop token.
    """
    family = family_of(config)
    if form == "scorer" and pad == stop:
        raise ConfigError(
            f"a scorer needs a padding token that is not its stop token {stop}: transformers scores the last token "
            "that is not padding; give the tokenizer a padding token of its own, or export with --form causal-lm"
        )
    kind = next(kind for kind, class_form in _CLASSES.items() if class_form == form)
    values = {
        "architectures": [family + kind],
        "model_type": family.lower(),
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_scaling(config),
        "max_position_embeddings": positions,
        "tie_word_embeddings": config.tied_embeddings,
        "use_cache": True,
        "torch_dtype": dtype,
        "bos_token_id": bos,
        "eos_token_id": stop,
        "pad_token_id": pad,
    }
    values |= {"attention_bias": False} if family != "Qwen2" else {}
    values |= {"mlp_bias": False} if family == "Llama" else {"use_sliding_window": False}
    return values | ({"id2label": {"0": "score"}, "label2id": {"score": 0}} if form == "scorer" else {})


def _rope_scaling(config: ModelConfig) -> dict[str, Any] | None:
    if config.rope_factor == 1.0:
        return None
    return {
        "rope_type": "llama3",
        "factor": config.rope_factor,
        "low_freq_factor": config.rope_low_frequency,
        "high_freq_factor": config.rope_high_frequency,
        "original_max_position_embeddings": config.rope_original_positions,
    }


def _without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _refuse_what_differs(values: Mapping[str, Any], family: str, form: Form) -> None:
    """Refuse settings with which a supported architecture differs from our decoder."""
    windows = values.get("sliding_window", 4096) is not None  # null: none; missing: that of Qwen's classes
    values = _without_nulls(values)
    if values.get("auto_map"):
        raise ConfigError(
            f"config.json must not name custom code, got auto_map={values['auto_map']}: custom code is never run; if "
            "the weights belong to the plain architecture, remove auto_map from config.json"
        )
    if values.get("quantization_config"):
        raise ConfigError("weights must not be quantized, got a quantization_config; import the original weights")
    only = {"hidden_act": "silu", "mlp_bias": False, "rope_interleaved": False}
    only |= {} if family == "Qwen2" else {"attention_bias": False}  # Qwen2 always has these biases
    for name, supported in only.items():
        value = values.get(name, supported)
        if value != supported:
            raise ConfigError(f"{name} must be {supported!r}, got {value!r}; import a model without it")
    kinds = _typed(values, "layer_types", list, [])
    windows &= not kinds and _typed(values, "use_sliding_window", bool, False)
    first = _typed(values, "max_window_layers", int, 0)
    if any(kind != "full_attention" for kind in kinds) or (windows and first < _integer(values, "num_hidden_layers")):
        raise ConfigError(
            "every layer must attend to all tokens before it, got "
            f"sliding_window={values.get('sliding_window')} in use; import a model with full attention"
        )
    labels = len(_typed(values, "id2label", dict, {})) or values.get("num_labels", 2)
    if form == "scorer" and labels != 1:
        raise ConfigError(f"a sequence classifier must have 1 label, the score, got {labels}; import its CausalLM")


def _rope(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields `rope_*` of `ModelConfig`."""
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    scaling = _typed(values, "rope_scaling", dict, {}) or _typed(values, "rope_parameters", dict, {})
    scaling = _without_nulls(scaling)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    partial = scaling.get("partial_rotary_factor", values.get("partial_rotary_factor", 1.0))
    if any(isinstance(part, dict) for part in scaling.values()) or kind not in ("default", "llama3") or partial != 1.0:
        raise ConfigError(
            f"RoPE must be of type default or llama3, the same in all layers and over whole heads, got {scaling}; "
            "import a model with one of these types"
        )
    theta = {"rope_theta": _number({**values, **scaling}, "rope_theta", 10_000.0)}
    if kind == "default":
        return theta
    if any(name not in scaling for name in names):
        raise ConfigError(f"RoPE of type llama3 must have {', '.join(names)}, got {scaling}; restore config.json")
    return theta | {
        "rope_factor": _number(scaling, "factor"),
        "rope_low_frequency": _number(scaling, "low_freq_factor"),
        "rope_high_frequency": _number(scaling, "high_freq_factor"),
        "rope_original_positions": _integer(scaling, "original_max_position_embeddings"),
    }


def _integer(values: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = values.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"config.json must give {name} as an integer of at least 1, got {value!r}; restore it")
    return value


def _number(values: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = values.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ConfigError(f"config.json must give {name} as a positive number, got {value!r}; restore it")
    return float(value)


def _typed(values: Mapping[str, Any], name: str, kind: type[_T], default: _T) -> _T:
    value = values.get(name, default)
    if not isinstance(value, kind):
        raise ConfigError(f"config.json must give {name} as {kind.__name__} or not at all, got {value!r}; restore it")
    return value
