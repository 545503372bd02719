"""A ranking as a sequence of choices: at each place a softmax over the items that are left.

Everything that depends on a given ranking (its density, the gradient estimators, divergences) needs the softmax
normaliser of every place. Here they are computed for all places at once, from the last one upwards, in
O(N + K log K) operations: the unplaced items enter every normaliser, so they are summed once, and the placed ones are
added one by one. Nothing is ever subtracted: taking placed items off a total cancels at wide score gaps.

Internals of the package: arguments are checked by the callers and have equal leading axes; the arithmetic follows
the scores' dtype, which the public functions fix at float32 and the tests' reference runs at float64.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from r2rank_jax.ranking.arguments import LOWEST


class Choices(NamedTuple):
    """What was chosen at every place r of a ranking, and from what.

    log Z_r, the logsumexp of the scores of the real items not placed before r, is kept as peak + excess: apart, they
    keep log 2 visible beside a score of 1e30. Subtract the peak first.
    """

    placed: jax.Array  # [..., K] score of the item at place r; `LOWEST` where it is masked
    peak: jax.Array  # [..., K] largest score among the items left, a constant to autodiff
    excess: jax.Array  # [..., K] log Z_r − peak
    real: jax.Array  # bool [..., K] whether the item at place r is real
    unplaced: jax.Array  # bool [..., N] real items that hold no place

    def log_prob(self) -> jax.Array:
        """Log-probability of each choice given those above it: [..., K], 0 at places held by masked items."""
        return jnp.where(self.real, (self.placed - self.peak) - self.excess, 0.0)


def choices(scores: jax.Array, ranking: jax.Array, real: jax.Array) -> Choices:
    """The choices that make up a ranking.

    Args:
      scores: [..., N] finite.
      ranking: [..., K] distinct item indices, best first.
      real: [..., N] True for a real item.
    """
    placed, placed_real, unplaced = _placed(scores, ranking, real)
    values, excess = placed, jnp.zeros_like(placed)
    if ranking.shape[-1] < scores.shape[-1]:
        tail_peak, tail_excess = log_sum(scores, unplaced)
        values = jnp.concatenate([placed, tail_peak], axis=-1)
        excess = jnp.concatenate([excess, tail_excess], axis=-1)
    peak, excess = reverse_logcumsumexp(values, excess)
    num_places = ranking.shape[-1]
    return Choices(placed, peak[..., :num_places], excess[..., :num_places], placed_real, unplaced)


def divergence(p: jax.Array, q: jax.Array, ranking: jax.Array, real: jax.Array) -> jax.Array:
    """KL divergence of the choice at every place between two models, along a ranking.

    By the chain rule, dividing the items left into two groups a and b with masses P_a + P_b = 1 and Q_a + Q_b = 1,

        KL = P_a (KL_a + log P_a − log Q_a) + P_b (KL_b + log P_b − log Q_b),

    which lets one reverse scan carry it for all places.

    Args:
      p: [..., N] finite scores of the model whose rankings they are.
      q: [..., N] finite scores of the other.
      ranking: [..., K] distinct item indices, best first.
      real: [..., N] True for a real item.

    Returns:
      [..., K] non-negative divergences of the softmax over p's scores of the items left from that over q's; 0 at places
      held by masked items.
    """
    placed_p, placed_real, unplaced = _placed(p, ranking, real)
    placed_q, _, _ = _placed(q, ranking, real)
    zeros = jnp.zeros_like(placed_p)
    leaves = [placed_p, zeros, placed_q, zeros, zeros]
    if ranking.shape[-1] < p.shape[-1]:
        (peak_p, excess_p), (peak_q, excess_q) = log_sum(p, unplaced), log_sum(q, unplaced)
        # Replaced before exp: where no item is left the peaks are `LOWEST`.
        log_p = jnp.where(unplaced, (p - peak_p) - excess_p, 0.0)
        log_q = jnp.where(unplaced, (q - peak_q) - excess_q, 0.0)
        gap = jnp.exp(log_p) * (log_p - log_q)
        tail = [peak_p, excess_p, peak_q, excess_q, jnp.sum(gap, axis=-1, keepdims=True)]
        leaves = [jnp.concatenate(pair, axis=-1) for pair in zip(leaves, tail)]
    for peak in (0, 2):  # as in `reverse_logcumsumexp`: zero in value, but it carries the gradient
        constant = jax.lax.stop_gradient(leaves[peak])
        leaves[peak + 1] = leaves[peak + 1] + (leaves[peak] - constant)
        leaves[peak] = constant

    def combine(a: list[jax.Array], b: list[jax.Array]) -> list[jax.Array]:
        peak_p, excess_p, share_a, share_b = _join(a[0], a[1], b[0], b[1])
        peak_q, excess_q, other_a, other_b = _join(a[2], a[3], b[2], b[3])
        joined = jnp.exp(share_a) * (a[4] + share_a - other_a) + jnp.exp(share_b) * (b[4] + share_b - other_b)
        return [peak_p, excess_p, peak_q, excess_q, joined]

    total = jax.lax.associative_scan(combine, leaves, reverse=True, axis=placed_p.ndim - 1)[4]
    # Rounding can leave −1e-8 where the two models agree: lifted to 0, without touching the gradient there.
    total = total - jax.lax.stop_gradient(jnp.minimum(total, 0.0))
    return jnp.where(placed_real, total[..., : ranking.shape[-1]], 0.0)


def reverse_logcumsumexp(values: jax.Array, excess: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Reverse cumulative log-sum-exp along the last axis, as a pair (peak, excess) whose sum it is.

    Args:
      values: [..., K] finite numbers (use `LOWEST` for −inf).
      excess: [..., K] finite numbers; entry r of the sum is exp(values + excess).

    Returns:
      peak [..., K], the largest of values[..., r:], a constant to autodiff, and excess [..., K], the log of
      the sum relative to it.
    """
    peak = jax.lax.stop_gradient(values)
    excess = excess + (values - peak)  # zero in value, but it carries the gradient

    def combine(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return _join(*a, *b)[:2]

    # An associative scan neither underflows at wide gaps (as a cumulative sum of exponentials shifted by one
    # maximum does) nor has NaN gradients on rows without a real item (as `lax.cumlogsumexp` does).
    return jax.lax.associative_scan(combine, (peak, excess), reverse=True, axis=values.ndim - 1)


def log_sum(scores: jax.Array, present: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-sum-exp over the items present, as (peak, excess), both [..., 1]; the peak is a constant to autodiff."""
    masked = jnp.where(present, scores, LOWEST)
    peak = jax.lax.stop_gradient(jnp.max(masked, axis=-1, keepdims=True))
    return peak, jnp.log(jnp.sum(jnp.exp(masked - peak), axis=-1, keepdims=True))


def _join(
    peak_a: jax.Array, excess_a: jax.Array, peak_b: jax.Array, excess_b: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The pair (peak, excess) of e^a + e^b, and the log share of each part in the sum."""
    peak = jnp.maximum(peak_a, peak_b)
    a, b = excess_a + (peak_a - peak), excess_b + (peak_b - peak)
    excess = jnp.logaddexp(a, b)
    return peak, excess, a - excess, b - excess


def _placed(scores: jax.Array, ranking: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scores of the placed items (`LOWEST` where masked), whether they are real, and which real items have no place."""
    placed_real = jnp.take_along_axis(real, ranking, axis=-1)
    placed = jnp.where(placed_real, jnp.take_along_axis(scores, ranking, axis=-1), LOWEST)
    unplaced = jnp.put_along_axis(real, ranking, jnp.zeros_like(placed_real), axis=-1, inplace=False)
    return placed, placed_real, unplaced
