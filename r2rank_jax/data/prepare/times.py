"""The calendar's cuts, found without holding all times in memory: histograms over the buckets, finer and finer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from r2rank_jax.data.prepare.user_buckets import TIME_BINS, count_times
from r2rank_jax.data.prepare.workers import OverBuckets
from r2rank_jax.data.prepared.settings import Array
from r2rank_jax.files.seals import Facts


def time_cuts(work: Path, written: list[Facts], over_buckets: OverBuckets) -> tuple[int, int]:
    """Timestamps below which (at most) 80 % and 90 % of all interactions lie.

    Args:
        work: the work folder, with the interactions.
        written: what `user_buckets.write_interactions` returned, by bucket.
        over_buckets: calls a function for every bucket.
    """
    there = [facts for facts in written if facts["interactions"]]
    low, high = min(facts["first_time"] for facts in there), max(facts["last_time"] for facts in there)
    rows = sum(facts["interactions"] for facts in there)

    def count(start: int, width: int) -> Array:
        return np.sum(over_buckets("time cuts", partial(count_times, work, start, width)), axis=0)

    return order_statistic(count, low, high, rows * 8 // 10), order_statistic(count, low, high, rows * 9 // 10)


def order_statistic(count: Callable[[int, int], Array], low: int, high: int, rank: int) -> int:
    """The value at place `rank` (from 0) of some sorted integers.

    Args:
        count: (start, width) -> int64 [bins]: how many lie in start + [bin * width, (bin + 1) * width).
        low: the least of them.
        high: the greatest.
        rank: the place, less than their number.
    """
    while True:
        width = -(-(high - low + 1) // TIME_BINS)
        up_to = np.cumsum(count(low, width))
        found = int(np.searchsorted(up_to, rank, side="right"))
        rank -= int(up_to[found - 1]) if found else 0
        low += found * width
        high = low + width - 1
        if width == 1:
            return low
