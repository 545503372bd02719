"""Probes in words: a table for a terminal, and one sentence per finding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from r2rank_jax.evaluation.table import aligned

Probes = Mapping[str, Mapping[str, Any]]
"""Probe -> its result, see `form`."""

_SHOWN_VERDICTS = 8

_HISTORY = {
    "shuffled": "Shuffling the visible history",
    "other_user": "Showing the history of another user",
}
_RATIONALES = {
    "exchanged": "Exchanging the rationales of a list's items",
    "deleted": "Deleting the rationales",
    "first_half": "Cutting rationales to their first half",
    "verdict_only": "Keeping only the verdict",
    "verdict_left_out": "Leaving the verdict out",
}
_TITLES = {
    "instruction": "an instruction to rank it first",
    "praise": "praise",
    "history_titles": "titles of the history",
    "other_title": "the title of another item",
    "neutral": "neutral words",
}


def findings_of(probes: Probes, metric: str) -> list[str]:
    """One sentence per finding, in the order of the probes. `metric` is the name of the NDCG."""
    sentences: list[str] = []
    for name, describe in _DESCRIBED.items():
        probe = probes[name]
        if "skipped" in probe:
            sentences.append(f"Probe {name} was left out: {probe['skipped']}.")
        else:
            sentences += describe(probe, metric.upper())
    return sentences


def probes_table(probes: Probes, metric: str, lists: int) -> str:
    """Conditions, groups and added texts as text, with 95% intervals over users."""
    rows = [["probe", "condition", metric, "difference from own"]]
    for name in ("history", "rationales"):
        for condition, row in probes[name].get("conditions", {}).items():
            rows.append([name, condition, _cell(row["ndcg"]), _cell(row["difference"]) if "difference" in row else ""])
    grouped = (("popularity", "groups"), ("groups", "history_length"), ("groups", "cold"))
    for name, field in grouped:
        for group in probes[name].get(field, []):
            by = {"groups": "positive's popularity", "history_length": "history", "cold": "positive's popularity"}
            rows.append([name, f"{by[field]} {_span(group)}", _cell(group["ndcg"]), ""])
    if "ndcg" in probes["labels"]:
        rows.append(["labels", "permuted", _cell(probes["labels"]["ndcg"]), ""])
    text = f"mean [95% interval over users], {lists} lists\n{aligned(rows)}"
    kinds = probes["titles"].get("kinds", {})
    if kinds:
        header = ["text added to a negative's title", "places up", "beyond neutral", "prompts changed", "shown whole"]
        body = [
            [kind, _cell(x["places_up"]), _cell(x["beyond_neutral"]), str(x["changed"]), str(x["whole"])]
            for kind, x in kinds.items()
        ]
        text += f"\n\n{aligned([header, *body])}"
    words = probes["verdicts"].get("rows", [])
    if words:
        header = ["verdict", "count", "share of positives", "mean score"]
        body = [[w["verdict"], str(w["count"]), f"{w['positives']:.3f}", f"{w['score']:.3f}"] for w in words]
        more = len(body) - _SHOWN_VERDICTS
        if more > 0:
            body = [*body[: _SHOWN_VERDICTS // 2], [f"({more} more)", "", "", ""], *body[-_SHOWN_VERDICTS // 2 :]]
        text += f"\n\n{aligned([header, *body])}"
    return text


def _candidate_order(probe: Mapping[str, Any], metric: str) -> list[str]:
    if not probe["different"]:
        return [f"The order of the candidates changes none of {probe['scores']} scores, to the bit."]
    return [
        f"The order of the candidates changes {probe['different']} of {probe['scores']} scores, by at most "
        f"{probe['largest_difference']:.3g}; this is a defect."
    ]


def _history(probe: Mapping[str, Any], metric: str) -> list[str]:
    return [
        _effect(_HISTORY[name], probe["conditions"], name, metric) for name in _HISTORY if name in probe["conditions"]
    ]


def _rationales(probe: Mapping[str, Any], metric: str) -> list[str]:
    return [_effect(words, probe["conditions"], name, metric) for name, words in _RATIONALES.items()]


def _verdicts(probe: Mapping[str, Any], metric: str) -> list[str]:
    rows = probe["rows"]
    if len(rows) < 2:
        return [f"Fewer than two verdicts occur {probe['least']} times, so their calibration cannot be judged."]
    pairs = [(a, b) for i, a in enumerate(rows) for b in rows[i + 1 :]]
    ordered = sum(a["positives"] >= b["positives"] for a, b in pairs)
    highest, lowest = (
        f'"{row["verdict"]}" (mean score {row["score"]:.2f}, {row["positives"]:.0%} positives)'
        for row in (rows[0], rows[-1])
    )
    return [
        f"Verdicts range from {highest} to {lowest}; in {ordered} of {len(pairs)} pairs of verdicts the one with the "
        "higher score is at least as often right."
    ]


def _popularity(probe: Mapping[str, Any], metric: str) -> list[str]:
    sentences = []
    if probe["spearman"] is not None:
        sentences.append(f"Scores correlate with popularity within a list at {_cell(probe['spearman'])} (Spearman).")
    groups = probe["groups"]
    if len(groups) > 1:
        sentences.append(
            f"{metric} is {_cell(groups[0]['ndcg'])} where the positive is least popular and "
            f"{_cell(groups[-1]['ndcg'])} where it is most popular."
        )
    return sentences


def _titles(probe: Mapping[str, Any], metric: str) -> list[str]:
    sentences = []
    for kind, row in probe["kinds"].items():
        up, beyond = row["places_up"], row["beyond_neutral"]
        low, high = up["ci95"]
        moved = "does not move it measurably" if low <= 0 <= high else f"moves it {'up' if up['mean'] > 0 else 'down'}"
        control = "" if kind == "neutral" else f", {_signed(beyond)} beyond what neutral words do"
        sentences.append(
            f"Adding {_TITLES[kind]} to a negative's title {moved}: it gains {_signed(up)} places{control}."
        )
    return sentences


def _labels(probe: Mapping[str, Any], metric: str) -> list[str]:
    cell, expected = probe["ndcg"], probe["analytic_random"]
    if expected is None:
        return [f"With permuted labels {metric} is {_cell(cell)}; lists with several positives have no analytic value."]
    low, high = cell["ci95"]
    agrees = "as expected by chance" if low <= expected <= high else "outside of chance; look for a leak of labels"
    return [f"With permuted labels {metric} is {_cell(cell)}, {agrees} ({expected:.3f})."]


def _groups(probe: Mapping[str, Any], metric: str) -> list[str]:
    sentences = []
    by_length, cold = probe["history_length"], probe["cold"]
    if len(by_length) > 1:
        short, long = by_length[0], by_length[-1]
        sentences.append(
            f"{metric} is {_cell(short['ndcg'])} for the shortest histories ({_span(short)} interactions) and "
            f"{_cell(long['ndcg'])} for the longest ({_span(long)})."
        )
    if len(cold) > 1:
        sentences.append(
            f"{metric} is {_cell(cold[0]['ndcg'])} on {cold[0]['lists']} lists whose positive is cold and "
            f"{_cell(cold[1]['ndcg'])} on the {cold[1]['lists']} others."
        )
    return sentences


_DESCRIBED = {
    "candidate_order": _candidate_order,
    "history": _history,
    "rationales": _rationales,
    "verdicts": _verdicts,
    "popularity": _popularity,
    "titles": _titles,
    "labels": _labels,
    "groups": _groups,
}


def _effect(change: str, conditions: Mapping[str, Any], name: str, metric: str) -> str:
    own, row = conditions["own"]["ndcg"]["mean"], conditions[name]
    difference = row["difference"]
    low, high = difference["ci95"]
    if low <= 0 <= high:
        return f"{change} does not change {metric} measurably: {_signed(difference)}."
    moved = "lowers" if difference["mean"] < 0 else "raises"
    return f"{change} {moved} {metric} from {own:.3f} to {row['ndcg']['mean']:.3f}: {_signed(difference)}."


def _cell(cell: Mapping[str, Any]) -> str:
    return f"{cell['mean']:.3f} [{cell['ci95'][0]:.3f}, {cell['ci95'][1]:.3f}]"


def _signed(cell: Mapping[str, Any]) -> str:
    return f"{cell['mean']:+.3f} [{cell['ci95'][0]:+.3f}, {cell['ci95'][1]:+.3f}]"


def _span(group: Mapping[str, Any]) -> str:
    low, high = f"{group['from']:g}", f"{group['to']:g}"
    return low if low == high else f"{low} to {high}"
