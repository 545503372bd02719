"""Uncertainty of metrics: bootstrap intervals over users, and a paired permutation test.

Users are resampled, not items or lists, because the lists of one user share a history. The intervals cover the sampling
of users only. They do not cover the training seed or the sampling of negatives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

BLOCK_ELEMENTS = 2_000_000
"""Largest number of random values in memory (16 MB as float64), for any number of users and samples."""


class Interval(NamedTuple):
    """A mean with its 95% interval."""

    mean: float
    low: float
    high: float


class Comparison(NamedTuple):
    """Paired comparison of system a with system b over the same users; `difference` is a minus b."""

    difference: float
    low: float
    high: float
    p: float


def bootstrap_interval(values: ArrayLike, samples: int, seed: int) -> Interval:
    """Mean over users with a 95% percentile bootstrap interval (Efron & Tibshirani 1993, ch. 13).

    Args:
        values: [U] one number per user, finite.
        samples: number of resamples of the users, at least 1; 2000 give limits that are accurate to three digits.
        seed: seed of the resampling.

    Returns:
        (mean, low, high), in the unit of `values`.

    Raises:
        ValueError: there are no users, values are not finite or not [U], or samples is below 1.
    """
    users = _users(values, "values")
    _check_samples(samples)
    rng = np.random.default_rng(seed)
    means = [
        users[rng.integers(0, users.size, size=(rows, users.size))].mean(axis=-1)
        for rows in _blocks(samples, users.size)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Interval(float(users.mean()), float(low), float(high))


def paired_test(a: ArrayLike, b: ArrayLike, samples: int, seed: int) -> float:
    """Two-sided p-value of the paired sign-flip permutation test on the mean difference.

    Under the null hypothesis, each user's difference is d or -d with equal probability. Users with equal values are
    dropped, because flipping their sign changes nothing. If there are at most `samples` sign patterns, they are
    enumerated and p is exact. Otherwise patterns are sampled and p = (1 + hits) / (1 + samples), which is never 0 and
    keeps the level of the test (Phipson & Smyth 2010).

    Args:
        a: [U] one number per user.
        b: [U] the other system's numbers for the same users, in the same order.
        samples: number of sign patterns to draw.
        seed: seed of the patterns.

    Returns:
        p in (0, 1]; 1 if the systems agree on every user.

    Raises:
        ValueError: the shapes differ, there are no users, values are not finite, or samples is below 1.
    """
    differences = _differences(a, b)
    _check_samples(samples)
    differences = differences[differences != 0]
    users = differences.size
    if users == 0:
        return 1.0
    total = differences.sum()
    # A flipped sum that equals the observed one may differ in its last bits, because its terms are added in another
    # order.
    threshold = abs(total) - 1e-9 * np.abs(differences).sum()
    exact = users < 63 and 2**users <= samples
    patterns = 2**users if exact else samples
    hits = 0
    for flips in _enumerated(users) if exact else _sampled(users, samples, seed):
        sums = total - 2.0 * (flips.astype(np.float64) @ differences)
        hits += int((np.abs(sums) >= threshold).sum())
    return hits / patterns if exact else (1 + hits) / (1 + patterns)


def compare(a: ArrayLike, b: ArrayLike, *, bootstrap_samples: int, permutation_samples: int, seed: int) -> Comparison:
    """Mean of a - b over users, its 95% bootstrap interval, and the p-value of `paired_test`.

    Args:
        a: [U] one number per user.
        b: [U] the other system's numbers for the same users, in the same order.
        bootstrap_samples: number of samples for the interval.
        permutation_samples: number of samples for the test.
        seed: seed of both.

    Raises:
        ValueError: as in `bootstrap_interval` and `paired_test`.
    """
    mean, low, high = bootstrap_interval(_differences(a, b), bootstrap_samples, seed)
    return Comparison(mean, low, high, paired_test(a, b, permutation_samples, seed))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted so that the chance of one or more false positives is at most the level.

    Step-down: the smallest of m values is multiplied by m, the next by m - 1, and so on. None is adjusted below a
    smaller one, or above 1 (S. Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979). The tests may
    depend on each other.

    Args:
        p_values: in (0, 1].

    Returns:
        The adjusted values, in the same order.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _sampled(users: int, samples: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Random sign patterns [rows, users] of 0 and 1, which take one random bit per user instead of a float."""
    rng = np.random.default_rng(seed)
    width = -(-users // 8)
    for rows in _blocks(samples, users):
        packed = rng.integers(0, 256, size=(rows, width), dtype=np.uint8)
        yield np.unpackbits(packed, axis=-1, count=users)


def _enumerated(users: int) -> Iterator[NDArray[np.uint8]]:
    """All 2^users sign patterns, as blocks [rows, users] of 0 and 1."""
    start = 0
    for rows in _blocks(2**users, users):
        codes = np.arange(start, start + rows)[:, None]
        yield ((codes >> np.arange(users)) & 1).astype(np.uint8)
        start += rows


def _blocks(samples: int, width: int) -> Iterator[int]:
    rows = max(1, BLOCK_ELEMENTS // max(1, width))
    for start in range(0, samples, rows):
        yield min(rows, samples - start)


def _differences(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    first, second = _users(a, "a"), _users(b, "b")
    if first.shape != second.shape:
        raise ValueError(
            f"a and b must hold the same users, got {first.size} and {second.size}; "
            "score both systems on the same lists"
        )
    return first - second


def _users(values: ArrayLike, name: str) -> NDArray[np.float64]:
    users = np.asarray(values, dtype=np.float64)
    if users.ndim != 1 or users.size == 0:
        raise ValueError(f"{name} must be [U] with at least one user, got shape {users.shape}")
    if not np.isfinite(users).all():
        raise ValueError(f"{name} must be finite, got {int((~np.isfinite(users)).sum())} values that are not")
    return users


def _check_samples(samples: int) -> None:
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
