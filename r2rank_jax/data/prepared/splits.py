"""Which interactions train, and which are held out for validation and test, by four protocols. Pure.

`leave_one_out`: a user's last positive is the test list's, the one before it the validation list's.
`global_time`: two cuts in calendar time, at 80 % and 90 % of all interactions; a user's first positive after a cut is
    the list's, and everything before the first cut trains, so nothing of the future is known to the model.
`last_n`: a user's last n positives are relevant together in one test list, the n before them in one validation list;
    the list's history ends before the first of them.
`cold_users`: some users are held out whole. They never train; a list has the last positive of such a user, and its
    history is what a model may reason from.

A positive is an interaction that `Settings.positive` takes; the others are shown in histories and held out never.
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
    """Positions within each user's sequence, sorted by time; `NONE` where the user has no such list."""

    train_end: Array  # int32 [users]  the first `train_end` interactions train
    valid: Array  # int32 [users]  position of the list's first positive
    test: Array  # int32 [users]
    without_history: dict[str, int]  # lists left out because nothing came before their first positive
    positives: int = 1  # of a list: so many positives from its position on

    def position(self, held_out: str) -> Array:
        """`valid` or `test` by name.

        Raises:
            DataError: another name.
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
    """Split by a protocol.

    Args:
        protocol: one of `PROTOCOLS`.
        offsets: [users + 1], the u-th user's interactions are rows offsets[u]:offsets[u + 1].
        timestamp: [n], sorted within each user.
        positive: bool [n].
        settings: for last_n, cold_fraction and seed.
        cuts: of global_time, taken over all users.
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
    """Last n positives = test, the n before them = valid, what comes before trains. n = 1 is leave-one-out.

    A user without a validation list (too few positives, or nothing before them) trains up to the test list; one without
    a test list trains whole.
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
    found, without = {}, {}
    for name, low, high in (("valid", before[0], before[1]), ("test", before[1], lengths)):
        next_positive = np.searchsorted(places, offsets[:-1] + low)
        row = np.append(places, len(positive))[next_positive]
        inside = row < offsets[:-1] + high
        position = row - offsets[:-1]
        found[name] = np.where(inside & (position > 0), position, NONE).astype(np.int32)
        without[name] = int(np.sum(inside & (position == 0)))
    return Split(before[0].astype(np.int32), found["valid"], found["test"], without)


def cold_users(offsets: Array, positive: Array, chance: Array, fraction: float) -> Split:
    """Users whose chance is below `fraction` are held out for test, those below twice of it for validation.

    Args:
        offsets: [users + 1].
        positive: bool [n].
        chance: float64 [users] in [0, 1), see `chance_of_users`.
        fraction: of the users, for each of the two parts.
    """
    last = _from_the_end(offsets, positive, 1)
    parts = {"test": chance < fraction, "valid": (chance >= fraction) & (chance < 2 * fraction)}
    held = {name: np.where(part & (last > 0), last, NONE).astype(np.int32) for name, part in parts.items()}
    train_end = np.where(parts["test"] | parts["valid"], 0, np.diff(offsets)).astype(np.int32)
    without = {name: int(np.sum(part & (last == 0))) for name, part in parts.items()}
    return Split(train_end, held["valid"], held["test"], without)


def chance_of_users(seed: int, first_user: int, users: int) -> Array:
    """float64 [users] in [0, 1): a number of (seed, dense id) alone, by SplitMix64's finalizer.

    A generator per user would give the same, a hundred times slower.
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
    """int64 [users]: position of the user's `back`-th positive from the end; NONE where there are fewer."""
    places = np.flatnonzero(positive)
    ends = np.searchsorted(places, offsets)  # positives before each user's first row
    there = np.diff(ends) >= back
    row = np.append(places, 0)[np.where(there, ends[1:] - back, 0)]
    return np.where(there, row - offsets[:-1], NONE)
