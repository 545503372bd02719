"""`card.md`: the page that tells people what a prepared folder holds and how it was made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

FIGURES = {
    "history_lengths.svg": "Users by number of interactions",
    "time.svg": "Interactions over calendar time",
    "popularity.svg": "Share of all interactions that belongs to the most popular items",
    "ratings.svg": "Interactions by rating",
    "candidates.svg": "Popularity of the relevant items and of the negatives",
}
NEGATIVES = {
    "uniform": "negatives drawn uniformly from the items",
    "popularity": "negatives drawn in proportion to 1 + their training interactions from the items",
    "run": "a retriever's top items",
}
LEGEND = """\
- *Positives among negatives* and *seen in history* must be 0. They are counted against all interactions of a user,
  including later ones.
- *Tied in time*: the first positive has the same timestamp as the interaction before it, so only the order in the
  source shows which came first.
- *Left out*: users who have no interaction before their positive, and so no history to reason from."""
PARTS = {"valid": "validation", "test": "test"}


def page(card: dict[str, Any], figures: Iterable[str]) -> str:
    """The card as Markdown.

    Args:
        card: content of `card.json`.
        figures: names of the figures that were drawn, out of `FIGURES`.
    """
    drawn = set(figures)
    blocks = [
        f"# Data card: {_text(card['source'])}",
        _summary(card),
        "## From the source to this folder",
        _steps(card["steps"]),
        _cleaned(card),
        "## Lists",
        _lists(card),
        _runs(card),
        _candidates(card, drawn),
        "## Users and time",
        _quantile_table({"interactions of a user": card["history_lengths"]}),
        _figure("history_lengths.svg", drawn),
        _span(card),
        _figure("time.svg", drawn),
        "## Items",
        _items(card),
        _figure("popularity.svg", drawn),
        _figure("ratings.svg", drawn),
        "## Text",
        _lengths(card["text"]),
        "## Settings",
        "```json\n" + json.dumps(card["settings"], indent=2, ensure_ascii=False) + "\n```",
        _fingerprints(card),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _summary(card: dict[str, Any]) -> str:
    density = card["interactions"] / max(card["users"] * card["items"], 1)
    span = card["time_span"]
    period = "without times" if span is None else f"{span['first']} to {span['last']}"
    return (
        f"{_number(card['interactions'])} interactions of {_number(card['users'])} users with "
        f"{_number(card['items'])} {card['domain']}, {period}. "
        f"{100 * density:.3g}% of all user-item pairs have an interaction. The numbers below were counted from the "
        f"files of this folder. Run `r2rank data audit` to check the folder again."
    )


def _steps(steps: Sequence[dict[str, Any]]) -> str:
    rows = []
    for step in steps:
        dropped = ", ".join(f"{_text(reason)}: {_number(n)}" for reason, n in step.get("dropped", {}).items() if n)
        kept = [_number(step[name]) for name in ("users", "items", "interactions")]
        rows.append([_text(step["step"].replace("_", "-")), *kept, dropped or "nothing"])
    return _table(["after", "users", "items", "interactions", "dropped in this step"], rows, numbers=(1, 2, 3))


def _cleaned(card: dict[str, Any]) -> str:
    counts = {name: count for name, count in card["cleaned"].items() if count}
    counts |= {f"rows of {file} set aside in quarantine.jsonl": n for file, n in card["quarantined"].items()}
    if not counts:
        return ""
    rows = [[_text(name), _number(count)] for name, count in counts.items()]
    return "Irregularities found while reading the source:\n\n" + _table(["", "number"], rows, numbers=(1,))


def _lists(card: dict[str, Any]) -> str:
    rows = []
    for protocol, parts in card["protocols"].items():
        for name, word in PARTS.items():
            part = parts[name]
            rows.append(
                [
                    f"`{protocol}`",
                    word,
                    _number(part["lists"]),
                    _flagged(part["positives_among_negatives"]),
                    _flagged(part["relevant_items_seen_in_history"]),
                    _number(part["tied_with_the_interaction_before"]),
                    _number(part["left_out_without_history"]),
                    _number(part["history_lengths"].get("median")),
                ]
            )
    head = [
        "protocol", "part", "lists", "positives among negatives", "seen in history", "tied in time", "left out",
        "median history",
    ]  # fmt: skip
    settings = card["settings"]
    threshold = settings["positive_rating"]
    text = (
        f"Each list has {settings['candidates']} candidates: the held-out items"
        f"{'' if threshold is None else f' rated {threshold:g} or more'}, and {NEGATIVES[settings['negatives']]} "
        f"that the user never interacted with. Candidates are sorted by id, so that their order reveals nothing. A "
        f"list's history is all of its user's interactions before its first positive."
    )
    return f"{text}\n\n{_table(head, rows, numbers=range(2, 8))}\n\n{LEGEND}"


def _runs(card: dict[str, Any]) -> str:
    """Statistics of the run file; empty if the negatives were sampled."""
    runs = {name: parts["run"] for name, parts in card["protocols"].items() if "run" in parts}
    if not runs:
        return ""
    names = list(next(iter(runs.values())))
    rows = [[f"`{protocol}`", *(_number(run[name]) for name in names)] for protocol, run in runs.items()]
    head = ["the run file", *(name.replace("_", " ") for name in names)]
    return _table(head, rows, numbers=range(1, len(head)))


def _candidates(card: dict[str, Any], drawn: set[str]) -> str:
    if "candidates.svg" not in drawn:
        return ""
    protocol = next(iter(card["protocols"]))
    middle = card["protocols"][protocol]["test"]["median_popularity_percentile"]
    relevant, negative = (f"{100 * middle[name]:.0f}%" for name in ("relevant", "negatives"))
    return (
        f"{_figure('candidates.svg', drawn)}\n\nIn the test lists of `{protocol}`, the median relevant item is more "
        f"popular than {relevant} of the catalog, and the median negative is more popular than {negative}. The larger "
        f"the difference, the better a ranking by popularity alone."
    )


def _span(card: dict[str, Any]) -> str:
    span, tied = card["time_span"], card["tied_with_the_interaction_before"]
    if span is None:
        return (
            "The source has no times. The order in the source is used instead, and a split by calendar time is "
            "meaningless."
        )
    return (
        f"From {span['first']} to {span['last']}: {_number(span['days'])} days. {_number(tied['interactions'])} "
        f"interactions ({100 * tied['share']:.1f}%) have the same timestamp as the same user's previous interaction, "
        f"so only the order in the source shows which came first."
    )


def _items(card: dict[str, Any]) -> str:
    skew, items = card["popularity"], card["catalogue"]
    rows = [
        ["Gini coefficient of interactions over items", f"{skew['gini']:.3f}"],
        ["share of the most popular 1% of items", f"{100 * skew['share_of_top_1_percent']:.1f}%"],
        ["share of the most popular 10% of items", f"{100 * skew['share_of_top_10_percent']:.1f}%"],
        ["items without an interaction", _number(skew["items_without_interactions"])],
        ["items without a title", _number(items["titles_missing"])],
        ["items that share title and year with another item", _number(items["titles_repeated"])],
        ["items without genres or categories", _number(items["genres_missing"])],
    ]
    return _table(["", "value"], rows, numbers=(1,))


def _lengths(text: dict[str, Any]) -> str:
    return _quantile_table({f"{name}, {unit}": row for unit, rows in text.items() for name, row in rows.items()})


def _fingerprints(card: dict[str, Any]) -> str:
    rows = [["interactions", f"`{card['interactions_sha256']}`"], ["items", f"`{card['items_sha256']}`"]]
    rows += [[f"candidates of `{name}`", f"`{parts['sha256']}`"] for name, parts in card["protocols"].items()]
    return "Results are comparable only if these hashes are equal:\n\n" + _table(["content", "SHA-256"], rows)


def _quantile_table(rows: dict[str, dict[str, float]]) -> str:
    shown = {name: row for name, row in rows.items() if row}
    if not shown:
        return ""
    columns = list(next(iter(shown.values())))
    body = [[name, *(_number(row[column]) for column in columns)] for name, row in shown.items()]
    return _table(["", *columns], body, numbers=range(1, len(columns) + 1))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    right = set(numbers)
    rule = ["---:" if column in right else "---" for column in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def _figure(name: str, drawn: set[str]) -> str:
    return f"![{FIGURES[name]}](figures/{name})" if name in drawn else ""


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}" if value % 1 else f"{value:,.0f}"


def _flagged(count: int) -> str:
    return "0" if not count else f"**{count:,}**"


def _text(value: str) -> str:
    """Escape a name, so that it cannot end a table cell or start a tag."""
    return value.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
