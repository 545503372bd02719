"""The value of a list: V(s) = E[NDCG@k(y)] over rankings y ~ PL(s), exactly and differentiably.

NDCG is linear in the items' gains, so V = Σ_i gain_i · E[discount of i's place]: relevance may be graded and
any number of items relevant. Four methods, one number:

| method                    | cost per list  | for                                             |
|---------------------------|----------------|-------------------------------------------------|
| "enumerate"               | N! · N         | N <= 8; the definition itself, for tests        |
| "subset_dp"               | 2^N · N        | N <= 14; an independent check of the quadrature |
| "quadrature"              | nodes · N · K  | any N, graded labels; per relevant item         |
| "quadrature_one_positive" | nodes · N · K  | any N, at most one relevant item per list       |

"auto" is quadrature, and takes the one-positive route when no list of the batch has two relevant items.
Outside of `jit` the labels decide at once; under it they decide at run time through `lax.cond`, so a jitted
training step runs only the cheap branch. Under `vmap` over labels a `cond` becomes a `select` that runs both
branches: prefer the leading axes, which every function here takes, or name the method.

With "quadrature_one_positive" a list that has two relevant items gets NaN: wrong use must not pass unseen
under jit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from r2rank_jax.ranking import quadrature, subsets
from r2rank_jax.ranking.arguments import leading, places, real_scores, same_items
from r2rank_jax.ranking.choices import choices
from r2rank_jax.ranking.metrics import discounts, normalized_gains

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

    Differentiable in `scores` with finite gradients at any gap. Accuracy: about 1e-6 (float32 rounding; the
    quadrature itself errs by at most 1e-7).

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
    scores, gains, real = prepare(scores, labels, mask, k)
    check_method(method, scores.shape[-1])
    return value(scores, gains, real, places(k, scores.shape[-1]), method)


def value(scores: jax.Array, gains: jax.Array, real: jax.Array, num_places: int, method: Method) -> jax.Array:
    """`expected_ndcg` for prepared arguments of one shape [..., N] (see `prepare`), in their dtype."""
    if method == "enumerate":
        return _enumerate(scores, gains, real, num_places)
    if method == "subset_dp":
        weights = discounts(num_places, scores.dtype)
        return subsets.expected_total(scores, real, num_places, lambda size, free: weights[size] * gains[..., None, :])

    def discount(focal: jax.Array) -> jax.Array:
        return quadrature.expected_discount(scores, real, focal, num_places)

    return sum_over_relevant(discount, gains, method)


def swapped_expected_ndcg(
    scores: ArrayLike,
    labels: ArrayLike,
    alternatives: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    k: int | None = None,
    method: Method = "auto",
) -> jax.Array:
    """Expected NDCG@k after one item's score, each in turn, is replaced: what-if values for credit.

    The quadrature methods price all N·A replacements for about the cost of 2 + A values; the others evaluate
    the N·A lists one by one.

    Args:
      scores: [..., N] scores.
      labels: [..., N] graded relevance; leading axes broadcast with those of `scores`.
      alternatives: [..., A, N] alternative scores; leading axes broadcast with those of `scores`.
      mask: [..., N] True for a real item.
      k: cut-off of the metric; None takes all N places.
      method: see the table at the top of this module.

    Returns:
      [..., A, N]: entry (a, i) is the value of the list with scores[i] replaced by alternatives[a, i]. At a
      masked item, the unchanged value.

    Raises:
      ValueError: as `expected_ndcg`.
    """
    scores, gains, real = prepare(scores, labels, mask, k)
    num_items = scores.shape[-1]
    check_method(method, num_items)
    alternatives = jnp.asarray(alternatives, jnp.float32)
    if alternatives.ndim < 2 or alternatives.shape[-1] != num_items:
        raise ValueError(
            f"alternatives must have shape [..., A, N={num_items}]; got {alternatives.shape}; give A scores per item"
        )
    lead = leading(scores=scores.shape, alternatives=(*alternatives.shape[:-2], num_items))
    scores, gains, real = (jnp.broadcast_to(x, (*lead, num_items)) for x in (scores, gains, real))
    labels = jnp.asarray(labels)
    alternatives = jnp.broadcast_to(alternatives, (*lead, *alternatives.shape[-2:]))
    alternatives, _ = real_scores(alternatives, real[..., None, :])
    if method in MAX_ITEMS:
        identity = jnp.eye(num_items, dtype=bool)
        variants = jnp.where(identity, alternatives[..., None, :], scores[..., None, None, :])  # [..., A, i, N]
        labels = jnp.expand_dims(labels, (-3, -2))
        return expected_ndcg(variants, labels, real[..., None, None, :], k=k, method=method)

    def discount(focal: jax.Array) -> jax.Array:
        return quadrature.swapped_expected_discount(scores, real, focal, alternatives, places(k, num_items))

    return sum_over_relevant(discount, gains, method)


def prepare(
    scores: ArrayLike, labels: ArrayLike, mask: ArrayLike | None, k: int | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Finite scores, normalised gains and mask of a batch of lists, all broadcast to one shape [..., N]."""
    scores, real = real_scores(scores, mask)
    same_items("labels", np.shape(labels), "scores", scores.shape)
    leading(scores=scores.shape, labels=np.shape(labels))
    gains = normalized_gains(labels, real, k=k)
    return jnp.broadcast_to(scores, gains.shape), gains, jnp.broadcast_to(real, gains.shape)


def check_method(method: str, num_items: int) -> None:
    """Raises ValueError unless `method` is known and can treat `num_items` items."""
    known = ("auto", "enumerate", "subset_dp", "quadrature", "quadrature_one_positive")
    if method not in known:
        raise ValueError(f'method must be one of {known}; got {method!r}; "auto" fits every list')
    if num_items > MAX_ITEMS.get(method, num_items):
        raise ValueError(
            f'method "{method}" treats at most {MAX_ITEMS[method]} items; got N={num_items}; use method="quadrature"'
        )


def sum_over_relevant(discount: Callable[[jax.Array], jax.Array], gains: jax.Array, method: Method) -> jax.Array:
    """Σ_f gain_f · discount(f), visiting only the relevant item where there is at most one.

    Args:
      discount: maps focal item indices int [...] to expected discounts [..., *rest].
      gains: [..., N] normalised gains.
      method: one of the quadrature methods or "auto".

    Returns:
      [..., *rest].
    """
    num_items = gains.shape[-1]
    lead = gains.shape[:-1]

    def weighted(focal: jax.Array) -> jax.Array:
        values = discount(focal)
        gain = jnp.take_along_axis(gains, focal[..., None], axis=-1)[..., 0]
        return jnp.expand_dims(gain, tuple(range(gain.ndim, values.ndim))) * values

    def one(_: None) -> jax.Array:
        return weighted(jnp.argmax(gains, axis=-1))

    def every(_: None) -> jax.Array:
        # One focal item at a time, the relevant ones of each list first, until no list has any left; recomputed on
        # the way back, so that memory stays that of a single item.
        order = jnp.argsort(-gains, axis=-1)

        @jax.checkpoint
        def add(total: jax.Array, turn: jax.Array) -> tuple[jax.Array, None]:
            focal = jnp.take(order, turn, axis=-1)
            return jax.lax.cond(turn < most, lambda: total + weighted(focal), lambda: total), None

        shape = jax.eval_shape(weighted, order[..., 0]).shape
        # Made from the batch: inside `jax.shard_map` a constant is of another type, and a scan may not start from it.
        nothing = jnp.expand_dims(0.0 * gains[..., 0], tuple(range(len(lead), len(shape))))
        return jax.lax.scan(add, jnp.broadcast_to(nothing, shape), jnp.arange(num_items, dtype=jnp.int32))[0]

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


def _enumerate(scores: jax.Array, gains: jax.Array, real: jax.Array, num_places: int) -> jax.Array:
    """Σ over all N! rankings of probability times reward."""
    num_items = scores.shape[-1]
    rankings = np.asarray(list(itertools.permutations(range(num_items))), np.int32)  # [N!, N]
    # Of the rankings that differ only in where masked items stand, keep the one with them last, in index
    # order.
    order = jnp.where(real[..., rankings], rankings, rankings + num_items)  # [..., N!, N]
    masked = order >= num_items
    canonical = jnp.all(~masked[..., :-1] | (order[..., 1:] > order[..., :-1]), axis=-1)
    shape = (*scores.shape[:-1], *rankings.shape)
    wide_scores, wide_real = (jnp.broadcast_to(x[..., None, :], shape) for x in (scores, real))
    log_probs = choices(wide_scores, jnp.broadcast_to(rankings, shape), wide_real).log_prob().sum(axis=-1)
    rewards = gains[..., rankings[:, :num_places]] @ discounts(num_places, gains.dtype)
    return jnp.sum(jnp.where(canonical, jnp.exp(log_probs) * rewards, 0.0), axis=-1)
