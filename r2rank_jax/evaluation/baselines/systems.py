"""The systems by name, and the settings that each is tuned over.

The grids are small on purpose, because every setting of them is tried on the validation lists. They bracket what is
best on MovieLens-100K; docs/baselines.md has the chosen settings, and says which lie at an end of their grid.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from r2rank_jax.evaluation.baselines.als import fit_als
from r2rank_jax.evaluation.baselines.bpr import fit_bpr
from r2rank_jax.evaluation.baselines.counts import popularity_scores, random_scores
from r2rank_jax.evaluation.baselines.ease import fit_ease
from r2rank_jax.evaluation.baselines.inputs import FloatArray, Scorer, TrainingData, UnlabeledLists
from r2rank_jax.evaluation.baselines.item_knn import item_knn_scores
from r2rank_jax.evaluation.baselines.sasrec import fit_sasrec

Setting = Mapping[str, float]
"""Value of each hyperparameter by name."""
Grid = Mapping[str, tuple[float, ...]]
"""Values of each hyperparameter by name; the settings are their product, the last name varying fastest."""

EASE_GRID: Grid = {"regularization": (30, 100, 200, 300, 500, 1000, 2000)}
ALS_GRID: Grid = {
    "factors": (16, 32, 64, 128),
    "regularization": (1, 10, 30, 100),
    "weight": (1, 4, 10),
    "iterations": (15,),
}
BPR_GRID: Grid = {
    "factors": (64,),
    "regularization": (0.003, 0.01),
    "learning_rate": (0.05,),
    "negative_exponent": (0.0, 0.5, 1.0),
    "epochs": (50, 100, 200),
}
SASREC_GRID: Grid = {
    "width": (64,),
    "length": (50,),
    "learning_rate": (1e-3,),
    "dropout": (0.2, 0.4),
    "epochs": (20, 30, 40, 50, 60),
}
ITEM_KNN_GRID: Grid = {"popularity_exponent": (0.0, 0.25, 0.5, 0.75, 1.0)}
NOTHING_TO_TUNE: Grid = {}


class Fit(Protocol):
    """Fits a system with every setting of a grid; a setting's scorer may be dropped before the next one is fitted."""

    def __call__(self, train: TrainingData, grid: Grid, seed: int) -> Iterator[tuple[Setting, Scorer]]: ...


@dataclass(frozen=True)
class System:
    """A system that can be tuned."""

    grid: Grid
    fit: Fit


def systems(*, history_items: int) -> dict[str, System]:
    """All systems by name.

    Args:
        history_items: number of latest interactions that the language model reads. `item_knn` reads the same ones;
            `item_knn_all` and the other systems use the whole history of a list.
    """
    return {
        "random": System(NOTHING_TO_TUNE, _random),
        "popularity": System(NOTHING_TO_TUNE, _popularity),
        "item_knn": System(ITEM_KNN_GRID, _item_knn(history_items)),
        "item_knn_all": System(ITEM_KNN_GRID, _item_knn(None)),
        "ease": System(EASE_GRID, _ease),
        "als": System(ALS_GRID, _als),
        "bpr": System(BPR_GRID, _bpr),
        "sasrec": System(SASREC_GRID, _sasrec),
    }


def settings_of(grid: Grid) -> list[dict[str, Any]]:
    """Every combination of the values of a grid; one empty setting if there is nothing to tune.

    >>> settings_of({"a": (1, 2), "b": (3,)})
    [{'a': 1, 'b': 3}, {'a': 2, 'b': 3}]
    """
    return [dict(zip(grid, values)) for values in itertools.product(*grid.values())]


def _random(train: TrainingData, grid: Grid, seed: int) -> Iterator[tuple[Setting, Scorer]]:
    yield {}, lambda lists: random_scores(lists.candidates, seed=seed)


def _popularity(train: TrainingData, grid: Grid, seed: int) -> Iterator[tuple[Setting, Scorer]]:
    yield {}, lambda lists: popularity_scores(train.items, lists.candidates)


def _item_knn(history: int | None) -> Fit:
    def fit(train: TrainingData, grid: Grid, seed: int) -> Iterator[tuple[Setting, Scorer]]:
        for setting in settings_of(grid):
            yield setting, functools.partial(_item_knn_of_lists, train, history, setting)

    return fit


def _item_knn_of_lists(train: TrainingData, history: int | None, setting: Setting, lists: UnlabeledLists) -> FloatArray:
    return item_knn_scores(train.users, train.items, lists.histories, lists.candidates, history=history, **setting)


def _ease(train: TrainingData, grid: Grid, seed: int) -> Iterator[tuple[Setting, Scorer]]:
    for setting in settings_of(grid):
        yield setting, fit_ease(train, **setting)


def _als(train: TrainingData, grid: Grid, seed: int) -> Iterator[tuple[Setting, Scorer]]:
    for setting in settings_of(grid):
        yield setting, fit_als(train, **setting, seed=seed)


def _bpr(train: TrainingData, grid: Grid, seed: int) -> Iterator[tuple[Setting, Scorer]]:
    for setting in settings_of(grid):
        yield setting, fit_bpr(train, **setting, seed=seed)


def _sasrec(train: TrainingData, grid: Grid, seed: int) -> Iterator[tuple[Setting, Scorer]]:
    """One training run gives the scorers of all its numbers of epochs."""
    epochs = [int(count) for count in grid["epochs"]]
    for setting in settings_of({name: values for name, values in grid.items() if name != "epochs"}):
        for count, scorer in fit_sasrec(train, **setting, epochs=epochs, seed=seed):
            yield {**setting, "epochs": count}, scorer
