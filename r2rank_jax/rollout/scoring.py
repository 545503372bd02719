"""Scores of lists for ranking: rationales of every item, each scored by the head, and their mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from r2rank_jax import stopping
from r2rank_jax.config import RunConfig
from r2rank_jax.rollout.generate import Generator
from r2rank_jax.sharding import gather, to_mesh
from r2rank_jax.types import OF_ITEMS, Array, ListBatch, Params

Scorer = Callable[[Params, ListBatch], tuple[np.ndarray, np.ndarray]]

# Stream of the sampled rationales of an evaluation, folded into the key of the run's seed.
EVALUATION = 2**31 - 2


@dataclass(frozen=True)
class Readings:
    """The rationales of some lists, and the score of each."""

    scores: np.ndarray  # float32 [lists, N, G]
    rationales: np.ndarray  # int32 [lists, N, G, T]

    def mean_scores(self, rationales: int | None = None, *, first: int = 0) -> np.ndarray:
        """The mean score of some rationales of each item: float64 [lists, N].

        Items are ranked by it. The mean over g of log P(item i comes first | scores of list g) orders items alike,
        because what it subtracts from each score is the same for all items of a list.

        Args:
            rationales: how many rationales to average; None: all.
            first: the first of them.
        """
        count = self.scores.shape[2] if rationales is None else rationales
        return np.asarray(self.scores[:, :, first : first + count].mean(axis=2, dtype=np.float64))

    def typical(self) -> np.ndarray:
        """int64 [lists, N]: which rationale's score is nearest to the mean; the first of several."""
        return np.argmin(np.abs(self.scores - self.mean_scores()[..., None]), axis=2)


def make_scorer(mesh: Mesh, config: RunConfig, stop_token: int, *, rationales: int | None = None) -> Scorer:
    """(params, batch) -> scores float32 [U, N, G] and rationales int32 [U, N, G, T], gathered on every process.

    Args:
        mesh: users are split over its devices.
        config: of the run.
        stop_token: ends a rationale.
        rationales: G; None: `evaluation.rationales`. 1: the greedy rationale. More: sampled at
            `evaluation.temperature`. The first rationales of a larger G are those of a smaller one.
    """
    rationales = config.evaluation.rationales if rationales is None else rationales
    temperature = config.rl.temperature if config.evaluation.temperature is None else config.evaluation.temperature
    generator = Generator(
        mesh,
        config.model,
        rationales=rationales,
        max_tokens=config.data.rationale_tokens,
        stop_token=stop_token,
        temperature=temperature if rationales > 1 else 1.0,
        wave_tokens=config.compute.wave_tokens,
    )
    key = jax.random.fold_in(jax.random.key(config.seed), EVALUATION) if rationales > 1 else None

    def score(params: Params, batch: ListBatch) -> tuple[np.ndarray, np.ndarray]:
        rollout = generator(params, batch, key)
        return gather(mesh, (rollout.scores, rollout.rationales.tokens))

    return score


def score_lists(
    scorer: Scorer, mesh: Mesh, params: Params, batches: Iterator[ListBatch], *, words: bool = False
) -> Readings:
    """Score every real list of some batches, in order.

    Items are sorted by id before scoring and put back afterwards. Each item is scored on its own, but rows of a matrix
    product may round differently by position, and the scores of a permuted list must be exactly the permuted scores.

    Args:
        scorer: from `make_scorer`.
        mesh: the scorer's.
        params: the policy.
        batches: the rows of each batch that this process holds; lists with user -1 are padding.
        words: the head reads the words alone, so equal rationales get the same score to the bit.

    Raises:
        Stopped: before a batch, if this job was told to stop.
    """
    results: list[tuple[np.ndarray, ...]] = []
    for batch in batches:
        stopping.check()
        order = np.argsort(np.asarray(batch.items), axis=1, kind="stable")
        sorted_batch = to_mesh(mesh, _permute_items(batch, order))
        scores, tokens = scorer(params, sorted_batch)
        order, user = gather(mesh, to_mesh(mesh, (order, np.asarray(batch.user))))
        results.append(tuple(x[user >= 0] for x in (scores, tokens, order)))
    scores, tokens, order = (np.concatenate(parts) for parts in zip(*results, strict=True))
    if words and tokens.size:
        scores = _same_for_equal_rationales(scores, tokens)
    inverse = np.argsort(order, axis=1)
    return Readings(
        scores=np.take_along_axis(scores, inverse[..., None], axis=1),
        rationales=np.take_along_axis(tokens, inverse[..., None, None], axis=1),
    )


def _same_for_equal_rationales(scores: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Give equal rationales the score of the first of them, from which they differ by rounding at most."""
    rows = tokens.reshape(-1, tokens.shape[-1])
    _, first, text = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return scores.reshape(-1)[first][text.reshape(-1)].reshape(scores.shape)


def _permute_items(batch: ListBatch, order: np.ndarray) -> ListBatch:
    def take(x: Array) -> Any:
        rows = np.asarray(x)
        return np.take_along_axis(rows, order.reshape(order.shape + (1,) * (rows.ndim - 2)), axis=1)

    return replace(batch, **{name: take(getattr(batch, name)) for name in OF_ITEMS})
