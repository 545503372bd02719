"""A decoder of the Qwen2 / Qwen3 / Llama family that extends segments of tokens by a new segment.

`extend` is its only forward pass: new tokens attend to the segments before them (prefix, item, decoded tokens) and
causally to themselves. Without context it reads a prefix; after a prefix it reads the items of a user; after both it
scores rationales or decodes them one token at a time. Shared tokens are computed once.

The weights of all layers are stacked along a leading axis, so that deep models compile as one loop over layers. Each
weight is declared with its shape and its logical axes, which `r2rank_jax.sharding` maps to mesh axes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from r2rank_jax.config import ModelConfig
from r2rank_jax.model.attention import Segment, attend
from r2rank_jax.types import Array, KeyValues, Params

# Models with at least this many layers read tokens in a loop over layers, so that programs do not grow with depth. The
# layers of smaller models are written out. The threshold is a guess: neither time nor memory was measured.
LOOPED_LAYERS = 8

# Checkpoint policies, by the name in `ModelConfig.remat`; None keeps only the input of each layer.
REMAT_POLICIES: dict[str, Any] = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "block": None}


def _weight(module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...], fan_in: int) -> Array:
    init = nn.initializers.normal(stddev=fan_in**-0.5)
    return jnp.asarray(module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32))


def _adapter(
    module: Any,
    name: str,
    x: Array,
    in_axes: tuple[str | None, ...],
    out_shape: tuple[int, ...],
    out_axes: tuple[str | None, ...],
) -> Array | float:
    """The term that a matrix's adapter adds to its product with x [.., in..]; see `model.adapters`."""
    c: ModelConfig = module.config
    if not c.lora_rank:
        return 0.0
    in_shape = x.shape[x.ndim - len(in_axes) :]
    a = _weight(module, f"{name}_a", (*in_shape, c.lora_rank), (*in_axes, None), math.prod(in_shape))
    zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), (None, *out_axes))
    b = jnp.asarray(module.param(f"{name}_b", zeros, (c.lora_rank, *out_shape), jnp.float32))
    narrow = jnp.tensordot(x, a.astype(x.dtype), axes=len(in_axes))
    return jnp.tensordot(narrow, b.astype(x.dtype), axes=1) * (c.lora_alpha / c.lora_rank)


class RMSNorm(nn.Module):
    """x / rms(x) · scale in float32 (Zhang & Sennrich 2019)."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        ones = nn.with_logical_partitioning(nn.initializers.ones_init(), (None,))
        scale = jnp.asarray(self.param("scale", ones, (x.shape[-1],), jnp.float32))
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        return (normed * scale).astype(x.dtype)


def frequencies(config: ModelConfig) -> Array:
    """Rotation in radians per position of each pair of a head's dimensions, float32 [H/2] (Su et al. 2021).

    With `rope_factor` above 1, frequencies are rescaled as in Llama 3.1. Wavelengths that fit into the original context
    fewer than `rope_low_frequency` times grow by the factor, those that fit more than `rope_high_frequency` times stay,
    and those between are interpolated.
    """
    half = config.head_size // 2
    plain = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    turns = plain * config.rope_original_positions / (2 * jnp.pi)
    kept = (turns - config.rope_low_frequency) / (config.rope_high_frequency - config.rope_low_frequency)
    kept = jnp.clip(kept, 0.0, 1.0)
    return kept * plain + (1 - kept) * plain / config.rope_factor


def rotate(x: Array, positions: Array, frequency: Array) -> Array:
    """Rotary position embedding in the half-split layout of Hugging Face checkpoints.

    Args:
        x: [U, N, G, L, heads, H].
        positions: int32 [U, N, G, L].
        frequency: from `frequencies`.
    """
    half = x.shape[-1] // 2
    angle = positions[..., None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention over the context segments and the new tokens themselves."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        positions: Array,
        valid: Array,
        context: list[Segment],
        cache: tuple[Segment, Array] | None,
    ) -> tuple[Array, Array, Array]:
        c = self.config
        q = self._project("q", x, c.heads, "heads")
        k = self._project("k", x, c.kv_heads, "kv_heads")
        v = self._project("v", x, c.kv_heads, "kv_heads")
        if c.qk_norm:
            q = RMSNorm(c.norm_epsilon, name="q_norm")(q)
            k = RMSNorm(c.norm_epsilon, name="k_norm")(k)
        frequency = frequencies(c)
        q = rotate(q, positions, frequency) * c.head_size**-0.5
        k = rotate(k, positions, frequency)
        users, items, forks, length = x.shape[:4]
        q = q.reshape(users, items, forks, length, c.kv_heads, -1, c.head_size).transpose(0, 4, 1, 2, 3, 5, 6)
        k, v = k.transpose(0, 4, 1, 2, 5, 3), v.transpose(0, 4, 1, 2, 3, 5)  # [U, KV, N, G, H, L] and [.., L, H]

        if cache is None:
            out = attend(c.attention, q, context, Segment(k, v, valid))
        else:
            (old_k, old_v, cache_valid), slot = cache
            k = jax.lax.dynamic_update_slice(old_k, k, (0, 0, 0, 0, 0, slot))
            v = jax.lax.dynamic_update_slice(old_v, v, (0, 0, 0, 0, slot, 0))
            out = attend(c.attention, q, [*context, Segment(k, v, cache_valid)], None)
        out = out.transpose(0, 2, 3, 4, 1, 5, 6).reshape(users, items, forks, length, c.heads, c.head_size)
        o = _weight(self, "o", (c.heads, c.head_size, c.width), ("heads", None, "embed"), c.heads * c.head_size)
        mixed = jnp.einsum("ungljh,jhd->ungld", out, o.astype(x.dtype))
        return mixed + _adapter(self, "o", out, ("heads", None), (c.width,), ("embed",)), k, v

    def _project(self, name: str, x: Array, heads: int, axis: str) -> Array:
        c = self.config
        kernel = _weight(self, name, (c.width, heads, c.head_size), ("embed", axis, None), c.width)
        out = jnp.einsum("ungld,djh->ungljh", x, kernel.astype(x.dtype))
        out += _adapter(self, name, x, ("embed",), (heads, c.head_size), (axis, None))
        if c.attention_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), (axis, None))
            bias = jnp.asarray(self.param(f"{name}_bias", zeros, (heads, c.head_size), jnp.float32))
            out += bias.astype(x.dtype)
        return out


@jax.custom_vjp
def widen(x: Array, kernel: Array) -> Array:
    """x [..., D] times kernel [D, F] with F > D.

    Autodiff computes the kernel's derivative as (dyᵀ x)ᵀ, and XLA for CPU first writes dyᵀ, the wide factor, to memory.
    Computed as xᵀ dy, the narrow factor is transposed, which saves a tenth of an update's time (docs/performance.md).
    """
    return x @ kernel


def _widen_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (x, kernel)


def _widen_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return dy @ kernel.T, x.reshape(-1, x.shape[-1]).T @ dy.reshape(-1, dy.shape[-1])


widen.defvjp(_widen_forward, _widen_backward)


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        gate = _weight(self, "gate", (c.width, c.mlp_width), ("embed", "mlp"), c.width).astype(x.dtype)
        up = _weight(self, "up", (c.width, c.mlp_width), ("embed", "mlp"), c.width).astype(x.dtype)
        down = _weight(self, "down", (c.mlp_width, c.width), ("mlp", "embed"), c.mlp_width).astype(x.dtype)
        wide = (c.mlp_width,), ("mlp",)
        gated = widen(x, gate) + _adapter(self, "gate", x, ("embed",), *wide)
        inner = nn.silu(gated) * (widen(x, up) + _adapter(self, "up", x, ("embed",), *wide))
        return inner @ down + _adapter(self, "down", inner, ("mlp",), (c.width,), ("embed",))


class Block(nn.Module):
    """One layer. Returns its output, and the keys and values of the new tokens or of the whole cache."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: Array,
        positions: Array,
        valid: Array,
        context: list[Segment],
        cache: tuple[Segment, Array] | None = None,
    ) -> tuple[Array, Array, Array]:
        c = self.config
        normed = RMSNorm(c.norm_epsilon, name="attention_norm")(x)
        mixed, k, v = Attention(c, name="attention")(normed, positions, valid, context, cache)
        x = x + mixed
        return x + GatedMLP(c, name="mlp")(RMSNorm(c.norm_epsilon, name="mlp_norm")(x)), k, v


def extend(
    config: ModelConfig,
    params: Params,
    tokens: Array,
    positions: Array,
    valid: Array,
    context: tuple[KeyValues, ...] = (),
    cache: tuple[KeyValues, Array] | None = None,
) -> tuple[Array, KeyValues]:
    """Read one more segment, as a pure function of the parameters.

    Args:
        config: shape of the model.
        params: its parameters, with layers stacked or split by `by_layer`.
        tokens: int32 [U, N|1, G|1, L].
        positions: int32, same shape: the number of true tokens before each token.
        valid: bool, same shape: False = padding.
        context: the segments before this one, in any order, since their keys already contain the positions.
        cache: for decoding one token per row: earlier tokens of the same rows with an empty slot for this token, which
            the `valid` of the cache already includes; and the index of the slot, int32 [].

    Returns:
        Final-norm hidden states [U, N|1, G|1, L, D], and the keys and values of these tokens or of the whole cache.
    """

    def block(x: Array, layer: _Layer) -> tuple[Array, tuple[Array, Array]]:
        segments = [Segment(*kv, part.valid) for kv, part in zip(layer.context, context, strict=True)]
        layer_cache = None
        if cache is not None and layer.cache is not None:
            layer_cache = Segment(*layer.cache, cache[0].valid), cache[1]
        out: Any = Block(config).apply({"params": layer.weights}, x, positions, valid, segments, layer_cache)
        return out[0], out[1:]

    if config.remat in REMAT_POLICIES:
        block = jax.checkpoint(block, policy=REMAT_POLICIES[config.remat])
    x = params["embedding"][tokens].astype(config.dtype)
    if cache is None and config.layers >= LOOPED_LAYERS and not isinstance(params["layers"], tuple):
        stacked = [(jnp.stack(part.k), jnp.stack(part.v)) for part in context]
        x, (k, v) = jax.lax.scan(block, x, _Layer(params["layers"], stacked, None))
        keys, values = tuple(jnp.unstack(k)), tuple(jnp.unstack(v))
    else:
        kv_by_layer = []
        for i, weights in enumerate(by_layer(params["layers"])):
            layer_cache = None if cache is None else (cache[0].k[i], cache[0].v[i])
            x, kv = block(x, _Layer(weights, [(part.k[i], part.v[i]) for part in context], layer_cache))
            kv_by_layer.append(kv)
        keys, values = zip(*kv_by_layer, strict=True)
    hidden: Any = RMSNorm(config.norm_epsilon).apply({"params": params["final_norm"]}, x)
    return hidden, KeyValues(k=keys, v=values, valid=valid if cache is None else cache[0].valid)


class _Layer(NamedTuple):
    """The arrays of one layer or, stacked, of all layers."""

    weights: Params
    context: list[tuple[Array, Array]]  # keys and values of each earlier segment
    cache: tuple[Array, Array] | None  # of earlier tokens of the same rows


def by_layer(layers: Params) -> tuple[Params, ...]:
    """Split stacked weights into the weights of each layer. Weights that are already split are returned as they are."""
    if isinstance(layers, tuple):
        return layers
    leaves, tree = jax.tree.flatten(layers)
    # The derivative of one split is one concatenation; that of L slices would be a sum of L arrays of full size.
    split = [[part[0] for part in jax.lax.split(leaf, (1,) * leaf.shape[0])] for leaf in leaves]
    return tuple(jax.tree.unflatten(tree, weights) for weights in zip(*split, strict=True))


def in_compute_dtype(config: ModelConfig, params: Params) -> Params:
    """Cast the matrices and biases of layers to the compute dtype. Norms, whose scales are used in float32, stay.

    Casting once avoids gathering or converting the float32 originals for every use. The embedding stays float32:
    the gradients of its rows are sums over all tokens, for which bfloat16 is too coarse.
    """
    stacked = lambda x: x.astype(config.dtype) if x.ndim > 2 else x  # noqa: E731  a stacked norm has two axes
    return params | {"layers": jax.tree.map(stacked, params["layers"])}


def initial_params(config: ModelConfig, key: Array) -> Params:
    """Random parameters, boxed with their logical axes; `flax.core.meta.unbox` removes the boxes."""
    keys = dict(zip(("embedding", "layers", "lm_head", "score_head"), jax.random.split(key, 4)))

    def normal(name: str, shape: tuple[int, ...], axes: tuple[str | None, ...], fan_in: int) -> Any:
        init = nn.initializers.normal(stddev=fan_in**-0.5)
        return nn.with_logical_partitioning(init, axes)(keys[name], shape, jnp.float32)

    x = jnp.zeros((1, 1, 1, 1, config.width), config.dtype)
    token = jnp.zeros(x.shape[:-1], jnp.int32)

    def one_layer(key: Array) -> Params:
        return Block(config).init(key, x, token, token == 0, [])["params"]

    layers = jax.vmap(one_layer)(jax.random.split(keys["layers"], config.layers))
    is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)  # noqa: E731
    width, vocabulary = config.width, (config.vocabulary, config.width)
    params = {
        "embedding": normal("embedding", vocabulary, ("vocabulary", "embed"), width),
        "layers": jax.tree.map(lambda box: box.replace(names=("layers", *box.names)), layers, is_leaf=is_box),
        "final_norm": RMSNorm(config.norm_epsilon).init(key, x)["params"],
        "score_head": normal("score_head", (width,), (None,), width * 100),
    }
    if config.critic:
        params["critic_head"] = nn.with_logical_partitioning(nn.initializers.zeros_init(), (None,))(
            key, (width,), jnp.float32
        )
    if not config.tied_embeddings:
        params["lm_head"] = normal("lm_head", vocabulary, ("vocabulary", "embed"), width)
    return params


def vocabulary_kernel(params: Params) -> Array:
    """The matrix [V, D] that maps hidden states to logits: the embedding itself if they are tied."""
    return params.get("lm_head", params["embedding"])


def scores(params: Params, hidden: Array) -> Array:
    """The scoring head: hidden states [..., D] -> float32 [...].

    The head has no bias, because Plackett-Luce does not change when a constant is added to all scores.
    """
    return hidden.astype(jnp.float32) @ params["score_head"]


def critic_scores(params: Params, hidden: Array) -> Array:
    """The head of the critic (`ModelConfig.critic`): hidden states [..., D] of items' last tokens -> float32 [...]."""
    return hidden.astype(jnp.float32) @ params["critic_head"]
