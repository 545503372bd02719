"""ALS: the user's step against least squares, the whole fit against a dense one."""

import sys

import numpy as np
import pytest

from r2rank_jax.errors import UsageError
from r2rank_jax.evaluation.baselines import als


def _dense_step(targets, factors, regularization, weight):
    """Row u: min over x of sum_i c_ui (p_ui - x'y_i)^2 + lambda |x|^2, as ordinary least squares on weighted rows."""
    solved = []
    for row in targets:
        root = np.sqrt(1 + weight * row)
        rows = np.vstack([root[:, None] * factors, np.sqrt(regularization) * np.eye(factors.shape[1])])
        solved.append(np.linalg.lstsq(rows, np.append(root * row, np.zeros(factors.shape[1])))[0])
    return np.array(solved)


def test_user_factors_are_the_weighted_least_squares_of_the_history(lists):
    factors = np.random.default_rng(2).normal(size=(20, 4))
    computed = als.solve_users(lists, factors, regularization=0.5, weight=3.0)
    expected = _dense_step(lists.history_matrix(20).toarray(), factors, 0.5, 3.0)
    np.testing.assert_allclose(computed, expected, atol=1e-10)
    assert not computed[0].any() and np.abs(computed[1:]).max() > 0.1


def test_users_are_solved_in_blocks(lists, monkeypatch):
    factors = np.random.default_rng(2).normal(size=(20, 4))
    whole = als.solve_users(lists, factors, regularization=0.5, weight=3.0)
    monkeypatch.setattr(als, "SOLVED_TOGETHER", 5)
    np.testing.assert_array_equal(als.solve_users(lists, factors, regularization=0.5, weight=3.0), whole)


def test_the_fit_agrees_with_dense_alternating_least_squares(train, lists):
    """One factor has one optimum up to its sign, which scores do not see."""
    pytest.importorskip("implicit", reason="the extra baselines is not installed")
    matrix = train.matrix().toarray()
    users, items = np.full((30, 1), 0.1), np.full((20, 1), 0.1)
    for _ in range(200):
        users = _dense_step(matrix, items, 0.5, 3.0)
        items = _dense_step(matrix.T, users, 0.5, 3.0)
    reader = _dense_step(lists.history_matrix(20).toarray(), items, 0.5, 3.0)
    expected = np.take_along_axis(reader @ items.T, lists.candidates, axis=1)
    score = als.fit_als(train, factors=1, regularization=0.5, weight=3.0, iterations=200, seed=0)
    np.testing.assert_allclose(score(lists), expected, atol=1e-4)


def test_a_missing_extra_is_named(train, monkeypatch):
    monkeypatch.setitem(sys.modules, "implicit.cpu.als", None)
    with pytest.raises(UsageError, match=r"pip install 'r2rank-jax\[baselines\]'") as error:
        als.fit_als(train, factors=2, regularization=1, weight=1, iterations=1, seed=0)
    assert "\n" not in str(error.value)
