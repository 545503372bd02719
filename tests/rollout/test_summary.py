"""The summary of a rollout against the same numbers computed rationale by rationale."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from r2rank_jax.rollout.decoding import Rollout
from r2rank_jax.rollout.summary import summary
from r2rank_jax.types import Rationales

U, N, G, T = 4, 5, 4, 6


def _rollout():
    rng = np.random.default_rng(0)
    return Rollout(
        rationales=Rationales(
            tokens=jnp.asarray(rng.integers(1, 3, (U, N, G, T)), jnp.int32),  # two words: many rationales are equal
            length=jnp.asarray(rng.integers(1, 4, (U, N, G)), jnp.int32),
            stopped=jnp.asarray(rng.random((U, N, G)) < 0.7),
        ),
        logp=jnp.zeros((U, N, G, T)),
        scores=jnp.asarray(rng.normal(size=(U, N, G)), jnp.float32),
    )


def test_summary_equals_the_numbers_of_single_rationales():
    rollout = _rollout()
    mask = np.ones((U, N), bool)
    mask[0, 3:], mask[3] = False, False  # a short list, and a user who only fills the batch
    batch = SimpleNamespace(mask=jnp.asarray(mask))

    lengths, truncated, distinct, within, between = [], [], [], [], []
    for user in range(U):
        means = []
        for item in np.flatnonzero(mask[user]):
            tokens, length = rollout.rationales.tokens[user, item], rollout.rationales.length[user, item]
            texts = {tuple(np.asarray(tokens[g, : length[g]])) for g in range(G)}
            lengths += list(np.asarray(length))
            truncated += list(~np.asarray(rollout.rationales.stopped[user, item]))
            distinct.append(len(texts) / G)
            scores = np.asarray(rollout.scores[user, item])
            within.append(scores.var())
            means.append(scores.mean())
        if means:
            between.append(np.var(means))
    expected = {
        "rationale_tokens": np.mean(lengths),
        "truncated": np.mean(truncated),
        "distinct": np.mean(distinct),
        "score_sd_within": np.sqrt(np.mean(within)),
        "score_sd_between": np.sqrt(np.mean(between)),
    }
    assert 0.3 < expected["distinct"] < 0.9  # the example holds both equal and different rationales

    got = jax.jit(lambda rollout, mask: summary(SimpleNamespace(mask=mask), rollout))(rollout, batch.mask)

    assert set(got) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)


def test_padding_beyond_the_length_does_not_make_rationales_different():
    rollout = _rollout()
    real = jnp.arange(T) < rollout.rationales.length[..., None]
    other = rollout.rationales.replace(tokens=jnp.where(real, rollout.rationales.tokens, 7))
    batch = SimpleNamespace(mask=jnp.ones((U, N), bool))

    assert summary(batch, rollout)["distinct"] == summary(batch, rollout.replace(rationales=other))["distinct"]
