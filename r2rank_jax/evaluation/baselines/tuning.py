"""Tune a system on the validation lists, then score the test lists once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from r2rank_jax.data.prepared.dataset import CandidateLists, Dataset
from r2rank_jax.errors import DataError
from r2rank_jax.evaluation.baselines.inputs import FloatArray, Scorer, training_data, without_labels
from r2rank_jax.evaluation.baselines.systems import Setting, System
from r2rank_jax.evaluation.metrics import per_user_metrics


@dataclass(frozen=True)
class Trial:
    """A setting and what it reached on the validation lists."""

    setting: Setting
    validation: float  # mean of the metric that chooses


@dataclass(frozen=True)
class Tuned:
    """A tuned system."""

    chosen: Trial
    trials: Sequence[Trial]  # every setting of the grid, in the order in which they were tried
    metric: str  # the metric that chooses, such as ndcg@10
    test_scores: FloatArray  # [U, N]  of the chosen setting, for the test lists in their order


def tune(system: System, dataset: Dataset, *, k: int = 10, seed: int = 0) -> Tuned:
    """Try every setting on the validation lists and score the test lists with the best one.

    Systems are fitted to the training interactions alone, and are not fitted again before the test. The labels of
    validation lists are used for their NDCG only; those of test lists are not read.

    Args:
        system: one of `systems.systems`, or another.
        dataset: a prepared folder.
        k: cut-off of the NDCG that chooses; the first of equal settings wins.
        seed: of the systems' random numbers, and of the order of equal scores.

    Raises:
        DataError: there is no validation list, or no test list.
        UsageError: the system needs an extra that is not installed.
        ScoresError: a score is not finite.
    """
    validation, test = (dataset.candidate_lists(name) for name in ("valid", "test"))
    for name, lists in (("validation", validation), ("test", test)):
        if not len(lists):
            raise DataError(f"tuning needs {name} lists, but the {dataset.split} split of this folder has none")
    metric = f"ndcg@{k}"
    trials: list[Trial] = []
    best: tuple[Trial, Scorer] | None = None
    for setting, scorer in system.fit(training_data(dataset), system.grid, seed):
        trial = Trial(setting, _mean(scorer, dataset, validation, k=k, seed=seed))
        trials.append(trial)
        if best is None or trial.validation > best[0].validation:
            best = trial, scorer
    if best is None:
        raise ValueError("a system's grid must hold at least one setting")
    chosen, scorer = best
    return Tuned(chosen, trials, metric, scorer(without_labels(dataset, test)))


def _mean(scorer: Scorer, dataset: Dataset, lists: CandidateLists, *, k: int, seed: int) -> float:
    scores = scorer(without_labels(dataset, lists))
    return float(np.mean(per_user_metrics(scores, lists.labels, None, [k], seed=seed)[f"ndcg@{k}"]))
