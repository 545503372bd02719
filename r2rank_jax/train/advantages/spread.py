"""Advantages without the gain of spreading all scores.

V(s) of a list that ranks better than chance grows when all its scores are multiplied by a factor above 1, which changes
no ranking. The policy can do that through its words: "yes" and "no" in place of "likely" and "unlikely". Rewarded by V
alone it learns exactly that, and its rankings get worse while V rises (docs/measurements.md). So spread has a price:

    V(s) − λ S(s),    S(s) = ½ Σ_i (s_i − mean s)²,    λ = Σ ∂V/∂s · (s − mean s) / Σ (s − mean s)²,

with sums over all lists of a batch. At the present scores the derivative of this objective is zero along the direction
that scales them all: λ is the Lagrange multiplier of their spread. `losses.without_scale_gradient` does the same
for the score part.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from r2rank_jax.ranking.expectation import expected_reward
from r2rank_jax.ranking.reward import Reward
from r2rank_jax.types import Array

BY_VALUE = ("shared", "counterfactual", "first_order")
"""Credit rules that use V. The others use the ranking by score, which scaling does not change."""


def spread_advantages(scores: Array, labels: Array, mask: Array, *, rule: str, reward: Reward) -> Array:
    """What a credit rule gives a rationale for λ S; subtract it from the rule's advantages.

    Args:
        scores: float32 [U, G, N].
        labels: float32 [U, N].
        mask: bool [U, N].
        rule: see `ranking.credit`.
        reward: whose expectation is V.

    Returns:
        float32 [U, G, N]; 0 at masked items, and everywhere for rules that are not in `BY_VALUE`.
    """
    if rule not in BY_VALUE:
        return jnp.zeros(scores.shape)
    real, lists = mask[:, None], scores.shape[1]
    scores = jnp.where(real, scores, 0.0)
    items = jnp.maximum(jnp.sum(real, axis=-1, keepdims=True), 1)
    mean = jnp.sum(scores, axis=-1, keepdims=True) / items
    centered = jnp.where(real, scores - mean, 0.0)

    def value(scores: Array) -> Array:
        return jnp.sum(expected_reward(scores, labels[:, None], real, reward=reward))

    price = jnp.sum(jax.grad(value)(scores) * centered) / (jnp.sum(centered**2) + 1e-12)
    others = lists / max(lists - 1, 1)  # from a mean over all lists to one over the other lists
    if rule == "shared":
        spread = jnp.sum(centered**2, axis=-1, keepdims=True) / 2
        credit = (spread - jnp.mean(spread, axis=1, keepdims=True)) * others if lists > 1 else spread
    elif rule == "first_order":
        credit = centered * (scores - jnp.mean(scores, axis=1, keepdims=True))
    else:
        # A score s that becomes x changes S by (x − s)(x + s − 2 mean − (x − s)/N)/2, since the mean moves as well.
        s, x = scores[:, :, None], scores[:, None]  # [U, G, 1, N] and the alternatives [U, 1, G, N]
        change = (x - s) * (x + s - 2 * mean[:, :, None] - (x - s) / items[:, :, None]) / 2
        credit = -jnp.mean(change, axis=2) * others
    return jax.lax.stop_gradient(jnp.where(real, price * credit, 0.0))
