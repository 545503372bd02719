"""EASE: a linear autoencoder over items, in closed form."""

from __future__ import annotations

import numpy as np

from r2rank_jax.evaluation.baselines.inputs import FloatArray, Scorer, TrainingData, UnlabeledLists

MOST_ITEMS = 30_000
"""The item x item matrix and its inverse are dense, in float64: 7 GB each at this number of items."""


def fit_ease(train: TrainingData, *, regularization: float) -> Scorer:
    """EASE (Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data").

    B minimizes |X - XB|^2 + regularization |B|^2 with diag(B) = 0, where X [users, items] is 1 for each training pair.
    With P = (X'X + regularization I)^-1 the solution is B_ij = -P_ij / P_jj off the diagonal (equation 8). The score of
    candidate j is the sum of B_ij over the distinct items i of the list's history. An item without training
    interactions has weight 0 with every other, and an empty history scores every candidate 0.

    Args:
        train: training interactions.
        regularization: lambda of the paper, above 0.

    Raises:
        ValueError: regularization is not positive, or there are more than `MOST_ITEMS` items.
    """
    weights = ease_weights(train, regularization=regularization)

    def score(lists: UnlabeledLists) -> FloatArray:
        scores = np.asarray(lists.history_matrix(train.item_count) @ weights)
        return np.take_along_axis(scores, lists.candidates, axis=1)

    return score


def ease_weights(train: TrainingData, *, regularization: float) -> FloatArray:
    """B of `fit_ease`, float64 [items, items] with zeros on the diagonal; row = history item, column = candidate."""
    if regularization <= 0:
        raise ValueError(f"regularization must be above 0, got {regularization}")
    if train.item_count > MOST_ITEMS:
        raise ValueError(
            f"EASE holds a dense item x item matrix and needs at most {MOST_ITEMS} items, got {train.item_count}; "
            "use ALS or SASRec"
        )
    interactions = train.matrix()
    gram = (interactions.T @ interactions).toarray()
    gram[np.diag_indices_from(gram)] += regularization
    inverse = np.linalg.inv(gram)
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    return weights
