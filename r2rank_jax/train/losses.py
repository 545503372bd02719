"""The terms of both phases' losses; means are carried as `WeightedSum`s, to be divided once, over all devices."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from r2rank_jax.types import Array, WeightedSum


def listwise_softmax(scores: Array, labels: Array, mask: Array) -> WeightedSum:
    """Cross-entropy between the labels' share of each list and softmax(scores) (Cao et al. 2007, ListNet top one).

    Args:
        scores: float32 [..., N].
        labels: float32 [..., N].
        mask: bool [..., N]; lists without a relevant item weigh nothing.
    """
    scores = jnp.where(mask, scores, -1e30)
    relevance = jnp.where(mask, labels, 0.0)
    mass = jnp.sum(relevance, axis=-1)
    share = relevance / jnp.maximum(mass, 1e-9)[..., None]
    loss = -jnp.sum(share * jax.nn.log_softmax(scores), axis=-1)
    return WeightedSum(total=jnp.sum(jnp.where(mass > 0, loss, 0.0)), weight=jnp.sum(mass > 0).astype(jnp.float32))


def clipped_policy(
    logp: Array,
    old_logp: Array,
    advantages: Array,
    importance: Array,
    real: Array,
    *,
    clip_low: float,
    clip_high: float,
    ratio: Literal["token", "sequence"],
) -> tuple[Array, Array]:
    """PPO's pessimistic surrogate (Schulman et al. 2017), summed over the tokens of each rationale.

    Args:
        logp: float32 [U, N, G, T], under the policy being trained.
        old_logp: same shape, under the policy before this rollout's first update.
        advantages: float32 [U, N, G].
        importance: float32 [U, N, G, T], truncated trainer/rollout ratio of each token.
        real: bool [U, N, G, T].
        clip_low: lower edge of the ratio is 1 - clip_low.
        clip_high: upper edge is 1 + clip_high.
        ratio: "token", or "sequence" for one length-normalised ratio per rationale (GSPO, Zheng et al. 2025).

    Returns:
        Surrogate per rationale [U, N, G] (to be maximised) and the share of real tokens that were clipped.
    """
    change = jnp.where(real, logp - old_logp, 0.0)
    if ratio == "sequence":
        length = jnp.maximum(jnp.sum(real, axis=-1, keepdims=True), 1)
        change = jnp.broadcast_to(jnp.sum(change, axis=-1, keepdims=True) / length, change.shape)
    r = jnp.exp(change)
    gain = advantages[..., None]
    clipped = jnp.clip(r, 1.0 - clip_low, 1.0 + clip_high)
    surrogate = jnp.minimum(r * gain, clipped * gain) * importance
    was_clipped = real & (r * gain > clipped * gain)
    share = jnp.sum(was_clipped) / jnp.maximum(jnp.sum(real), 1)
    return jnp.sum(jnp.where(real, surrogate, 0.0), axis=-1), share


def without_scale_gradient(scores: Array, mask: Array) -> Array:
    """The same scores up to a shift of each list, through which no gradient can scale all of them together.

    Any scores better than chance raise V when they are multiplied by more than one, in whatever order they rank: at
    RL's first step nine tenths of the norm of ∇V were this one direction, and the gradients of independent batches
    agreed to a cosine of .99 about nothing that a ranking depends on (docs/measurements.md).

    Args:
        scores: float32 [U, N, G].
        mask: bool [U, N].

    Returns:
        float32 [U, N, G], each list centred; 0 at masked items.
    """
    real = jnp.broadcast_to(mask[:, :, None], scores.shape)
    items = jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1)
    mean = jnp.sum(jnp.where(real, scores, 0.0), axis=1, keepdims=True) / items
    centred = jnp.where(real, scores - mean, 0.0)
    spread = jnp.sqrt(jnp.sum(centred**2) / jnp.maximum(jnp.sum(real), 1) + 1e-12)
    return centred / spread * jax.lax.stop_gradient(spread)
