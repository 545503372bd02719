"""What systems may see."""

import numpy as np
import pytest

from r2rank_jax.evaluation.baselines.inputs import TrainingData, UnlabeledLists


def test_matrices_hold_each_pair_once():
    data = TrainingData(np.array([1, 0, 1, 1]), np.array([2, 0, 2, 1]), 3, 4)
    assert data.matrix().toarray().tolist() == [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    lists = UnlabeledLists(np.array([0, 2]), [np.array([3, 3, 1]), np.array([], int)], np.zeros((2, 2), int))
    assert lists.history_matrix(4).toarray().tolist() == [[0, 1, 0, 1], [0, 0, 0, 0]]


def test_sequences_keep_the_order_of_each_user():
    data = TrainingData(np.array([2, 0, 2, 0, 2]), np.array([5, 1, 3, 0, 5]), 4, 6)
    assert [sequence.tolist() for sequence in data.sequences()] == [[1, 0], [], [5, 3, 5], []]


def test_lists_have_no_place_for_a_label():
    assert set(UnlabeledLists.__dataclass_fields__) == {"users", "histories", "candidates"}


@pytest.mark.parametrize(
    ("users", "items", "message"),
    [([0], [0, 1], "must pair up"), ([-1], [0], "dense ids"), ([3], [0], "below 3"), ([0], [0.5], "integers")],
)
def test_bad_training_data_are_named(users, items, message):
    with pytest.raises(ValueError, match=message):
        TrainingData(np.array(users), np.array(items), 3, 2)


@pytest.mark.parametrize(
    ("histories", "candidates", "message"),
    [([[0], [1]], [[0]], "one row per list"), ([[-1]], [[0]], "dense ids"), ([[0]], [[0.5]], "integers")],
)
def test_bad_lists_are_named(histories, candidates, message):
    with pytest.raises(ValueError, match=message):
        UnlabeledLists(np.array([0]), [np.array(history) for history in histories], np.array(candidates))
