"""`probes.json`: what the ranking of a policy rests on, with everything needed to judge and repeat it.

phase, lists, metric, rationales, score_reads   what was probed: the policy, "valid" or "test", NDCG at the largest k,
                the number of rationales per item, and what the head reads
n               number of lists
probes          name -> {skipped: why}, or
  candidate_order   {scores, different, largest_difference}
  history           {conditions: own, shuffled, other_user; changed: {shuffled, other_user}}
  rationales        {conditions: own, exchanged, deleted, first_half, verdict_only, verdict_left_out; rescoring_gap}
  verdicts          {least, rationales, truncated, rows: [{verdict, count, positives, score}]}
  popularity        {spearman: cell or null, undefined, groups}
  titles            {pairs, kinds: kind -> {places_up: cell, beyond_neutral: cell, changed, whole}}
  labels            {ndcg: cell, analytic_random: number or null}
  groups            {history_length: groups, cold: groups}
findings        sentences
data_hash, candidate_hash, commit, command, checkpoint: {identity, step}, configuration, seed, machine, notes

A cell is {mean, ci95: [low, high], n} over users; conditions are name -> {ndcg: cell, difference: cell}, the difference
from `own`; groups are [{from, to, lists, ndcg: cell}]. `docs/probes.md` says what each number means.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r2rank_jax.errors import ResultsError
from r2rank_jax.evaluation.results import check_cell, read_checked, write_checked

SCHEMA = 1
"""Incremented when a reader of the old form would misread the new one."""

FIELDS = {
    "candidate_order": ("scores", "different", "largest_difference"),
    "history": ("conditions", "changed"),
    "rationales": ("conditions", "rescoring_gap"),
    "verdicts": ("least", "rationales", "truncated", "rows"),
    "popularity": ("spearman", "undefined", "groups"),
    "titles": ("pairs", "kinds"),
    "labels": ("ndcg", "analytic_random"),
    "groups": ("history_length", "cold"),
}
"""Probe -> its fields."""

_CELLS = ("ndcg", "difference", "places_up", "beyond_neutral")
_HEADER = (
    "schema", "phase", "lists", "metric", "rationales", "score_reads", "n", "probes", "findings", "data_hash",
    "candidate_hash", "commit", "command", "checkpoint", "configuration", "seed", "machine", "notes",
)  # fmt: skip


def write_probes(path: Path, probes: Mapping[str, Any]) -> None:
    """Check `probes` and write them, see `results.write_checked`."""
    write_checked(path, probes, check_probes)


def read_probes(path: Path) -> dict[str, Any]:
    """Read and check what `write_probes` wrote, see `results.read_checked`."""
    return read_checked(path, check_probes, "r2rank probe")


def check_probes(probes: Any) -> None:
    """Raise `ResultsError` if `probes` does not have the form in the docstring of this module."""
    _require(isinstance(probes, Mapping), f"probes must be an object, got {type(probes).__name__}")
    missing = [name for name in _HEADER if name not in probes]
    _require(not missing, f"probes must hold {', '.join(missing)}, got only {sorted(probes)}")
    _require(probes["schema"] == SCHEMA, f"schema must be {SCHEMA}, got {probes['schema']!r}")
    checkpoint = probes["checkpoint"]
    _require(
        isinstance(checkpoint, Mapping) and {"identity", "step"} <= set(checkpoint),
        f"checkpoint must hold identity and step, got {checkpoint!r:.80}",
    )
    findings = probes["findings"]
    _require(
        isinstance(findings, list) and all(isinstance(finding, str) for finding in findings),
        f"findings must be a list of sentences, got {findings!r:.80}",
    )
    table = probes["probes"]
    _require(isinstance(table, Mapping), f"probes.probes must be an object, got {type(table).__name__}")
    _require(set(table) == set(FIELDS), f"probes.probes must hold {sorted(FIELDS)}, got {sorted(table)}")
    for name, probe in table.items():
        _require(isinstance(probe, Mapping), f"probes.{name} must be an object, got {probe!r:.80}")
        fields = {"skipped"} if "skipped" in probe else set(FIELDS[name])
        _require(set(probe) == fields, f"probes.{name} must hold {sorted(fields)}, got {sorted(probe)}")
        if "conditions" in probe:
            _check_conditions(probe["conditions"], f"probes.{name}.conditions")
        _check_cells(probe, f"probes.{name}")


def _check_conditions(conditions: Any, where: str) -> None:
    _require(
        isinstance(conditions, Mapping) and "own" in conditions, f"{where} must hold 'own', got {conditions!r:.80}"
    )
    for name, row in conditions.items():
        fields = {"ndcg"} if name == "own" else {"ndcg", "difference"}
        _require(isinstance(row, Mapping) and set(row) == fields, f"{where}.{name} must hold {sorted(fields)}")


def _check_cells(value: Any, where: str) -> None:
    """Check every cell at any depth: whatever has a mean, and whatever is named as a cell."""
    if isinstance(value, Mapping):
        if "mean" in value:
            check_cell(value, where)
            return
        for name, part in value.items():
            if name in _CELLS or (name == "spearman" and part is not None):
                check_cell(part, f"{where}.{name}")
            else:
                _check_cells(part, f"{where}.{name}")
    elif isinstance(value, list):
        for place, part in enumerate(value):
            _check_cells(part, f"{where}[{place}]")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ResultsError(message)
