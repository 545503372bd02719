"""Which token comes next, from random numbers that belong to the row and not to its place in a batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from r2rank_jax.types import Array

_BLOCK = 32


def row_keys(key: Array, user: Array, items: Array, groups: int) -> Array:
    """One key per rationale from (seed and step in `key`, user id, item id, g).

    The item's id, not its slot, so that permuting the candidates permutes the rationales and changes nothing else.

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
    """Draw one token per row by inverting the distribution function at one uniform number.

    One uniform per row instead of V Gumbel variables: on CPU the noise would cost more than the model.

    Args:
        keys: [U, N, G] from `row_keys`.
        logits: float32 [U, N, G, V], already divided by the temperature.
        t: int32 [], the place in the rationale.
    """
    fold = jax.vmap(jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None)), (0, None))
    uniform = jax.vmap(jax.vmap(jax.vmap(lambda k: jax.random.uniform(k, dtype=jnp.float32))))(fold(keys, t))
    size = logits.shape[-1]
    padded = jnp.pad(logits, [(0, 0)] * 3 + [(0, -size % _BLOCK)], constant_values=-jnp.inf)
    mass = jnp.exp(padded - jnp.max(padded, axis=-1, keepdims=True)).reshape(*logits.shape[:-1], -1, _BLOCK)
    # Two short cumulative sums, over blocks and inside the chosen one, instead of one of length V.
    block_end = jnp.cumsum(jnp.sum(mass, axis=-1), axis=-1)
    target = uniform * block_end[..., -1]
    block = jnp.sum(block_end <= target[..., None], axis=-1)
    block = jnp.minimum(block, mass.shape[-2] - 1)
    inside = jnp.take_along_axis(mass, block[..., None, None], axis=-2)[..., 0, :]
    before = jnp.where(block > 0, jnp.take_along_axis(block_end, jnp.maximum(block - 1, 0)[..., None], -1)[..., 0], 0.0)
    end = before[..., None] + jnp.cumsum(inside, axis=-1)
    token = block * _BLOCK + jnp.minimum(jnp.sum(end <= target[..., None], axis=-1), _BLOCK - 1)
    # Rounding may point past the last token with any mass; the most likely token is then the honest fallback.
    chosen = jnp.take_along_axis(padded, token[..., None], axis=-1)[..., 0]
    return jnp.where(jnp.isfinite(chosen), token, jnp.argmax(logits, axis=-1)).astype(jnp.int32)
