"""EASE against least squares, column by column."""

import numpy as np
import pytest

from r2rank_jax.evaluation.baselines import ease
from r2rank_jax.evaluation.baselines.inputs import TrainingData, UnlabeledLists


def test_weights_are_the_least_squares_without_the_item_itself(train):
    """Column j: min |X_j - X_others b|^2 + lambda |b|^2, as ordinary least squares on lengthened rows."""
    regularization, matrix = 3.0, train.matrix().toarray()
    expected = np.zeros((20, 20))
    for item in range(20):
        others = np.delete(np.arange(20), item)
        rows = np.vstack([matrix[:, others], np.sqrt(regularization) * np.eye(19)])
        expected[others, item] = np.linalg.lstsq(rows, np.append(matrix[:, item], np.zeros(19)))[0]
    computed = ease.ease_weights(train, regularization=regularization)
    np.testing.assert_allclose(computed, expected, atol=1e-10)
    assert np.abs(computed).max() > 0.1


def test_two_items_by_hand():
    """X'X = [[3, 2], [2, 2]]: regression of one item on the other alone is 2 / (3 + 1) and 2 / (2 + 1)."""
    data = TrainingData(np.array([0, 1, 2, 0, 1]), np.array([0, 0, 0, 1, 1]), 3, 2)
    np.testing.assert_allclose(ease.ease_weights(data, regularization=1.0), [[0, 2 / 4], [2 / 3, 0]])
    lists = UnlabeledLists(
        np.zeros(3, int), [np.array([0, 0]), np.array([1]), np.array([], int)], np.array([[0, 1]] * 3)
    )
    np.testing.assert_allclose(ease.fit_ease(data, regularization=1.0)(lists), [[0, 1 / 2], [2 / 3, 0], [0, 0]])


def test_an_item_without_training_interactions_has_no_weight(train):
    weights = ease.ease_weights(train, regularization=2.0)
    assert not weights[19].any() and not weights[:, 19].any()


def test_settings_and_sizes_that_cannot_work_are_refused(train):
    with pytest.raises(ValueError, match="regularization must be above 0, got 0"):
        ease.fit_ease(train, regularization=0)
    with pytest.raises(ValueError, match="at most 30000 items, got 30001"):
        ease.fit_ease(TrainingData(np.array([0]), np.array([0]), 1, 30_001), regularization=1)
