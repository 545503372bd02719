"""Map Hugging Face checkpoints to our parameters and back: tensor names, layouts, and config.json.

One table serves both directions. Axes are named by the letters of `r2rank_jax.types`; in addition, F is the width of
the MLP, K stands for KV, R is the rank of an adapter, and 1 is an axis of size one. Letters written together are one
axis of the Hugging Face tensor, with the last letter varying fastest. Hugging Face stores torch Linear weights
[out, in]. We store the transpose [in, out] with a separate axis for heads, and all layers in one array with a leading
layer axis. Both sides rotate halves in RoPE, so rows need no permutation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from r2rank_jax.config import ModelConfig
from r2rank_jax.errors import ConfigError

Form = Literal["causal-lm", "scorer"]
"""`...ForCausalLM`, which writes rationales, or `...ForSequenceClassification` with one label, which scores them."""

LANGUAGE_HEAD, SCORE_HEAD = "lm_head.weight", "score.weight"

_LAYER = "model.layers.{layer}."
_CLASSES: dict[str, Form] = {"ForCausalLM": "causal-lm", "ForSequenceClassification": "scorer"}
_FAMILIES = ("Qwen2", "Qwen3", "Llama")
ARCHITECTURES = tuple(f"{family}{kind}" for kind in _CLASSES for family in _FAMILIES)
_IGNORED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")  # a constant in old checkpoints


def _always(config: ModelConfig) -> bool:
    return True


def _biased(config: ModelConfig) -> bool:
    return config.attention_bias


def _normed(config: ModelConfig) -> bool:
    return config.qk_norm


# Hugging Face name, Hugging Face axes, our path, our axes (of one layer), whether a model has the tensor
_TABLE: tuple[tuple[str, str, str, str, Callable[[ModelConfig], bool]], ...] = (
    ("model.embed_tokens.weight", "V D", "embedding", "V D", _always),
    (_LAYER + "input_layernorm.weight", "D", "layers.attention_norm.scale", "D", _always),
    (_LAYER + "self_attn.q_proj.weight", "QH D", "layers.attention.q", "D Q H", _always),
    (_LAYER + "self_attn.k_proj.weight", "KH D", "layers.attention.k", "D K H", _always),
    (_LAYER + "self_attn.v_proj.weight", "KH D", "layers.attention.v", "D K H", _always),
    (_LAYER + "self_attn.o_proj.weight", "D QH", "layers.attention.o", "Q H D", _always),
    (_LAYER + "self_attn.q_proj.bias", "QH", "layers.attention.q_bias", "Q H", _biased),
    (_LAYER + "self_attn.k_proj.bias", "KH", "layers.attention.k_bias", "K H", _biased),
    (_LAYER + "self_attn.v_proj.bias", "KH", "layers.attention.v_bias", "K H", _biased),
    (_LAYER + "self_attn.q_norm.weight", "H", "layers.attention.q_norm.scale", "H", _normed),
    (_LAYER + "self_attn.k_norm.weight", "H", "layers.attention.k_norm.scale", "H", _normed),
    (_LAYER + "post_attention_layernorm.weight", "D", "layers.mlp_norm.scale", "D", _always),
    (_LAYER + "mlp.gate_proj.weight", "F D", "layers.mlp.gate", "D F", _always),
    (_LAYER + "mlp.up_proj.weight", "F D", "layers.mlp.up", "D F", _always),
    (_LAYER + "mlp.down_proj.weight", "D F", "layers.mlp.down", "F D", _always),
    ("model.norm.weight", "D", "final_norm.scale", "D", _always),
    (LANGUAGE_HEAD, "V D", "lm_head", "V D", lambda config: not config.tied_embeddings),
    (SCORE_HEAD, "1 D", "score_head", "D", _always),
)


@dataclass(frozen=True)
class Tensor:
    """One tensor of a Hugging Face checkpoint and its place in our parameters."""

    name: str
    """In the Hugging Face checkpoint."""
    shape: tuple[int, ...]
    """In the Hugging Face checkpoint."""
    path: tuple[str, ...]
    """Keys of our parameter tree."""
    layer: int | None
    """Index into the leading axis of our array; None if it has no layer axis."""
    split: tuple[int, ...]
    """The Hugging Face shape with joined axes split."""
    order: tuple[int, ...]
    """Our axis i is axis order[i] of `split`."""

    def to_ours(self, tensor: Any) -> Any:
        """Convert a Hugging Face tensor to our array of one layer; a view if the tensor is a contiguous NumPy array."""
        return tensor.reshape(self.split).transpose(self.order)

    def to_hf(self, array: Any) -> Any:
        """Inverse of `to_ours`."""
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return array.transpose(inverse).reshape(self.shape)


def tensors(config: ModelConfig, *, language_head: bool, score_head: bool) -> list[Tensor]:
    """Every tensor of a checkpoint, in the order in which checkpoints are written.

    Args:
        config: shape of the model.
        language_head: include `lm_head.weight`, unless it is tied to the embedding.
        score_head: include `score.weight`.
    """
    heads = {LANGUAGE_HEAD: language_head, SCORE_HEAD: score_head}
    rows = [row for row in _TABLE if heads.get(row[0], True) and row[4](config)]
    outside = [_tensor(config, row, None) for row in rows if "{layer}" not in row[0]]
    layers = [_tensor(config, row, n) for n in range(config.layers) for row in rows if "{layer}" in row[0]]
    return outside[:1] + layers + outside[1:]


def adapter_tensors(config: ModelConfig) -> list[Tensor]:
    """Every tensor of the adapters with PEFT's names and layout: lora_A [r, in] and lora_B [out, r]."""
    rows: list[tuple[str, str, str, str, Any]] = []
    for name, hf_axes, path, _, _ in _TABLE:
        if name.endswith("_proj.weight"):
            stem, (out, into) = "base_model.model." + name.removesuffix(".weight"), hf_axes.split()
            rows.append((f"{stem}.lora_A.weight", f"R {into}", f"{path}_a", f"{' '.join(into)} R", _always))
            rows.append((f"{stem}.lora_B.weight", f"{out} R", f"{path}_b", f"R {' '.join(out)}", _always))
    return [_tensor(config, row, n) for n in range(config.layers) for row in rows]


def ignorable(name: str, config: ModelConfig) -> bool:
    """Whether a checkpoint may contain this tensor although no parameter needs it, because it repeats another value."""
    return bool(_IGNORED.fullmatch(name)) or (name == LANGUAGE_HEAD and config.tied_embeddings)


def _tensor(config: ModelConfig, row: tuple[str, str, str, str, Any], layer: int | None) -> Tensor:
    name, hf_axes, path, axes, _ = row
    size = {
        "1": 1,
        "D": config.width,
        "F": config.mlp_width,
        "H": config.head_size,
        "K": config.kv_heads,
        "Q": config.heads,
        "R": config.lora_rank,
        "V": config.vocabulary,
    }
    letters = hf_axes.replace(" ", "").replace("1", "")
    return Tensor(
        name=name.format(layer=layer),
        shape=tuple(math.prod(size[letter] for letter in axis) for axis in hf_axes.split()),
        path=tuple(path.split(".")),
        layer=layer,
        split=tuple(size[letter] for letter in letters),
        order=tuple(letters.index(letter) for letter in axes.split()),
    )


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
    heads, width = _integer(values, "num_attention_heads"), _integer(values, "hidden_size")
    # Missing values default to those of the family's class in transformers.
    head_size = 128 if family == "Qwen3" else width // heads
    kv_heads = values.get("num_key_value_heads")
    return ModelConfig(
        vocabulary=_integer(values, "vocab_size"),
        width=width,
        layers=_integer(values, "num_hidden_layers"),
        heads=heads,
        kv_heads=heads if kv_heads is None and family == "Llama" else _integer(values, "num_key_value_heads"),
        head_size=head_size if values.get("head_dim") is None else _integer(values, "head_dim"),
        mlp_width=_integer(values, "intermediate_size"),
        qk_norm=family == "Qwen3",
        attention_bias=family == "Qwen2",
        tied_embeddings=bool(values.get("tie_word_embeddings", False)),
        norm_epsilon=float(values.get("rms_norm_eps", 1e-6)),
        **_rope(values),
    )


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
        dtype: of the stored weights, "bfloat16" or "float32".

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


def _refuse_what_differs(values: Mapping[str, Any], family: str, form: Form) -> None:
    """Refuse settings with which a supported architecture differs from our decoder."""
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
    kinds = values.get("layer_types") or []
    every = not kinds and values.get("use_sliding_window", False) and values.get("sliding_window") is not None
    if any(kind != "full_attention" for kind in kinds) or (
        every and values.get("max_window_layers", 0) < _integer(values, "num_hidden_layers")
    ):
        raise ConfigError(
            f"every layer must attend to all tokens before it, got sliding_window={values.get('sliding_window')} in "
            "use; import a model with full attention"
        )
    labels = len(values["id2label"]) if values.get("id2label") else values.get("num_labels", 2)
    if form == "scorer" and labels != 1:
        raise ConfigError(f"a sequence classifier must have 1 label, the score, got {labels}; import its CausalLM")


def _rope(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields `rope_*` of `ModelConfig`."""
    scaling = values.get("rope_scaling") or values.get("rope_parameters") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    partial = scaling.get("partial_rotary_factor", values.get("partial_rotary_factor", 1.0))
    if any(isinstance(part, dict) for part in scaling.values()) or kind not in ("default", "llama3") or partial != 1.0:
        raise ConfigError(
            f"RoPE must be of type default or llama3, the same in all layers and over whole heads, got {scaling}; "
            "import a model with one of these types"
        )
    theta = {"rope_theta": float(scaling.get("rope_theta", values.get("rope_theta", 10_000.0)))}
    if kind == "default":
        return theta
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    missing = [name for name in names if name not in scaling]
    if missing:
        raise ConfigError(f"RoPE of type llama3 must have {', '.join(names)}, got {scaling}; restore config.json")
    return theta | {
        "rope_factor": float(scaling["factor"]),
        "rope_low_frequency": float(scaling["low_freq_factor"]),
        "rope_high_frequency": float(scaling["high_freq_factor"]),
        "rope_original_positions": int(scaling["original_max_position_embeddings"]),
    }


def _integer(values: Mapping[str, Any], name: str) -> int:
    value = values.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"config.json must give {name} as an integer of at least 1, got {value!r}; restore it")
    return value
