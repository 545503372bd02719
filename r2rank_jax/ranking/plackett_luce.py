"""The Plackett-Luce distribution over rankings: density, exact sampling, mode.

A ranking is built from the top: each place is filled by an item drawn from a softmax over the scores of the
items not placed yet,

    log PL(y | s) = Σ_r ( s_{y_r} − logsumexp of s over the items not placed before r ).

Sources: R. L. Plackett, "The Analysis of Permutations" (1975); R. D. Luce, "Individual Choice Behavior"
(1959); sampling with Gumbel noise: W. Kool, H. van Hoof, M. Welling, "Stochastic Beams and Where to Find
Them" (2019).

Everything here computes in float32. `mask` is True for a real item; a masked item's score may be anything,
NaN included, and changes neither a value nor a gradient. Masked items fill the last places, in index order.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

# A finite stand-in for −inf. With true infinities (−inf) − (−inf) appears in logaddexp and in its gradient.
# Scores are clipped far inside it, so that no real item ever looks like a masked one.
LOWEST = -3.0e38
SCORE_LIMIT = 1.0e30


def real_scores(scores: ArrayLike, mask: ArrayLike | None) -> tuple[jax.Array, jax.Array]:
    """Makes scores safe to compute with.

    Args:
      scores: [..., N] real numbers of any float or integer type; ±inf is read as ±1e30.
      mask: [..., N] True for a real item; broadcasts against `scores`. None: every item is real.

    Returns:
      Scores [..., N] in float32 with 0 at masked items, and the mask [..., N].

    Raises:
      ValueError: if `scores` has no item axis or `mask` has another number of items.
    """
    scores = jnp.asarray(scores, jnp.float32)
    if scores.ndim == 0 or scores.shape[-1] == 0:
        raise ValueError(
            f"scores must have shape [..., N] with N >= 1 items; got {scores.shape}; put the items "
            "of a list on the last axis"
        )
    real = broadcast_mask(mask, scores.shape, "scores")
    # Replace before clipping: the gradient of `where` towards a masked NaN is an exact zero.
    return jnp.clip(jnp.where(real, scores, 0.0), -SCORE_LIMIT, SCORE_LIMIT), real


def broadcast_mask(mask: ArrayLike | None, shape: tuple[int, ...], name: str) -> jax.Array:
    """Broadcasts mask [..., N] (None: all real) against an array of shape [..., N] called `name`."""
    if mask is None:
        return jnp.ones(shape, bool)
    mask = jnp.asarray(mask, bool)
    if mask.ndim == 0 or mask.shape[-1] != shape[-1]:
        raise ValueError(
            f"mask must have as many items as {name}: {shape[-1]} on the last axis; got shape {mask.shape}; "
            "pass one boolean per item, or None when every item is real"
        )
    return jnp.broadcast_to(mask, jnp.broadcast_shapes(mask.shape, shape))


def places(k: int | None, num_items: int) -> int:
    """The number of places K that a cut-off `k` leaves in a list of `num_items`: min(k, N), or N for None."""
    if k is None:
        return num_items
    if isinstance(k, bool) or k != int(k) or k < 1:
        raise ValueError(f"k must be a positive integer; got k={k!r}; use k=None for the whole list")
    return min(int(k), num_items)


def reverse_logcumsumexp(values: jax.Array, excess: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Reverse cumulative log-sum-exp along the last axis, as a pair (peak, excess) whose sum it is.

    Args:
      values: [..., K] finite numbers (use `LOWEST` for −inf).
      excess: [..., K] finite numbers; entry r of the sum is exp(values + excess).

    Returns:
      peak [..., K], the largest of values[..., r:], a constant to autodiff, and excess [..., K], the log of
      the sum relative to it. Apart, they keep log 2 visible beside a score of 1e30: subtract the peak first.
    """
    peak = jax.lax.stop_gradient(values)
    excess = excess + (values - peak)  # zero in value, but it carries the gradient

    def combine(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        peak = jnp.maximum(a[0], b[0])
        return peak, jnp.logaddexp(a[1] + (a[0] - peak), b[1] + (b[0] - peak))

    # An associative scan neither underflows at wide gaps (as a cumulative sum of exponentials shifted by one
    # maximum does) nor has NaN gradients on rows without a real item (as `lax.cumlogsumexp` does).
    return jax.lax.associative_scan(combine, (peak, excess), reverse=True, axis=values.ndim - 1)


def remaining_mass(
    scores: jax.Array, ranking: jax.Array, real: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The softmax normaliser met at every place of a ranking.

    Args:
      scores: [..., N] float32, finite.
      ranking: [..., K] item indices, best first; same leading axes.
      real: [..., N] True for a real item.

    Returns:
      The placed items' scores [..., K] (`LOWEST` where masked); log Z [..., K] = logsumexp over the real
      items not placed before r, as the pair (peak, excess) of `reverse_logcumsumexp`; whether the placed item
      is real [..., K].
    """
    num_items, num_places = scores.shape[-1], ranking.shape[-1]
    placed_real = jnp.take_along_axis(real, ranking, axis=-1)
    placed = jnp.where(placed_real, jnp.take_along_axis(scores, ranking, axis=-1), LOWEST)
    values, excess = placed, jnp.zeros_like(placed)
    if num_places < num_items:
        # The unplaced items enter every normaliser: sum them once, then accumulate upwards from the last
        # place. Only additions: subtracting placed items from a total would cancel at wide gaps.
        unplaced = jnp.put_along_axis(real, ranking, jnp.zeros_like(placed_real), axis=-1, inplace=False)
        tail = jnp.where(unplaced, scores, LOWEST)
        tail_peak = jax.lax.stop_gradient(jnp.max(tail, axis=-1, keepdims=True))
        tail_excess = jax.nn.logsumexp(tail - tail_peak, axis=-1, keepdims=True)
        values = jnp.concatenate([placed, tail_peak], axis=-1)
        excess = jnp.concatenate([excess, tail_excess], axis=-1)
    peak, excess = reverse_logcumsumexp(values, excess)
    return placed, peak[..., :num_places], excess[..., :num_places], placed_real


def log_prob_per_place(scores: ArrayLike, ranking: ArrayLike, mask: ArrayLike | None = None) -> jax.Array:
    """Log-probability of each place's choice given the places above it.

    Args:
      scores: [..., N] scores.
      ranking: [..., K] distinct item indices, best first, K <= N. Leading axes broadcast with those of
        `scores`.
      mask: [..., N] True for a real item.

    Returns:
      [..., K] log-probabilities; 0 at a place held by a masked item. Their sum over places is `log_prob`.

    Raises:
      ValueError: if the ranking is not of integers or has more places than there are items.
    """
    scores, real = real_scores(scores, mask)
    ranking = jnp.asarray(ranking)
    num_items = scores.shape[-1]
    if not jnp.issubdtype(ranking.dtype, jnp.integer) or ranking.ndim == 0:
        raise ValueError(
            f"ranking must hold item indices in shape [..., K]; got {ranking.dtype} of shape "
            f"{ranking.shape}; pass integers such as those of `sample` or `mode`"
        )
    if ranking.shape[-1] > num_items:
        raise ValueError(
            f"ranking must have at most N={num_items} places; got {ranking.shape[-1]}; cut it to the first N places"
        )
    lead = jnp.broadcast_shapes(real.shape[:-1], ranking.shape[:-1])
    placed, peak, excess, placed_real = remaining_mass(
        jnp.broadcast_to(scores, (*lead, num_items)),
        jnp.broadcast_to(ranking, (*lead, ranking.shape[-1])),
        jnp.broadcast_to(real, (*lead, num_items)),
    )
    return jnp.where(placed_real, (placed - peak) - excess, 0.0)


def log_prob(scores: ArrayLike, ranking: ArrayLike, mask: ArrayLike | None = None) -> jax.Array:
    """Log-probability of a ranking, or of its first K places when K < N (the top-K marginal).

    Exact at any score gap: every term is a score minus a log-sum-exp that contains it. Distinctness of the
    indices is not checked (it cannot be under jit).

    Args:
      scores: [..., N] scores.
      ranking: [..., K] distinct item indices, best first, K <= N. Leading axes broadcast with those of
        `scores`.
      mask: [..., N] True for a real item. Places held by masked items are skipped.

    Returns:
      [...] log-probabilities.

    Raises:
      ValueError: if the ranking is not of integers or has more places than there are items.
    """
    return log_prob_per_place(scores, ranking, mask).sum(axis=-1)


def sample(
    key: jax.Array,
    scores: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    num_samples: int,
    k: int | None = None,
) -> jax.Array:
    """Draws rankings: the K largest of scores plus independent Gumbel noise (Kool et al. 2019).

    Args:
      key: a JAX PRNG key.
      scores: [..., N] scores.
      mask: [..., N] True for a real item; masked items come last, in index order.
      num_samples: M, the number of independent rankings per list.
      k: number of places K = min(k, N) to draw; None draws full rankings.

    Returns:
      int32 [..., M, K] item indices, best first. Not differentiable: use `estimators.surrogate`. Items some
      1e6 or more below the best score lose their noise to float32 rounding and keep the input order among
      themselves.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1; got {num_samples}; ask for one ranking or more")
    scores, real = real_scores(jax.lax.stop_gradient(scores), mask)
    num_places = places(k, scores.shape[-1])
    # Centre on the best item, so that a common offset of the scores costs none of the noise's float32
    # resolution.
    scores = scores - jnp.max(jnp.where(real, scores, LOWEST), axis=-1, keepdims=True, initial=LOWEST)
    # The noise is float32 whatever came in: bfloat16 noise has so few distinct values that ties decide
    # rankings.
    noise = jax.random.gumbel(key, (*scores.shape[:-1], num_samples, scores.shape[-1]), jnp.float32)
    noisy = jnp.where(real[..., None, :], scores[..., None, :] + noise, -jnp.inf)
    return jax.lax.top_k(noisy, num_places)[1].astype(jnp.int32)


def mode(scores: ArrayLike, mask: ArrayLike | None = None, *, k: int | None = None) -> jax.Array:
    """The most probable ranking: items by descending score.

    Args:
      scores: [..., N] scores.
      mask: [..., N] True for a real item; masked items come last, in index order.
      k: number of places K = min(k, N); None ranks all items.

    Returns:
      int32 [..., K] item indices, best first. Equal scores keep the input order: a metric of the mode over
      tied scores depends on it, `expectation.expected_ndcg` does not.
    """
    scores, real = real_scores(jax.lax.stop_gradient(scores), mask)
    best = jnp.where(real, scores, -jnp.inf)
    return jax.lax.top_k(best, places(k, scores.shape[-1]))[1].astype(jnp.int32)
