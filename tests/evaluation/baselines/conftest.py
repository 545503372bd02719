"""Small training data with the edges that real data have."""

import numpy as np
import pytest

from r2rank_jax.evaluation.baselines.inputs import TrainingData, UnlabeledLists


@pytest.fixture(scope="package")
def train():
    """User 29 has no interaction, item 19 has no user, and some pairs repeat."""
    rng = np.random.default_rng(0)
    return TrainingData(rng.integers(0, 29, size=300), rng.zipf(1.4, size=300) % 19, 30, 20)


@pytest.fixture(scope="package")
def lists():
    """Twelve lists of five items; the first history is empty, and histories hold item 19 and repeated items."""
    rng = np.random.default_rng(1)
    histories = [rng.integers(0, 20, size=n) for n in (0, 1, 2, 3, 5, 8, 13, 5, 5, 5, 5)] + [np.array([19, 3, 3])]
    candidates = np.stack([rng.permutation(20)[:5] for _ in histories])
    return UnlabeledLists(np.array([*range(11), 29]), histories, candidates)
