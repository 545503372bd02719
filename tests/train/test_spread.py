"""The gain of spreading all scores is taken out of the advantages: by brute force, and on a policy that only shouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rank_jax.ranking.credit import item_advantages
from r2rank_jax.ranking.expectation import expected_reward
from r2rank_jax.ranking.reward import named
from r2rank_jax.train.advantages.spread import spread_advantages

REWARD = named("ndcg@10")
LABELS = np.array([[1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0]], np.float32)
MASK = np.array([[True] * 6, [True] * 4 + [False] * 2])


def lists(seed=0, rationales=3):
    return np.random.default_rng(seed).normal(size=(2, rationales, 6)).astype(np.float32)


def price_of(scores):
    def total(s):
        return jnp.sum(expected_reward(s, LABELS[:, None], MASK[:, None], reward=REWARD))

    slope, top, bottom = np.asarray(jax.grad(total)(scores)), 0.0, 0.0
    for u, g in np.ndindex(2, scores.shape[1]):
        s = scores[u, g, MASK[u]]
        top += np.sum(slope[u, g, MASK[u]] * (s - s.mean()))
        bottom += np.sum((s - s.mean()) ** 2)
    return top / bottom


def spread(scores):
    return np.sum((scores - scores.mean()) ** 2) / 2


def test_counterfactual_credit_of_spread_by_brute_force():
    scores = lists()
    found, price = spread_advantages(scores, LABELS, MASK, rule="counterfactual", reward=REWARD), price_of(scores)
    for u, g, i in np.ndindex(*scores.shape):
        if not MASK[u, i]:
            assert found[u, g, i] == 0
            continue
        own, replaced = scores[u, g, MASK[u]], []
        for other in set(range(3)) - {g}:
            changed = own.copy()
            changed[i] = scores[u, other, i]
            replaced.append(spread(changed))
        assert found[u, g, i] == pytest.approx(price * (spread(own) - np.mean(replaced)), abs=1e-6)


def test_shared_and_first_order_credit_of_spread_by_brute_force():
    scores = lists()
    price = price_of(scores)
    shared = spread_advantages(scores, LABELS, MASK, rule="shared", reward=REWARD)
    first = spread_advantages(scores, LABELS, MASK, rule="first_order", reward=REWARD)
    for u in range(2):
        values = [spread(scores[u, g, MASK[u]]) for g in range(3)]
        for g in range(3):
            own, mean = scores[u, g, MASK[u]], scores[u, :, MASK[u]].mean(axis=1)
            others = np.mean([values[h] for h in range(3) if h != g])
            np.testing.assert_allclose(shared[u, g, MASK[u]], price * (values[g] - others), atol=1e-6)
            np.testing.assert_allclose(first[u, g, MASK[u]], price * (own - own.mean()) * (own - mean), atol=1e-6)


@pytest.mark.parametrize("rule", ["leave_item_out", "swap"])
def test_rules_that_use_the_ranking_only_are_left_alone(rule):
    assert not np.asarray(spread_advantages(lists(), LABELS, MASK, rule=rule, reward=REWARD)).any()


@pytest.mark.parametrize("rule", ["shared", "counterfactual", "first_order"])
def test_a_policy_that_only_shouts_gains_nothing(rule):
    """The second rationales say the same as the first, but louder: every ranking is the same and V is larger."""
    base = 2 * LABELS[:, None] + 0.3 * lists(rationales=1)
    scores = np.concatenate([base, 1.02 * base], axis=1)
    plain = item_advantages(scores, LABELS, MASK, rule=rule, reward=REWARD)
    fixed = plain - spread_advantages(scores, LABELS, MASK, rule=rule, reward=REWARD)
    gain = lambda advantages: float(np.sum(advantages[:, 1] - advantages[:, 0]))  # noqa: E731
    assert gain(plain) > 1e-3 and abs(gain(fixed)) < 0.05 * gain(plain)


@pytest.mark.parametrize("rule", ["shared", "counterfactual", "first_order"])
def test_masked_scores_and_lists_without_spread_change_nothing(rule):
    scores = lists()
    expected = spread_advantages(scores, LABELS, MASK, rule=rule, reward=REWARD)
    scores[1, :, 4:] = np.nan
    np.testing.assert_array_equal(spread_advantages(scores, LABELS, MASK, rule=rule, reward=REWARD), expected)
    flat = spread_advantages(np.ones((2, 3, 6), np.float32), LABELS, MASK, rule=rule, reward=REWARD)
    np.testing.assert_allclose(flat, 0, atol=1e-6)
