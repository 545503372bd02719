"""Draws of negatives: distinct items outside what a user knows. Pure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from r2rank_jax.data.prepared.settings import Array
from r2rank_jax.errors import DataError

# (generator, distinct items to keep out, user's place in the bucket, how many) -> that many distinct items
Draw = Callable[[np.random.Generator, Array, int, int], Array]


def sample_outside(rng: np.random.Generator, known: Array, items: int, count: int) -> Array:
    """Distinct items, uniform over the catalogue without `known`; exact, in O(known + count).

    Args:
        rng: source of randomness.
        known: [k] distinct item ids to keep out.
        items: size of the catalogue.
        count: items wanted.

    Returns:
        int32 [count], in random order.

    Raises:
        DataError: fewer than `count` items are left.
    """
    left = _require_left(known, items, count)
    ranks = rng.choice(left, count, replace=False, shuffle=True)
    # The r-th item that is not known is r plus the number of known items before it.
    gaps = np.sort(known) - np.arange(len(known))
    return (ranks + np.searchsorted(gaps, ranks, side="right")).astype(np.int32)


def sample_by_weight(rng: np.random.Generator, known: Array, cumulative: Array, count: int) -> Array:
    """Distinct items outside `known`, one after the other, each in proportion to its weight among those left.

    Args:
        rng: source of randomness.
        known: [k] distinct item ids to keep out.
        cumulative: float64 [items], sums of the weights, all of which are positive.
        count: items wanted.

    Returns:
        int32 [count], in the order of the draws.

    Raises:
        DataError: fewer than `count` items are left.
    """
    _require_left(known, len(cumulative), count)
    out = set(known.tolist())
    chosen: list[int] = []
    # Drawing again where an item is out already is drawing among those left.
    for _ in range(8):
        drawn = np.searchsorted(cumulative, rng.random(4 * count) * cumulative[-1], side="right")
        for item in drawn.tolist():
            if item not in out and len(chosen) < count:
                out.add(item)
                chosen.append(item)
        if len(chosen) == count:
            return np.array(chosen, np.int32)
    # Little weight is left. The first arrivals of a race with these rates have the same law.
    arrival = rng.standard_exponential(len(cumulative)) / np.diff(cumulative, prepend=0.0)
    arrival[list(out)] = np.inf
    rest = np.argsort(arrival)[: count - len(chosen)]
    return np.append(chosen, rest).astype(np.int32)


def _require_left(known: Array, items: int, count: int) -> int:
    left = items - len(known)
    if left < count:
        raise DataError(
            f"{count} negatives need as many items outside the user's interactions, got {left} of {items}; "
            f"lower the number of candidates (data.candidate_items, data prepare --candidates) to at most "
            f"{left + 1}"
        )
    return left
