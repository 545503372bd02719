"""The scale found is the one that the cross-entropy wants."""

import numpy as np

from r2rank_jax.train.calibration import best_scale


def test_scale_recovers_the_temperature_that_made_the_labels():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(20_000, 6))
    for true in (0.3, 1.0, 3.0):
        drawn = np.argmax(true * scores + rng.gumbel(size=scores.shape), axis=1)
        assert abs(best_scale(scores, np.eye(6)[drawn]) / true - 1) < 0.05


def test_lists_without_a_relevant_item_do_not_count():
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(500, 5))
    labels = np.eye(5)[np.argmax(scores + rng.gumbel(size=scores.shape), axis=1)]
    padded = np.concatenate([scores, 50 * rng.normal(size=(100, 5))])
    silent = np.concatenate([labels, np.zeros((100, 5))])
    assert best_scale(padded, silent) == best_scale(scores, labels)
