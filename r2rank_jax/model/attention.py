"""Attention of new tokens to the segments before them, and causally to themselves.

`attend` defines what is computed. `ModelConfig.attention` selects the backend that computes it:

einsum   runs anywhere. It reads shared keys in place and stores all logits.
cudnn    runs on NVIDIA GPUs. It stores no logits, but copies shared keys to each row, and JAX passes it the mask as a
         bias of [rows, 1, queries, keys].
splash   runs on TPUs. It works like cudnn, and skips blocks of keys that come after their queries.
"""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from r2rank_jax.errors import ConfigError
from r2rank_jax.types import Array

# Finite, so that a row that sees no key (padding) gives a finite result and not NaN.
MASKED_LOGIT = -1e30

SPLASH_BLOCK = 128  # queries and keys of one tile; the smallest size that the kernel accepts


class Segment(NamedTuple):
    """Keys and values of some tokens. All rows along an axis of size 1 share them."""

    k: Array  # [U, KV, N|1, G|1, H, C]   laid out for the product with queries, so that XLA does not transpose a cache
    v: Array  # [U, KV, N|1, G|1, C, H]
    valid: Array  # bool [U, N|1, G|1, C]   False = padding


def attend(backend: str, q: Array, context: list[Segment], own: Segment | None) -> Array:
    """One softmax over the keys of all segments.

    Args:
        backend: `ModelConfig.attention`. "auto" means "einsum" here; `r2rank` resolves it by timing the backends.
        q: [U, KV, N, G, L, Q/KV, H], already scaled.
        context: segments before the new tokens. Every new token sees all their valid tokens.
        own: the new tokens themselves [.., N, G, L, ..], which see each other causally; None if the context already
            contains them.

    Returns:
        [U, KV, N, G, L, Q/KV, H]. The result of padding is finite, and differs between backends.

    Raises:
        ConfigError: the backend does not support this dtype or head size.
    """
    if backend not in ("auto", "einsum", "cudnn", "splash"):
        raise ValueError(f"attention must be auto, einsum, cudnn or splash, got {backend!r}")
    # A single new token means decoding. The kernels need a copy of shared keys for each row, so at every token they
    # would copy the whole prefix for every row and read the copy once.
    if backend in ("auto", "einsum") or q.shape[4] == 1 or own is None:
        return _einsum(q, context, own)
    refusal = unsupported(backend, q.dtype, q.shape[-1])
    if refusal is not None:
        raise ConfigError(refusal)
    return _cudnn(q, context, own) if backend == "cudnn" else _splash(q, context, own)


def unsupported(backend: str, dtype: Any, head_size: int) -> str | None:
    """Why a backend does not support this dtype or head size, with the remedy; None if it supports both."""
    if backend != "cudnn":
        return None
    if jnp.dtype(dtype) not in (jnp.dtype(jnp.float16), jnp.dtype(jnp.bfloat16)):
        return (
            f"model.attention=cudnn computes in float16 or bfloat16, got {jnp.dtype(dtype)}; "
            f"set model.dtype to bfloat16, or model.attention to einsum"
        )
    if head_size % 8 or head_size > 256:
        return (
            f"model.attention=cudnn needs a head size that is a multiple of 8 and at most 256 (128 before Hopper), "
            f"got {head_size}; set model.attention to einsum"
        )
    return None


def _einsum(q: Array, context: list[Segment], own: Segment | None) -> Array:
    """Multiply each segment's keys with all queries that share them in one matrix product.

    The weights of all segments are normalized by one float32 sum, so plain autodiff is exact. Merging separate
    attention calls by their log-sum-exp is not: the gradients through the public API are wrong.
    """
    segments = [(s.k, s.v, s.valid[:, None, :, :, None, None, :]) for s in context]
    if own is not None:
        segments.append((own.k, own.v, causal(own.valid)[:, None, :, :, :, None, :]))
    # The mask is added, not selected with `where`, because an addition costs nothing in the backward pass.
    logits = [_logits(q, k) + jnp.where(visible, 0.0, MASKED_LOGIT) for k, _, visible in segments]
    peak = jnp.max(jnp.stack([jnp.max(x, axis=-1) for x in logits]), axis=0)[..., None]
    weights = [jnp.exp(x - jax.lax.stop_gradient(peak)) for x in logits]
    total = reduce(add, [jnp.sum(w, axis=-1, keepdims=True) for w in weights])
    mixed = reduce(
        add,
        [
            jnp.einsum(
                _equation(v, "uk{r}lqc,uk{s}ch->uk{r}lqh"),
                w.astype(v.dtype),
                _squeeze(v),
                preferred_element_type=jnp.float32,
            )
            for w, (_, v, _) in zip(weights, segments, strict=True)
        ],
    )
    return (mixed / total).astype(q.dtype)


@jax.custom_vjp
def _logits(q: Array, k: Array) -> Array:
    """Queries times the keys of one segment: float32 [U, KV, N, G, L, Q/KV, C].

    Autodiff computes the derivative of k as (dlogitsᵀ q)ᵀ, and XLA for CPU first writes dlogitsᵀ, whose width is the
    number of keys, to memory. Computed as qᵀ dlogits, only the narrow factor is transposed (as in `transformer.widen`).
    """
    return jnp.einsum(_equation(k, "uk{r}lqh,uk{s}hc->uk{r}lqc"), q, _squeeze(k), preferred_element_type=jnp.float32)


def _logits_forward(q: Array, k: Array) -> tuple[Array, tuple[Array, Array]]:
    return _logits(q, k), (q, k)


def _logits_backward(saved: tuple[Array, Array], by_logits: Array) -> tuple[Array, Array]:
    q, k = saved
    by_q = jnp.einsum(_equation(k, "uk{r}lqc,uk{s}hc->uk{r}lqh"), by_logits, _squeeze(k).astype(by_logits.dtype))
    by_k = jnp.einsum(_equation(k, "uk{r}lqh,uk{r}lqc->uk{s}hc"), q.astype(by_logits.dtype), by_logits)
    return by_q.astype(q.dtype), by_k.reshape(k.shape).astype(k.dtype)


_logits.defvjp(_logits_forward, _logits_backward)


def _cudnn(q: Array, context: list[Segment], own: Segment, implementation: Literal["cudnn", "xla"] = "cudnn") -> Array:
    """The fused kernel of cuDNN with a boolean mask; `implementation="xla"` computes the same without a GPU."""
    # With a mask, cuDNN has a backward pass only if both lengths are even.
    rows = _to_rows(q, context, own, multiple=2)
    new = rows.q.shape[2]
    earlier = rows.valid[:, None, :-new]
    visible = jnp.concatenate(
        [jnp.broadcast_to(earlier, (*earlier.shape[:1], new, earlier.shape[2])), causal(rows.valid[:, -new:])], axis=-1
    )
    out = jax.nn.dot_product_attention(
        rows.q.swapaxes(1, 2),  # [R, L, Q, H]
        rows.k.swapaxes(1, 2),  # [R, C, KV, H]
        rows.v.swapaxes(1, 2),
        mask=visible[:, None],
        scale=1.0,
        implementation=implementation,
    )
    return _from_rows(out.swapaxes(1, 2), q)


def _splash(q: Array, context: list[Segment], own: Segment, *, interpret: bool = False) -> Array:
    """JAX's block-sparse flash attention for TPUs; `interpret` runs it anywhere, slowly.

    The kernel supports a static mask and segments that do not see each other. Real tokens are one segment and padding
    is another, so padding sees at least itself and its result is finite.
    """
    # Imported here because only TPUs need it and the import is slow.
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        CausalMask,
        MultiHeadMask,
        SegmentIds,
        make_splash_mha_single_device,
    )

    rows = _to_rows(q, context, own, multiple=SPLASH_BLOCK)
    heads, new, total = rows.q.shape[1], rows.q.shape[2], rows.k.shape[2]
    mask = MultiHeadMask([CausalMask((new, total), offset=total - new)] * heads)
    kernel = make_splash_mha_single_device(mask, interpret=interpret)
    real = rows.valid.astype(jnp.int32)
    out = jax.vmap(kernel)(rows.q, rows.k, rows.v, SegmentIds(q=real[:, -new:], kv=real))
    return _from_rows(out, q)


class _KernelInputs(NamedTuple):
    """Queries and keys of R = U·N·G rows that share nothing. The last L of the C keys belong to the queries' tokens."""

    q: Array  # [R, Q, L, H]
    k: Array  # [R, KV, C, H]
    v: Array  # [R, KV, C, H]
    valid: Array  # bool [R, C]


def _to_rows(q: Array, context: list[Segment], own: Segment, *, multiple: int) -> _KernelInputs:
    """Copy all its keys to each row; pad the context and the new tokens to a multiple."""
    items, forks, length = q.shape[2:5]
    gap = -sum(segment.valid.shape[-1] for segment in context) % multiple
    tail = -length % multiple

    def fold(x: Array) -> Array:  # [U, N|1, G|1, ...] -> [R, ...]
        return jnp.broadcast_to(x, (x.shape[0], items, forks, *x.shape[3:])).reshape(-1, *x.shape[3:])

    def pad(x: Array, axis: int, left: int, right: int) -> Array:
        return jnp.pad(x, [(left, right) if i == axis else (0, 0) for i in range(x.ndim)])

    def join(parts: list[Array], axis: int) -> Array:
        return jnp.concatenate([*map(fold, parts[:-1]), pad(fold(parts[-1]), axis, gap, tail)], axis)

    segments = [*context, own]
    heads_inside = pad(jnp.transpose(q, (0, 2, 3, 1, 5, 4, 6)), 5, 0, tail)  # [U, N, G, KV, Q/KV, L, H]
    return _KernelInputs(
        q=heads_inside.reshape(-1, q.shape[1] * q.shape[5], length + tail, q.shape[6]),
        k=join([jnp.transpose(s.k, (0, 2, 3, 1, 5, 4)) for s in segments], 2),
        v=join([jnp.moveaxis(s.v, 1, 3) for s in segments], 2),
        valid=join([s.valid for s in segments], 1),
    )


def _from_rows(out: Array, q: Array) -> Array:
    """[R, Q, padded L, H] -> [U, KV, N, G, L, Q/KV, H], the shape of `q`."""
    users, kv_heads, items, forks, length, group, size = q.shape
    out = out[:, :, :length].reshape(users, items, forks, kv_heads, group, length, size)
    return jnp.transpose(out, (0, 3, 1, 2, 5, 4, 6)).astype(q.dtype)


def causal(valid: Array) -> Array:
    """Causal mask of the new tokens: bool [..., L] -> bool [..., L, L].

    Padding sees itself, so that its result is finite.
    """
    offset = jnp.arange(valid.shape[-1])
    return ((offset[:, None] >= offset[None, :]) & valid[..., None, :]) | (offset[:, None] == offset[None, :])


def _squeeze(x: Array) -> Array:
    """Drop shared axes N and G, so that the contraction folds all rows that share keys into one matrix."""
    return x.reshape(x.shape[:2] + tuple(n for n in x.shape[2:4] if n > 1) + x.shape[4:])


def _equation(x: Array, template: str) -> str:
    rows = "".join(name for name, size in zip("ng", x.shape[2:4], strict=True) if size > 1)
    return template.format(r="ng", s=rows)
