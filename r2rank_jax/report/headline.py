"""The sentences at the top of the report, which are derived from the numbers of the run."""

from __future__ import annotations

from typing import Any

from r2rank_jax.report.reading import Run, label, metric_label

CHAIN = ("random", "popularity", "sft", "rl")
RIVALS = ("sft", "sft_continued", "item_knn", "popularity", "random")
NBSP = "\u00a0"  # keeps a name and its number on one line
LEVEL = 0.05
"""Significance level of the test."""


def headline(run: Run) -> str:
    """One sentence with the headline metric of each system from random to RL."""
    metric, systems = run.metric, run.systems
    chain = [name for name in CHAIN if metric in systems.get(name, {})]
    if not chain:
        return "This run has no final results yet."
    steps = " → ".join(f"{label(name)}{NBSP}{systems[name][metric]['mean']:.3f}" for name in chain)
    users = max(systems[name][metric]["n"] for name in chain)
    return f"{metric_label(metric)} on {users:,} held‑out users: {steps}."


def verdicts(run: Run) -> list[dict[str, str]]:
    """Comparisons of the last phase with the other systems.

    Returns:
        Dictionaries of `tone` ("good", "unclear", "bad" or "missing") and `text`.
    """
    systems, metric = run.systems, run.metric
    if not systems:
        return []
    last = "rl" if "rl" in systems else "sft" if "sft" in systems else None
    if last is None:
        return [_verdict("missing", "No trained model has been evaluated yet.")]
    sentences = [] if last == "rl" else [_verdict("missing", "There is no RL result yet.")]
    compared = [
        row["b"] if row["a"] == last else row["a"]
        for row in run.results.get("comparisons") or []
        if last in (row["a"], row["b"])
    ]
    for rival in dict.fromkeys([*RIVALS, *compared]):
        if rival == last or metric not in systems.get(rival, {}) or metric not in systems[last]:
            continue
        if rival == "random" and any(name in systems for name in ("popularity", "item_knn")):
            continue  # a comparison with a real baseline says more
        sentences.append(_against(run, last, rival))
    return sentences


def comparison(run: Run, a: str, b: str, metric: str) -> dict[str, Any] | None:
    """The recorded comparison of a with b, with its sign reversed if it was recorded as b with a."""
    for row in run.results.get("comparisons") or []:
        if row["metric"] != metric:
            continue
        if (row["a"], row["b"]) == (a, b):
            return row
        if (row["a"], row["b"]) == (b, a):
            low, high = row["ci95"]
            return {**row, "a": a, "b": b, "difference": -row["difference"], "ci95": [-high, -low]}
    return None


def p_digits(p: float) -> str:
    """A p-value with a meaningful number of digits."""
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"


def p_text(p: float) -> str:
    """`p = 0.03` or `p < 0.0001`, kept on one line."""
    digits = p_digits(p)
    return f"p {digits}".replace(" ", NBSP) if digits.startswith("<") else f"p{NBSP}={NBSP}{digits}"


def signed(value: float) -> str:
    """+0.012 or −0.012, with a true minus."""
    return f"{value:+.3f}".replace("-", "−")


def _against(run: Run, last: str, rival: str) -> dict[str, str]:
    metric = run.metric
    row = comparison(run, last, rival, metric)
    name, other = label(last), label(rival)
    if row is None:
        gap = run.systems[last][metric]["mean"] - run.systems[rival][metric]["mean"]
        side = "above" if gap > 0 else "below" if gap < 0 else "from"
        return _verdict(
            "unclear" if gap > 0 else "bad",
            f"{name} is {abs(gap):.3f} {side} {other}; no paired test was recorded.",
        )
    low, high = row["ci95"]
    p = row.get("p_holm", row["p"])  # results from before the correction have p only
    corrected = "corrected " if "p_holm" in row else ""
    numbers = f"{signed(row['difference'])}, 95% interval {signed(low)} to {signed(high)}, {corrected}{p_text(p)}"
    if p < LEVEL and row["difference"] > 0:
        return _verdict("good", f"{name} beat {other} ({numbers}).")
    if p < LEVEL:
        return _verdict("bad", f"{name} did worse than {other} ({numbers}).")
    return _verdict("unclear", f"{name} and {other} did not differ significantly ({numbers}).")


def _verdict(tone: str, text: str) -> dict[str, str]:
    return {"tone": tone, "text": text}
