"""A decoder of the Qwen2 / Qwen3 / Llama family that extends known segments of tokens by a new one.

`Decoder` has one forward: new tokens attend to the segments before them (prefix, item, what was decoded so far)
and causally to themselves. Called on nothing it reads a prefix; called on a prefix it reads the items of a user;
called on both it scores rationales, or, one token at a time, decodes them. Nothing shared is computed twice.

Logical axes stand beside each weight's shape; `r2rank_jax.sharding` maps them to mesh axes.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from r2rank_jax.config import ModelConfig
from r2rank_jax.model.attention import Segment, attend
from r2rank_jax.types import Array, KeyValues, Params


def _weight(module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...], fan_in: int) -> Array:
    init = nn.initializers.normal(stddev=fan_in**-0.5)
    return jnp.asarray(module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32))


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


def rotate(x: Array, positions: Array, theta: float) -> Array:
    """Rotary position embedding in the half-split layout of the Hugging Face checkpoints (Su et al. 2021).

    Args:
        x: [U, N, G, L, heads, H].
        positions: int32 [U, N, G, L].
        theta: base of the wavelengths.
    """
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
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
        q = rotate(q, positions, c.rope_theta) * c.head_size**-0.5
        k = rotate(k, positions, c.rope_theta)
        users, items, forks, length = x.shape[:4]
        q = q.reshape(users, items, forks, length, c.kv_heads, -1, c.head_size).transpose(0, 4, 1, 2, 3, 5, 6)
        k, v = k.transpose(0, 4, 1, 2, 5, 3), v.transpose(0, 4, 1, 2, 3, 5)  # [U, KV, N, G, H, L] and [.., L, H]

        if cache is None:
            out = attend(c.attention, q, context, Segment(k, v, valid))
        else:
            (old_k, old_v, seen), slot = cache
            k = jax.lax.dynamic_update_slice(old_k, k, (0, 0, 0, 0, 0, slot))
            v = jax.lax.dynamic_update_slice(old_v, v, (0, 0, 0, 0, slot, 0))
            out = attend(c.attention, q, [*context, Segment(k, v, seen)], None)
        out = out.transpose(0, 2, 3, 4, 1, 5, 6).reshape(users, items, forks, length, c.heads, c.head_size)
        o = _weight(self, "o", (c.heads, c.head_size, c.width), ("heads", None, "embed"), c.heads * c.head_size)
        return jnp.einsum("ungljh,jhd->ungld", out, o.astype(x.dtype)), k, v

    def _project(self, name: str, x: Array, heads: int, axis: str) -> Array:
        c = self.config
        kernel = _weight(self, name, (c.width, heads, c.head_size), ("embed", axis, None), c.width)
        out = jnp.einsum("ungld,djh->ungljh", x, kernel.astype(x.dtype))
        if c.attention_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), (axis, None))
            bias = jnp.asarray(self.param(f"{name}_bias", zeros, (heads, c.head_size), jnp.float32))
            out += bias.astype(x.dtype)
        return out


@jax.custom_vjp
def widen(x: Array, kernel: Array) -> Array:
    """x [..., D] times kernel [D, F] with F > D.

    Autodiff forms the kernel's derivative as (dyᵀ x)ᵀ, and XLA for CPU writes dyᵀ to memory first: the wide factor. As
    xᵀ dy it is the narrow one that is turned around, a tenth of an update's time less (docs/performance.md).
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
        return (nn.silu(widen(x, gate)) * widen(x, up)) @ down


class Decoder(nn.Module):
    """The language model and its scoring head; see the module's docstring for its one forward."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        positions: Array,
        valid: Array,
        context: tuple[KeyValues, ...] = (),
        cache: tuple[KeyValues, Array] | None = None,
    ) -> tuple[Array, KeyValues]:
        """Read one more segment.

        Args:
            tokens: int32 [U, N|1, G|1, L].
            positions: int32, same shape: true tokens before each one.
            valid: bool, same shape: False = padding.
            context: the segments before this one, in any order; positions are inside their keys.
            cache: for decoding one token per row: earlier tokens of the same rows with room for this one, which is
                among the valid ones already, and the slot int32 [] where it goes.

        Returns:
            Final-norm hidden states [U, N|1, G|1, L, D], and the keys and values of these tokens or the whole cache.
        """
        c = self.config
        embedding = _weight(self, "embedding", (c.vocabulary, c.width), ("vocabulary", "embed"), c.width)
        x = embedding[tokens].astype(c.dtype)
        keys, values = [], []
        block = nn.remat(_block, static_argnums=(1,)) if c.remat == "block" else _block
        for layer in range(c.layers):
            before = [Segment(part.k[layer], part.v[layer], part.valid) for part in context]
            slot = None if cache is None else (Segment(cache[0].k[layer], cache[0].v[layer], cache[0].valid), cache[1])
            x, k, v = block(self, layer, x, positions, valid, before, slot)
            keys.append(k)
            values.append(v)
        hidden = RMSNorm(c.norm_epsilon, name="final_norm")(x)
        if self.is_initializing():  # declared here, read by `vocabulary_kernel` and `scores`
            if not c.tied_embeddings:
                _weight(self, "lm_head", (c.vocabulary, c.width), ("vocabulary", "embed"), c.width)
            _weight(self, "score_head", (c.width,), (None,), c.width * 100)
        return hidden, KeyValues(k=tuple(keys), v=tuple(values), valid=valid if cache is None else cache[0].valid)


def _block(
    decoder: Decoder,
    layer: int,
    x: Array,
    positions: Array,
    valid: Array,
    context: list[Segment],
    cache: tuple[Segment, Array] | None,
) -> tuple[Array, Array, Array]:
    """One layer of the decoder: its output, and the keys and values of the new tokens."""
    c = decoder.config
    normed = RMSNorm(c.norm_epsilon, name=f"attention_norm_{layer}")(x)
    mixed, k, v = Attention(c, name=f"attention_{layer}")(normed, positions, valid, context, cache)
    x = x + mixed
    return x + GatedMLP(c, name=f"mlp_{layer}")(RMSNorm(c.norm_epsilon, name=f"mlp_norm_{layer}")(x)), k, v


def extend(
    config: ModelConfig,
    params: Params,
    tokens: Array,
    positions: Array,
    valid: Array,
    context: tuple[KeyValues, ...] = (),
    cache: tuple[KeyValues, Array] | None = None,
) -> tuple[Array, KeyValues]:
    """`Decoder` as a pure function of its parameters; arguments and results as there."""
    out: Any = Decoder(config).apply({"params": params}, tokens, positions, valid, context, cache)
    return out


def initial_params(config: ModelConfig, key: Array) -> Params:
    """Random parameters that still carry their logical axes; `flax.core.meta.unbox` takes them off."""
    token = jnp.zeros((1, 1, 1, 1), jnp.int32)
    return Decoder(config).init(key, token, token, jnp.ones_like(token, bool))["params"]


def vocabulary_kernel(params: Params) -> Array:
    """The matrix [V, D] that turns hidden states into logits: the embedding itself where it is tied."""
    return params.get("lm_head", params["embedding"])


def scores(params: Params, hidden: Array) -> Array:
    """The scoring head: one number per hidden state [..., D] -> float32 [...]. Plackett-Luce ignores a shared shift,
    so the head has no bias."""
    return hidden.astype(jnp.float32) @ params["score_head"]
