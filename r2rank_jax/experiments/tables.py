"""The tables of the page of results, as lines of Markdown; a table without rows has no lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Results = Mapping[str, Any]
"""Content of a results file, see `gather`."""

_CONDITIONS = {
    "own": "as it is",
    "exchanged": "rationales exchanged",
    "deleted": "deleted",
    "verdict_only": "verdict only",
    "other_user": "another user's history",
}


def systems(results: Results) -> list[str]:
    """Every metric of every system, and of a random ranking."""
    metrics = list(next(iter(results["systems"].values())))
    main = _main(results)
    others = [m for m in metrics if m != main]
    rows = [["system", main, f"{main} of each seed", *others]]
    for name, cells in results["systems"].items():
        each = results["seeds"].get(name, {}).get(main, [])
        rows.append(
            [
                name,
                _cell(cells[main]),
                ", ".join(_digits(x) for x in each),
                *(_digits(cells[metric]["mean"]) for metric in others),
            ]
        )
    expected = results["analytic_random"]
    if expected:
        rows.append(["chance (exact)", _digits(expected[main]), "", *(_digits(expected[m]) for m in others)])
    return _table(rows)


def comparisons(differences: Sequence[Mapping[str, Any]]) -> list[str]:
    """Differences of pairs of systems."""
    rows = [["comparison", "metric", "difference", "p", "p, corrected"]]
    for row in differences:
        difference = f"{row['difference']:+.3f} [{row['ci95'][0]:+.3f}, {row['ci95'][1]:+.3f}]"
        rows.append([f"{row['a']} − {row['b']}", row["metric"], difference, f"{row['p']:.2g}", f"{row['p_holm']:.2g}"])
    return _table(rows)


def curve(results: Results) -> list[str]:
    """NDCG by the number of rationales."""
    curve = results["rationale_curve"]
    counts = list(dict.fromkeys(count for cells in curve.values() for count in cells))
    rows = [["NDCG by rationales read", *counts]]
    rows += [
        [name, *(_cell(cells[count]) if count in cells else "" for count in counts)] for name, cells in curve.items()
    ]
    return _table(rows)


def arms(results: Results) -> list[str]:
    """What each arm is."""
    rows = [["arm", "what it shows", "settings", "minutes of each seed"]]
    for name, arm in results["experiment"]["arms"].items():
        settings = ", ".join(f"`{field}={value}`" for field, value in arm["values"].items()) or "as configured"
        start = f"{arm['phase']} from {arm['start']}" if arm["start"] else arm["phase"]
        minutes = ", ".join(f"{x:.1f}" for x in results["training"][name]["minutes"])
        rows.append([name, arm["asks"], f"{start}; {settings}", minutes])
    return _table(rows)


def cost(results: Results) -> list[str]:
    """Counted work of training and of ranking a list, and the NDCG that it buys."""
    rows = [["arm", "training FLOPs", "minutes", "rationales", "FLOPs per list", _main(results).upper()]]
    for name, arm in results["cost"].items():
        for reading in arm["readings"]:
            rows.append(
                [
                    name,
                    f"{arm['training_flops']:.3g}",
                    f"{arm['minutes']:.1f}",
                    str(reading["rationales"]),
                    f"{reading['list_flops']:.3g}",
                    _digits(reading["ndcg"]),
                ]
            )
    return _table(rows)


def probes(probed: Mapping[str, Any]) -> list[str]:
    """NDCG of probed arms under each condition: the mean and, in parentheses, each seed."""
    metric = next((arm["metric"] for arm in probed.values()), "")
    rows = [[f"probed arm, {metric.upper()}", *_CONDITIONS.values(), "labels permuted (chance)"]]
    for name, arm in probed.items():
        cells = [arm["conditions"].get(condition) for condition in _CONDITIONS]
        low, high = arm["chance"]["ci95"]
        rows.append(
            [
                name,
                *(_seeds(cell) if cell else "does not apply" for cell in cells),
                f"{_digits(arm['chance']['mean'])} [{_digits(low)}, {_digits(high)}]",
            ]
        )
    return _table(rows)


def _main(results: Results) -> str:
    """NDCG at the largest k."""
    names = [name for name in next(iter(results["systems"].values())) if name.startswith("ndcg@")]
    return str(max(names, key=lambda name: int(name.split("@")[1])))


def _seeds(cell: Mapping[str, Any]) -> str:
    return f"{_digits(cell['mean'])} ({', '.join(_digits(value) for value in cell['seeds'])})"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    if len(rows) == 1:
        return []
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _cell(cell: Mapping[str, Any]) -> str:
    return f"{_digits(cell['mean'])} [{_digits(cell['ci95'][0])}, {_digits(cell['ci95'][1])}]"


def _digits(value: float) -> str:
    return f"{value:.3f}"
