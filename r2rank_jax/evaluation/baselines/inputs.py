"""What a system may see: training interactions, and lists without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

from r2rank_jax.data.prepared.dataset import CandidateLists, Dataset

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class TrainingData:
    """Training interactions. Those of one user are in order, oldest first; users may come in any order."""

    users: IntArray  # [E]  dense user id of each interaction
    items: IntArray  # [E]  dense item id of each interaction
    user_count: int
    item_count: int

    def __post_init__(self) -> None:
        users, items = ids(self.users, "users", ndim=1), ids(self.items, "items", ndim=1)
        require_pairs(users, items)
        for name, values, count in (("users", users, self.user_count), ("items", items, self.item_count)):
            if values.size and int(np.max(values)) >= count:
                raise ValueError(f"{name} must be dense ids below {count}, got {int(np.max(values))}")
        object.__setattr__(self, "users", users)
        object.__setattr__(self, "items", items)

    def matrix(self) -> scipy.sparse.csr_matrix:
        """float64 [user_count, item_count]: 1 where a user has an item, however often; 0 elsewhere."""
        users, items = distinct_pairs(self.users, self.items)
        shape = (self.user_count, self.item_count)
        return scipy.sparse.csr_matrix((np.ones(len(users)), (users, items)), shape=shape)

    def sequences(self) -> list[IntArray]:
        """The items of each user, oldest first; users without interactions have an empty one."""
        by_user = np.argsort(self.users, kind="stable")
        ends = np.cumsum(np.bincount(self.users, minlength=self.user_count))
        return np.split(self.items[by_user], ends[:-1])


@dataclass(frozen=True)
class UnlabeledLists:
    """Candidate lists as a system sees them. They hold no label, so that none can leak."""

    users: IntArray  # [U]  dense user id
    histories: Sequence[IntArray]  # U item sequences, oldest first: all that precedes the list's positive
    candidates: IntArray  # [U, N]  dense item ids

    def __post_init__(self) -> None:
        users, candidates = ids(self.users, "users", ndim=1), ids(self.candidates, "candidates", ndim=2)
        histories = [ids(history, "histories", ndim=1) for history in self.histories]
        if not len(users) == len(histories) == len(candidates):
            raise ValueError(
                f"users, histories and candidates must have one row per list, got {len(users)}, {len(histories)} and "
                f"{len(candidates)}"
            )
        if any(values.size and int(np.min(values)) < 0 for values in (users, candidates, *histories)):
            raise ValueError("users, histories and candidates must hold dense ids >= 0")
        object.__setattr__(self, "users", users)
        object.__setattr__(self, "candidates", candidates)
        object.__setattr__(self, "histories", histories)

    def history_matrix(self, item_count: int) -> scipy.sparse.csr_matrix:
        """float64 [U, item_count]: 1 where the item is in the list's history, however often; 0 elsewhere."""
        rows = np.repeat(np.arange(len(self.histories)), [len(history) for history in self.histories])
        items = np.concatenate([np.zeros(0, np.int64), *self.histories])
        rows, items = distinct_pairs(rows, items)
        return scipy.sparse.csr_matrix((np.ones(len(rows)), (rows, items)), shape=(len(self.histories), item_count))


Scorer = Callable[[UnlabeledLists], FloatArray]
"""A fitted system: lists -> scores float64 [U, N], higher is better."""


def training_data(dataset: Dataset) -> TrainingData:
    """The training interactions of a prepared folder, and none of validation or test."""
    rows = [np.arange(*dataset.train_rows(user).indices(len(dataset.item))) for user in range(dataset.users)]
    users = np.repeat(np.arange(dataset.users), [len(row) for row in rows])
    items = dataset.item[np.concatenate([np.zeros(0, np.int64), *rows])]
    return TrainingData(users, items.astype(np.int64), dataset.users, len(dataset.items))


def without_labels(dataset: Dataset, lists: CandidateLists) -> UnlabeledLists:
    """Lists with their whole histories, which for a test list include the user's validation positive."""
    histories = [dataset.item[dataset.history(int(u), int(p))] for u, p in zip(lists.user, lists.position)]
    return UnlabeledLists(lists.user.astype(np.int64), histories, lists.items.astype(np.int64))


def distinct_pairs(users: ArrayLike, items: ArrayLike) -> tuple[IntArray, IntArray]:
    """Distinct (user, item) pairs, sorted by user.

    Raises:
        ValueError: the arrays do not pair up, or hold anything but dense ids.
    """
    by_user, by_item = ids(users, "train_users", ndim=1), ids(items, "train_items", ndim=1)
    require_pairs(by_user, by_item)
    distinct = np.unique(np.stack([by_user, by_item]), axis=1)
    return distinct[0], distinct[1]


def require_pairs(users: IntArray, items: IntArray) -> None:
    """Refuse arrays of users and items that do not pair up.

    Raises:
        ValueError: the arrays differ in length, or an id is negative.
    """
    if users.shape != items.shape:
        raise ValueError(f"train_users and train_items must pair up, got {users.size} and {items.size}")
    if users.size and min(np.min(users), np.min(items)) < 0:
        raise ValueError("train_users and train_items must be dense ids >= 0")


def ids(values: ArrayLike, name: str, *, ndim: int) -> IntArray:
    """The values as int64.

    Raises:
        ValueError: they are not integers, or have another number of axes.
    """
    converted = np.asarray(values)
    if converted.size == 0:
        converted = converted.astype(np.int64)
    if converted.ndim != ndim or not np.issubdtype(converted.dtype, np.integer):
        raise ValueError(f"{name} must be integers with {ndim} axes, got {converted.dtype} of shape {converted.shape}")
    return converted.astype(np.int64)
