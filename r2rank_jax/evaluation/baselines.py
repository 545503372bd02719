"""Baselines that a language model must beat, from training interactions only.

No function takes a label: a baseline sees the training interactions, the user's history and the candidates. The caller
chooses the training interactions and must exclude those of validation and test.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from r2rank_jax.evaluation.metrics import evaluated_metrics

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def random_scores(candidates: ArrayLike, *, seed: int) -> FloatArray:
    """Independent uniform scores: a random ranking.

    Args:
        candidates: int [U, N] item ids; only the shape is used.
        seed: seed of the scores.

    Returns:
        float64 [U, N] in [0, 1).
    """
    return np.random.default_rng(seed).random(np.shape(candidates))


def popularity_scores(train_items: ArrayLike, candidates: ArrayLike) -> FloatArray:
    """The number of training interactions of each candidate.

    Args:
        train_items: int [E] dense item id of each training interaction.
        candidates: int [U, N] dense item ids; a negative id is padding and scores 0.

    Returns:
        float64 [U, N] counts.

    Raises:
        ValueError: ids are not integers.
    """
    items = _ids(train_items, "train_items", ndim=1)
    listed = _ids(candidates, "candidates", ndim=2)
    counts = np.bincount(items, minlength=int(np.max(listed, initial=0)) + 1)
    return np.where(listed >= 0, counts[np.maximum(listed, 0)], 0).astype(np.float64)


def item_knn_scores(
    train_users: ArrayLike,
    train_items: ArrayLike,
    histories: Sequence[ArrayLike],
    candidates: ArrayLike,
    *,
    history: int,
) -> FloatArray:
    """Item-based nearest neighbors (Sarwar et al. 2001): summed cosine to the user's last items.

    cos(i, j) = c_ij / sqrt(c_i c_j), where c_ij is the number of training users who have both items. An item is not
    its own neighbor, and an item without training users has cosine 0 with every item. The score of candidate i is the
    sum over the last `history` items j of the user, all with weight 1.

    No item x item matrix is built. The sum over j is first accumulated per training user, then gathered per candidate,
    so memory is O(E), also for a catalog of a million items.

    Args:
        train_users: int [E] dense user id of each training interaction; repeated pairs count once.
        train_items: int [E] dense item id of each training interaction.
        histories: U sequences of dense item ids, oldest first; negative ids are padding.
        candidates: int [U, N] dense item ids; a negative id is padding and scores 0.
        history: number of latest items of each user that count, at least 1.

    Returns:
        float64 [U, N].

    Raises:
        ValueError: shapes of the arrays do not match.
    """
    users, items = _pairs(train_users, train_items)
    listed = _ids(candidates, "candidates", ndim=2)
    if len(histories) != listed.shape[0]:
        raise ValueError(f"histories must hold one sequence per candidate row {listed.shape[0]}, got {len(histories)}")
    if history < 1:
        raise ValueError(f"history must be at least 1, got {history}")
    shown = [_last(_ids(row, "histories", ndim=1), history) for row in histories]
    catalog = 1 + max(
        [int(np.max(items, initial=0)), int(np.max(listed, initial=0))] + [int(np.max(row, initial=0)) for row in shown]
    )
    starts, readers = _readers_by_item(users, items, catalog)
    counts = np.diff(starts).astype(np.float64)
    scale = np.divide(1.0, np.sqrt(counts), out=np.zeros_like(counts), where=counts > 0)

    scores = np.zeros(listed.shape)
    population = int(np.max(users, initial=0)) + 1
    for row, (seen, candidate_row) in enumerate(zip(shown, listed, strict=True)):
        real = np.flatnonzero(candidate_row >= 0)
        if seen.size == 0 or real.size == 0:
            continue
        scored = candidate_row[real]
        seen_readers, seen_of = _gather(starts, readers, seen)
        closeness = np.bincount(seen_readers, weights=scale[seen][seen_of], minlength=population)
        item_readers, item_of = _gather(starts, readers, scored)
        sums = np.bincount(item_of, weights=closeness[item_readers], minlength=scored.size) * scale[scored]
        own = (scored[:, None] == seen[None, :]).sum(-1) * (counts[scored] > 0)  # cos(i, i) = 1 each
        scores[row, real] = sums - own
    return scores


def analytic_random(n: int, ks: Sequence[int], reward: str | None = None) -> dict[str, float]:
    """Expected value of every metric for a uniformly random ranking of n items, one of them relevant.

    The relevant item is at each place with probability 1/n, so the expected value is the mean over n places.

    >>> round(analytic_random(20, [10])["ndcg@10"], 4)
    0.2272

    Args:
        n: items.
        ks: cut-offs.
        reward: measured in addition, see `metrics.evaluated_metrics`.

    Returns:
        Metric name -> expected value, with the names of `metrics.evaluated_metrics`.

    Raises:
        ValueError: n or a cut-off below 1, or an unknown reward.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    labels, order = jnp.eye(n), jnp.broadcast_to(jnp.arange(n), (n, n))
    return {
        name: float(np.mean(np.asarray(metric(order, labels, jnp.ones((n, n), bool)), np.float64)))
        for name, metric in evaluated_metrics(ks, reward).items()
    }


def _pairs(train_users: ArrayLike, train_items: ArrayLike) -> tuple[IntArray, IntArray]:
    """Distinct (user, item) pairs."""
    users, items = _ids(train_users, "train_users", ndim=1), _ids(train_items, "train_items", ndim=1)
    if users.shape != items.shape:
        raise ValueError(f"train_users and train_items must pair up, got {users.size} and {items.size}")
    if users.size and min(np.min(users), np.min(items)) < 0:
        raise ValueError("train_users and train_items must be dense ids >= 0")
    distinct = np.unique(np.stack([users, items]), axis=1)
    return distinct[0], distinct[1]


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


def _last(row: IntArray, history: int) -> IntArray:
    return row[row >= 0][-history:]


def _ids(values: ArrayLike, name: str, *, ndim: int) -> IntArray:
    ids = np.asarray(values)
    if ids.size == 0:
        ids = ids.astype(np.int64)
    if ids.ndim != ndim or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{name} must be integers with {ndim} axes, got {ids.dtype} of shape {ids.shape}")
    return ids.astype(np.int64)
