"""Every differentiable function of the package on every difficult list, and invariances that all functions share."""

from __future__ import annotations

import functools

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2rank_jax.ranking import (
    approx_ndcg,
    average_precision,
    dcg,
    entropy,
    expected_ndcg,
    hit_rate,
    kl,
    lambda_rank,
    list_mle,
    log_prob,
    mode,
    ndcg,
    rank_marginals,
    recall,
    reciprocal_rank,
    softmax_cross_entropy,
    surrogate,
)

KEY, K = jax.random.key(0), 3


def sampled(estimator):
    """A sampled surrogate as a function of a list."""
    return functools.partial(surrogate, KEY, estimator=estimator, num_samples=16, k=K)


def by_label(function):
    """Gives a function of (scores, mask) the signature of the others; labels enter as weights, so that they matter."""

    def call(scores, labels, mask=None):
        labels = jnp.where(True if mask is None else mask, labels, 0.0).astype(jnp.float32)
        return function(scores, mask) * (1.0 + jnp.minimum(jnp.sum(labels, axis=-1), 1.0))

    return call


def top_marginals(scores, labels, mask=None):
    """Σ_i label_i P(i among the first K): one number per list that depends on the marginals."""
    labels = jnp.where(True if mask is None else mask, labels, 0.0).astype(jnp.float32)
    return jnp.sum(rank_marginals(scores, mask, k=K).sum(-1) * labels, axis=-1)


DETERMINISTIC = {
    "log_prob": lambda s, y, m=None: log_prob(s, mode(jnp.asarray(y, jnp.float32), m, k=K), m),
    "expected_ndcg": functools.partial(expected_ndcg, k=K),
    "expected_ndcg_subset_dp": functools.partial(expected_ndcg, k=K, method="subset_dp"),
    "rank_marginals": top_marginals,
    "entropy": by_label(functools.partial(entropy, k=K)),
    "kl": by_label(lambda s, m=None: kl(s, 0.5 * jnp.asarray(s), m, k=K)),
    "softmax_cross_entropy": softmax_cross_entropy,
    "list_mle": list_mle,
    "lambda_rank": functools.partial(lambda_rank, k=K),
    "approx_ndcg": approx_ndcg,
}
SAMPLED = {
    **{name: sampled(name) for name in ("reinforce", "reward_to_go", "pl_rank")},
    "entropy_sampled": by_label(functools.partial(entropy, k=K, key=KEY, num_samples=4)),
}
EVERY = DETERMINISTIC | SAMPLED
# These describe the distribution itself, so lists without a relevant item have a value and a gradient too.
OF_THE_DISTRIBUTION = {"log_prob", "entropy", "kl", "entropy_sampled", "rank_marginals"}

NUM_LISTS, NUM_ITEMS = 11, 6


@functools.cache
def compiled(name):
    """Values [11] and gradients [11, 6], compiled once for the whole file."""

    def both(scores, labels, mask):
        def total(scores):
            values = EVERY[name](scores, labels, mask)
            return values.sum(), values

        gradient, values = jax.grad(total, has_aux=True)(scores)
        return values, gradient

    return jax.jit(both)


def awkward_lists():
    nan, inf, wide = np.nan, np.inf, 3e38
    rows = {  # scores, labels, mask
        "gap_1e4": ([1e4, 0, -1e4, 5, 3, 1], [0, 1, 2, 0, 0, 0], [1] * 6),
        "gap_120": ([120, 0, 30, 60, 90, 0], [0, 1, 0, 2, 0, 0], [1] * 6),
        "largest": ([wide, -wide, 0, wide, -wide, 1], [0, 1, 0, 0, 2, 1], [1] * 6),
        "garbage_masked": ([1, nan, 0, -inf, inf, 0.5], [1, nan, 0, -1, 7, 0], [1, 0, 1, 0, 0, 1]),
        "all_masked": ([nan, inf, -inf, 0, wide, 1], [nan, 1, -1, 0, 0, 2], [0] * 6),
        "no_relevant": ([1, 2, 3, 4, 5, 6], [0] * 6, [1] * 6),
        "one_item": ([0.3, nan, nan, nan, nan, nan], [1, 9, 9, 9, 9, 9], [1, 0, 0, 0, 0, 0]),
        "labels_30": ([0.1, 0.2, -1, 2, 0, 0], [30, 29, 0, 1, 0, 30], [1] * 6),
        "ties": ([0] * 6, [0, 1, 0, 1, 2, 0], [1] * 6),
        "infinite_real": ([-inf, inf, 0, -inf, 2, 1], [1, 0, 0, 1, 0, 0], [1] * 6),
        "padded": ([0.4, -1, 2, 0.3, inf, -inf], [0, 2, 1, 0, 4, nan], [1, 1, 1, 1, 0, 0]),
    }
    scores, labels, mask = zip(*rows.values())
    return list(rows), np.float32(scores), np.float32(labels), np.array(mask, bool)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_awkward_lists_have_finite_values_and_gradients(name):
    rows, scores, labels, mask = awkward_lists()
    values, gradient = map(np.asarray, compiled(name)(scores, labels, mask))
    assert values.dtype == gradient.dtype == np.float32
    for row, value, slope in zip(rows, values, gradient):
        assert np.isfinite(value) and np.isfinite(slope).all(), (row, value, slope)
    assert (gradient[~mask] == 0).all()
    at = dict(zip(rows, zip(values, gradient)))
    assert (at["all_masked"][1] == 0).all() and at["all_masked"][0] == 0
    if name not in OF_THE_DISTRIBUTION:
        assert (np.abs(at["no_relevant"][1]) < 1e-7).all() and at["no_relevant"][0] == 0
    if name not in ("softmax_cross_entropy", "lambda_rank", "approx_ndcg"):
        np.testing.assert_allclose(at["one_item"][1], 0.0, atol=1e-6)  # there is only one ranking
    assert np.abs(at["padded"][1]).max() > 1e-3
    # Other values in the padding change neither a value nor a gradient, to the bit.
    other = np.float32(np.random.default_rng(0).normal(size=(2, *scores.shape)))
    scores, labels = np.where(mask, scores, other[0]), np.where(mask, labels, other[1])  # type: ignore[index]
    for again, before in zip(compiled(name)(scores, labels, mask), (values, gradient)):
        np.testing.assert_array_equal(again, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_fewer_padded_items_change_neither_value_nor_gradient(name):
    _, scores, labels, mask = (x[-1:] for x in awkward_lists())
    values, gradient = compiled(name)(scores, labels, mask)
    short, short_gradient = compiled(name)(scores[:, :5], labels[:, :5], mask[:, :5])
    np.testing.assert_allclose(short, values, rtol=1e-6)
    np.testing.assert_allclose(short_gradient, np.asarray(gradient)[:, :5], rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_one_item_bfloat16_vmap_and_eager(name):
    value, gradient = compiled(name)(jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.ones((1, 1), bool))
    assert np.isfinite(value).all() and (np.asarray(gradient) == 0).all()
    # bfloat16 scores: the computation is in float32, on the rounded scores.
    rng = np.random.default_rng(1)
    scores = jnp.asarray(rng.normal(size=(NUM_LISTS, NUM_ITEMS)) * 3, jnp.bfloat16)
    labels, mask = rng.integers(0, 3, (NUM_LISTS, NUM_ITEMS)).astype(np.float32), np.ones((NUM_LISTS, NUM_ITEMS), bool)
    values, gradient = compiled(name)(scores, labels, mask)
    want, slope = compiled(name)(scores.astype(jnp.float32), labels, mask)
    assert values.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(values, want)
    np.testing.assert_allclose(gradient.astype(jnp.float32), slope, rtol=2**-7, atol=2e-3)
    # vmap equals a loop over lists with one key, and eager equals jit. (For a batch without vmap, the sampled functions
    # draw different noise than for a single list.)
    scores = scores.astype(jnp.float32)
    mapped = jax.jit(jax.vmap(EVERY[name]))(scores, labels, mask)
    for row in (0, 1):
        one = slice(row, row + 1)
        np.testing.assert_allclose(compiled(name)(scores[one], labels[one], mask[one])[0][0], mapped[row], rtol=2e-6)
    if name in ("log_prob", "expected_ndcg", "reward_to_go", "list_mle"):
        np.testing.assert_allclose(EVERY[name](scores, labels, mask), want, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("name", EVERY)
def test_results_are_float32_with_float64_enabled(name):
    with jax.enable_x64(True):
        arrays = [jnp.ones((2, NUM_ITEMS), dtype) for dtype in (jnp.float64, jnp.float64, bool)]
        assert jax.eval_shape(EVERY[name], *arrays).dtype == jnp.float32


# -- invariances, on lists that hypothesis generates --------------------------------------------------------------

LISTS = st.tuples(
    hnp.arrays(np.float32, (NUM_ITEMS,), elements=st.floats(-50, 50, width=32)),
    hnp.arrays(np.float32, (NUM_ITEMS,), elements=st.integers(0, 4)),
    hnp.arrays(bool, (NUM_ITEMS,)),
    st.permutations(range(NUM_ITEMS)),
)
LAWS = settings(max_examples=40, deadline=None, derandomize=True)


def one(name, scores, labels, mask):
    """Value and gradient of a single list, at the shape [1, 6]."""
    value, gradient = compiled(name)(scores[None], labels[None], mask[None])
    return np.asarray(value)[0], np.asarray(gradient)[0]


@pytest.mark.parametrize("name", EVERY)
@LAWS
@given(LISTS, st.sampled_from([-64.0, 0.5, 1024.0]))
def test_a_common_shift_changes_nothing(name, drawn, shift):
    scores, labels, mask, _ = drawn
    scores = np.round(scores * 64) / 64  # so that the shift causes no rounding
    value, gradient = one(name, scores, labels, mask)
    other, other_gradient = one(name, scores + np.float32(shift), labels, mask)
    scale = 1.0 + np.abs(gradient).max()
    np.testing.assert_allclose(other, value, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(other_gradient, gradient, atol=3e-6 * scale)
    if name != "pl_rank":  # only the mean of its estimates is orthogonal to the shift
        np.testing.assert_allclose(gradient.sum(), 0.0, atol=1e-5 * scale)


@pytest.mark.parametrize("name", DETERMINISTIC)
@LAWS
@given(LISTS)
def test_permuting_the_items_permutes_the_gradient(name, drawn):
    scores, labels, mask, order = drawn
    labels = np.arange(NUM_ITEMS, dtype=np.float32)[
        np.argsort(labels, kind="stable")
    ]  # distinct, because ties keep the input order
    scores = scores + np.arange(NUM_ITEMS, dtype=np.float32) * np.float32(1e-3)
    value, gradient = one(name, scores, labels, mask)
    moved, moved_gradient = one(name, scores[order], labels[order], mask[order])
    scale = 1.0 + np.abs(gradient).max()
    np.testing.assert_allclose(moved, value, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(moved_gradient, gradient[order], atol=3e-6 * scale)


@functools.partial(jax.jit, static_argnames="k")
def metrics(scores, labels, mask, k):
    ranking = mode(scores, mask)
    return [m(ranking, labels, mask, k=k) for m in (ndcg, reciprocal_rank, recall, hit_rate, average_precision, dcg)]


@LAWS
@given(LISTS)
def test_metrics_lie_between_0_and_1_and_the_order_by_label_is_best(drawn):
    scores, labels, mask, _ = drawn
    got, best = metrics(scores, labels, mask, K), metrics(labels, labels, mask, K)
    for value, ideal in zip(got, best):
        assert 0 <= value <= ideal + 1e-6
    assert all(value <= 1 + 1e-6 for value in got[:-1])
    assert best[0] == pytest.approx(float((labels * mask).any()), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("metric", [ndcg, dcg, reciprocal_rank, recall, hit_rate, average_precision])
def test_metrics_of_awkward_lists(metric):
    rows, scores, labels, mask = awkward_lists()
    values = jax.jit(lambda s, y, m: metric(mode(s, m), y, m, k=K))(scores, labels, mask)
    at = dict(zip(rows, np.asarray(values)))
    assert np.isfinite(values).all()
    assert at["all_masked"] == at["no_relevant"] == 0 and at["padded"] > 0
    assert metric(jnp.array([0]), jnp.array([1.0])) == 1.0
    assert metric(jnp.array([0]), jnp.array([1.0], jnp.bfloat16)).dtype == jnp.float32
