"""Results as text: tables for a terminal and for the page of an exported model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def results_table(results: Mapping[str, Any], metrics: Sequence[str] | None = None) -> str:
    """Plain-text tables for a terminal: one row per system with 95% intervals, then one per comparison.

    Args:
        results: content of `results.json`.
        metrics: columns; None = every metric, in the order of the first system that has it.
    """
    systems: Mapping[str, Any] = results["systems"]
    columns = list(metrics) if metrics else list(dict.fromkeys(m for row in systems.values() for m in row))
    users = sorted({cell["n"] for row in systems.values() for cell in row.values()})
    rows = [["system", *columns]]
    rows += [[name, *(_cell(row.get(metric)) for metric in columns)] for name, row in systems.items()]
    expected = results.get("analytic_random") or {}
    if expected:
        values = [f"{expected[m]:.3f}" if m in expected else "-" for m in columns]
        rows.append(["(random, analytic)", *values])
    sizes = ", ".join(str(n) for n in users) or "no"
    text = f"mean [95% interval over users], {sizes} users\n{aligned(rows)}"
    curve = results.get("rationale_curve") or {}
    if curve:
        counts = list(dict.fromkeys(count for cells in curve.values() for count in cells))
        rows = [["NDCG by rationales read", *counts]]
        rows += [[phase, *(_cell(cells.get(count)) for count in counts)] for phase, cells in curve.items()]
        text += f"\n\nmean score of so many sampled rationales; greedy: one, the most likely\n{aligned(rows)}"
    if results["comparisons"]:
        header = ["comparison", "metric", "difference", "95% interval", "p", "p (Holm)"]
        body = [
            [
                f"{row['a']} - {row['b']}",
                row["metric"],
                f"{row['difference']:+.3f}",
                f"{row['ci95'][0]:+.3f} to {row['ci95'][1]:+.3f}",
                f"{row['p']:.2g}",
                f"{row['p_holm']:.2g}" if "p_holm" in row else "-",
            ]
            for row in results["comparisons"]
        ]
        text += f"\n\npaired over users, sign-flip permutation test; Holm: corrected for all {len(body)} comparisons\n"
        text += aligned([header, *body])
    return text


def _cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "-"
    return f"{cell['mean']:.3f} [{cell['ci95'][0]:.3f}, {cell['ci95'][1]:.3f}]"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as columns of text; the first row is the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
