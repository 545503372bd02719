"""Attention of new tokens to the segments before them and causally to themselves, behind one function.

`attend` says what is computed; how is a backend's business, chosen by `ModelConfig.attention`.
"""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import NamedTuple

import jax
import jax.numpy as jnp

from r2rank_jax.types import Array

# Finite, so that a row without any visible key (padding) gives zeros and not NaN.
MASKED_LOGIT = -1e30


class Segment(NamedTuple):
    """Keys and values of some tokens; an axis of size 1 is shared by all rows along it."""

    k: Array  # [U, KV, N|1, G|1, C, H]
    v: Array  # [U, KV, N|1, G|1, C, H]
    valid: Array  # bool [U, N|1, G|1, C]   False = padding


def attend(backend: str, q: Array, context: list[Segment], own: Segment) -> Array:
    """One softmax over the keys of all segments.

    Args:
        backend: `ModelConfig.attention`; "auto" is "einsum" here, `r2rank` resolves it by measuring.
        q: [U, KV, N, G, L, Q/KV, H], already scaled.
        context: segments before the new tokens, visible wherever they are valid.
        own: the new tokens themselves [.., N, G, L, ..], visible from their own place on.

    Returns:
        [U, KV, N, G, L, Q/KV, H].
    """
    if backend not in ("auto", "einsum"):
        raise ValueError(f"attention must be auto or einsum, got {backend!r}")
    return _einsum(q, context, own)


def _einsum(q: Array, context: list[Segment], own: Segment) -> Array:
    """Each segment's keys meet all queries that share them in one matrix product.

    The weights of all segments are normalised by one float32 sum, so plain autodiff is exact; merging separate
    attention calls by their log-sum-exp is not (its public gradients are wrong).
    """
    segments = [(s.k, s.v, s.valid[:, None, :, :, None, None, :]) for s in context]
    segments.append((own.k, own.v, causal(own.valid)[:, None, :, :, :, None, :]))
    logits = []
    for k, _, visible in segments:
        raw = jnp.einsum(_equation(k, "uk{r}lqh,uk{s}ch->uk{r}lqc"), q, _squeeze(k), preferred_element_type=jnp.float32)
        logits.append(jnp.where(visible, raw, MASKED_LOGIT))
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


def causal(valid: Array) -> Array:
    """Which of the new tokens each of them sees: bool [..., L] -> bool [..., L, L].

    Padding sees itself, which keeps it finite.
    """
    offset = jnp.arange(valid.shape[-1])
    return ((offset[:, None] >= offset[None, :]) & valid[..., None, :]) | (offset[:, None] == offset[None, :])


def _squeeze(x: Array) -> Array:
    """Drop the shared axes N and G, so that the contraction folds all rows that share them into one matrix."""
    return x.reshape(x.shape[:2] + tuple(n for n in x.shape[2:4] if n > 1) + x.shape[4:])


def _equation(x: Array, template: str) -> str:
    rows = "".join(name for name, size in zip("ng", x.shape[2:4], strict=True) if size > 1)
    return template.format(r="ng", s=rows)
