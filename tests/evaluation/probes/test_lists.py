"""Measures of lists, against hand-made cases and brute force."""

import numpy as np
import pytest
import scipy.stats

from r2rank_jax.evaluation.probes.lists import (
    lists_of_other_users,
    negatives_of_lists,
    popularity_of_positives,
    rank_among,
    spearman,
    verdict_calibration,
)
from r2rank_jax.evaluation.probes.summaries import Bootstrap, equal_groups
from r2rank_jax.evaluation.probes.titles import COPIED, injected_texts, with_text


def test_calibration_by_hand():
    verdicts = np.array(["yes", "no", "yes", "maybe", "no", "no"])
    positive = np.array([True, False, False, True, False, True])
    scores = np.array([3.0, -1.0, 1.0, 9.0, 0.0, -2.0])
    table = verdict_calibration(verdicts, positive, scores, least=2)
    assert table == [
        {"verdict": "yes", "count": 2, "positives": 0.5, "score": 2.0},
        {"verdict": "no", "count": 3, "positives": pytest.approx(1 / 3), "score": -1.0},
    ]
    assert verdict_calibration(verdicts[:0], positive[:0], scores[:0], least=1) == []


def test_spearman_is_scipys_ties_included_and_nan_for_constant_lists():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(30, 8)), rng.integers(0, 4, (30, 8)).astype(float)
    expected = [scipy.stats.spearmanr(x, y).statistic for x, y in zip(a, b)]
    np.testing.assert_allclose(spearman(a, b), expected, atol=1e-12)
    constant = spearman(np.ones((1, 4)), np.arange(4.0)[None])
    assert np.isnan(constant).all()


def test_changes_of_rank_by_brute_force():
    rng = np.random.default_rng(0)
    others = rng.integers(0, 4, (50, 6)).astype(float)
    before, after = rng.integers(0, 4, (2, 50)).astype(float)

    def mean_rank(score, rest):
        """Over every place that an item with this score can have among its equals."""
        items = sorted([*rest, score], reverse=True)
        return np.mean([place for place, value in enumerate(items, start=1) if value == score])

    expected = [mean_rank(b, rest) - mean_rank(a, rest) for a, b, rest in zip(after, before, others)]
    np.testing.assert_allclose(rank_among(before, others) - rank_among(after, others), expected)
    assert rank_among(np.array([9.0, -9.0]), others[:2]).tolist() == [1.0, 7.0]


def test_popularity_of_positives_is_the_mean_over_them():
    counts = np.array([10, 0, 3, 7])
    items, labels = np.array([[0, 1, 2], [3, 2, 1]]), np.array([[0, 1.0, 0], [2.0, 0.5, 0]])
    assert popularity_of_positives(items, labels, counts).tolist() == [0.0, 5.0]


def test_every_list_is_shown_once_to_another_user():
    for users in ([3, 3, 5, 5, 7, 9], list(range(20)), [1, 1, 2, 2]):
        user = np.array(users)
        others = lists_of_other_users(user, np.random.default_rng(0))
        assert sorted(others.tolist()) == list(range(len(user))) and (user[others] != user).all()
    assert lists_of_other_users(np.array([1, 1, 2]), np.random.default_rng(0)) is None
    assert lists_of_other_users(np.array([4]), np.random.default_rng(0)) is None
    assert lists_of_other_users(np.array([4, 4]), np.random.default_rng(0)) is None


def test_negatives_come_from_as_many_lists_as_possible():
    labels = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 0.5], [1, 1, 1]])
    lists, places = negatives_of_lists(labels, 3, np.random.default_rng(0))
    assert sorted(lists.tolist()) == [0, 1, 2] and (labels[lists, places] == 0).all()
    lists, places = negatives_of_lists(labels, 99, np.random.default_rng(0))
    assert len(set(zip(lists.tolist(), places.tolist()))) == len(lists) == 6
    assert sorted(lists[:3].tolist()) == [0, 1, 2] == sorted(lists[3:].tolist())
    assert all(len(part) == 0 for part in negatives_of_lists(np.ones((2, 3)), 5, np.random.default_rng(0)))


def test_groups_are_equal_and_hold_every_list_once():
    values = np.random.default_rng(0).integers(0, 5, 11).astype(float)
    groups = equal_groups(values)
    assert [len(group) for group in groups] == [4, 4, 3]
    assert sorted(np.concatenate(groups).tolist()) == list(range(11))
    assert values[groups[0]].max() <= values[groups[1]].min() and values[groups[1]].max() <= values[groups[2]].min()


def test_a_user_counts_once_however_many_values_it_has():
    cell = Bootstrap(100, 0).cell(np.array([1.0, 1.0, 1.0, 5.0]), np.array([7, 7, 7, 9]))
    assert cell["mean"] == 3.0 and cell["n"] == 2 and cell["ci95"] == [1.0, 5.0]


def test_conditions_are_compared_with_the_first_and_empty_groups_are_left_out():
    bootstrap, users = Bootstrap(100, 0), np.arange(4)
    own, other = np.array([1.0, 0.5, 0.5, 1.0]), np.array([0.5, 0.0, 0.0, 0.5])
    table = bootstrap.conditions({"own": own, "cut": other}, users)
    assert set(table["own"]) == {"ndcg"} and table["cut"]["ndcg"]["mean"] == 0.25
    assert table["cut"]["difference"] == {"mean": -0.5, "ci95": [-0.5, -0.5], "n": 4}
    by = np.array([1.0, 9.0, 2.0, 3.0])
    (group,) = bootstrap.groups(own, users, by, [np.array([], int), np.array([0, 2])])
    assert (group["from"], group["to"], group["lists"], group["ndcg"]["mean"]) == (1.0, 2.0, 2, 0.75)


def test_texts_copy_the_last_titles_of_the_history():
    texts = injected_texts([f"Film {n}" for n in range(9)], "Heat")
    assert texts["history_titles"] == ", ".join(f"Film {n}" for n in range(9 - COPIED, 9))
    assert texts["other_title"] == "Heat" and len(set(texts.values())) == 5
    assert with_text("", "praise") == "praise" and with_text("Heat", "praise") == "Heat praise"
