"""What a rollout looks like, as a few numbers for the log of RL."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from r2rank_jax.rollout.decoding import Rollout
from r2rank_jax.types import Array, ListBatch

FACTOR = np.uint32(2_654_435_761)  # odd: multiplication by it is invertible, and spreads a token's bits upwards


def summary(batch: ListBatch, rollout: Rollout) -> dict[str, Array]:
    """Length and variety of the rationales, and how far the scores of a list differ within and between items.

    `score_sd_within` against `score_sd_between` says how much of a score is the luck of which rationale was sampled.

    Args:
        batch: masked items count nowhere.
        rollout: of its lists.

    Returns:
        Scalars. rationale_tokens: mean length; truncated: share of rationales cut at T tokens; distinct: mean number of
        different rationales of an item, divided by G; score_sd_within: root mean square over items of the standard
        deviation of an item's G scores; score_sd_between: root mean square over lists of the standard deviation of the
        items' mean scores.
    """
    rationales, scores = rollout.rationales, rollout.scores
    mask = jnp.broadcast_to(batch.mask[:, :, None], scores.shape)
    return {
        "rationale_tokens": _mean(rationales.length, mask),
        "truncated": _mean(~rationales.stopped, mask),
        "distinct": _mean(_is_first_of_its_kind(rationales.tokens, rationales.length), mask),
        "score_sd_within": jnp.sqrt(_mean(jnp.var(scores, axis=2), batch.mask)),
        "score_sd_between": jnp.sqrt(
            _mean(_variance_of_items(jnp.mean(scores, axis=2), batch.mask), jnp.any(batch.mask, axis=1))
        ),
    }


def _mean(values: Array, mask: Array) -> Array:
    return jnp.sum(jnp.where(mask, values, 0)) / jnp.maximum(jnp.sum(mask), 1)


def _variance_of_items(scores: Array, mask: Array) -> Array:
    """Variance over the real items of [U, N]: [U]."""
    items = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    mean = jnp.sum(jnp.where(mask, scores, 0.0), axis=1, keepdims=True) / items
    return jnp.sum(jnp.where(mask, (scores - mean) ** 2, 0.0), axis=1) / items[:, 0]


def _is_first_of_its_kind(tokens: Array, length: Array) -> Array:
    """Whether no earlier rationale of the item has the same tokens, as far as a 32-bit hash tells: bool [U, N, G]."""
    width = tokens.shape[-1]
    real = jnp.arange(width) < length[..., None]
    of_token = (tokens.astype(jnp.uint32) + 1) * FACTOR
    of_token ^= of_token >> 15
    place = jnp.asarray(np.cumprod(np.full(width, FACTOR, np.uint32), dtype=np.uint32))
    code = jnp.sum(jnp.where(real, of_token * place, 0), axis=-1, dtype=jnp.uint32)  # [U, N, G]
    earlier = np.tri(tokens.shape[2], k=-1, dtype=bool)  # [G, G]
    return ~jnp.any((code[..., :, None] == code[..., None, :]) & earlier, axis=-1)
