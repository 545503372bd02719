"""Run directory -> `report.html`, one self-contained page.

Titles, genres and rationales come from data files and from a language model, so they are untrusted. The template
escapes everything except the figures, which this package draws.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from r2rank_jax.files.atomic import replacing_file
from r2rank_jax.report import figures, headline
from r2rank_jax.report.reading import Run, label, metric_label, read_run

SHOWN = 5
"""Number of ranks that are visible without a click; the truth is always visible."""

COLUMNS = ("sft", "rl")
"""Systems that are shown side by side. If one of them is missing, SFT continued takes its place."""


def build(run_dir: Path) -> Path:
    """Write `report.html` into a run directory.

    The page names the parts that are missing, so a report can be built at any point of a run.

    Args:
        run_dir: holds any of `config.json`, `metrics.jsonl`, `results.json`, `rationales.jsonl`.

    Returns:
        Path of the page.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    run = read_run(Path(run_dir))
    page = _environment().get_template("template.html.j2").render(**_context(run))
    path = run.directory / "report.html"
    with replacing_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "label": label,
        "metric_label": metric_label,
        "signed": headline.signed,
        "p_digits": headline.p_digits,
    }
    return environment


def _context(run: Run) -> dict[str, Any]:
    systems, results = run.systems, run.results
    candidates = run.config.get("data", {}).get("candidate_items")
    shown_users = [_user(user) for user in run.users]
    return {
        "name": run.config.get("name") or run.directory.resolve().name,
        "built": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "headline": headline.headline(run),
        "verdicts": headline.verdicts(run),
        "problems": run.problems,
        "metrics": _columns(run),
        "metric": run.metric,
        "systems": systems,
        "analytic": results.get("analytic_random") or {},
        "comparisons": results.get("comparisons") or [],
        "interval_plot": figures.interval_plot(run),
        "rationales_plot": figures.rationales_plot(run),
        "validation_plot": figures.validation_plot(run),
        "sft_plot": figures.sft_plot(run),
        "rl_plots": figures.rl_plots(run),
        "has_rl": bool(run.logs.get("rl")),
        "users": shown_users,
        "moved": _moved(shown_users),
        "candidate_items": candidates,
        "teacher": results.get("teacher", "template"),
        "notes": results.get("notes") or [],
        "facts": _facts(run),
        "training": _training(run),
        "config_json": json.dumps(run.config, indent=2, ensure_ascii=False) if run.config else "",
    }


def _columns(run: Run) -> list[str]:
    """Metrics of the results table, the headline metric first, because narrow screens hide the last columns."""
    metrics = list(dict.fromkeys(metric for cells in run.systems.values() for metric in cells))
    return sorted(metrics, key=lambda metric: metric != run.metric)


def _user(user: dict[str, Any]) -> dict[str, Any]:
    """One user's history, and the candidate list as each of the shown systems ranked it."""
    candidates = user["candidates"]
    names = {name for candidate in candidates for name in candidate.get("systems") or {}}
    columns = [name for name in COLUMNS if name in names]
    if len(columns) < 2 and "sft_continued" in names:
        columns.append("sft_continued")
    rankings = {name: _ranking(candidates, name) for name in names}
    places = {name: next((row["rank"] for row in rows if row["truth"]), None) for name, rows in rankings.items()}
    truth = next((c for c in candidates if _is_truth(c)), None)
    return {
        "source_user": user.get("source_user", user.get("user", "?")),
        "history": [_item(item) for item in user.get("history") or []],
        "truth": _item(truth) if truth else None,
        "columns": [{"system": name, "title": _column_title(name), **_split(rankings[name])} for name in columns],
        "ranks": _ranks(places, len(candidates)),
        "before": places.get("sft"),
        "after": places.get("rl"),
        "size": len(candidates),
    }


def _ranking(candidates: list[dict[str, Any]], system: str) -> list[dict[str, Any]]:
    """Rows in rank order. Equal scores are ordered by title, because the file may list the truth last. Missing and
    non-finite scores come last."""

    def key(candidate: dict[str, Any]) -> tuple[float, str]:
        score = _score(candidate, system)
        return (math.inf if score is None else -score, str(candidate.get("title", "")))

    return [
        {
            **_item(candidate),
            "rank": place,
            "score": _score(candidate, system),
            "rationale": ((candidate.get("systems") or {}).get(system) or {}).get("rationale") or "",
            "truth": _is_truth(candidate),
        }
        for place, candidate in enumerate(sorted(candidates, key=key), start=1)
    ]


def _split(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows that are visible, and those that need a click. The truth is always visible."""
    visible = [row for row in rows if row["rank"] <= SHOWN or row["truth"]]
    return {"visible": visible, "rest": [row for row in rows if row not in visible]}


def _score(candidate: dict[str, Any], system: str) -> float | None:
    score = ((candidate.get("systems") or {}).get(system) or {}).get("score")
    return float(score) if isinstance(score, int | float) and math.isfinite(score) else None


def _is_truth(candidate: dict[str, Any]) -> bool:
    return bool(candidate.get("label"))


def _item(item: dict[str, Any]) -> dict[str, Any]:
    rating = item.get("rating")
    return {
        "title": item.get("title") or f"item {item.get('item', '?')}",
        "year": item.get("year") or "",
        "genres": ", ".join(str(genre) for genre in item.get("genres") or []),
        "rating": f"{rating:g}" if isinstance(rating, int | float) else rating or "",
    }


def _ranks(places: dict[str, int | None], size: int) -> str:
    """`rank 7 before RL, 2 after RL, 5 with SFT continued, of 20`."""
    words = {"sft": "before RL", "rl": "after RL"}
    order = sorted(places, key=lambda name: (name not in COLUMNS, COLUMNS.index(name) if name in COLUMNS else 0, name))
    ranks = [f"{places[n]} {words.get(n, 'with ' + label(n))}" for n in order if places[n] is not None]
    return f"rank {', '.join(ranks)}, of {size}" if ranks else "not ranked yet"


def _column_title(system: str) -> str:
    return {"sft": "Before RL (SFT)", "rl": "After RL"}.get(system, label(system))


def _moved(users: list[dict[str, Any]]) -> str:
    """How the rank of the truth changed for the users shown. They are too few to be evidence, and the text says so."""
    pairs = [(u["before"], u["after"]) for u in users if u["before"] is not None and u["after"] is not None]
    if not pairs:
        return ""
    up = sum(after < before for before, after in pairs)
    down = sum(after > before for before, after in pairs)
    same = len(pairs) - up - down
    return (
        f"From SFT to RL, the truth moved up for {up} of these {len(pairs)} users, moved down for {down}, and stayed "
        f"for {same}. These users are examples; the evidence is in the tables above."
    )


def _facts(run: Run) -> list[tuple[str, str]]:
    """Facts about the run as (name, value), without those that were not recorded."""
    results, config = run.results, run.config
    machine = results.get("machine") or {}
    data = config.get("data", {})
    facts = [
        ("Command", results.get("command")),
        ("Commit", results.get("commit")),
        ("Data", data.get("directory")),
        ("Split", str(data.get("split", "")).replace("_", "-")),
        ("Data hash", results.get("data_hash")),
        ("Candidate hash", results.get("candidate_hash")),
        ("Seed", config.get("seed")),
        ("Evaluated on", machine.get("date")),
        ("Platform", machine.get("platform")),
        ("Processor", machine.get("processor")),
        ("CPUs", machine.get("cpus")),
        ("Python", machine.get("python")),
        ("JAX", machine.get("jax")),
    ]
    return [(name, str(value)) for name, value in facts if value not in (None, "")]


def _training(run: Run) -> list[dict[str, str]]:
    """Steps and wall time per phase, from the results or, for a phase that they lack, from the log."""
    recorded = run.results.get("training") or {}
    rows = []
    for phase in dict.fromkeys([*recorded, *run.logs]):
        entry = recorded.get(phase)
        if not isinstance(entry, dict):
            if phase in run.logs:
                entry = {"steps": run.logs[phase][-1].step, "wall_s": run.duration_s(phase)}
            else:
                rows.append({"phase": phase, "steps": "", "wall": "", "more": str(entry)})
                continue
        more = ", ".join(f"{key} {value}" for key, value in entry.items() if key not in ("steps", "wall_s"))
        wall_s = entry.get("wall_s")
        wall = _duration(wall_s) if isinstance(wall_s, int | float) else ""
        rows.append({"phase": label(phase), "steps": str(entry.get("steps", "")), "wall": wall, "more": more})
    return rows


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
