"""What the ranking of the probed arms rests on: NDCG when their rationales or histories are exchanged or cut."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from r2rank_jax.data.prepared.dataset import Dataset
from r2rank_jax.evaluation.probes.form import read_probes
from r2rank_jax.experiments.datasets import require_same_lists
from r2rank_jax.experiments.design import Arm, Experiment
from r2rank_jax.experiments.jobs import probe_folder

CONDITIONS = {
    "own": ("history", "own"),
    "exchanged": ("rationales", "exchanged"),
    "deleted": ("rationales", "deleted"),
    "verdict_only": ("rationales", "verdict_only"),
    "other_user": ("history", "other_user"),
}
"""Name here -> probe and condition in `probes.json`; docs/probes.md explains them."""


def probed(experiment: Experiment, root: Path, arm: Arm, dataset: Dataset) -> dict[str, Any]:
    """The probes of an arm on the test lists.

    Returns:
        `metric`, `n` lists, `conditions` {name: {mean, seeds}}, without those that do not apply, and `chance`, NDCG of
        the same rankings with permuted labels: {mean, ci95, seeds}, the interval being the mean of those of the seeds.

    Raises:
        ExperimentError: an arm was probed on other lists.
    """
    results = []
    for seed in experiment.seeds:
        path = probe_folder(experiment.directory(root, arm, seed), arm) / "probes.json"
        results.append(read_probes(path))
        require_same_lists(results[-1], dataset, path, redo=path.with_name("done-probe.json"))
    probes = [result["probes"] for result in results]
    conditions = {
        name: [_cells(one[probe])[condition]["ndcg"]["mean"] for one in probes]
        for name, (probe, condition) in CONDITIONS.items()
        if all(condition in _cells(one[probe]) for one in probes)
    }
    chance = [one["labels"]["ndcg"] for one in probes]
    return {
        "metric": results[0]["metric"],
        "n": results[0]["n"],
        "conditions": {name: {"mean": float(np.mean(seeds)), "seeds": seeds} for name, seeds in conditions.items()},
        "chance": {
            "mean": float(np.mean([cell["mean"] for cell in chance])),
            "ci95": np.mean([cell["ci95"] for cell in chance], axis=0).tolist(),
            "seeds": [cell["mean"] for cell in chance],
        },
    }


def _cells(probe: Mapping[str, Any]) -> Mapping[str, Any]:
    """Empty for a probe that was left out."""
    cells: Mapping[str, Any] = probe.get("conditions", {})
    return cells
