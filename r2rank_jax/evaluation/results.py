"""`results.json`: the results of a run, with everything needed to judge and repeat it.

systems         name -> metric -> {mean, ci95: [low, high], n}
comparisons     [{a, b, metric, difference, ci95, p, p_holm}], difference = mean of a - b over the same users;
                p of this comparison alone, p_holm corrected for all comparisons of the file
analytic_random metric -> expected value of a random ranking
rationale_curve phase -> "greedy", "1", "2", "4", ... -> {mean, ci95, n}, NDCG at the largest k, with items ranked by
                one greedy rationale or by the mean score of that many sampled ones; {} where one rationale was read
data_hash, candidate_hash, commit, command, teacher, training, inputs, configuration, seed, machine, notes
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from r2rank_jax.config import EvaluationConfig
from r2rank_jax.errors import ResultsError
from r2rank_jax.evaluation import baselines, significance
from r2rank_jax.files.atomic import replacing_file

SCHEMA = 1
"""Incremented when a reader of the old form would misread the new one."""

PerUser = Mapping[str, np.ndarray]
"""Metric name -> float64 [U], as `metrics.per_user_metrics` returns it."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where results come from: everything that `build_results` cannot derive from the metrics."""

    data_hash: str
    """Hash of the prepared data folder."""
    commit: str
    """Commit of the code, ending in `+changes` if the working tree differs from it."""
    candidate_hash: str = ""
    """Hash of the candidate lists that every system ranked."""
    command: str = ""
    """Command line of the evaluation, as typed."""
    teacher: str = "template"
    """Teacher that wrote the traces of SFT."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Phase -> {steps, wall_s, ...}."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Hashes of the interactions, items, candidates and tokenizer of the evaluation."""
    configuration: Mapping[str, Any] = field(default_factory=dict)
    """Configuration of the evaluation, as JSON."""
    seed: int | None = None
    """Seed of the run."""
    notes: Sequence[str] = ()
    """Anything that a reader must know before trusting a number."""


def build_results(
    systems: Mapping[str, PerUser],
    pairs: Sequence[tuple[str, str]],
    *,
    config: EvaluationConfig,
    candidate_items: int | None,
    seed: int,
    provenance: Provenance,
    compared: Sequence[str] | None = None,
    reward: str | None = None,
    curves: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> dict[str, Any]:
    """Summarize per-user metrics of every system into the content of `results.json`.

    Args:
        systems: name -> metric -> float64 [U]; every system holds the same metrics of the same users, in one
            order.
        pairs: (a, b) of system names to compare; a is expected to be better.
        config: `bootstrap_samples` and `permutation_samples` are used, and `ks` for the analytic random
            values.
        candidate_items: N of the lists, one of them relevant, for the analytic random values; None if lists have
            several relevant items, which leaves these values out.
        seed: of the bootstrap and the permutations.
        provenance: see `Provenance`.
        compared: metrics of the comparisons; None = NDCG at the largest k, and the reward.
        reward: the reward that RL maximized, one of the metrics.
        curves: phase -> how many rationales -> float64 [U], for `rationale_curve`.

    Returns:
        A dictionary for `write_results`.

    Raises:
        ResultsError: systems have different metrics or users, or a pair names an unknown system.
    """
    _check_alike(systems)
    metrics = list(compared) if compared is not None else _compared(config, reward)
    summary = {
        name: {metric: _summary(values, config, seed) for metric, values in per_user.items()}
        for name, per_user in systems.items()
    }
    comparisons = [_comparison(a, b, metric, systems, config=config, seed=seed) for a, b in pairs for metric in metrics]
    for row, corrected in zip(comparisons, significance.holm([row["p"] for row in comparisons])):
        row["p_holm"] = corrected
    return {
        "schema": SCHEMA,
        "systems": summary,
        "comparisons": comparisons,
        "analytic_random": {}
        if candidate_items is None
        else baselines.analytic_random(candidate_items, config.ks, reward),
        "rationale_curve": {
            phase: {count: _summary(values, config, seed) for count, values in curve.items()}
            for phase, curve in (curves or {}).items()
        },
        "data_hash": provenance.data_hash,
        "candidate_hash": provenance.candidate_hash,
        "commit": provenance.commit,
        "command": provenance.command,
        "teacher": provenance.teacher,
        "training": dict(provenance.training),
        "inputs": dict(provenance.inputs),
        "configuration": dict(provenance.configuration),
        "seed": provenance.seed,
        "machine": machine_info(),
        "notes": list(provenance.notes),
    }


def machine_info() -> dict[str, Any]:
    """The machine and the software of this process, and the date (UTC, ISO 8601)."""
    return {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count() or 1,
        "python": platform.python_version(),
        **{package: _version(package) for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")},
        "r2rank_jax": _version("r2rank-jax"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Check `results` and write them, see `write_checked`."""
    write_checked(path, results, check_results)


def read_results(path: Path) -> dict[str, Any]:
    """Read and check what `write_results` wrote, see `read_checked`."""
    return read_checked(path, check_results, "r2rank eval")


def write_checked(path: Path, content: Mapping[str, Any], check: Callable[[Any], None]) -> None:
    """Check content and write it as JSON. `path` holds either the old or the new content, never a part of it.

    Raises:
        ResultsError: `check` refuses the content, or it has a number that JSON cannot represent (NaN, infinity).
    """
    check(content)
    try:
        text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ResultsError(f"{path.stem} must be plain, finite JSON values: {error}") from error
    with replacing_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_checked(path: Path, check: Callable[[Any], None], command: str) -> dict[str, Any]:
    """Read and check what `write_checked` wrote.

    Args:
        path: of the file.
        check: raises `ResultsError` for content of another form.
        command: that writes such a file, for the message.

    Raises:
        FileNotFoundError: there is no file at `path`.
        ResultsError: the file does not hold JSON, or holds JSON of another form.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ResultsError(f"{path} must hold JSON: {error}; run `{command}` again") from error
    check(content)
    return content


def check_results(results: Any) -> None:
    """Raise `ResultsError` if `results` does not have the form in the docstring of this module."""
    _require(isinstance(results, Mapping), f"results must be an object, got {type(results).__name__}")
    for name in ("systems", "comparisons", "analytic_random", "data_hash", "commit", "training", "machine"):
        _require(name in results, f"results must hold {name!r}, got only {sorted(results)}")
    _require(_is_table(results["systems"]), "systems must be an object of objects")
    _require(_is_table(results.get("rationale_curve", {})), "rationale_curve must be an object of objects")
    _require(isinstance(results["training"], Mapping), "training must be an object")
    for table in ("systems", "rationale_curve"):
        for name, cells in results.get(table, {}).items():  # results from before the curve have none
            for column, cell in cells.items():
                check_cell(cell, f"{table}.{name}.{column}")
    for phase, cells in results.get("rationale_curve", {}).items():
        bad = [count for count in cells if count != "greedy" and not count.isdigit()]
        _require(not bad, f"rationale_curve.{phase} must hold greedy or numbers of rationales, got {bad}")
    _require(isinstance(results["comparisons"], list), "comparisons must be a list")
    for index, row in enumerate(results["comparisons"]):
        where = f"comparisons[{index}]"
        _require(isinstance(row, Mapping), f"{where} must be an object, got {row!r:.80}")
        missing = {"a", "b", "metric", "difference", "ci95", "p"} - set(row)
        _require(not missing, f"{where} must hold {sorted(missing)}, got {sorted(row)}")
        for side in ("a", "b"):
            _require(
                isinstance(row[side], str) and row[side] in results["systems"],
                f"{where}.{side} names no system: {row[side]!r}",
            )
        _check_interval(row["difference"], row["ci95"], where)
        for name in ("p", "p_holm"):
            value = row.get(name, 1)  # results from before the correction have none
            _require(
                isinstance(value, int | float) and 0 < value <= 1, f"{where}.{name} must lie in (0, 1], got {value!r}"
            )


def check_cell(cell: Any, where: str) -> None:
    """Raise `ResultsError` if `cell` is not {mean, ci95, n}; `where` names it."""
    _require(
        isinstance(cell, Mapping) and {"mean", "ci95", "n"} <= set(cell),
        f"{where} must be {{mean, ci95, n}}, got {cell!r}",
    )
    _check_interval(cell["mean"], cell["ci95"], where)
    _require(isinstance(cell["n"], int) and cell["n"] >= 1, f"{where}.n must be at least 1 user, got {cell['n']!r}")


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(row, Mapping) for row in value.values())


def _summary(values: np.ndarray, config: EvaluationConfig, seed: int) -> dict[str, Any]:
    mean, low, high = significance.bootstrap_interval(values, config.bootstrap_samples, seed)
    return {"mean": mean, "ci95": [low, high], "n": len(values)}


def _comparison(
    a: str,
    b: str,
    metric: str,
    systems: Mapping[str, PerUser],
    *,
    config: EvaluationConfig,
    seed: int,
) -> dict[str, Any]:
    for name in (a, b):
        _require(name in systems, f"comparison of {a!r} with {b!r}: no system {name!r} among {sorted(systems)}")
        _require(metric in systems[name], f"no metric {metric!r} among {sorted(systems[name])}")
    paired = significance.compare(
        systems[a][metric],
        systems[b][metric],
        bootstrap_samples=config.bootstrap_samples,
        permutation_samples=config.permutation_samples,
        seed=seed,
    )
    interval = [paired.low, paired.high]
    return {"a": a, "b": b, "metric": metric, "difference": paired.difference, "ci95": interval, "p": paired.p}


def _compared(config: EvaluationConfig, reward: str | None) -> list[str]:
    return list(dict.fromkeys([f"ndcg@{max(config.ks)}", *([reward] if reward else [])]))


def _check_alike(systems: Mapping[str, PerUser]) -> None:
    shapes = {name: {m: np.shape(v) for m, v in row.items()} for name, row in systems.items()}
    for name, shape in shapes.items():
        first = next(iter(shapes))
        _require(
            shape == shapes[first],
            f"every system must hold the same metrics of the same users: {first!r} has {shapes[first]}, "
            f"{name!r} has {shape}",
        )


def _check_interval(mean: Any, interval: Any, where: str) -> None:
    _require(
        isinstance(interval, Sequence) and len(interval) == 2,
        f"{where}.ci95 must be [low, high], got {interval!r}",
    )
    numbers = [mean, *interval]
    _require(
        all(isinstance(x, int | float) and math.isfinite(x) for x in numbers),
        f"{where} must hold finite numbers, got {numbers!r}",
    )
    _require(interval[0] <= interval[1], f"{where}.ci95 must be [low, high], got {interval!r}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ResultsError(message)
