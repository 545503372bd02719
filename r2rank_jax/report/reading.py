"""Reads a run directory. Any file may be missing, because a report can show an unfinished run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2rank_jax.checkpoint.folders import policy_identity
from r2rank_jax.config import in_current_fields
from r2rank_jax.errors import ConfigError, ResultsError
from r2rank_jax.evaluation.results import read_results
from r2rank_jax.ranking.metrics import EVALUATED
from r2rank_jax.report.records import LoggedStep

ORDER = ("random", "popularity", "item_knn", "sft", "sft_continued", "critic", "rl")
"""Known systems, the simplest first. Other systems follow in the order of the file."""

LABELS = {
    "random": "Random",
    "popularity": "Popularity",
    "item_knn": "Item kNN",
    "sft": "SFT",
    "sft_continued": "SFT continued",
    "critic": "Critic without words",
    "rl": "RL",
}


_METRIC_LABELS = {name: evaluated.label for name, evaluated in EVALUATED.items()} | {
    "dcg": "DCG",
    "recall": "Recall",
    "ndcg_linear": "NDCG (linear gains)",
    "dcg_linear": "DCG (linear gains)",
}


@dataclass(frozen=True)
class Curve:
    """One metric of one phase over training; the three lists are parallel, and every value is finite."""

    steps: list[int]
    wall_s: list[float]  # since the phase began
    values: list[float]


@dataclass(frozen=True)
class Run:
    """The readable content of a run directory."""

    directory: Path
    config: dict[str, Any]
    results: dict[str, Any]
    logs: dict[str, list[LoggedStep]]  # phase -> logged steps, in order of step
    users: list[dict[str, Any]]  # lines of rationales.jsonl
    problems: list[str]  # sentences for the report about missing or unreadable files

    @property
    def systems(self) -> dict[str, Any]:
        """System -> metric -> cell, in the order of the report."""
        systems = self.results.get("systems") or {}
        names = [name for name in ORDER if name in systems]
        return {name: systems[name] for name in [*names, *(n for n in systems if n not in ORDER)]}

    @property
    def metric(self) -> str:
        """The headline metric: the reward if it was evaluated, else NDCG@10, else NDCG at the largest k."""
        names = {metric for cells in self.systems.values() for metric in cells}
        reward = self.config.get("rl", {}).get("reward")
        if isinstance(reward, str) and (reward in names or not names):
            return reward
        cutoffs = [int(m.removeprefix("ndcg@")) for m in names if m.removeprefix("ndcg@").isdigit()]
        return "ndcg@10" if 10 in cutoffs or not cutoffs else f"ndcg@{max(cutoffs)}"

    def curve(self, phase: str, name: str) -> Curve:
        """Metric `name` of `phase`; empty if it was never logged."""
        points = [
            (logged.step, logged.wall_s, value)
            for logged in self.logs.get(phase, [])
            if (value := logged.finite(name)) is not None
        ]
        steps, wall_s, values = ([list(column) for column in zip(*points)]) if points else ([], [], [])
        return Curve(steps, wall_s, values)

    def duration_s(self, phase: str) -> float:
        """Seconds from the start of `phase` to its last logged step."""
        return max((logged.wall_s for logged in self.logs.get(phase, [])), default=0.0)


def label(system: str) -> str:
    """Name of a system in text."""
    return LABELS.get(system, system.replace("_", " "))


def metric_label(metric: str) -> str:
    """`ndcg@10` -> `NDCG@10`, `0.5*ndcg@10+mrr` -> `0.5*NDCG@10+MRR`; module:function stays as it is."""
    return re.sub(r"(?<![\w.:])[a-z_]+(?![\w.:])", lambda word: _METRIC_LABELS.get(word[0], word[0]), metric)


def read_run(directory: Path) -> Run:
    """Read the files that exist.

    Raises:
        FileNotFoundError: `directory` itself does not exist.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"no run directory at {directory}; `r2rank sft --run-dir {directory}` creates one")
    problems: list[str] = []
    config = _object(directory / "config.json", "There is no configuration yet", problems)
    for section in ("data", "rl"):
        if not isinstance(config.get(section, {}), dict):
            problems.append(f"config.json holds no settings for {section}: it must be an object.")
            del config[section]
    if "rl" in config:
        try:
            config["rl"] = in_current_fields(config["rl"])
        except ConfigError as error:
            problems.append(f"The reward in config.json could not be read: {error}.")
    results = _results(directory, problems)
    rows = _lines(directory / "metrics.jsonl", "Nothing has been logged yet, so there are no learning curves", problems)
    users = _lines(directory / "rationales.jsonl", "There are no rationales yet", problems)
    return Run(directory, config, results, _by_phase(rows), [u for u in users if _is_shown(u)], problems)


def _object(path: Path, missing: str, problems: list[str]) -> dict[str, Any]:
    if not path.is_file():
        problems.append(f"{missing} ({path.name} is missing).")
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        problems.append(f"{path.name} could not be read: {error}.")
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path.name} could not be read: it does not hold a JSON object.")
        return {}
    return content


def _results(directory: Path, problems: list[str]) -> dict[str, Any]:
    """The results, and a remark on every phase that has been trained further since."""
    path = directory / "results.json"
    if not path.is_file():
        problems.append(
            "There are no final results yet; run `r2rank eval` on this directory (results.json is missing)."
        )
        return {}
    try:
        results = read_results(path)
    except ResultsError as error:
        problems.append(f"{path.name} could not be read: {error}.")
        return {}
    for phase, facts in results["training"].items():
        now = policy_identity(directory / "checkpoints" / phase)
        if now is not None and isinstance(facts, dict) and facts.get("checkpoint", now) != now:
            problems.append(f"The results are those of another checkpoint of {phase}; run `r2rank eval` again.")
    return results


def _is_shown(user: dict[str, Any]) -> bool:
    """Whether a line of `rationales.jsonl` has the form that `r2rank eval` writes."""
    candidates, history = user.get("candidates"), user.get("history")
    if not isinstance(history, list) or not all(isinstance(film, dict) for film in history):
        return False
    if not candidates or not isinstance(candidates, list) or not all(isinstance(c, dict) for c in candidates):
        return False
    systems = [c.get("systems") for c in candidates]
    return all(
        isinstance(by_name, dict)
        and all(isinstance(x, dict) and isinstance(x.get("score"), float) for x in by_name.values())
        for by_name in systems
    )


def _lines(path: Path, missing: str, problems: list[str]) -> list[dict[str, Any]]:
    """Objects of a JSONL file. Lines that were cut off by a crash are reported, not fatal."""
    if not path.is_file():
        problems.append(f"{missing} ({path.name} is missing).")
        return []
    rows, bad = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            bad += 1
    if bad:
        problems.append(f"{bad} unreadable line{'s' if bad > 1 else ''} of {path.name} skipped.")
    return rows


def _by_phase(rows: Iterable[dict[str, Any]]) -> dict[str, list[LoggedStep]]:
    """Steps by phase. Rows of one step are merged with the later values, because a resumed run logs steps twice."""
    merged: dict[str, dict[int, LoggedStep]] = {}
    for row in rows:
        logged = LoggedStep.from_json(row)
        if logged is not None:
            steps = merged.setdefault(logged.phase, {})
            steps[logged.step] = steps[logged.step].updated(logged) if logged.step in steps else logged
    return {phase: [steps[step] for step in sorted(steps)] for phase, steps in merged.items()}
