"""Expected weight of an item's place in a Plackett-Luce ranking, by one-dimensional quadrature for any number of items.

A Plackett-Luce ranking is the finishing order of an exponential race (Luce 1959): item j arrives after an exponentially
distributed time with rate exp(s_j). Given that the focal item f arrives at log-time τ − s_f, every other item has
arrived before it independently, with probability

    p_j(τ) = 1 − exp(−exp(s_j − s_f + τ)),        −τ Gumbel-distributed,

so the number C of items placed above f is Poisson-binomial, and

    E[weight of f's place] = ∫ dτ e^{τ − e^τ} E[w_{1+C} | τ].

Gauss-Legendre nodes for u = exp(−e^τ) on [0, 1] are less accurate: with a_j = exp(s_j − s_f), u^{a_j} has a singularity
at u = 0 or drops steeply at u = 1 as soon as scores differ by a few units, and 64 nodes then err by 7e-5. In log-time
the integrand is analytic within |Im τ| < π/2 for every gap and vanishes at both ends, so the trapezoid rule converges
geometrically. Place r is decided within a range of log-times about 1/√r wide, so the number of nodes grows with √K. It
is 56 for K <= 10, and the error is at most 1e-7 (`tests/ranking/test_expectation.py`: score spreads from 0 to 10⁴,
uniform lists up to N = 1000 and K = 100). Float32 rounding comes on top.

The value is smooth in the scores, so autodiff gives exact gradients of the computed value.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike


def nodes(num_places: int, dtype: DTypeLike) -> tuple[np.ndarray, np.ndarray]:
    """Log-times [Q] and their weights [Q], which sum to 1, for counts up to `num_places`.

    Mass left out: 1 − e^{−e^{−16}} = 1.1e-7 on the left, e^{−e^3} = 2e-9 on the right.
    """
    log_times = np.linspace(-16.0, 3.0, max(56, math.ceil(17.5 * math.sqrt(num_places))))
    density = np.exp(log_times - np.exp(log_times))
    return log_times.astype(dtype), (density / density.sum()).astype(dtype)


# exp(−exp(20)) is 0 in float32. Beyond 20, exp(gap) could overflow, and 0 · inf would make the gradient NaN.
_MAX_LOG_TIME = 20.0


def arrived_before(gaps: jax.Array, present: jax.Array, log_times: np.ndarray) -> jax.Array:
    """Probability that each item arrives before the focal item, at every node.

    Args:
      gaps: [..., N] score of the item minus score of the focal item, finite.
      present: [..., N] False for masked items and for the focal item itself.
      log_times: [Q] the nodes.

    Returns:
      [..., Q, N] probabilities, 0 where not present.
    """
    since = jnp.minimum(gaps[..., None, :] + log_times[:, None], _MAX_LOG_TIME)
    return jnp.where(present[..., None, :], -jnp.expm1(-jnp.exp(since)), 0.0)


def place_distribution(before: jax.Array, num_places: int) -> jax.Array:
    """P(C = 0), ..., P(C = K − 1) for C successes of independent trials: the distribution of the place 1 + C.

    Args:
      before: [..., N] success probabilities.
      num_places: K.

    Returns:
      [K, ...] probabilities. Multilinear in `before`.
    """
    # One item at a time; counts of K and more are dropped. The counts are on the first axis, so that a shift moves
    # whole blocks.
    start = _none_yet(before[..., 0], num_places)

    def add_item(count: jax.Array, probability: jax.Array) -> tuple[jax.Array, None]:
        return _one_more_trial(count, probability), None

    return jax.lax.scan(add_item, start, jnp.moveaxis(before, -1, 0))[0]


def expected_weight(scores: jax.Array, real: jax.Array, focal: jax.Array, weights: np.ndarray) -> jax.Array:
    """E[weight of one item's place]; cost O(nodes · N · K) per list.

    Args:
      scores: [..., N] finite.
      real: [..., N] True for a real item.
      focal: int [...] index of the focal item.
      weights: [K] of the first K places; later places have weight 0.

    Returns:
      [...] values between 0 and the largest weight.
    """
    gaps, present = _around(scores, real, focal)
    log_times, density = nodes(len(weights), scores.dtype)
    return _expected_weight(arrived_before(gaps, present, log_times), weights, density)


def place_marginals(scores: jax.Array, real: jax.Array, num_places: int) -> jax.Array:
    """P(item i holds place r) for every item and the first K places; cost O(nodes · N² · K) per list.

    Args:
      scores: [..., N] finite.
      real: [..., N] True for a real item.
      num_places: K.

    Returns:
      [..., N, K] probabilities, 0 for masked items.
    """
    log_times, weights = nodes(num_places, scores.dtype)
    start = _none_yet(jnp.broadcast_to(scores[..., None], (*scores.shape, len(log_times))), num_places)

    def add_item(count: jax.Array, item: jax.Array) -> tuple[jax.Array, None]:
        """One more rival for every focal item at once."""
        gaps = jnp.take(scores, item, axis=-1)[..., None] - scores  # [..., N] over focal items
        rival = jnp.take(real, item, axis=-1)[..., None] & (jnp.arange(scores.shape[-1]) != item)
        before = jnp.moveaxis(arrived_before(gaps, rival, log_times), -2, -1)  # [..., N, Q]
        return _one_more_trial(count, before), None

    count, _ = jax.lax.scan(add_item, start, jnp.arange(scores.shape[-1]))
    return jnp.where(real[..., None], jnp.einsum("k...q,q->...k", count, weights), 0.0)


def swapped_expected_weight(
    scores: jax.Array, real: jax.Array, focal: jax.Array, alternatives: jax.Array, weights: np.ndarray
) -> jax.Array:
    """E[weight of the focal item's place] after the score of one item, each in turn, is replaced by an alternative.

    The value is linear in the arrival probability of each other item, so one derivative gives the exact change for the
    replacement of any of them: O(nodes · N · K) for all items and A alternatives together. Replacing the focal item's
    own score changes every gap and costs one more evaluation per alternative.

    Args:
      scores: [..., N] float32, finite.
      real: [..., N] True for a real item.
      focal: int [...] index of the focal item.
      alternatives: [..., A, N] alternative scores, finite.
      weights: [K] of the places.

    Returns:
      [..., A, N]: entry (a, i) is the value with scores[i] replaced by alternatives[a, i] and all else
      unchanged.
    """
    gaps, present = _around(scores, real, focal)
    log_times, density = nodes(len(weights), scores.dtype)
    before = arrived_before(gaps, present, log_times)

    def total(before: jax.Array) -> tuple[jax.Array, jax.Array]:
        value = _expected_weight(before, weights, density)
        return jnp.sum(value), value

    slope, value = jax.grad(total, has_aux=True)(before)  # [..., Q, N], node weights included; [...]
    focal_score = jnp.take_along_axis(scores, focal[..., None], axis=-1)[..., None, :]
    before_alternative = arrived_before(
        alternatives - focal_score, jnp.broadcast_to(present[..., None, :], alternatives.shape), log_times
    )
    change = jnp.sum(slope[..., None, :, :] * (before_alternative - before[..., None, :, :]), axis=-2)

    is_focal = jnp.arange(scores.shape[-1]) == focal[..., None]
    moved = jnp.where(is_focal[..., None, :], alternatives, scores[..., None, :])
    moved_value = expected_weight(
        moved,
        jnp.broadcast_to(real[..., None, :], moved.shape),
        jnp.broadcast_to(focal[..., None], moved.shape[:-1]),
        weights,
    )
    return jnp.where(is_focal[..., None, :], moved_value[..., None], value[..., None, None] + change)


def _around(scores: jax.Array, real: jax.Array, focal: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gaps to the focal item [..., N], and which items race against it [..., N]."""
    gaps = scores - jnp.take_along_axis(scores, focal[..., None], axis=-1)
    return gaps, real & (jnp.arange(scores.shape[-1]) != focal[..., None])


def _expected_weight(before: jax.Array, weights: np.ndarray, density: np.ndarray) -> jax.Array:
    """E[w_{1+C}] over nodes of weights `density` [Q], for arrival probabilities `before` [..., Q, N]: [...]."""
    count = place_distribution(before, len(weights))
    return jnp.einsum("k...,k->...", count, weights) @ density


def _none_yet(like: jax.Array, num_places: int) -> jax.Array:
    """The distribution [K, ...] of a count of no trials, for a batch of the shape of `like` [...], which is finite.

    It is computed from `like`, because inside `jax.shard_map` a scan cannot start from a constant, which has another
    type there.
    """
    return jnp.broadcast_to(0.0 * like, (num_places, *like.shape)).at[0].add(1.0)


def _one_more_trial(count: jax.Array, probability: jax.Array) -> jax.Array:
    """The distribution [K, ...] of a count after one more trial of success `probability` [...]."""
    shifted = jnp.concatenate([jnp.zeros_like(count[:1]), count[:-1]])
    return count + probability * (shifted - count)
