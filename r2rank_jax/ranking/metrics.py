"""Ranking metrics: DCG, NDCG, reciprocal rank, recall, hit rate, average precision.

Every metric takes a ranking [..., K] (item indices, best first) and labels [..., N] (graded relevance, at least 0; an
item is relevant when its label is above 0), computes in float32 and returns one number per list. Every metric of a list
without a relevant item is 0; exclude such lists from a mean with `has_relevant`, or they count as failures. All metrics
except average precision call `reward.ranking_reward`, so training and evaluation use the same code.

A ranking holds every item at most once. A repeated item is refused, or under `jit`, where values cannot be seen, counts
at its first place only, so that no metric exceeds its bound.

Metrics take rankings, not scores, because equal scores need an order. Breaking ties by position in the list can favor
or penalize a constant scorer; `plackett_luce.mode(scores, mask, key=key)` breaks ties at random. Making the ranking
takes one sort by score; only NDCG sorts again, by gain, for the best possible ranking.

A metric over a sampled candidate list (1 positive, 19 negatives) is not an estimate of the metric over the whole
catalog, and can order two systems differently: W. Krichene, S. Rendle, "On Sampled Metrics for Item Recommendation"
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
      [..., N] non-negative normalized gains; all 0 for a list without a relevant item.
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
      mask: [..., N] True for a real item; a masked item holds its place and has gain 0.
      k: cut-off; None takes all K places of the ranking, and a k above N is N.
      gain: "exp2" for 2^label − 1 (overflows float32 from label 128; `ndcg` does not), "linear" for the
        label.

    Returns:
      [...] DCG; 0 where no item is relevant.

    Raises:
      ValueError: if the ranking holds anything but item indices, an item twice, or fewer than min(k, N) places, labels
        of real items are negative (values only if not traced, see `arguments`), shapes do not broadcast, or `gain` is
        unknown.
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
      mask: [..., N] True for a real item; a masked item holds its place and has gain 0.
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
    """1 / place of the first relevant item among the first k, [...]; 0 if there is none. Arguments as in `dcg`."""
    return ranking_reward(ranking, labels, mask, reward=rewards.reciprocal_rank(_cutoff(ranking, k)))


def recall(ranking: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None, *, k: int | None = None) -> jax.Array:
    """Share of the relevant items that are in the first k places, [...]; 0 without any. Arguments as in `dcg`."""
    return ranking_reward(ranking, labels, mask, reward=rewards.recall(_cutoff(ranking, k)))


def hit_rate(
    ranking: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None, *, k: int | None = None
) -> jax.Array:
    """1 if any relevant item is in the first k places, else 0: float32 [...]. Arguments as in `dcg`."""
    return ranking_reward(ranking, labels, mask, reward=rewards.hit_rate(_cutoff(ranking, k)))


def average_precision(
    ranking: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None, *, k: int | None = None
) -> jax.Array:
    """The sum of the precisions at the relevant items in the first k places, over the number of relevant items: [...].

    0 without a relevant item. The divisor is the number of relevant items of the whole list, not min(k, that number),
    as in rax, trec_eval and ranx. Arguments as in `dcg`.
    """
    labels = real_labels(labels, mask)
    relevant = (placed(ranking, labels, k) > 0).astype(jnp.float32)
    precision = jnp.cumsum(relevant, axis=-1) / jnp.arange(1, relevant.shape[-1] + 1, dtype=jnp.float32)
    return jnp.sum(precision * relevant, axis=-1) / jnp.maximum(jnp.sum(labels > 0, axis=-1, dtype=jnp.float32), 1.0)


@dataclass(frozen=True)
class Evaluated:
    """A metric that evaluation measures, and its name in reports."""

    metric: Callable[..., jax.Array]
    """A function with the arguments of `reciprocal_rank`."""
    label: str
    at_cutoffs: bool
    """True: measured at every cut-off, as name@k. False: measured once, on the whole list."""


EVALUATED: Mapping[str, Evaluated] = {
    "ndcg": Evaluated(ndcg, "NDCG", at_cutoffs=True),
    "hr": Evaluated(hit_rate, "Hit rate", at_cutoffs=True),
    "mrr": Evaluated(reciprocal_rank, "MRR", at_cutoffs=False),
}
"""The metrics of every evaluation, by name in `results.json`. A new line here adds a metric to results and reports."""


def _cutoff(ranking: ArrayLike, k: int | None) -> int:
    """k; for None, the number of places of the ranking."""
    return np.shape(ranking)[-1] if k is None else k
