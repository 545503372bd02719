"""The inputs of every phase: data and tokenizer.

This module also writes the configuration that a run directory records.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from r2rank_jax.config import RunConfig, to_json
from r2rank_jax.data.batches.encoder import Encoder
from r2rank_jax.data.batches.pipeline import Batches, evaluation_batches, list_batches
from r2rank_jax.data.prepared.dataset import CandidateLists, Dataset, load_for_prompts
from r2rank_jax.data.prompts.tokenizer import FastTokenizer
from r2rank_jax.errors import ConfigError, ScoresError
from r2rank_jax.evaluation.metrics import per_user_metrics
from r2rank_jax.files.atomic import replacing_file
from r2rank_jax.phases import InputHashes
from r2rank_jax.pretrained.folder import tokenizer_hash
from r2rank_jax.rollout.scoring import Readings, Scorer, score_lists
from r2rank_jax.runs.starting_model import read_run_tokenizer
from r2rank_jax.sharding import Part, part_of_batch
from r2rank_jax.types import ListBatch, Params

# Separates the draw of validation users from other uses of the data's seed.
VALIDATION_KEY = 2**31 - 3
# Separates the order of the critic's lists from that of the policy's.
CRITIC_SEED = 2**31 - 5


@dataclass(frozen=True)
class Inputs:
    """Data and their encoding, the same on every process."""

    hashes: InputHashes
    config: RunConfig
    dataset: Dataset
    tokenizer: FastTokenizer
    encoder: Encoder


def open_inputs(config: RunConfig, run_dir: Path) -> Inputs:
    """Load and check the data that the configuration names, with the tokenizer of the run directory."""
    tokenizer = read_run_tokenizer(run_dir)
    if tokenizer.vocabulary > config.model.vocabulary:  # an id past the embedding would read another token's row
        raise ConfigError(
            f"model.vocabulary={config.model.vocabulary} must hold the run directory's tokenizer of "
            f"{tokenizer.vocabulary} tokens; raise it, or choose another --run-dir"
        )
    dataset = load_for_prompts(Path(config.data.directory), config.data.split)
    hashes = InputHashes(
        interactions=dataset.data_hash,
        items=dataset.items_hash,
        candidates=dataset.candidate_hash,
        tokenizer=tokenizer_hash(run_dir),
    )
    return Inputs(hashes, config, dataset, tokenizer, Encoder(tokenizer, dataset, config.data))


def training_batches(inputs: Inputs, part: Part, users: int, seed: int) -> Batches[ListBatch]:
    """This process's rows of the batches of training lists: all lists, shuffled, with fresh negatives in each epoch.

    Args:
        inputs: from `open_inputs`.
        part: from `part_of_batch`.
        users: lists of a global batch.
        seed: of the order and the negatives.
    """
    config = inputs.config
    return list_batches(
        inputs.dataset,
        inputs.encoder,
        batch_users=users,
        candidate_items=config.data.candidate_items,
        positives=config.data.train_positives,
        seed=seed,
        process_index=part.places,
        process_count=part.parts,
        workers=config.compute.data_workers,
    )


def critic_batches(inputs: Inputs, part: Part, users: int, seed: int, *, first: int) -> Batches[ListBatch] | None:
    """As `training_batches`, in an order of their own, from batch `first` on; None if `users` is 0."""
    if not users:
        return None
    batches = training_batches(inputs, part, users, (seed + CRITIC_SEED) % 2**32)
    batches.set_state({"next_index": first})
    return batches


def deepest_ndcg(config: RunConfig) -> str:
    """The metric by which validations are compared."""
    return f"ndcg@{max(config.evaluation.ks)}"


def record_config(run_dir: Path, config: RunConfig) -> None:
    """Write `config.json`; only process 0 does."""
    if jax.process_index() == 0:
        with replacing_file(run_dir / "config.json") as partial:
            partial.write_text(json.dumps(to_json(config), indent=2) + "\n", encoding="utf-8")


def held_out_metrics(
    inputs: Inputs, scorer: Scorer, mesh: Mesh, params: Params, name: str, users: np.ndarray | None = None
) -> tuple[dict[str, np.ndarray], Readings]:
    """Rank the frozen lists of "valid" or "test" with a policy, by the mean score of the scorer's rationales.

    Args:
        inputs: from `open_inputs`.
        scorer: from `make_scorer`.
        mesh: of the scorer.
        params: of the policy.
        name: "valid" or "test".
        users: only their lists; None: all.

    Returns:
        Metric name -> value per list; and the rationales with their scores.

    Raises:
        ScoresError: a score is not finite.
    """
    config = inputs.config
    lists, part = inputs.dataset.candidate_lists(name), part_of_batch(mesh)
    if users is not None:
        lists = lists.take(np.flatnonzero(np.isin(lists.user, users)))
    batches = evaluation_batches(
        inputs.dataset,
        inputs.encoder,
        name,
        batch_users=config.evaluation.batch_users,
        users=users,  # type: ignore[arg-type]  # an array is a sequence
        process_index=part.places,
        process_count=part.parts,
    )
    readings = score_lists(scorer, mesh, params, batches, words=config.model.score_reads == "words")
    bad = ~np.isfinite(readings.scores)
    if bad.any():
        raise ScoresError(
            f"scores of the {name} lists must be finite, got {np.count_nonzero(bad)} of {bad.size} "
            "that are not; the policy's training diverged: train again with a lower learning rate"
        )
    return metrics_of(inputs, readings.mean_scores(), lists), readings


def validation_metrics(inputs: Inputs, scorer: Scorer, mesh: Mesh, params: Params) -> dict[str, np.ndarray]:
    """Metric name -> value per validation list of all users, or of `evaluation.validation_users` of them."""
    return held_out_metrics(inputs, scorer, mesh, params, "valid", validation_users(inputs))[0]


def validation_users(inputs: Inputs) -> np.ndarray | None:
    """The users on whose lists training validates; None: all.

    They are drawn by the seed of the prepared data, so that runs with other seeds are judged by the same lists.
    """
    count = inputs.config.evaluation.validation_users
    if not count:
        return None
    everyone = np.unique(inputs.dataset.candidate_lists("valid").user)
    return np.random.default_rng([inputs.dataset.seed, VALIDATION_KEY]).permutation(everyone)[:count]


def metrics_of(inputs: Inputs, scores: np.ndarray, lists: CandidateLists) -> dict[str, np.ndarray]:
    """Metric name -> value per list, from scores [lists, N] of the system's candidates."""
    config = inputs.config
    return per_user_metrics(scores, lists.labels, None, config.evaluation.ks, seed=config.seed, reward=config.rl.reward)
