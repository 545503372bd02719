"""Intervals and tests against enumeration, and their behaviour under repetition."""

import itertools

import numpy as np
import pytest

from r2rank_jax.evaluation import significance
from r2rank_jax.evaluation.significance import bootstrap_interval, compare, holm, paired_test


def brute_force_p(differences):
    observed = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences)))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    return sum(s >= observed - 1e-9 for s in sums) / len(sums)


def test_three_users_by_hand():
    # |±1 ±2 ±3| reaches 6 for two of the eight sign patterns.
    assert paired_test([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], samples=8, seed=0) == 0.25


@pytest.mark.parametrize("seed", range(5))
def test_small_samples_are_enumerated(seed):
    differences = np.random.default_rng(seed).normal(0.3, 1, size=9).round(1)
    expected = brute_force_p(differences.tolist())
    assert paired_test(differences, np.zeros(9), samples=512, seed=0) == pytest.approx(expected)


def test_sampled_p_is_near_the_exact_one():
    differences = np.random.default_rng(7).normal(0.25, 1, size=15)
    exact = paired_test(differences, np.zeros(15), samples=2**15, seed=0)
    sampled = paired_test(differences, np.zeros(15), samples=2**15 - 1, seed=0)
    assert exact == pytest.approx(brute_force_p(differences.tolist()))
    assert sampled == pytest.approx(exact, abs=0.015) and sampled != exact


def test_p_is_two_sided_symmetric_and_never_zero():
    rng = np.random.default_rng(0)
    a = rng.normal(5, 0.1, size=200)
    b = rng.normal(0, 0.1, size=200)
    assert paired_test(a, b, samples=999, seed=0) == 1 / 1000 == paired_test(b, a, samples=999, seed=0)


def test_equal_systems_give_p_one():
    values = np.random.default_rng(0).random(50)
    assert paired_test(values, values, samples=100, seed=0) == 1.0


def test_blocks_do_not_change_the_sampled_bits(monkeypatch):
    differences = np.random.default_rng(1).normal(0.1, 1, size=64)
    whole = paired_test(differences, np.zeros(64), samples=2000, seed=3)
    monkeypatch.setattr(significance, "BLOCK_ELEMENTS", 64 * 100)
    assert paired_test(differences, np.zeros(64), samples=2000, seed=3) == pytest.approx(whole, abs=0.04)
    rows = [block.shape for block in significance._sampled(64, 250, 0)]
    assert rows == [(100, 64), (100, 64), (50, 64)]


def test_interval_of_a_constant_is_a_point():
    assert bootstrap_interval(np.full(10, 0.25), 100, seed=0) == (0.25, 0.25, 0.25)


def test_interval_holds_the_mean_and_covers_the_truth():
    rng = np.random.default_rng(0)
    covered = 0
    for repeat in range(200):
        mean, low, high = bootstrap_interval(rng.random(80), 300, seed=repeat)
        assert low <= mean <= high
        covered += low <= 0.5 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_interval_has_the_normal_width():
    values = np.random.default_rng(2).normal(size=1000)
    _, low, high = bootstrap_interval(values, 2000, seed=0)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(1000), rel=0.08)


def test_compare_pairs_users():
    # Users differ by 100, systems by 1: only a paired comparison sees it.
    users = np.random.default_rng(0).normal(0, 100, size=40)
    noise = np.random.default_rng(1).normal(0, 0.5, size=40)
    comparison = compare(users + 1 + noise, users, bootstrap_samples=500, permutation_samples=2000, seed=0)
    assert comparison.difference == pytest.approx(1 + noise.mean())
    assert 0 < comparison.low < comparison.difference < comparison.high
    assert comparison.p < 0.001


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [([1.0], [1.0, 2.0], "same users"), ([], [], "at least one user"), ([np.nan], [1.0], "finite")],
)
def test_bad_input_is_named(a, b, message):
    with pytest.raises(ValueError, match=message):
        paired_test(a, b, samples=10, seed=0)


def test_no_samples_is_an_error():
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        bootstrap_interval([1.0], 0, seed=0)


def rejected(p_values, level):
    """Holm's procedure as he wrote it: which hypotheses are rejected at a level."""
    order = np.argsort(p_values, kind="stable")
    decisions = [False] * len(p_values)
    for rank, index in enumerate(order):
        if p_values[index] > level / (len(p_values) - rank):
            break
        decisions[index] = True
    return decisions


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02] and holm([]) == []
    assert holm([0.01, 0.01, 0.01]) == pytest.approx([0.03, 0.03, 0.03])


def test_holm_rejects_what_the_procedure_rejects():
    rng = np.random.default_rng(0)
    for _ in range(300):
        p_values = (rng.random(rng.integers(1, 8)) ** 3).round(3) + 1e-3
        adjusted = holm(p_values.tolist())
        assert all(p <= a <= 1 for p, a in zip(p_values, adjusted))
        for level in (0.01, 0.05, 0.2):
            decisions = [a <= level + 1e-12 for a in adjusted]
            if not any(abs(a - level) < 1e-9 for a in adjusted):  # rounding decides those
                assert decisions == rejected(p_values, level)
