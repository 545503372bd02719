"""Rewards: what a ranking is worth, as one frozen value that every function of this package takes.

A reward is a weighted sum of terms, and a term pays for items by their place,

    R(y) = Σ_r weight_r · gain(label of the item at place r) / normaliser,

so that its expectation under any distribution over rankings is a sum over single items. A `Term` holds the three parts:

| reward           | gain of a label | weight of place r <= k | normaliser               | who is paid     |
|------------------|-----------------|------------------------|--------------------------|-----------------|
| `ndcg`           | 2^label − 1     | 1 / log2(1 + r)        | the best possible sum    | every item      |
| `dcg`            | 2^label − 1     | 1 / log2(1 + r)        | none                     | every item      |
| `recall`         | 1               | 1                      | number of relevant items | every item      |
| `reciprocal_rank`| 1               | 1 / r                  | none                     | the first one   |
| `hit_rate`       | 1               | 1                      | none                     | the first one   |

`ndcg_linear` and `dcg_linear` take the label itself as its gain. Reciprocal rank and hit rate are linear in the gains
only where one item is relevant: with several, the first relevant one alone is paid. That is still exact here. A
Plackett-Luce ranking is an exponential race, in which the first arrival of a group of items is distributed like the
arrival of one item whose rate is the sum of theirs, so the relevant items are merged into one of score
logsumexp(their scores). `counts="first"` marks such a term.

Average precision and expected reciprocal rank (Chapelle et al. 2009) are not of this form.

Rewards add up and scale, and a string names them in a config:

>>> mixed = 0.5 * ndcg(10) + 0.5 * recall(10)
>>> mixed == named("0.5*ndcg@10+0.5*recall@10")
True

A reward of one's own is a function that returns a `Reward`; a config names it "module:function". Rewards are static:
close over them in a jitted function, or declare the argument static. A function that makes its own `gain` or `weight`
on each call makes a new value each time, and jit compiles again.

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

from r2rank_jax.ranking.arguments import item_indices, leading, places, real_labels
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
    """2^label − 1 divided by 2^(largest label of the list): [..., N], for rewards whose normaliser cancels a factor."""
    largest = jnp.max(labels, axis=-1, keepdims=True)
    gains = jnp.where(labels > 0, jnp.exp2(labels - largest) - jnp.exp2(-largest), 0.0)
    # The difference cancels for labels far below 1.
    small = jnp.exp2(labels - largest) * -jnp.expm1(-labels * math.log(2.0))
    return jnp.where(labels < 1, small, gains)


def linear_gains(labels: jax.Array) -> jax.Array:
    """The label itself: [..., N]."""
    return labels


def linear_shares(labels: jax.Array) -> jax.Array:
    """The label divided by the largest one of the list: [..., N], for rewards whose normaliser cancels a factor."""
    largest = jnp.max(labels, axis=-1, keepdims=True)
    return labels / jnp.where(largest > 0, largest, 1.0)


def binary_gains(labels: jax.Array) -> jax.Array:
    """1 for a relevant item: [..., N]."""
    return (labels > 0).astype(labels.dtype)


@dataclass(frozen=True, kw_only=True)
class Term:
    """One summand of a reward; see the top of this module."""

    gain: Callable[[jax.Array], jax.Array]
    """Labels [..., N] of whole lists -> gains [..., N], at least 0. An item of label 0 gains 0 in any case."""
    weight: Callable[[int], np.ndarray]
    """K -> the weights [K] of places 1..K, at least 0, in double precision."""
    k: int | None = None
    """Cut-off: places after it weigh nothing. None: all N places weigh."""
    normaliser: Literal["ideal", "gains", "none"] = "none"
    """What a list's gains are divided by: the best sum that a ranking can have, the sum of the gains, or 1."""
    counts: Literal["every", "first"] = "every"
    """Who is paid: every item, or the first relevant one alone, by its place; gains then are 1 whatever their size."""
    scale: float = 1.0
    """Factor of this term in its reward; may be negative."""

    def num_places(self, num_items: int) -> int:
        """K = min(k, N): how many places weigh in a list of N items."""
        return places(self.k, num_items)

    def weights(self, num_places: int, dtype: DTypeLike = np.float32) -> np.ndarray:
        """The weights [K] of the first K places, without regard to the cut-off."""
        return np.asarray(self.weight(num_places), dtype)

    def gains(self, labels: ArrayLike, mask: ArrayLike | None = None) -> jax.Array:
        """Gains divided by the normaliser: float32 [..., N]; all 0 for a list without a relevant item.

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
        if self.normaliser == "none":
            return gains
        if self.normaliser == "gains":
            total = jnp.sum(gains, axis=-1, keepdims=True)
        else:  # the largest gain at the largest weight, and so on
            best = np.sort(self.weights(self.num_places(labels.shape[-1])))[::-1]
            total = weighted_descending(gains, best)[..., None]
        return gains / jnp.where(total > 0, total, 1.0)

    def payments(self, placed: jax.Array, weights: jax.Array | np.ndarray) -> jax.Array:
        """What each place of a ranking contributes, before `scale`: [..., K].

        Args:
          placed: [..., K] normalised gain of the item at each place.
          weights: [K] or [..., K] of the places.
        """
        if self.counts == "every":
            return placed * weights
        return jnp.where((placed > 0) & self.payable(placed), weights, 0.0)

    def payable(self, placed: jax.Array) -> jax.Array:
        """Whether each place can still be paid after those above it: bool [..., K]; `placed` as in `payments`."""
        if self.counts == "every":
            return jnp.ones(placed.shape, bool)
        relevant = (placed > 0).astype(jnp.int32)
        return jnp.cumsum(relevant, axis=-1) == relevant


@dataclass(frozen=True)
class Reward:
    """A weighted sum of terms. Rewards add up, `a + b`, and scale, `0.5 * a`."""

    terms: tuple[Term, ...]

    def __add__(self, other: Reward) -> Reward:
        return Reward((*self.terms, *other.terms))

    def __rmul__(self, factor: float) -> Reward:
        return Reward(tuple(dataclasses.replace(term, scale=float(factor) * term.scale) for term in self.terms))

    def num_places(self, num_items: int) -> int:
        """How many places of a ranking of N items weigh in any term."""
        return max(term.num_places(num_items) for term in self.terms)


def ndcg(k: int | None = None, gain: Gain = "exp2") -> Reward:
    """NDCG@k: DCG@k over that of the best ranking."""
    shares = {"exp2": exp2_shares, "linear": linear_shares}[_known_gain(gain)]
    return Reward((Term(gain=shares, weight=reciprocal_logarithms, k=k, normaliser="ideal"),))


def dcg(k: int | None = None, gain: Gain = "exp2") -> Reward:
    """DCG@k: the sum of the gains, discounted by 1 / log2(1 + place)."""
    gains = {"exp2": exp2_gains, "linear": linear_gains}[_known_gain(gain)]
    return Reward((Term(gain=gains, weight=reciprocal_logarithms, k=k),))


def reciprocal_rank(k: int | None = None) -> Reward:
    """1 / place of the first relevant item, 0 where it stands after place k."""
    return Reward((Term(gain=binary_gains, weight=reciprocals, k=k, counts="first"),))


def recall(k: int | None = None) -> Reward:
    """Share of the relevant items that stand in the first k places."""
    return Reward((Term(gain=binary_gains, weight=ones, k=k, normaliser="gains"),))


def hit_rate(k: int | None = None) -> Reward:
    """1 where a relevant item stands in the first k places."""
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
"""Names that a config may use; those of `results.json` mean the same here."""


def named(text: str) -> Reward:
    """The reward that a config names: "ndcg@10", "mrr", "0.5*ndcg@10+0.5*recall@10" or "my_rewards:novelty@5".

    Args:
      text: a sum of [factor*]NAME[@k], NAME from `BY_NAME` or "module:function". A function is called with k, or
        without arguments where there is no @k, and returns a `Reward`.

    Raises:
      ValueError: another form, an unknown name, a module that cannot be imported or that lacks the function.
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
    """`reward`, or NDCG@k where it is None: for functions that take either.

    Raises:
      ValueError: both were given.
    """
    if reward is None:
        return ndcg(k)
    if k is not None:
        raise ValueError(
            f"a reward has its own cut-offs; got k={k} beside it; leave k out, or build the reward with it"
        )
    return reward


def ranking_reward(
    ranking: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None, *, reward: Reward
) -> jax.Array:
    """The reward of given rankings.

    Args:
      ranking: [..., K] item indices, best first. Leading axes broadcast with those of `labels`, so rankings
        [..., M, K] of one list need labels [..., 1, N].
      labels: [..., N] graded relevance.
      mask: [..., N] True for a real item; a masked item takes its place and earns nothing.
      reward: which.

    Returns:
      float32 [...]; 0 where no item is relevant.

    Raises:
      ValueError: if the ranking holds anything but item indices or has fewer than min(k, N) places, labels of real
        items are negative (both if not traced, see `arguments`), or shapes do not broadcast.
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


def _known_gain(gain: str) -> str:
    if gain not in ("exp2", "linear"):
        raise ValueError(f'gain must be "exp2" or "linear"; got {gain!r}; "exp2" is what rax and this package use')
    return gain
