"""Group lists of similar length into batches, each padded to one of a few widths, to compute fewer padding tokens.

The lists of `WINDOW` batches are sorted by cost and cut into batches again, and the order of these batches is shuffled.
The result depends only on the number of the window, so every process and worker computes the same batches, and a run
can start at any batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from r2rank_jax.data.batches.encoder import Encoder
from r2rank_jax.data.prepared.dataset import CandidateLists
from r2rank_jax.data.prepared.tables import Array
from r2rank_jax.types import ListBatch, Rationales

WINDOW = 32  # batches; a larger window sorts more finely, but every process has to measure all lists of a window

T = TypeVar("T")
Order = tuple[Array, Array]  # rows and epochs of a batch's lists, both [U]
Widths = tuple[int, int, int]  # widths of prefixes, suffixes and rationales


class Lengths:
    """The widths that each list needs for its prefix, its suffixes and its rationales.

    Args:
        encoder: encodes the lists; `data.length_buckets` of its configuration sets the number of widths.
        rationales: [lists] number of tokens in each list's longest rationale, by row; None if they are not written yet.
    """

    def __init__(self, encoder: Encoder, rationales: Array | None = None):
        self._encoder, self._rationales = encoder, rationales
        config = encoder.config
        self.buckets = config.length_buckets
        self._choices = [
            bucket_widths(limit, self.buckets)
            for limit in (config.prefix_tokens, config.suffix_tokens, config.rationale_tokens)
        ]

    def of(self, lists: CandidateLists, rows: Array) -> Array:
        """int64 [L, 3]: widths of the prefix, the suffixes and the rationales."""
        pairs = zip(lists.user.tolist(), lists.position.tolist())
        lengths = (
            np.array([len(self._encoder.prefix(user, position)) for user, position in pairs]),
            self._encoder.suffix_lengths(lists.items).max(axis=1),
            np.full(len(rows), self._choices[2][-1]) if self._rationales is None else self._rationales[rows],
        )
        return np.stack([widths[np.searchsorted(widths, size)] for widths, size in zip(self._choices, lengths)], axis=1)


class Bucketed:
    """Maps a batch's number to its lists and their widths, after sorting the lists of each window by cost.

    Args:
        plain: maps a batch's number to its lists in shuffled order.
        draw: maps rows and epochs to lists.
        lengths: gives the widths that the lists need.
        seed: seed of the order of a window's batches.
    """

    def __init__(
        self,
        plain: Callable[[int], Order],
        draw: Callable[[Array, Array], CandidateLists],
        lengths: Lengths,
        seed: int,
    ):
        self._plain, self._draw, self._lengths, self._seed = plain, draw, lengths, seed
        self._window: tuple[int, list[tuple[Order, Widths]]] = (-1, [])

    def __call__(self, number: int) -> tuple[Order, Widths]:
        window, place = divmod(number, WINDOW)
        cached, batches = self._window  # read in one step: a thread and its successor may both run this
        if cached != window:
            batches = self._sorted(window)
            self._window = (window, batches)
        return batches[place]

    def _sorted(self, window: int) -> list[tuple[Order, Widths]]:
        parts = [self._plain(number) for number in range(window * WINDOW, (window + 1) * WINDOW)]
        rows, epochs = (np.concatenate(column) for column in zip(*parts))
        lists = self._draw(rows, epochs)
        widths = self._lengths.of(lists, rows)
        cost = widths[:, 0] + lists.items.shape[1] * (widths[:, 1] + widths[:, 2])
        batches = np.argsort(cost, kind="stable").reshape(WINDOW, -1)
        order = np.random.default_rng([self._seed, window]).permutation(WINDOW)
        return [((rows[b], epochs[b]), tuple(widths[b].max(axis=0).tolist())) for b in batches[order]]


def bucket_widths(limit: int, buckets: int) -> Array:
    """At most `buckets` evenly spaced widths up to `limit`.

    >>> bucket_widths(48, 3).tolist()
    [16, 32, 48]
    """
    return np.unique(-(-limit * np.arange(1, buckets + 1) // buckets))


def narrowed(batch: T, widths: Widths) -> T:
    """A ListBatch, or a (ListBatch, Rationales) pair, without the padding beyond `widths`."""
    prefix, suffix, rationale = widths

    def narrow(part: Any) -> Any:
        if isinstance(part, ListBatch):
            return dataclasses.replace(part, prefix=part.prefix[:, :prefix], suffix=part.suffix[..., :suffix])
        assert isinstance(part, Rationales)
        return dataclasses.replace(part, tokens=part.tokens[..., :rationale])

    return tuple(map(narrow, batch)) if isinstance(batch, tuple) else narrow(batch)  # type: ignore[return-value]
