"""Which interactions train, and which one is held out for validation and test, by two protocols. Pure.

`leave_one_out`: a user's last interaction is the test positive, the one before it the validation positive.
`global_time`: two cuts in calendar time, at 80 % and 90 % of all interactions; a user's first interaction
after a cut is the positive, and everything before the first cut trains, so nothing of the future is known to
the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from r2rank_jax.data.errors import DataError
from r2rank_jax.data.tables import Array

PROTOCOLS = ("leave_one_out", "global_time")
HELD_OUT = ("valid", "test")
NONE = -1  # no held-out interaction


@dataclass(frozen=True)
class Split:
    """Positions within each user's sequence, sorted by time; `NONE` where the user has no such list."""

    train_end: Array  # int32 [users]  the first `train_end` interactions train
    valid: Array  # int32 [users]  position of the positive
    test: Array  # int32 [users]
    without_history: dict[str, int]  # held-out positives left out because nothing came before them

    def position(self, held_out: str) -> Array:
        """`valid` or `test` by name.

        Raises:
            DataError: another name.
        """
        if held_out not in HELD_OUT:
            raise DataError(f"held-out part must be one of {HELD_OUT}, got {held_out!r}")
        return self.valid if held_out == "valid" else self.test


def split(protocol: str, offsets: Array, timestamp: Array) -> Split:
    """Split by a protocol.

    Args:
        protocol: one of `PROTOCOLS`.
        offsets: [users + 1], user u's interactions are rows offsets[u]:offsets[u + 1].
        timestamp: [n], sorted within each user.

    Raises:
        DataError: an unknown protocol.
    """
    if protocol == "leave_one_out":
        return leave_one_out(np.diff(offsets))
    if protocol == "global_time":
        return global_time(offsets, timestamp)
    raise DataError(f"split must be one of {PROTOCOLS}, got {protocol!r}; set data.split")


def leave_one_out(lengths: Array) -> Split:
    """Last = test, second-last = valid, the rest trains.

    A user with two interactions has a test list only; a user with one trains and is counted.
    """
    lengths = np.asarray(lengths, np.int32)
    test = np.where(lengths >= 2, lengths - 1, NONE).astype(np.int32)
    valid = np.where(lengths >= 3, lengths - 2, NONE).astype(np.int32)
    train_end = np.where(lengths >= 3, lengths - 2, np.minimum(lengths, 1)).astype(np.int32)
    return Split(train_end, valid, test, {"valid": int(np.sum(lengths == 2)), "test": int(np.sum(lengths == 1))})


def global_time(offsets: Array, timestamp: Array) -> Split:
    """Train = before the first cut; valid = first in [cut 1, cut 2); test = first at or after cut 2."""
    cuts = time_cuts(timestamp)
    users = len(offsets) - 1
    before = np.zeros((2, users), np.int32)  # interactions before each cut
    for user in range(users):
        times = timestamp[offsets[user] : offsets[user + 1]]
        before[:, user] = np.searchsorted(times, cuts, side="left")
    lengths = np.diff(offsets)
    has_valid, has_test = before[1] > before[0], lengths > before[1]
    return Split(
        before[0],
        np.where(has_valid & (before[0] > 0), before[0], NONE).astype(np.int32),
        np.where(has_test & (before[1] > 0), before[1], NONE).astype(np.int32),
        {
            "valid": int(np.sum(has_valid & (before[0] == 0))),
            "test": int(np.sum(has_test & (before[1] == 0))),
        },
    )


def time_cuts(timestamp: Array) -> tuple[int, int]:
    """Timestamps below which (at most) 80 % and 90 % of all interactions lie."""
    ordered = np.sort(timestamp)
    return int(ordered[len(ordered) * 8 // 10]), int(ordered[len(ordered) * 9 // 10])


def sample_outside(rng: np.random.Generator, known: Array, items: int, count: int) -> Array:
    """Distinct items, uniform over the catalogue without `known`; exact, in O(known + count).

    Args:
        rng: source of randomness.
        known: [k] distinct item ids to keep out.
        items: size of the catalogue.
        count: items wanted.

    Returns:
        int32 [count], in random order.

    Raises:
        DataError: fewer than `count` items are left.
    """
    left = items - len(known)
    if left < count:
        raise DataError(
            f"{count} negatives need as many items outside the user's interactions, got {left} of {items}; "
            f"lower the number of candidates (data.candidate_items, data prepare --candidates) to at most "
            f"{left + 1}"
        )
    ranks = rng.choice(left, count, replace=False, shuffle=True)
    # The r-th item that is not known is r plus the number of known items before it.
    gaps = np.sort(known) - np.arange(len(known))
    return (ranks + np.searchsorted(gaps, ranks, side="right")).astype(np.int32)
