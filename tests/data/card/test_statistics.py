"""Compare the card's statistics with plain loops and with hand-computed cases."""

import numpy as np
import pytest

from r2rank_jax.data.card.statistics import (
    HISTORIES,
    InteractionCounts,
    ListCounts,
    characters,
    gini,
    history_sums,
    quantiles,
    share_of_top,
    words,
)

DAY = 86_400
OFFSETS = np.array([0, 3, 5])
ITEM = np.array([0, 1, 2, 0, 3])
RATING = np.array([1.0, 5.0, 5.0, 4.5, 1.0], np.float32)
TIME = np.array([10 * DAY, 10 * DAY, 12 * DAY + 5, 12 * DAY + 5, 12 * DAY + 5])


def test_interaction_counts_equal_hand_computed_ones():
    counts = InteractionCounts(5, "s")
    counts.add(OFFSETS, ITEM, RATING, TIME)
    counts.add(np.array([0, 1]), np.array([0]), np.array([np.nan], np.float32), np.array([40 * DAY]))
    assert counts.per_item.tolist() == [3, 1, 1, 1, 0]
    assert counts.lengths.tolist() == [3, 2, 1]
    assert counts.days == {10: 2, 12: 3, 40: 1}
    summary = counts.summary()
    # Two interactions tie with the same user's previous one. A time shared with another user does not count.
    assert summary["tied_with_the_interaction_before"] == {"interactions": 2, "share": 0.3333}
    assert summary["ratings"] == {"1": 2, "4.5": 1, "5": 2}
    assert summary["time_span"] == {"first": "1970-01-11", "last": "1970-02-10", "days": 30}
    assert summary["history_lengths"]["median"] == 2 and summary["history_lengths"]["mean"] == 2.0
    assert summary["popularity"]["items_without_interactions"] == 1


def test_milliseconds_give_the_same_days():
    seconds, thousandths = InteractionCounts(5, "s"), InteractionCounts(5, "ms")
    seconds.add(OFFSETS, ITEM, RATING, TIME)
    thousandths.add(OFFSETS, ITEM, RATING, TIME * 1000 + 999)
    assert seconds.days == thousandths.days
    assert seconds.summary()["time_span"] == thousandths.summary()["time_span"]


def test_ratings_with_too_many_values_are_not_listed():
    counts = InteractionCounts(1, "s")
    n = 101
    counts.add(np.array([0, n]), np.zeros(n, int), np.arange(n, dtype=np.float32), np.arange(n))
    assert counts.ratings() == {}


def test_counting_by_bucket_equals_counting_at_once():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, 30)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    item, rating = rng.integers(0, 50, offsets[-1]), rng.integers(1, 6, offsets[-1]).astype(np.float32)
    time = np.concatenate([np.sort(rng.integers(0, 5 * DAY, n)) for n in lengths])
    whole, parts = InteractionCounts(50, "s"), InteractionCounts(50, "s")
    whole.add(offsets, item, rating, time)
    for first, stop in ((0, 7), (7, 8), (8, 30)):
        rows = slice(offsets[first], offsets[stop])
        parts.add(offsets[first : stop + 1] - offsets[first], item[rows], rating[rows], time[rows])
    assert whole.summary() == parts.summary()
    assert whole.days == parts.days and (whole.per_item == parts.per_item).all()


def test_gini_equals_half_the_relative_mean_difference():
    counts = np.random.default_rng(1).integers(0, 40, 200)
    difference = np.abs(counts[:, None] - counts[None]).mean()
    assert gini(counts) == pytest.approx(difference / (2 * counts.mean()))
    assert gini(np.zeros(3, int)) == 0.0


def test_share_of_top_rounds_up_to_whole_items():
    assert share_of_top(np.array([1, 1, 8]), 0.34) == 0.9
    assert share_of_top(np.array([5, 0, 0, 0]), 0.01) == 1.0


def test_quantiles_are_observed_values():
    assert quantiles(np.array([1, 2, 10])) == {
        "mean": 4.33, "min": 1, "p25": 1, "median": 2, "p75": 10, "p95": 10, "max": 10,
    }  # fmt: skip
    assert quantiles(np.zeros(0)) == {}


def test_lists_are_counted_against_the_whole_sequence():
    lists = ListCounts(np.array([9, 2, 3, 4, 5, 1]))
    # The bucket starts at user 7, whose items are 0, 1, 2 in this order. The lists are at position 1.
    sequence = (7, OFFSETS, ITEM)
    rows = {
        "valid": ([1, 4, 5], [1, 0, 0]),
        "a later item as negative": ([1, 2, 5], [1, 0, 0]),
        "seen in the history": ([0, 4, 5], [1, 0, 0]),
    }
    for items, labels in rows.values():
        lists.add(*sequence, np.array([7]), np.array([1]), np.array([items]), np.array([labels], np.float32))
    summary = lists.summary()
    assert summary["lists"] == 3
    assert summary["positives_among_negatives"] == 1
    assert summary["relevant_items_seen_in_history"] == 1
    assert lists.relevant.sum() == 3 and lists.negative.sum() == 6
    # From least to most popular: items 5, 1, 2, 3, 4, 0. Each is a sixth of the catalog.
    assert summary["median_popularity_percentile"]["relevant"] == pytest.approx(1 / 6, abs=0.01)


def test_no_lists_have_no_median():
    summary = ListCounts(np.array([1, 2])).summary()
    assert summary["median_popularity_percentile"] == {"relevant": None, "negatives": None}
    assert summary["history_lengths"] == {}


def test_lengths_of_texts():
    texts = ["", "one", "two  words", "émigré"]
    assert characters(texts).tolist() == [0, 3, 10, 6]
    assert words(texts).tolist() == [0, 1, 2, 1]


def test_lengths_of_histories():
    rng = np.random.default_rng(2)
    offsets, each = np.array([0, 70, 75]), rng.integers(1, 9, 40)
    item = rng.integers(0, 40, 75)
    user, position = np.array([3, 4, 3]), np.array([65, 5, 0])
    sums = history_sums(offsets, item, 3, user, position, each)
    for row, (u, p) in enumerate(zip(user - 3, position)):
        for column, shown in enumerate(HISTORIES):
            start = offsets[u]
            rows = range(max(start, start + p - shown), start + p)
            assert sums[row, column] == sum(each[item[r]] for r in rows)
