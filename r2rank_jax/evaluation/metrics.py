"""Ranking metrics of one system, one number per user.

The metrics are those of `ranking.metrics`, in float32, so that evaluation measures what training maximizes. The input
is scores, not rankings, because ties between scores are a common source of errors: candidate lists often hold the
positive last, so breaking ties by position gives a constant scorer an NDCG of 0 (or 1, in the opposite order). Here,
ties are broken at random.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from r2rank_jax.errors import ScoresError
from r2rank_jax.ranking.metrics import EVALUATED
from r2rank_jax.ranking.reward import named, ranking_reward

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
RankingMetric = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""Rankings int [U, N], labels [U, N], mask [U, N] -> float32 [U]."""

BLOCK_USERS = 4096
"""Number of users that are measured at a time, which bounds the memory."""


def evaluated_metrics(ks: Sequence[int], reward: str | None = None) -> dict[str, RankingMetric]:
    """The metrics of an evaluation by name: those of `ranking.metrics.EVALUATED` and, if it is another one, the reward.

    Args:
        ks: cut-offs, each at least 1; a k above N means the whole list.
        reward: as `ranking.reward.named` takes it; None adds nothing.

    Raises:
        ValueError: no or bad cut-offs, or an unknown reward.
    """
    cutoffs = _cutoffs(ks)
    metrics: dict[str, RankingMetric] = {}
    for name, evaluated in EVALUATED.items():
        if evaluated.at_cutoffs:
            metrics |= {f"{name}@{k}": functools.partial(evaluated.metric, k=k) for k in cutoffs}
        else:
            metrics[name] = evaluated.metric
    if reward is not None and reward not in metrics:
        metrics[reward] = functools.partial(ranking_reward, reward=named(reward))
    return metrics


def rank_items(scores: ArrayLike, mask: ArrayLike | None = None, *, seed: int) -> NDArray[np.int64]:
    """Item indices, best first; masked items come last.

    Equal scores are ordered by random keys drawn from `seed`. All systems must use the same seed, so that two systems
    with the same ties get the same ranking.

    Args:
        scores: [U, N] real numbers, higher is better; a masked item's score may be anything.
        mask: bool [U, N], True = real item; None = all real.
        seed: of the tie-breaking keys.

    Returns:
        int64 [U, N], a permutation of 0..N-1 per row.

    Raises:
        ValueError: the shapes differ.
        ScoresError: a score of a real item is not finite.
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
    reward: str | None = None,
) -> dict[str, FloatArray]:
    """Every metric of `evaluated_metrics` for every user.

    Args:
        scores: [U, N] real numbers, higher is better.
        labels: [U, N] graded relevance, at least 0; relevant means above 0. A masked item's label is ignored.
        mask: bool [U, N], True = real item; None = all real.
        ks: cut-offs, each at least 1; a k above N means the whole list.
        seed: of the tie-breaking keys; use one seed for all systems.
        reward: measured in addition to the metrics, see `evaluated_metrics`.

    Returns:
        `ndcg@k`, `hr@k` for each k, `mrr`, and the reward by its name, each float64 [U]. A user without a relevant item
        gets 0 in all of them.

    Raises:
        ValueError: the shapes differ, cut-offs are missing or bad, the reward is unknown, or a real item's label is not
            valid.
        ScoresError: a score of a real item is not finite.
    """
    values, real = _scores_and_mask(scores, mask)
    metrics = evaluated_metrics(ks, reward)
    grades = np.asarray(labels, dtype=np.float64)
    if grades.shape != real.shape:
        raise ValueError(f"labels must have the shape of scores {real.shape}, got {grades.shape}")
    order = rank_items(values, real, seed=seed)
    blocks = [
        {name: metric(*block) for name, metric in metrics.items()}
        for start in range(0, len(values), BLOCK_USERS)
        for block in [tuple(jnp.asarray(x[start : start + BLOCK_USERS]) for x in (order, grades, real))]
    ]
    return {
        name: np.concatenate([np.asarray(block[name], np.float64) for block in blocks] or [np.zeros(0)])
        for name in metrics
    }


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
        raise ScoresError(
            f"scores of real items must be finite: {int(bad.sum())} are not, the first is "
            f"{values[user, item]} at user row {user}, item {item}; check whether the model has "
            "diverged, or mask the item"
        )
    return values, real


def _cutoffs(ks: Sequence[int]) -> list[int]:
    cutoffs = [int(k) for k in ks]
    if not cutoffs or min(cutoffs) < 1:
        raise ValueError(f"ks must hold at least one cut-off, each >= 1, got {list(ks)}")
    return cutoffs
