"""Map the tensors of Hugging Face checkpoints to our parameters and back: names and layouts.

One table serves both directions. Axes are named by the letters of `r2rank_jax.types`; in addition, F is the width of
the MLP, K stands for KV, R is the rank of an adapter, and 1 is an axis of size one. Letters written together are one
axis of the Hugging Face tensor, with the last letter varying fastest. Hugging Face stores torch Linear weights
[out, in]. We store the transpose [in, out] with a separate axis for heads, and all layers in one array with a leading
layer axis. Both sides rotate halves in RoPE, so rows need no permutation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from r2rank_jax.config import ModelConfig

LANGUAGE_HEAD, SCORE_HEAD = "lm_head.weight", "score.weight"

_LAYER = "model.layers.{layer}."
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
