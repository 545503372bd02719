"""Tiny models and batches of prompts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from r2rank_jax.config import ModelConfig
from r2rank_jax.model.transformer import extend, initial_params, scores, vocabulary_kernel
from r2rank_jax.types import ListBatch, Rationales

QWEN2 = ModelConfig(
    vocabulary=50, width=24, layers=2, heads=4, kv_heads=2, head_size=6, mlp_width=40, attention_bias=True
)
QWEN3 = dataclasses.replace(QWEN2, attention_bias=False, qk_norm=True, tied_embeddings=False)


def make_params(config, seed=0):
    """Random parameters whose score head and biases are large enough to show a mistake."""
    params = meta.unbox(initial_params(config, jax.random.key(seed)))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return jax.tree.unflatten(tree, [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)])


def make_batch(config, users=2, items=3, groups=2, prefix=7, suffix=5, said=4, seed=0):
    """A batch with segments of every length, and one masked item."""
    rng = np.random.default_rng(seed)
    token = lambda *shape: jnp.asarray(rng.integers(2, config.vocabulary, shape), jnp.int32)  # noqa: E731
    length = lambda high, *shape: jnp.asarray(rng.integers(1, high + 1, shape), jnp.int32)  # noqa: E731
    mask = np.ones((users, items), bool)
    mask[0, -1] = False
    batch = ListBatch(
        user=jnp.arange(users, dtype=jnp.int32),
        position=jnp.full((users,), 3, jnp.int32),
        items=jnp.asarray(rng.permutation(100)[: users * items].reshape(users, items), jnp.int32),
        prefix=token(users, prefix),
        prefix_length=length(prefix, users),
        suffix=token(users, items, suffix),
        suffix_length=length(suffix, users, items),
        labels=jnp.asarray(rng.integers(0, 2, (users, items)), jnp.float32),
        mask=jnp.asarray(mask),
    )
    rationales = Rationales(
        tokens=token(users, items, groups, said),
        length=length(said, users, items, groups),
        stopped=jnp.ones((users, items, groups), bool),
    )
    return batch, rationales


def read_alone(config, params, batch, rationales):
    """Oracle: every prompt written out whole, without gaps, in a row of its own that shares nothing.

    Returns:
        logits [U, N, G, T, V] that predict each rationale token, and the score of each rationale [U, N, G].
    """
    # Whole arrays, so that this also runs while `params` is traced.
    batch, rationales = jax.tree.map(np.asarray, (batch, rationales))
    shape = rationales.tokens.shape
    rows = list(np.ndindex(*shape[:3]))
    widest = batch.prefix.shape[-1] + batch.suffix.shape[-1] + shape[-1]
    tokens, real = np.zeros((len(rows), widest), np.int32), np.zeros((len(rows), widest), bool)
    first, last = np.zeros(len(rows), np.int32), np.zeros(len(rows), np.int32)
    for row, (u, n, g) in enumerate(rows):
        said = rationales.tokens[u, n, g][: max(1, int(rationales.length[u, n, g]))]
        before = [*batch.prefix[u][: batch.prefix_length[u]]]
        before += [*batch.suffix[u, n][: batch.suffix_length[u, n]]]
        tokens[row, : len(before) + len(said)] = [*before, *said]
        real[row, : len(before) + len(said)] = True
        first[row], last[row] = len(before), len(before) + len(said) - 1
    lead = lambda x: jnp.asarray(x)[:, None, None]  # noqa: E731
    positions = jnp.broadcast_to(jnp.arange(widest), tokens.shape)
    hidden = extend(config, params, lead(tokens), lead(positions), lead(real))[0][:, 0, 0]
    places = np.minimum(first[:, None] - 1 + np.arange(shape[-1]), widest - 1)
    logits = jnp.take_along_axis(hidden, places[..., None], axis=1) @ vocabulary_kernel(params).T
    if config.score_reads == "words":  # the rationale once more, as if nothing came before it
        words = np.zeros((len(rows), shape[-1]), np.int32)
        for row, (u, n, g) in enumerate(rows):
            words[row] = rationales.tokens[u, n, g]
        last = np.maximum(rationales.length, 1).reshape(-1) - 1
        places = jnp.broadcast_to(jnp.arange(shape[-1]), words.shape)
        hidden = extend(config, params, lead(words), lead(places), lead(places <= last[:, None]))[0][:, 0, 0]
    score = scores(params, hidden[np.arange(len(rows)), last])
    return logits.reshape(*shape, -1), score.reshape(shape[:3])
