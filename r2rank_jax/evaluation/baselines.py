"""Scores that any language model has to beat, from training interactions alone.

No function here takes a label: a baseline sees the training interactions, the user's history and the
candidates. What counts as training is the caller's choice and must exclude the validation and the test
interactions.
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
        seed: of the scores.

    Returns:
        float64 [U, N] in [0, 1).
    """
    return np.random.default_rng(seed).random(np.shape(candidates))


def popularity_scores(train_items: ArrayLike, candidates: ArrayLike) -> FloatArray:
    """How often each candidate occurs in the training interactions.

    Args:
        train_items: int [E] dense item id of each training interaction.
        candidates: int [U, N] dense item ids; a negative id is padding and scores 0.

    Returns:
        float64 [U, N] counts.

    Raises:
        ValueError: ids that are not whole numbers.
    """
    items = _ids(train_items, "train_items", ndim=1)
    wanted = _ids(candidates, "candidates", ndim=2)
    counts = np.bincount(items, minlength=int(np.max(wanted, initial=0)) + 1)
    return np.where(wanted >= 0, counts[np.maximum(wanted, 0)], 0).astype(np.float64)


def item_knn_scores(
    train_users: ArrayLike,
    train_items: ArrayLike,
    histories: Sequence[ArrayLike],
    candidates: ArrayLike,
    *,
    history: int,
) -> FloatArray:
    """Item-based nearest neighbours (Sarwar et al. 2001): summed cosine to the user's last items.

    cos(i, j) = c_ij / sqrt(c_i c_j), where c_ij counts the training users who have both items; an item is not
    its own neighbour, and an item without training users has cosine 0 with everything. The score of candidate
    i is the sum over the last `history` items j of the user, all with weight 1.

    No item x item matrix is built. The sum over j is first spread over training users, then gathered per
    candidate, so memory is O(E) and a catalogue of a million items is no obstacle.

    Args:
        train_users: int [E] dense user id of each training interaction; repeated pairs count once.
        train_items: int [E] dense item id of each training interaction.
        histories: U sequences of dense item ids, oldest first; negative ids are padding.
        candidates: int [U, N] dense item ids; a negative id is padding and scores 0.
        history: latest items of each user that count, at least 1.

    Returns:
        float64 [U, N].

    Raises:
        ValueError: arrays that do not fit each other.
    """
    users, items = _pairs(train_users, train_items)
    wanted = _ids(candidates, "candidates", ndim=2)
    if len(histories) != wanted.shape[0]:
        raise ValueError(f"histories must hold one sequence per candidate row {wanted.shape[0]}, got {len(histories)}")
    if history < 1:
        raise ValueError(f"history must be at least 1, got {history}")
    shown = [_last(_ids(row, "histories", ndim=1), history) for row in histories]
    catalogue = 1 + max(
        [int(np.max(items, initial=0)), int(np.max(wanted, initial=0))] + [int(np.max(row, initial=0)) for row in shown]
    )
    starts, readers = _readers_by_item(users, items, catalogue)
    counts = np.diff(starts).astype(np.float64)
    scale = np.divide(1.0, np.sqrt(counts), out=np.zeros_like(counts), where=counts > 0)

    scores = np.zeros(wanted.shape)
    population = int(np.max(users, initial=0)) + 1
    for row, (seen, candidate_row) in enumerate(zip(shown, wanted, strict=True)):
        real = np.flatnonzero(candidate_row >= 0)
        if seen.size == 0 or real.size == 0:
            continue
        listed = candidate_row[real]
        seen_readers, seen_of = _gather(starts, readers, seen)
        closeness = np.bincount(seen_readers, weights=scale[seen][seen_of], minlength=population)
        item_readers, item_of = _gather(starts, readers, listed)
        sums = np.bincount(item_of, weights=closeness[item_readers], minlength=listed.size) * scale[listed]
        own = (listed[:, None] == seen[None, :]).sum(-1) * (counts[listed] > 0)  # cos(i, i) = 1 each
        scores[row, real] = sums - own
    return scores


def analytic_random(n: int, ks: Sequence[int], reward: str | None = None) -> dict[str, float]:
    """Expected value of every metric for a uniformly random ranking of n items, one of them relevant.

    The relevant item is at each place with probability 1/n, so it is the mean over its n places.

    >>> round(analytic_random(20, [10])["ndcg@10"], 4)
    0.2272

    Args:
        n: items.
        ks: cut-offs.
        reward: measured, too; see `metrics.evaluated_metrics`, as for the names of what is returned.

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


def _readers_by_item(users: IntArray, items: IntArray, catalogue: int) -> tuple[IntArray, IntArray]:
    """Compressed columns: the users of item i are readers[starts[i] : starts[i + 1]]."""
    starts = np.zeros(catalogue + 1, dtype=np.int64)
    np.cumsum(np.bincount(items, minlength=catalogue), out=starts[1:])
    return starts, users[np.argsort(items, kind="stable")]


def _gather(starts: IntArray, readers: IntArray, items: IntArray) -> tuple[IntArray, IntArray]:
    """All users of `items`, and for each of them the position in `items` it belongs to."""
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
        raise ValueError(f"{name} must be whole numbers with {ndim} axes, got {ids.dtype} of shape {ids.shape}")
    return ids.astype(np.int64)
