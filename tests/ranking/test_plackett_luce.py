"""Plackett-Luce density, sampling and mode."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rank_jax.ranking import log_prob, log_prob_per_place, mode, sample

LOG_PROB = jax.jit(log_prob)
VALUE_AND_GRADIENT = jax.jit(jax.vmap(jax.value_and_grad(log_prob), (None, 0)))


def test_hand_computed():
    # log P(2, 1, 0) = log[ e²/(1+e+e²) · e/(1+e) ]
    np.testing.assert_allclose(log_prob([0.0, 1.0, 2.0], jnp.array([2, 1, 0])), -0.720868, atol=2e-6)
    np.testing.assert_allclose(log_prob(np.zeros(5), jnp.arange(5)), -np.log(120.0), rtol=1e-6)
    np.testing.assert_allclose(log_prob([0, 1, 2], jnp.array([2, 1, 0])), -0.720868, atol=2e-6)


def test_masked_value_and_gradient_known_from_rax():
    scores, mask, ranking = (
        jnp.array([1.5, 0.3, jnp.nan]),
        jnp.array([True, True, False]),
        jnp.array([0, 1, 2]),
    )
    value, gradient = jax.value_and_grad(log_prob)(scores, ranking, mask)
    np.testing.assert_allclose(value, -0.263282, atol=1e-6)
    np.testing.assert_allclose(gradient, [0.231475, -0.231475, 0.0], atol=1e-6)


def test_matches_enumeration_full_and_top_k(oracle):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=5) * 3
    for length in (1, 3, 5):
        rankings = np.asarray(list(itertools.permutations(range(5), length)))
        got = LOG_PROB(scores, rankings)
        want = [np.log(oracle.prob(scores, r, range(5))) for r in rankings]
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(np.exp(got).sum(), 1.0, atol=2e-6)


def test_masked_item_anywhere_is_skipped(oracle):
    scores = np.array([0.4, np.inf, -1.0, 2.0])
    mask = np.array([True, False, True, True])
    want = np.log(oracle.prob(scores, [3, 0, 2], [0, 2, 3]))
    for ranking in ([3, 0, 2, 1], [1, 3, 0, 2], [3, 1, 0, 2]):
        np.testing.assert_allclose(LOG_PROB(scores, jnp.array(ranking), mask), want, atol=1e-6)
    per_place = log_prob_per_place(scores, jnp.array([3, 0, 2, 1]), mask)
    assert per_place[-1] == 0.0
    np.testing.assert_allclose(per_place[2], 0.0, atol=1e-7)  # the last real item is certain


def test_top_k_is_the_marginal_of_full_rankings():
    scores = np.random.default_rng(1).normal(size=6) * 2
    full = np.asarray([p for p in itertools.permutations(range(6)) if p[:2] == (4, 1)])
    np.testing.assert_allclose(
        np.exp(LOG_PROB(scores, full)).sum(), np.exp(LOG_PROB(scores, jnp.array([4, 1]))), rtol=1e-5
    )


@pytest.mark.parametrize("num_places", [2, 4])
@pytest.mark.parametrize(
    "scores",
    [
        [1e4, 0.0, -1e4, 5.0],
        [120.0, 0.0, 30.0, 60.0],
        [np.inf, -np.inf, 0.0, -np.inf],
        [-1e38, 1e38, 0.0, 1.0],
    ],
)
def test_extreme_scores_stay_finite(scores, num_places):
    rankings = np.asarray(list(itertools.permutations(range(4), num_places)))
    scores = jnp.asarray(scores, jnp.float32)
    value, gradient = VALUE_AND_GRADIENT(scores, rankings)
    assert np.isfinite(value).all() and np.isfinite(gradient).all()
    np.testing.assert_allclose(np.exp(value).sum(), 1.0, atol=1e-5)


def test_all_masked_list_is_certain_and_has_no_gradient():
    scores = jnp.full(4, jnp.nan)
    value, gradient = jax.jit(jax.value_and_grad(log_prob))(scores, jnp.arange(3), jnp.zeros(4, bool))
    assert value == 0.0
    np.testing.assert_array_equal(gradient, np.zeros(4))


def test_gradient_at_a_wide_gap_is_exact():
    # A clamp at 1e-8 would stop at −18.4; the log-probability of the upset is −30 and its slope is 1.
    value, gradient = jax.value_and_grad(log_prob)(jnp.array([30.0, 0.0]), jnp.array([1, 0]))
    np.testing.assert_allclose(value, -30.0, rtol=1e-6)
    np.testing.assert_allclose(gradient, [-1.0, 1.0], rtol=1e-6)


def test_broadcasting_jit_vmap_and_permutation():
    rng = np.random.default_rng(2)
    scores = jnp.asarray(rng.normal(size=(3, 1, 6)), jnp.float32)
    rankings = jnp.asarray(np.stack([[rng.permutation(6)[:4] for _ in range(5)] for _ in range(3)]))
    got = log_prob(scores, rankings)
    assert got.shape == (3, 5)
    np.testing.assert_allclose(got, LOG_PROB(scores, rankings), rtol=1e-6)
    loop = jax.jit(jax.vmap(jax.vmap(log_prob, (None, 0))))(scores[:, 0], rankings)
    np.testing.assert_allclose(got, loop, rtol=1e-6)
    new_place = np.asarray(rng.permutation(6))  # item i is now called new_place[i]
    moved = jnp.zeros_like(scores).at[..., new_place].set(scores)
    np.testing.assert_allclose(LOG_PROB(moved, new_place[rankings]), got, rtol=1e-5)


def test_float32_inside_whatever_comes_in():
    scores = jnp.asarray([1.0, 2.0, 3.0], jnp.bfloat16)
    assert log_prob(scores, jnp.array([0, 1, 2])).dtype == jnp.float32
    noisy = sample(jax.random.key(0), jnp.zeros(8, jnp.bfloat16), num_samples=4000, k=1)[:, 0]
    counts = np.bincount(np.asarray(noisy), minlength=8)  # bfloat16 noise would tie and favour low indices
    assert np.abs(counts - 500).max() < 4 * np.sqrt(500 * 7 / 8)


def test_samples_follow_the_distribution(oracle):
    scores, mask = np.array([0.5, np.nan, -0.7, 1.2]), np.array([True, False, True, True])
    num_samples = 20_000
    rankings = np.asarray(sample(jax.random.key(3), scores, mask, num_samples=num_samples))
    assert rankings.dtype == np.int32 and rankings.shape == (num_samples, 4)
    assert (rankings[:, -1] == 1).all()  # the masked item is last
    for ranking in itertools.permutations([0, 2, 3]):
        p = oracle.prob(scores, ranking, [0, 2, 3])
        freq = (rankings[:, :3] == ranking).all(-1).mean()
        assert abs(freq - p) < 4 * np.sqrt(p * (1 - p) / num_samples), ranking


def test_sample_shapes_cutoff_and_offset():
    scores = jnp.zeros((2, 3, 5))
    got = sample(jax.random.key(0), scores, num_samples=4, k=2)
    assert got.shape == (2, 3, 4, 2)
    assert sample(jax.random.key(0), scores, num_samples=4, k=9).shape == (2, 3, 4, 5)
    assert len(np.unique(np.asarray(got).reshape(-1, 2), axis=0)) > 5  # lists and samples draw their own noise
    shifted = sample(jax.random.key(0), scores + 1e6, num_samples=4, k=2)
    np.testing.assert_array_equal(got, shifted)  # a common offset does not swallow the noise


def test_mode():
    scores = jnp.array([[0.1, 9.0, jnp.nan, 3.0], [1.0, 1.0, 1.0, -jnp.inf]])
    mask = jnp.array([[True, True, False, True], [True, True, True, True]])
    np.testing.assert_array_equal(mode(scores, mask), [[1, 3, 0, 2], [0, 1, 2, 3]])
    np.testing.assert_array_equal(mode(scores, mask, k=2), [[1, 3], [0, 1]])
    assert mode(scores, mask).dtype == jnp.int32


def test_errors_name_requirement_input_and_remedy():
    with pytest.raises(ValueError, match=r"at most N=3 places; got 4; cut it"):
        log_prob(jnp.zeros(3), jnp.arange(4))
    with pytest.raises(ValueError, match="item indices"):
        log_prob(jnp.zeros(3), jnp.zeros(3))
    with pytest.raises(ValueError, match="mask must have as many items as scores: 3"):
        log_prob(jnp.zeros(3), jnp.arange(3), jnp.ones(2, bool))
    with pytest.raises(ValueError, match=r"num_samples must be at least 1; got 0"):
        sample(jax.random.key(0), jnp.zeros(3), num_samples=0)
    with pytest.raises(ValueError, match="positive integer; got k=0"):
        mode(jnp.zeros(3), k=0)
