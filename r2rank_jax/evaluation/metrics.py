"""Ranking metrics of one system, one number per user, in NumPy float64.

The training reward lives in `r2rank_jax.ranking.metrics`. Here the input is scores, not rankings, because the
step from scores to a ranking is where evaluations go wrong: candidate lists often hold the truth last, so
breaking ties by position hands a constant scorer an NDCG of 0 (or 1, sorted the other way). Ties are broken
at random.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


def rank_items(scores: ArrayLike, mask: ArrayLike | None = None, *, seed: int) -> NDArray[np.int64]:
    """Item indices, best first; masked items come last.

    Equal scores are ordered by a random key drawn from `seed`, the same key for every system that is scored
    on the same lists, so that two systems that tie in the same way are not told apart by luck.

    Args:
        scores: [U, N] real numbers, higher is better; a masked item's score may be anything.
        mask: bool [U, N], True = real item; None = all real.
        seed: of the tie-breaking keys.

    Returns:
        int64 [U, N], a permutation of 0..N-1 per row.

    Raises:
        ValueError: shapes that differ, or a score of a real item that is not finite.
    """
    values, real = _scores_and_mask(scores, mask)
    tie_keys = np.random.default_rng(seed).random(values.shape)
    descending = np.where(real, -values, np.inf)  # real scores are finite, so masked items are strictly last
    return np.lexsort((tie_keys, descending), axis=-1).astype(np.int64)


def per_user_metrics(
    scores: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike | None,
    ks: Sequence[int],
    *,
    seed: int,
) -> dict[str, FloatArray]:
    """NDCG@k and hit rate@k for every k, and the reciprocal rank of the first relevant item.

    NDCG uses gains 2^label - 1 and discounts 1 / log2(1 + rank) (Burges et al. 2005). A user without a
    relevant item gets 0 in every metric, as in `r2rank_jax.ranking.metrics`.

    Args:
        scores: [U, N] real numbers, higher is better.
        labels: [U, N] graded relevance, at least 0; relevant means above 0. A masked item's label is ignored.
        mask: bool [U, N], True = real item; None = all real.
        ks: cut-offs, each at least 1; a k above N means the whole list.
        seed: of the tie-breaking keys; use one seed for all systems.

    Returns:
        `ndcg@k`, `hr@k` for each k, and `mrr`, each float64 [U] in [0, 1].

    Raises:
        ValueError: shapes that differ, no or bad cut-offs, or a score or label of a real item that is not
            usable.
    """
    values, real = _scores_and_mask(scores, mask)
    cutoffs = _cutoffs(ks)
    gains = _gains(labels, real)
    order = rank_items(values, real, seed=seed)
    ranked = np.take_along_axis(gains, order, axis=-1)
    ideal = -np.sort(-gains, axis=-1)
    discounts = 1.0 / np.log2(2.0 + np.arange(values.shape[-1]))

    metrics: dict[str, FloatArray] = {}
    for k in cutoffs:
        best = ideal[:, :k] @ discounts[:k]
        got = ranked[:, :k] @ discounts[:k]
        metrics[f"ndcg@{k}"] = got / np.where(best > 0, best, 1.0)  # got is 0 where best is
    for k in cutoffs:
        metrics[f"hr@{k}"] = np.asarray((ranked[:, :k] > 0).any(-1), dtype=np.float64)
    relevant = ranked > 0
    first = relevant.argmax(-1) + 1.0
    metrics["mrr"] = np.where(relevant.any(-1), 1.0 / first, 0.0)
    return metrics


def _scores_and_mask(scores: ArrayLike, mask: ArrayLike | None) -> tuple[FloatArray, BoolArray]:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or values.shape[-1] == 0:
        raise ValueError(f"scores must be [U, N] with N >= 1, got shape {values.shape}")
    real = np.ones(values.shape, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    if real.shape != values.shape:
        raise ValueError(f"mask must have the shape of scores {values.shape}, got {real.shape}")
    bad = real & ~np.isfinite(values)
    if bad.any():
        user, item = np.argwhere(bad)[0]
        raise ValueError(
            f"scores of real items must be finite: {int(bad.sum())} are not, the first is "
            f"{values[user, item]} at user row {user}, item {item}; a diverged model must not get "
            "a rank by accident: check its scores or mask the item"
        )
    return values, real


def _gains(labels: ArrayLike, real: BoolArray) -> FloatArray:
    grades = np.asarray(labels, dtype=np.float64)
    if grades.shape != real.shape:
        raise ValueError(f"labels must have the shape of scores {real.shape}, got {grades.shape}")
    grades = np.where(real, grades, 0.0)
    if not (np.isfinite(grades) & (grades >= 0)).all():
        raise ValueError("labels of real items must be finite and at least 0; 0 = not relevant")
    return np.exp2(grades) - 1.0


def _cutoffs(ks: Sequence[int]) -> list[int]:
    cutoffs = [int(k) for k in ks]
    if not cutoffs or min(cutoffs) < 1:
        raise ValueError(f"ks must hold at least one cut-off, each >= 1, got {list(ks)}")
    return cutoffs
