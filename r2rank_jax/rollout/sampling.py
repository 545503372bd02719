"""Which token comes next, from random numbers that belong to the row and not to its place in a batch."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from r2rank_jax.types import Array


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
    """Draw one token per row: first a block of tokens by the Gumbel-max trick, then a token of that block by another.

    Two short draws cost about 2·√V random numbers instead of V; on CPU the noise would cost more than the model.
    Inverting the distribution function would need a single one, but it has V steps for rounding to fall over: the same
    prompt in another batch then said something else now and then (docs/performance.md).

    Args:
        keys: [U, N, G] from `row_keys`.
        logits: float32 [U, N, G, V], already divided by the temperature.
        t: int32 [], the place in the rationale.
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
    mass = jnp.log(jnp.sum(jnp.exp(padded - peak), axis=-1))  # -inf for a block without any mass: never drawn
    chosen = jnp.argmax(mass + gumbel[..., :blocks], axis=-1)
    inside = jnp.take_along_axis(padded, chosen[..., None, None], axis=-2)[..., 0, :]
    token = chosen * block + jnp.argmax(inside + gumbel[..., blocks:], axis=-1)
    return token.astype(jnp.int32)
