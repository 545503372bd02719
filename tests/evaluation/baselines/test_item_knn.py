"""Item-based nearest neighbors against loops over sets."""

import math

import numpy as np
import pytest

from r2rank_jax.evaluation import baselines


def interactions():
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 30, size=400), rng.zipf(1.6, size=400) % 25
    candidates = rng.integers(0, 28, size=(12, 8))  # 25..27 never occur in training
    histories = [rng.integers(0, 28, size=n) for n in (0, 1, 2, 3, 5, 8, 13, 5, 5, 5, 5, 5)]
    return users, items, histories, candidates


def test_item_knn_agrees_with_a_loop():
    users, items, histories, candidates = interactions()
    readers = {item: {int(u) for u, i in zip(users, items) if i == item} for item in range(28)}

    def cosine(i, j):
        both = len(readers[i] & readers[j])
        return both / math.sqrt(len(readers[i]) * len(readers[j])) if both and i != j else 0.0

    expected = [[sum(cosine(i, int(j)) for j in h[-5:]) for i in row] for h, row in zip(histories, candidates.tolist())]
    computed = baselines.item_knn_scores(users, items, histories, candidates, history=5)
    np.testing.assert_allclose(computed, expected, atol=1e-12)
    assert (np.abs(computed) > 0.01).any()


def test_item_knn_ignores_padding_and_repeated_interactions():
    users, items, histories, candidates = interactions()
    plain = baselines.item_knn_scores(users, items, histories, candidates, history=5)
    padded = [np.concatenate([[-1, -1], row, [-1]]).astype(int) for row in histories]
    twice = baselines.item_knn_scores(np.tile(users, 2), np.tile(items, 2), padded, candidates, history=5)
    np.testing.assert_array_equal(plain, twice)
    wider = np.concatenate([candidates, np.full((12, 1), -1)], axis=1)
    computed = baselines.item_knn_scores(users, items, histories, wider, history=5)
    np.testing.assert_array_equal(computed, np.concatenate([plain, np.zeros((12, 1))], axis=1))


@pytest.mark.parametrize("exponent", [0.0, 0.25, 1.0])
def test_an_asymmetric_cosine_over_all_history_agrees_with_a_loop(exponent):
    users, items, histories, candidates = interactions()
    readers = {item: {int(u) for u, i in zip(users, items) if i == item} for item in range(28)}

    def closeness(i, j):
        both = len(readers[i] & readers[j])
        return both / (len(readers[i]) ** exponent * len(readers[j]) ** (1 - exponent)) if both and i != j else 0.0

    expected = [[sum(closeness(i, int(j)) for j in h) for i in row] for h, row in zip(histories, candidates.tolist())]
    computed = baselines.item_knn_scores(
        users, items, histories, candidates, history=None, popularity_exponent=exponent
    )
    np.testing.assert_allclose(computed, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0], [0, 1], [[0]], [[0]]), "must pair up"),
        (([0], [0], [], [[0]]), "one sequence per candidate row"),
        (([-1], [0], [[0]], [[0]]), "dense ids"),
        (([0], [0.5], [[0]], [[0]]), "integers"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        baselines.item_knn_scores(*arguments, history=5)
