"""Sharing a prefix changes nothing: against whole prompts read one by one, values and gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rank_jax.config import MeshConfig
from r2rank_jax.model.forward import judge, prefix_forward, words_forward, words_scores
from r2rank_jax.model.logprobs import TokenLoss, token_loss, token_statistics
from r2rank_jax.sharding import make_mesh, replicated, users
from tests.support.tiny_models import QWEN2, QWEN3, make_batch, make_params, read_alone

LLAMA = dataclasses.replace(QWEN2, attention_bias=False, kv_heads=4)
WORDS = dataclasses.replace(QWEN3, score_reads="words")


def judge_alone(config, params, batch, rationales, temperature=1.0):
    """What `judge` must find, by the oracle."""
    logits, score = read_alone(config, params, batch, rationales)
    logp = jax.nn.log_softmax(logits / temperature)
    logp = jnp.take_along_axis(logp, rationales.tokens[..., None], -1)[..., 0]
    real = jnp.arange(logp.shape[-1]) < rationales.length[..., None]
    return jnp.where(real & batch.mask[:, :, None, None], logp, 0.0), score


def weighted(logp, score, mask):
    """A sum in which every log-probability and every score counts differently."""
    u, n, g, t = np.ogrid[tuple(slice(size) for size in logp.shape)]
    weight = (3 * u + 5 * n + 2 * g + t) % 7 + 1.0
    own = ((3 * u + 5 * n + 2 * g) % 7 + 1.0)[..., 0]
    return jnp.sum(logp * weight) + jnp.sum(jnp.where(mask[:, :, None], score * own, 0.0))


def weighted_judge(config, params, batch, rationales):
    found = judge(config, params, batch, rationales)
    return weighted(found.logp, found.scores, batch.mask)


@pytest.mark.slow
@pytest.mark.parametrize("config", [QWEN2, QWEN3, LLAMA, WORDS], ids=["qwen2", "qwen3", "llama", "words"])
def test_shared_prefix_equals_independent_prompts(config):
    params, (batch, rationales) = make_params(config), make_batch(config)
    found = jax.jit(lambda p: judge(config, p, batch, rationales, temperature=0.7))(params)
    logp, score = jax.jit(lambda p: judge_alone(config, p, batch, rationales, temperature=0.7))(params)
    np.testing.assert_allclose(found.logp, logp, atol=2e-5)
    real = np.asarray(batch.mask)
    np.testing.assert_allclose(np.asarray(found.scores)[real], np.asarray(score)[real], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("config", [QWEN3, WORDS], ids=["context", "words"])
def test_gradients_of_the_shared_prefix_equal_those_of_independent_prompts(config):
    params, (batch, rationales) = make_params(config), make_batch(config)
    shared = jax.jit(jax.grad(lambda p: weighted_judge(config, p, batch, rationales)))(params)
    alone = jax.jit(jax.grad(lambda p: weighted(*judge_alone(config, p, batch, rationales), batch.mask)))(params)  # type: ignore[call-arg]
    for (path, a), b in zip(jax.tree.leaves_with_path(shared), jax.tree.leaves(alone)):
        error = float(jnp.linalg.norm(a - b) / (jnp.linalg.norm(b) + 1e-12))
        assert error < 1e-5, (jax.tree_util.keystr(path), error)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "dots", "block"])
def test_a_loop_over_the_layers_equals_layers_written_out(monkeypatch, remat):
    config = QWEN3
    params, (batch, rationales) = make_params(config), make_batch(config)
    looped = dataclasses.replace(config, remat=remat)
    step = lambda c: jax.value_and_grad(lambda p: weighted_judge(c, p, batch, rationales))  # noqa: E731
    expected = jax.jit(step(config))(params)
    assert "scan" not in str(jax.make_jaxpr(lambda p: extend_prefix(config, p, batch))(params))
    monkeypatch.setattr("r2rank_jax.model.transformer.LOOPED_LAYERS", 2)
    assert "scan" in str(jax.make_jaxpr(lambda p: extend_prefix(config, p, batch))(params))
    found = jax.jit(step(looped))(params)
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected)):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b), jax.tree_util.keystr(path)


def extend_prefix(config, params, batch):
    return prefix_forward(config, params, batch.prefix, batch.prefix_length).k


@pytest.mark.slow
@pytest.mark.parametrize("config", [QWEN2, WORDS], ids=["context", "words"])
def test_padding_and_masked_items_change_nothing(config):
    params, (batch, rationales) = make_params(config), make_batch(config)
    pad = lambda x, n: jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, n)], constant_values=7)  # noqa: E731
    other = dataclasses.replace(
        batch,
        prefix=pad(batch.prefix, 3),
        suffix=pad(batch.suffix, 2).at[0, -1].set(9),
        suffix_length=batch.suffix_length.at[0, -1].set(0),
    )
    longer = dataclasses.replace(rationales, tokens=pad(rationales.tokens, 2))
    a = jax.jit(lambda p: judge(config, p, batch, rationales))(params)
    b = jax.jit(lambda p: judge(config, p, other, longer))(params)
    real = np.asarray(batch.mask)
    np.testing.assert_allclose(np.asarray(a.scores)[real], np.asarray(b.scores)[real], atol=1e-5)
    np.testing.assert_allclose(a.logp, b.logp[..., :-2], atol=1e-5)
    assert float(jnp.abs(b.logp[..., -2:]).max()) == 0 and float(jnp.abs(b.logp[0, -1]).max()) == 0
    grads = [
        jax.jit(jax.grad(lambda p, x=x: weighted_judge(config, p, *x)))(params)
        for x in ((batch, rationales), (other, longer))
    ]
    for x, y in zip(*map(jax.tree.leaves, grads)):
        np.testing.assert_allclose(x, y, atol=1e-4)


def test_a_head_that_reads_words_does_not_see_user_and_item():
    params, (batch, rationales) = make_params(WORDS), make_batch(WORDS)
    other = dataclasses.replace(batch, prefix=(batch.prefix + 3) % 11, suffix=(batch.suffix + 5) % 11)
    score = jax.jit(lambda batch: judge(WORDS, params, batch, rationales).scores)
    real = np.asarray(batch.mask)
    np.testing.assert_array_equal(np.asarray(score(batch))[real], np.asarray(score(other))[real])
    context = jax.jit(lambda batch: judge(QWEN3, params, batch, rationales).scores)
    assert np.abs(np.asarray(context(batch) - context(other))[real]).min() > 1e-6, "which the other head does"


@pytest.mark.parametrize("tokens", [1, 60, 10**6])
def test_words_are_scored_alike_some_items_at_a_time(monkeypatch, tokens):
    params, (_, rationales) = make_params(WORDS), make_batch(WORDS)
    expected = words_forward(WORDS, params, rationales) @ params["score_head"]
    monkeypatch.setattr("r2rank_jax.model.forward.WORDS_TOKENS", tokens)
    np.testing.assert_allclose(words_scores(WORDS, params, rationales), expected, atol=1e-6)


@pytest.mark.slow
def test_score_gradient_stops_at_the_head_unless_joint():
    config = QWEN2
    params, (batch, rationales) = make_params(config), make_batch(config)

    def gradient(joint):
        return jax.jit(jax.grad(lambda p: jnp.sum(judge(config, p, batch, rationales, joint=joint).scores)))(params)

    alone, joint = gradient(False), gradient(True)
    assert float(jnp.abs(alone["embedding"]).max()) == 0 and float(jnp.abs(joint["embedding"]).max()) > 0
    np.testing.assert_allclose(alone["score_head"], joint["score_head"], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_tokens", [1, 6, 12, 99])
@pytest.mark.parametrize("lengths", [(4, 7, 1), (0, 0, 0), (7, 7, 7), (2, 0, 5)])
def test_packed_token_statistics_and_their_gradients_equal_plain_ones(chunk_tokens, lengths):
    keys = jax.random.split(jax.random.key(0), 6)
    hidden, kernel = 0.5 * jax.random.normal(keys[0], (3, 7, 8)), jax.random.normal(keys[1], (11, 8))
    reference = jax.random.normal(keys[4], (3, 7, 5)), jax.random.normal(keys[5], (11, 5))
    targets = jax.random.randint(keys[2], (3, 7), 0, 11)
    real = jnp.arange(7) < jnp.array(lengths)[:, None]
    real = jnp.take_along_axis(real, jnp.argsort(jax.random.uniform(keys[3], (3, 7)), axis=1), axis=1)
    weight = (jnp.arange(21.0).reshape(3, 7) - 9) / 9

    def total(logp, entropy, kl):
        return jnp.sum(logp * weight) + jnp.sum(entropy**2) + jnp.sum(kl * weight**2)

    def packed(h, k):
        return total(*token_statistics(h, k, targets, real, reference, temperature=0.5, chunk_tokens=chunk_tokens))

    def of_token(found, weight, square):
        return found.logp * weight + square * found.entropy**2 + 2 * found.kl * weight**2

    def at_once(h, k):
        """Half of it, doubled: the factor outside counts, too."""
        loss = TokenLoss(of_token, weight / 2, jnp.float32(0.5))
        settings = {"temperature": 0.5, "chunk_tokens": chunk_tokens}
        return 2 * token_loss(loss, h, k, targets, real, reference, **settings)[0]

    def plain(h, k):
        log_p = jax.nn.log_softmax(h @ k.T / 0.5)
        log_q = jax.nn.log_softmax(reference[0] @ reference[1].T / 0.5)
        entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
        kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
        logp = jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
        return total(*(jnp.where(real, x, 0.0) for x in (logp, entropy, kl)))

    expected = jax.value_and_grad(plain, (0, 1))(hidden, kernel)
    for way in (packed, at_once):
        found = jax.jit(jax.value_and_grad(way, (0, 1)))(hidden, kernel)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
            np.testing.assert_allclose(a, b, rtol=5e-5, atol=2e-5)
    np.testing.assert_allclose(jax.jit(at_once)(hidden, kernel), expected[0], rtol=5e-5, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_tokens", [2, 99])
@pytest.mark.parametrize("padding", [jnp.nan, jnp.inf, 1e3])
def test_padding_may_hold_anything_and_gets_no_gradient(padding, chunk_tokens):
    """Users of unequal length, so that the chunks that are visited hold padding, too."""
    real = jnp.array([[True, False, False], [True, True, True]])
    clean = jax.random.normal(jax.random.key(0), (2, 3, 4))
    dirty = jnp.where(real[..., None], clean, padding)
    kernel, targets = jax.random.normal(jax.random.key(1), (5, 4)), jnp.zeros((2, 3), jnp.int32)

    def total(h, k, reference, _):
        found = token_statistics(h, k, targets, real, (reference, kernel), chunk_tokens=chunk_tokens)
        return sum(jnp.sum(part) for part in found)

    def at_once(h, k, reference, known):
        loss = TokenLoss(lambda found, known, _: known * (found.logp + found.entropy + found.kl), known, ())
        return token_loss(loss, h, k, targets, real, (reference, kernel), chunk_tokens=chunk_tokens)[0]

    for f in (total, at_once):
        expected = jax.value_and_grad(f, (0, 1))(clean, kernel, -clean, jnp.ones((2, 3)))
        found = jax.value_and_grad(f, (0, 1))(dirty, kernel, -dirty, jnp.where(real, 1.0, padding))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
            np.testing.assert_array_equal(a, b)
        assert not found[1][0][0, 1:].any() and np.abs(found[1][0][0, 0]).max() > 0


def test_a_policy_does_not_differ_from_itself():
    hidden, kernel = jax.random.normal(jax.random.key(0), (2, 3, 8)), jax.random.normal(jax.random.key(1), (11, 8))
    args = jnp.zeros((2, 3), jnp.int32), jnp.ones((2, 3), bool)
    np.testing.assert_allclose(token_statistics(hidden, kernel, *args, (hidden, kernel)).kl, 0, atol=1e-12)
    assert (token_statistics(hidden, kernel, *args, (-hidden, kernel)).kl > 0.1).all()
    assert not token_statistics(hidden, kernel, *args).kl.any()


def test_token_statistics_in_several_chunks_on_eight_devices_equal_one():
    mesh = make_mesh(MeshConfig(data=8))
    keys = jax.random.split(jax.random.key(0), 3)
    hidden, kernel = jax.random.normal(keys[0], (8, 12, 6)), jax.random.normal(keys[1], (20, 6))
    targets = jax.random.randint(keys[2], (8, 12), 0, 20)
    real = jnp.arange(12) < jnp.array([12, 1, 0, 5, 7, 3, 9, 2])[:, None]

    def total(h, k, t, r):
        return sum(jnp.sum(part**2) for part in token_statistics(h, k, t, r, (-h, k), chunk_tokens=32))

    step = jax.jit(jax.value_and_grad(total, (0, 1)))
    one = step(hidden, kernel, targets, real)
    split = [jax.device_put(x, users(mesh)) for x in (hidden, targets, real)]
    eight = step(split[0], jax.device_put(kernel, replicated(mesh)), *split[1:])
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
