"""Decoding with caches writes what reading whole rows says, row by row and whatever stands beside the row."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rank_jax.model.forward import judge
from r2rank_jax.rollout.generate import generate
from r2rank_jax.rollout.sampling import row_keys, sample_token
from r2rank_jax.types import ListBatch
from tests.support.tiny_models import QWEN2, QWEN3, make_batch, make_params, read_alone

STOP = 3
SETTINGS = {"rationales": 3, "max_tokens": 6, "stop_token": STOP, "temperature": 0.8}


def take(batch: ListBatch, users=slice(None), items=slice(None)) -> ListBatch:
    """Some users and items of a batch."""
    return ListBatch(
        user=batch.user[users],
        position=batch.position[users],
        items=batch.items[users][:, items],
        prefix=batch.prefix[users],
        prefix_length=batch.prefix_length[users],
        suffix=batch.suffix[users][:, items],
        suffix_length=batch.suffix_length[users][:, items],
        labels=batch.labels[users][:, items],
        mask=batch.mask[users][:, items],
    )


@functools.cache
def compiled(config, **changes):
    return jax.jit(lambda p, b, k: generate(config, p, b, k, **(SETTINGS | changes)))


def spoken(config=QWEN2, batch=None, key=None, **changes):
    params = make_params(config)
    batch = make_batch(config)[0] if batch is None else batch
    key = jax.random.key(5) if key is None else key
    return params, batch, compiled(config, **changes)(params, batch, key)


@pytest.mark.slow
def test_log_probabilities_and_scores_are_the_trainers():
    for config in (QWEN2, QWEN3, dataclasses.replace(QWEN3, score_reads="words")):
        params, batch, out = spoken(config)
        seen = jax.jit(
            lambda p, b=batch, r=out.rationales, c=config: judge(c, p, b, r, temperature=SETTINGS["temperature"])
        )(params)
        np.testing.assert_allclose(out.logp, seen.logp, atol=1e-5)
        real = np.asarray(batch.mask)
        np.testing.assert_allclose(np.asarray(out.scores)[real], np.asarray(seen.scores)[real], atol=1e-5)


def test_rows_end_at_the_stop_token_or_are_marked_truncated():
    _, batch, out = spoken(max_tokens=12, temperature=3.0)
    tokens, length, stopped = (
        np.asarray(x) for x in (out.rationales.tokens, out.rationales.length, out.rationales.stopped)
    )
    seen = {True: 0, False: 0}
    for u, n, g in np.ndindex(*length.shape):
        row, end = tokens[u, n, g], length[u, n, g]
        if not batch.mask[u, n]:
            assert end == 0 and not stopped[u, n, g]
            continue
        seen[bool(stopped[u, n, g])] += 1
        assert (row[end - 1] == STOP) == stopped[u, n, g]
        assert STOP not in row[: end - 1] and not row[end:].any()
        assert stopped[u, n, g] or end == 12
    assert seen[True] and seen[False], "the test needs rows of both kinds"


@pytest.mark.slow
def test_greedy_takes_the_most_likely_token_each_time():
    config = QWEN2
    params, batch = make_params(config), make_batch(config)[0]
    run = jax.jit(lambda p: generate(config, p, batch, None, rationales=1, max_tokens=4, stop_token=STOP))
    rationales = run(params).rationales
    logits, _ = jax.jit(lambda p: read_alone(config, p, batch, rationales))(params)
    alive = (np.arange(4) < np.asarray(rationales.length)[..., None]) & np.asarray(batch.mask)[:, :, None, None]
    best = np.asarray(jnp.argmax(logits, axis=-1))
    assert alive.sum() > 10
    np.testing.assert_array_equal(np.asarray(rationales.tokens)[alive], best[alive])


@pytest.mark.slow
def test_a_row_does_not_depend_on_its_neighbours_or_its_place():
    _, batch, out = spoken()
    tokens = np.asarray(out.rationales.tokens)
    for users, items in ((slice(None, None, -1), slice(None)), (slice(0, 1), slice(None)), (slice(None), [2, 0, 1])):
        _, _, again = spoken(batch=take(batch, users, items))
        np.testing.assert_array_equal(np.asarray(again.rationales.tokens), tokens[users][:, items])
    _, _, other = spoken(key=jax.random.key(6))
    assert (np.asarray(other.rationales.tokens) != tokens).any()


def test_sampled_tokens_follow_the_distribution():
    """Chi-squared against softmax(logits), on a vocabulary that is no multiple of the sampler's block."""
    vocabulary, rows = 45, 60_000
    logits = jnp.asarray(np.random.default_rng(0).normal(size=vocabulary) * 1.5, jnp.float32).at[7].set(-jnp.inf)
    user, items = jnp.arange(rows // 20), jnp.arange(rows // 2).reshape(-1, 10)
    keys = row_keys(jax.random.key(1), user, jnp.zeros_like(user), items, 2)
    drawn = jax.jit(sample_token)(keys, jnp.broadcast_to(logits, (*keys.shape, vocabulary)), jnp.int32(3))
    counts = np.bincount(np.asarray(drawn).ravel(), minlength=vocabulary)
    expected = np.asarray(jax.nn.softmax(logits), np.float64) * rows
    assert counts[7] == 0 and counts.sum() == rows
    keep = expected > 5
    statistic = ((counts - expected)[keep] ** 2 / expected[keep]).sum()
    freedom = keep.sum() - 1
    assert statistic < freedom + 4 * np.sqrt(2 * freedom), statistic


def test_lists_of_one_user_share_no_noise():
    """Lists 0 to 3 are of one user: two positions, and one of them three times, as where one epoch meets the next."""
    key, user, position = jax.random.key(0), jnp.array([5, 5, 5, 5, 6]), jnp.array([3, 9, 3, 3, 3])
    items = jnp.tile(jnp.arange(4), (5, 1))
    keys = np.asarray(jax.random.key_data(row_keys(key, user, position, items, 2))).reshape(-1, 2)
    assert len(np.unique(keys, axis=0)) == 5 * 4 * 2
    alone = row_keys(key, user[1:2], position[1:2], items[1:2], 2)
    np.testing.assert_array_equal(jax.random.key_data(alone).reshape(-1, 2), keys[8:16])


@pytest.mark.slow
def test_every_row_and_place_has_its_own_random_number():
    keys = row_keys(jax.random.key(0), jnp.arange(4), jnp.zeros(4, jnp.int32), jnp.arange(24).reshape(4, 6), 3)
    flat = jnp.zeros((*keys.shape, 1000))
    drawn = np.concatenate([np.asarray(sample_token(keys, flat, jnp.int32(t))).ravel() for t in range(3)])
    assert len(np.unique(drawn)) > 0.8 * len(drawn)
