"""Random and popularity, and the expected value of a random ranking."""

import math

import numpy as np
import pytest

from r2rank_jax.evaluation import baselines


def test_popularity_counts():
    computed = baselines.popularity_scores([2, 2, 0], [[0, 1, 2, 9, -1]])
    assert computed.tolist() == [[1, 0, 2, 0, 0]]


def test_random_scores_are_seeded():
    one, again, other = (baselines.random_scores(np.zeros((5, 4)), seed=s) for s in (1, 1, 2))
    assert one.shape == (5, 4) and (one == again).all() and (one != other).all()


@pytest.mark.slow
def test_analytic_random():
    assert baselines.analytic_random(20, [10])["ndcg@10"] == pytest.approx(0.2272, abs=5e-5)
    assert baselines.analytic_random(1, [10])["ndcg@10"] == 1.0
    assert baselines.analytic_random(4, [2], "2*recall@3")["2*recall@3"] == pytest.approx(1.5)
    expected = baselines.analytic_random(4, [2])
    assert expected == {
        "ndcg@2": pytest.approx((1 + 1 / math.log2(3)) / 4),
        "hr@2": pytest.approx(0.5),
        "mrr": pytest.approx(25 / 48),
    }
