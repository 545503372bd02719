from itertools import permutations

import numpy as np
import pytest

from r2rank_jax.data.prepared.negatives import sample_by_weight, sample_outside
from r2rank_jax.errors import DataError


def test_weighted_sampling_matches_the_distribution_of_successive_draws():
    weight = np.array([1.0, 5.0, 2.0, 9.0, 3.0])
    excluded, cumulative = np.array([3]), np.cumsum(weight)
    expected = {}
    for first, second in permutations([0, 1, 2, 4], 2):
        left = weight.sum() - weight[3]
        expected[first, second] = weight[first] / left * weight[second] / (left - weight[first])
    assert np.isclose(sum(expected.values()), 1)
    rng, n = np.random.default_rng(0), 20_000
    drawn = [tuple(sample_by_weight(rng, excluded, cumulative, 2).tolist()) for _ in range(n)]
    for pair, chance in expected.items():
        assert abs(drawn.count(pair) / n - chance) < 5 * np.sqrt(chance * (1 - chance) / n)


def test_weighted_sampling_terminates_when_nearly_all_weight_is_excluded():
    weight = np.ones(1000)
    weight[:10] = 1e9
    excluded = np.arange(10)
    counts = np.zeros(1000)
    for seed in range(300):
        drawn = sample_by_weight(np.random.default_rng(seed), excluded, np.cumsum(weight), 100)
        assert len(set(drawn.tolist())) == 100 and drawn.min() >= 10
        counts[drawn] += 1
    assert np.abs(counts[10:] / 300 - 100 / 990).max() < 0.09  # five standard deviations


@pytest.mark.parametrize("draw", ["uniform", "weighted"])
def test_all_other_items_can_be_drawn_but_no_more(draw):
    excluded, rng = np.array([7, 0, 3]), np.random.default_rng(0)

    def sample(count):
        if draw == "uniform":
            return sample_outside(rng, excluded, 10, count)
        return sample_by_weight(rng, excluded, np.cumsum(np.arange(1.0, 11.0)), count)

    assert sorted(sample(7).tolist()) == [1, 2, 4, 5, 6, 8, 9]
    with pytest.raises(DataError, match=r"8 negatives need as many items .* got 7 of 10"):
        sample(8)
