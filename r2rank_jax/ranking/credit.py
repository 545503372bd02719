"""Credit assignment: from the value of whole lists to an advantage for every rationale.

A user has N items and G rationales per item. Rationale g of item i has the score s_{i,g}, and the g-th rationales of
all items form list g. The token-level policy gradient is Σ_{i,g} A_{i,g} ∇log π(rationale i,g). Let V be the expected
reward of a list (`expectation`) and R(y) the reward of one ranking, NDCG@k or any `reward`. The rules for A are:

| rule              | A_{i,g}                                                     | estimates, on-policy              |
|-------------------|-------------------------------------------------------------|-----------------------------------|
| "shared"          | V(list g) − mean of V over the user's other lists           | ∇E[V], unbiased, noisy            |
| "counterfactual"  | V(list g) − mean over g' ≠ g of V(list g, s_i from g')      | ∇E[V], unbiased                   |
| "first_order"     | ∂V/∂s_i (list g) · (s_{i,g} − mean_g' s_{i,g'})             | biased: linear approximation of   |
|                   |                                                             | "counterfactual"                  |
| "leave_item_out"  | R(y) − R(y without item i), y = items by score              | ∇E[R(y)], unbiased                |
| "swap"            | mean over items j of R(y) − R(y with i and j exchanged)     | biased                            |

A baseline b leaves an estimate unbiased, E[b ∇log π(o)] = 0, if it does not depend on the rationale o itself. "shared"
subtracts the values of other lists, so the advantage of a rationale also contains the random effects of the other N − 1
rationales of its list. In "counterfactual" and "leave_item_out" these effects cancel: "counterfactual" replaces this
rationale by others of the same item, and "leave_item_out" removes the item, which does not change the order of the
others. "swap" has no such baseline: the exchanged ranking still depends on the item's own score, through its place.

On-policy means that the rationales were sampled from the policy whose gradient is taken, and that the user's lists are
independent. "leave_item_out" and "swap" use the ranking by score, which inference returns. They therefore estimate the
gradient of that ranking's reward, not of V. They work with G = 1 and cost O(N) for a given ranking.

Sources: J. Foerster et al., "Counterfactual Multi-Agent Policy Gradients" (2018), for the counterfactual baseline; D.
Wolpert, K. Tumer, "Optimal Payoff Functions for Members of Collectives" (2001), for the difference reward, of which
"leave_item_out" is an instance; C. Burges et al., "Learning to Rank with Nonsmooth Cost Functions" (2006), for the pair
weights that "swap" averages.

Advantages are constants: no gradient flows through them.

>>> import jax.numpy as jnp
>>> scores = jnp.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])  # two rationales for each of three items
>>> print(item_advantages(scores, jnp.array([1, 0, 0]), rule="leave_item_out").round(2))
[[ 1.    0.    0.  ]
 [ 0.5  -0.13 -0.13]]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from r2rank_jax.ranking import reward as rewards
from r2rank_jax.ranking.arguments import broadcast_mask, item_indices, leading, real_scores, same_items
from r2rank_jax.ranking.exact.replacement import swapped_expected_ndcg
from r2rank_jax.ranking.expectation import Method, add_terms, expected_reward
from r2rank_jax.ranking.plackett_luce import mode
from r2rank_jax.ranking.reward import Reward, Term

Rule = Literal["shared", "counterfactual", "first_order", "leave_item_out", "swap"]


def item_advantages(
    scores: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    rule: Rule,
    k: int | None = None,
    reward: Reward | None = None,
    method: Method = "auto",
) -> jax.Array:
    """The advantage of every rationale of every item.

    Args:
      scores: [..., G, N] score of item i under its g-th rationale.
      labels: [..., N] graded relevance, shared by a user's G lists.
      mask: [..., N] True for a real item.
      rule: see the table at the top of this module. "counterfactual" and "first_order" need G >= 2.
      k: cut-off of the NDCG; None takes all N places.
      reward: used instead of NDCG@k; its terms have their own cut-offs.
      method: how V is computed, see `expectation`; "leave_item_out" and "swap" do not use V.

    Returns:
      float32 [..., G, N]; 0 at masked items and in lists without a relevant item. No gradient flows through it.

    Raises:
      ValueError: if shapes disagree, the rule is unknown, or it needs more rationales.
    """
    reward = rewards.chosen(reward, k)
    scores = jax.lax.stop_gradient(jnp.asarray(scores, jnp.float32))
    if scores.ndim < 2:
        raise ValueError(
            f"scores must have shape [..., G, N], one row per rationale; got {scores.shape}; add an axis of size G"
        )
    labels = jnp.asarray(labels)
    if labels.ndim == 0 or labels.shape[-1] != scores.shape[-1]:
        raise ValueError(
            f"labels must have shape [..., N={scores.shape[-1]}], without the axis G of scores; "
            f"got {labels.shape}; pass one label per item and user"
        )
    if mask is not None:
        mask = broadcast_mask(mask, labels.shape, "labels")[..., None, :]
    if rule not in _RULES:
        raise ValueError(f'rule must be one of {tuple(_RULES)}; got {rule!r}; "counterfactual" is the default choice')
    num_rationales = scores.shape[-2]
    if rule in ("counterfactual", "first_order") and num_rationales < 2:
        raise ValueError(
            f'rule "{rule}" compares the rationales of an item, so scores needs G >= 2 on axis -2; got G='
            f'{num_rationales}; sample more rationales per item or use rule="shared"'
        )
    scores, real = real_scores(scores, mask)
    shape = (*leading(scores=scores.shape, labels=(*labels.shape[:-1], 1, labels.shape[-1])), scores.shape[-1])
    scores, real = jnp.broadcast_to(scores, shape), jnp.broadcast_to(real, shape)
    advantages = _RULES[rule](scores, labels[..., None, :], real, reward, method)
    return jax.lax.stop_gradient(jnp.where(real, advantages, 0.0))


def leave_item_out(
    ranking: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    k: int | None = None,
    reward: Reward | None = None,
) -> jax.Array:
    """The contribution of every item: NDCG@k of a ranking minus that of the ranking without the item.

    The items below a removed one move up, and the normalizer stays that of the whole list. The contribution is
    gain_i w_{r_i} − Σ_{j below i} gain_j (w_{r_j − 1} − w_{r_j}), computed in O(N). As an advantage it is unbiased for
    the expected reward of the ranking, whether that was sorted by score or drawn from Plackett-Luce, because the
    ranking of the other items does not depend on the removed item's score.

    Args:
      ranking: [..., N] all items, best first; leading axes broadcast with those of `labels`.
      labels: [..., N] graded relevance.
      mask: [..., N] True for a real item; masked items must be last, where `mode` and `sample` put them.
      k: cut-off of the NDCG; None takes all N places. The item at place k + 1 can move up into the first k.
      reward: used instead of NDCG@k.

    Returns:
      [..., N], by item; 0 for masked items.

    Raises:
      ValueError: if the ranking does not hold all items, shapes do not broadcast, or labels of real items are negative.
    """
    return _on_ranking(_without_item, ranking, labels, mask, rewards.chosen(reward, k))


def swap(
    ranking: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    k: int | None = None,
    reward: Reward | None = None,
) -> jax.Array:
    """The average change of NDCG@k over exchanges of each item with another one: the actual minus the exchanged NDCG@k.

    The mean over the other items j of (gain_i − gain_j)(w_{r_i} − w_{r_j}), in O(N) from four sums; in O(N²) for terms
    that count only the first relevant item. As an advantage it is biased (see the top of this module) and points in the
    direction of LambdaRank.

    Args:
      ranking: [..., N] all items, best first; leading axes broadcast with those of `labels`.
      labels: [..., N] graded relevance.
      mask: [..., N] True for a real item; masked items must be last.
      k: cut-off of the NDCG; None takes all N places.
      reward: used instead of NDCG@k.

    Returns:
      [..., N], by item; 0 for masked items.

    Raises:
      ValueError: as `leave_item_out`.
    """
    return _on_ranking(_exchanged, ranking, labels, mask, rewards.chosen(reward, k))


# Term, gains [..., N] and mask [..., N] by place, weights [N] of the places -> credit [..., N] by place.
_Credit = Callable[[Term, jax.Array, jax.Array, np.ndarray], jax.Array]


def _on_ranking(
    credit: _Credit, ranking: ArrayLike, labels: ArrayLike, mask: ArrayLike | None, reward: Reward
) -> jax.Array:
    """Σ over the terms of scale · credit, by item: [..., N]. `credit` computes it by place."""
    values = []
    for term in reward.terms:
        gains = term.gains(labels, mask)
        num_items = gains.shape[-1]
        order = item_indices(ranking, num_items)
        same_items("ranking", order.shape, "labels", gains.shape)
        shape = (*leading(ranking=order.shape, labels=gains.shape), num_items)
        real = jnp.broadcast_to(broadcast_mask(mask, gains.shape, "labels"), shape)
        order, gains = jnp.broadcast_to(order, shape), jnp.broadcast_to(gains, shape)
        num_places = term.num_places(num_items)
        weights = np.pad(term.weights(num_places), (0, num_items - num_places))
        by_place = credit(
            term, jnp.take_along_axis(gains, order, axis=-1), jnp.take_along_axis(real, order, axis=-1), weights
        )
        values.append(jnp.put_along_axis(jnp.zeros_like(by_place), order, by_place, axis=-1, inplace=False))
    return add_terms(reward, values)


def _without_item(term: Term, gains: jax.Array, real: jax.Array, weights: np.ndarray) -> jax.Array:
    """The reward that the ranking loses if the item at each place is removed and the items below it move up."""
    if term.counts == "first":
        first, second, padded = *_first_two(gains), jnp.append(weights, 0.0)
        place = jnp.arange(gains.shape[-1])
        none = first == gains.shape[-1]
        left = jnp.where(second < gains.shape[-1], padded[second - 1], 0.0)
        without = jnp.where(place == first, left, jnp.where(place < first, padded[first - 1], padded[first]))
        return jnp.where(none, 0.0, padded[first] - without)
    del real
    above = jnp.concatenate([weights[:1], weights[:-1]])  # weights after moving up; the first place cannot
    lift = gains * (above - weights)
    below = jnp.flip(jnp.cumsum(jnp.flip(lift, axis=-1), axis=-1), axis=-1) - lift
    return gains * weights - below


def _exchanged(term: Term, gains: jax.Array, real: jax.Array, weights: np.ndarray) -> jax.Array:
    """The reward that the ranking loses on average if the item at each place is exchanged with another one."""
    count = jnp.sum(real, axis=-1, keepdims=True).astype(jnp.float32)
    others = jnp.maximum(count - 1.0, 1.0)
    if term.counts == "first":
        first, second, padded = *(x[..., None] for x in _first_two(gains)), jnp.append(weights, 0.0)
        place = jnp.arange(gains.shape[-1])
        upper, lower = jnp.minimum(place[:, None], place), jnp.maximum(place[:, None], place)
        relevant = gains > 0
        up, down = relevant[..., upper], relevant[..., lower]  # [..., N, N]: of each pair's upper and lower item
        moved = jnp.where(~up & down, jnp.minimum(first, upper), first)
        moved = jnp.where(up & ~down & (upper == first), jnp.minimum(second, lower), moved)
        change = jnp.where(real[..., :, None] & real[..., None, :], padded[first] - padded[moved], 0.0)
        return jnp.sum(change, axis=-1) / others
    by_place = jnp.where(real, weights, 0.0)

    def total(values: jax.Array) -> jax.Array:
        return jnp.sum(values, axis=-1, keepdims=True)

    pairs = count * gains * by_place - gains * total(by_place) - by_place * total(gains) + total(gains * by_place)
    return jnp.where(real, pairs, 0.0) / others


def _first_two(gains: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Places of the first and the second relevant item, counted from 0, N if there is none: int [..., 1] each."""
    num_items = gains.shape[-1]
    rank = jnp.cumsum(gains > 0, axis=-1)
    first, second = (
        jnp.min(jnp.where((gains > 0) & (rank == n), jnp.arange(num_items), num_items), axis=-1, keepdims=True)
        for n in (1, 2)
    )
    return first, second


def _shared(scores: jax.Array, labels: jax.Array, real: jax.Array, reward: Reward, method: Method) -> jax.Array:
    """V of the list minus the mean V of the user's other lists, the same for all items: [..., G, N]."""
    values = expected_reward(scores, labels, real, reward=reward, method=method)  # [..., G]
    num_lists = scores.shape[-2]
    if num_lists > 1:
        values = (values - jnp.mean(values, axis=-1, keepdims=True)) * (num_lists / (num_lists - 1))
    return jnp.broadcast_to(values[..., None], real.shape)


def _counterfactual(scores: jax.Array, labels: jax.Array, real: jax.Array, reward: Reward, method: Method) -> jax.Array:
    """V minus its mean over the item's other rationales, the other items held fixed: [..., G, N]."""
    values = expected_reward(scores, labels, real, reward=reward, method=method)  # [..., G]
    others = _others(scores.shape[-2])  # [G, G-1]
    alternatives = scores[..., others, :]  # [..., G, G-1, N]
    swapped = swapped_expected_ndcg(scores, labels, alternatives, real, reward=reward, method=method)
    return values[..., None] - jnp.mean(swapped, axis=-2)


def _first_order(scores: jax.Array, labels: jax.Array, real: jax.Array, reward: Reward, method: Method) -> jax.Array:
    """The derivative of V in the score, times the score's distance from the item's mean score: [..., G, N]."""

    def total(scores: jax.Array) -> jax.Array:
        return jnp.sum(expected_reward(scores, labels, real, reward=reward, method=method))

    return jax.grad(total)(scores) * (scores - jnp.mean(scores, axis=-2, keepdims=True))


def _by_score(credit: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A rule that applies `credit`, a function of rankings, to the rankings by score."""

    def rule(scores: jax.Array, labels: jax.Array, real: jax.Array, reward: Reward, method: Method) -> jax.Array:
        del method
        return credit(mode(scores, real), labels, real, reward=reward)

    return rule


def _others(num_rationales: int) -> np.ndarray:
    """Row g holds the indices of all rationales except g: int [G, G-1]."""
    grid = np.arange(num_rationales)
    return np.stack([np.delete(grid, g) for g in grid])


_RULES: Mapping[str, Callable[..., jax.Array]] = {
    "shared": _shared,
    "counterfactual": _counterfactual,
    "first_order": _first_order,
    "leave_item_out": _by_score(leave_item_out),
    "swap": _by_score(swap),
}
