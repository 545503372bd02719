"""Gradient estimators: exact unbiasedness by enumeration, variance, extremes."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rank_jax.ranking import log_prob, ndcg, sample, surrogate
from r2rank_jax.ranking.estimators import surrogate_of_rankings
from r2rank_jax.ranking.expectation import prepare

SAMPLED = ("reinforce", "reward_to_go", "pl_rank")
ALL = (*SAMPLED, "exact")

SCORES = np.array([0.3, -1.1, 0.9, np.nan, 0.2], np.float32)
LABELS = np.array([0, 2, 1, 3, 0])
MASK = np.array([True, True, True, False, True])


def rankings_and_probs(num_places):
    """Every ranking `sample` can return for the list above (masked item 3 last), with its probability."""
    rankings = np.asarray([(*p, 3)[:num_places] for p in itertools.permutations([0, 1, 2, 4])], np.int32)
    rankings = np.unique(rankings, axis=0)
    return rankings, np.exp(np.asarray(log_prob(SCORES, rankings, MASK), np.float64))


@pytest.mark.parametrize(("estimator", "k"), [*((e, 2) for e in SAMPLED), ("pl_rank", None)])
def test_unbiased_over_all_pairs_of_rankings(oracle, estimator, k):
    """Value and gradient, weighted by the probability of each pair of samples, equal V and ∇V exactly."""
    rankings, probs = rankings_and_probs(5 if k is None else k)
    np.testing.assert_allclose(probs.sum(), 1.0, atol=1e-6)
    first, second = np.meshgrid(np.arange(len(rankings)), np.arange(len(rankings)), indexing="ij")
    pairs = jnp.asarray(np.stack([rankings[first.ravel()], rankings[second.ravel()]], axis=1))  # [R², M=2, K]
    weights = probs[first.ravel()] * probs[second.ravel()]

    def loss(scores, pair):
        scores, gains, real = prepare(scores, LABELS, MASK, k)
        return surrogate_of_rankings(scores, gains, real, pair, estimator)

    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(loss), (None, 0)))(jnp.asarray(SCORES), pairs)
    np.testing.assert_allclose(weights @ np.asarray(values), oracle.value(SCORES, LABELS, MASK, k), atol=2e-6)
    want = oracle.gradient(SCORES, LABELS, MASK, k)
    np.testing.assert_allclose(weights @ np.asarray(gradients), want, atol=3e-6)
    assert np.abs(want).max() > 0.02 and want[3] == 0


@functools.partial(jax.jit, static_argnames=("estimator",))
def value_and_gradient(key, scores, labels, mask, *, estimator):
    """Four samples, k = 3; the tests share the shape [4000, 6], to compile once per estimator."""

    def total(scores):
        value = surrogate(key, scores, labels, mask, estimator=estimator, num_samples=4, k=3)
        return value.sum(), value

    gradient, value = jax.grad(total, has_aux=True)(scores)
    return value, gradient


def tiled(row):
    """A list, or a few, repeated to [4000, N]."""
    row = np.atleast_2d(row)
    return np.tile(row, (4000 // len(row), 1))


@pytest.mark.parametrize("estimator", SAMPLED)
def test_sampled_gradient_mean_within_four_standard_errors(oracle, estimator):
    """The whole path, with its own sampling."""
    scores, labels = (
        np.random.default_rng(0).normal(size=6).astype(np.float32),
        np.array([0, 0, 1, 0, 0, 2.0]),
    )
    args = tiled(scores), tiled(labels), tiled(np.ones(6, bool))
    values, gradients = map(np.asarray, value_and_gradient(jax.random.key(1), *args, estimator=estimator))
    for got, want in (
        (values[:, None], [oracle.value(scores, labels, None, 3)]),
        (gradients, oracle.gradient(scores, labels, None, 3)),
    ):
        assert (np.abs(got.mean(0) - want) < 4 * got.std(0) / np.sqrt(4000)).all()


@pytest.mark.parametrize("estimator", SAMPLED)
def test_value_is_the_mean_reward_of_the_samples(estimator):
    key, scores = jax.random.key(5), tiled(np.float32([[0.1, 2.0, -1.0, 0.5, 0.0, 0.3]]))
    labels, mask = tiled(np.array([0, 0, 2, 1, 0, 0.0])), tiled(np.ones(6, bool))
    rankings = sample(key, scores, mask, num_samples=4, k=3)
    want = ndcg(rankings, labels[:, None], k=3).mean(-1)
    got, _ = value_and_gradient(key, scores, labels, mask, estimator=estimator)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_per_place_baselines_cut_variance():
    """With a cut-off, per-place baselines beat whole-list ones."""
    args = tiled(np.zeros(6, np.float32)), tiled(np.array([4, 3, 2, 1, 0, 0.0])), tiled(np.ones(6, bool))
    variances = {
        estimator: np.asarray(value_and_gradient(jax.random.key(2), *args, estimator=estimator)[1]).var(0).sum()
        for estimator in ("reinforce", "reward_to_go")
    }
    assert variances["reward_to_go"] < 0.7 * variances["reinforce"]


def test_pl_rank_matches_the_published_sum_without_centring():
    """λ_i = G_{r_i+1} + e^{s_i}(g_i a − b) in float64; centring removes c · (the same with all gains 1)."""
    rng = np.random.default_rng(3)
    scores, gains = rng.normal(size=5), np.array([0.5, 0.0, 0.2, 0.0, 0.1])
    ranking, weights = np.array([3, 0, 4]), 1 / np.log2(np.arange(2, 5))

    def published(gains):
        out, left = np.zeros(5), list(range(5))
        for q, i in enumerate(ranking):
            to_go = sum(weights[p] * gains[ranking[p]] for p in range(q, 3))
            total = sum(np.exp(scores[j]) for j in left)
            for j in left:
                out[j] += np.exp(scores[j]) * (weights[q] * gains[j] - to_go) / total
            out[i] += to_go - weights[q] * gains[i]
            left.remove(i)
        return out

    want = published(gains) - gains.mean() * published(np.ones(5))
    real, rankings = jnp.ones(5, bool), jnp.asarray(ranking)[None]
    args = jnp.asarray(gains, jnp.float32), real, rankings, "pl_rank"
    got = jax.jit(jax.grad(lambda s: surrogate_of_rankings(s, *args)))(jnp.asarray(scores, jnp.float32))
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("estimator", ALL)
def test_extreme_masked_and_empty_lists(estimator):
    nan, inf = np.nan, np.inf
    scores = np.float32([[1e4, 0, -1e4, 50], [-320, -200, nan, inf], [-inf, 0, 0, 0], [nan] * 4, [1, 2, 3, 4]])
    labels = np.float32([[0, 1, 0, 0], [1, 0, 5, nan], [1, 0, 0, 0], [nan] * 4, [0] * 4])
    mask = np.array([[1] * 4, [1, 1, 0, 0], [1] * 4, [0] * 4, [1] * 4], bool)
    scores, labels = (np.pad(x, ((0, 0), (0, 2)), constant_values=nan) for x in (scores, labels))
    mask = np.pad(mask, ((0, 0), (0, 2)))
    args = tiled(scores), tiled(labels), tiled(mask)
    value, gradient = value_and_gradient(jax.random.key(0), *args, estimator=estimator)
    value, gradient = np.asarray(value)[:5], np.asarray(gradient)[:5]
    want = [0.5, 1 / np.log2(3), 0.0, 0.0, 0.0]  # certain rankings: places 3, 2 and 4 of k = 3
    np.testing.assert_allclose(value, want, atol=2e-6)
    assert np.isfinite(gradient).all()
    assert (gradient[~mask] == 0).all()
    np.testing.assert_allclose(gradient[3:], np.zeros((2, 6)), atol=1e-7)


@pytest.mark.parametrize("estimator", ALL)
def test_a_constant_reward_has_no_gradient(estimator):
    mask = np.array([True, True, True, False, False, False])
    scores = np.random.default_rng(4).normal(size=6).astype(np.float32)
    args = tiled(scores), tiled(np.ones(6)), tiled(mask)
    value, gradient = value_and_gradient(jax.random.key(7), *args, estimator=estimator)
    np.testing.assert_allclose(value, np.ones(4000), atol=2e-6)
    np.testing.assert_allclose(gradient, np.zeros((4000, 6)), atol=2e-6)


def test_eager_equals_jit():
    scores, labels = (
        np.random.default_rng(4).normal(size=(3, 5)).astype(np.float32),
        np.array([1, 0, 0, 2, 0.0]),
    )

    def grad(scores):
        return jax.grad(
            lambda s: surrogate(jax.random.key(7), s, labels, estimator="reinforce", num_samples=2, k=1).sum()
        )(scores)

    eager = grad(scores)
    np.testing.assert_allclose(jax.jit(grad)(scores), eager, atol=1e-6)
    assert np.abs(eager).max() > 1e-3


def test_errors():
    key, scores, labels = jax.random.key(0), jnp.zeros(3), jnp.array([0, 1, 0])
    with pytest.raises(ValueError, match="estimator must be one of"):
        surrogate(key, scores, labels, estimator="magic", num_samples=2)
    with pytest.raises(ValueError, match=r"at least 2; got 1; raise it"):
        surrogate(key, scores, labels, estimator="reinforce", num_samples=1)
