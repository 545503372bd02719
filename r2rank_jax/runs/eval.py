"""`r2rank eval`: every system ranks the same frozen test lists, once.

Writes `results.json` (means with bootstrap intervals, paired tests, hashes, machine), `by_list.npz` (every metric of
every list, for tests of your own) and, for the report, `rationales.jsonl` (the policies' rationales for the candidates
of a few users).
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from r2rank_jax.checkpoint.folders import sealed_steps
from r2rank_jax.checkpoint.policy import LoadedPolicy, load_policy
from r2rank_jax.config import RunConfig, to_json
from r2rank_jax.data.prepared.dataset import CandidateLists
from r2rank_jax.data.prompts.templates import find_template
from r2rank_jax.errors import CheckpointError
from r2rank_jax.evaluation.baselines import item_knn_scores, popularity_scores, random_scores
from r2rank_jax.evaluation.results import Provenance, build_results, write_results
from r2rank_jax.evaluation.table import results_table
from r2rank_jax.files.atomic import replacing_file
from r2rank_jax.lineage import other_settings, require_same_inputs
from r2rank_jax.phases import PHASES, Phase
from r2rank_jax.rollout.scoring import Readings, make_scorer
from r2rank_jax.runs.inputs import Inputs, deepest_ndcg, held_out_metrics, metrics_of, open_inputs
from r2rank_jax.runs.notes import leaked_positives, notes_on, notes_on_references
from r2rank_jax.runs.session.log import say
from r2rank_jax.sharding import abstract_params, make_mesh
from r2rank_jax.train.advantages.critic import make_critic
from r2rank_jax.train.objectives import check

BY_LIST = "by_list.npz"
PAIRS = (
    ("sft", "random"),
    ("rl", "sft"),
    ("rl", "sft_continued"),
    ("sft_continued", "sft"),
    ("rl", "popularity"),
    ("rl", "item_knn"),
    ("rl", "critic"),
)


def run(
    config: RunConfig,
    run_dir: Path,
    *,
    step: int | None = None,
    other_data: bool = False,
    only: Sequence[Phase] = (),
    out: Path | None = None,
) -> None:
    """Evaluate the baselines and every phase of `run_dir` on the test lists.

    Args:
        config: of the run.
        run_dir: the run directory.
        step: evaluate this checkpoint of every phase that has it, and no other; None: see `load_policy`.
        other_data: accept data or a split that the policies were not trained with, and say so in the results.
        only: evaluate these phases; empty: all that `run_dir` has.
        out: folder for what is written; None: `run_dir`.
    """
    check(config)
    mesh = make_mesh(config.mesh)
    phases = _phases(run_dir, step, only)
    inputs = open_inputs(config, run_dir)
    lists = inputs.dataset.candidate_lists("test")

    # -- baselines: from training interactions and histories, without labels ----------------------------------------
    say(f"eval: {len(lists.user)} held-out users, {lists.items.shape[1]} candidates each")
    systems = {name: metrics_of(inputs, scores, lists) for name, scores in _baselines(inputs, lists).items()}

    # -- policies: rationales, scored by the head -------------------------------------------------------------------
    scorer = make_scorer(mesh, config, inputs.tokenizer.stop)
    greedy = make_scorer(mesh, config, inputs.tokenizer.stop, rationales=1)
    training: dict[str, Any] = {}
    outputs: dict[str, Readings] = {}
    curves: dict[str, dict[str, np.ndarray]] = {}  # phase -> how many rationales -> NDCG of every user
    policies: dict[Phase, LoadedPolicy] = {}
    notes: list[str] = []
    for phase in phases:
        policy = load_policy(
            run_dir / "checkpoints" / phase, abstract_params(mesh, config.model), config, step=step, unfinished=True
        )
        differences = require_same_inputs(policy.record, config, inputs.hashes, other_data=other_data)
        policies[phase] = policy
        settings = other_settings(policy.record, config)
        notes += notes_on(phase, policy, differences, settings, leaked_positives(policy.record, inputs))
        systems[phase], outputs[phase] = held_out_metrics(inputs, scorer, mesh, policy.params, "test")
        if phase == "sft" and config.model.critic:
            systems["critic"], _ = held_out_metrics(inputs, make_critic(mesh, config), mesh, policy.params, "test")
        if config.evaluation.rationales > 1:
            of_greedy, _ = held_out_metrics(inputs, greedy, mesh, policy.params, "test")
            curves[phase] = {"greedy": of_greedy[deepest_ndcg(config)], **_by_count(inputs, lists, outputs[phase])}
        record = policy.record
        training[phase] = {
            "steps": record.done if record.finished else record.steps,
            "step": policy.step,
            "wall_s": round(record.wall_s, 1),
            "skipped": record.skipped,
            "checkpoint": policy.identity,
        }
        say(f"eval: {phase} done")
    notes += notes_on_references(policies)
    for note in notes:
        say(f"eval: note: {note}")

    # -- results ----------------------------------------------------------------------------------------------------
    if jax.process_index() != 0:
        return
    pairs = [pair for pair in PAIRS if set(pair) <= set(systems)]
    results = build_results(
        systems,
        pairs,
        config=config.evaluation,
        candidate_items=lists.items.shape[1] if np.all(np.sum(lists.labels > 0, axis=1) <= 1) else None,
        seed=config.seed,
        reward=config.rl.reward,
        curves=curves,
        provenance=Provenance(
            data_hash=inputs.dataset.data_hash,
            candidate_hash=inputs.dataset.candidate_hash,
            commit=commit(),
            command=shlex.join(["r2rank", *sys.argv[1:]]),
            teacher=_teacher(Path(config.data.traces)),
            training=training,
            inputs=asdict(inputs.hashes),
            configuration=to_json(config),
            seed=config.seed,
            notes=notes,
        ),
    )
    folder = run_dir if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    write_results(folder / "results.json", results)
    _write_by_list(folder / BY_LIST, lists, systems, curves)
    _write_rationales(folder / "rationales.jsonl", inputs, lists, outputs)
    print(results_table(results))


def _by_count(inputs: Inputs, lists: CandidateLists, readings: Readings) -> dict[str, np.ndarray]:
    """NDCG of every user where items are ranked by the mean of 1, 2, 4, ... rationales.

    Each is the mean over all disjoint groups of that many of the sampled rationales.
    """
    sampled = readings.scores.shape[2]
    counts = [count for count in (2**power for power in range(16)) if count < sampled] + [sampled]
    return {
        str(count): np.mean(
            [
                metrics_of(inputs, readings.mean_scores(count, first=first), lists)[deepest_ndcg(inputs.config)]
                for first in range(0, sampled - count + 1, count)
            ],
            axis=0,
        )
        for count in counts
    }


def _write_by_list(
    path: Path,
    lists: CandidateLists,
    systems: dict[str, dict[str, np.ndarray]],
    curves: dict[str, dict[str, np.ndarray]],
) -> None:
    """Write `user` and `position` [L], and each metric [L] as `system/SYSTEM/METRIC` or `curve/PHASE/COUNT`."""
    arrays = {"user": lists.user, "position": lists.position}
    for kind, table in (("system", systems), ("curve", curves)):
        arrays |= {f"{kind}/{name}/{column}": x for name, row in table.items() for column, x in row.items()}
    with replacing_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _phases(run_dir: Path, step: int | None, only: Sequence[Phase]) -> list[Phase]:
    """The phases to evaluate."""
    steps = {phase: sealed_steps(run_dir / "checkpoints" / phase) for phase in only or PHASES}
    missing = [phase for phase in only if not steps[phase]]
    if missing:
        raise CheckpointError(f"--phase must be one that {run_dir} has trained, got {missing[0]}; train it first")
    phases = [phase for phase in steps if steps[phase] and step in (None, *steps[phase])]
    if step is not None and not phases:
        checkpoints = "; ".join(f"{phase}: {', '.join(map(str, s))}" for phase, s in steps.items() if s) or "none"
        raise CheckpointError(f"--step must be a checkpoint of a phase in {run_dir} ({checkpoints}), got {step}")
    return phases


def commit() -> str:
    """The code's commit, ending in "+changes" if the working tree differs; "unknown" outside a checkout."""
    folder = Path(__file__).resolve().parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


def _baselines(inputs: Inputs, lists: CandidateLists) -> dict[str, np.ndarray]:
    data, config = inputs.dataset, inputs.config
    rows = [np.arange(*data.train_rows(user).indices(len(data.item))) for user in range(data.users)]
    train_users = np.repeat(np.arange(data.users), [len(r) for r in rows])
    train_items = data.item[np.concatenate(rows)]
    shown = config.data.history_items
    histories = [data.item[data.history(int(u), int(p), shown)] for u, p in zip(lists.user, lists.position)]
    return {
        "random": random_scores(lists.items, seed=config.seed),
        "popularity": popularity_scores(train_items, lists.items),
        "item_knn": item_knn_scores(train_users, train_items, histories, lists.items, history=shown),
    }


def _teacher(traces: Path) -> str:
    with traces.open(encoding="utf-8") as file:
        return str(json.loads(file.readline())["teacher"])


def _write_rationales(path: Path, inputs: Inputs, lists: CandidateLists, outputs: dict[str, Readings]) -> None:
    """Write each policy's score and rationale for each candidate of a few users, drawn by the seed.

    Of several rationales it is the one whose score is nearest to their mean.
    """
    scores = {phase: readings.mean_scores() for phase, readings in outputs.items()}
    typical = {phase: readings.typical() for phase, readings in outputs.items()}
    data, config = inputs.dataset, inputs.config
    template = find_template(config.data.template)
    count = min(config.evaluation.report_users, len(lists.user))
    chosen = np.sort(np.random.default_rng(config.seed).permutation(len(lists.user))[:count])
    with replacing_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        for row in chosen:
            user, position = int(lists.user[row]), int(lists.position[row])
            history = data.history(user, position, config.data.history_items)
            record = {
                "user": user,
                "history": [
                    {
                        "title": template.title_or_missing(data.items.title[i]),
                        "year": data.items.year[i],
                        "rating": float(r),
                    }
                    for i, r in zip(data.item[history], data.rating[history])
                ],
                "truth": int(lists.items[row][np.argmax(lists.labels[row])]),
                "candidates": [
                    {
                        "item": int(item),
                        "title": template.title_or_missing(data.items.title[item]),
                        "year": data.items.year[item],
                        "genres": list(data.items.genres[item]),
                        "label": int(label),
                        "systems": {
                            phase: {
                                "score": float(scores[phase][row, n]),
                                "rationale": inputs.encoder.decode(
                                    readings.rationales[row, n, typical[phase][row, n]]
                                ).strip(),
                            }
                            for phase, readings in outputs.items()
                        },
                    }
                    for n, (item, label) in enumerate(zip(lists.items[row], lists.labels[row]))
                ],
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
