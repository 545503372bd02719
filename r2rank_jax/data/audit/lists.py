"""Checks of one bucket's frozen lists against that bucket's interactions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from r2rank_jax.data.audit.findings import Check, Findings
from r2rank_jax.data.audit.tables import AGAIN, Bucket
from r2rank_jax.data.prepared.settings import Array, Settings
from r2rank_jax.data.prepared.splits import HELD_OUT, NONE, Split

LINES = Check("list_lines", 'a line is {"split", "user", "position", "items", "labels"}', AGAIN)
SIZES = Check("list_size", "a list has as many candidates, and as many labels, as the settings ask for", AGAIN)
ITEMS = Check("list_items", "candidates are in the catalogue, ascending and without repeats", AGAIN)
LABELS = Check("list_labels", "labels are finite, not negative, some above 0 and some not", AGAIN)
USERS = Check("list_users", "a list's user is one of its bucket", AGAIN)
ONCE = Check("list_repeated", "a user has one list in a part", AGAIN)
ORDER = Check("list_order", "all validation lists by user, then all test lists by user", AGAIN)
POSITIONS = Check("list_position", "the positive is where the protocol says, with a history before it", AGAIN)
MISSING = Check("list_missing", "every user for whom the protocol names a positive has a list", AGAIN)
POSITIVES = Check("list_positive", "the held-out positives are relevant, by their labels, and nothing else is", AGAIN)
NEGATIVES = Check("list_negative_known", "no negative is an item that the user interacted with at any time", AGAIN)
HISTORY = Check("list_history", "no held-out item is in the history that is shown before it", AGAIN)
TIMES = Check("list_time", "under global_time a positive lies between the cuts, or after both", AGAIN)
PARTS = Check("list_parts", "a user's validation positive comes before the test positive", AGAIN)


_LIMIT = 2**31  # every id and position fits into 32 bits


@dataclass(frozen=True)
class Table:
    """The lists of one file that could be read; a ragged one never gets here."""

    file: str  # relative to the folder
    line: Array  # int64 [L]  from 1
    test: Array  # bool [L]  else validation
    user: Array  # int64 [L]  dense
    position: Array  # int64 [L]
    items: Array  # int64 [L, N]
    labels: Array  # float64 [L, N]

    def where(self, rows: Array) -> Table:
        """The lists at these rows."""
        columns = (self.line, self.test, self.user, self.position, self.items, self.labels)
        return Table(self.file, *(column[rows] for column in columns))

    def part(self, row: int) -> str:
        """ "valid" or "test"."""
        return "test" if self.test[row] else "valid"

    def note(self, found: Findings, check: Check, bad: Array, wrong: Callable[[int], str]) -> None:
        """Add a finding for every list of `bad` [L]; `wrong` takes its row in this table."""
        rows = np.flatnonzero(bad)
        row_of = dict(zip(self.line[rows].tolist(), rows.tolist()))
        found.add_rows(check, self.file, self.line[rows], lambda line: wrong(row_of[line]), place="line")


def read_lists(file: str, content: bytes, size: int, found: Findings) -> Table:
    """Parse a candidate file, noting and leaving out what is no list of `size` candidates."""
    kept: list[tuple[int, dict[str, Any]]] = []
    for line, text in enumerate(content.decode("utf-8", "replace").removesuffix("\n").split("\n"), start=1):
        if not content:
            break
        record = _record(text)
        if record is None:
            found.add(LINES, f"{file}, line {line}", f"got {text[:120]!r}")
        elif {len(record["items"]), len(record["labels"])} != {size}:
            got = f"{len(record['items'])} candidates and {len(record['labels'])} labels"
            found.add(SIZES, f"{file}, line {line}", f"user {record['user']}: expected {size} of each, got {got}")
        else:
            kept.append((line, record))
    records = [record for _, record in kept]
    shape = (len(records), size)
    return Table(
        file,
        np.array([line for line, _ in kept], np.int64),
        np.array([record["split"] == "test" for record in records], bool),
        np.array([record["user"] for record in records], np.int64),
        np.array([record["position"] for record in records], np.int64),
        np.array([record["items"] for record in records], np.int64).reshape(shape),
        np.array([record["labels"] for record in records], np.float64).reshape(shape),
    )


def check_lists(table: Table, bucket: Bucket, items: int, parts: Split, settings: Settings, found: Findings) -> None:
    """Every check of one file.

    Args:
        table: lists of the bucket's users.
        bucket: whose ids and order hold.
        items: size of the catalogue.
        parts: the protocol's positions, worked out again, for the users of this bucket.
        settings: which interactions are positives, and with which labels.
        found: added to.
    """
    _check_entries(table, items, found)
    table = _of_bucket(table, bucket, found)
    _check_turns(table, found)
    _check_positions(table, bucket, parts, found)
    _check_labels(table, bucket, parts, settings, found)
    _check_known(table, bucket, items, found)
    _check_parts(table, found)


def _record(text: str) -> dict[str, Any] | None:
    """The line as a record of the right types; None where it is none."""
    try:
        record = json.loads(text)
        numbers = [record["user"], record["position"], *record["items"]]
        good = (
            set(map(type, numbers)) == {int}
            and max(numbers) < _LIMIT
            and min(numbers) > -_LIMIT
            and set(map(type, record["labels"])) <= {int, float}
            and record["split"] in HELD_OUT
        )
    except (ValueError, KeyError, TypeError):
        return None
    return record if good else None


def _check_entries(table: Table, items: int, found: Findings) -> None:
    """What a list must be whoever it belongs to."""
    outside = np.any((table.items < 0) | (table.items >= items), axis=1)
    falling = np.any(np.diff(table.items, axis=1) <= 0, axis=1)
    table.note(
        found,
        ITEMS,
        outside | falling,
        lambda row: f"user {table.user[row]}: candidates {_brief(table.items[row])} of {items} items",
    )
    relevant = table.labels > 0
    broken = ~np.isfinite(table.labels) | (table.labels < 0)
    one_kind = np.all(relevant, axis=1) | np.all(~relevant, axis=1)
    table.note(
        found,
        LABELS,
        one_kind | np.any(broken, axis=1),
        lambda row: f"user {table.user[row]}: labels {_brief(table.labels[row])}",
    )


def _of_bucket(table: Table, bucket: Bucket, found: Findings) -> Table:
    """The lists whose user is one of the bucket's."""
    last = bucket.first_user + bucket.users - 1
    outside = (table.user < bucket.first_user) | (table.user > last)
    table.note(
        found,
        USERS,
        outside,
        lambda row: f"user must be in {bucket.first_user} .. {last}, got {table.user[row]}",
    )
    return table.where(~outside)


def _check_turns(table: Table, found: Findings) -> None:
    """One list per user and part, validation first, by user."""
    by = np.lexsort((table.line, table.user, table.test))
    same = (np.diff(table.user[by]) == 0) & (table.test[by][1:] == table.test[by][:-1])
    again = np.zeros(len(by), bool)
    again[by[1:][same]] = True
    table.note(found, ONCE, again, lambda row: f"user {table.user[row]} has a {table.part(row)} list already")
    early = np.zeros(len(by), bool)
    place = table.test.astype(np.int64) * (table.user.max(initial=0) + 1) + table.user
    early[1:] = np.diff(place) < 0
    table.note(
        found,
        ORDER,
        early,
        lambda row: (
            f"the {table.part(row)} list of user {table.user[row]} comes after the {table.part(row - 1)} list of "
            f"user {table.user[row - 1]}"
        ),
    )


def _check_positions(table: Table, bucket: Bucket, parts: Split, found: Findings) -> None:
    """The lists are those that the protocol names, no more and no fewer."""
    wanted = np.where(
        table.test, parts.test[table.user - bucket.first_user], parts.valid[table.user - bucket.first_user]
    )

    def wrong(row: int) -> str:
        named = f"at {wanted[row]}" if wanted[row] != NONE else "no positive"
        return (
            f"the protocol names {named} for user {table.user[row]}'s {table.part(row)} list, got {table.position[row]}"
        )

    table.note(found, POSITIONS, (table.position != wanted) | (table.position < 1), wrong)
    for name in HELD_OUT:
        due = bucket.first_user + np.flatnonzero(parts.position(name) != NONE)
        listed = table.user[table.test == (name == "test")]
        for user in np.setdiff1d(due, listed).tolist():
            found.add(MISSING, table.file, f"user {user} must have a {name} list, and has none")


def _check_labels(table: Table, bucket: Bucket, parts: Split, settings: Settings, found: Findings) -> None:
    """The relevant candidates are the positives from the list's position on, with their labels."""
    places = np.append(np.flatnonzero(settings.positive(bucket.rating)), len(bucket.user))
    first = np.searchsorted(places, bucket.offsets[table.user - bucket.first_user] + table.position)
    rows = places[np.minimum(first[:, None] + np.arange(parts.positives), len(places) - 1)]  # [L, positives]
    inside = rows < bucket.offsets[table.user - bucket.first_user + 1][:, None]
    rows = np.where(inside, rows, 0)
    items = np.where(inside, bucket.item[rows], NONE)
    labels = settings.label(bucket.rating[rows.ravel()]).reshape(rows.shape)
    same = table.items[:, :, None] == items[:, None]  # [L, N, positives]
    due = np.max(np.where(same, labels[:, None], 0), axis=2)
    bad = np.any(due != table.labels, axis=1) | ~np.all(np.any(same, axis=1) | ~inside, axis=1)

    def wrong(row: int) -> str:
        relevant = table.labels[row] > 0
        return (
            f"user {table.user[row]}: held out from {table.position[row]} on are {_brief(items[row][inside[row]])}, "
            f"labels {_brief(labels[row][inside[row]])}; the list has {_brief(table.items[row][relevant])}, labels "
            f"{_brief(table.labels[row][relevant])}"
        )

    table.note(found, POSITIVES, bad, wrong)


def _check_known(table: Table, bucket: Bucket, items: int, found: Findings) -> None:
    """Negatives and positives against everything the user ever interacted with."""
    # One sorted key per (user, item): a list's items are found among all of the bucket's by bisection.
    key = (bucket.user.astype(np.int64) - bucket.first_user) * items + bucket.item
    by = np.argsort(key, kind="stable")
    wanted = (table.user[:, None] - bucket.first_user) * items + table.items
    place = np.minimum(np.searchsorted(key[by], wanted), len(by) - 1)
    known = (key[by][place] == wanted) & (table.items >= 0) & (table.items < items)
    position = by[place] - bucket.offsets[table.user - bucket.first_user][:, None]  # the earliest, where it repeats
    relevant = table.labels > 0

    def said(row: int, chosen: Array) -> str:
        return f"item {_brief(table.items[row][chosen[row]])}, interaction {_brief(position[row][chosen[row]])}"

    wrong = known & ~relevant
    table.note(
        found,
        NEGATIVES,
        np.any(wrong, axis=1),
        lambda row: f"user {table.user[row]} has negatives from the own sequence: {said(row, wrong)}",
    )
    seen = known & relevant & (position < table.position[:, None])
    table.note(
        found,
        HISTORY,
        np.any(seen, axis=1),
        lambda row: f"user {table.user[row]} is shown what is to be found: {said(row, seen)} of {table.position[row]}",
    )


def check_times_of_lists(table: Table, bucket: Bucket, cuts: Sequence[int], found: Findings) -> None:
    """Under global_time, what is held out happened between the cuts (validation), or after the second (test)."""
    table = table.where(np.isin(table.user - bucket.first_user, np.arange(bucket.users)))
    start = bucket.offsets[table.user - bucket.first_user]
    stop = bucket.offsets[table.user - bucket.first_user + 1]
    stamp = bucket.timestamp[np.clip(start + table.position, start, stop - 1)]
    sound = np.where(table.test, stamp >= cuts[1], (stamp >= cuts[0]) & (stamp < cuts[1]))
    table.note(
        found,
        TIMES,
        ~sound,
        lambda row: f"user {table.user[row]}'s {table.part(row)} positive is of {stamp[row]}, the cuts are {cuts}",
    )


def _check_parts(table: Table, found: Findings) -> None:
    """Validation before test."""
    valid, test = table.where(~table.test), table.where(table.test)
    last = dict(zip(valid.user.tolist(), valid.position.tolist()))
    bad = np.array([last.get(u, NONE) >= p for u, p in zip(test.user.tolist(), test.position.tolist())], bool)
    test.note(
        found,
        PARTS,
        bad,
        lambda row: (
            f"user {test.user[row]}: the validation positive is at {last[int(test.user[row])]}, the test positive at "
            f"{test.position[row]}"
        ),
    )


def _brief(values: Array) -> str:
    text = ", ".join(f"{value:g}" for value in values[:24].tolist())
    return f"[{text}{', ...' if len(values) > 24 else ''}]"
