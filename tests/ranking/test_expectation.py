"""Expected NDCG: four methods that must agree."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rank_jax.ranking import expected_ndcg, rank_marginals, swapped_expected_ndcg
from r2rank_jax.ranking.expectation import value

METHODS = ("enumerate", "subset_dp", "quadrature", "auto")
# About ten float32 rounding errors of numbers near 1.
TOLERANCE = 1e-6


@functools.partial(jax.jit, static_argnames=("k", "method"))
def value_and_gradient(scores, labels, mask, *, k, method):
    """Values [B] and gradients [B, N]; the tests share the shape [6, 5], to compile once."""

    def total(scores):
        values = expected_ndcg(scores, labels, mask, k=k, method=method)
        return values.sum(), values

    gradient, values = jax.grad(total, has_aux=True)(scores)
    return values, gradient


def float32(*arrays):
    return tuple(np.asarray(x, np.float32) for x in arrays)


def random_lists(num_lists=6, num_items=5, spread=2.0, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(num_lists, num_items)) * spread
    labels = rng.integers(0, 3, size=(num_lists, num_items)).astype(float)
    mask = rng.random((num_lists, num_items)) > 0.25
    mask[0] = True
    scores[~mask] = np.nan
    labels[~mask] = np.nan
    return (*float32(scores, labels), mask)


@pytest.mark.parametrize("method", METHODS)
def test_hand_computed(method):
    # Scores 0, 1, 2 and gains 3, 1, 0: E[DCG] = 2.405988, and the ideal is 3 + 1/log2(3). Items 3, 4 pad.
    scores, labels = (np.tile(x, (6, 1)) for x in float32([0, 1, 2, 9, 9], [2, 1, 0, 9, 9]))
    mask = np.tile([True, True, True, False, False], (6, 1))
    values, gradient = value_and_gradient(scores, labels, mask, k=3, method=method)
    ideal = 3 + 1 / np.log2(3)
    np.testing.assert_allclose(values[0], 0.662637, atol=1e-6)
    np.testing.assert_allclose(values[0] * ideal, 2.405988, atol=4e-6)
    np.testing.assert_allclose(gradient[0] * ideal, [0.146007, 0.002534, -0.148541, 0, 0], atol=2e-6)


@pytest.mark.parametrize(("method", "k"), [*((m, 3) for m in METHODS), ("quadrature", 1), ("quadrature", None)])
def test_value_and_gradient_match_enumeration_in_float64(oracle, method, k):
    scores, labels, mask = random_lists()
    values, gradient = value_and_gradient(scores, labels, mask, k=k, method=method)
    want = [oracle.value(s, y, m, k) for s, y, m in zip(scores, labels, mask)]
    np.testing.assert_allclose(values, want, atol=TOLERANCE)
    want = [oracle.gradient(s, y, m, k) for s, y, m in zip(scores, labels, mask)]
    np.testing.assert_allclose(gradient, want, atol=TOLERANCE)
    np.testing.assert_allclose(gradient.sum(-1), np.zeros(6), atol=TOLERANCE)  # a common shift changes nothing
    assert (np.asarray(gradient)[~mask] == 0).all()
    assert np.abs(want).max() > 0.01


@jax.jit
def one_positive(scores, labels):
    return expected_ndcg(scores, labels, k=10, method="quadrature_one_positive")


@pytest.mark.parametrize("spread", [0.0, 1.0, 5.0, 30.0])
def test_one_positive_at_any_gap(oracle, spread):
    rng = np.random.default_rng(4)
    for num_items in (20, 100):
        scores = (rng.normal(size=(3, num_items)) * spread).astype(np.float32)
        labels = np.zeros((3, num_items))
        labels[:, 7] = 1
        want = [oracle.one_positive_value(s, 7, 10) for s in scores]
        got = one_positive(scores, labels)
        np.testing.assert_allclose(got, want, atol=3 * TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("k", [4, 10])
def test_quadrature_errs_by_less_than_documented(k):
    """1e-7 in float64 and 1e-6 in float32, values and gradients, against the subset DP in float64; spreads 0 to 10⁴."""
    rng = np.random.default_rng(5)
    scores = rng.normal(size=(6, 10)) * np.array([0, 1, 5, 20, 50, 1e4])[:, None]
    gains, real = rng.dirichlet(np.ones(10), size=6), np.ones((6, 10), bool)

    def both(method, dtype):
        arrays = jnp.asarray(gains, dtype), jnp.asarray(real)

        def total(scores):
            values = value(scores, *arrays, k, method)
            return values.sum(), values

        gradient, values = jax.jit(jax.grad(total, has_aux=True))(jnp.asarray(scores, dtype))
        assert values.dtype == gradient.dtype == dtype
        return np.asarray(values, np.float64), np.asarray(gradient, np.float64)

    with jax.enable_x64(True):
        want, got = both("subset_dp", np.float64), both("quadrature", np.float64)
    for exact, double, single in zip(want, got, both("quadrature", np.float32)):
        assert np.abs(double - exact).max() < 1e-7
        assert np.abs(single - exact).max() < 1e-6


@pytest.mark.parametrize("method", [*METHODS, "quadrature_one_positive"])
def test_extreme_masked_and_empty_lists_have_finite_values_and_gradients(method):
    nan, inf, pad = np.nan, np.inf, [np.nan]
    scores = [
        *([1e4, 0, -1e4, 50, nan], [0, 1e4, nan, inf, nan], [-inf, inf, 0, 0, nan]),
        *([nan] * 5, [1, 2, 3, 4, nan], [120, 0, 30, 60, nan]),
    ]
    labels = [[1, 0, 0, 0], [1, 0, 5, nan], [1, 0, 0, 0], [nan] * 4, [0] * 4, [0, 1, 0, 0]]
    scores, labels = float32(scores, [row + pad for row in labels])
    mask = np.asarray([[1] * 4, [1, 1, 0, 0], [1] * 4, [0] * 4, [1] * 4, [1] * 4], bool)
    mask = np.pad(mask, ((0, 0), (0, 1)))
    values, gradient = value_and_gradient(scores, labels, mask, k=3, method=method)
    places = np.array([*(1 / np.log2([2, 3, 4])), 0.0])
    np.testing.assert_allclose(values, [1.0, places[1], places[3], 0.0, 0.0, places[3]], atol=TOLERANCE)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[3:5], np.zeros((2, 5)))
    assert (np.asarray(gradient)[~mask] == 0).all()


@pytest.mark.slow
def test_eager_vmap_and_permutation_equal_jit():
    scores, labels, mask = random_lists(seed=7)
    want, slope = value_and_gradient(scores, labels, mask, k=3, method="quadrature")
    eager = expected_ndcg(scores, labels, mask, k=3, method="quadrature")
    np.testing.assert_allclose(eager, want, atol=TOLERANCE)
    mapped = jax.jit(jax.vmap(lambda s, y, m: expected_ndcg(s, y, m, k=3)))  # "auto", where the cond is a select
    np.testing.assert_allclose(mapped(scores, labels, mask), want, atol=TOLERANCE)
    order = np.random.default_rng(0).permutation(5)
    args = scores[:, order], labels[:, order], mask[:, order]
    moved, moved_slope = value_and_gradient(*args, k=3, method="quadrature")
    np.testing.assert_allclose(moved, want, atol=TOLERANCE)
    np.testing.assert_allclose(moved_slope, slope[:, order], atol=TOLERANCE)


def test_auto_chooses_at_run_time_under_jit():
    scores, labels, _ = random_lists(seed=8)
    mask = np.ones((6, 5), bool)
    scores = np.nan_to_num(scores)
    one = np.tile(np.float32([0, 0, 1, 0, 0]), (6, 1))
    for labels in (one, np.tile(np.float32([0, 2, 1, 0, 1]), (6, 1))):
        want, slope = value_and_gradient(scores, labels, mask, k=3, method="enumerate")
        got, got_slope = value_and_gradient(scores, labels, mask, k=3, method="auto")
        np.testing.assert_allclose(got, want, atol=TOLERANCE)
        np.testing.assert_allclose(got_slope, slope, atol=TOLERANCE)


def test_one_positive_method_returns_nan_for_several_positives():
    labels = np.zeros((3, 20))  # the shape of the test above, so that it compiles once
    labels[:, 7] = 1
    labels[0, 8] = 1
    got = one_positive(np.zeros((3, 20), np.float32), labels)
    assert np.isnan(got[0]) and np.isfinite(got[1:]).all()


@pytest.mark.parametrize(("num_items", "k"), [(20, 20), (100, 50), (200, 100), (1000, 20)])
def test_long_uniform_lists_with_deep_cutoffs(num_items, k):
    """With equal scores, V = Σ_{r<=k} w_r / N for one positive; late places need finer nodes."""
    want = (1 / np.log2(np.arange(2, k + 2))).sum() / num_items
    labels = np.eye(num_items)[3]
    got = jax.jit(lambda s: expected_ndcg(s, labels, k=k))(np.zeros(num_items, np.float32))
    np.testing.assert_allclose(got, want, atol=5e-7)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["auto", "quadrature"])
def test_inside_shard_map(method):
    scores, labels, mask = random_lists(num_lists=8)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("d")

    def both(scores, labels, mask):
        inside = jax.grad(lambda s: expected_ndcg(s, labels, mask, k=3, method=method).sum())(scores)
        return inside, rank_marginals(scores, mask, k=3)

    got = jax.jit(jax.shard_map(both, mesh=mesh, in_specs=spec, out_specs=spec))(scores, labels, mask)
    for inside, outside in zip(got, jax.jit(both)(scores, labels, mask)):
        np.testing.assert_allclose(inside, outside, atol=TOLERANCE)


@functools.partial(jax.jit, static_argnames=("method",))
def swapped(scores, labels, alternatives, mask, *, method):
    return swapped_expected_ndcg(scores, labels, alternatives, mask, k=3, method=method)


@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("positives", [1, 3])
def test_swapped_values_match_a_loop(oracle, method, positives):
    rng = np.random.default_rng(9)
    scores, alternatives = rng.normal(size=5) * 2, rng.normal(size=(2, 5)) * 2
    labels, mask = np.array([0, 2, 0, 0, 0]), np.array([True, True, True, True, False])
    labels[:positives] = np.maximum(labels[:positives], 1) if positives > 1 else labels[:positives]
    got = swapped(scores, labels, alternatives, mask, method=method)
    for a in range(2):
        for i in range(5):
            variant = scores.copy()
            variant[i] = alternatives[a, i]
            np.testing.assert_allclose(got[a, i], oracle.value(variant, labels, mask, 3), atol=TOLERANCE)


@pytest.mark.slow
def test_errors():
    with pytest.raises(ValueError, match="method must be one of"):
        expected_ndcg(jnp.zeros(15), jnp.zeros(15), method="magic")
    with pytest.raises(ValueError, match=r'"subset_dp" allows at most 14 items; got N=15; use method="quadrature"'):
        expected_ndcg(jnp.zeros(15), jnp.zeros(15), method="subset_dp")
    with pytest.raises(ValueError, match="labels must have as many items as scores: 3"):
        expected_ndcg(jnp.zeros(3), jnp.zeros(4))
    with pytest.raises(ValueError, match="alternatives must have shape"):
        swapped_expected_ndcg(jnp.zeros(3), jnp.zeros(3), jnp.zeros(3))
