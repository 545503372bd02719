"""Ranking metrics: DCG, NDCG, reciprocal rank, recall, hit rate, average precision.

Every metric takes a ranking [..., K] (item indices, best first) and labels [..., N] (graded relevance, at least 0; an
item is relevant when its label is above 0), computes in float32 and returns one number per list. A list
without a relevant item scores 0 in all of them: exclude such lists from a mean with `has_relevant`, or they
count as failures. All but average precision are rewards of a given ranking (`reward`): what is trained and what is
evaluated is one piece of mathematics.

Metrics take rankings, not scores, because the step between them is where evaluations go wrong: equal scores need an
order. `plackett_luce.mode(scores, mask, key=key)` breaks ties at random. The ranking costs the one sort by score; only
NDCG sorts again, by gain, for its ideal.

A metric over a sampled candidate list (1 positive, 19 negatives) is not an estimate of the metric over the whole
catalogue, and can order two systems differently: W. Krichene, S. Rendle, "On Sampled Metrics for Item Recommendation"
(2020). Compare only numbers from the same lists.

NDCG: K. Järvelin, J. Kekäläinen, "Cumulated gain-based evaluation of IR techniques" (2002); the exponential
gain 2^label − 1: C. Burges et al., "Learning to Rank using Gradient Descent" (2005).

>>> import jax.numpy as jnp
>>> ranking, labels = jnp.array([1, 3, 2, 0]), jnp.array([0, 0, 1, 1])
>>> for metric in (ndcg, reciprocal_rank, average_precision):
...     print(f"{metric(ranking, labels):.6f}")
0.693426
0.500000
0.583333
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from r2rank_jax.ranking import reward as rewards
from r2rank_jax.ranking.arguments import real_labels
from r2rank_jax.ranking.reward import Gain, placed, ranking_reward


def has_relevant(labels: ArrayLike, mask: ArrayLike | None = None) -> jax.Array:
    """Whether a list [..., N] holds a real item with a label above 0: bool [...]."""
    return jnp.any(real_labels(labels, mask) > 0, axis=-1)


def normalized_gains(
    labels: ArrayLike, mask: ArrayLike | None = None, *, k: int | None = None, gain: Gain = "exp2"
) -> jax.Array:
    """Gains divided by the ideal DCG@k, so that NDCG@k = Σ_r discount_r · gain of the item at place r.

    Args:
      labels: [..., N] graded relevance.
      mask: [..., N] True for a real item.
      k: cut-off; None takes all N places.
      gain: "exp2" for 2^label − 1, "linear" for the label itself.

    Returns:
      [..., N] non-negative normalised gains; all 0 for a list without a relevant item.
    """
    return rewards.ndcg(k, gain).terms[0].gains(labels, mask)


def dcg(
    ranking: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    k: int | None = None,
    gain: Gain = "exp2",
) -> jax.Array:
    """Discounted cumulative gain, Σ_{r<=k} gain(y_r) / log2(1 + r).

    Args:
      ranking: [..., K] item indices, best first. Leading axes broadcast with those of `labels`, so rankings
        [..., M, K] of one list need labels [..., 1, N].
      labels: [..., N] graded relevance.
      mask: [..., N] True for a real item; a masked item takes its place and gains nothing.
      k: cut-off; None takes all K places of the ranking, and a k above N is N.
      gain: "exp2" for 2^label − 1 (overflows float32 from label 128; `ndcg` does not), "linear" for the
        label.

    Returns:
      [...] DCG; 0 where no item is relevant.

    Raises:
      ValueError: if the ranking holds anything but item indices or has fewer than min(k, N) places, labels of real
        items are negative (both if not traced, see `arguments`), shapes do not broadcast, or `gain` is unknown.
    """
    return ranking_reward(ranking, labels, mask, reward=rewards.dcg(_cutoff(ranking, k), gain))


def ndcg(
    ranking: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    k: int | None = None,
    gain: Gain = "exp2",
) -> jax.Array:
    """DCG@k divided by the DCG@k of the best possible ranking.

    Args:
      ranking: [..., K] item indices, best first; leading axes broadcast as in `dcg`.
      labels: [..., N] graded relevance.
      mask: [..., N] True for a real item; a masked item takes its place and gains nothing.
      k: cut-off of both DCGs; None takes all K places of the ranking.
      gain: "exp2" (rax, TensorFlow Ranking) or "linear" (scikit-learn, trec_eval).

    Returns:
      [...] in [0, 1]; 0 where no item is relevant.

    Raises:
      ValueError: as `dcg`.
    """
    return ranking_reward(ranking, labels, mask, reward=rewards.ndcg(_cutoff(ranking, k), gain))


def reciprocal_rank(
    ranking: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None, *, k: int | None = None
) -> jax.Array:
    """1 / place of the first relevant item among the first k: [...]; 0 where there is none. Form as `dcg`."""
    return ranking_reward(ranking, labels, mask, reward=rewards.reciprocal_rank(_cutoff(ranking, k)))


def recall(ranking: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None, *, k: int | None = None) -> jax.Array:
    """Share of the relevant items that stand in the first k places: [...]; 0 without any. Form as `dcg`."""
    return ranking_reward(ranking, labels, mask, reward=rewards.recall(_cutoff(ranking, k)))


def hit_rate(
    ranking: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None, *, k: int | None = None
) -> jax.Array:
    """1 if any relevant item is among the first k places, else 0: float32 [...]. Form as `dcg`."""
    return ranking_reward(ranking, labels, mask, reward=rewards.hit_rate(_cutoff(ranking, k)))


def average_precision(
    ranking: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None, *, k: int | None = None
) -> jax.Array:
    """Σ over the relevant items in the first k places of the precision there, over all relevant items: [...].

    0 without any. Form as `dcg`. Divided by the number of relevant items of the whole list, not by min(k, that number)
    (rax, trec_eval and ranx divide so, too).
    """
    labels = real_labels(labels, mask)
    relevant = (placed(ranking, labels, k) > 0).astype(jnp.float32)
    precision = jnp.cumsum(relevant, axis=-1) / jnp.arange(1, relevant.shape[-1] + 1, dtype=jnp.float32)
    return jnp.sum(precision * relevant, axis=-1) / jnp.maximum(jnp.sum(labels > 0, axis=-1, dtype=jnp.float32), 1.0)


@dataclass(frozen=True)
class Evaluated:
    """A metric that evaluation measures, and how reports write it."""

    metric: Callable[..., jax.Array]
    """Of the form of `reciprocal_rank`."""
    label: str
    at_cutoffs: bool
    """Whether it is measured at every cut-off, as name@k, or once on the whole list."""


EVALUATED: Mapping[str, Evaluated] = {
    "ndcg": Evaluated(ndcg, "NDCG", at_cutoffs=True),
    "hr": Evaluated(hit_rate, "Hit rate", at_cutoffs=True),
    "mrr": Evaluated(reciprocal_rank, "MRR", at_cutoffs=False),
}
"""What every evaluation measures, by its name in `results.json`. A line here adds a metric to results and reports."""


def _cutoff(ranking: ArrayLike, k: int | None) -> int:
    """k, or for None all places that the ranking has."""
    return np.shape(ranking)[-1] if k is None else k
