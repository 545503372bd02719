"""The value of a list after the score of one item is replaced, for every item: what credit rules compare.

The quadrature methods compute all of them for about the cost of a few values, because a value is linear in the arrival
probability of every other item (`exact.quadrature.swapped_expected_weight`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from r2rank_jax.ranking import reward as rewards
from r2rank_jax.ranking.arguments import leading, real_scores
from r2rank_jax.ranking.draws.choices import log_sum
from r2rank_jax.ranking.exact import quadrature
from r2rank_jax.ranking.expectation import (
    MAX_ITEMS,
    Method,
    add_terms,
    check_method,
    merged_relevant,
    prepare_terms,
    sum_over_relevant,
    value,
)
from r2rank_jax.ranking.reward import Reward, Term


def swapped_expected_ndcg(
    scores: ArrayLike,
    labels: ArrayLike,
    alternatives: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    k: int | None = None,
    reward: Reward | None = None,
    method: Method = "auto",
) -> jax.Array:
    """Expected NDCG@k, or another reward, of a list in which one item's score is replaced, for every item.

    Credit rules use these values. The quadrature methods compute all N·A of them for about the cost of 2 + A values.
    The other methods evaluate N·A lists.

    Args:
      scores: [..., N] scores.
      labels: [..., N] graded relevance; leading axes broadcast with those of `scores`.
      alternatives: [..., A, N] alternative scores; leading axes broadcast with those of `scores`.
      mask: [..., N] True for a real item.
      k: cut-off of the NDCG; None takes all N places.
      reward: used instead of NDCG@k.
      method: see the table at the top of `expectation`.

    Returns:
      [..., A, N]: entry (a, i) is the value of the list with scores[i] replaced by alternatives[a, i]. At a
      masked item, the unchanged value.

    Raises:
      ValueError: as `expected_ndcg`.
    """
    reward = rewards.chosen(reward, k)
    scores, gains, real = prepare_terms(scores, labels, mask, reward)
    num_items = scores.shape[-1]
    check_method(method, num_items)
    alternatives = jnp.asarray(alternatives, jnp.float32)
    if alternatives.ndim < 2 or alternatives.shape[-1] != num_items:
        raise ValueError(
            f"alternatives must have shape [..., A, N={num_items}]; got {alternatives.shape}; give A scores per item"
        )
    lead = leading(scores=scores.shape, alternatives=(*alternatives.shape[:-2], num_items))
    scores, real = (jnp.broadcast_to(x, (*lead, num_items)) for x in (scores, real))
    alternatives = jnp.broadcast_to(alternatives, (*lead, *alternatives.shape[-2:]))
    alternatives, _ = real_scores(alternatives, real[..., None, :])
    return add_terms(
        reward,
        [
            _swapped(scores, jnp.broadcast_to(gain, scores.shape), real, alternatives, method, term)
            for term, gain in zip(reward.terms, gains)
        ],
    )


def _swapped(
    scores: jax.Array, gains: jax.Array, real: jax.Array, alternatives: jax.Array, method: Method, term: Term
) -> jax.Array:
    """`swapped_expected_ndcg` of one term for prepared arguments: [..., A, N]."""
    num_items = scores.shape[-1]
    num_places = term.num_places(num_items)
    if method in MAX_ITEMS:
        identity = jnp.eye(num_items, dtype=bool)
        variants = jnp.where(identity, alternatives[..., None, :], scores[..., None, None, :])  # [..., A, i, N]
        wide_gains, wide_real = (jnp.broadcast_to(x[..., None, None, :], variants.shape) for x in (gains, real))
        return value(variants, wide_gains, wide_real, num_places, method, term=term)
    weights = term.weights(num_places, scores.dtype)
    if term.counts == "first":
        return _swapped_first(scores, gains, real, alternatives, weights)

    def weight(focal: jax.Array) -> jax.Array:
        return quadrature.swapped_expected_weight(scores, real, focal, alternatives, weights)

    return sum_over_relevant(weight, gains, method)


def _swapped_first(
    scores: jax.Array, gains: jax.Array, real: jax.Array, alternatives: jax.Array, weights: np.ndarray
) -> jax.Array:
    """`_swapped` where only the first relevant item counts: the relevant items are merged into one.

    Another item is replaced in the merged list. A relevant item moves the score of the merged one: one value for each
    relevant item and alternative, with the relevant items one at a time.
    """
    merged_scores, merged_gains, merged_real = merged_relevant(scores, gains, real)
    items = jnp.arange(scores.shape[-1])
    place = jnp.argmax(merged_gains, axis=-1)[..., None]  # [..., 1]

    def of_others(focal: jax.Array) -> jax.Array:
        return quadrature.swapped_expected_weight(merged_scores, merged_real, focal, alternatives, weights)

    def of_relevant(focal: jax.Array) -> jax.Array:
        moved = items == focal[..., None]  # [..., N]
        peak, excess = log_sum(scores, (gains > 0) & real & ~moved)
        own = jnp.take_along_axis(alternatives, focal[..., None, None], axis=-1)  # [..., A, 1]
        score = jnp.logaddexp((peak + excess)[..., None, :], own)
        lists = jnp.where((items == place)[..., None, :], score, merged_scores[..., None, :])
        values = quadrature.expected_weight(
            lists,
            jnp.broadcast_to(merged_real[..., None, :], lists.shape),
            jnp.broadcast_to(place, lists.shape[:-1]),
            weights,
        )
        return jnp.where(moved[..., None, :], values[..., None], 0.0)

    others = sum_over_relevant(of_others, merged_gains, "quadrature_one_positive")
    return jnp.where((gains > 0)[..., None, :], sum_over_relevant(of_relevant, gains, "quadrature"), others)
