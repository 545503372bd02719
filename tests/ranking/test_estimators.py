"""Gradient estimators: exact unbiasedness by enumeration, sample means, variance, the published form."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rank_jax.ranking import expected_ndcg, ndcg, sample, surrogate
from r2rank_jax.ranking.estimators import value_and_gradient
from r2rank_jax.ranking.expectation import value

SAMPLED = ("reinforce", "reward_to_go", "pl_rank")

SCORES = np.array([0.3, -1.1, 0.9, np.nan, 0.2, 1.4])
LABELS = np.array([0, 2, 1, 3, 0, 0])
MASK = np.array([True, True, True, False, True, True])


def float64_list(oracle, k):
    """Arguments of the internal functions for the list above: finite scores, and gains normalized by the oracle."""
    items = [i for i in range(6) if MASK[i]]
    gains, ideal = np.where(MASK, 2.0**LABELS - 1, 0.0), sorted((2.0 ** LABELS[items] - 1), reverse=True)[:k]
    gains = gains / sum(g / np.log2(r + 2) for r, g in enumerate(ideal))
    return np.where(MASK, SCORES, 0.0), gains


@pytest.mark.slow
@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize(("estimator", "k"), [(e, k) for e in SAMPLED for k in (2, 6)])
def test_unbiased_to_ten_digits_over_all_pairs_of_rankings(oracle, estimator, k, centered):
    """The mean of value and gradient over all pairs of samples, weighted by probability, equals V and ∇V in float64."""
    items = [0, 1, 2, 4, 5]
    rankings = np.unique(np.asarray([(*p, 3)[:k] for p in itertools.permutations(items)], np.int32), axis=0)
    probs = np.array([oracle.prob(SCORES, [i for i in r if i != 3], items) for r in rankings])
    assert abs(probs.sum() - 1) < 1e-12
    scores, gains = float64_list(oracle, k)
    first, second = np.meshgrid(np.arange(len(rankings)), np.arange(len(rankings)), indexing="ij")
    pairs = np.stack([rankings[first.ravel()], rankings[second.ravel()]], axis=1)  # [R², M=2, K]
    with jax.enable_x64(True):
        args = [jnp.broadcast_to(jnp.asarray(x), (len(pairs), 6)) for x in (scores, gains, MASK)]
        got = value_and_gradient(*args, jnp.asarray(pairs), estimator, centered_gains=centered)  # type: ignore[call-arg, misc]
    values, gradients = map(np.asarray, got)
    assert gradients.dtype == np.float64
    weights = probs[first.ravel()] * probs[second.ravel()]
    np.testing.assert_allclose(weights @ values, oracle.value(SCORES, LABELS, MASK, k), atol=1e-12)
    want = oracle.gradient(SCORES, LABELS, MASK, k)
    np.testing.assert_allclose(weights @ gradients, want, rtol=0, atol=1e-10)
    assert np.abs(want).max() > 0.02 and want[3] == 0
    # With the leave-one-out baselines, centering the gains does not change a single estimate.
    if estimator != "pl_rank" and not centered:
        with jax.enable_x64(True):
            other = value_and_gradient(*args, jnp.asarray(pairs), estimator, centered_gains=True)[1]  # type: ignore[call-arg, misc]
        np.testing.assert_allclose(gradients, other, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "tolerance"), [("enumerate", 1e-10), ("subset_dp", 1e-10), ("quadrature", 2e-7)])
def test_exact_gradient_in_float64(oracle, method, tolerance):
    scores, gains = float64_list(oracle, 4)
    with jax.enable_x64(True):
        arrays = [jnp.asarray(x) for x in (gains, MASK)]
        got, slope = jax.value_and_grad(lambda s: value(s, *arrays, 4, method))(jnp.asarray(scores))  # type: ignore[call-arg]
    assert slope.dtype == np.float64
    np.testing.assert_allclose(got, oracle.value(SCORES, LABELS, MASK, 4), rtol=0, atol=tolerance)
    np.testing.assert_allclose(slope, oracle.gradient(SCORES, LABELS, MASK, 4), rtol=0, atol=tolerance)


@functools.partial(jax.jit, static_argnames=("estimator", "k", "centered_gains"))
def with_sampling(key, scores, labels, mask, *, estimator, k=3, centered_gains=True):
    """Value and gradient of the surrogate, four rankings per list."""

    def total(scores):
        options = {"num_samples": 4, "k": k, "centered_gains": centered_gains}
        values = surrogate(key, scores, labels, mask, estimator=estimator, **options)
        return values.sum(), values

    gradient, values = jax.grad(total, has_aux=True)(scores)
    return values, gradient


def tiled(row, times=4000):
    """One or a few lists, repeated to [times, N]."""
    row = np.atleast_2d(row)
    return np.tile(row, (times // len(row), 1))


@pytest.mark.slow
@pytest.mark.parametrize("estimator", SAMPLED)
@pytest.mark.parametrize(("num_items", "k"), [(6, 3), (16, 2)])  # noise, and discarding repeats
def test_sample_mean_within_four_standard_errors(oracle, estimator, num_items, k):
    """The surrogate with its own sampling, 10⁵ rankings: 25,000 independent estimates from four rankings each."""
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=num_items).astype(np.float32), np.zeros(num_items)
    labels[[2, 5]] = 1, 2
    args = (tiled(x, 25_000) for x in (scores, labels, np.ones(num_items, bool)))
    values, gradients = map(np.asarray, with_sampling(jax.random.key(1), *args, estimator=estimator, k=k))
    for got, want in (
        (values[:, None], [oracle.value(scores, labels, None, k)]),
        (gradients, oracle.gradient(scores, labels, None, k)),
    ):
        assert (np.abs(got.mean(0) - want) < 4 * got.std(0) / np.sqrt(len(got))).all()
        assert (
            np.abs(want).max() > 10 * (got.std(0) / np.sqrt(len(got))).max()
        )  # so that four errors are a strict bound


@pytest.mark.slow
@pytest.mark.parametrize("estimator", SAMPLED)
def test_value_is_the_mean_reward_of_the_samples(estimator):
    key, scores = jax.random.key(5), tiled(np.float32([[0.1, 2.0, -1.0, 0.5, 0.0, 0.3]]))
    labels, mask = tiled(np.array([0, 0, 2, 1, 0, 0.0])), tiled(np.ones(6, bool))
    rankings = sample(key, scores, mask, num_samples=4, k=3)
    want = ndcg(rankings, labels[:, None], k=3).mean(-1)
    got, _ = with_sampling(key, scores, labels, mask, estimator=estimator)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_baselines_and_centering_cut_variance():
    """If k < N, per-place baselines beat whole-list ones. PL-Rank has no baseline and needs centered gains."""
    args = tiled(np.zeros(6, np.float32)), tiled(np.array([4, 3, 2, 1, 0, 0.0])), tiled(np.ones(6, bool))

    def variance(estimator, **options):
        return np.asarray(with_sampling(jax.random.key(2), *args, estimator=estimator, **options)[1]).var(0).sum()

    assert variance("reward_to_go") < 0.7 * variance("reinforce")
    assert variance("pl_rank") < 0.8 * variance("pl_rank", centered_gains=False)


@pytest.mark.slow
@pytest.mark.parametrize("centered", [True, False])
def test_pl_rank_matches_the_published_sum(centered):
    """λ_i = G_{r_i+1} + e^{s_i}(g_i a − b) in float64; centering subtracts c times the same sum with all gains 1."""
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

    want = published(gains) - centered * gains.mean() * published(np.ones(5))
    with jax.enable_x64(True):
        arrays = jnp.asarray(scores), jnp.asarray(gains), jnp.ones(5, bool), jnp.asarray(ranking)[None]
        got = value_and_gradient(*arrays, "pl_rank", centered_gains=centered)[1]
    np.testing.assert_allclose(got, want, atol=1e-12)


@pytest.mark.parametrize("estimator", SAMPLED)
def test_certain_rankings_give_their_value_and_no_gradient(estimator):
    nan, inf = np.nan, np.inf
    scores = np.float32([[1e4, 0, -1e4, 50], [-320, -200, nan, inf], [-inf, 0, 0, 0], [nan] * 4, [1, 2, 3, 4]])
    labels = np.float32([[0, 1, 0, 0], [1, 0, 5, nan], [1, 0, 0, 0], [nan] * 4, [0] * 4])
    mask = np.array([[1] * 4, [1, 1, 0, 0], [1] * 4, [0] * 4, [1] * 4], bool)
    scores, labels = (np.pad(x, ((0, 0), (0, 2)), constant_values=nan) for x in (scores, labels))  # type: ignore[assignment]
    mask = np.pad(mask, ((0, 0), (0, 2)))
    args = tiled(scores), tiled(labels), tiled(mask)
    values, gradient = with_sampling(jax.random.key(0), *args, estimator=estimator)
    values, gradient = np.asarray(values)[:5], np.asarray(gradient)[:5]
    want = [0.5, 1 / np.log2(3), 0.0, 0.0, 0.0]  # places 3, 2 and 4 of k = 3
    np.testing.assert_allclose(values, want, atol=2e-6)
    np.testing.assert_allclose(gradient[[0, 1, 3, 4]], np.zeros((4, 6)), atol=1e-6)
    assert np.isfinite(gradient).all() and (gradient[~mask] == 0).all()


@pytest.mark.parametrize("estimator", SAMPLED)
def test_a_constant_reward_has_no_gradient(estimator):
    mask = np.array([True, True, True, False, False, False])
    scores = np.random.default_rng(4).normal(size=6).astype(np.float32)
    args = tiled(scores), tiled(np.ones(6)), tiled(mask)
    values, gradient = with_sampling(jax.random.key(7), *args, estimator=estimator)
    np.testing.assert_allclose(values, np.ones(4000), atol=2e-6)
    np.testing.assert_allclose(gradient, np.zeros((4000, 6)), atol=2e-6)


def test_exact_is_the_expectation():
    scores, labels = jnp.asarray([0.3, -1.0, 0.5]), jnp.asarray([0, 2, 1])
    got = surrogate(jax.random.key(0), scores, labels, estimator="exact", k=2)
    assert got == expected_ndcg(scores, labels, k=2)


@pytest.mark.slow
def test_errors():
    key, scores, labels = jax.random.key(0), jnp.zeros(3), jnp.array([0, 1, 0])
    with pytest.raises(ValueError, match="estimator must be one of"):
        surrogate(key, scores, labels, estimator="magic", num_samples=2)
    with pytest.raises(ValueError, match=r"at least 2; got 1; raise it"):
        surrogate(key, scores, labels, estimator="reinforce", num_samples=1)
    assert surrogate(key, jnp.zeros((0, 5)), jnp.zeros((0, 5)), estimator="pl_rank").shape == (0,)
    with pytest.raises(ValueError, match=r"num_samples must be at least 1; got 0; ask"):
        surrogate(key, scores, labels, estimator="pl_rank", num_samples=0)
