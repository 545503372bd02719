"""The last word of a rationale, and what its score would be with each other word that is common there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from r2rank_jax.config import ModelConfig
from r2rank_jax.model.forward import words_scores
from r2rank_jax.types import Array, ListBatch, Params, Rationales


@struct.dataclass
class Verdicts:
    place: Array  # int32 [U, N, G]
    known: Array  # bool [U, N, G]
    scores: Array  # float32 [U, N, G, K]


def find_verdicts(config: ModelConfig, params: Params, batch: ListBatch, rationales: Rationales, count: int) -> tuple[Array, Verdicts]:
    tokens, length = rationales.tokens, rationales.length
    users, items, groups, most = tokens.shape
    place = jnp.maximum(length - 2, 0)
    last = jnp.take_along_axis(tokens, place[..., None], axis=-1)[..., 0]
    ends = rationales.stopped & (length >= 2) & batch.mask[:, :, None]
    counts = jnp.zeros(config.vocabulary, jnp.int32).at[last].add(ends.astype(jnp.int32))
    number, words = jax.lax.top_k(counts, count)
    known = ends & jnp.any((last[..., None] == words) & (number > 0), axis=-1)
    here = jnp.arange(most) == place[..., None]  # [U, N, G, T]
    other = jnp.where(here[..., None, :], words[:, None], tokens[..., None, :])  # [U, N, G, K, T]
    wide = lambda x: jnp.repeat(x, count, axis=2)  # noqa: E731
    variants = Rationales(other.reshape(users, items, groups * count, most), wide(length), wide(rationales.stopped))
    scores = words_scores(config, params, variants).reshape(users, items, groups, count)
    return words, Verdicts(place, known, scores)


def expected_scores(words: Array, verdicts: Verdicts, predicting: Array, kernel: Array, temperature: float) -> Array:
    """float32 [U, N, G], differentiable in predicting and kernel."""
    hidden = jnp.take_along_axis(predicting, verdicts.place[..., None, None], axis=-2)[..., 0, :]
    logits = jnp.einsum("ungd,kd->ungk", hidden.astype(jnp.float32), kernel[words].astype(jnp.float32)) / temperature
    return jnp.sum(jax.nn.softmax(logits, axis=-1) * verdicts.scores, axis=-1)
