"""Item advantages against naive loops over float64 enumeration."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rank_jax.ranking import expected_ndcg, item_advantages, leave_item_out, mode, ndcg, swap
from r2rank_jax.ranking.reward import ndcg as ndcg_reward
from r2rank_jax.ranking.reward import reciprocal_rank

ADVANTAGES = jax.jit(item_advantages, static_argnames=("rule", "k", "method"))
RULES = ("shared", "counterfactual", "first_order", "leave_item_out", "swap")


def user(num_rationales=3, num_items=4, positives=1, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.zeros(num_items, int)
    labels[:positives] = 1 + np.arange(positives)
    return rng.normal(size=(num_rationales, num_items)) * 2, labels


@pytest.mark.slow
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


@pytest.mark.slow
def test_shared_and_first_order_match_the_definition(oracle):
    scores, labels = user(positives=2)
    values = np.array([oracle.value(s, labels, None, 3) for s in scores])
    want = np.array([values[g] - np.delete(values, g).mean() for g in range(3)])
    got = ADVANTAGES(scores, labels, rule="shared", k=3)
    np.testing.assert_allclose(got, np.broadcast_to(want[:, None], (3, 4)), atol=2e-6)
    slope = np.stack([oracle.gradient(s, labels, None, 3) for s in scores])
    got = ADVANTAGES(scores, labels, rule="first_order", k=3)
    np.testing.assert_allclose(got, slope * (scores - scores.mean(0)), atol=5e-6)


@pytest.mark.slow
def test_first_order_is_the_limit_of_counterfactual():
    scores, labels = user(seed=3)
    near = 0.2 * scores[:1] + 1e-2 * np.random.default_rng(1).normal(size=scores.shape)
    exact = ADVANTAGES(near, labels, rule="counterfactual", k=3)
    linear = ADVANTAGES(near, labels, rule="first_order", k=3)
    # The distance to the mean of G scores is (G − 1)/G of the distance to the mean of the others.
    np.testing.assert_allclose(exact, 1.5 * linear, atol=3e-5)
    assert np.abs(exact).max() > 3e-4


@pytest.mark.slow
@pytest.mark.parametrize("k", [None, 2])
def test_leave_item_out_and_swap_match_their_definitions(oracle, k):
    """For every ranking of a list with a masked item, against explicitly changed rankings."""
    labels, mask = np.array([0, 2, 1, 0, 3]), np.array([1, 1, 1, 1, 0], bool)
    items, cutoff = [0, 1, 2, 3], 5 if k is None else k

    def reward(order):
        return oracle.ndcg(order, labels, items, cutoff)

    rankings = list(itertools.permutations(items))
    full = np.asarray([(*r, 4) for r in rankings], np.int32)
    out, exchanged = leave_item_out(full, labels, mask, k=k), swap(full, labels, mask, k=k)
    for r, got_out, got_swap in zip(rankings, np.asarray(out), np.asarray(exchanged)):
        for i in items:
            want = reward(r) - reward([j for j in r if j != i])
            np.testing.assert_allclose(got_out[i], want, atol=2e-6)
            swaps = [[{i: j, j: i}.get(x, x) for x in r] for j in items if j != i]
            np.testing.assert_allclose(got_swap[i], np.mean([reward(r) - reward(s) for s in swaps]), atol=2e-6)
        assert got_out[4] == got_swap[4] == 0


@pytest.mark.slow
def test_credit_of_rankings_broadcasts_and_the_rules_use_the_order_by_score():
    scores, labels = user(num_rationales=3, num_items=6, positives=2)
    rankings = mode(scores)
    for rule, credit in (("leave_item_out", leave_item_out), ("swap", swap)):
        want = np.stack([credit(r, labels, k=4) for r in rankings])
        np.testing.assert_allclose(credit(rankings, labels, k=4), want, atol=1e-6)
        np.testing.assert_allclose(ADVANTAGES(scores, labels, rule=rule, k=4), want, atol=1e-6)
        np.testing.assert_allclose(
            ADVANTAGES(scores[:1], labels, rule=rule, k=4), want[:1], atol=1e-6
        )  # G = 1 is enough
    with pytest.raises(ValueError, match="ranking must have as many items as labels: 6"):
        swap(rankings[:, :4], labels)


CHOICES = np.array([[0.0, 2.0], [1.0, -1.0], [0.5, 1.5]])  # the score of each of an item's two possible rationales
LOGITS = np.array([[0.2, -0.3], [0.0, 0.4], [-0.5, 0.1]])


def exact_policy_gradient(rule):
    """E[Σ A ∇log π] / G over all outcomes of (2 rationales) x (3 items), ∇E[V], and ∇E[NDCG of the order by score]."""
    policy = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    labels = np.array([1, 0, 0])
    outcomes = np.stack(np.meshgrid(*[[0, 1]] * 6, indexing="ij"), -1).reshape(-1, 2, 3)  # [64, G, N]
    items = np.arange(3)
    probs = policy[items, outcomes].prod((1, 2))
    score_slope = np.eye(2)[outcomes] - policy  # ∇ of log π in the logits: [64, G, N, 2]
    advantages = np.asarray(ADVANTAGES(CHOICES[items, outcomes], labels[None], rule=rule))
    got = np.einsum("o,ogn,ognc->nc", probs, advantages, score_slope) / 2

    lists = np.stack(np.meshgrid(*[[0, 1]] * 3, indexing="ij"), -1).reshape(-1, 3)
    scores, many = CHOICES[items, lists], np.broadcast_to(labels, (8, 3))
    list_probs = policy[items, lists].prod(1)
    want = [
        np.einsum("l,l,lnc->nc", list_probs, np.asarray(values), np.eye(2)[lists] - policy)
        for values in (jax.jit(expected_ndcg)(scores, many), ndcg(mode(scores), many))
    ]
    return got, *want


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_policy_gradient_is_unbiased_where_the_table_says_so(rule):
    """The sum over all outcomes, weighted by probability, has no noise."""
    got, of_value, of_order = exact_policy_gradient(rule)
    want = of_order if rule in ("leave_item_out", "swap") else of_value
    assert np.abs(want).max() > 0.02
    if rule in ("first_order", "swap"):
        assert np.abs(got - want).max() > 0.005  # biased, as documented
    else:
        np.testing.assert_allclose(got, want, atol=2e-6)


def test_leave_item_out_of_a_drawn_ranking_is_unbiased_for_the_value(oracle):
    """A PL ranking without item i is distributed as PL of the other items, whatever i's score: a valid baseline."""
    policy = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    labels, got = np.array([1, 0, 0]), np.zeros((3, 2))
    rankings = np.asarray(list(itertools.permutations(range(3))))
    credit = np.asarray(leave_item_out(rankings, labels))
    for chosen in itertools.product([0, 1], repeat=3):
        scores = CHOICES[np.arange(3), chosen]
        weight = policy[np.arange(3), chosen].prod()
        expected = sum(oracle.prob(scores, r, range(3)) * c for r, c in zip(rankings, credit))
        got += weight * expected[:, None] * (np.eye(2)[list(chosen)] - policy)
    np.testing.assert_allclose(got, exact_policy_gradient("counterfactual")[1], atol=2e-6)


@pytest.mark.slow
def test_counterfactual_credits_only_the_item_that_changed():
    scores = np.tile(np.array([0.0, 1.0, -1.0, 0.5]), (2, 1))
    scores[1, 2] = 3.0
    got = np.asarray(ADVANTAGES(scores, np.array([0, 0, 1, 0]), rule="counterfactual"))
    np.testing.assert_allclose(got[:, [0, 1, 3]], 0.0, atol=1e-6)
    assert got[1, 2] > 0.2 and got[0, 2] < -0.2
    shared = np.asarray(ADVANTAGES(scores, np.array([0, 0, 1, 0]), rule="shared"))
    assert (shared[1] > 0.2).all()  # the baseline rule gives all items the same credit


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_labels_may_have_more_leading_axes_than_scores(rule):
    scores, _ = user()
    labels = np.array([[0, 1, 0, 2], [1, 0, 0, 0], [0, 0, 0, 0]])
    got = ADVANTAGES(scores, labels, rule=rule)
    assert got.shape == (3, 3, 4)
    want = np.stack([ADVANTAGES(scores, row, rule=rule) for row in labels])
    np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.slow
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


def test_credit_for_the_first_relevant_item_needs_no_more_memory_than_for_all():
    """Lists were once copied for every item and alternative, which took six times as much here."""
    scores, labels = jnp.zeros((8, 4, 20)), jnp.zeros((8, 20)).at[:, :3].set(1.0)

    def size(reward):
        credit = jax.jit(lambda s: item_advantages(s, labels, rule="counterfactual", reward=reward))
        return credit.lower(scores).compile().memory_analysis().temp_size_in_bytes

    assert size(reciprocal_rank(10)) < 2 * size(ndcg_reward(10))
