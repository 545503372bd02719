"""Item-based nearest neighbors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from r2rank_jax.evaluation.baselines.inputs import FloatArray, IntArray, distinct_pairs, ids


def item_knn_scores(
    train_users: ArrayLike,
    train_items: ArrayLike,
    histories: Sequence[ArrayLike],
    candidates: ArrayLike,
    *,
    history: int | None,
    popularity_exponent: float = 0.5,
) -> FloatArray:
    """Item-based nearest neighbors (Sarwar et al. 2001): summed cosine to the user's last items.

    cos(i, j) = c_ij / sqrt(c_i c_j), where c_ij is the number of training users who have both items. An item is not
    its own neighbor, and an item without training users has cosine 0 with every item. The score of candidate i is the
    sum over the last `history` items j of the user, all with weight 1.

    With a `popularity_exponent` a other than 1/2, the cosine is asymmetric (Aiolli 2013): c_ij / (c_i^a c_j^(1-a)). At
    a = 0 it is the share of the users of j who also have candidate i, which favors popular candidates.

    No item x item matrix is built. The sum over j is first accumulated per training user, then gathered per candidate,
    so memory is O(E), also for a catalog of a million items.

    Args:
        train_users: int [E] dense user id of each training interaction; repeated pairs count once.
        train_items: int [E] dense item id of each training interaction.
        histories: U sequences of dense item ids, oldest first; negative ids are padding.
        candidates: int [U, N] dense item ids; a negative id is padding and scores 0.
        history: number of latest items of each user that count, at least 1; None: all.
        popularity_exponent: a, exponent of the candidate's count; 1/2 is the cosine.

    Returns:
        float64 [U, N].

    Raises:
        ValueError: shapes of the arrays do not match.
    """
    users, items = distinct_pairs(train_users, train_items)
    listed = ids(candidates, "candidates", ndim=2)
    if len(histories) != listed.shape[0]:
        raise ValueError(f"histories must hold one sequence per candidate row {listed.shape[0]}, got {len(histories)}")
    if history is not None and history < 1:
        raise ValueError(f"history must be at least 1, got {history}")
    shown = [_last(ids(row, "histories", ndim=1), history) for row in histories]
    catalog = 1 + max(
        [int(np.max(items, initial=0)), int(np.max(listed, initial=0))] + [int(np.max(row, initial=0)) for row in shown]
    )
    starts, readers = _readers_by_item(users, items, catalog)
    counts = np.diff(starts).astype(np.float64)
    candidate_scale, seen_scale = (
        _inverse_power(counts, popularity_exponent),
        _inverse_power(counts, 1 - popularity_exponent),
    )

    scores = np.zeros(listed.shape)
    population = int(np.max(users, initial=0)) + 1
    for row, (seen, candidate_row) in enumerate(zip(shown, listed, strict=True)):
        real = np.flatnonzero(candidate_row >= 0)
        if seen.size == 0 or real.size == 0:
            continue
        scored = candidate_row[real]
        seen_readers, seen_of = _gather(starts, readers, seen)
        closeness = np.bincount(seen_readers, weights=seen_scale[seen][seen_of], minlength=population)
        item_readers, item_of = _gather(starts, readers, scored)
        sums = np.bincount(item_of, weights=closeness[item_readers], minlength=scored.size) * candidate_scale[scored]
        own = (scored[:, None] == seen[None, :]).sum(-1) * (counts[scored] > 0)  # cos(i, i) = 1 each
        scores[row, real] = sums - own
    return scores


def _readers_by_item(users: IntArray, items: IntArray, catalog: int) -> tuple[IntArray, IntArray]:
    """Compressed columns: the users of item i are readers[starts[i] : starts[i + 1]]."""
    starts = np.zeros(catalog + 1, dtype=np.int64)
    np.cumsum(np.bincount(items, minlength=catalog), out=starts[1:])
    return starts, users[np.argsort(items, kind="stable")]


def _gather(starts: IntArray, readers: IntArray, items: IntArray) -> tuple[IntArray, IntArray]:
    """All users of `items`, and for each user the position in `items` that it belongs to."""
    lengths = starts[items + 1] - starts[items]
    owner = np.repeat(np.arange(items.size), lengths)
    offset = np.arange(owner.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return readers[starts[items][owner] + offset], owner


def _inverse_power(counts: FloatArray, exponent: float) -> FloatArray:
    """counts^-exponent, and 0 for a count of 0."""
    return np.where(counts > 0, np.maximum(counts, 1.0) ** -exponent, 0.0)


def _last(row: IntArray, history: int | None) -> IntArray:
    real = row[row >= 0]
    return real if history is None else real[-history:]
