"""The losses against their published formulas, one pair of loops at a time. Rax: `test_outside_oracles.py`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rank_jax.ranking import (
    approx_ndcg,
    expected_ndcg,
    lambda_rank,
    list_mle,
    list_net,
    log_prob,
    mode,
    ndcg,
    negative_expected_ndcg,
    softmax_cross_entropy,
)

SCORES = np.array([0.5, -1.0, 2.0, 0.1, 7.0], np.float32)
LABELS = np.array([2, 0, 1, 0, 3])
MASK = np.array([1, 1, 1, 1, 0], bool)
ITEMS = [0, 1, 2, 3]


def test_published_values():
    scores, labels = jnp.array([0.0, 3.0, 1.0, 2.0]), jnp.array([0, 0, 1, 1])  # doctests of rax 0.4.0
    np.testing.assert_allclose(softmax_cross_entropy(scores, labels), 3.880380, atol=1e-6)
    np.testing.assert_allclose(list_mle(scores, labels), 6.837789, atol=1e-6)


def test_list_net_is_the_cross_entropy_with_shares():
    want = softmax_cross_entropy(SCORES, LABELS, MASK) / LABELS[ITEMS].sum()
    np.testing.assert_allclose(list_net(SCORES, LABELS, MASK), want, rtol=1e-6)
    assert list_net(SCORES, np.zeros(5)) == 0


def test_lambda_rank_matches_its_pairs():
    place = {item: r for r, item in enumerate(sorted(ITEMS, key=lambda i: -SCORES[i]))}
    for k in (None, 2):
        weight = {i: 1 / np.log2(place[i] + 2) if k is None or place[i] < k else 0.0 for i in ITEMS}
        best = sorted((2.0 ** LABELS[ITEMS] - 1), reverse=True)[:k]
        ideal = sum(g / np.log2(r + 2) for r, g in enumerate(best))
        want = sum(
            (2.0 ** LABELS[i] - 2.0 ** LABELS[j])
            / ideal
            * abs(weight[i] - weight[j])
            * np.log1p(np.exp(SCORES[j] - SCORES[i]))
            for i in ITEMS
            for j in ITEMS
            if LABELS[i] > LABELS[j]
        )
        np.testing.assert_allclose(lambda_rank(SCORES, LABELS, MASK, k=k), want, rtol=1e-6)


def test_approx_ndcg_matches_its_formula_and_becomes_ndcg():
    ideal = 3 + 1 / np.log2(3)
    for temperature in (1.0, 0.1):
        want = 0.0
        for i in ITEMS:
            rank = 1 + sum(1 / (1 + np.exp((SCORES[i] - SCORES[j]) / temperature)) for j in ITEMS if j != i)
            want -= (2.0 ** LABELS[i] - 1) / np.log2(1 + rank) / ideal
        got = approx_ndcg(SCORES, LABELS, MASK, temperature=temperature)
        np.testing.assert_allclose(got, want, rtol=1e-6)
    cold = approx_ndcg(SCORES, LABELS, MASK, temperature=1e-3)
    np.testing.assert_allclose(cold, -ndcg(mode(SCORES, MASK), LABELS, MASK), rtol=1e-6)
    with pytest.raises(ValueError, match="temperature must be above 0; got 0"):
        approx_ndcg(SCORES, LABELS, temperature=0)


def test_list_mle_ties_follow_the_input_or_the_key():
    labels = np.array([1, 1, 0, 0, 9])
    np.testing.assert_allclose(list_mle(SCORES, labels, MASK), -log_prob(SCORES, jnp.arange(4), MASK), rtol=1e-6)
    orders = {(a, b, c, d) for a, b in ((0, 1), (1, 0)) for c, d in ((2, 3), (3, 2))}
    possible = sorted(-float(log_prob(SCORES, jnp.array(order), MASK)) for order in orders)
    keys = jax.random.split(jax.random.key(0), 64)
    drawn = np.unique(np.round(jax.vmap(lambda key: list_mle(SCORES, labels, MASK, key=key))(keys), 4))
    np.testing.assert_allclose(drawn, np.round(possible, 4), atol=2e-4)


def test_negative_expected_ndcg_is_the_estimators_by_another_form():
    want = -expected_ndcg(SCORES, LABELS, MASK, k=3)
    assert negative_expected_ndcg(SCORES, LABELS, MASK, k=3) == want
    sampled = negative_expected_ndcg(
        SCORES, LABELS, MASK, key=jax.random.key(0), estimator="reward_to_go", num_samples=20_000, k=3
    )
    np.testing.assert_allclose(sampled, want, atol=0.01)
    with pytest.raises(ValueError, match="estimator must be one of"):
        negative_expected_ndcg(SCORES, LABELS, estimator="magic")
    with pytest.raises(ValueError, match="it needs a key; got key=None; pass"):
        negative_expected_ndcg(SCORES, LABELS, estimator="pl_rank")


@pytest.mark.parametrize(
    "loss", [softmax_cross_entropy, list_net, list_mle, lambda_rank, approx_ndcg, negative_expected_ndcg]
)
def test_any_loss_by_its_name_teaches_the_order(loss):
    """One gradient step function for all of them; a few hundred steps from the wrong order to the right one."""
    labels = jnp.array([0, 1, 0, 2, 0, 0])
    step = jax.jit(lambda scores: scores - 0.3 * jax.grad(lambda s: loss(s, labels))(scores))
    scores = jnp.array([0.5, 0.0, 0.2, -0.5, 0.1, 0.4])
    before = ndcg(mode(scores), labels)
    for _ in range(300):
        scores = step(scores)
    assert before < 0.6 and ndcg(mode(scores), labels) == 1.0


def test_errors():
    with pytest.raises(ValueError, match="labels must have as many items as scores: 3"):
        softmax_cross_entropy(jnp.zeros(3), jnp.zeros(4))
    with pytest.raises(ValueError, match="leading axes of scores and labels must broadcast"):
        list_mle(jnp.zeros((2, 3)), jnp.zeros((4, 3)))
    with pytest.raises(ValueError, match="at least 0"):
        softmax_cross_entropy(jnp.zeros(3), jnp.array([0, -1, 1]))
