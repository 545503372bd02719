"""Sorting a list with the method that is fastest for its shape.

XLA's sort on CPU calls a comparison function for each comparison, one at a time. Counting, for every item, the items
before it takes one fused, vectorized pass over all pairs: 0.4 ms against 3.2 ms (`top_k`) or 2.8 ms (`argsort`) for
256 lists of 100 on two cores. `top_k` is used for longer lists, and where only a few places are needed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

# All pairs are compared for lists of at most `ALL_PAIRS_ITEMS` items, if more than one item in
# `ITEMS_PER_PARTIAL_PLACE` gets a place. Both limits were measured on 2 cores.
ALL_PAIRS_ITEMS = 128
ITEMS_PER_PARTIAL_PLACE = 8


def top(values: jax.Array, num_places: int) -> jax.Array:
    """Indices of the largest values, in descending order; equal values in index order.

    Args:
      values: float32 [..., N].
      num_places: K <= N.

    Returns:
      int32 [..., K].
    """
    if _partial_sort(values.shape[-1], num_places):
        return jax.lax.top_k(values, num_places)[1].astype(jnp.int32)
    items = jax.lax.broadcasted_iota(jnp.int32, values.shape, values.ndim - 1)
    ranking = jnp.put_along_axis(items, _place(values), items, axis=-1, inplace=False)
    return ranking[..., :num_places]


def weighted_descending(values: jax.Array, weights: np.ndarray) -> jax.Array:
    """Σ_r weights_r · (r-th largest value): the largest sum over all orders of the values, if the weights descend.

    Args:
      values: float32 [..., N].
      weights: [K], K <= N.

    Returns:
      [...].
    """
    num_items, num_places = values.shape[-1], len(weights)
    if _partial_sort(num_items, num_places):
        return jnp.sum(jax.lax.top_k(values, num_places)[0] * weights, axis=-1)
    by_place = jnp.asarray(np.pad(weights, (0, num_items - num_places)))
    return jnp.sum(values * by_place[_place(values)], axis=-1)


def _partial_sort(num_items: int, num_places: int) -> bool:
    return num_items > ALL_PAIRS_ITEMS or num_places * ITEMS_PER_PARTIAL_PLACE <= num_items


def _place(values: jax.Array) -> jax.Array:
    """Place of each item, from 0: the number of items that come before it. int32 [..., N]."""
    bits = jax.lax.bitcast_convert_type(jnp.where(values == 0, 0.0, values), jnp.int32)  # one zero, not two
    # Integers in the same order as the floats, so that even NaN has a place and no two items share one. The barrier
    # keeps XLA from computing them again for every pair.
    keys = jax.lax.optimization_barrier(bits ^ ((bits >> 31) & 0x7FFFFFFF))
    # [..., j, i], where i is the item that is placed. It is on the last axis, so that sums over j are vectorized over
    # i. Among equal values the smaller index comes first: item j counts as before item i if keys_j >= keys_i for j < i,
    # and if keys_j > keys_i for j > i. Adding 1 to the integer keys_j where j < i turns >= into >.
    num_items = values.shape[-1]
    row, column = (jax.lax.broadcasted_iota(jnp.int32, (num_items, num_items), axis) for axis in (0, 1))
    handicap = (row < column).astype(jnp.int32)
    return jnp.sum(keys[..., :, None] + handicap > keys[..., None, :], axis=-2, dtype=jnp.int32)
