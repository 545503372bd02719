"""BPR: a step against autodiff, the pairs, and two tastes that it must separate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rank_jax.evaluation.baselines import bpr
from r2rank_jax.evaluation.baselines.inputs import TrainingData, UnlabeledLists


@pytest.mark.slow
def test_a_step_follows_the_gradient_of_the_objective():
    rng = np.random.default_rng(0)
    factors = bpr._Factors(*(jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((4, 3), (5, 3), (5,))))
    user, item, other = (jnp.asarray(x) for x in ([0, 0, 3, 1], [1, 2, 1, 4], [2, 3, 4, 0]))  # repeats on purpose
    weight = jnp.asarray([1.0, 1.0, 1.0, 0.0])

    def objective(factors):
        def score(of):
            return jnp.sum(factors.users[user] * factors.items[of], -1) + factors.biases[of]

        norms = sum(jnp.sum(x**2, -1) for x in (factors.users[user], factors.items[item], factors.items[other]))
        norms += factors.biases[item] ** 2 + factors.biases[other] ** 2
        return jnp.sum(weight * (jax.nn.log_sigmoid(score(item) - score(other)) - 0.3 * norms / 2))

    state = bpr._State(factors, jnp.float32(0.1), jnp.float32(0.3))
    moved, _ = bpr._step(state, bpr._Pairs(user, item, other, weight))
    expected = jax.tree.map(lambda x, g: x + 0.1 * g, factors, jax.grad(objective)(factors))
    for computed, wanted in zip(moved.factors, expected):
        np.testing.assert_allclose(computed, wanted, atol=1e-6)


def test_an_epoch_has_every_pair_once_and_never_an_item_of_the_user(train):
    owned = {(int(u), int(i)) for u, i in zip(train.users, train.items)}
    pairs = np.unique(train.users * 20 + train.items)
    drawn = bpr._draw(np.random.default_rng(0), pairs, np.arange(1, 21) / 20)
    real = np.asarray(drawn.weight) > 0
    assert sorted(zip(np.asarray(drawn.user)[real].tolist(), np.asarray(drawn.item)[real].tolist())) == sorted(owned)
    assert not owned & set(zip(np.asarray(drawn.user)[real].tolist(), np.asarray(drawn.other)[real].tolist()))


def test_other_items_are_drawn_by_their_chance():
    """User 0 has item 0; chances 1/2, 1/8, 3/8, so that the other two are drawn 1 : 3."""
    drawn = bpr._draw(np.random.default_rng(0), np.arange(0, 40_000, 4), np.array([1 / 2, 5 / 8, 1, 1]))
    real = np.asarray(drawn.weight) > 0
    counts = np.bincount(np.asarray(drawn.other)[real], minlength=4)
    np.testing.assert_allclose(counts / counts.sum(), [0, 1 / 4, 3 / 4, 0], atol=0.02)
    assert real.sum() > 9_990


def test_a_user_who_has_every_item_trains_no_pair():
    drawn = bpr._draw(np.random.default_rng(0), np.arange(3), np.arange(1, 4) / 3)
    assert not np.asarray(drawn.weight).any()


def test_two_tastes_are_separated():
    """Even users take even items, odd users odd items; every item has as many users as any other."""
    users, items = np.divmod(np.arange(20 * 12), 12)
    kept = (users % 2 == items % 2) & (np.random.default_rng(0).random(len(users)) < 0.7)
    data = TrainingData(users[kept], items[kept], 21, 12)
    lists = UnlabeledLists(np.arange(21), [np.zeros(0, int)] * 21, np.tile(np.arange(12), (21, 1)))
    setting = {"factors": 4, "regularization": 0.01, "learning_rate": 0.1, "negative_exponent": 0.0}
    score = bpr.fit_bpr(data, **setting, epochs=200, seed=0)
    scores = score(lists)[:20]
    same = np.arange(12)[None, :] % 2 == np.arange(20)[:, None] % 2
    assert np.where(same, scores, np.inf).min(1).mean() > np.where(same, -np.inf, scores).max(1).mean() + 1
    stranger, biases = score(lists)[20], score(UnlabeledLists(np.array([20]), [np.zeros(0, int)], lists.candidates[:1]))
    np.testing.assert_array_equal(stranger, biases[0])
