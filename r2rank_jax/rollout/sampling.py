"""Sampling of tokens with random numbers that depend on the row, not on its place in a batch."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from r2rank_jax.types import Array


def row_keys(key: Array, user: Array, items: Array, groups: int) -> Array:
    """One key per rationale, folded from `key` (seed and step), the user id, the item id, and g.

    The item's id is used, not its slot, so that permuting the candidates permutes the rationales and changes nothing
    else.

    Args:
        key: a PRNG key of this run and step.
        user: int32 [U].
        items: int32 [U, N].
        groups: G.

    Returns:
        Keys [U, N, G].
    """
    fold = jax.random.fold_in
    by_user = jax.vmap(fold, (None, 0))(key, user)
    by_item = jax.vmap(jax.vmap(fold, (None, 0)))(by_user, items)
    return jax.vmap(jax.vmap(jax.vmap(fold, (None, 0)), (0, None)), (0, None))(by_item, jnp.arange(groups))


def sample_token(keys: Array, logits: Array, t: Array) -> Array:
    """Sample one token per row: first a block of tokens, then a token of that block, both by the Gumbel-max trick.

    Two short draws need about 2·√V random numbers instead of V; on CPU, V of them would cost more than the model.
    Inverting the cumulative distribution would need only one, but its V sums round differently in different batches, so
    that the same prompt sometimes got another token (docs/performance.md).

    Args:
        keys: [U, N, G] from `row_keys`.
        logits: float32 [U, N, G, V], already divided by the temperature.
        t: int32 [], the position in the rationale.
    """
    size = logits.shape[-1]
    block = 2 ** math.ceil(math.log2(size) / 2)
    blocks = -(-size // block)

    def noise(key: Array) -> Array:
        return jax.random.gumbel(jax.random.fold_in(key, t), (blocks + block,), jnp.float32)

    gumbel = jax.vmap(jax.vmap(jax.vmap(noise)))(keys)
    padded = jnp.pad(logits, [(0, 0)] * 3 + [(0, blocks * block - size)], constant_values=-jnp.inf)
    padded = padded.reshape(*logits.shape[:-1], blocks, block)
    peak = jnp.max(padded, axis=(-2, -1), keepdims=True)
    mass = jnp.log(jnp.sum(jnp.exp(padded - peak), axis=-1))  # -inf for a block without mass, which is never sampled
    chosen = jnp.argmax(mass + gumbel[..., :blocks], axis=-1)
    inside = jnp.take_along_axis(padded, chosen[..., None, None], axis=-2)[..., 0, :]
    token = chosen * block + jnp.argmax(inside + gumbel[..., blocks:], axis=-1)
    return token.astype(jnp.int32)
