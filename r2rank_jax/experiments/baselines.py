"""Baselines of an experiment: tuned on the validation lists, and what was chosen applied to other candidates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from r2rank_jax.data.prepared.dataset import Dataset
from r2rank_jax.evaluation.baselines.systems import System, systems
from r2rank_jax.evaluation.baselines.tuning import tune
from r2rank_jax.evaluation.metrics import per_user_metrics
from r2rank_jax.experiments.datasets import dataset_of
from r2rank_jax.experiments.design import Experiment, Protocol
from r2rank_jax.files.atomic import replacing_file

Table = dict[str, np.ndarray]
"""Metric -> float64 [U]."""


def baseline(experiment: Experiment, root: Path, name: str, protocol: Protocol | None) -> tuple[Table, dict[str, Any]]:
    """Metrics of a tuned baseline on the test lists, and what was chosen on the experiment's own validation lists.

    The candidates of a protocol are ranked with the same setting, as the arms' settings are those of the experiment.
    """
    config = experiment.config
    system, dataset = systems(history_items=config.data.history_items)[name], dataset_of(experiment)
    folder = root / "baselines"
    own = _tuned(experiment, system, dataset, folder / f"{name}.json", name)
    used = own
    if protocol is not None:
        dataset = dataset_of(experiment, protocol)
        only = replace(system, grid={key: (own["setting"][key],) for key in system.grid})
        used = _tuned(experiment, only, dataset, folder / f"{name}-{protocol.name}.json", name)
    metrics = per_user_metrics(
        np.array(used["test_scores"]),
        dataset.candidate_lists("test").labels,
        None,
        config.evaluation.ks,
        seed=config.seed,
        reward=config.rl.reward,
    )
    return metrics, {key: own[key] for key in ("setting", "validation", "trials")}


def _tuned(experiment: Experiment, system: System, dataset: Dataset, path: Path, name: str) -> dict[str, Any]:
    """What tuning chose, and its test scores; kept in a file, because tuning takes minutes."""
    config = experiment.config
    identity = {
        "candidate_hash": dataset.candidate_hash,
        "data_hash": dataset.data_hash,
        "grid": {key: list(values) for key, values in system.grid.items()},
        "history_items": config.data.history_items,
        "k": max(config.evaluation.ks),
        "seed": config.seed,
    }
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if kept.get("identity") == identity:
        return dict(kept)
    several = any(len(values) > 1 for values in system.grid.values())
    print(f"{name}: {'tuning on the validation lists' if several else 'ranking the test lists'}", flush=True)
    tuned = tune(system, dataset, k=max(config.evaluation.ks), seed=config.seed)
    kept = {
        "identity": identity,
        "setting": dict(tuned.chosen.setting),
        "validation": tuned.chosen.validation,
        "trials": [{"setting": dict(trial.setting), "validation": trial.validation} for trial in tuned.trials],
        "test_scores": tuned.test_scores.tolist(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(path) as partial:
        partial.write_text(json.dumps(kept), encoding="utf-8")
    return kept
