"""The terms of RL's loss; those of a list's scores are in `ranking.losses`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from r2rank_jax.types import Array


def clipped_policy(
    log_ratio: Array, advantages: Array, importance: Array, *, clip_low: float, clip_high: float
) -> tuple[Array, Array]:
    """PPO's pessimistic surrogate (Schulman et al. 2017) of each token, to be maximised.

    Args:
        log_ratio: float32 [...], log-probability under the policy being trained less that before this rollout's first
            update.
        advantages: float32 [...].
        importance: float32 [...], truncated trainer/rollout ratio.
        clip_low: lower edge of the ratio is 1 - clip_low.
        clip_high: upper edge is 1 + clip_high.

    Returns:
        The surrogate, and bool [...]: where the ratio was clipped.
    """
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    surrogate = jnp.minimum(ratio * advantages, clipped * advantages) * importance
    return surrogate, ratio * advantages > clipped * advantages


def sequence_log_ratio(log_ratio: Array, real: Array) -> Array:
    """One length-normalised ratio for all tokens of a rationale (GSPO, Zheng et al. 2025): the mean over its last axis.

    Args:
        log_ratio: float32 [..., T].
        real: bool [..., T].
    """
    tokens = jnp.maximum(jnp.sum(real, axis=-1, keepdims=True), 1)
    mean = jnp.sum(jnp.where(real, log_ratio, 0.0), axis=-1, keepdims=True) / tokens
    return jnp.broadcast_to(mean, log_ratio.shape)


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
