"""Surrogates of the expected NDCG: functions whose gradient is an unbiased estimate of ∇V(s).

To be maximised. Each surrogate's value is itself an unbiased estimate of V = E[NDCG@k] (the mean reward of
the sampled rankings, or V itself for "exact"), so it can be logged as it is; each one's gradient is the
estimator's gradient. The two are joined by value + (x − stop_gradient(x)), which has the value of `value` and
the gradient of x.

| estimator        | gradient, averaged over M sampled rankings                                            |
|------------------|---------------------------------------------------------------------------------------|
| "reinforce"      | (R − leave-one-out mean of R) ∇log PL(y|s)          (Williams 1992; Kool et al. 2019)  |
| "reward_to_go"   | Σ_r (G_r − leave-one-out mean of G_r) ∇log P(y_r | y_<r),  G_r = reward from place r on |
| "pl_rank"        | PL-Rank-3 (Oosterhuis 2022), gains centred                                            |
| "exact"          | ∇V by quadrature: no samples, no variance                                             |

Sources: R. J. Williams, "Simple Statistical Gradient-Following Algorithms" (1992); W. Kool, H. van Hoof, M.
Welling, "Buy 4 REINFORCE Samples, Get a Baseline for Free!" (2019); H. Oosterhuis, "Computationally Efficient
Optimization of Plackett-Luce Ranking Models for Relevance and Fairness" (2021) and "Learning-to-Rank at the
Speed of Sampling" (2022).

Not done on purpose: dividing the centred reward by its standard deviation. It biases the gradient.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from r2rank_jax.ranking.expectation import expected_ndcg, prepare
from r2rank_jax.ranking.metrics import discounts
from r2rank_jax.ranking.plackett_luce import (
    LOWEST,
    log_prob_per_place,
    remaining_mass,
    reverse_logcumsumexp,
    sample,
)

Estimator = Literal["reinforce", "reward_to_go", "pl_rank", "exact"]


def surrogate(
    key: jax.Array,
    scores: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    estimator: Estimator,
    num_samples: int,
    k: int | None = None,
) -> jax.Array:
    """An estimate of E[NDCG@k] whose gradient in `scores` is an unbiased estimate of ∇E[NDCG@k]. Maximise it.

    Args:
      key: a JAX PRNG key; not used by "exact".
      scores: [..., N] scores.
      labels: [..., N] graded relevance; leading axes broadcast with those of `scores`.
      mask: [..., N] True for a real item.
      estimator: see the table at the top of this module.
      num_samples: M, rankings sampled per list; at least 2 for the estimators with a leave-one-out baseline;
        not used by "exact".
      k: cut-off of the metric; None takes all N places. Only min(k, N) places are sampled.

    Returns:
      [...] one number per list. First derivatives only: the sampled estimators' second derivatives mean
      nothing.

    Raises:
      ValueError: if shapes disagree, the estimator is unknown, or it needs more samples.
    """
    if estimator == "exact":
        return expected_ndcg(scores, labels, mask, k=k)
    if estimator not in _SAMPLED:
        known = (*_SAMPLED, "exact")
        raise ValueError(f'estimator must be one of {known}; got {estimator!r}; "exact" has no variance')
    if estimator != "pl_rank" and num_samples < 2:
        raise ValueError(
            f'estimator "{estimator}" compares each ranking with the others, so num_samples must be at least '
            f'2; got {num_samples}; raise it or use "exact"'
        )
    scores, gains, real = prepare(scores, labels, mask, k)
    rankings = sample(key, scores, real, num_samples=num_samples, k=k)  # [..., M, K]
    return surrogate_of_rankings(scores, gains, real, rankings, estimator)


def surrogate_of_rankings(
    scores: jax.Array, gains: jax.Array, real: jax.Array, rankings: jax.Array, estimator: Estimator
) -> jax.Array:
    """The sampled surrogates for given rankings; `surrogate` draws them and calls this.

    Args:
      scores: [..., N] float32, finite (see `expectation.prepare`).
      gains: [..., N] normalised gains, 0 at masked items.
      real: [..., N] True for a real item.
      rankings: [..., M, K] independent rankings from PL(scores).
      estimator: "reinforce", "reward_to_go" or "pl_rank".

    Returns:
      [...] as `surrogate`.
    """
    shape = (*rankings.shape[:-1], scores.shape[-1])
    scores, gains, real = (jnp.broadcast_to(x[..., None, :], shape) for x in (scores, gains, real))
    rewards = jnp.take_along_axis(gains, rankings, axis=-1) * discounts(rankings.shape[-1])  # [..., M, K]
    value = jnp.mean(jnp.sum(rewards, axis=-1), axis=-1)
    carrier = _SAMPLED[estimator](scores, gains, real, rankings, rewards)
    return jax.lax.stop_gradient(value) + (carrier - jax.lax.stop_gradient(carrier))


def _reinforce(
    scores: jax.Array, gains: jax.Array, real: jax.Array, rankings: jax.Array, rewards: jax.Array
) -> jax.Array:
    """mean_m (R_m − mean of the others' R) log PL(y_m); all arguments [..., M, N or K]."""
    del gains
    log_probs = log_prob_per_place(scores, rankings, real).sum(axis=-1)
    advantage = _leave_one_out(jnp.sum(rewards, axis=-1), axis=-1)
    return jnp.mean(jax.lax.stop_gradient(advantage) * log_probs, axis=-1)


def _reward_to_go(
    scores: jax.Array, gains: jax.Array, real: jax.Array, rankings: jax.Array, rewards: jax.Array
) -> jax.Array:
    """As `_reinforce`, but a place's choice answers only for the reward from that place on."""
    del gains
    log_probs = log_prob_per_place(scores, rankings, real)  # [..., M, K]
    # The baseline of place r comes from the other rankings only, so it is independent of this ranking's
    # choices and leaves the estimate unbiased.
    advantage = _leave_one_out(_from_place_on(rewards), axis=-2)
    return jnp.mean(jnp.sum(jax.lax.stop_gradient(advantage) * log_probs, axis=-1), axis=-1)


def _pl_rank(
    scores: jax.Array, gains: jax.Array, real: jax.Array, rankings: jax.Array, rewards: jax.Array
) -> jax.Array:
    """PL-Rank-3: λ_i = G_{r_i+1} [i placed] + e^{s_i} (gain_i a_{r_i} − b_{r_i}), in log space.

    a_r = Σ_{q<=r} w_q / Z_q and b_r = Σ_{q<=r} G_q / Z_q, taken at place min(r_i, K). The products e^{s_i} /
    Z_q are at most 1 for q <= r_i, while e^{s_i} and Z_q alone overflow at wide gaps: hence logarithms until
    the product. The gains are centred: every ranking collects the same sum of discounts, so a constant taken
    off all gains leaves the expectation unchanged, and the mean gain takes most of the variance with it.
    """
    num_places = rankings.shape[-1]
    frozen = jax.lax.stop_gradient(scores)
    _, peak, excess, placed_real = remaining_mass(frozen, rankings, real)
    weights = jnp.where(placed_real, discounts(num_places), 0.0)  # [..., M, K]
    count = jnp.maximum(jnp.sum(real, axis=-1, keepdims=True, dtype=jnp.float32), 1.0)
    mean_gain = jnp.sum(gains, axis=-1, keepdims=True) / count
    rewards_on, weights_on = _from_place_on(rewards), _from_place_on(weights)  # G_r and Σ_{q>=r} w_q

    # Place of each item; K − 1 (the last) for unplaced ones, which every normaliser still contained.
    positions = jnp.broadcast_to(jnp.arange(num_places, dtype=jnp.int32), rankings.shape)
    last = jnp.full(scores.shape, num_places - 1, jnp.int32)
    place = jnp.put_along_axis(last, rankings, positions, axis=-1, inplace=False)
    unplaced = jnp.ones(scores.shape, bool)
    placed = ~jnp.put_along_axis(unplaced, rankings, jnp.zeros_like(placed_real), axis=-1, inplace=False)

    def mass_times(numerator: jax.Array) -> jax.Array:
        """e^{s_i} Σ_{q <= place of i} numerator_q / Z_q for every item: [..., M, N]."""
        present = placed_real & (numerator > 0)
        terms = jnp.where(present, -peak, LOWEST), jnp.log(jnp.where(present, numerator, 1.0)) - excess
        top, rest = reverse_logcumsumexp(*(jnp.flip(x, axis=-1) for x in terms))
        top, rest = (jnp.take_along_axis(jnp.flip(x, axis=-1), place, axis=-1) for x in (top, rest))
        return jnp.exp((frozen + top) + rest)

    after = jnp.take_along_axis(
        (rewards_on - rewards) - mean_gain * (weights_on - weights), place, axis=-1
    )  # centred G_{r_i + 1}
    lambdas = (
        jnp.where(placed, after, 0.0)
        + (gains - mean_gain) * mass_times(weights)
        - (mass_times(rewards_on) - mean_gain * mass_times(weights_on))
    )
    lambdas = jnp.where(real, lambdas, 0.0)
    return jnp.mean(jnp.sum(jax.lax.stop_gradient(lambdas) * scores, axis=-1), axis=-1)


def _from_place_on(values: jax.Array) -> jax.Array:
    """out[..., r] = Σ_{q >= r} values[..., q]."""
    return jnp.flip(jnp.cumsum(jnp.flip(values, axis=-1), axis=-1), axis=-1)


def _leave_one_out(values: jax.Array, axis: int) -> jax.Array:
    """Each value minus the mean of the others along `axis`."""
    count = values.shape[axis]
    return (values - jnp.mean(values, axis=axis, keepdims=True)) * (count / (count - 1))


_SAMPLED = {"reinforce": _reinforce, "reward_to_go": _reward_to_go, "pl_rank": _pl_rank}
