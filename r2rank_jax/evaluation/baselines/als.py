"""ALS: weighted matrix factorization, by the library `implicit`."""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np

from r2rank_jax.errors import UsageError
from r2rank_jax.evaluation.baselines.inputs import FloatArray, Scorer, TrainingData, UnlabeledLists

SOLVED_TOGETHER = 512
"""Number of users whose factors are solved at a time, which bounds the memory."""


def fit_als(
    train: TrainingData, *, factors: int, regularization: float, weight: float, iterations: int, seed: int
) -> Scorer:
    """Weighted matrix factorization by alternating least squares (Hu, Koren, Volinsky 2008).

    Minimizes sum_ui c_ui (p_ui - x_u'y_i)^2 + regularization (|X|^2 + |Y|^2), where p_ui is 1 for each training pair
    and 0 elsewhere, and the confidence c_ui is 1 + weight for each training pair and 1 elsewhere (equation 3, with
    r_ui = 1).

    A list's user factors are not those of training. They are solved once more for the list's history with the item
    factors fixed (equation 4), so the history of a test list includes the validation positive. An item without training
    interactions has zero factors, and an empty history scores every candidate 0.

    Args:
        train: training interactions.
        factors: size of the vectors.
        regularization: lambda of the paper.
        weight: alpha of the paper.
        iterations: number of passes over users and items.
        seed: of the initial factors.

    Raises:
        UsageError: the extra `baselines` is not installed.
    """
    model = _implicit().AlternatingLeastSquares(
        factors=factors, regularization=regularization, alpha=1.0, iterations=iterations, random_state=seed
    )
    confidence = (train.matrix() * (1.0 + weight)).astype(np.float32)
    with importlib.import_module("threadpoolctl").threadpool_limits(1, "blas"):  # `implicit` has threads of its own
        model.fit(confidence, show_progress=False)
    item_factors = np.asarray(model.item_factors, np.float64)

    def score(lists: UnlabeledLists) -> FloatArray:
        user_factors = solve_users(lists, item_factors, regularization=regularization, weight=weight)
        return np.einsum("uf,unf->un", user_factors, item_factors[lists.candidates])

    return score


def solve_users(lists: UnlabeledLists, item_factors: FloatArray, *, regularization: float, weight: float) -> FloatArray:
    """The user factors that minimize ALS's objective for the histories of the lists, with the item factors fixed.

    x_u = (Y'C_u Y + regularization I)^-1 Y'C_u p_u, equation 4 of Hu, Koren, Volinsky 2008.

    Args:
        lists: U lists with their histories.
        item_factors: Y, [items, factors].
        regularization: lambda of the paper.
        weight: alpha of the paper.

    Returns:
        float64 [U, factors].
    """
    item_count, factors = item_factors.shape
    everywhere = item_factors.T @ item_factors + regularization * np.eye(factors)
    histories = lists.history_matrix(item_count)
    solved = np.zeros((len(lists.users), factors))
    for start in range(0, len(solved), SOLVED_TOGETHER):
        block = histories[start : start + SOLVED_TOGETHER]
        seen = [item_factors[block.indices[a:b]] for a, b in zip(block.indptr[:-1], block.indptr[1:])]
        systems = np.stack([everywhere + weight * rows.T @ rows for rows in seen])
        targets = np.stack([(1.0 + weight) * rows.sum(axis=0) for rows in seen])
        solved[start : start + SOLVED_TOGETHER] = np.linalg.solve(systems, targets[..., None])[..., 0]
    return solved


def _implicit() -> ModuleType:
    try:
        return importlib.import_module("implicit.cpu.als")
    except ModuleNotFoundError as error:
        raise UsageError(
            f"ALS needs the extra baselines, but {error.name} is not installed; run pip install 'r2rank-jax[baselines]'"
        ) from error
