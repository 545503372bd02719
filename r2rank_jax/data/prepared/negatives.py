"""Sampling of negatives: distinct items that exclude a given set. Pure functions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from r2rank_jax.data.prepared.settings import Array
from r2rank_jax.errors import DataError

# (generator, distinct items to exclude, user's index in the bucket, count) -> `count` distinct items
Draw = Callable[[np.random.Generator, Array, int, int], Array]


def sample_outside(rng: np.random.Generator, excluded: Array, items: int, count: int) -> Array:
    """Sample distinct items uniformly from the catalog without `excluded`; exact, in O(excluded + count).

    Args:
        rng: source of randomness.
        excluded: [k] distinct item ids to exclude.
        items: size of the catalog.
        count: number of items to sample.

    Returns:
        int32 [count], in random order.

    Raises:
        DataError: fewer than `count` items are left.
    """
    left = _require_left(excluded, items, count)
    ranks = rng.choice(left, count, replace=False, shuffle=True)
    # The r-th remaining item has id r plus the number of excluded items before it.
    gaps = np.sort(excluded) - np.arange(len(excluded))
    return (ranks + np.searchsorted(gaps, ranks, side="right")).astype(np.int32)


def sample_by_weight(rng: np.random.Generator, excluded: Array, cumulative: Array, count: int) -> Array:
    """Sample distinct items outside `excluded` one by one, each in proportion to its weight among the items left.

    Args:
        rng: source of randomness.
        excluded: [k] distinct item ids to exclude.
        cumulative: float64 [items], cumulative sums of the weights, all of which must be positive.
        count: number of items to sample.

    Returns:
        int32 [count], in the order in which they were drawn.

    Raises:
        DataError: fewer than `count` items are left.
    """
    _require_left(excluded, len(cumulative), count)
    unavailable = set(excluded.tolist())
    chosen: list[int] = []
    # Rejecting unavailable items and drawing again is the same as drawing from the items left.
    for _ in range(8):
        drawn = np.searchsorted(cumulative, rng.random(4 * count) * cumulative[-1], side="right")
        for item in drawn.tolist():
            if item not in unavailable and len(chosen) < count:
                unavailable.add(item)
                chosen.append(item)
        if len(chosen) == count:
            return np.array(chosen, np.int32)
    # Little weight is left. The first arrivals of an exponential race with these rates have the same distribution.
    arrival = rng.standard_exponential(len(cumulative)) / np.diff(cumulative, prepend=0.0)
    arrival[list(unavailable)] = np.inf
    rest = np.argsort(arrival)[: count - len(chosen)]
    return np.append(chosen, rest).astype(np.int32)


def _require_left(excluded: Array, items: int, count: int) -> int:
    left = items - len(excluded)
    if left < count:
        raise DataError(
            f"{count} negatives need as many items outside the user's interactions, got {left} of {items}; "
            f"lower the number of candidates (data.candidate_items, data prepare --candidates) to at most "
            f"{left + 1}"
        )
    return left
