"""The results of an experiment: metrics per user of all arms, averaged over seeds, compared over users.

`results/NAME.json` has the form of a run's `results.json` (`evaluation/results.py`), where an arm's value for a user is
the mean over the seeds, so intervals and tests are over users. Beside it:

experiment   name, title, seeds, candidates (N of the test lists), arms {name: {phase, start, values, asks}}
protocol     null, or {name, title, directory}: other candidates, see `design.Protocol`
seeds        system -> metric -> the mean of each seed
baselines    system -> {setting, validation, trials}: what tuning on the validation lists chose
training     arm -> {minutes, steps, skipped}, each a list over seeds
cost         arm -> see `cost.py`
probes       arm -> see `probed.probed`; {} in the results of a protocol
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from r2rank_jax.config import to_json, with_values
from r2rank_jax.data.prepared.dataset import Dataset
from r2rank_jax.data.prepared.traces import read_traces
from r2rank_jax.errors import ExperimentError
from r2rank_jax.evaluation.results import Provenance, build_results, read_results
from r2rank_jax.experiments.baselines import Table, baseline
from r2rank_jax.experiments.cost import GREEDY, NONE, cost
from r2rank_jax.experiments.datasets import dataset_of, require_same_lists
from r2rank_jax.experiments.design import Arm, Experiment, Protocol
from r2rank_jax.experiments.jobs import evaluation_folder
from r2rank_jax.experiments.probed import probed
from r2rank_jax.runs.eval import BY_LIST, commit


@dataclass(frozen=True)
class _Measured:
    """What the evaluations of an arm measured, the mean over seeds."""

    metrics: Table
    curve: Table  # number of rationales -> NDCG; may be empty
    seeds: dict[str, list[float]]  # metric -> mean of each seed
    training: dict[str, list[float]]
    teacher: str


def gather(experiment: Experiment, root: Path, *, command: str, protocol: Protocol | None = None) -> dict[str, Any]:
    """The content of a results file.

    Args:
        experiment: whose jobs have all finished.
        root: folder of its runs.
        command: the command line, for the record.
        protocol: whose candidates were ranked; None: the experiment's own.

    Raises:
        ExperimentError: arms were evaluated on different lists.
    """
    config = experiment.config
    if protocol is not None:
        config = with_values(config, {"data.directory": protocol.directory})
    dataset = dataset_of(experiment, protocol)
    lists = dataset.candidate_lists("test")
    measured = {arm.name: _measured(experiment, root, arm, protocol, dataset) for arm in experiment.arms}
    of_critics = {
        name: _measured(experiment, root, arm, protocol, dataset, system="critic")
        for name, arm in experiment.critics().items()
    }
    ranked = measured | of_critics
    chosen = {name: baseline(experiment, root, name, protocol) for name in experiment.baselines}
    results = build_results(
        _alike({name: x for name, (x, _) in chosen.items()} | {name: x.metrics for name, x in ranked.items()}),
        experiment.comparisons,
        config=config.evaluation,
        candidate_items=lists.items.shape[1] if np.all(np.sum(lists.labels > 0, axis=1) == 1) else None,
        seed=config.seed,
        reward=config.rl.reward,
        curves={name: each.curve for name, each in measured.items() if each.curve},
        provenance=Provenance(
            data_hash=dataset.data_hash,
            candidate_hash=dataset.candidate_hash,
            commit=commit(),
            command=command,
            teacher=measured[experiment.arms[0].name].teacher,
            training={name: each.training for name, each in measured.items()},
            configuration=to_json(config),
            notes=[*(experiment.notes if protocol is None else protocol.notes), *_skipped(experiment, measured)],
        ),
    )
    return results | {
        "experiment": _design(experiment, candidates=lists.items.shape[1]),
        "protocol": None
        if protocol is None
        else {"name": protocol.name, "title": protocol.title, "directory": protocol.directory},
        "seeds": {name: each.seeds for name, each in ranked.items()},
        "baselines": {name: setting for name, (_, setting) in chosen.items()},
        "cost": _costs(experiment, measured, candidates=lists.items.shape[1]),
        "probes": {}
        if protocol is not None
        else {name: probed(experiment, root, experiment.arm(name), dataset) for name in experiment.probes},
    }


def _design(experiment: Experiment, *, candidates: int) -> dict[str, Any]:
    return {
        "name": experiment.name,
        "title": experiment.title,
        "seeds": list(experiment.seeds),
        "candidates": candidates,
        "arms": {
            arm.name: {"phase": arm.phase, "start": arm.start, "values": dict(arm.values), "asks": arm.asks}
            for arm in experiment.arms
        },
    }


def _measured(
    experiment: Experiment,
    root: Path,
    arm: Arm,
    protocol: Protocol | None,
    dataset: Dataset,
    *,
    system: str | None = None,
) -> _Measured:
    """What the runs of an arm measured on the test lists, in their order.

    `system` names another system of these evaluations than the arm's policy, such as its critic.
    """
    tables: list[Table] = []
    curves: list[Table] = []
    runs: list[dict[str, Any]] = []
    for seed in experiment.seeds:
        folder = evaluation_folder(experiment.directory(root, arm, seed), protocol)
        results = read_results(folder / "results.json")
        require_same_lists(results, dataset, folder / "results.json", redo=folder / "done-eval.json")
        with np.load(folder / BY_LIST) as arrays:
            for tables_of_kind, kind in ((tables, "system"), (curves, "curve")):
                prefix = f"{kind}/{system or arm.phase}/"
                tables_of_kind.append({n.removeprefix(prefix): arrays[n] for n in arrays if n.startswith(prefix)})
        runs.append(results["training"][arm.phase])
    return _Measured(
        metrics=_mean(tables),
        curve=_mean(curves),
        seeds={metric: [float(table[metric].mean()) for table in tables] for metric in tables[0]},
        training={
            "minutes": [round(run["wall_s"] / 60, 2) for run in runs],
            "steps": [run["steps"] for run in runs],
            "skipped": [run["skipped"] for run in runs],
        },
        teacher=results["teacher"],
    )


def _mean(tables: list[Table]) -> Table:
    return {name: np.mean([table[name] for table in tables], axis=0) for name in tables[0]}


def _alike(systems: dict[str, Table]) -> dict[str, Table]:
    """The metrics that all systems have. An arm that is trained on a reward of its own has one more."""
    first = next(iter(systems.values()))
    common = [metric for metric in first if all(metric in table for table in systems.values())]
    if not common:
        raise ExperimentError(
            f"arms must be measured by the same metrics, got { {name: sorted(x) for name, x in systems.items()} }; set "
            "evaluation.ks in the configuration of the experiment alone"
        )
    return {name: {metric: table[metric] for metric in common} for name, table in systems.items()}


def _costs(experiment: Experiment, measured: dict[str, _Measured], *, candidates: int) -> dict[str, Any]:
    metric = f"ndcg@{max(experiment.config.evaluation.ks)}"
    dataset = dataset_of(experiment)
    files = {experiment.config_of(arm, experiment.seeds[0]).data.traces for arm in experiment.arms}
    traced_items = {file: read_traces(Path(file), dataset, None).lists.items.shape[1] for file in files}
    costs = {}
    for arm in experiment.arms:
        each = measured[arm.name]
        reasons = experiment.config_of(arm, experiment.seeds[0]).data.rationale_tokens > 0
        ndcg = each.curve if each.curve and reasons else {GREEDY if reasons else NONE: each.metrics[metric]}
        costs[arm.name] = cost(
            experiment,
            arm,
            {name: x.training for name, x in measured.items()},
            {count: float(values.mean()) for count, values in ndcg.items()},
            traced_items=traced_items,
            candidates=candidates,
        )
    return costs


def _skipped(experiment: Experiment, measured: dict[str, _Measured]) -> list[str]:
    return [
        f"{int(count)} updates of {name} with seed {seed} were skipped, because their gradient was not finite."
        for name, each in measured.items()
        for seed, count in zip(experiment.seeds, each.training["skipped"])
        if count
    ]
