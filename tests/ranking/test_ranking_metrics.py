"""Ranking metrics against hand computation and rax 0.4.0's published numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rank_jax.ranking import (
    average_precision,
    dcg,
    has_relevant,
    hit_rate,
    mode,
    ndcg,
    normalized_gains,
    recall,
    reciprocal_rank,
)

METRICS = (dcg, ndcg, reciprocal_rank, recall, hit_rate, average_precision)


def test_rax_vectors():
    scores, labels = jnp.array([0.0, 3.0, 1.0, 2.0]), jnp.array([1.0, 0.0, 1.0, 1.0])
    ranking = mode(scores)
    np.testing.assert_allclose(ndcg(ranking, labels, k=3), 0.530721, atol=1e-6)
    np.testing.assert_allclose(recall(ranking, labels, k=3), 2 / 3, atol=1e-6)
    np.testing.assert_allclose(average_precision(ranking, labels, k=3), 0.388889, atol=1e-6)
    ranking = mode(scores)
    np.testing.assert_allclose(ndcg(ranking, jnp.array([0, 0, 1, 1])), 0.693426, atol=1e-6)
    np.testing.assert_allclose(reciprocal_rank(ranking, jnp.array([0, 0, 1, 1])), 0.5, atol=1e-6)
    np.testing.assert_allclose(average_precision(ranking, jnp.array([0, 0, 1, 1])), 0.583333, atol=1e-6)
    ranking, graded = mode([2.0, 1.0, 3.0]), jnp.array([2, 0, 1])
    np.testing.assert_allclose(ndcg(ranking, graded), 0.796708, atol=1e-6)
    np.testing.assert_allclose(ndcg(ranking, graded, gain="linear"), 0.8597187, atol=1e-6)
    np.testing.assert_allclose(ndcg(mode([1.0, 4.0, 3.0, 2.0]), jnp.array([2, 0, 0, 1])), 0.493546, atol=1e-6)
    minus_inf = mode([-jnp.inf, 5.0, 2.0, -jnp.inf, 1.0])
    # rax ignores an item with score −inf; here a real item keeps its place.
    np.testing.assert_allclose(ndcg(minus_inf, jnp.array([1, 0, 1, 0, 0]), k=3), 0.386853, atol=1e-6)
    np.testing.assert_allclose(ndcg(mode(jnp.ones(3)), jnp.array([0, 0, 1])), 0.5, atol=1e-6)


def test_hand_computed():
    ranking, labels = jnp.array([2, 0, 1, 3]), jnp.array([3.0, 1.0, 0.0, 0.0])
    want = 7 / np.log2(3) + 1 / np.log2(4)
    np.testing.assert_allclose(dcg(ranking, labels), want, rtol=1e-6)
    np.testing.assert_allclose(dcg(ranking, labels, k=2), 7 / np.log2(3), rtol=1e-6)
    np.testing.assert_allclose(dcg(ranking, labels, gain="linear"), 3 / np.log2(3) + 0.5, rtol=1e-6)
    np.testing.assert_allclose(ndcg(ranking, labels), want / (7 + 1 / np.log2(3)), rtol=1e-6)
    linear = (3 / np.log2(3) + 0.5) / (3 + 1 / np.log2(3))
    np.testing.assert_allclose(ndcg(ranking, labels, gain="linear"), linear, rtol=1e-6)
    assert reciprocal_rank(ranking, labels) == 0.5
    assert reciprocal_rank(ranking, labels, k=1) == 0.0
    assert recall(ranking, labels, k=2) == 0.5
    assert hit_rate(ranking, labels, k=1) == 0.0
    assert hit_rate(ranking, labels, k=2) == 1.0


def test_lists_without_a_relevant_item_give_zero_and_are_detected():
    ranking = jnp.array([0, 1, 2])
    mask = jnp.array([True, True, False])
    for labels in (jnp.zeros(3), jnp.array([0.0, 0.0, jnp.nan]), jnp.array([0.0, 0.0, -4.0])):
        for metric in METRICS:
            assert metric(ranking, labels, mask) == 0.0
        assert not has_relevant(labels, mask)
    assert has_relevant(jnp.array([0.0, 1.0, jnp.nan]), mask)
    np.testing.assert_array_equal(has_relevant(jnp.array([[0, 1], [0, 0]])), [True, False])
    assert ndcg(ranking, jnp.ones(3), jnp.zeros(3, bool)) == 0.0


def test_masked_labels_do_not_enter_the_ideal():
    labels, mask = jnp.array([1.0, jnp.nan, 0.0, 9.0]), jnp.array([True, False, True, False])
    for metric in METRICS:
        got = metric(jnp.array([2, 0, 1, 3]), labels, mask)
        np.testing.assert_array_equal(got, metric(jnp.array([1, 0]), jnp.array([1.0, 0.0])))


def test_negative_labels_are_refused_unless_they_are_traced():
    ranking, labels = jnp.array([1, 0]), jnp.array([1.0, -5.0])
    for metric in METRICS:
        with pytest.raises(ValueError, match=r"at least 0 \(0 is not relevant\); got -5.0; raise it to 0"):
            metric(ranking, labels)
    assert jax.jit(ndcg)(ranking, labels) == ndcg(ranking, jnp.array([1.0, 0.0]))  # traced: not relevant
    with pytest.raises(ValueError, match="got nan"):
        ndcg(ranking, jnp.array([1.0, jnp.nan]))


def test_huge_and_tiny_labels():
    tiny = jnp.array([1e-8, 3e-8])
    np.testing.assert_allclose(ndcg(jnp.array([1, 0]), tiny), 1.0, rtol=1e-6)
    np.testing.assert_allclose(dcg(jnp.array([1]), tiny), 3e-8 * np.log(2), rtol=1e-6)
    huge = ndcg(jnp.array([1, 0]), jnp.array([130.0, 129.0]))  # 2^130 is not a float32
    np.testing.assert_allclose(huge, (1 + 2 / np.log2(3)) / (2 + 1 / np.log2(3)), rtol=1e-6)


def test_top_k_ranking_and_short_lists():
    labels = jnp.array([0.0, 0.0, 1.0])
    full, cut = jnp.array([1, 2, 0]), jnp.array([1, 2])
    assert ndcg(cut, labels) == ndcg(full, labels, k=2)
    assert ndcg(full, labels, k=10) == ndcg(full, labels)  # k beyond N is N
    with pytest.raises(ValueError, match=r"at least 3 places; got 2; rank more places"):
        ndcg(cut, labels, k=10)
    with pytest.raises(ValueError, match="gain must be"):
        ndcg(cut, labels, gain="cubic")
    with pytest.raises(ValueError, match="item indices"):
        recall(jnp.zeros(3), labels)


@pytest.mark.slow
def test_leading_axes_jit_and_vmap():
    rng = np.random.default_rng(0)
    labels = jnp.asarray(rng.integers(0, 3, size=(4, 1, 6)))
    mask = jnp.asarray(rng.random((4, 1, 6)) > 0.2)
    rankings = jnp.asarray(np.stack([[rng.permutation(6) for _ in range(3)] for _ in range(4)]))

    def every(rankings, labels, mask):
        return [metric(rankings, labels, mask, k=3) for metric in METRICS]

    one_list = jax.jit(every)
    mapped = jax.jit(jax.vmap(every))(rankings, labels, mask)
    for number, (got, per_user) in enumerate(zip(every(rankings, labels, mask), mapped)):
        assert got.shape == (4, 3) and got.dtype == jnp.float32
        np.testing.assert_allclose(got, per_user, rtol=1e-6)
        loop = [one_list(rankings[i, j], labels[i, 0], mask[i, 0])[number] for i in range(4) for j in range(3)]
        np.testing.assert_allclose(got.ravel(), np.asarray(loop), rtol=1e-6)


def test_permutation_equivariance():
    rng = np.random.default_rng(1)
    labels, ranking, new_place = rng.integers(0, 3, size=7), rng.permutation(7), rng.permutation(7)
    moved = np.zeros_like(labels)
    moved[new_place] = labels
    for metric in METRICS:
        np.testing.assert_allclose(metric(new_place[ranking], moved, k=4), metric(ranking, labels, k=4))


def test_normalized_gains_recompose_ndcg():
    labels, ranking = jnp.array([0.0, 2.0, 1.0, 0.0]), jnp.array([2, 0, 1, 3])
    gains = normalized_gains(labels, k=3)
    want = sum(float(gains[i]) / np.log2(r + 2) for r, i in enumerate([2, 0, 1]))
    np.testing.assert_allclose(ndcg(ranking, labels, k=3), want, rtol=1e-6)
