"""Brute-force values and gradients of rankings, by enumeration."""

from __future__ import annotations

import itertools

import numpy as np


def real_items(num_items: int, mask) -> list[int]:
    return [i for i in range(num_items) if mask is None or mask[i]]


def prob(scores, ranking, items) -> float:
    """Product of softmax choices among the items not placed yet."""
    left, total = list(items), 1.0
    for i in ranking:
        s = np.asarray([scores[j] for j in left], np.float64)
        weights = np.exp(s - s.max())
        total *= weights[left.index(i)] / weights.sum()
        left.remove(i)
    return total


def ndcg(ranking, labels, items, k) -> float:
    """NDCG@k with exponential gains."""

    def dcg(order):
        return sum((2.0 ** labels[i] - 1) / np.log2(r + 2) for r, i in enumerate(order[:k]))

    best = dcg(sorted(items, key=lambda i: -labels[i]))
    return dcg(list(ranking)) / best if best > 0 else 0.0


def value(scores, labels, mask=None, k=None) -> float:
    """E[NDCG@k] by summing over every ranking of the first min(k, real items) places."""
    labels = np.asarray(labels, np.float64)
    items = real_items(len(scores), mask)
    length = len(items) if k is None else min(k, len(items))
    cutoff = len(scores) if k is None else k
    return sum(
        prob(scores, ranking, items) * ndcg(ranking, labels, items, cutoff)
        for ranking in itertools.permutations(items, length)
    )


def log_prob_gradient(scores, ranking, items) -> np.ndarray:
    """∇ log P(ranking): at each place, the indicator of the choice minus the softmax over the items left."""
    left, out = list(items), np.zeros(len(scores))
    for i in ranking:
        s = np.asarray([scores[j] for j in left], np.float64)
        weights = np.exp(s - s.max())
        out[left] -= weights / weights.sum()
        out[i] += 1.0
        left.remove(i)
    return out


def gradient(scores, labels, mask=None, k=None) -> np.ndarray:
    """∇ E[NDCG@k] = Σ_y P(y) NDCG(y) ∇log P(y), in float64."""
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    items = real_items(len(scores), mask)
    length = len(items) if k is None else min(k, len(items))
    cutoff = len(scores) if k is None else k
    return sum(  # type: ignore[return-value]
        prob(scores, ranking, items) * ndcg(ranking, labels, items, cutoff) * log_prob_gradient(scores, ranking, items)
        for ranking in itertools.permutations(items, length)
    )


def marginals(scores, mask=None) -> np.ndarray:
    """P(item at place): [N, N], 0 for masked items and for places beyond the real ones."""
    items = real_items(len(scores), mask)
    out = np.zeros((len(scores), len(scores)))
    for ranking in itertools.permutations(items):
        out[list(ranking), range(len(items))] += prob(scores, ranking, items)
    return out


def kl(scores, other, mask=None, k=None) -> float:
    """Σ_y P(y) (log P(y) − log Q(y)) over rankings of the first min(k, real items) places."""
    items = real_items(len(scores), mask)
    length = len(items) if k is None else min(k, len(items))
    return sum(
        p * (np.log(p) - np.log(prob(other, ranking, items)))
        for ranking in itertools.permutations(items, length)
        for p in [prob(scores, ranking, items)]
    )


def one_positive_value(scores, positive, k) -> float:
    """E[discount of one item] for any N: the race integral in float64, on a much finer grid."""
    scores = np.asarray(scores, np.float64)
    times = np.linspace(-40.0, 5.0, 6001)
    weights = np.exp(times - np.exp(times))
    gaps = np.delete(scores, positive) - scores[positive]
    before = -np.expm1(-np.exp(np.minimum(gaps[:, None] + times, 30.0)))
    count = np.zeros((k, len(times)))
    count[0] = 1.0
    for p in before:
        count = count * (1 - p) + np.vstack([np.zeros((1, len(times))), count[:-1]]) * p
    return float((weights * (count / np.log2(np.arange(2, k + 2))[:, None]).sum(0)).sum() / weights.sum())
