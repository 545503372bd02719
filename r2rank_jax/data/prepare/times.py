"""The cuts of a split by calendar time, from ever finer histograms over the buckets instead of all times in memory."""

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
    """Find the timestamps below which at most 80 % and 90 % of all interactions lie.

    Args:
        work: the work folder, with the interactions.
        written: results of `user_buckets.write_interactions` by bucket.
        over_buckets: calls a function for every bucket.
    """
    nonempty = [facts for facts in written if facts["interactions"]]
    low, high = min(facts["first_time"] for facts in nonempty), max(facts["last_time"] for facts in nonempty)
    rows = sum(facts["interactions"] for facts in nonempty)

    def count(start: int, width: int) -> Array:
        return np.sum(over_buckets("time cuts", partial(count_times, work, start, width)), axis=0)

    return order_statistic(count, low, high, rows * 8 // 10), order_statistic(count, low, high, rows * 9 // 10)


def order_statistic(count: Callable[[int, int], Array], low: int, high: int, rank: int) -> int:
    """Return the value at index `rank` of some integers in sorted order.

    Args:
        count: (start, width) -> int64 [bins]: number of values in start + [bin * width, (bin + 1) * width).
        low: the smallest value.
        high: the largest value.
        rank: index from 0, less than the number of values.
    """
    while True:
        width = -(-(high - low + 1) // TIME_BINS)
        up_to = np.cumsum(count(low, width))
        bin_of_rank = int(np.searchsorted(up_to, rank, side="right"))
        rank -= int(up_to[bin_of_rank - 1]) if bin_of_rank else 0
        low += bin_of_rank * width
        high = low + width - 1
        if width == 1:
            return low
