"""Checks of the tables of one bucket, and of the catalogue. Each takes arrays and adds to the findings.

Nothing here trusts what wrote the folder: what a check compares with is worked out again from the rows.
"""

from __future__ import annotations

import html
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from r2rank_jax.data.audit.findings import Check, Findings
from r2rank_jax.data.prepare.partition import HASH_BITS, user_hash
from r2rank_jax.data.prepared.settings import Array

AGAIN = "prepare the data again in a new folder"
SORTED = Check("interactions_sorted", "rows are sorted by user, then time, then source order", AGAIN)
USER_IDS = Check("user_ids", "dense user ids run through the buckets without a gap, each with an interaction", AGAIN)
ITEM_IDS = Check("item_ids", "an interaction's item is in the catalogue", AGAIN)
DUPLICATES = Check(
    "duplicate_interactions", "a user has an item once", "prepare again, with the repeats of the source dropped"
)
RATINGS = Check("ratings", "ratings are finite numbers, or missing throughout", "mend the source and prepare again")
ORDERS = Check("source_order", "an interaction's place in the source is its own, and not negative", AGAIN)
TIMES = Check(
    "timestamps",
    "timestamps are in the manifest's unit, not negative and not in the future",
    "mend the source, or give the right unit, and prepare again",
)
EARLY_TIMES = Check(
    "timestamps_early",
    "timestamps are of 1990 or later",
    "nothing, if these are no calendar times; only their order is used",
    fault=False,
)
CORE = Check("k_core", "every user and item keeps as many interactions as the settings ask for", AGAIN)
USERS_TABLE = Check("users_table", "the users' table names every dense id of its bucket once, in order", AGAIN)
USER_BUCKETS = Check("user_buckets", "a user is in the bucket that the hash of the source's id names", AGAIN)
ITEMS_TABLE = Check("items_table", "item ids are 0, 1, 2 ... and the source's ids are unique", AGAIN)
MARKUP = Check("text_markup", "no HTML entity or tag is left in a title", "prepare again; the readers clean titles")
CONTROL = Check("text_control_characters", "no control character and no line end is left in a title", MARKUP.remedy)
DIRECTION = Check(
    "text_direction_characters",
    "no invisible character that changes the direction of text is in a title",
    "nothing; prompts leave them out",
    fault=False,
)
MISSING_TITLES = Check(
    "titles_missing",
    "every item has a title",
    "nothing, if the source has none; a prompt calls such an item unknown",
    fault=False,
)

UNIT = {"s": 1, "ms": 1000}
_YEAR_1990_S = 631_152_000
_DAY_S = 86_400
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z]{2,31}\d{0,2});")
_TAG = re.compile(
    r"</?(?:a|b|br|div|em|font|i|img|li|p|span|strong|sub|sup|table|td|tr|u|ul)(?:\s[^<>]*)?/?(?:>|$)", re.I
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_DIRECTION = re.compile(r"[\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Bucket:
    """The interactions of one bucket's users. User first_user + u has rows offsets[u]:offsets[u + 1]."""

    file: str  # relative to the folder
    first_user: int
    offsets: Array  # int64 [users of the bucket + 1]
    user: Array  # int32 [n]  dense
    item: Array  # int32 [n]  dense
    rating: Array  # float32 [n]  NaN where missing
    timestamp: Array  # int64 [n]
    order: Array  # int64 [n]

    @property
    def users(self) -> int:
        """Number of users of this bucket."""
        return len(self.offsets) - 1

    def tied(self) -> int:
        """Interactions at the same time as the one before of the same user."""
        return int(np.sum((np.diff(self.user) == 0) & (np.diff(self.timestamp) == 0)))


def check_users(bucket: Bucket, found: Findings) -> bool:
    """Ids and order of the rows, without which `offsets` means nothing.

    Returns:
        Whether they hold, so that what looks up users may go on.
    """
    before = found.faults
    last = bucket.first_user + bucket.users - 1
    outside = (bucket.user < bucket.first_user) | (bucket.user > last)
    found.add_rows(
        USER_IDS,
        bucket.file,
        np.flatnonzero(outside),
        lambda row: f"user must be in {bucket.first_user} .. {last}, got {bucket.user[row]}",
    )
    idle = bucket.first_user + np.setdiff1d(np.arange(bucket.users), bucket.user - bucket.first_user)
    for user in idle.tolist():
        found.add(USER_IDS, bucket.file, f"user {user} must have an interaction, and has none")
    keys = (bucket.user, bucket.timestamp, bucket.order)
    wrong = np.zeros(max(0, len(bucket.user) - 1), bool)
    equal = np.ones_like(wrong)
    for key in keys:
        wrong |= equal & (key[1:] < key[:-1])
        equal &= key[1:] == key[:-1]
    found.add_rows(
        SORTED,
        bucket.file,
        np.flatnonzero(wrong) + 1,
        lambda row: (
            f"(user, timestamp, order) {tuple(int(k[row]) for k in keys)} comes after "
            f"{tuple(int(k[row - 1]) for k in keys)}"
        ),
    )
    return found.faults == before


def check_items(bucket: Bucket, items: int, found: Findings) -> bool:
    """Items within the catalogue.

    Returns:
        Whether they are.
    """
    outside = np.flatnonzero((bucket.item < 0) | (bucket.item >= items))
    found.add_rows(
        ITEM_IDS, bucket.file, outside, lambda row: f"item must be in 0 .. {items - 1}, got {bucket.item[row]}"
    )
    return not len(outside)


def check_duplicates(bucket: Bucket, found: Findings) -> None:
    """A user has an item once."""
    by = np.lexsort((np.arange(len(bucket.user)), bucket.item, bucket.user))
    same = (np.diff(bucket.user[by]) == 0) & (np.diff(bucket.item[by]) == 0)
    again, earlier = by[1:][same], by[:-1][same]
    first = dict(zip(again.tolist(), earlier.tolist()))
    found.add_rows(
        DUPLICATES,
        bucket.file,
        np.sort(again),
        lambda row: f"user {bucket.user[row]} has item {bucket.item[row]} on row {first[row]} already",
    )


def check_ratings(bucket: Bucket, found: Findings) -> None:
    """Finite, or missing throughout: half a column would be read as if it were one."""
    finite = np.isfinite(bucket.rating)
    if not np.isnan(bucket.rating).all():
        found.add_rows(RATINGS, bucket.file, np.flatnonzero(~finite), lambda row: f"the rating is {bucket.rating[row]}")


def check_orders(bucket: Bucket, found: Findings) -> None:
    """No two rows from the same place of the source."""
    by = np.argsort(bucket.order, kind="stable")
    again = by[1:][np.diff(bucket.order[by]) == 0]
    found.add_rows(
        ORDERS,
        bucket.file,
        np.union1d(again, np.flatnonzero(bucket.order < 0)),
        lambda row: f"the place in the source is {bucket.order[row]}, as on another row or negative",
    )


def check_times(bucket: Bucket, unit: str, found: Findings, now_s: float | None = None) -> None:
    """Plausible in the unit that the manifest names.

    Args:
        bucket: whose timestamps.
        unit: "s" or "ms".
        found: added to.
        now_s: seconds since 1970; the clock's by default.
    """
    factor = UNIT[unit]
    latest = int(((time.time() if now_s is None else now_s) + _DAY_S) * factor)
    stamp = bucket.timestamp
    # A time of today in seconds, read as milliseconds, is in January 1970.
    as_seconds = (stamp >= _YEAR_1990_S) & (stamp <= latest // 1000) if unit == "ms" else np.zeros(len(stamp), bool)
    bad = (stamp < 0) | (stamp > latest) | as_seconds

    def wrong(row: int) -> str:
        if stamp[row] < 0:
            return f"the timestamp is negative, {stamp[row]}"
        if as_seconds[row]:
            return f"the unit is ms, but {stamp[row]} looks like seconds"
        looks = ", which looks like milliseconds" if unit == "s" and stamp[row] <= latest * 1000 else ""
        return f"the timestamp is in the future, {stamp[row]} {unit}{looks}"

    found.add_rows(TIMES, bucket.file, np.flatnonzero(bad), wrong)
    if len(stamp) and not stamp.any():  # what a reader writes where the source has no times
        found.add(EARLY_TIMES, bucket.file, "all timestamps are 0: the order of the source stands for time")
        return
    found.add_rows(
        EARLY_TIMES,
        bucket.file,
        np.flatnonzero(~bad & (stamp < _YEAR_1990_S * factor)),
        lambda row: f"the timestamp is {stamp[row]} {unit}",
    )


def check_user_core(bucket: Bucket, least: int, found: Findings) -> None:
    """Every user has at least `least` interactions."""
    lengths = np.diff(bucket.offsets)
    for user in np.flatnonzero(lengths < least).tolist():
        found.add(
            CORE,
            f"{bucket.file}, row {bucket.offsets[user]}",
            f"user {bucket.first_user + user} must have at least {least} interactions, got {lengths[user]}",
        )


def check_item_core(counts: Array, least: int, found: Findings) -> None:
    """Every item that anybody has kept has at least `least` interactions; counts [items] over all buckets."""
    few = np.flatnonzero((counts > 0) & (counts < least))
    found.add_rows(
        CORE, "items.parquet", few, lambda row: f"item {row} must have at least {least} interactions, got {counts[row]}"
    )


def check_user_buckets(source_ids: Sequence[str], file: str, number: int, buckets: int, found: Findings) -> None:
    """Users are where the hash of their source id says, so that a user's rows are all in one bucket."""
    width = 2**HASH_BITS // buckets
    home = np.fromiter((user_hash(name) // width for name in source_ids), np.int64, len(source_ids))
    found.add_rows(
        USER_BUCKETS,
        file,
        np.flatnonzero(home != number),
        lambda row: f"source id {source_ids[row]!r} belongs into bucket {home[row]}",
    )


def untitled(items: pl.DataFrame) -> Array:
    """bool [items]: those without a title."""
    return (items["title"].str.strip_chars() == "").to_numpy()


def check_catalogue(items: pl.DataFrame, counts: Array, found: Findings) -> None:
    """Ids, and text that a prompt can show.

    Args:
        items: columns of `items.parquet`.
        counts: [items] interactions of each.
        found: added to.
    """
    file, dense, ids = "items.parquet", items["item"].to_numpy(), items["source_id"]
    found.add_rows(
        ITEMS_TABLE,
        file,
        np.flatnonzero(dense != np.arange(len(dense))),
        lambda row: f"item must be {row}, got {dense[row]}",
    )
    again = (~ids.is_first_distinct() | (ids == "")).arg_true().to_numpy()
    found.add_rows(ITEMS_TABLE, file, again, lambda row: f"source id {ids[row]!r} is empty or of another item too")
    found.add_rows(
        MISSING_TITLES,
        file,
        np.flatnonzero(untitled(items)),
        lambda row: f"item {ids[row]!r}, with {counts[row]} interactions, has no title",
    )
    for row, title in enumerate(items["title"].to_list()):
        for check, pattern in ((MARKUP, _ENTITY), (MARKUP, _TAG), (CONTROL, _CONTROL), (DIRECTION, _DIRECTION)):
            match = pattern.search(title)
            if match and (pattern is not _ENTITY or html.unescape(match.group()) != match.group()):
                found.add(check, f"{file}, row {row}", f"the title holds {match.group()!r}: {title[:80]!r}")
