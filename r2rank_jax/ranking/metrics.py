"""Ranking metrics: DCG, NDCG, reciprocal rank, recall, hit rate, average precision.

Every metric takes a ranking [..., K] (item indices, best first) and labels [..., N] (graded relevance, at least 0; an
item is relevant when its label is above 0), computes in float32 and returns one number per list. A list
without a relevant item scores 0 in all of them: exclude such lists from a mean with `has_relevant`, or they
count as failures.

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

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from r2rank_jax.ranking.arguments import item_indices, leading, places, real_labels
from r2rank_jax.ranking.order import weighted_descending

Gain = Literal["exp2", "linear"]


def discounts(num_places: int, dtype: DTypeLike = np.float32) -> np.ndarray:
    """The weight 1 / log2(1 + r) of each place r = 1..K: [K], a compile-time constant."""
    return np.asarray([1.0 / math.log2(1 + r) for r in range(1, num_places + 1)], dtype)


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
    labels = real_labels(labels, mask)
    # NDCG does not change when all gains of a list are divided by 2^(largest label), and 2^130
    # overflows float32.
    largest = jnp.max(labels, axis=-1, keepdims=True)
    if gain == "exp2":
        gains = jnp.where(labels > 0, jnp.exp2(labels - largest) - jnp.exp2(-largest), 0.0)
        # The difference cancels for labels far below 1.
        small = jnp.exp2(labels - largest) * -jnp.expm1(-labels * math.log(2.0))
        gains = jnp.where(labels < 1, small, gains)
    else:
        _check_gain(gain)
        gains = labels / jnp.where(largest > 0, largest, 1.0)
    weights = discounts(places(k, labels.shape[-1]))
    ideal = weighted_descending(gains, weights)[..., None]
    return gains / jnp.where(ideal > 0, ideal, 1.0)


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
    _check_gain(gain)
    placed = _placed(ranking, real_labels(labels, mask), k)
    gains = placed
    if gain == "exp2":  # the difference cancels for labels far below 1
        gains = jnp.where(placed < 1, jnp.expm1(placed * math.log(2.0)), jnp.exp2(placed) - 1.0)
    return jnp.sum(gains * discounts(placed.shape[-1]), axis=-1)


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
    cutoff = np.shape(ranking)[-1] if k is None else k
    placed = _placed(ranking, normalized_gains(labels, mask, k=cutoff, gain=gain), cutoff)
    return jnp.sum(placed * discounts(placed.shape[-1]), axis=-1)


def reciprocal_rank(
    ranking: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None, *, k: int | None = None
) -> jax.Array:
    """1 / place of the first relevant item among the first k: [...]; 0 where there is none. Form as `dcg`."""
    relevant = _placed(ranking, real_labels(labels, mask), k) > 0
    return jnp.max(jnp.where(relevant, 1.0 / jnp.arange(1, relevant.shape[-1] + 1, dtype=jnp.float32), 0.0), axis=-1)


def recall(ranking: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None, *, k: int | None = None) -> jax.Array:
    """Share of the relevant items that stand in the first k places: [...]; 0 without any. Form as `dcg`."""
    labels = real_labels(labels, mask)
    found = jnp.sum(_placed(ranking, labels, k) > 0, axis=-1, dtype=jnp.float32)
    return found / jnp.maximum(jnp.sum(labels > 0, axis=-1, dtype=jnp.float32), 1.0)


def hit_rate(
    ranking: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None, *, k: int | None = None
) -> jax.Array:
    """1 if any relevant item is among the first k places, else 0: float32 [...]. Form as `dcg`."""
    return jnp.any(_placed(ranking, real_labels(labels, mask), k) > 0, axis=-1).astype(jnp.float32)


def average_precision(
    ranking: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None, *, k: int | None = None
) -> jax.Array:
    """Σ over the relevant items in the first k places of the precision there, over all relevant items: [...].

    0 without any. Form as `dcg`. Divided by the number of relevant items of the whole list, not by min(k, that number)
    (rax, trec_eval and ranx divide so, too).
    """
    labels = real_labels(labels, mask)
    relevant = (_placed(ranking, labels, k) > 0).astype(jnp.float32)
    precision = jnp.cumsum(relevant, axis=-1) / jnp.arange(1, relevant.shape[-1] + 1, dtype=jnp.float32)
    return jnp.sum(precision * relevant, axis=-1) / jnp.maximum(jnp.sum(labels > 0, axis=-1, dtype=jnp.float32), 1.0)


def _placed(ranking: ArrayLike, values: jax.Array, k: int | None) -> jax.Array:
    """values [..., N] in ranking order, cut to the first min(k, N) places."""
    num_items = values.shape[-1]
    ranking = item_indices(ranking, num_items)
    cutoff = ranking.shape[-1] if k is None else places(k, num_items)
    if ranking.shape[-1] < cutoff:
        raise ValueError(
            f"a metric at k={k} over N={num_items} items needs a ranking of at least {cutoff} places; got "
            f"{ranking.shape[-1]}; rank more places or lower k"
        )
    lead = leading(ranking=ranking.shape, labels=values.shape)
    return jnp.take_along_axis(
        jnp.broadcast_to(values, (*lead, num_items)),
        jnp.broadcast_to(ranking[..., :cutoff], (*lead, cutoff)),
        axis=-1,
    )


def _check_gain(gain: str) -> None:
    if gain not in ("exp2", "linear"):
        raise ValueError(f'gain must be "exp2" or "linear"; got {gain!r}; "exp2" is what rax and this package use')
