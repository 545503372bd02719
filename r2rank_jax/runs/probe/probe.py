"""`r2rank probe`: what the ranking of a trained policy rests on, asked of frozen lists.

Writes `probes.json` (see `evaluation/probes/form.py`); `docs/probes.md` says how to read it.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from r2rank_jax.checkpoint.policy import load_policy
from r2rank_jax.config import RunConfig, to_json
from r2rank_jax.data.prepared.dataset import CandidateLists
from r2rank_jax.errors import ConfigError, DataError
from r2rank_jax.evaluation.baselines import analytic_random
from r2rank_jax.evaluation.probes.findings import findings_of, probes_table
from r2rank_jax.evaluation.probes.form import SCHEMA, write_probes
from r2rank_jax.evaluation.probes.lists import (
    lists_of_other_users,
    negatives_of_lists,
    popularity_of_positives,
    rank_among,
    spearman,
    verdict_calibration,
)
from r2rank_jax.evaluation.probes.rationales import (
    changed_rationales,
    derangements,
    verdict_text,
    words_of,
)
from r2rank_jax.evaluation.probes.summaries import Bootstrap, equal_groups
from r2rank_jax.evaluation.results import machine_info
from r2rank_jax.lineage import other_settings, require_same_inputs
from r2rank_jax.phases import Phase
from r2rank_jax.rollout.scoring import Readings
from r2rank_jax.runs.eval import commit
from r2rank_jax.runs.inputs import Inputs, metrics_of, open_inputs, validation_users
from r2rank_jax.runs.notes import notes_on
from r2rank_jax.runs.probe.changes import (
    changed_prefixes,
    with_candidates_in_order,
    with_histories_of,
    with_injected_titles,
    with_shuffled_histories,
)
from r2rank_jax.runs.probe.scoring import Reader
from r2rank_jax.runs.session.log import say
from r2rank_jax.sharding import abstract_params, make_mesh
from r2rank_jax.types import ListBatch

PAIRS = 200  # of a list and one of its negatives, for titles with added text
LEAST = 20  # times that a verdict must occur
COLD = 5  # training interactions; a positive with fewer is cold
NO_RATIONALES = "the policy writes no rationales (data.rationale_tokens=0)"

# Separates the draws of the probes from each other and from other uses of the run's seed.
PROBES_KEY = 2**31 - 4
ORDER, SHUFFLE, OTHERS, EXCHANGE, TITLES, LABELS = range(6)


def run(config: RunConfig, run_dir: Path, *, phase: Phase, name: str, out: Path | None = None) -> None:
    """Probe the policy of `phase` and write `probes.json`.

    Args:
        config: of the run.
        run_dir: in which `phase` has finished.
        phase: the phase whose policy is probed.
        name: "valid" or "test", the lists to probe it on.
        out: folder of `probes.json`; None: `run_dir`.

    Raises:
        ConfigError: there are several processes.
        CheckpointError: the phase has not finished, or was trained on other data.
        DataError: there are no lists of this name.
        ScoresError: a score is not finite.
    """
    if jax.process_count() > 1:
        raise ConfigError(
            f"`r2rank probe` must run as one process, got {jax.process_count()}; start it without a launcher; "
            "--mesh.data uses more devices"
        )
    mesh = make_mesh(config.mesh)
    inputs = open_inputs(config, run_dir)
    policy = load_policy(run_dir / "checkpoints" / phase, abstract_params(mesh, config.model), config)
    require_same_inputs(policy.record, config, inputs.hashes)
    notes = notes_on(phase, policy, (), other_settings(policy.record, config), None)
    lists = _lists(inputs, name)
    encoded = inputs.encoder.encode_lists(lists)
    reader = Reader(mesh, config, policy.params, inputs.tokenizer.stop)
    metric = f"ndcg@{max(config.evaluation.ks)}"
    bootstrap = Bootstrap(config.evaluation.bootstrap_samples, config.seed)
    reasons = config.data.rationale_tokens > 0

    def ndcg(scores: np.ndarray, of: CandidateLists = lists) -> np.ndarray:
        return metrics_of(inputs, scores, of)[metric]

    def draw(probe: int) -> np.random.Generator:
        return np.random.default_rng([config.seed, PROBES_KEY, probe])

    # -- the lists as they are ----------------------------------------------------------------------------------------
    say(f"probe: {phase} on {len(lists)} {name} lists of {lists.items.shape[1]} candidates")
    own = reader.read(encoded)
    scores = own.mean_scores()
    own_ndcg = ndcg(scores)
    probes: dict[str, dict[str, Any]] = {}

    # -- 1. another order of the candidates ---------------------------------------------------------------------------
    order = draw(ORDER).permuted(np.tile(np.arange(lists.items.shape[1]), (len(lists), 1)), axis=1)
    permuted = reader.read(with_candidates_in_order(encoded, order))
    expected = np.take_along_axis(own.scores, order[..., None], axis=1)
    probes["candidate_order"] = {
        "scores": expected.size,
        "different": int((permuted.scores != expected).sum()),
        "largest_difference": float(np.abs(permuted.scores - expected).max()),
    }
    say("probe: candidate order done")

    # -- 2. other histories -------------------------------------------------------------------------------------------
    histories = {"shuffled": with_shuffled_histories(encoded, inputs.encoder, draw(SHUFFLE))}
    others = lists_of_other_users(lists.user, draw(OTHERS))
    if others is not None:
        histories["other_user"] = with_histories_of(encoded, others)
    else:
        notes.append("No list was shown the history of another user: one user has more than half of the lists.")
    by_history = {kind: ndcg(reader.read(changed).mean_scores()) for kind, changed in histories.items()}
    probes["history"] = {
        "conditions": bootstrap.conditions({"own": own_ndcg, **by_history}, lists.user),
        "changed": {kind: changed_prefixes(encoded, changed) for kind, changed in histories.items()},
    }
    say("probe: histories done")

    # -- 3. and 4. rationales and their verdicts ----------------------------------------------------------------------
    if reasons:
        partners = derangements(len(lists), lists.items.shape[1], draw(EXCHANGE))
        probes["rationales"] = _rationales(inputs, reader, lists, encoded, own, partners, bootstrap)
        probes["verdicts"] = _verdicts(inputs, lists, own)
        say("probe: rationales done")
    else:
        probes["rationales"] = probes["verdicts"] = {"skipped": NO_RATIONALES}

    # -- 5. popularity ------------------------------------------------------------------------------------------------
    counts = inputs.dataset.train_counts
    popularity = popularity_of_positives(lists.items, lists.labels, counts)
    correlations = spearman(scores, counts[lists.items].astype(np.float64))
    defined = np.isfinite(correlations)
    probes["popularity"] = {
        "spearman": bootstrap.cell(correlations[defined], lists.user[defined]) if defined.any() else None,
        "undefined": int((~defined).sum()),
        "groups": bootstrap.groups(own_ndcg, lists.user, popularity, equal_groups(popularity)),
    }

    # -- 6. titles with added text ------------------------------------------------------------------------------------
    probes["titles"] = _titles(inputs, reader, lists, encoded, scores, draw(TITLES), bootstrap)
    say("probe: titles done")

    # -- 7. permuted labels -------------------------------------------------------------------------------------------
    relabeled = CandidateLists(
        lists.user, lists.position, lists.items, draw(LABELS).permuted(np.asarray(lists.labels), axis=1)
    )
    one_positive = np.all(np.sum(lists.labels > 0, axis=1) == 1)
    probes["labels"] = {
        "ndcg": bootstrap.cell(ndcg(scores, relabeled), lists.user),
        "analytic_random": analytic_random(lists.items.shape[1], config.evaluation.ks)[metric]
        if one_positive
        else None,
    }

    # -- 8. groups of lists -------------------------------------------------------------------------------------------
    history = lists.position.astype(np.float64)
    cold = [np.flatnonzero(popularity < COLD), np.flatnonzero(popularity >= COLD)]
    probes["groups"] = {
        "history_length": bootstrap.groups(own_ndcg, lists.user, history, equal_groups(history)),
        "cold": bootstrap.groups(own_ndcg, lists.user, popularity, cold),
    }

    # -- results ------------------------------------------------------------------------------------------------------
    findings = findings_of(probes, metric)
    result = {
        "schema": SCHEMA,
        "phase": phase,
        "lists": name,
        "metric": metric,
        "rationales": own.scores.shape[2] if reasons else 0,
        "score_reads": config.model.score_reads,
        "n": len(lists),
        "probes": probes,
        "findings": findings,
        "data_hash": inputs.dataset.data_hash,
        "candidate_hash": inputs.dataset.candidate_hash,
        "commit": commit(),
        "command": shlex.join(["r2rank", *sys.argv[1:]]),
        "checkpoint": {"identity": policy.identity, "step": policy.step},
        "configuration": to_json(config),
        "seed": config.seed,
        "machine": machine_info(),
        "notes": notes,
    }
    folder = run_dir if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    write_probes(folder / "probes.json", result)
    for note in notes:
        say(f"probe: note: {note}")
    print(probes_table(probes, metric, len(lists)) + "\n")
    print("\n".join(findings))


def _lists(inputs: Inputs, name: str) -> CandidateLists:
    lists = inputs.dataset.candidate_lists(name)
    users = validation_users(inputs) if name == "valid" else None
    lists = lists if users is None else lists.take(np.flatnonzero(np.isin(lists.user, users)))
    if not len(lists):
        raise DataError(
            f"{inputs.config.data.directory} must hold {name} lists of data.split={inputs.dataset.split}, got none; "
            "choose other --lists"
        )
    return lists


def _rationales(
    inputs: Inputs,
    reader: Reader,
    lists: CandidateLists,
    encoded: ListBatch,
    own: Readings,
    partners: np.ndarray,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """NDCG of changed rationales, all scored by the same program, which `own` differs from by rounding."""
    metric = f"ndcg@{max(inputs.config.evaluation.ks)}"
    variants = changed_rationales(own.rationales, partners, inputs.tokenizer)
    rescored = reader.rescore(encoded, np.concatenate(list(variants.values()), axis=2))
    by_variant = dict(zip(variants, np.split(rescored, len(variants), axis=2), strict=True))
    by_ndcg = {
        name: metrics_of(inputs, scores.mean(axis=2, dtype=np.float64), lists)[metric]
        for name, scores in by_variant.items()
    }
    return {
        "conditions": bootstrap.conditions(by_ndcg, lists.user),
        "rescoring_gap": float(np.abs(by_variant["own"] - own.scores).max()),
    }


def _verdicts(inputs: Inputs, lists: CandidateLists, own: Readings) -> dict[str, Any]:
    """Calibration of the verdicts of rationales that were not cut off."""
    stop = inputs.tokenizer.stop
    rows = own.rationales.reshape(-1, own.rationales.shape[-1])
    distinct, place = np.unique(rows, axis=0, return_inverse=True)
    texts = np.array([verdict_text(inputs.tokenizer, words) for words in words_of(distinct, stop)])
    positive = np.repeat(lists.labels.reshape(-1) > 0, own.scores.shape[2])
    whole = (rows == stop).any(axis=1)
    scores = own.scores.reshape(-1).astype(np.float64)
    table = verdict_calibration(texts[place.reshape(-1)][whole], positive[whole], scores[whole], least=LEAST)
    return {"least": LEAST, "rationales": len(rows), "truncated": int((~whole).sum()), "rows": table}


def _titles(
    inputs: Inputs,
    reader: Reader,
    lists: CandidateLists,
    encoded: ListBatch,
    scores: np.ndarray,
    rng: np.random.Generator,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """How many places negatives gain by text added to their titles; all other items keep their scores."""
    pairs = negatives_of_lists(lists.labels, PAIRS, rng)
    if not len(pairs[0]):
        return {"skipped": "no list has a negative"}
    injected = with_injected_titles(encoded, inputs.encoder, pairs, rng)
    variants = reader.read(injected.lists).mean_scores()
    rows, places = pairs
    rest = np.arange(lists.items.shape[1]) != places[:, None]
    others = scores[rows][rest].reshape(len(rows), -1)
    before = rank_among(variants[:, 0], others)
    places_up = {
        kind: before - rank_among(variants[:, column], others) for column, kind in enumerate(injected.kinds, start=1)
    }
    users, control = lists.user[rows], places_up["neutral"]
    return {
        "pairs": len(rows),
        "kinds": {
            kind: {
                "places_up": bootstrap.cell(places, users),
                "beyond_neutral": bootstrap.cell(places - control, users),
                "changed": injected.changed(kind),
                "whole": injected.whole[kind],
            }
            for kind, places in places_up.items()
        },
    }
