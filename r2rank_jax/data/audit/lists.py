"""Check the frozen lists of one bucket against the bucket's interactions."""

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
ITEMS = Check("list_items", "candidates are in the catalog, ascending and without repeats", AGAIN)
LABELS = Check("list_labels", "labels are finite and not negative; some are positive and some are 0", AGAIN)
USERS = Check("list_users", "a list's user belongs to the list's bucket", AGAIN)
ONCE = Check("list_repeated", "a user has at most one validation list and one test list", AGAIN)
ORDER = Check("list_order", "validation lists come before test lists, and each part is sorted by user", AGAIN)
POSITIONS = Check("list_position", "the positive is at the protocol's position, with a history before it", AGAIN)
MISSING = Check("list_missing", "every user for whom the protocol selects a positive has a list", AGAIN)
POSITIVES = Check("list_positive", "the labels mark the held-out positives as relevant, and nothing else", AGAIN)
NEGATIVES = Check("list_negative_known", "no negative is an item that the user interacted with at any time", AGAIN)
HISTORY = Check("list_history", "no held-out item is in the history that precedes it", AGAIN)
TIMES = Check("list_time", "under global_time a positive lies between the cuts, or after both", AGAIN)
PARTS = Check("list_parts", "a user's validation positive comes before the test positive", AGAIN)


_LIMIT = 2**31  # every id and position fits into 32 bits


@dataclass(frozen=True)
class ListTable:
    """The readable lists of one file, all of the same size."""

    file: str  # relative to the folder
    line: Array  # int64 [L]  line numbers, from 1
    test: Array  # bool [L]  True: test list; False: validation list
    user: Array  # int64 [L]  dense
    position: Array  # int64 [L]
    items: Array  # int64 [L, N]
    labels: Array  # float64 [L, N]

    def where(self, rows: Array) -> ListTable:
        """Return the lists at these rows."""
        columns = (self.line, self.test, self.user, self.position, self.items, self.labels)
        return ListTable(self.file, *(column[rows] for column in columns))

    def part(self, row: int) -> str:
        """The part that the list belongs to, "valid" or "test"."""
        return "test" if self.test[row] else "valid"

    def note(self, findings: Findings, check: Check, bad: Array, wrong: Callable[[int], str]) -> None:
        """Add a finding for every list in the mask `bad` [L]; `wrong` describes a list, given its row."""
        rows = np.flatnonzero(bad)
        row_of = dict(zip(self.line[rows].tolist(), rows.tolist()))
        findings.add_rows(check, self.file, self.line[rows], lambda line: wrong(row_of[line]), place="line")


def read_lists(file: str, content: bytes, size: int, findings: Findings) -> ListTable:
    """Parse a candidate file. Lines that are not a list of `size` candidates become findings and are left out."""
    kept: list[tuple[int, dict[str, Any]]] = []
    for line, text in enumerate(content.decode("utf-8", "replace").removesuffix("\n").split("\n"), start=1):
        if not content:
            break
        record = _record(text)
        if record is None:
            findings.add(LINES, f"{file}, line {line}", f"got {text[:120]!r}")
        elif {len(record["items"]), len(record["labels"])} != {size}:
            got = f"{len(record['items'])} candidates and {len(record['labels'])} labels"
            findings.add(SIZES, f"{file}, line {line}", f"user {record['user']}: expected {size} of each, got {got}")
        else:
            kept.append((line, record))
    records = [record for _, record in kept]
    shape = (len(records), size)
    return ListTable(
        file,
        np.array([line for line, _ in kept], np.int64),
        np.array([record["split"] == "test" for record in records], bool),
        np.array([record["user"] for record in records], np.int64),
        np.array([record["position"] for record in records], np.int64),
        np.array([record["items"] for record in records], np.int64).reshape(shape),
        np.array([record["labels"] for record in records], np.float64).reshape(shape),
    )


def check_lists(
    table: ListTable, bucket: Bucket, items: int, parts: Split, settings: Settings, findings: Findings
) -> None:
    """Run every check on the lists of one file.

    Args:
        table: lists of the bucket's users.
        bucket: bucket whose ids and order have been checked.
        items: size of the catalog.
        parts: the protocol's positions for the users of this bucket, recomputed.
        settings: determines which interactions are positives, and their labels.
        findings: updated with what is wrong.
    """
    _check_entries(table, items, findings)
    table = _of_bucket(table, bucket, findings)
    _check_order(table, findings)
    _check_positions(table, bucket, parts, findings)
    _check_labels(table, bucket, parts, settings, findings)
    _check_known(table, bucket, items, findings)
    _check_parts(table, findings)


def _record(text: str) -> dict[str, Any] | None:
    """The line as a record, or None if it is not one or has values of the wrong type."""
    try:
        record = json.loads(text)
        numbers = [record["user"], record["position"], *record["items"]]
        valid = (
            set(map(type, numbers)) == {int}
            and max(numbers) < _LIMIT
            and min(numbers) > -_LIMIT
            and set(map(type, record["labels"])) <= {int, float}
            and record["split"] in HELD_OUT
        )
    except (ValueError, KeyError, TypeError):
        return None
    return record if valid else None


def _check_entries(table: ListTable, items: int, findings: Findings) -> None:
    """Checks that do not depend on the list's user."""
    outside = np.any((table.items < 0) | (table.items >= items), axis=1)
    falling = np.any(np.diff(table.items, axis=1) <= 0, axis=1)
    table.note(
        findings,
        ITEMS,
        outside | falling,
        lambda row: f"user {table.user[row]}: candidates {_brief(table.items[row])} of {items} items",
    )
    relevant = table.labels > 0
    broken = ~np.isfinite(table.labels) | (table.labels < 0)
    one_kind = np.all(relevant, axis=1) | np.all(~relevant, axis=1)
    table.note(
        findings,
        LABELS,
        one_kind | np.any(broken, axis=1),
        lambda row: f"user {table.user[row]}: labels {_brief(table.labels[row])}",
    )


def _of_bucket(table: ListTable, bucket: Bucket, findings: Findings) -> ListTable:
    """The lists whose user belongs to the bucket."""
    last = bucket.first_user + bucket.users - 1
    outside = (table.user < bucket.first_user) | (table.user > last)
    table.note(
        findings,
        USERS,
        outside,
        lambda row: f"user must be in {bucket.first_user} .. {last}, got {table.user[row]}",
    )
    return table.where(~outside)


def _check_order(table: ListTable, findings: Findings) -> None:
    """Each user has one list per part, validation lists come first, and each part is sorted by user."""
    by = np.lexsort((table.line, table.user, table.test))
    same = (np.diff(table.user[by]) == 0) & (table.test[by][1:] == table.test[by][:-1])
    again = np.zeros(len(by), bool)
    again[by[1:][same]] = True
    table.note(findings, ONCE, again, lambda row: f"user {table.user[row]} already has a {table.part(row)} list")
    early = np.zeros(len(by), bool)
    place = table.test.astype(np.int64) * (table.user.max(initial=0) + 1) + table.user
    early[1:] = np.diff(place) < 0
    table.note(
        findings,
        ORDER,
        early,
        lambda row: (
            f"the {table.part(row)} list of user {table.user[row]} comes after the {table.part(row - 1)} list of "
            f"user {table.user[row - 1]}"
        ),
    )


def _check_positions(table: ListTable, bucket: Bucket, parts: Split, findings: Findings) -> None:
    """The lists are exactly those that the protocol selects."""
    expected = np.where(
        table.test, parts.test[table.user - bucket.first_user], parts.valid[table.user - bucket.first_user]
    )

    def wrong(row: int) -> str:
        selected = f"position {expected[row]}" if expected[row] != NONE else "no positive"
        return (
            f"the protocol selects {selected} for user {table.user[row]}'s {table.part(row)} list, got position "
            f"{table.position[row]}"
        )

    table.note(findings, POSITIONS, (table.position != expected) | (table.position < 1), wrong)
    for name in HELD_OUT:
        due = bucket.first_user + np.flatnonzero(parts.position(name) != NONE)
        listed = table.user[table.test == (name == "test")]
        for user in np.setdiff1d(due, listed).tolist():
            findings.add(MISSING, table.file, f"user {user} must have a {name} list, but has none")


def _check_labels(table: ListTable, bucket: Bucket, parts: Split, settings: Settings, findings: Findings) -> None:
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
            f"user {table.user[row]}: items {_brief(items[row][inside[row]])} with labels "
            f"{_brief(labels[row][inside[row]])} are held out from position {table.position[row]} on; the list marks "
            f"items {_brief(table.items[row][relevant])} with labels {_brief(table.labels[row][relevant])}"
        )

    table.note(findings, POSITIVES, bad, wrong)


def _check_known(table: ListTable, bucket: Bucket, items: int, findings: Findings) -> None:
    """Compare negatives and positives with everything that the user ever interacted with."""
    # Each (user, item) pair is one sorted key, so that bisection finds a list's items among the bucket's interactions.
    key = (bucket.user.astype(np.int64) - bucket.first_user) * items + bucket.item
    by = np.argsort(key, kind="stable")
    list_key = (table.user[:, None] - bucket.first_user) * items + table.items
    place = np.minimum(np.searchsorted(key[by], list_key), len(by) - 1)
    interacted = (key[by][place] == list_key) & (table.items >= 0) & (table.items < items)
    position = by[place] - bucket.offsets[table.user - bucket.first_user][:, None]  # the first, if the item repeats
    relevant = table.labels > 0

    def described(row: int, chosen: Array) -> str:
        return f"items {_brief(table.items[row][chosen[row]])} at positions {_brief(position[row][chosen[row]])}"

    wrong = interacted & ~relevant
    table.note(
        findings,
        NEGATIVES,
        np.any(wrong, axis=1),
        lambda row: f"user {table.user[row]} interacted with negatives of the list: {described(row, wrong)}",
    )
    seen = interacted & relevant & (position < table.position[:, None])
    table.note(
        findings,
        HISTORY,
        np.any(seen, axis=1),
        lambda row: (
            f"user {table.user[row]}'s history shows relevant items: {described(row, seen)}, before the list's "
            f"position {table.position[row]}"
        ),
    )


def check_times_of_lists(table: ListTable, bucket: Bucket, cuts: Sequence[int], findings: Findings) -> None:
    """Under global_time, validation positives lie between the two cuts, and test positives after the second."""
    table = table.where(np.isin(table.user - bucket.first_user, np.arange(bucket.users)))
    start = bucket.offsets[table.user - bucket.first_user]
    stop = bucket.offsets[table.user - bucket.first_user + 1]
    stamp = bucket.timestamp[np.clip(start + table.position, start, stop - 1)]
    valid = np.where(table.test, stamp >= cuts[1], (stamp >= cuts[0]) & (stamp < cuts[1]))
    table.note(
        findings,
        TIMES,
        ~valid,
        lambda row: (
            f"user {table.user[row]}'s {table.part(row)} positive has timestamp {stamp[row]}, but the cuts are {cuts}"
        ),
    )


def _check_parts(table: ListTable, findings: Findings) -> None:
    """A user's validation positive precedes the test positive."""
    valid, test = table.where(~table.test), table.where(table.test)
    last = dict(zip(valid.user.tolist(), valid.position.tolist()))
    bad = np.array([last.get(u, NONE) >= p for u, p in zip(test.user.tolist(), test.position.tolist())], bool)
    test.note(
        findings,
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
