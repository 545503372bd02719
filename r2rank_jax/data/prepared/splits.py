"""Four protocols that split interactions into training, validation and test. Pure functions.

`leave_one_out`: a user's last positive is in the test list, and the one before it in the validation list.
`global_time`: two cuts in calendar time, at 80% and 90% of all interactions. The validation list has the user's
    first positive from the first cut to before the second; the test list has the first positive at or after the
    second. Everything before the first cut is training data, so the model never sees the future.
`last_n`: a user's last n positives are the relevant items of one test list, and the n before them those of one
    validation list. A list's history ends before its first positive.
`cold_users`: some users are held out entirely and are never trained on. Such a user's list has the user's last
    positive, and the model may reason from everything before it.

A positive is an interaction that `Settings.positive` selects. Other interactions appear in histories but are never held
out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from r2rank_jax.data.prepared.settings import PROTOCOLS, Array, Settings
from r2rank_jax.errors import DataError

HELD_OUT = ("valid", "test")
NONE = -1  # no held-out interaction


@dataclass(frozen=True)
class Split:
    """Positions in each user's sequence, which is sorted by time; `NONE` where the user has no such list."""

    train_end: Array  # int32 [users]  a user's first `train_end` interactions are the training data
    valid: Array  # int32 [users]  position of the list's first positive
    test: Array  # int32 [users]
    without_history: dict[str, int]  # number of lists left out because nothing precedes their first positive
    positives: int = 1  # number of positives in a list, counted from its position on

    def position(self, held_out: str) -> Array:
        """Return `valid` or `test` by name.

        Raises:
            DataError: the name is neither.
        """
        if held_out not in HELD_OUT:
            raise DataError(f"held-out part must be one of {HELD_OUT}, got {held_out!r}")
        return self.valid if held_out == "valid" else self.test


def split(
    protocol: str,
    offsets: Array,
    timestamp: Array,
    positive: Array,
    settings: Settings,
    *,
    cuts: tuple[int, int] | None = None,
    first_user: int = 0,
) -> Split:
    """Split the interactions of some users by a protocol.

    Args:
        protocol: one of `PROTOCOLS`.
        offsets: [users + 1], the u-th user's interactions are rows offsets[u]:offsets[u + 1].
        timestamp: [n], sorted within each user.
        positive: bool [n].
        settings: gives last_n, cold_fraction and seed.
        cuts: the two cuts of global_time, computed over all users.
        first_user: dense id of the first of these users, who may be one bucket of many.

    Raises:
        DataError: an unknown protocol.
    """
    if protocol == "leave_one_out":
        return last_n(offsets, positive, 1)
    if protocol == "last_n":
        return last_n(offsets, positive, settings.last_n)
    if protocol == "global_time" and cuts is not None:
        return global_time(offsets, timestamp, positive, cuts)
    if protocol == "cold_users":
        chance = chance_of_users(settings.seed, first_user, len(offsets) - 1)
        return cold_users(offsets, positive, chance, settings.cold_fraction)
    raise DataError(f"split must be one of {PROTOCOLS}, got {protocol!r}; set data.split")


def last_n(offsets: Array, positive: Array, n: int) -> Split:
    """Test = the last n positives; valid = the n before them; train = everything earlier. n = 1 is leave-one-out.

    If a user has no validation list (too few positives, or nothing before them), everything before the test list is
    training data. If there is no test list either, all of the user's interactions are.
    """
    first_test, first_valid = (_from_the_end(offsets, positive, back) for back in (n, 2 * n))
    test, valid = (np.where(first > 0, first, NONE).astype(np.int32) for first in (first_test, first_valid))
    train_end = np.where(valid != NONE, valid, np.where(test != NONE, test, np.diff(offsets))).astype(np.int32)
    without = {"valid": int(np.sum(first_valid == 0)), "test": int(np.sum(first_test == 0))}
    return Split(train_end, valid, test, without, positives=n)


def global_time(offsets: Array, timestamp: Array, positive: Array, cuts: tuple[int, int]) -> Split:
    """Train = before the first cut; valid = first positive in [cut 1, cut 2); test = first one at or after cut 2."""
    lengths = np.diff(offsets)
    user = np.repeat(np.arange(len(lengths)), lengths)
    before = [np.bincount(user[timestamp < cut], minlength=len(lengths)) for cut in cuts]
    places = np.flatnonzero(positive)
    first_positives, without = {}, {}
    for name, low, high in (("valid", before[0], before[1]), ("test", before[1], lengths)):
        next_positive = np.searchsorted(places, offsets[:-1] + low)
        row = np.append(places, len(positive))[next_positive]
        inside = row < offsets[:-1] + high
        position = row - offsets[:-1]
        first_positives[name] = np.where(inside & (position > 0), position, NONE).astype(np.int32)
        without[name] = int(np.sum(inside & (position == 0)))
    return Split(before[0].astype(np.int32), first_positives["valid"], first_positives["test"], without)


def cold_users(offsets: Array, positive: Array, chance: Array, fraction: float) -> Split:
    """Hold out users whose `chance` is below `fraction` for test, and those below twice `fraction` for validation.

    Args:
        offsets: [users + 1].
        positive: bool [n].
        chance: float64 [users] in [0, 1), see `chance_of_users`.
        fraction: share of the users that each of the two parts takes.
    """
    last = _from_the_end(offsets, positive, 1)
    parts = {"test": chance < fraction, "valid": (chance >= fraction) & (chance < 2 * fraction)}
    held = {name: np.where(part & (last > 0), last, NONE).astype(np.int32) for name, part in parts.items()}
    train_end = np.where(parts["test"] | parts["valid"], 0, np.diff(offsets)).astype(np.int32)
    without = {name: int(np.sum(part & (last == 0))) for name, part in parts.items()}
    return Split(train_end, held["valid"], held["test"], without)


def chance_of_users(seed: int, first_user: int, users: int) -> Array:
    """float64 [users] in [0, 1): a hash of (seed, dense id), by SplitMix64's finalizer.

    It depends on nothing else. One generator per user would serve the same purpose but be a hundred times slower.
    """
    with np.errstate(over="ignore"):
        state = np.uint64(seed % 2**64) * np.uint64(0xD1342543DE82EF95) + np.arange(
            first_user + 1, first_user + users + 1, dtype=np.uint64
        ) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return (state >> np.uint64(11)) / 2.0**53


def _from_the_end(offsets: Array, positive: Array, back: int) -> Array:
    """int64 [users]: position of the user's `back`-th positive from the end; NONE where the user has fewer."""
    places = np.flatnonzero(positive)
    ends = np.searchsorted(places, offsets)  # positives before each user's first row
    enough = np.diff(ends) >= back
    row = np.append(places, 0)[np.where(enough, ends[1:] - back, 0)]
    return np.where(enough, row - offsets[:-1], NONE)
