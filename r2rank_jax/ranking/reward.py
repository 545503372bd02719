"""Rewards of rankings, as frozen objects that every function of this package accepts.

A reward is a weighted sum of terms. A term rewards items according to their places,

    R(y) = Σ_r weight_r · gain(label of the item at place r) / normalizer,

so its expectation under any distribution over rankings is a sum over single items. A `Term` holds the three parts:

| reward           | gain of a label | weight of place r <= k | normalizer               | items that count   |
|------------------|-----------------|------------------------|--------------------------|--------------------|
| `ndcg`           | 2^label − 1     | 1 / log2(1 + r)        | the best possible sum    | all                |
| `dcg`            | 2^label − 1     | 1 / log2(1 + r)        | none                     | all                |
| `recall`         | 1               | 1                      | number of relevant items | all                |
| `reciprocal_rank`| 1               | 1 / r                  | none                     | the first relevant |
| `hit_rate`       | 1               | 1                      | none                     | the first relevant |

`ndcg_linear` and `dcg_linear` use the label itself as the gain. Reciprocal rank and hit rate count only the first
relevant item, so with several relevant items they are not linear in the gains; `counts="first"` marks such a term. Its
expectation is still exact. A Plackett-Luce ranking is the order of arrival in an exponential race, in which the first
arrival of a group of items is distributed like the arrival of one item whose rate is the sum of theirs. The relevant
items are therefore merged into one item with the score logsumexp(their scores).

Average precision and expected reciprocal rank (Chapelle et al. 2009) do not have this form.

Rewards can be added and scaled, and a config names them by a string:

>>> mixed = 0.5 * ndcg(10) + 0.5 * recall(10)
>>> mixed == named("0.5*ndcg@10+0.5*recall@10")
True

Your own reward is a function that returns a `Reward`; a config names it "module:function". Rewards are static under
`jit`: close over them in a jitted function, or declare the argument static. If a function defines `gain` or `weight`
anew on each call, each call returns a different `Reward`, and `jit` compiles again.

Sources: K. Järvelin, J. Kekäläinen, "Cumulated gain-based evaluation of IR techniques" (2002); C. Burges et al.,
"Learning to Rank using Gradient Descent" (2005), for the exponential gain; R. D. Luce, "Individual Choice Behavior"
(1959), for the race and for merging alternatives.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from r2rank_jax.ranking.arguments import first_places, item_indices, leading, places, real_labels
from r2rank_jax.ranking.names import function_named, weighted_names
from r2rank_jax.ranking.order import weighted_descending

Gain = Literal["exp2", "linear"]


def discounts(num_places: int, dtype: DTypeLike = np.float32) -> np.ndarray:
    """The weight 1 / log2(1 + r) of each place r = 1..K: [K], a compile-time constant."""
    return np.asarray([1.0 / math.log2(1 + r) for r in range(1, num_places + 1)], dtype)


def reciprocal_logarithms(num_places: int) -> np.ndarray:
    """The weight 1 / log2(1 + r) of each place r = 1..K, in double precision: [K]."""
    return discounts(num_places, np.float64)


def reciprocals(num_places: int) -> np.ndarray:
    """The weight 1 / r of each place r = 1..K: [K]."""
    return 1.0 / np.arange(1.0, num_places + 1.0)


def ones(num_places: int) -> np.ndarray:
    """The weight 1 of each place: [K]."""
    return np.ones(num_places)


def exp2_gains(labels: jax.Array) -> jax.Array:
    """2^label − 1: [..., N]. Overflows float32 from label 128."""
    # The difference cancels for labels far below 1.
    return jnp.where(labels < 1, jnp.expm1(labels * math.log(2.0)), jnp.exp2(labels) - 1.0)


def exp2_shares(labels: jax.Array) -> jax.Array:
    """2^label − 1 divided by 2^(largest label of the list), [..., N], for rewards whose normalizer cancels a factor."""
    largest = jnp.max(labels, axis=-1, keepdims=True)
    gains = jnp.where(labels > 0, jnp.exp2(labels - largest) - jnp.exp2(-largest), 0.0)
    # The difference cancels for labels far below 1.
    small = jnp.exp2(labels - largest) * -jnp.expm1(-labels * math.log(2.0))
    return jnp.where(labels < 1, small, gains)


def linear_gains(labels: jax.Array) -> jax.Array:
    """The label itself: [..., N]."""
    return labels


def linear_shares(labels: jax.Array) -> jax.Array:
    """The label divided by the largest one of the list, [..., N], for rewards whose normalizer cancels a factor."""
    largest = jnp.max(labels, axis=-1, keepdims=True)
    return labels / jnp.where(largest > 0, largest, 1.0)


def binary_gains(labels: jax.Array) -> jax.Array:
    """1 for a relevant item: [..., N]."""
    return (labels > 0).astype(labels.dtype)


@dataclass(frozen=True, kw_only=True)
class Term:
    """One summand of a reward; see the top of this module."""

    gain: Callable[[jax.Array], jax.Array]
    """Labels [..., N] of whole lists -> gains [..., N], at least 0. The gain of an item with label 0 is always 0."""
    weight: Callable[[int], np.ndarray]
    """K -> the weights [K] of places 1..K, at least 0, in double precision."""
    k: int | None = None
    """Cut-off: places after it have weight 0. None: all N places have their weight."""
    normalizer: Literal["ideal", "gains", "none"] = "none"
    """The divisor of a list's gains: the largest weighted sum that a ranking can have, the sum of the gains, or 1."""
    counts: Literal["every", "first"] = "every"
    """Which relevant items count: every one, or only the first in the ranking. In the latter case all gains are 1."""
    scale: float = 1.0
    """Factor of this term in the reward; may be negative."""

    def num_places(self, num_items: int) -> int:
        """K = min(k, N), the number of places within the cut-off in a list of N items."""
        return places(self.k, num_items)

    def weights(self, num_places: int, dtype: DTypeLike = np.float32) -> np.ndarray:
        """The weights [K] of the first K places; the cut-off is not applied."""
        return np.asarray(self.weight(num_places), dtype)

    def gains(self, labels: ArrayLike, mask: ArrayLike | None = None) -> jax.Array:
        """Gains divided by the normalizer: float32 [..., N]; all 0 for a list without a relevant item.

        Args:
          labels: [..., N] graded relevance.
          mask: [..., N] True for a real item.

        Raises:
          ValueError: as `arguments.real_labels`.
        """
        labels = real_labels(labels, mask)
        gains = jnp.where(labels > 0, jnp.maximum(self.gain(labels), 0.0), 0.0)
        if self.counts == "first":
            return binary_gains(gains)
        if self.normalizer == "none":
            return gains
        if self.normalizer == "gains":
            total = jnp.sum(gains, axis=-1, keepdims=True)
        else:  # the largest gain at the largest weight, and so on
            best = np.sort(self.weights(self.num_places(labels.shape[-1])))[::-1]
            total = weighted_descending(gains, best)[..., None]
        return gains / jnp.where(total > 0, total, 1.0)

    def payments(self, placed: jax.Array, weights: jax.Array | np.ndarray) -> jax.Array:
        """The contribution of each place of a ranking, without `scale`: [..., K].

        Args:
          placed: [..., K] normalized gain of the item at each place.
          weights: [K] or [..., K] of the places.
        """
        if self.counts == "every":
            return placed * weights
        return jnp.where((placed > 0) & self.payable(placed), weights, 0.0)

    def payable(self, placed: jax.Array) -> jax.Array:
        """Whether an item at each place would count, given those above: bool [..., K]; `placed` as in `payments`."""
        if self.counts == "every":
            return jnp.ones(placed.shape, bool)
        relevant = (placed > 0).astype(jnp.int32)
        return jnp.cumsum(relevant, axis=-1) == relevant


@dataclass(frozen=True)
class Reward:
    """A weighted sum of terms. Rewards can be added, `a + b`, and scaled, `0.5 * a`."""

    terms: tuple[Term, ...]

    def __add__(self, other: Reward) -> Reward:
        return Reward((*self.terms, *other.terms))

    def __rmul__(self, factor: float) -> Reward:
        return Reward(tuple(dataclasses.replace(term, scale=float(factor) * term.scale) for term in self.terms))

    def num_places(self, num_items: int) -> int:
        """The number of places of a ranking of N items that are within the cut-off of any term."""
        return max(term.num_places(num_items) for term in self.terms)


def ndcg(k: int | None = None, gain: Gain = "exp2") -> Reward:
    """NDCG@k: DCG@k divided by that of the best ranking."""
    shares = {"exp2": exp2_shares, "linear": linear_shares}[_known_gain(gain)]
    return Reward((Term(gain=shares, weight=reciprocal_logarithms, k=k, normalizer="ideal"),))


def dcg(k: int | None = None, gain: Gain = "exp2") -> Reward:
    """DCG@k: the sum of the gains, discounted by 1 / log2(1 + place)."""
    gains = {"exp2": exp2_gains, "linear": linear_gains}[_known_gain(gain)]
    return Reward((Term(gain=gains, weight=reciprocal_logarithms, k=k),))


def reciprocal_rank(k: int | None = None) -> Reward:
    """1 / place of the first relevant item; 0 if it is after place k."""
    return Reward((Term(gain=binary_gains, weight=reciprocals, k=k, counts="first"),))


def recall(k: int | None = None) -> Reward:
    """Share of the relevant items that are in the first k places."""
    return Reward((Term(gain=binary_gains, weight=ones, k=k, normalizer="gains"),))


def hit_rate(k: int | None = None) -> Reward:
    """1 if a relevant item is in the first k places, else 0."""
    return Reward((Term(gain=binary_gains, weight=ones, k=k, counts="first"),))


BY_NAME: Mapping[str, Callable[[int | None], Reward]] = {
    "ndcg": ndcg,
    "ndcg_linear": lambda k: ndcg(k, "linear"),
    "dcg": dcg,
    "dcg_linear": lambda k: dcg(k, "linear"),
    "mrr": reciprocal_rank,
    "recall": recall,
    "hr": hit_rate,
}
"""The names of rewards in a config. Names that `results.json` uses have the same meaning."""


def named(text: str) -> Reward:
    """The reward that a string names: "ndcg@10", "mrr", "0.5*ndcg@10+0.5*recall@10" or "my_rewards:novelty@5".

    Args:
      text: a sum of [factor*]NAME[@k], NAME from `BY_NAME` or "module:function". A function is called with k, or
        without arguments if there is no @k, and must return a `Reward`.

    Raises:
      ValueError: if the text has another form, a name is unknown, or a function cannot be imported or does not return a
        `Reward`.
    """
    rewards = []
    for factor, name, k in weighted_names(text, "reward", "ndcg@10"):
        make = function_named(name, BY_NAME, "reward")
        reward = make(k) if name in BY_NAME else make(*(() if k is None else (k,)))
        if not isinstance(reward, Reward):
            raise ValueError(
                f"{name} must return a Reward; got {type(reward).__name__}; see r2rank_jax.ranking.reward for examples"
            )
        rewards.append(reward if factor == 1 else factor * reward)
    return Reward(tuple(term for reward in rewards for term in reward.terms))


def chosen(reward: Reward | None, k: int | None) -> Reward:
    """`reward`, or NDCG@k if it is None, for functions that take either.

    Raises:
      ValueError: if both `reward` and `k` are given.
    """
    if reward is None:
        return ndcg(k)
    if k is not None:
        raise ValueError(f"a reward has its own cut-offs; got k={k} as well; leave k out, or build the reward with it")
    return reward


def ranking_reward(
    ranking: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None, *, reward: Reward
) -> jax.Array:
    """The reward of given rankings.

    Args:
      ranking: [..., K] item indices, best first. Leading axes broadcast with those of `labels`, so rankings
        [..., M, K] of one list need labels [..., 1, N].
      labels: [..., N] graded relevance.
      mask: [..., N] True for a real item; a masked item holds its place and contributes 0.
      reward: its terms have their own cut-offs.

    Returns:
      float32 [...]; 0 where no item is relevant.

    Raises:
      ValueError: if the ranking holds anything but item indices, an item twice, or fewer than min(k, N) places, labels
        of real items are negative (values only if not traced, see `arguments`), or shapes do not broadcast.
    """
    total = None
    for term in reward.terms:
        gains = term.gains(labels, mask)
        in_order = placed(ranking, gains, term.k if term.k is not None else gains.shape[-1])
        earned = jnp.sum(term.payments(in_order, term.weights(in_order.shape[-1])), axis=-1)
        earned = earned if term.scale == 1 else term.scale * earned
        total = earned if total is None else total + earned
    assert total is not None, "a reward has at least one term"
    return total


def placed(ranking: ArrayLike, values: jax.Array, k: int | None) -> jax.Array:
    """The values [..., N] in the order of the ranking, cut to the first min(k, N) places.

    A repeated item, which only a traced ranking can hold, has its value at its first place and 0 at the others.
    """
    num_items = values.shape[-1]
    ranking = item_indices(ranking, num_items)
    cutoff = ranking.shape[-1] if k is None else places(k, num_items)
    if ranking.shape[-1] < cutoff:
        raise ValueError(
            f"a metric at k={k} over N={num_items} items needs a ranking of at least {cutoff} places; got "
            f"{ranking.shape[-1]}; rank more places or lower k"
        )
    ranking = ranking[..., :cutoff]
    lead = leading(ranking=ranking.shape, labels=values.shape)
    in_order = jnp.take_along_axis(
        jnp.broadcast_to(values, (*lead, num_items)), jnp.broadcast_to(ranking, (*lead, cutoff)), axis=-1
    )
    return jnp.where(first_places(ranking), in_order, 0.0)


def _known_gain(gain: str) -> str:
    if gain not in ("exp2", "linear"):
        raise ValueError(f'gain must be "exp2" or "linear"; got {gain!r}; "exp2" is the default here and in rax')
    return gain
