"""Surrogates of the expected reward: functions whose gradient is an unbiased estimate of ∇V(s).

To be maximised. Each surrogate's value is itself an unbiased estimate of V = E[R(y)], R being NDCG@k or any `reward`
(the mean reward of the sampled rankings, or V itself for "exact"), so it can be logged as it is; each one's gradient is
the estimator's gradient. All are linear in the reward, so that those of several terms add up over the same rankings.

| estimator        | gradient, averaged over M sampled rankings                                            |
|------------------|---------------------------------------------------------------------------------------|
| "reinforce"      | (R − leave-one-out mean of R) ∇log PL(y|s)          (Williams 1992; Kool et al. 2019)  |
| "reward_to_go"   | Σ_r (G_r − leave-one-out mean of G_r) ∇log P(y_r | y_<r),  G_r = reward from place r on |
| "pl_rank"        | PL-Rank-3 (Oosterhuis 2022), gains centred                                            |
| "exact"          | ∇V by quadrature: no samples, no variance                                             |

docs/ranking.md compares their variances. All sampled ones cost O(M(N + K log K)). Let Z_r be the softmax normaliser of
place r, S_r(i) = e^{s_i} / Z_r the chance of item i there, and r_i the place of item i, or K for an unplaced one, which
was left at every place. The gradient of Σ_r A_r log P(y_r | y_<r) towards s_i is

    A_{r_i} [i placed] − Σ_{q <= r_i} A_q S_q(i) = A_{r_i} [i placed] − S_{r_i}(i) Ã_{r_i},

where each Ã_r = Σ_{q <= r} A_q Z_r / Z_q follows from the one before it, Ã_r = (Z_r / Z_{r−1}) Ã_{r−1} + A_r, with a
ratio of at most 1. So nothing overflows at any score gap, advantages may have either sign, and no derivative is taken
through the sums.

Sources: R. J. Williams, "Simple Statistical Gradient-Following Algorithms" (1992); W. Kool, H. van Hoof, M.
Welling, "Buy 4 REINFORCE Samples, Get a Baseline for Free!" (2019); H. Oosterhuis, "Computationally Efficient
Optimization of Plackett-Luce Ranking Models for Relevance and Fairness" (2021) and "Learning-to-Rank at the
Speed of Sampling" (2022).

Not done on purpose: dividing the centred reward by its standard deviation. It biases the gradient.

>>> import jax, jax.numpy as jnp
>>> scores, labels = jnp.array([0.0, 1.0, 2.0]), jnp.array([2, 1, 0])
>>> jax.grad(surrogate, argnums=1)(jax.random.key(0), scores, labels, estimator="exact").round(4)
Array([ 0.0402,  0.0007, -0.0409], dtype=float32)
>>> objective = lambda s: surrogate(jax.random.key(0), s, labels, estimator="reward_to_go", num_samples=4000)
>>> jax.grad(objective)(scores).round(2)
Array([ 0.04,  0.  , -0.04], dtype=float32)
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from r2rank_jax.ranking import reward as rewards
from r2rank_jax.ranking.draws.choices import Choices, choices
from r2rank_jax.ranking.draws.sampling import draw
from r2rank_jax.ranking.expectation import add_terms, expected_reward, prepare_terms
from r2rank_jax.ranking.reward import Reward, Term

Estimator = Literal["reinforce", "reward_to_go", "pl_rank", "exact"]


def surrogate(
    key: jax.Array,
    scores: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    estimator: Estimator,
    num_samples: int = 16,
    k: int | None = None,
    reward: Reward | None = None,
    centred_gains: bool = True,
) -> jax.Array:
    """An estimate of E[R] whose gradient in `scores` is an unbiased estimate of ∇E[R], R being NDCG@k. Maximise it.

    Args:
      key: a JAX PRNG key; not used by "exact".
      scores: [..., N] scores.
      labels: [..., N] graded relevance; leading axes broadcast with those of `scores`.
      mask: [..., N] True for a real item.
      estimator: see the table at the top of this module.
      num_samples: M, rankings sampled per list; at least 2 for the estimators with a leave-one-out baseline;
        not used by "exact".
      k: cut-off of the NDCG; None takes all N places. Only min(k, N) places are sampled.
      reward: instead of NDCG@k; its terms carry their own cut-offs.
      centred_gains: subtract the list's mean gain from all gains. Every ranking collects the same sum of weights, so
        this leaves the expectation alone. In "pl_rank" it cuts the variance; the leave-one-out baselines of the other
        two absorb it, so that for them it changes nothing. Terms that pay the first relevant item only do not collect
        the same sum, and keep their gains.

    Returns:
      [...] one number per list. First derivatives only: the sampled estimators' second derivatives mean
      nothing.

    Raises:
      ValueError: if shapes disagree, the estimator is unknown, or it needs more samples.
    """
    reward = rewards.chosen(reward, k)
    if estimator == "exact":
        return expected_reward(scores, labels, mask, reward=reward)
    check_sampled(estimator, num_samples)
    scores, gains, real = prepare_terms(scores, labels, mask, reward)
    fixed = jax.lax.stop_gradient(scores)
    rankings = draw(key, fixed, real, num_samples, reward.num_places(scores.shape[-1]))  # [..., M, K]
    estimates = [
        value_and_gradient(fixed, gain, real, rankings, estimator, centred_gains=centred_gains, term=term)
        for term, gain in zip(reward.terms, gains)
    ]
    value, gradient = (add_terms(reward, parts) for parts in zip(*estimates))
    # The value of `value` with the slope `gradient`.
    carrier = jnp.sum(gradient * (scores - fixed), axis=-1)
    return value + carrier


def check_sampled(estimator: str, num_samples: int) -> None:
    """Raises ValueError unless `estimator` is one that samples and can work with so many rankings."""
    if estimator not in _SAMPLED:
        known = (*_SAMPLED, "exact")
        raise ValueError(f'estimator must be one of {known}; got {estimator!r}; "exact" has no variance')
    if estimator != "pl_rank" and num_samples < 2:
        raise ValueError(
            f'estimator "{estimator}" compares each ranking with the others, so num_samples must be at least '
            f'2; got {num_samples}; raise it or use "exact"'
        )
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1; got {num_samples}; ask for one ranking or more")


def value_and_gradient(
    scores: jax.Array,
    gains: jax.Array,
    real: jax.Array,
    rankings: jax.Array,
    estimator: Estimator,
    *,
    centred_gains: bool = True,
    term: Term = rewards.ndcg().terms[0],  # noqa: B008 - a frozen value
) -> tuple[jax.Array, jax.Array]:
    """What the sampled estimators make of given rankings; `surrogate` draws them and calls this.

    Args:
      scores: [..., N] finite (see `expectation.prepare`); the arithmetic follows its dtype.
      gains: [..., N] normalised gains, 0 at masked items.
      real: [..., N] True for a real item.
      rankings: [..., M, K] independent rankings from PL(scores).
      estimator: "reinforce", "reward_to_go" or "pl_rank".
      centred_gains: as in `surrogate`.
      term: of the reward, before its scale; it may weigh fewer places than K.

    Returns:
      The mean reward [...], and the estimate of ∇V [..., N], 0 at masked items.
    """
    num_places = min(term.num_places(scores.shape[-1]), rankings.shape[-1])
    weights = np.pad(term.weights(num_places, scores.dtype), (0, rankings.shape[-1] - num_places))
    shape = (*rankings.shape[:-1], scores.shape[-1])
    wide_scores, wide_gains, wide_real = (jnp.broadcast_to(x[..., None, :], shape) for x in (scores, gains, real))
    placed_gains = jnp.take_along_axis(wide_gains, rankings, axis=-1)
    value = jnp.mean(jnp.sum(term.payments(placed_gains, weights), axis=-1), axis=-1)
    payable = term.payable(placed_gains)
    if centred_gains and term.counts == "every":
        count = jnp.maximum(jnp.sum(real, axis=-1, keepdims=True), 1).astype(gains.dtype)
        gains = jnp.where(real, gains - jnp.sum(gains, axis=-1, keepdims=True) / count, 0.0)
        placed_gains = jnp.take_along_axis(jnp.broadcast_to(gains[..., None, :], shape), rankings, axis=-1)
    chosen = choices(wide_scores, rankings, wide_real)
    # What a gain of 1 earns at each place. A masked item collects nothing: its place is beyond the list.
    price = jnp.where(chosen.real & payable, weights, 0.0)
    shares = _SAMPLED[estimator](placed_gains * price, price, chosen)
    return value, _gradient(scores, gains, real, rankings, chosen, shares)


class _Shares(NamedTuple):
    """The parts of own_r [i placed] + Σ_{q <= r} S_q(i) (gain_i per_gain_q − toll_q), r = r_i: each [..., M, K]."""

    own: jax.Array  # for being placed here
    toll: jax.Array  # for having been left at this place
    per_gain: jax.Array | None  # for the reward that this place could have brought; None = 0


def _reinforce(rewards: jax.Array, price: jax.Array, chosen: Choices) -> _Shares:
    """The whole list's reward, compared with the other rankings', on every choice."""
    del price
    advantage = jnp.where(chosen.real, _leave_one_out(jnp.sum(rewards, axis=-1, keepdims=True)), 0.0)
    return _Shares(own=advantage, toll=advantage, per_gain=None)


def _reward_to_go(rewards: jax.Array, price: jax.Array, chosen: Choices) -> _Shares:
    """As `_reinforce`, but a place's choice answers only for the reward from that place on."""
    del price
    # The baseline of place r comes from the other rankings only, so it is independent of this ranking's
    # choices and leaves the estimate unbiased.
    advantage = jnp.where(chosen.real, _leave_one_out(_from_place_on(rewards)), 0.0)
    return _Shares(own=advantage, toll=advantage, per_gain=None)


def _pl_rank(rewards: jax.Array, price: jax.Array, chosen: Choices) -> _Shares:
    """PL-Rank-3: λ_i = G_{r_i+1} [i placed] + Σ_{q <= r_i} S_q(i) (w_q gain_i − G_q), G the rewards from a place on."""
    del chosen
    to_go = _from_place_on(rewards)
    return _Shares(own=to_go - rewards, toll=to_go, per_gain=price)


def _gradient(
    scores: jax.Array, gains: jax.Array, real: jax.Array, rankings: jax.Array, chosen: Choices, shares: _Shares
) -> jax.Array:
    """The estimate [..., N] that the shares make, averaged over the rankings."""
    # Z_r / Z_{r−1}; the first is not used.
    log_shrink = jnp.diff(chosen.peak, axis=-1) + jnp.diff(chosen.excess, axis=-1)
    shrink = jnp.exp(jnp.pad(log_shrink, [(0, 0)] * (log_shrink.ndim - 1) + [(1, 0)]))
    toll = _discounted_sum(shrink, shares.toll)
    per_gain = None if shares.per_gain is None else _discounted_sum(shrink, shares.per_gain)

    def left(gains: jax.Array, share: jax.Array, place: slice) -> jax.Array:
        """S_r(i) (gain_i Σ per_gain − Σ toll), the sums carried to place r in units of Z_r."""
        worth = 0.0 if per_gain is None else gains * per_gain[..., place]
        return share * (worth - toll[..., place])

    wide_gains = jnp.broadcast_to(gains[..., None, :], chosen.unplaced.shape)
    placed_gains = jnp.take_along_axis(wide_gains, rankings, axis=-1)
    placed = shares.own + left(placed_gains, jnp.exp(chosen.log_prob()), slice(None))
    placed = jnp.where(chosen.real, placed, 0.0)
    last = slice(-1, None)
    # At most 1 for an unplaced item, which is in Z_K; the cap keeps the other branch of `where` finite.
    share = jnp.exp(jnp.minimum((scores[..., None, :] - chosen.peak[..., last]) - chosen.excess[..., last], 0.0))
    unplaced = jnp.where(chosen.unplaced, left(gains[..., None, :], share, last), 0.0)
    total = jnp.sum(unplaced, axis=-2)
    # Places of one list's rankings, side by side, added onto its items.
    flat = (*rankings.shape[:-2], rankings.shape[-2] * rankings.shape[-1])
    total = _add_at(total, rankings.reshape(flat), placed.reshape(flat))
    return jnp.where(real, total / rankings.shape[-2], 0.0)


def _add_at(totals: jax.Array, indices: jax.Array, values: jax.Array) -> jax.Array:
    """totals [..., N] with values [..., J] added at indices [..., J], which may repeat."""
    add = lambda total, index, value: total.at[index].add(value)  # noqa: E731
    for _ in range(totals.ndim - 1):
        add = jax.vmap(add)
    return add(totals, indices, values)


def _discounted_sum(shrink: jax.Array, values: jax.Array) -> jax.Array:
    """out_r = shrink_r · out_{r−1} + values_r along the last axis."""

    def combine(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return a[0] * b[0], b[0] * a[1] + b[1]

    return jax.lax.associative_scan(combine, (shrink, values), axis=values.ndim - 1)[1]


def _from_place_on(values: jax.Array) -> jax.Array:
    """out[..., r] = Σ_{q >= r} values[..., q]."""
    return jnp.flip(jnp.cumsum(jnp.flip(values, axis=-1), axis=-1), axis=-1)


def _leave_one_out(values: jax.Array) -> jax.Array:
    """Each value [..., M, K] minus the mean of those of the other rankings."""
    count = values.shape[-2]
    return (values - jnp.mean(values, axis=-2, keepdims=True)) * (count / (count - 1))


_SAMPLED = {"reinforce": _reinforce, "reward_to_go": _reward_to_go, "pl_rank": _pl_rank}
