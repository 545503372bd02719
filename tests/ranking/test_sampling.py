"""Sampling: the distribution under both algorithms, certain outcomes, and independence of padding."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from r2rank_jax.ranking import rank_marginals, sample
from r2rank_jax.ranking.draws.sampling import ITEMS_PER_PLACE

NUM_SAMPLES = 40_000
SMALLEST_P = 1e-4  # a χ² test fails below this; the seeds are fixed


def chi_square_p(counts, probs, num_samples):
    """P(χ² at least as large) for observed counts; rare outcomes are pooled so that each cell expects at least five."""
    counts, expected = np.ravel(counts), np.ravel(probs) * num_samples
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    keep = expected > 0
    if counts[~keep].sum() > 0:
        return 0.0  # an outcome of probability 0 occurred
    statistic = ((counts[keep] - expected[keep]) ** 2 / expected[keep]).sum()
    return stats.chi2.sf(statistic, keep.sum() - 1)


# Noise; discarding repeats; discarding repeats with one item that takes 0.97 of all draws, so that noise completes most
# rankings; and the same with weights that underflow relative to the largest.
CASES = {
    "noise": (np.array([0.5, -0.7, 1.2, 0.0, 2.0]), 5),
    "repeats": (np.linspace(-1, 1, 16), 2),
    "repeats_short": (np.append(np.linspace(-1, 1, 15), 6.5), 2),
    "repeats_underflow": (np.append(np.linspace(-1, 1, 15), 150.0), 2),
}


@pytest.mark.parametrize("case", CASES)
def test_rankings_follow_the_distribution(oracle, case):
    scores, k = CASES[case]
    assert (len(scores) >= ITEMS_PER_PLACE * k) == case.startswith("repeats")
    rankings = np.asarray(jax.jit(lambda s: sample(jax.random.key(3), s, num_samples=NUM_SAMPLES, k=k))(scores))
    assert rankings.dtype == np.int32 and rankings.shape == (NUM_SAMPLES, k)
    assert all(len(set(r)) == k for r in rankings[:1000].tolist())
    every = list(itertools.permutations(range(len(scores)), k))
    code = {r: n for n, r in enumerate(every)}
    counts = np.bincount([code[tuple(r)] for r in rankings.tolist()], minlength=len(every))
    probs = np.array([oracle.prob(scores, r, range(len(scores))) for r in every])
    assert chi_square_p(counts, probs, NUM_SAMPLES) > SMALLEST_P
    # The test is sensitive: it rejects slightly different scores.
    tilted = scores * 0.9 + 0.2 * (np.arange(len(scores)) % 2)
    wrong = np.array([oracle.prob(tilted, r, range(len(scores))) for r in every])
    assert chi_square_p(counts, wrong, NUM_SAMPLES) < SMALLEST_P


def test_sampled_rank_marginals_agree_with_exact_ones():
    """Each place is tested separately, because the places of a ranking depend on each other."""
    scores, mask = np.array([0.5, np.nan, -0.7, 1.2, 0.0, 2.0]), np.array([1, 0, 1, 1, 1, 1], bool)
    rankings = np.asarray(sample(jax.random.key(4), scores, mask, num_samples=NUM_SAMPLES))
    assert (rankings[:, -1] == 1).all()  # the masked item is last
    exact = np.asarray(rank_marginals(scores, mask), np.float64)
    for place in range(5):
        counts = np.bincount(rankings[:, place], minlength=6)
        assert chi_square_p(counts, exact[:, place], NUM_SAMPLES) > SMALLEST_P
        assert chi_square_p(counts, np.roll(exact[:, place], 1), NUM_SAMPLES) < SMALLEST_P


@pytest.mark.slow
@pytest.mark.parametrize(("num_items", "k"), [(6, 3), (17, 2)])
def test_padding_changes_no_ranking(num_items, k):
    scores = np.random.default_rng(0).normal(size=(3, num_items)).astype(np.float32)
    padded = np.pad(scores, ((0, 0), (0, 4)), constant_values=np.nan)
    mask = np.arange(num_items + 4) < num_items
    want = sample(jax.random.key(8), scores, num_samples=200, k=k)
    got = sample(jax.random.key(8), padded, mask, num_samples=200, k=k)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("num_items", [6, 32])
def test_masked_items_fill_the_last_places(num_items):
    """Also if there are fewer real items than places, for both algorithms."""
    mask = np.zeros((3, num_items), bool)
    mask[0, [1, 4]], mask[1, 2] = True, True
    scores = np.where(mask, 0.0, np.inf)
    rankings = np.asarray(sample(jax.random.key(0), scores, mask, num_samples=50, k=4))
    assert set(map(tuple, rankings[0].tolist())) == {(1, 4, 0, 2), (4, 1, 0, 2)}
    assert (rankings[1] == [2, 0, 1, 3]).all() and (rankings[2] == [0, 1, 2, 3]).all()


@pytest.mark.slow
def test_wide_gaps_give_certain_rankings_with_both_algorithms():
    for num_items in (5, 40):
        scores = np.linspace(0, -1e4 * num_items, num_items)[::-1]
        rankings = np.asarray(sample(jax.random.key(0), scores, num_samples=20, k=4))
        assert (rankings == num_items - 1 - np.arange(4)).all()


def test_lists_and_samples_have_independent_noise_and_offsets_do_not_change_it():
    scores = jnp.zeros((2, 3, 5))
    got = sample(jax.random.key(0), scores, num_samples=4, k=2)
    assert got.shape == (2, 3, 4, 2)
    assert sample(jax.random.key(0), scores, num_samples=4, k=9).shape == (2, 3, 4, 5)
    assert len(np.unique(np.asarray(got).reshape(-1, 2), axis=0)) > 5
    np.testing.assert_array_equal(got, sample(jax.random.key(0), scores + 1e6, num_samples=4, k=2))


def test_noise_is_float32_for_bfloat16_scores():
    first = sample(jax.random.key(0), jnp.zeros(8, jnp.bfloat16), num_samples=4000, k=1)[:, 0]
    counts = np.bincount(np.asarray(first), minlength=8)  # bfloat16 noise would tie and favor low indices
    assert chi_square_p(counts, np.full(8, 1 / 8), 4000) > SMALLEST_P


@pytest.mark.slow
def test_vmap_and_jit_draw_the_same_rankings_as_eager():
    scores = np.random.default_rng(1).normal(size=(4, 24)).astype(np.float32)
    keys = jax.random.split(jax.random.key(2), 4)
    eager = [sample(key, s, num_samples=5, k=3) for key, s in zip(keys, scores)]
    mapped = jax.jit(jax.vmap(lambda key, s: sample(key, s, num_samples=5, k=3)))(keys, scores)
    np.testing.assert_array_equal(mapped, np.stack(eager))
