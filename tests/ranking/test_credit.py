"""Item advantages against naive loops over float64 enumeration."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rank_jax.ranking import expected_ndcg, item_advantages

ADVANTAGES = jax.jit(item_advantages, static_argnames=("rule", "k", "method"))
RULES = ("shared", "counterfactual", "first_order")


def user(num_rationales=3, num_items=4, positives=1, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.zeros(num_items, int)
    labels[:positives] = 1 + np.arange(positives)
    return rng.normal(size=(num_rationales, num_items)) * 2, labels


@pytest.mark.parametrize("method", ["auto", "quadrature", "enumerate"])
@pytest.mark.parametrize("positives", [1, 2])
def test_counterfactual_matches_the_definition(oracle, method, positives):
    scores, labels = user(positives=positives)
    mask = np.array([True, True, True, False])
    want = np.zeros_like(scores)
    for g in range(3):
        for i in range(3):
            replaced = []
            for other in set(range(3)) - {g}:
                variant = scores[g].copy()
                variant[i] = scores[other, i]
                replaced.append(oracle.value(variant, labels, mask, 2))
            want[g, i] = oracle.value(scores[g], labels, mask, 2) - np.mean(replaced)
    scores[:, 3] = np.nan
    got = ADVANTAGES(scores, labels, mask, rule="counterfactual", k=2, method=method)
    np.testing.assert_allclose(got, want, atol=2e-6)
    assert np.abs(want).max() > 0.05


def test_shared_and_first_order_match_the_definition(oracle):
    scores, labels = user(positives=2)
    values = np.array([oracle.value(s, labels, None, 3) for s in scores])
    want = np.array([values[g] - np.delete(values, g).mean() for g in range(3)])
    got = ADVANTAGES(scores, labels, rule="shared", k=3)
    np.testing.assert_allclose(got, np.broadcast_to(want[:, None], (3, 4)), atol=2e-6)
    slope = np.stack([oracle.gradient(s, labels, None, 3) for s in scores])
    got = ADVANTAGES(scores, labels, rule="first_order", k=3)
    np.testing.assert_allclose(got, slope * (scores - scores.mean(0)), atol=5e-6)


def test_first_order_is_the_limit_of_counterfactual():
    scores, labels = user(seed=3)
    near = 0.2 * scores[:1] + 1e-2 * np.random.default_rng(1).normal(size=scores.shape)
    exact = ADVANTAGES(near, labels, rule="counterfactual", k=3)
    linear = ADVANTAGES(near, labels, rule="first_order", k=3)
    # The distance to the mean of G scores is (G − 1)/G of the distance to the mean of the others.
    np.testing.assert_allclose(exact, 1.5 * linear, atol=3e-5)
    assert np.abs(exact).max() > 3e-4


def test_unbiased_policy_gradient():
    """Items draw a score from their own softmax policy over two values; Σ A ∇log π averages to ∇J.

    Every outcome of (2 rationales) x (3 items) is visited with its probability: no noise.
    """
    choices = np.array([[0.0, 2.0], [1.0, -1.0], [0.5, 1.5]])
    logits = np.array([[0.2, -0.3], [0.0, 0.4], [-0.5, 0.1]])
    policy = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([1, 0, 0])
    outcomes = np.stack(np.meshgrid(*[[0, 1]] * 6, indexing="ij"), -1).reshape(-1, 2, 3)  # [64, G, N]
    items = np.arange(3)
    probs = policy[items, outcomes].prod((1, 2))
    score_slope = np.eye(2)[outcomes] - policy  # ∇ of log π in the logits: [64, G, N, 2]

    lists = np.stack(np.meshgrid(*[[0, 1]] * 3, indexing="ij"), -1).reshape(-1, 3)
    values = np.asarray(jax.jit(expected_ndcg)(choices[items, lists], np.broadcast_to(labels, (8, 3))))
    list_probs = policy[items, lists].prod(1)
    want = np.einsum("l,l,lnc->nc", list_probs, values, np.eye(2)[lists] - policy)
    for rule in ("shared", "counterfactual"):
        advantages = np.asarray(ADVANTAGES(choices[items, outcomes], labels[None], rule=rule))
        got = np.einsum("o,ogn,ognc->nc", probs, advantages, score_slope) / 2
        np.testing.assert_allclose(got, want, atol=2e-6)
    assert np.abs(want).max() > 0.02


def test_counterfactual_credits_only_the_item_that_changed():
    scores = np.tile(np.array([0.0, 1.0, -1.0, 0.5]), (2, 1))
    scores[1, 2] = 3.0
    got = np.asarray(ADVANTAGES(scores, np.array([0, 0, 1, 0]), rule="counterfactual"))
    np.testing.assert_allclose(got[:, [0, 1, 3]], 0.0, atol=1e-6)
    assert got[1, 2] > 0.2 and got[0, 2] < -0.2
    shared = np.asarray(ADVANTAGES(scores, np.array([0, 0, 1, 0]), rule="shared"))
    assert (shared[1] > 0.2).all()  # the baseline rule praises everybody


@pytest.mark.parametrize("rule", RULES)
def test_extremes_masks_jit_vmap_and_no_gradient(rule):
    rng = np.random.default_rng(5)
    scores = rng.normal(size=(5, 2, 6)).astype(np.float32)
    labels = np.tile([0.0, 1.0, 0.0, 0.0, 0.0, 0.0], (5, 1))
    mask = np.ones((5, 6), bool)
    mask[0, 4:], scores[0, :, 4], scores[0, :, 5], labels[0, 4:] = False, np.nan, np.inf, np.nan
    scores[1] *= 1e4
    mask[2] = False
    labels[3] = 0
    got = ADVANTAGES(scores, labels, mask, rule=rule, k=3)
    assert got.shape == scores.shape and got.dtype == jnp.float32
    assert np.isfinite(got).all()
    assert (np.asarray(got)[0, :, 4:] == 0).all() and (np.asarray(got)[2:4] == 0).all()
    assert np.abs(got[4]).max() > 1e-3

    def call(s, y, m):
        return item_advantages(s, y, m, rule=rule, k=3)

    tolerance = 3e-6 * max(1.0, float(np.abs(got).max()))
    if rule == "shared":
        np.testing.assert_allclose(call(scores, labels, mask), got, atol=tolerance)  # eager
        slope = jax.jit(jax.grad(lambda s: call(s, labels, mask).sum()))(jnp.asarray(scores))
        np.testing.assert_array_equal(slope, np.zeros_like(scores))
    if rule == "counterfactual":
        np.testing.assert_allclose(jax.jit(jax.vmap(call))(scores, labels, mask), got, atol=tolerance)
    order = rng.permutation(6)
    moved = ADVANTAGES(scores[..., order], labels[:, order], mask[:, order], rule=rule, k=3)
    np.testing.assert_allclose(moved, np.asarray(got)[..., order], atol=tolerance)


def test_one_rationale():
    scores, labels = user(num_rationales=1)
    got = ADVANTAGES(scores, labels, rule="shared")  # no other list: the baseline is 0
    value = jax.jit(expected_ndcg)(scores[0], labels)
    np.testing.assert_allclose(got[0], np.full(4, value), atol=1e-6)
    for rule in ("counterfactual", "first_order"):
        with pytest.raises(ValueError, match=r"needs G >= 2 on axis -2; got G=1; sample more"):
            item_advantages(scores, labels, rule=rule)


def test_errors():
    with pytest.raises(ValueError, match="rule must be one of"):
        item_advantages(jnp.zeros((2, 3)), jnp.zeros(3), rule="magic")
    with pytest.raises(ValueError, match="one row per rationale"):
        item_advantages(jnp.zeros(3), jnp.zeros(3), rule="shared")
    with pytest.raises(ValueError, match="without the axis G"):
        item_advantages(jnp.zeros((2, 3)), jnp.zeros((2, 4)), rule="shared")
