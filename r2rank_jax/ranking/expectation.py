"""The value of a list: V(s) = E[R(y)] over rankings y ~ PL(s), exact and differentiable, for any `reward`.

A reward is linear in the items' gains, so V = Σ_i gain_i · E[weight of i's place]. Relevance may be graded, and any
number of items may be relevant. Where only the first relevant item counts (reciprocal rank, hit rate), the relevant
items are merged into one with the score logsumexp(their scores), see `reward`. Four methods compute the same number:

| method                    | cost per list  | use                                             |
|---------------------------|----------------|-------------------------------------------------|
| "enumerate"               | N! · N         | N <= 8; the definition itself, for tests        |
| "subset_dp"               | 2^N · N        | N <= 14; an independent check of the quadrature |
| "quadrature"              | nodes · N · K  | any N, graded labels; per relevant item         |
| "quadrature_one_positive" | nodes · N · K  | any N, at most one relevant item per list       |

"auto" is "quadrature_one_positive" if no list of the batch has two relevant items, and "quadrature" otherwise.
Outside of `jit` the choice is made in Python; under `jit` it is made at run time by `lax.cond`, so that a jitted
training step runs only the branch it needs. Under `vmap` over labels the `cond` becomes a `select` that runs both
branches; use leading axes instead, which every function here accepts, or name the method.

With "quadrature_one_positive" a list that has two relevant items gets NaN, so that the mistake is visible under `jit`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from r2rank_jax.ranking import reward as rewards
from r2rank_jax.ranking.arguments import leading, real_scores, same_items
from r2rank_jax.ranking.draws.choices import choices, log_sum
from r2rank_jax.ranking.exact import quadrature, subsets
from r2rank_jax.ranking.reward import Reward, Term

Method = Literal["auto", "enumerate", "subset_dp", "quadrature", "quadrature_one_positive"]

MAX_ITEMS = {"enumerate": 8, "subset_dp": subsets.MAX_ITEMS}


def expected_ndcg(
    scores: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    k: int | None = None,
    method: Method = "auto",
) -> jax.Array:
    """Expected NDCG@k of a ranking drawn from PL(scores), with exponential gains.

    Differentiable in `scores`, with finite gradients at any gap. The error is about 1e-6, mostly float32 rounding; that
    of the quadrature is at most 1e-7.

    Args:
      scores: [..., N] scores.
      labels: [..., N] graded relevance; leading axes broadcast with those of `scores`.
      mask: [..., N] True for a real item.
      k: cut-off of the metric; None takes all N places.
      method: see the table at the top of this module.

    Returns:
      [...] values in [0, 1]; 0, with zero gradient, where no item is relevant.

    Raises:
      ValueError: if shapes disagree, the method is unknown, or N is too large for it.
    """
    return expected_reward(scores, labels, mask, reward=rewards.ndcg(k), method=method)


def expected_reward(
    scores: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    reward: Reward,
    method: Method = "auto",
) -> jax.Array:
    """Expected reward of a ranking drawn from PL(scores).

    `expected_ndcg` is this function with `reward.ndcg(k)`; both have the same accuracy and are differentiable. If gains
    are not normalized (DCG), the error is relative to their size.

    Args:
      scores: [..., N] scores.
      labels: [..., N] graded relevance; leading axes broadcast with those of `scores`.
      mask: [..., N] True for a real item.
      reward: see `reward`; its terms have their own cut-offs.
      method: see the table at the top of this module.

    Returns:
      [...] values, in the unit of the reward; 0, with zero gradient, where no item is relevant.

    Raises:
      ValueError: as `expected_ndcg`.
    """
    scores, gains, real = prepare_terms(scores, labels, mask, reward)
    num_items = scores.shape[-1]
    check_method(method, num_items)
    return add_terms(
        reward,
        [
            value(scores, gain, real, term.num_places(num_items), method, term=term)
            for term, gain in zip(reward.terms, gains)
        ],
    )


def value(
    scores: jax.Array,
    gains: jax.Array,
    real: jax.Array,
    num_places: int,
    method: Method,
    *,
    term: Term = rewards.ndcg().terms[0],  # noqa: B008 - a frozen value
) -> jax.Array:
    """The expectation of one term, without its scale, for prepared arguments of one shape [..., N], in their dtype."""
    weights = term.weights(num_places, scores.dtype)
    if method == "enumerate":
        return _enumerate(scores, gains, real, term, weights)
    if method == "subset_dp":

        def payment(size: int, free: jax.Array) -> jax.Array:
            wide = gains[..., None, :]
            if term.counts == "every":
                return weights[size] * wide
            return jnp.where(jnp.any((wide > 0) & ~free, axis=-1, keepdims=True), 0.0, weights[size] * wide)

        return subsets.expected_total(scores, real, num_places, payment)
    if term.counts == "first":
        scores, gains, real = merged_relevant(scores, gains, real)
        method = "quadrature_one_positive"

    def weight(focal: jax.Array) -> jax.Array:
        return quadrature.expected_weight(scores, real, focal, weights)

    return sum_over_relevant(weight, gains, method)


def prepare(
    scores: ArrayLike, labels: ArrayLike, mask: ArrayLike | None, k: int | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Finite scores, normalized gains of NDCG@k, and mask of a batch of lists, all broadcast to one shape [..., N]."""
    scores, gains, real = prepare_terms(scores, labels, mask, rewards.ndcg(k))
    return scores, gains[0], real


def prepare_terms(
    scores: ArrayLike, labels: ArrayLike, mask: ArrayLike | None, reward: Reward
) -> tuple[jax.Array, list[jax.Array], jax.Array]:
    """Finite scores, normalized gains of each term, and mask of a batch of lists, all of one shape [..., N]."""
    scores, real = real_scores(scores, mask)
    same_items("labels", np.shape(labels), "scores", scores.shape)
    leading(scores=scores.shape, labels=np.shape(labels))
    gains = [term.gains(labels, real) for term in reward.terms]
    return jnp.broadcast_to(scores, gains[0].shape), gains, jnp.broadcast_to(real, gains[0].shape)


def add_terms(reward: Reward, values: Sequence[jax.Array]) -> jax.Array:
    """Σ over the terms of scale · value."""
    scaled = [x if term.scale == 1 else term.scale * x for term, x in zip(reward.terms, values, strict=True)]
    return functools.reduce(jnp.add, scaled)


def check_method(method: str, num_items: int) -> None:
    """Raises ValueError unless `method` exists and allows `num_items` items."""
    methods = ("auto", "enumerate", "subset_dp", "quadrature", "quadrature_one_positive")
    if method not in methods:
        raise ValueError(f'method must be one of {methods}; got {method!r}; "auto" works for every list')
    if num_items > MAX_ITEMS.get(method, num_items):
        raise ValueError(
            f'method "{method}" allows at most {MAX_ITEMS[method]} items; got N={num_items}; use method="quadrature"'
        )


def sum_over_relevant(weight: Callable[[jax.Array], jax.Array], gains: jax.Array, method: Method) -> jax.Array:
    """Σ_f gain_f · weight(f) over the relevant items f.

    Args:
      weight: maps focal item indices int [...] to expected weights [..., *rest].
      gains: [..., N] normalized gains.
      method: one of the quadrature methods or "auto".

    Returns:
      [..., *rest].
    """
    num_items = gains.shape[-1]
    lead = gains.shape[:-1]

    def weighted(focal: jax.Array) -> jax.Array:
        values = weight(focal)
        gain = jnp.take_along_axis(gains, focal[..., None], axis=-1)[..., 0]
        return jnp.expand_dims(gain, tuple(range(gain.ndim, values.ndim))) * values

    def one(_: None) -> jax.Array:
        return weighted(jnp.argmax(gains, axis=-1))

    def every(_: None) -> jax.Array:
        # One focal item at a time, the relevant ones of each list first, until no list has any left. The backward pass
        # recomputes each, so that memory is that of a single item.
        order = jnp.argsort(-gains, axis=-1)

        @jax.checkpoint
        def add(total: jax.Array, turn: jax.Array) -> tuple[jax.Array, None]:
            focal = jnp.take(order, turn, axis=-1)
            return jax.lax.cond(turn < most, lambda: total + weighted(focal), lambda: total), None

        shape = jax.eval_shape(weighted, order[..., 0]).shape
        # Computed from the batch, because inside `jax.shard_map` a scan cannot start from a constant.
        zeros = jnp.expand_dims(0.0 * gains[..., 0], tuple(range(len(lead), len(shape))))
        return jax.lax.scan(add, jnp.broadcast_to(zeros, shape), jnp.arange(num_items, dtype=jnp.int32))[0]

    relevant = jnp.sum(gains > 0, axis=-1, dtype=jnp.int32)
    most = jnp.max(relevant, initial=0)
    if method == "quadrature":
        return every(None)
    if method == "quadrature_one_positive":
        values = one(None)
        several = jnp.expand_dims(relevant > 1, tuple(range(relevant.ndim, values.ndim)))
        return jnp.where(several, jnp.nan, values)
    at_most_one = jnp.all(relevant <= 1)
    if isinstance(at_most_one, jax.core.Tracer):
        return jax.lax.cond(at_most_one, one, every, None)
    return one(None) if bool(at_most_one) else every(None)


def merged_relevant(scores: jax.Array, gains: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Lists [..., N] whose relevant items are merged into the first of them, with the score logsumexp(their scores)."""
    relevant = (gains > 0) & real
    peak, excess = log_sum(scores, relevant)
    is_first = relevant & (jnp.cumsum(relevant, axis=-1) == 1)
    # Where no item is relevant the peak is `LOWEST`, and is not used.
    return jnp.where(is_first, peak + excess, scores), jnp.where(is_first, gains, 0.0), real & (is_first | ~relevant)


def _enumerate(scores: jax.Array, gains: jax.Array, real: jax.Array, term: Term, weights: np.ndarray) -> jax.Array:
    """Σ over all N! rankings of probability times reward."""
    num_items = scores.shape[-1]
    rankings = np.asarray(list(itertools.permutations(range(num_items))), np.int32)  # [N!, N]
    # Of the rankings that differ only in the places of masked items, keep the one that has them last, in index order.
    order = jnp.where(real[..., rankings], rankings, rankings + num_items)  # [..., N!, N]
    masked = order >= num_items
    canonical = jnp.all(~masked[..., :-1] | (order[..., 1:] > order[..., :-1]), axis=-1)
    shape = (*scores.shape[:-1], *rankings.shape)
    wide_scores, wide_real = (jnp.broadcast_to(x[..., None, :], shape) for x in (scores, real))
    log_probs = choices(wide_scores, jnp.broadcast_to(rankings, shape), wide_real).log_prob().sum(axis=-1)
    payments = term.payments(gains[..., rankings[:, : len(weights)]], weights)
    return jnp.sum(jnp.where(canonical, jnp.exp(log_probs) * jnp.sum(payments, axis=-1), 0.0), axis=-1)
