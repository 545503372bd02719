"""Statistics of a data card, counted bucket by bucket.

Memory holds one bucket, and one number per user, item and day.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from r2rank_jax.data.prepared.tables import Array

QUANTILES = {"min": 0.0, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}
HISTORIES = (10, 20, 50)  # interactions shown, for the lengths of a history in tokens
BINS = 100  # in the histograms of popularity percentiles
_RATINGS = 100  # with more distinct values than this, ratings are not a scale and are not listed
DAY = {"s": 86_400, "ms": 86_400_000}

Measure = Callable[[Sequence[str]], Array]  # texts -> int [n], their lengths


class InteractionCounts:
    """Counts of interactions, updated one bucket at a time.

    Args:
        items: size of the catalog.
        time_unit: unit of the timestamps, "s" or "ms".
    """

    def __init__(self, items: int, time_unit: str):
        self.unit = time_unit
        self.per_item = np.zeros(items, np.int64)
        self.days: Counter[int] = Counter()  # interactions by day since 1970
        self.tied = 0  # interactions at the same time as the same user's previous one
        self._lengths: list[Array] = []
        self._ratings: Counter[float] = Counter()
        self._first, self._last = np.iinfo(np.int64).max, np.iinfo(np.int64).min

    def add(self, offsets: Array, item: Array, rating: Array, timestamp: Array) -> None:
        """Count one bucket.

        Args:
            offsets: [users + 1]; a user's rows are offsets[u]:offsets[u + 1], oldest first.
            item: [n] dense ids.
            rating: [n], NaN where missing.
            timestamp: [n].
        """
        lengths = np.diff(offsets)
        self._lengths.append(lengths.astype(np.int32))
        self.per_item += np.bincount(item, minlength=len(self.per_item))
        same_user = np.ones(len(item), bool)
        same_user[offsets[:-1][lengths > 0]] = False  # a user's first interaction
        self.tied += int(np.sum(same_user[1:] & (np.diff(timestamp) == 0)))
        days, counts = np.unique(timestamp // DAY[self.unit], return_counts=True)
        self.days.update(dict(zip(days.tolist(), counts.tolist())))
        if len(self._ratings) <= _RATINGS:
            values, counts = np.unique(rating[~np.isnan(rating)], return_counts=True)
            self._ratings.update(dict(zip(values.tolist(), counts.tolist())))
        self._first = min(self._first, int(timestamp.min(initial=self._first)))
        self._last = max(self._last, int(timestamp.max(initial=self._last)))

    @property
    def lengths(self) -> Array:
        """int32 [users]: interactions of each user."""
        return np.concatenate([np.zeros(0, np.int32), *self._lengths])

    def ratings(self) -> dict[str, int]:
        """Number of interactions by rating, lowest first; empty if there are none, or too many distinct ratings."""
        if len(self._ratings) > _RATINGS:
            return {}
        return {f"{value:g}": count for value, count in sorted(self._ratings.items())}

    def summary(self) -> dict[str, Any]:
        """Values for `card.json`."""
        n = int(self.per_item.sum())
        timeless = self._first == self._last == 0  # readers write 0 if the source has no times
        return {
            "history_lengths": quantiles(self.lengths),
            "time_span": None
            if timeless
            else {
                "first": _date(self._first, self.unit),
                "last": _date(self._last, self.unit),
                "days": (self._last - self._first) // DAY[self.unit],
            },
            "popularity": {
                "gini": round(gini(self.per_item), 4),
                "share_of_top_1_percent": round(share_of_top(self.per_item, 0.01), 4),
                "share_of_top_10_percent": round(share_of_top(self.per_item, 0.10), 4),
                "items_without_interactions": int(np.sum(self.per_item == 0)),
                "interactions_per_item": quantiles(self.per_item),
            },
            "tied_with_the_interaction_before": {"interactions": self.tied, "share": round(self.tied / max(n, 1), 4)},
            "ratings": self.ratings(),
        }


class ListCounts:
    """Counts of a protocol's validation lists or test lists.

    Args:
        per_item: [items] number of interactions of each item, over all users.
    """

    def __init__(self, per_item: Array):
        # Bins of rank in the catalog, least popular first, so that all bins hold the same number of items.
        self._bin = np.empty(len(per_item), np.int64)
        self._bin[np.argsort(per_item, kind="stable")] = np.arange(len(per_item)) * BINS // max(len(per_item), 1)
        self.lists = self.positives_among_negatives = self.seen_in_history = 0
        self.relevant, self.negative = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
        self._history: list[Array] = []

    def add(
        self, first_user: int, offsets: Array, item: Array, user: Array, position: Array, items: Array, labels: Array
    ) -> None:
        """Count the lists of one bucket.

        Args:
            first_user: dense id of the bucket's first user.
            offsets: [users + 1]; a user's rows are offsets[u]:offsets[u + 1].
            item: [n] items of those rows.
            user: [L] dense ids.
            position: [L] position of the positive in the user's sequence.
            items: [L, N] dense ids.
            labels: [L, N].
        """
        catalog = len(self._bin)
        owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        key = owner * catalog + item
        by = np.argsort(key, kind="stable")
        list_key = (user[:, None] - first_user) * catalog + items
        place = np.minimum(np.searchsorted(key[by], list_key), len(by) - 1)
        interacted = key[by][place] == list_key
        earlier = interacted & (by[place] - offsets[user - first_user][:, None] < position[:, None])
        self.lists += len(user)
        self.positives_among_negatives += int(np.sum(interacted & (labels <= 0)))
        self.seen_in_history += int(np.sum(earlier & (labels > 0)))
        self.relevant += self._histogram(items[labels > 0])
        self.negative += self._histogram(items[labels <= 0])
        self._history.append(position.astype(np.int32))

    def _histogram(self, items: Array) -> Array:
        return np.bincount(self._bin[items], minlength=BINS)

    def summary(self) -> dict[str, Any]:
        """Values for `card.json`."""
        return {
            "lists": self.lists,
            "positives_among_negatives": self.positives_among_negatives,
            "relevant_items_seen_in_history": self.seen_in_history,
            "history_lengths": quantiles(np.concatenate([np.zeros(0, np.int32), *self._history])),
            "median_popularity_percentile": {"relevant": _median(self.relevant), "negatives": _median(self.negative)},
        }


def quantiles(values: Array) -> dict[str, float]:
    """Mean and `QUANTILES`; every quantile is an observed value. Empty if there are no values."""
    if not len(values):
        return {}
    levels = np.quantile(values, list(QUANTILES.values()), method="inverted_cdf")
    return {"mean": round(float(np.mean(values)), 2)} | dict(zip(QUANTILES, levels.tolist()))


def gini(counts: Array) -> float:
    """Gini coefficient of counts [n]: 0 if all are equal, near 1 if one count has almost the whole sum.

    >>> gini(np.array([1, 1, 1, 1])), gini(np.array([0, 0, 0, 4]))
    (0.0, 0.75)
    """
    n, total = len(counts), counts.sum()
    if not total:
        return 0.0
    return float(2 * np.sum(np.arange(1, n + 1) * np.sort(counts)) / (n * total) - (n + 1) / n)


def share_of_top(counts: Array, part: float) -> float:
    """Share of the sum of counts [n] that belongs to the largest `part` of them, rounded up to whole items.

    >>> share_of_top(np.array([1, 1, 8]), 0.1)
    0.8
    """
    top = int(np.ceil(part * len(counts)))
    return float(np.sort(counts)[::-1][:top].sum()) / max(int(counts.sum()), 1)


def characters(texts: Sequence[str]) -> Array:
    """int64 [n]: lengths in characters."""
    return np.fromiter((len(text) for text in texts), np.int64, len(texts))


def words(texts: Sequence[str]) -> Array:
    """int64 [n]: lengths in words separated by white space."""
    return np.fromiter((len(re.findall(r"\S+", text)) for text in texts), np.int64, len(texts))


def history_sums(offsets: Array, item: Array, first_user: int, user: Array, position: Array, each: Array) -> Array:
    """Total length of the item texts in a history, without the words of a template.

    Args:
        offsets: [users + 1]; a user's rows in the bucket are offsets[u]:offsets[u + 1].
        item: [n] items of those rows.
        first_user: dense id of the bucket's first user.
        user: [L] dense ids.
        position: [L]; a history is everything before this position.
        each: [items] length of each item's text.

    Returns:
        int64 [L, len(HISTORIES)], one column per number of interactions shown.
    """
    total = np.concatenate([[0], np.cumsum(each[item])])
    start = offsets[user - first_user]
    end = start + position
    return np.stack([total[end] - total[np.maximum(start, end - shown)] for shown in HISTORIES], axis=1)


def _median(histogram: Array) -> float | None:
    total = histogram.sum()
    return round(float(np.searchsorted(np.cumsum(histogram), total / 2) + 0.5) / BINS, 3) if total else None


def _date(stamp: int, unit: str) -> str:
    try:
        return datetime.fromtimestamp(stamp // (DAY[unit] // 86_400), UTC).strftime("%Y-%m-%d")
    except (OverflowError, ValueError, OSError):
        return f"{stamp} {unit}"
