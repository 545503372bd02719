"""Every reward with every method, estimator and credit rule, compared with sums over all rankings in float64."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rank_jax.ranking import (
    expected_ndcg,
    expected_reward,
    item_advantages,
    leave_item_out,
    mode,
    ranking_reward,
    surrogate,
    swap,
    swapped_expected_ndcg,
)
from r2rank_jax.ranking import metrics as m
from r2rank_jax.ranking import reward as r
from r2rank_jax.ranking.estimators import value_and_gradient
from r2rank_jax.ranking.expectation import value

SCORES = np.array([0.3, -1.1, 0.9, np.nan, 0.2, 1.4])
LABELS = np.array([0.0, 2.0, 1.0, 3.0, 0.0, 0.5])
MASK = np.array([True, True, True, False, True, True])
ITEMS = [0, 1, 2, 4, 5]
N = 6


def log_discount(place):
    return 1 / np.log2(place + 1)


def discounted(ranking, labels, k, gain):
    return sum(gain(labels[i]) * log_discount(p) for p, i in enumerate(ranking[:k], 1))


def normalized(ranking, labels, k, gain):
    best = discounted(sorted(ranking, key=lambda i: -labels[i]), labels, k, gain)
    return discounted(ranking, labels, k, gain) / best if best else 0.0


def first_relevant(ranking, labels, k):
    return next((p for p, i in enumerate(ranking[:k], 1) if labels[i] > 0), None)


def exp2(label):
    return 2.0**label - 1


def novelty(k=2):
    """A user-defined reward with unusual gains and weights that do not descend."""
    return r.Reward((r.Term(gain=jnp.sqrt, weight=lambda n: np.arange(n) + 0.5, k=k, normalizer="ideal"),))


NOVELTY = novelty(2)


def novelty_of_ranking(ranking, labels, k=2):
    weights = np.arange(k) + 0.5
    gains = sorted((np.sqrt(labels[i]) for i in ranking), reverse=True)[:k]
    best = sum(g * w for g, w in zip(gains, sorted(weights, reverse=True)))
    return sum(np.sqrt(labels[i]) * w for i, w in zip(ranking, weights)) / best if best else 0.0


# Reward -> its definition on a ranking of all real items.
DEFINITIONS = {
    "ndcg@3": lambda y, z: normalized(y, z, 3, exp2),
    "ndcg_linear@3": lambda y, z: normalized(y, z, 3, float),
    "dcg@2": lambda y, z: discounted(y, z, 2, exp2),
    "dcg_linear": lambda y, z: discounted(y, z, N, float),
    "mrr": lambda y, z: 1 / p if (p := first_relevant(y, z, N)) else 0.0,
    "mrr@2": lambda y, z: 1 / p if (p := first_relevant(y, z, 2)) else 0.0,
    "recall@2": lambda y, z: sum(z[i] > 0 for i in y[:2]) / max(1, sum(z[i] > 0 for i in y)),
    "hr@1": lambda y, z: float(first_relevant(y, z, 1) is not None),
    "hr@2": lambda y, z: float(first_relevant(y, z, 2) is not None),
    "0.5*ndcg@4+2*mrr-0.25*recall@1": lambda y, z: (
        0.5 * normalized(y, z, 4, exp2)
        + 2 * DEFINITIONS["mrr"](y, z)
        - 0.25 * sum(z[i] > 0 for i in y[:1]) / max(1, sum(z[i] > 0 for i in y))
    ),
    "tests.ranking.test_reward:novelty@2": novelty_of_ranking,
}
REWARDS = {name: NOVELTY if "novelty" in name else r.named(name) for name in DEFINITIONS}
NAMES = tuple(DEFINITIONS)
# One reward of each kind, because each compiles its own programs.
KINDS = tuple(name for name in NAMES if name not in ("ndcg_linear@3", "dcg_linear", "mrr", "hr@1"))


@functools.cache
def all_rankings(scores, items):
    """Rankings, probabilities and ∇log P in float64, for scores as a tuple."""
    from tests.support.brute_force import log_prob_gradient, prob

    rankings = list(itertools.permutations(items))
    probs = np.array([prob(scores, y, items) for y in rankings])
    return rankings, probs, np.stack([log_prob_gradient(scores, y, items) for y in rankings])


def expected(name, scores=SCORES, labels=LABELS, items=tuple(ITEMS)):
    """V and ∇V."""
    rankings, probs, slopes = all_rankings(tuple(np.where(np.isnan(scores), 0.0, scores)), tuple(items))
    rewards = np.array([DEFINITIONS[name](y, labels) for y in rankings])
    return probs @ rewards, (probs * rewards) @ slopes


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_reward_of_every_ranking_is_its_definition(name):
    rankings = list(itertools.permutations(ITEMS))
    full = np.array([(*y, 3) for y in rankings])
    got = ranking_reward(full, LABELS, MASK, reward=REWARDS[name])
    np.testing.assert_allclose(got, [DEFINITIONS[name](y, LABELS) for y in rankings], atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("method", ["auto", "quadrature"])
def test_expectation_and_gradient_match_enumeration(name, method):
    """The batch holds a masked NaN, a list without a relevant item and an all-masked list; jit must equal eager."""
    scores = np.stack([SCORES, SCORES, np.full(N, np.nan), np.array([3.0, -2.0, 8.0, np.nan, 0.0, -9.0])])
    labels = np.stack([LABELS, np.zeros(N), np.full(N, np.nan), LABELS])
    mask = np.stack([MASK, MASK, np.zeros(N, bool), MASK])

    def both(scores):
        total = lambda s: (v := expected_reward(s, labels, mask, reward=REWARDS[name], method=method)).sum() + 0 * v[0]  # noqa: E731
        values = expected_reward(scores, labels, mask, reward=REWARDS[name], method=method)
        return values, jax.grad(total)(scores)

    values, gradient = jax.jit(both)(jnp.asarray(scores, jnp.float32))
    for row in (0, 3):
        want, slope = expected(name, scores[row])
        np.testing.assert_allclose(values[row], want, rtol=0, atol=5e-6)
        np.testing.assert_allclose(gradient[row], slope, rtol=0, atol=5e-6)
        assert np.abs(slope).max() > (1e-3 if row == 0 else 0)
    assert (values[1:3] == 0).all() and (gradient[1:3] == 0).all() and (gradient[:, 3] == 0).all()
    if method == "quadrature":
        eager = expected_reward(scores, labels, mask, reward=REWARDS[name], method=method)
        np.testing.assert_allclose(eager, values, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in KINDS if len(REWARDS[n].terms) == 1])
def test_exact_methods_in_float64(name):
    term = REWARDS[name].terms[0]
    with jax.enable_x64(True):
        gains = float64_gains(term)
        for method, tolerance in (("enumerate", 1e-12), ("subset_dp", 1e-12), ("quadrature", 5e-7)):
            finite = jnp.asarray(np.where(MASK, SCORES, 0.0))
            total = lambda s: value(s, gains, jnp.asarray(MASK), term.num_places(N), method, term=term)  # noqa: B023, E731
            got, slope = jax.value_and_grad(total)(finite)
            want, want_slope = expected(name)
            np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)
            np.testing.assert_allclose(slope, want_slope, rtol=0, atol=tolerance)


def float64_gains(term):
    """Normalized gains in float64, from the term's own parts."""
    labels = np.where(MASK, LABELS, 0.0)
    gains = np.asarray(term.gain(jnp.asarray(labels)), np.float64) * (labels > 0)
    if term.counts == "first":
        return jnp.asarray((gains > 0).astype(np.float64))
    weights = np.sort(term.weights(term.num_places(N), np.float64))[::-1]
    divisor = {"none": 1.0, "gains": gains.sum(), "ideal": np.sort(gains)[::-1][: len(weights)] @ weights}
    return jnp.asarray(gains / divisor[term.normalizer])


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in KINDS if len(REWARDS[n].terms) == 1])
@pytest.mark.parametrize("estimator", ["reinforce", "reward_to_go", "pl_rank"])
def test_estimators_are_unbiased_over_all_pairs_of_rankings(name, estimator):
    """The mean over all pairs of samples is weighted by probability. Places beyond the term's cut-off have weight 0."""
    term, cutoff = REWARDS[name].terms[0], min(REWARDS[name].num_places(N) + 1, N)
    from tests.support.brute_force import prob

    rankings = np.unique(np.array([(*y, 3)[:cutoff] for y in itertools.permutations(ITEMS)], np.int32), axis=0)
    probs = np.array([prob(SCORES, [i for i in y if i != 3], ITEMS) for y in rankings])
    first, second = np.meshgrid(np.arange(len(rankings)), np.arange(len(rankings)), indexing="ij")
    pairs = np.stack([rankings[first.ravel()], rankings[second.ravel()]], axis=1)
    weights = probs[first.ravel()] * probs[second.ravel()]
    with jax.enable_x64(True):
        row = (np.where(MASK, SCORES, 0.0), float64_gains(term), MASK)
        args = [jnp.broadcast_to(jnp.asarray(x), (len(pairs), N)) for x in row]
        values, gradients = value_and_gradient(*args, jnp.asarray(pairs), estimator, term=term)  # type: ignore[call-arg, misc]
    want, slope = expected(name)
    np.testing.assert_allclose(weights @ np.asarray(values), want, atol=1e-12)
    np.testing.assert_allclose(weights @ np.asarray(gradients), slope, rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["reinforce", "reward_to_go", "pl_rank", "exact"])
def test_surrogate_of_a_sum_is_the_sum_over_the_same_rankings(estimator):
    mixed = REWARDS["0.5*ndcg@4+2*mrr-0.25*recall@1"]
    times = 4 if estimator == "exact" else 20_000
    tiled = [np.tile(x, (times, 1)) for x in (SCORES.astype(np.float32), LABELS, MASK)]

    def total(s, labels, mask):
        values = surrogate(jax.random.key(0), s, labels, mask, estimator=estimator, num_samples=4, reward=mixed)
        return values.sum(), values

    gradient, values = jax.jit(jax.grad(total, has_aux=True))(*map(jnp.asarray, tiled))
    want, slope = expected("0.5*ndcg@4+2*mrr-0.25*recall@1")
    for got, right in ((np.asarray(values)[:, None], [want]), (np.asarray(gradient), slope)):
        error = got.std(0) / np.sqrt(len(got))
        assert (np.abs(got.mean(0) - right) < 4 * error + 5e-6).all()
    assert (np.asarray(gradient)[:, 3] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_counterfactual_shared_and_first_order_credit(name):
    scores = np.stack([SCORES, [1.7, 0.5, -0.2, np.nan, 1.2, -0.8], 0.5 * SCORES])
    values = [expected(name, s)[0] for s in scores]
    want = np.zeros((3, N))
    for g, i in itertools.product(range(3), ITEMS):
        variants = [np.where(np.arange(N) == i, scores[o], scores[g]) for o in range(3) if o != g]
        want[g, i] = values[g] - np.mean([expected(name, v)[0] for v in variants])
    settings = {"reward": REWARDS[name]}
    got = jax.jit(lambda s: item_advantages(s, LABELS, MASK, rule="counterfactual", **settings))(scores)
    np.testing.assert_allclose(got, want, atol=1e-5)
    if name in ("mrr@2", "recall@2"):
        got = item_advantages(scores, LABELS, MASK, rule="counterfactual", method="enumerate", **settings)
        np.testing.assert_allclose(got, want, atol=1e-5)
    got = jax.jit(lambda s: item_advantages(s, LABELS, MASK, rule="shared", **settings))(scores)
    shared = np.array([values[g] - np.mean(np.delete(values, g)) for g in range(3)])
    np.testing.assert_allclose(got, shared[:, None] * MASK, atol=1e-5)
    got = jax.jit(lambda s: item_advantages(s, LABELS, MASK, rule="first_order", **settings))(scores)
    slopes = np.stack([expected(name, s)[1] for s in scores])
    np.testing.assert_allclose(got, np.where(MASK, slopes * (scores - scores.mean(0)), 0.0), atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("labels", [LABELS, [0, 0, 0, 3, 0, 1], np.zeros(N)], ids=["several", "one", "none"])
def test_leave_item_out_and_swap_credit(name, labels):
    """Against explicitly changed rankings, for every seventh ranking."""
    labels = np.asarray(labels, np.float64)
    rankings = list(itertools.permutations(ITEMS))
    full = np.array([(*y, 3) for y in rankings])
    out, exchanged = (np.asarray(f(full, labels, MASK, reward=REWARDS[name])) for f in (leave_item_out, swap))

    def reward_of(y):
        return float(DEFINITIONS[name](y, labels))

    for y, got_out, got_swap in list(zip(rankings, out, exchanged))[::7]:
        for i in ITEMS:
            swaps = [[{i: j, j: i}.get(x, x) for x in y] for j in ITEMS if j != i]
            np.testing.assert_allclose(got_swap[i], np.mean([reward_of(y) - reward_of(z) for z in swaps]), atol=5e-6)
            without = without_item(name, y, labels, i)
            np.testing.assert_allclose(got_out[i], reward_of(y) - without, atol=5e-6)
        assert got_out[3] == got_swap[3] == 0


def without_item(name, y, labels, i):
    """The reward of the ranking without item i, with the normalizer of the whole list."""
    rest = [j for j in y if j != i]
    total = 0.0
    for term in REWARDS[name].terms:
        gains = np.asarray(term.gains(labels, MASK), np.float64)
        weights = term.weights(term.num_places(N), np.float64)
        weights = np.append(weights, np.zeros(N))[: len(rest)]
        total += term.scale * float(term.payments(jnp.asarray(gains[rest]), weights).sum())
    return total


@pytest.mark.slow
def test_metrics_are_rewards_of_a_ranking():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(20, 8)), rng.integers(0, 3, size=(20, 8))
    ranking = mode(scores)
    for metric, reward in (
        (m.ndcg, r.ndcg(3)),
        (m.dcg, r.dcg(3)),
        (m.recall, r.recall(3)),
        (m.hit_rate, r.hit_rate(3)),
        (m.reciprocal_rank, r.reciprocal_rank(3)),
    ):
        got = ranking_reward(ranking, labels, reward=reward)
        np.testing.assert_array_equal(metric(ranking, labels, k=3), got)
        assert got.mean() > 0
    reward = ranking_reward(ranking, labels, reward=0.5 * r.ndcg(3) + r.recall(2))  # type: ignore[assignment]
    np.testing.assert_allclose(reward, 0.5 * m.ndcg(ranking, labels, k=3) + m.recall(ranking, labels, k=2), rtol=1e-6)


@pytest.mark.slow
def test_ndcg_is_the_default_reward():
    labels, mask = jnp.asarray(LABELS), jnp.asarray(MASK)
    scores, two = jnp.asarray(SCORES), jnp.asarray(np.stack([SCORES, -0.5 * SCORES]))
    assert expected_reward(scores, labels, mask, reward=r.ndcg(3)) == expected_ndcg(scores, labels, mask, k=3)
    for rule in ("counterfactual", "swap"):
        plain = item_advantages(two, labels, mask, rule=rule, k=3)
        np.testing.assert_array_equal(plain, item_advantages(two, labels, mask, rule=rule, reward=r.ndcg(3)))
    with pytest.raises(ValueError, match="leave k out"):
        item_advantages(two, labels, mask, rule="swap", k=3, reward=r.ndcg(3))
    with pytest.raises(ValueError, match="leave k out"):
        swapped_expected_ndcg(scores, labels, two, mask, k=3, reward=r.ndcg(3))


@pytest.mark.slow
@pytest.mark.parametrize(("num_items", "k", "name"), [(20, 10, "mrr"), (200, 50, "recall"), (1000, 20, "hr")])
def test_long_uniform_lists(num_items, k, name):
    """With equal scores the places of the three relevant items are hypergeometric."""
    labels = np.zeros(num_items)
    labels[[1, 5, 7]] = 1
    none_before = np.cumprod([(num_items - 3 - p) / (num_items - p) for p in range(k)])  # no relevant one in p + 1
    first = -np.diff(none_before, prepend=1.0)  # P(first relevant at place 1..k)
    want = {"mrr": first @ (1 / np.arange(1, k + 1)), "hr": 1 - none_before[-1], "recall": k / num_items}[name]
    got = expected_reward(np.zeros(num_items), labels, reward=r.named(f"{name}@{k}"), method="quadrature")
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_names():
    assert r.named("ndcg@10") == r.ndcg(10) and hash(r.named("ndcg@10")) == hash(r.ndcg(10))
    assert r.named(" 0.5*ndcg@10 + 0.5*recall@5") == 0.5 * r.ndcg(10) + 0.5 * r.recall(5)
    assert r.named("mrr-1e-2*hr@1") == r.reciprocal_rank() + -0.01 * r.hit_rate(1)
    assert r.named(f"{__name__}:novelty@3").terms[0].k == 3 and r.named(f"{__name__}:novelty").terms[0].k == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ncg@10", r"must be one of ndcg, .* or module:function; got 'ncg'; correct the name"),
        ("ndcg@0", r"sum of \[factor\*\]NAME\[@k\]; got 'ndcg@0'; write for instance"),
        ("", "got ''"),
        ("ndcg@10 recall", "got 'ndcg@10 recall'"),
        ("no_such_module:f", "got ModuleNotFoundError"),
        ("math:no_such", "got AttributeError"),
        ("math:gamma@2", "must return a Reward; got float"),
    ],
)
def test_a_bad_name_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as error:
        r.named(text)
    assert "\n" not in str(error.value)
