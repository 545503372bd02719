"""RESULTS.md, rebuilt from `results/*.json` alone, so that no figure of the page can differ from a result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r2rank_jax.errors import ResultsError
from r2rank_jax.evaluation.results import read_results
from r2rank_jax.experiments import tables
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

FLOPs are counted, not measured (docs/performance.md): those of all phases that an arm went through, and those of
ranking one list. Minutes are the wall time of these phases, validation and compilation included.
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
        sizes.add(results["experiment"]["candidates"])
        parts.append(_section(file, results))
    candidates = " or ".join(str(size) for size in sorted(sizes))
    return "\n".join([HEAD.format(candidates=candidates), *parts])


def _section(file: Path, results: Mapping[str, Any]) -> str:
    experiment, protocol, machine = results["experiment"], results["protocol"], results["machine"]
    title = experiment["title"] if protocol is None else f"{experiment['title']}: {protocol['title']}"
    seeds = ", ".join(str(seed) for seed in experiment["seeds"])
    lines = [
        f"## {title}",
        "",
        f"`results/{file.name}`: seeds {seeds}; commit {results['commit'][:12]}; {machine['date'][:10]}, "
        f"{machine['cpus']} CPUs ({machine['processor']}), Python {machine['python']}, jax {machine['jax']}; "
        f"data {results['data_hash'][:12]}, candidates {results['candidate_hash'][:12]}. "
        f"Rebuild: `{results['command']}`.",
    ]
    if protocol is not None:
        lines += [
            "",
            f"The policies and the settings of the baselines are those of `results/{experiment['name']}.json`; nothing "
            "was trained or chosen on these candidates.",
        ]
    parts = [tables.systems(results), tables.comparisons(results["comparisons"]), tables.curve(results)]
    if protocol is None:
        parts += [tables.arms(results), tables.cost(results), tables.probes(results["probes"])]
    parts.append([f"- {note}" for note in results["notes"]])
    return "\n".join([*lines, *(line for part in parts if part for line in ("", *part)), ""])
