"""Repeated items and NaN scores: refused where values can be seen, and of one meaning everywhere under `jit`."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rank_jax import ranking as r
from r2rank_jax.errors import ScoresError
from r2rank_jax.evaluation.metrics import per_user_metrics, rank_items
from r2rank_jax.ranking import reward as rewards
from r2rank_jax.ranking.arguments import first_places

METRICS = (r.dcg, r.ndcg, r.reciprocal_rank, r.recall, r.hit_rate, r.average_precision)
NAN = float("nan")


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.__name__)
def test_a_repeated_item_is_refused_or_counts_once(metric):
    labels = jnp.array([1.0, 2.0, 0.0])
    with pytest.raises(ValueError, match="every item at most once; got item 1 at two places; keep its first place"):
        metric(jnp.array([1, 0, 1]), labels)
    every = np.array(list(itertools.product(range(3), repeat=3)))
    values = np.asarray(jax.jit(metric)(jnp.asarray(every), labels))
    for ranking, value in zip(every, values):
        # The same ranking with items that are not relevant in place of the repeats.
        kept = [item if item not in ranking[:place] else 3 for place, item in enumerate(ranking)]
        fillers = iter(range(3, 6))
        distinct = jnp.array([item if item < 3 else next(fillers) for item in kept])
        assert value == pytest.approx(float(metric(distinct, jnp.append(labels, jnp.zeros(3)), k=3)), abs=1e-6)
        if metric is not r.dcg:
            assert value <= 1


def test_rewards_count_a_repeated_item_once():
    labels = jnp.array([3.0, 0.0, 1.0])
    for name in ("ndcg@2", "recall@3", "mrr", "hr@2", "0.5*ndcg@3+0.5*recall@2"):
        value = jax.jit(functools.partial(rewards.ranking_reward, reward=rewards.named(name)))
        assert float(value(jnp.array([0, 0, 0]), labels)) <= 1, name
        assert float(value(jnp.array([0, 2, 1]), labels)) == pytest.approx(1), name


@pytest.mark.parametrize("places", [1, 2, 7, 128, 300])
def test_first_places_in_both_algorithms(places):
    ranking = np.random.default_rng(places).integers(0, max(places // 2, 1), size=(4, places))
    want = [[item not in row[:place] for place, item in enumerate(row)] for row in ranking.tolist()]
    np.testing.assert_array_equal(first_places(jnp.asarray(ranking)), want)
    np.testing.assert_array_equal(jax.jit(first_places)(jnp.asarray(ranking)), want)


@pytest.mark.parametrize("key", [None, jax.random.key(0)], ids=["input order", "random ties"])
def test_a_nan_comes_last_of_the_real_items_in_every_order(key):
    scores = jnp.array([NAN, 1.0, -jnp.inf, NAN, 3.0, 9.0])
    mask = jnp.array([True, True, True, True, True, False])
    ranking = jax.jit(lambda s: r.mode(s, mask, key=key))(scores)
    assert ranking[:3].tolist() == [4, 1, 2] and set(ranking[3:5].tolist()) == {0, 3} and ranking[5] == 5
    many = jax.jit(lambda s: r.sample(jax.random.key(1), s, mask, num_samples=200))(scores)
    assert np.isin(many[:, 3:5], [0, 3]).all() and (many[:, 5] == 5).all() and (many[:, 2] == 2).all()
    assert len(np.unique(many[:, 0])) == 2, "the others are still drawn"
    wide = jnp.full(64, NAN).at[jnp.array([5, 40])].set(jnp.array([0.0, 0.5]))
    drawn = jax.jit(lambda s: r.sample(jax.random.key(2), s, num_samples=100, k=2))(wide)
    assert set(np.unique(drawn)) == {5, 40}, "also where items are drawn with replacement"


SCORES = jnp.array([0.3, NAN, -1.0, 2.0])
LABELS = jnp.array([1.0, 0.0, 0.0, 2.0])
FUNCTIONS = {
    "log_prob": lambda s, m=None: r.log_prob(s, jnp.array([0, 1, 2, 3]), m),
    "rank_marginals": lambda s, m=None: r.rank_marginals(s, m).sum(),
    "expected_ndcg": lambda s, m=None: r.expected_ndcg(s, LABELS, m),
    "expected_mrr": lambda s, m=None: r.expected_reward(s, LABELS, m, reward=rewards.named("mrr")),
    "list_mle": lambda s, m=None: r.list_mle(s, LABELS, m),
    "softmax_cross_entropy": lambda s, m=None: r.softmax_cross_entropy(s, LABELS, m),
    "lambda_rank": lambda s, m=None: r.lambda_rank(s, LABELS, m),
    "negative_expected_ndcg": lambda s, m=None: r.negative_expected_ndcg(s, LABELS, m),
    **{
        f"surrogate_{estimator}": functools.partial(
            lambda e, s, m=None: r.surrogate(jax.random.key(0), s, LABELS, m, estimator=e, num_samples=8), estimator
        )
        for estimator in ("reinforce", "reward_to_go", "pl_rank", "exact")
    },
    **{
        f"advantages_{rule}": functools.partial(
            lambda rule, s, m=None: r.item_advantages(jnp.stack([s, s + 1]), LABELS, m, rule=rule)[..., 0], rule
        )
        for rule in ("shared", "counterfactual", "first_order")
    },
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_nan_is_refused_or_stays_visible_in_values_or_gradients(name):
    function = FUNCTIONS[name]
    with pytest.raises(ValueError, match=r"scores of real items must not be NaN; got \d that are, of \d"):
        function(SCORES)
    total = lambda s: jnp.sum(function(s))  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(total))(SCORES)
    assert not np.isfinite(value) or not np.isfinite(gradient).all(), "a diverged model must not look healthy"

    mask = jnp.array([True, False, True, True])
    masked = lambda s: jnp.sum(function(s, mask))  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(masked))(SCORES)
    other, other_gradient = jax.jit(jax.value_and_grad(masked))(SCORES.at[1].set(5.0))
    assert np.isfinite(value) and value == other
    np.testing.assert_array_equal(gradient, other_gradient)
    assert gradient[1] == 0
    function(SCORES, mask)


def test_evaluation_refuses_what_ranking_refuses():
    scores, labels = np.array([[0.0, np.nan, 1.0]]), np.array([[1.0, 0.0, 0.0]])
    for evaluate in (
        lambda m: per_user_metrics(scores, labels, m, [1], seed=0),
        lambda m: rank_items(scores, m, seed=0),
    ):
        with pytest.raises(ScoresError, match="must be finite: 1 are not"):
            evaluate(None)
        evaluate(np.array([[True, False, True]]))
