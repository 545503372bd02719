"""A policy that reads any lists, and that scores any rationales for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from r2rank_jax.config import ModelConfig, RunConfig
from r2rank_jax.evaluation.probes.rationales import lengths
from r2rank_jax.model.forward import rationale_forward, read_items, take_token, words_scores
from r2rank_jax.model.transformer import scores as head_scores
from r2rank_jax.rollout.scoring import Readings, make_scorer, score_lists
from r2rank_jax.sharding import gather, to_mesh, users, weights_for_decoding
from r2rank_jax.types import Array, ListBatch, Params, Rationales


class Reader:
    """Reads lists with one policy, in batches of `evaluation.batch_users` lists.

    Args:
        mesh: lists are split over its devices, which all belong to this process.
        config: of the run.
        params: the policy.
        stop_token: ends a rationale.
    """

    def __init__(self, mesh: Mesh, config: RunConfig, params: Params, stop_token: int):
        self._mesh, self._params, self._stop = mesh, params, stop_token
        self._size, self._words = config.evaluation.batch_users, config.model.score_reads == "words"
        self._scorer = make_scorer(mesh, config, stop_token)
        self._weights = jax.block_until_ready(weights_for_decoding(mesh, config.model)(params))
        model = config.model
        self._of_words = jax.jit(lambda params, rows: words_scores(model, params, rows), out_shardings=users(mesh))
        self._in_context = jax.jit(
            lambda params, batch, rows: scores_in_context(model, params, batch, rows), out_shardings=users(mesh)
        )

    def read(self, lists: ListBatch) -> Readings:
        """Write rationales for lists, as `r2rank eval` does, and score them.

        Args:
            lists: L lists of NumPy arrays.
        """
        batches = in_batches(lists, self._size)
        return score_lists(self._scorer, self._mesh, self._params, batches, words=self._words)

    def rescore(self, lists: ListBatch, tokens: np.ndarray) -> np.ndarray:
        """Score given rationales.

        If the head reads the words alone, each distinct rationale is read once, so equal ones have equal scores to the
        bit. Otherwise it reads each with the prefix and the item.

        Args:
            lists: L lists of NumPy arrays.
            tokens: int32 [L, N, R, T], any number R of rationales per item.

        Returns:
            float32 [L, N, R].
        """
        return self._rescore_words(tokens) if self._words else self._rescore_in_context(lists, tokens)

    def _rescore_words(self, tokens: np.ndarray) -> np.ndarray:
        length = lengths(tokens, self._stop)
        rows = np.where(np.arange(tokens.shape[-1]) < length[..., None], tokens, 0).reshape(-1, tokens.shape[-1])
        # The length is part of what is distinct: a token of a truncated rationale may be 0 as well.
        keyed = np.concatenate([rows, length.reshape(-1, 1)], axis=1).astype(np.int32)
        distinct, place = np.unique(keyed, axis=0, return_inverse=True)
        size = self._size * tokens.shape[1]
        results = []
        for start in range(0, len(distinct), size):
            chunk = distinct[start : start + size]
            padded = chunk[np.minimum(np.arange(size), len(chunk) - 1)].reshape(self._size, -1, 1, keyed.shape[1])
            given = self._on_mesh(padded[..., :-1], padded[..., -1])
            results.append(gather(self._mesh, self._of_words(self._weights, given)).reshape(-1)[: len(chunk)])
        return np.concatenate(results)[place.reshape(-1)].reshape(tokens.shape[:-1])

    def _rescore_in_context(self, lists: ListBatch, tokens: np.ndarray) -> np.ndarray:
        length, results, first = lengths(tokens, self._stop).astype(np.int32), [], 0
        for batch in in_batches(lists, self._size):
            rows = np.minimum(np.arange(first, first + self._size), len(tokens) - 1)  # as `in_batches` pads
            given = self._on_mesh(tokens[rows], length[rows])
            results.append(gather(self._mesh, self._in_context(self._weights, to_mesh(self._mesh, batch), given)))
            first += self._size
        return np.concatenate(results)[: len(tokens)]

    def _on_mesh(self, tokens: np.ndarray, length: np.ndarray) -> Rationales:
        arrays: dict[str, Any] = {"tokens": tokens, "length": length, "stopped": length > 0}
        return to_mesh(self._mesh, Rationales(**arrays))


def scores_in_context(config: ModelConfig, params: Params, batch: ListBatch, rationales: Rationales) -> Array:
    """Scores of rationales that the head reads with prefix and item: float32 [U, N, R].

    Prefix and items are read once, and the rationales of an item one after the other, which bounds the memory.
    """
    context = read_items(config, params, batch)

    def score(each: Rationales) -> Array:  # [U, N, 1, T] -> [U, N, 1]
        hidden = rationale_forward(config, params, context, each)
        return head_scores(params, take_token(hidden, jnp.maximum(each.length, 1) - 1))

    by_rationale = jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0)[:, :, :, None], rationales)
    return jnp.moveaxis(jax.lax.map(score, by_rationale)[..., 0], 0, 2)


def in_batches(lists: ListBatch, size: int) -> Iterator[ListBatch]:
    """Batches of `size` lists. The last one repeats the last list, with user -1, which marks padding."""
    count = len(lists.user)
    for start in range(0, count, size):
        rows = np.arange(start, start + size)
        batch = take_lists(lists, np.minimum(rows, count - 1))
        real = rows < count
        changed: dict[str, Any] = {
            "user": np.where(real, batch.user, -1).astype(np.int32),
            "mask": np.asarray(batch.mask) & real[:, None],
        }
        yield replace(batch, **changed)


def take_lists(lists: ListBatch, rows: np.ndarray) -> ListBatch:
    """The lists at these rows."""
    taken: dict[str, Any] = {field.name: np.asarray(getattr(lists, field.name))[rows] for field in fields(lists)}
    return replace(lists, **taken)
