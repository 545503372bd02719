"""Scores of lists for ranking: one greedy rationale per item, then the score of the head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from jax.sharding import Mesh

from r2rank_jax.config import RunConfig
from r2rank_jax.rollout.generate import Generator
from r2rank_jax.sharding import gather, to_mesh
from r2rank_jax.types import OF_ITEMS, Array, ListBatch, Params

Scorer = Callable[[Params, ListBatch], tuple[np.ndarray, np.ndarray]]


def make_scorer(mesh: Mesh, config: RunConfig, stop_token: int) -> Scorer:
    """(params, batch) -> scores float32 [U, N] and greedy rationales int32 [U, N, T], gathered on every process."""
    generator = Generator(
        mesh,
        config.model,
        rationales=1,
        max_tokens=config.data.rationale_tokens,
        stop_token=stop_token,
        wave_tokens=config.compute.wave_tokens,
    )

    def score(params: Params, batch: ListBatch) -> tuple[np.ndarray, np.ndarray]:
        rollout = generator(params, batch, None)
        return gather(mesh, (rollout.scores[:, :, 0], rollout.rationales.tokens[:, :, 0]))

    return score


def score_lists(
    scorer: Scorer, mesh: Mesh, params: Params, batches: Iterator[ListBatch]
) -> tuple[np.ndarray, np.ndarray]:
    """Score every real list of some batches, in order.

    Items are sorted by id before scoring and put back afterwards. Each item is scored on its own, but rows of a matrix
    product may round differently by position, and the scores of a permuted list must be exactly the permuted scores.

    Args:
        scorer: from `make_scorer`.
        mesh: the scorer's.
        params: the policy.
        batches: the rows of each batch that this process holds; lists with user -1 are padding.

    Returns:
        scores float32 [lists, N] and rationales int32 [lists, N, T].
    """
    results: list[tuple[np.ndarray, np.ndarray]] = []
    for batch in batches:
        order = np.argsort(np.asarray(batch.items), axis=1, kind="stable")
        sorted_batch = to_mesh(mesh, _permute_items(batch, order))
        scores, tokens = scorer(params, sorted_batch)
        order, user = gather(mesh, to_mesh(mesh, (order, np.asarray(batch.user))))
        inverse, real = np.argsort(order, axis=1), user >= 0
        scores = np.take_along_axis(scores, inverse, axis=1)
        tokens = np.take_along_axis(tokens, inverse[..., None], axis=1)
        results.append((scores[real], tokens[real]))
    return np.concatenate([s for s, _ in results]), np.concatenate([t for _, t in results])


def _permute_items(batch: ListBatch, order: np.ndarray) -> ListBatch:
    def take(x: Array) -> Any:
        rows = np.asarray(x)
        return np.take_along_axis(rows, order.reshape(order.shape + (1,) * (rows.ndim - 2)), axis=1)

    return replace(batch, **{name: take(getattr(batch, name)) for name in OF_ITEMS})
