"""Random and popularity: what a ranking is worth that knows nothing of the user."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from r2rank_jax.evaluation.baselines.inputs import FloatArray, ids
from r2rank_jax.evaluation.metrics import evaluated_metrics


def random_scores(candidates: ArrayLike, *, seed: int) -> FloatArray:
    """Independent uniform scores: a random ranking.

    Args:
        candidates: int [U, N] item ids; only the shape is used.
        seed: seed of the scores.

    Returns:
        float64 [U, N] in [0, 1).
    """
    return np.random.default_rng(seed).random(np.shape(candidates))


def popularity_scores(train_items: ArrayLike, candidates: ArrayLike) -> FloatArray:
    """The number of training interactions of each candidate.

    Args:
        train_items: int [E] dense item id of each training interaction.
        candidates: int [U, N] dense item ids; a negative id is padding and scores 0.

    Returns:
        float64 [U, N] counts.

    Raises:
        ValueError: ids are not integers.
    """
    items = ids(train_items, "train_items", ndim=1)
    listed = ids(candidates, "candidates", ndim=2)
    counts = np.bincount(items, minlength=int(np.max(listed, initial=0)) + 1)
    return np.where(listed >= 0, counts[np.maximum(listed, 0)], 0).astype(np.float64)


def analytic_random(n: int, ks: Sequence[int], reward: str | None = None) -> dict[str, float]:
    """Expected value of every metric for a uniformly random ranking of n items, one of them relevant.

    The relevant item is at each place with probability 1/n, so the expected value is the mean over n places.

    >>> round(analytic_random(20, [10])["ndcg@10"], 4)
    0.2272

    Args:
        n: items.
        ks: cut-offs.
        reward: measured in addition, see `metrics.evaluated_metrics`.

    Returns:
        Metric name -> expected value, with the names of `metrics.evaluated_metrics`.

    Raises:
        ValueError: n or a cut-off below 1, or an unknown reward.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    labels, order = jnp.eye(n), jnp.broadcast_to(jnp.arange(n), (n, n))
    return {
        name: float(np.mean(np.asarray(metric(order, labels, jnp.ones((n, n), bool)), np.float64)))
        for name, metric in evaluated_metrics(ks, reward).items()
    }
