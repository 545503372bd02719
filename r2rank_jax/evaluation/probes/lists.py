"""Measures of whole lists: verdict words, popularity, permuted labels, histories of other users."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def verdict_calibration(
    verdicts: NDArray[np.str_], positive: NDArray[np.bool_], scores: FloatArray, *, least: int
) -> list[dict[str, Any]]:
    """How often the items with each verdict are positive, and how high their rationales score.

    Args:
        verdicts: [R] text of the verdict of each rationale.
        positive: bool [R], whether its item is relevant.
        scores: [R] of the rationale.
        least: verdicts that occur less often are left out.

    Returns:
        {verdict, count, positives (a share), score (a mean)} of each verdict, the highest score first.
    """
    words, place, counts = np.unique(verdicts, return_inverse=True, return_counts=True)
    place = place.reshape(-1)
    positives = np.bincount(place, weights=positive, minlength=len(words)) / np.maximum(counts, 1)
    means = np.bincount(place, weights=scores, minlength=len(words)) / np.maximum(counts, 1)
    rows = [
        {"verdict": str(word), "count": int(count), "positives": float(share), "score": float(mean)}
        for word, count, share, mean in zip(words, counts, positives, means)
        if count >= least
    ]
    return sorted(rows, key=lambda row: -row["score"])


def spearman(a: FloatArray, b: FloatArray) -> FloatArray:
    """Spearman's rank correlation of each row of two arrays [L, N], with mean ranks of ties; NaN for constant rows.

    >>> spearman(np.array([[1.0, 2.0, 9.0]]), np.array([[0.1, 0.5, 0.4]]))
    array([0.5])
    """
    x, y = (_centered_ranks(values) for values in (a, b))
    scale = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return np.where(scale > 0, (x * y).sum(axis=1) / np.where(scale > 0, scale, 1), np.nan)


def rank_among(score: FloatArray, others: FloatArray) -> FloatArray:
    """Rank of a score in its list, 1 is the best; each other item with an equal score counts as half.

    Args:
        score: [P].
        others: [P, N - 1], scores of the other items.
    """
    above = np.count_nonzero(others > score[:, None], axis=1)
    equal = np.count_nonzero(others == score[:, None], axis=1)
    return 1.0 + above + equal / 2


def popularity_of_positives(items: IntArray, labels: FloatArray, train_counts: IntArray) -> FloatArray:
    """float64 [L]: training interactions of each list's relevant item; the mean over them if there are several.

    Args:
        items: [L, N].
        labels: [L, N]; every list has a relevant item.
        train_counts: [items of the data].
    """
    relevant = labels > 0
    return (train_counts[items] * relevant).sum(axis=1) / relevant.sum(axis=1)


def lists_of_other_users(users: IntArray, rng: np.random.Generator) -> IntArray | None:
    """For each list a list of another user, every list once; None if one user has more than half of the lists.

    Args:
        users: [L] of each list.
        rng: draws the order of the users.
    """
    distinct, place, counts = np.unique(users, return_inverse=True, return_counts=True)
    if 2 * np.max(counts, initial=0) > len(users) or len(distinct) < 2:
        return None
    by_user = np.argsort(rng.permutation(len(distinct))[place], kind="stable")
    others = np.empty(len(users), np.int64)
    others[by_user] = np.roll(by_user, np.max(counts))  # a shift by the longest run leaves no list within its own run
    return others


def negatives_of_lists(labels: FloatArray, count: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Draw negatives, of as many different lists as possible.

    Args:
        labels: [L, N].
        count: the number of pairs; all negatives if there are fewer.
        rng: draws them.

    Returns:
        lists [pairs] and places in the list [pairs]; no pair occurs twice.
    """
    pairs = rng.permutation(np.argwhere(labels <= 0))
    lists = pairs[:, 0]
    by_list = np.argsort(lists, kind="stable")
    first = np.searchsorted(lists[by_list], lists[by_list])
    turn = np.empty(len(pairs), np.int64)
    turn[by_list] = np.arange(len(pairs)) - first  # 0 for the first pair of a list, 1 for its second, ...
    chosen = np.argsort(turn, kind="stable")[:count]
    return pairs[chosen, 0], pairs[chosen, 1]


def _centered_ranks(values: FloatArray) -> FloatArray:
    """[L, N] mean ranks minus their mean; ranks are counted pairwise, one list at a time to bound the memory."""
    ranks = [(row[:, None] > row).sum(axis=1) + (row[:, None] == row).sum(axis=1) / 2 for row in values]
    centered = np.stack(ranks) if ranks else np.zeros(values.shape)
    return np.asarray(centered - centered.mean(axis=1, keepdims=True), np.float64)
