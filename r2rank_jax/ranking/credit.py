"""Credit assignment: from the value of whole lists to an advantage for every rationale.

A user has N items and G rationales per item; rationale g of item i gave the score s_{i,g}, and the g-th
rationales of all items make list g. V is the expected NDCG of a list (`expectation`). The token-level policy
gradient is Σ_{i,g} A_{i,g} ∇log π(rationale i,g); here are three choices of A:

- "shared": A_{i,g} = V(list g) − mean of V over the user's other lists. Unbiased and noisy: a rationale is
  praised for the luck of the other N − 1. With G = 1 there is no other list and the baseline is 0.
- "counterfactual": A_{i,g} = V(list g) − mean over g' ≠ g of V(list g with item i's score replaced by
  s_{i,g'}). Unbiased on-policy, because the baseline does not depend on rationale (i, g); the luck of the
  other items cancels. The multi-agent form is J. Foerster et al., "Counterfactual Multi-Agent Policy
  Gradients" (2018).
- "first_order": A_{i,g} = ∂V/∂s_i (list g) · (s_{i,g} − mean_g' s_{i,g'}). The linearisation of the above:
  cheapest, biased, and wrong in size where the value saturates.

Advantages are constants: no gradient flows through them.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from r2rank_jax.ranking.expectation import Method, expected_ndcg, swapped_expected_ndcg
from r2rank_jax.ranking.plackett_luce import broadcast_mask, real_scores

Rule = Literal["shared", "counterfactual", "first_order"]


def item_advantages(
    scores: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    rule: Rule,
    k: int | None = None,
    method: Method = "auto",
) -> jax.Array:
    """The advantage of every rationale of every item.

    Args:
      scores: [..., G, N] score of item i under its g-th rationale.
      labels: [..., N] graded relevance, shared by a user's G lists.
      mask: [..., N] True for a real item.
      rule: see the top of this module. "counterfactual" and "first_order" need G >= 2.
      k: cut-off of the NDCG; None takes all N places.
      method: how values are computed, see `expectation`.

    Returns:
      float32 [..., G, N]; 0 at masked items and in lists without a relevant item. No gradient flows through
      it.

    Raises:
      ValueError: if shapes disagree, the rule is unknown, or it needs more rationales.
    """
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
    rules = {"shared": _shared, "counterfactual": _counterfactual, "first_order": _first_order}
    if rule not in rules:
        raise ValueError(f'rule must be one of {tuple(rules)}; got {rule!r}; "counterfactual" is the default choice')
    num_rationales = scores.shape[-2]
    if rule != "shared" and num_rationales < 2:
        raise ValueError(
            f'rule "{rule}" compares the rationales of an item, so scores needs G >= 2 on axis -2; got G='
            f'{num_rationales}; sample more rationales per item or use rule="shared"'
        )
    scores, real = real_scores(scores, mask)
    advantages = rules[rule](scores, labels[..., None, :], real, k, method)
    return jax.lax.stop_gradient(jnp.where(real, advantages, 0.0))


def _shared(scores: jax.Array, labels: jax.Array, real: jax.Array, k: int | None, method: Method) -> jax.Array:
    """V of the list minus the mean V of the user's other lists, the same for all items: [..., G, N]."""
    values = expected_ndcg(scores, labels, real, k=k, method=method)  # [..., G]
    num_lists = scores.shape[-2]
    if num_lists > 1:
        values = (values - jnp.mean(values, axis=-1, keepdims=True)) * (num_lists / (num_lists - 1))
    return jnp.broadcast_to(values[..., None], real.shape)


def _counterfactual(scores: jax.Array, labels: jax.Array, real: jax.Array, k: int | None, method: Method) -> jax.Array:
    """V minus its mean over the item's other rationales, the other items held fixed: [..., G, N]."""
    values = expected_ndcg(scores, labels, real, k=k, method=method)  # [..., G]
    others = _others(scores.shape[-2])  # [G, G-1]
    alternatives = scores[..., others, :]  # [..., G, G-1, N]
    swapped = swapped_expected_ndcg(scores, labels, alternatives, real, k=k, method=method)
    return values[..., None] - jnp.mean(swapped, axis=-2)


def _first_order(scores: jax.Array, labels: jax.Array, real: jax.Array, k: int | None, method: Method) -> jax.Array:
    """Slope of V at the list times the score's distance from the item's mean score: [..., G, N]."""

    def total(scores: jax.Array) -> jax.Array:
        return jnp.sum(expected_ndcg(scores, labels, real, k=k, method=method))

    return jax.grad(total)(scores) * (scores - jnp.mean(scores, axis=-2, keepdims=True))


def _others(num_rationales: int) -> np.ndarray:
    """Row g lists all rationales but g: int [G, G-1]."""
    grid = np.arange(num_rationales)
    return np.stack([np.delete(grid, g) for g in grid])
