"""Plackett-Luce density, mode, rank marginals, entropy and divergence."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rank_jax.ranking import entropy, kl, log_prob, log_prob_per_place, mode, ndcg, rank_marginals, sample
from r2rank_jax.ranking.draws.choices import choices

LOG_PROB = jax.jit(log_prob)
VALUE_AND_GRADIENT = jax.jit(jax.vmap(jax.value_and_grad(log_prob), (None, 0)))


@pytest.mark.slow
def test_hand_computed():
    # log P(2, 1, 0) = log[ e²/(1+e+e²) · e/(1+e) ]
    np.testing.assert_allclose(log_prob([0.0, 1.0, 2.0], jnp.array([2, 1, 0])), -0.720868, atol=2e-6)
    np.testing.assert_allclose(log_prob(np.zeros(5), jnp.arange(5)), -np.log(120.0), rtol=1e-6)
    np.testing.assert_allclose(log_prob([0, 1, 2], jnp.array([2, 1, 0])), -0.720868, atol=2e-6)


@pytest.mark.slow
def test_masked_value_and_gradient_match_published_values_of_rax():
    scores, mask, ranking = (
        jnp.array([1.5, 0.3, jnp.nan]),
        jnp.array([True, True, False]),
        jnp.array([0, 1, 2]),
    )
    value, gradient = jax.value_and_grad(log_prob)(scores, ranking, mask)
    np.testing.assert_allclose(value, -0.263282, atol=1e-6)
    np.testing.assert_allclose(gradient, [0.231475, -0.231475, 0.0], atol=1e-6)


def test_matches_enumeration_full_and_top_k(oracle):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=5) * 3
    for length in (1, 3, 5):
        rankings = np.asarray(list(itertools.permutations(range(5), length)))
        got = LOG_PROB(scores, rankings)
        want = [np.log(oracle.prob(scores, r, range(5))) for r in rankings]
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(np.exp(got).sum(), 1.0, atol=2e-6)


@pytest.mark.slow
def test_masked_item_anywhere_is_skipped(oracle):
    scores = np.array([0.4, np.inf, -1.0, 2.0])
    mask = np.array([True, False, True, True])
    want = np.log(oracle.prob(scores, [3, 0, 2], [0, 2, 3]))
    for ranking in ([3, 0, 2, 1], [1, 3, 0, 2], [3, 1, 0, 2]):
        np.testing.assert_allclose(LOG_PROB(scores, jnp.array(ranking), mask), want, atol=1e-6)
    per_place = log_prob_per_place(scores, jnp.array([3, 0, 2, 1]), mask)
    assert per_place[-1] == 0.0
    np.testing.assert_allclose(per_place[2], 0.0, atol=1e-7)  # the last real item is certain


def test_top_k_is_the_marginal_of_full_rankings():
    scores = np.random.default_rng(1).normal(size=6) * 2
    full = np.asarray([p for p in itertools.permutations(range(6)) if p[:2] == (4, 1)])
    np.testing.assert_allclose(
        np.exp(LOG_PROB(scores, full)).sum(), np.exp(LOG_PROB(scores, jnp.array([4, 1]))), rtol=1e-5
    )


@pytest.mark.parametrize("num_places", [2, 4])
@pytest.mark.parametrize(
    "scores",
    [
        [1e4, 0.0, -1e4, 5.0],
        [120.0, 0.0, 30.0, 60.0],
        [np.inf, -np.inf, 0.0, -np.inf],
        [-1e38, 1e38, 0.0, 1.0],
    ],
)
def test_extreme_scores_stay_finite(scores, num_places):
    rankings = np.asarray(list(itertools.permutations(range(4), num_places)))
    scores = jnp.asarray(scores, jnp.float32)
    value, gradient = VALUE_AND_GRADIENT(scores, rankings)
    assert np.isfinite(value).all() and np.isfinite(gradient).all()
    np.testing.assert_allclose(np.exp(value).sum(), 1.0, atol=1e-5)


def test_all_masked_list_is_certain_and_has_no_gradient():
    scores = jnp.full(4, jnp.nan)
    value, gradient = jax.jit(jax.value_and_grad(log_prob))(scores, jnp.arange(3), jnp.zeros(4, bool))
    assert value == 0.0
    np.testing.assert_array_equal(gradient, np.zeros(4))


@pytest.mark.slow
def test_gradient_at_a_wide_gap_is_exact():
    # Clamping probabilities at 1e-8 would give −18.4. The log-probability of the unlikely order is −30, with slope 1.
    value, gradient = jax.value_and_grad(log_prob)(jnp.array([30.0, 0.0]), jnp.array([1, 0]))
    np.testing.assert_allclose(value, -30.0, rtol=1e-6)
    np.testing.assert_allclose(gradient, [-1.0, 1.0], rtol=1e-6)


@pytest.mark.slow
def test_broadcasting_jit_vmap_and_permutation():
    rng = np.random.default_rng(2)
    scores = jnp.asarray(rng.normal(size=(3, 1, 6)), jnp.float32)
    rankings = jnp.asarray(np.stack([[rng.permutation(6)[:4] for _ in range(5)] for _ in range(3)]))
    got = log_prob(scores, rankings)
    assert got.shape == (3, 5)
    np.testing.assert_allclose(got, LOG_PROB(scores, rankings), rtol=1e-6)
    loop = jax.jit(jax.vmap(jax.vmap(log_prob, (None, 0))))(scores[:, 0], rankings)
    np.testing.assert_allclose(got, loop, rtol=1e-6)
    new_place = np.asarray(rng.permutation(6))  # item i is now called new_place[i]
    moved = jnp.zeros_like(scores).at[..., new_place].set(scores)
    np.testing.assert_allclose(LOG_PROB(moved, new_place[rankings]), got, rtol=1e-5)


def test_computation_is_float32_for_bfloat16_scores():
    scores = jnp.asarray([1.0, 2.0, 3.0], jnp.bfloat16)
    assert log_prob(scores, jnp.array([0, 1, 2])).dtype == jnp.float32


@pytest.mark.slow
def test_mode():
    scores = jnp.array([[0.1, 9.0, jnp.nan, 3.0], [1.0, 1.0, 1.0, -jnp.inf]])
    mask = jnp.array([[True, True, False, True], [True, True, True, True]])
    np.testing.assert_array_equal(mode(scores, mask), [[1, 3, 0, 2], [0, 1, 2, 3]])
    np.testing.assert_array_equal(mode(scores, mask, k=2), [[1, 3], [0, 1]])
    assert mode(scores, mask).dtype == jnp.int32


@pytest.mark.slow
def test_probabilities_in_float64_sum_to_one_and_top_k_sums_its_completions():
    rng = np.random.default_rng(5)
    scores, rankings = rng.normal(size=6) * 2, np.asarray(list(itertools.permutations(range(6))))
    with jax.enable_x64(True):

        def log_probs(rankings):
            wide = (jnp.broadcast_to(x, (len(rankings), 6)) for x in (jnp.asarray(scores), jnp.ones(6, bool)))
            wide_scores, real = wide
            return np.asarray(choices(wide_scores, jnp.asarray(rankings), real).log_prob().sum(-1))

        full = np.exp(log_probs(rankings))
        assert full.dtype == np.float64
        np.testing.assert_allclose(full.sum(), 1.0, rtol=0, atol=1e-12)
        for k in (1, 2, 4):
            top = np.unique(rankings[:, :k], axis=0)
            want = [full[(rankings[:, :k] == t).all(-1)].sum() for t in top]
            np.testing.assert_allclose(np.exp(log_probs(top)), want, rtol=1e-11)


@pytest.mark.slow
def test_mode_breaks_ties_at_random_with_a_key():
    scores = jnp.array([1.0, 3.0, 1.0, jnp.nan, 1.0, -0.0, 0.0])
    mask = jnp.array([1, 1, 1, 0, 1, 1, 1], bool)
    rankings = np.asarray(jax.vmap(lambda key: mode(scores, mask, key=key))(jax.random.split(jax.random.key(0), 600)))
    assert (rankings[:, 0] == 1).all() and (rankings[:, -1] == 3).all()
    counts = np.array([(rankings[:, 1] == i).sum() for i in (0, 2, 4)])
    assert counts.sum() == 600 and np.abs(counts - 200).max() < 4 * np.sqrt(600 * 2 / 9)
    assert 0.4 < (rankings[:, 4] == 5).mean() < 0.6  # −0 equals 0
    np.testing.assert_array_equal(mode(scores, mask), [1, 0, 2, 4, 5, 6, 3])  # without a key: input order
    assert mode(scores, mask, k=2, key=jax.random.key(1)).shape == (2,)


MARGINALS = jax.jit(rank_marginals, static_argnames="k")


@pytest.mark.parametrize("spread", [1.0, 8.0])
def test_rank_marginals_match_enumeration(oracle, spread):
    rng = np.random.default_rng(6)
    scores, mask = rng.normal(size=(3, 6)) * spread, np.ones((3, 6), bool)
    mask[1, 2], mask[2] = False, [0, 0, 0, 1, 0, 0]
    scores[~mask] = np.nan
    got = np.asarray(MARGINALS(scores, mask))
    for row in range(3):
        np.testing.assert_allclose(got[row], oracle.marginals(scores[row], mask[row]), atol=1e-6)
    np.testing.assert_allclose(MARGINALS(scores, mask, k=2), got[..., :2], atol=1e-7)
    np.testing.assert_allclose(got.sum(-1), mask, atol=1e-6)


@pytest.mark.slow
def test_rank_marginals_gradient_and_extremes(oracle):
    scores = np.array([0.3, -0.5, 1.0, 0.1])
    weights = np.random.default_rng(0).normal(size=(4, 4))

    def want(i, step=1e-5):
        shift = step * np.eye(4)[i]
        return ((oracle.marginals(scores + shift) - oracle.marginals(scores - shift)) * weights).sum() / (2 * step)

    slope = jax.jit(jax.grad(lambda s: (rank_marginals(s) * weights).sum()))
    np.testing.assert_allclose(slope(jnp.asarray(scores, jnp.float32)), [want(i) for i in range(4)], atol=3e-6)
    wild = jnp.asarray([3e38, -3e38, 1e4, -jnp.inf], jnp.float32)
    np.testing.assert_allclose(MARGINALS(wild)[[0, 2], [0, 1]], 1.0, atol=1e-6)
    assert np.isfinite(slope(wild)).all()


@pytest.mark.parametrize("num_items", [20, 60])
def test_rank_marginals_of_long_uniform_lists(num_items):
    """Every item has probability 1/N at every place; late places need finer nodes."""
    np.testing.assert_allclose(MARGINALS(np.zeros(num_items)), 1 / num_items, atol=1e-6)


@jax.jit
def exact_kl(p, q, mask):
    def total(p, q):
        values = kl(p, q, mask, k=3)
        return values.sum(), values

    slopes, values = jax.grad(total, argnums=(0, 1), has_aux=True)(p, q)
    return values, *slopes


@pytest.mark.slow
def test_kl_and_entropy_match_enumeration(oracle):
    rng = np.random.default_rng(7)
    p, q = rng.normal(size=(2, 3, 5)).astype(np.float32) * 2
    mask = np.ones((3, 5), bool)
    mask[1, [0, 3]] = False
    p[~mask], q[~mask] = np.nan, np.inf
    q[2] = p[2]
    values, slope, other_slope = exact_kl(p, q, mask)
    np.testing.assert_allclose(values, [oracle.kl(*row, 3) for row in zip(p, q, mask)], atol=2e-6)
    assert (np.asarray(slope)[~mask] == 0).all() and (np.asarray(other_slope)[~mask] == 0).all()
    np.testing.assert_allclose(values[2], 0.0, atol=1e-6)
    step = 1e-4 * np.eye(5)[1]
    for got, (up, down) in (
        (slope, ((p[0] + step, q[0]), (p[0] - step, q[0]))),
        (other_slope, ((p[0], q[0] + step), (p[0], q[0] - step))),
    ):
        want = (oracle.kl(*up, None, 3) - oracle.kl(*down, None, 3)) / 2e-4
        np.testing.assert_allclose(got[0, 1], want, atol=2e-5)
    probs = [oracle.prob(p[0], r, range(5)) for r in itertools.permutations(range(5), 3)]
    np.testing.assert_allclose(entropy(p[0], k=3), -np.sum(probs * np.log(probs)), atol=3e-6)


@pytest.mark.slow
def test_sampled_kl_is_unbiased_in_value_and_gradient():
    """20,000 estimates of four rankings: means within 4 standard errors of the exact value and both gradients."""
    rng = np.random.default_rng(8)
    p, q, mask = *rng.normal(size=(2, 5)).astype(np.float32), np.ones(5, bool)
    want = exact_kl(p[None], q[None], mask[None])

    @jax.jit
    def estimates(p, q):
        def total(p, q):
            values = kl(p, q, k=3, key=jax.random.key(2), num_samples=4)
            return values.sum(), values

        slopes, values = jax.grad(total, argnums=(0, 1), has_aux=True)(p, q)
        return values, *slopes

    for got, exact in zip(estimates(*(np.tile(x, (20_000, 1)) for x in (p, q))), want):
        got = np.asarray(got, np.float64)
        error = got.std(0) / np.sqrt(len(got))
        assert (np.abs(got.mean(0) - exact[0]) < 4 * error).all()
        assert (np.abs(exact[0]) > 8 * error).any()
    values = estimates(*(np.tile(x, (20_000, 1)) for x in (p, q)))[0]
    assert (np.asarray(values) >= 0).all()
    sampled = entropy(p, k=3, key=jax.random.key(0), num_samples=20_000)
    np.testing.assert_allclose(sampled, entropy(p, k=3), atol=0.01)


@pytest.mark.slow
def test_sampled_kl_keeps_its_gradient_close_to_the_reference():
    """At a distance of 1e-4 rounding makes the divergence of some places negative; at 1e-1 it does not."""
    rng = np.random.default_rng(9)
    p, noise = rng.normal(size=(2, 10)).astype(np.float32)
    exact = jax.jit(jax.grad(lambda p, q: kl(p, q, k=5)))
    estimate = jax.jit(jax.grad(lambda p, q: kl(p, q, k=5, key=jax.random.key(0), num_samples=4000)))
    for distance in (1e-1, 1e-4):
        want, got = (np.asarray(f(p, p + np.float32(distance) * noise)) for f in (exact, estimate))
        np.testing.assert_allclose(got @ want / (want @ want), 1.0, atol=0.05)


@pytest.mark.slow
def test_entropy_of_uniform_certain_and_masked_rankings():
    exact = jax.jit(entropy)
    scores, mask = np.zeros((4, 5)), np.ones((4, 5), bool)
    scores[1], mask[2], mask[3] = [1e4, 0.0, -1e4, 5e4, -5e4], [1, 0, 1, 0, 0], False
    np.testing.assert_allclose(exact(scores, mask), [np.log(120.0), 0.0, np.log(2.0), 0.0], rtol=1e-6, atol=1e-6)
    uniform = entropy(np.zeros(40), k=10, key=jax.random.key(0), num_samples=2)  # each choice's own entropy: no noise
    np.testing.assert_allclose(uniform, np.log(np.arange(31, 41)).sum(), rtol=1e-6)


@pytest.mark.slow
def test_errors_name_requirement_input_and_remedy():
    with pytest.raises(ValueError, match=r"at most N=3 places; got 4; cut it"):
        log_prob(jnp.zeros(3), jnp.arange(4))
    with pytest.raises(ValueError, match="item indices"):
        log_prob(jnp.zeros(3), jnp.zeros(3))
    with pytest.raises(ValueError, match="mask must have as many items as scores: 3"):
        log_prob(jnp.zeros(3), jnp.arange(3), jnp.ones(2, bool))
    with pytest.raises(ValueError, match=r"num_samples must be at least 1; got 0"):
        sample(jax.random.key(0), jnp.zeros(3), num_samples=0)
    with pytest.raises(ValueError, match="positive integer; got k=0"):
        mode(jnp.zeros(3), k=0)
    with pytest.raises(ValueError, match=r"lists of at most 14 items; got N=20; pass key= and num_samples="):
        entropy(jnp.zeros(20))
    with pytest.raises(ValueError, match=r"at least 2; got None; raise it"):
        kl(jnp.zeros(3), jnp.zeros(3), key=jax.random.key(0))
    with pytest.raises(ValueError, match="other must have as many items as scores: 3"):
        kl(jnp.zeros(3), jnp.zeros(4))
    with pytest.raises(
        ValueError, match=r"leading axes of scores and ranking must broadcast; got shapes scores \(2, 3\)"
    ):
        log_prob(jnp.zeros((2, 3)), jnp.tile(jnp.arange(3), (4, 1)))
    with pytest.raises(ValueError, match="leading axes of mask and scores must broadcast"):
        mode(jnp.zeros((2, 3)), jnp.ones((4, 3), bool))
    with pytest.raises(ValueError, match=r"indices from 0 to 2; got indices from 0 to 3; rank the items"):
        log_prob(jnp.zeros(3), jnp.array([0, 3]))
    with jax.disable_jit(), pytest.raises(ValueError, match=r"got indices from -1 to 0"):
        jax.jit(jax.grad(log_prob))(jnp.zeros(3), jnp.array([0, -1]))  # how to check a jitted program
    with pytest.raises(ValueError, match=r"finite and at least 0 .*; got -5.0; raise it to 0"):
        jax.jit(lambda ranking: ndcg(ranking, np.array([1.0, -5.0, 0.0])))(
            jnp.arange(3)
        )  # not traced, so it is checked
    with pytest.raises(ValueError, match="got inf"):
        ndcg(jnp.arange(2), jnp.array([jnp.inf, 0.0]))


@pytest.mark.slow
def test_jitted_calls_have_no_effects_and_so_take_jaxs_fast_path():
    """A `checkify.debug_check` in the program would cost each call 100 µs, even if it is switched off."""
    program = jax.make_jaxpr(lambda s, r, y: (log_prob(s, r), ndcg(r, y)))(jnp.zeros(3), jnp.arange(3), jnp.ones(3))
    assert not program.effects
