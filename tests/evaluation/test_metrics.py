"""Metrics per user against hand-computed cases, scikit-learn and the pure JAX metrics."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from r2rank_jax.evaluation.baselines import analytic_random
from r2rank_jax.evaluation.metrics import per_user_metrics, rank_items
from r2rank_jax.ranking import metrics as jax_metrics


def test_hand_computed_list():
    # Ranking by score: items 2, 0, 1, 3; the only relevant item, 0, is at rank 2.
    computed = per_user_metrics([[2.0, 1.0, 3.0, 0.0]], [[1, 0, 0, 0]], None, [1, 2], seed=0)
    assert {name: value.tolist() for name, value in computed.items()} == {
        "ndcg@1": [0.0],
        "ndcg@2": [pytest.approx(1 / np.log2(3))],
        "hr@1": [0.0],
        "hr@2": [1.0],
        "mrr": [0.5],
    }


@pytest.mark.slow
def test_graded_labels_use_exponential_gains():
    computed = per_user_metrics([[3.0, 2.0, 1.0]], [[1, 2, 0]], None, [3], seed=0)
    ideal = 3 + 1 / np.log2(3)
    assert computed["ndcg@3"][0] == pytest.approx((1 + 3 / np.log2(3)) / ideal)


@pytest.mark.parametrize("k", [1, 3, 10, 50])
def test_agrees_with_scikit_learn_on_binary_labels(k):
    rng = np.random.default_rng(k)
    scores, labels = rng.normal(size=(40, 12)), rng.integers(0, 2, size=(40, 12))
    labels[:, 0] = 1  # scikit-learn scores a list without relevant items like ours, but only by convention
    computed = per_user_metrics(scores, labels, None, [k], seed=0)[f"ndcg@{k}"]
    expected = [ndcg_score(labels[u : u + 1], scores[u : u + 1], k=k) for u in range(40)]
    np.testing.assert_allclose(computed, expected, rtol=1e-6)


@pytest.mark.slow
def test_agrees_with_the_training_reward():
    rng = np.random.default_rng(3)
    scores, labels = rng.normal(size=(30, 9)), rng.integers(0, 4, size=(30, 9))
    mask = rng.random((30, 9)) < 0.8
    computed = per_user_metrics(scores, labels, mask, [5], seed=0)
    ranking = jnp.asarray(rank_items(scores, mask, seed=0))
    expected = jax_metrics.ndcg(ranking, jnp.asarray(labels, jnp.float32), jnp.asarray(mask), k=5)
    np.testing.assert_allclose(computed["ndcg@5"], expected, atol=1e-5)
    expected = jax_metrics.reciprocal_rank(ranking, jnp.asarray(labels, jnp.float32), jnp.asarray(mask))
    np.testing.assert_allclose(computed["mrr"], expected, atol=1e-6)


def test_the_reward_of_rl_is_measured_beside_the_metrics():
    rng = np.random.default_rng(4)
    scores, labels = rng.normal(size=(30, 9)), rng.integers(0, 4, size=(30, 9))
    plain = per_user_metrics(scores, labels, None, [5], seed=0)
    assert list(per_user_metrics(scores, labels, None, [5], seed=0, reward="ndcg@5")) == list(plain)
    computed = per_user_metrics(scores, labels, None, [5], seed=0, reward="0.5*ndcg@5+2*mrr")
    assert list(computed) == [*plain, "0.5*ndcg@5+2*mrr"]
    np.testing.assert_allclose(computed["0.5*ndcg@5+2*mrr"], 0.5 * plain["ndcg@5"] + 2 * plain["mrr"], rtol=1e-6)
    with pytest.raises(ValueError, match="got 'ncdg'"):
        per_user_metrics(scores, labels, None, [5], seed=0, reward="ncdg@5")


@pytest.mark.slow
def test_users_are_measured_alike_in_blocks(monkeypatch):
    rng = np.random.default_rng(5)
    scores, labels = rng.normal(size=(30, 9)), rng.integers(0, 2, size=(30, 9))
    whole = per_user_metrics(scores, labels, None, [5], seed=0)
    monkeypatch.setattr("r2rank_jax.evaluation.metrics.BLOCK_USERS", 7)
    for name, values in per_user_metrics(scores, labels, None, [5], seed=0).items():
        np.testing.assert_array_equal(values, whole[name])


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 19])
def test_a_constant_scorer_is_a_random_one(place):
    labels = np.zeros((4000, 20))
    labels[:, place] = 1
    computed = per_user_metrics(np.zeros((4000, 20)), labels, None, [1, 10], seed=5)
    for name, expected in analytic_random(20, [1, 10]).items():
        error = computed[name].std() / np.sqrt(4000)
        assert abs(computed[name].mean() - expected) < 4 * error, name


def test_ties_depend_on_the_seed_alone():
    scores = np.zeros((50, 20))
    one, again, other = (rank_items(scores, seed=seed) for seed in (1, 1, 2))
    assert (one == again).all() and (one != other).any()


def test_masked_items_change_nothing():
    scores, labels = np.array([[0.3, 0.2, 0.1]]), np.array([[0, 1, 0]])
    plain = per_user_metrics(scores, labels, None, [1, 3], seed=0)
    padding = np.array([[np.nan, np.inf]])
    padded = per_user_metrics(
        np.concatenate([padding, scores], -1),
        np.concatenate([[[7, np.nan]], labels], -1),
        np.array([[False, False, True, True, True]]),
        [1, 3],
        seed=0,
    )
    for name, values in plain.items():
        np.testing.assert_array_equal(values, padded[name])


def test_lists_without_a_relevant_item_score_zero():
    computed = per_user_metrics([[1.0, 2.0]], [[0, 0]], None, [2], seed=0)
    assert all(value.tolist() == [0.0] for value in computed.values())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_an_error(bad):
    with pytest.raises(ValueError, match=r"user row 1, item 0"):
        per_user_metrics([[1.0, 2.0], [bad, 0.0]], [[1, 0], [1, 0]], None, [1], seed=0)


@pytest.mark.parametrize(
    ("labels", "mask", "ks", "message"),
    [
        ([[1, 0, 0]], None, [1], "labels must have the shape"),
        ([[-1, 0]], None, [1], "at least 0"),
        ([[1, 0]], [[True]], [1], "mask must have the shape"),
        ([[1, 0]], None, [], "ks must hold"),
        ([[1, 0]], None, [0], "ks must hold"),
    ],
)
def test_bad_input_is_named(labels, mask, ks, message):
    with pytest.raises(ValueError, match=message):
        per_user_metrics([[1.0, 0.0]], labels, mask, ks, seed=0)
