"""The terms of RL's loss. Losses of a list's scores are in `ranking.losses`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from r2rank_jax.types import Array


def clipped_policy(
    log_ratio: Array, advantages: Array, importance: Array, *, clip_low: float, clip_high: float
) -> tuple[Array, Array]:
    """PPO's pessimistic surrogate (Schulman et al. 2017) of each token, to be maximized.

    Args:
        log_ratio: float32 [...], log-probability under the policy being trained, minus the log-probability before the
            first update from this rollout.
        advantages: float32 [...].
        importance: float32 [...], truncated trainer/rollout ratio.
        clip_low: the ratio is clipped from below at 1 - clip_low.
        clip_high: the ratio is clipped from above at 1 + clip_high.

    Returns:
        The surrogate, and bool [...], True where the ratio was clipped.
    """
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    surrogate = jnp.minimum(ratio * advantages, clipped * advantages) * importance
    return surrogate, ratio * advantages > clipped * advantages


def sequence_log_ratio(log_ratio: Array, real: Array) -> Array:
    """One length-normalized ratio for all tokens of a rationale (GSPO, Zheng et al. 2025).

    Args:
        log_ratio: float32 [..., T].
        real: bool [..., T], True for tokens that count.

    Returns:
        float32 [..., T], the mean over the real tokens, repeated along the last axis.
    """
    tokens = jnp.maximum(jnp.sum(real, axis=-1, keepdims=True), 1)
    mean = jnp.sum(jnp.where(real, log_ratio, 0.0), axis=-1, keepdims=True) / tokens
    return jnp.broadcast_to(mean, log_ratio.shape)


def without_scale_gradient(scores: Array, mask: Array) -> Array:
    """The scores, with each list centered, and without the gradient that scales all scores together.

    If scores rank better than chance, multiplying all of them by a factor above 1 raises V and changes no ranking. In
    RL's first step, this one direction was nine tenths of the norm of ∇V: the gradients of independent batches agreed
    to a cosine of .99, but on something that no ranking depends on (docs/measurements.md).

    Args:
        scores: float32 [U, N, G].
        mask: bool [U, N].

    Returns:
        float32 [U, N, G], each list centered; 0 at masked items.
    """
    real = jnp.broadcast_to(mask[:, :, None], scores.shape)
    items = jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1)
    mean = jnp.sum(jnp.where(real, scores, 0.0), axis=1, keepdims=True) / items
    centered = jnp.where(real, scores - mean, 0.0)
    spread = jnp.sqrt(jnp.sum(centered**2) / jnp.maximum(jnp.sum(real), 1) + 1e-12)
    return centered / spread * jax.lax.stop_gradient(spread)
