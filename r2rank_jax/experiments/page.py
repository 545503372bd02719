"""RESULTS.md, rebuilt from `results/*.json` alone, so that no figure of the page can differ from a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from r2rank_jax.errors import ResultsError
from r2rank_jax.evaluation.results import read_results
from r2rank_jax.files.atomic import replacing_file

HEAD = """# Results

This page is written by `r2rank experiment`; do not edit it. Every figure comes from a file in `results/`, which also
holds the seeds, settings, hashes and the machine. Each list is reranked: every system orders the same {candidates}
candidates of a user, one of them relevant. Such figures are higher than those of ranking a whole catalog, and may order
systems differently (Krichene and Rendle, KDD 2020). The test lists were scored once, after all settings were fixed on
the validation lists.

An arm's value for a user is the mean over its seeds. Brackets are 95% bootstrap intervals over users; they do not cover
the seeds, whose means are listed. p-values are those of a two-sided sign-flip permutation test over users, corrected
for all comparisons of a table (Holm).
"""


def write_page(folder: Path, path: Path) -> None:
    """Write the page of all results in `folder`.

    Raises:
        ResultsError: there is no result, or one is not of an experiment.
    """
    with replacing_file(path) as partial:
        partial.write_text(page(folder), encoding="utf-8")


def page(folder: Path) -> str:
    """The page of all results in `folder`, ordered by name."""
    files = sorted(folder.glob("*.json"))
    if not files:
        raise ResultsError(f"{folder} must hold results of an experiment (*.json), but holds none; run one first")
    parts, sizes = [], set()
    for file in files:
        results = read_results(file)
        if "experiment" not in results:
            raise ResultsError(
                f"{file} must be the result of `r2rank experiment`, but has no 'experiment'; move it away"
            )
        sizes.add(results["configuration"]["data"]["candidate_items"])
        parts.append(_section(file.stem, results))
    candidates = " or ".join(str(size) for size in sorted(sizes))
    return "\n".join([HEAD.format(candidates=candidates), *parts])


def _section(name: str, results: Mapping[str, Any]) -> str:
    experiment, machine = results["experiment"], results["machine"]
    seeds = ", ".join(str(seed) for seed in experiment["seeds"])
    lines = [f"## {experiment['title']}", ""]
    lines += [
        f"`results/{name}.json`: seeds {seeds}; commit {results['commit'][:12]}; {machine['date'][:10]}, "
        f"{machine['cpus']} CPUs ({machine['processor']}), Python {machine['python']}, jax {machine['jax']}; "
        f"data {results['data_hash'][:12]}, candidates {results['candidate_hash'][:12]}. "
        f"Rebuild: `{results['command']}`.",
        "",
        *_systems(results),
        "",
        *_comparisons(results),
    ]
    if results.get("rationale_curve"):
        lines += ["", *_curve(results["rationale_curve"])]
    lines += ["", *_arms(experiment["arms"], results["training"])]
    if results["notes"]:
        lines += ["", *(f"- {note}" for note in results["notes"])]
    return "\n".join([*lines, ""])


def _systems(results: Mapping[str, Any]) -> list[str]:
    metrics = list(next(iter(results["systems"].values())))
    main = max((m for m in metrics if m.startswith("ndcg@")), key=lambda m: int(m.split("@")[1]))
    others = [m for m in metrics if m != main]
    rows = [["system", main, f"{main} of each seed", *others]]
    for name, cells in results["systems"].items():
        each = results["seeds"].get(name, {}).get(main, [])
        rows.append(
            [
                name,
                _cell(cells[main]),
                ", ".join(_digits(x) for x in each),
                *(_digits(cells[m]["mean"]) for m in others),
            ]
        )
    expected = results["analytic_random"]
    if expected:
        rows.append(["chance (exact)", _digits(expected[main]), "", *(_digits(expected[m]) for m in others)])
    return _table(rows)


def _comparisons(results: Mapping[str, Any]) -> list[str]:
    rows = [["comparison", "metric", "difference", "p", "p, corrected"]]
    for row in results["comparisons"]:
        difference = f"{row['difference']:+.3f} [{row['ci95'][0]:+.3f}, {row['ci95'][1]:+.3f}]"
        rows.append([f"{row['a']} − {row['b']}", row["metric"], difference, f"{row['p']:.2g}", f"{row['p_holm']:.2g}"])
    return _table(rows) if len(rows) > 1 else []


def _curve(curve: Mapping[str, Any]) -> list[str]:
    counts = list(dict.fromkeys(count for cells in curve.values() for count in cells))
    rows = [["NDCG by rationales read", *counts]]
    rows += [
        [name, *(_cell(cells[count]) if count in cells else "" for count in counts)] for name, cells in curve.items()
    ]
    return _table(rows)


def _arms(arms: Mapping[str, Any], training: Mapping[str, Any]) -> list[str]:
    rows = [["arm", "what it shows", "settings", "minutes of each seed"]]
    for name, arm in arms.items():
        settings = ", ".join(f"`{field}={value}`" for field, value in arm["values"].items()) or "as configured"
        start = f"{arm['phase']} from {arm['start']}" if arm["start"] else arm["phase"]
        minutes = ", ".join(f"{x:.1f}" for x in training[name]["minutes"])
        rows.append([name, arm["asks"], f"{start}; {settings}", minutes])
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _cell(cell: Mapping[str, Any]) -> str:
    return f"{_digits(cell['mean'])} [{_digits(cell['ci95'][0])}, {_digits(cell['ci95'][1])}]"


def _digits(value: float) -> str:
    return f"{value:.3f}"
