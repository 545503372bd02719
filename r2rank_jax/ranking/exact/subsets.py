"""Exact expectations over rankings by dynamic programming over sets of placed items.

What remains of a Plackett-Luce ranking depends on which items are placed, not on their order (Luce 1959), so N!
rankings collapse into 2^N sets. With a reward r(A, i) for choosing item i when the set A is placed,

    F(A) = Σ_{i ∉ A} softmax_i(s over the items not in A) · ( r(A, i) + F(A ∪ {i}) ),   expectation = F(∅).

Cost O(2^N · N) per list: for up to 14 items.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from r2rank_jax.ranking.arguments import LOWEST

MAX_ITEMS = 14


def expected_total(
    scores: jax.Array, real: jax.Array, num_places: int, reward: Callable[[int, jax.Array], jax.Array]
) -> jax.Array:
    """Expected sum of rewards over the first `num_places` places of PL(scores).

    Args:
      scores: [..., N] finite.
      real: [..., N] True for a real item; masked items hold no place and earn nothing.
      num_places: K.
      reward: maps (number of items placed, bool [..., C, N] the items still free in each of the C sets) to the reward
        of choosing each item then, broadcastable to [..., C, N]; what it says of items that are not free is ignored.

    Returns:
      [...] expected totals.
    """
    num_items = scores.shape[-1]
    future = jnp.zeros((*scores.shape[:-1], math.comb(num_items, num_places)), scores.dtype)
    for size in reversed(range(num_places)):
        placed, larger = _sets(num_items, size)
        free = real[..., None, :] & ~placed  # [..., C(N, size), N]
        choice = jnp.exp(log_softmax(scores[..., None, :], free))
        earned = jnp.where(free, reward(size, free) + future[..., larger], 0.0)
        future = jnp.sum(jnp.where(free, choice, 0.0) * earned, axis=-1)
    return future[..., 0]


def log_softmax(scores: jax.Array, free: jax.Array) -> jax.Array:
    """Log-softmax over the free items; a finite number elsewhere and where none is free."""
    return jax.nn.log_softmax(jnp.where(free, scores, LOWEST), axis=-1)


def _sets(num_items: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Membership [C, N] of all sets of one size, and the index [C, N] of each one's union with one item."""
    sets = list(itertools.combinations(range(num_items), size))
    index = {members: i for i, members in enumerate(itertools.combinations(range(num_items), size + 1))}
    member = np.zeros((len(sets), num_items), bool)
    larger = np.zeros((len(sets), num_items), np.int32)
    for row, members in enumerate(sets):
        member[row, list(members)] = True
        for item in range(num_items):
            if item not in members:
                larger[row, item] = index[tuple(sorted((*members, item)))]
    return member, larger
