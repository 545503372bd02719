"""Sampling of tokens with random numbers that depend on the row, not on its place in a batch."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from r2rank_jax.types import Array


def row_keys(key: Array, user: Array, position: Array, items: Array, groups: int) -> Array:
    """One key per rationale, folded from `key` (seed and step), the list, the item, and g.

    The item's id is used, not its slot, so that permuting the candidates permutes the rationales and changes nothing
    else. A list is named by its user and position, because a batch may hold several lists of one user. If it holds the
    very same list several times, as at the border of two epochs, they are numbered.

    Args:
        key: a PRNG key of this run and step.
        user: int32 [U] ids.
        position: int32 [U], of each list in its user's history.
        items: int32 [U, N] ids.
        groups: G.

    Returns:
        Keys [U, N, G].
    """
    fold = jax.random.fold_in
    same = (user[:, None] == user) & (position[:, None] == position)
    copy = jnp.sum(jnp.tril(same, -1), axis=1)
    by_list = jax.vmap(lambda *ids: functools.reduce(fold, ids, key))(user, position, copy)
    by_item = jax.vmap(jax.vmap(fold, (None, 0)))(by_list, items)
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
