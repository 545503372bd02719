"""The results of an experiment: metrics per user of all arms, averaged over seeds, compared over users.

`results/NAME.json` has the form of a run's `results.json` (`evaluation/results.py`), where an arm's value for a user is
the mean over the seeds, so intervals and tests are over users. Beside it:

experiment   name, title, seeds, arms {name: {phase, start, values, asks}}, notes
seeds        system -> metric -> the mean of each seed
baselines    system -> {setting, validation, trials}: what tuning on the validation lists chose
minutes      arm -> mean minutes of training per seed, on this machine
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from r2rank_jax.config import to_json
from r2rank_jax.data.prepared.dataset import Dataset, load
from r2rank_jax.errors import ExperimentError
from r2rank_jax.evaluation.baselines.systems import systems as baseline_systems
from r2rank_jax.evaluation.baselines.tuning import tune
from r2rank_jax.evaluation.metrics import per_user_metrics
from r2rank_jax.evaluation.results import Provenance, build_results, read_results
from r2rank_jax.experiments.design import Arm, Experiment
from r2rank_jax.files.atomic import replacing_file
from r2rank_jax.runs.eval import BY_LIST, commit

Table = dict[str, np.ndarray]
"""Metric or number of rationales -> float64 [U]."""


def gather(experiment: Experiment, root: Path, *, command: str) -> dict[str, Any]:
    """The content of `results/NAME.json`.

    Args:
        experiment: whose jobs have all finished.
        root: folder of its runs.
        command: the command line, for the record.

    Raises:
        ExperimentError: arms were evaluated on different lists.
    """
    config = experiment.config
    dataset = load(Path(config.data.directory), config.data.split)
    systems: dict[str, Table] = {}
    curves: dict[str, Table] = {}
    seeds: dict[str, Any] = {}
    for arm in experiment.arms:
        tables = [_by_list(experiment, root, arm, seed, dataset) for seed in experiment.seeds]
        systems[arm.name] = _mean([system for system, _ in tables])
        seeds[arm.name] = {
            metric: [float(system[metric].mean()) for system, _ in tables] for metric in systems[arm.name]
        }
        if tables[0][1]:
            curves[arm.name] = _mean([curve for _, curve in tables])
    chosen = {name: _baseline(experiment, root, name, dataset) for name in experiment.baselines}
    of_baselines = {name: metrics for name, (metrics, _) in chosen.items()}
    lists = dataset.candidate_lists("test")
    results = build_results(
        of_baselines | systems,
        experiment.comparisons,
        config=config.evaluation,
        candidate_items=lists.items.shape[1] if np.all(np.sum(lists.labels > 0, axis=1) == 1) else None,
        seed=config.seed,
        reward=config.rl.reward,
        curves=curves,
        provenance=Provenance(
            data_hash=dataset.data_hash,
            candidate_hash=dataset.candidate_hash,
            commit=commit(),
            command=command,
            teacher=read_results(_directories(experiment, root)[0] / "results.json")["teacher"],
            training={arm.name: _minutes(experiment, root, arm) for arm in experiment.arms},
            configuration=to_json(config),
            notes=experiment.notes,
        ),
    )
    return results | {
        "experiment": {
            "name": experiment.name,
            "title": experiment.title,
            "seeds": list(experiment.seeds),
            "arms": {
                arm.name: {"phase": arm.phase, "start": arm.start, "values": dict(arm.values), "asks": arm.asks}
                for arm in experiment.arms
            },
        },
        "seeds": seeds,
        "baselines": {name: setting for name, (_, setting) in chosen.items()},
    }


def _directories(experiment: Experiment, root: Path) -> list[Path]:
    return [experiment.directory(root, arm, seed) for seed in experiment.seeds for arm in experiment.arms]


def _by_list(experiment: Experiment, root: Path, arm: Arm, seed: int, dataset: Dataset) -> tuple[Table, Table]:
    """Metrics and curve of one arm and seed, in the order of the test lists."""
    directory = experiment.directory(root, arm, seed)
    results = read_results(directory / "results.json")
    for name, expected in (("data_hash", dataset.data_hash), ("candidate_hash", dataset.candidate_hash)):
        if results[name] != expected:
            raise ExperimentError(
                f"{directory} was evaluated on other lists ({name} {results[name][:12]}, now {expected[:12]}); restore "
                f"the data, or delete {directory / 'done-eval.json'} and run the experiment again"
            )
    with np.load(directory / BY_LIST) as arrays:
        cut = lambda kind: {  # noqa: E731
            name.split("/", 2)[2]: arrays[name] for name in arrays if name.startswith(f"{kind}/{arm.phase}/")
        }
        return cut("system"), cut("curve")


def _mean(tables: list[Table]) -> Table:
    return {name: np.mean([table[name] for table in tables], axis=0) for name in tables[0]}


def _minutes(experiment: Experiment, root: Path, arm: Arm) -> dict[str, Any]:
    """Training minutes of each seed."""
    paths = [experiment.directory(root, arm, seed) / f"done-{arm.phase}.json" for seed in experiment.seeds]
    return {"minutes": [json.loads(path.read_text(encoding="utf-8"))["minutes"] for path in paths]}


def _baseline(experiment: Experiment, root: Path, name: str, dataset: Dataset) -> tuple[Table, dict[str, Any]]:
    """Metrics of a tuned baseline and what was chosen; kept in a file, because tuning takes minutes."""
    config, path = experiment.config, root / "baselines" / f"{name}.json"
    system = baseline_systems(history_items=config.data.history_items)[name]
    identity = {
        "candidate_hash": dataset.candidate_hash,
        "data_hash": dataset.data_hash,
        "grid": {key: list(values) for key, values in system.grid.items()},
        "history_items": config.data.history_items,
    }
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if kept.get("identity") != identity:
        print(f"{name}: tuning on the validation lists", flush=True)
        tuned = tune(system, dataset, k=max(config.evaluation.ks), seed=config.seed)
        kept = {
            "identity": identity,
            "setting": dict(tuned.chosen.setting),
            "validation": tuned.chosen.validation,
            "trials": [{"setting": dict(t.setting), "validation": t.validation} for t in tuned.trials],
            "test_scores": tuned.test_scores.tolist(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing_file(path) as partial:
            partial.write_text(json.dumps(kept), encoding="utf-8")
    lists = dataset.candidate_lists("test")
    metrics = per_user_metrics(
        np.array(kept["test_scores"]),
        lists.labels,
        None,
        config.evaluation.ks,
        seed=config.seed,
        reward=config.rl.reward,
    )
    return metrics, {key: kept[key] for key in ("setting", "validation", "trials")}
