"""Check the tables of one bucket, and the catalog. Each check takes arrays and adds to the findings.

The checks do not trust the program that wrote the folder: they recompute from the rows what they compare with.
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
SORTED = Check("interactions_sorted", "rows are sorted by user, then time, then order in the source", AGAIN)
USER_IDS = Check("user_ids", "dense user ids are consecutive over the buckets, each with an interaction", AGAIN)
ITEM_IDS = Check("item_ids", "an interaction's item is in the catalog", AGAIN)
DUPLICATES = Check(
    "duplicate_interactions",
    "a user interacts with an item at most once",
    "remove repeated interactions from the source, and prepare again",
)
UNRATED = Check(
    "ratings_missing",
    "interactions are all rated or all unrated",
    "none needed; with --positive-rating, unrated interactions are in histories but are no positives",
    fault=False,
)
RATINGS = Check("ratings", "ratings are finite numbers or missing", "fix the source and prepare again")
ORDERS = Check("source_order", "an interaction's position in the source is unique and not negative", AGAIN)
TIMES = Check(
    "timestamps",
    "timestamps are in the manifest's unit, not negative and not in the future",
    "fix the source or set the right unit, and prepare again",
)
EARLY_TIMES = Check(
    "timestamps_early",
    "timestamps are from 1990 or later",
    "none needed if these are not calendar times; only their order is used",
    fault=False,
)
CORE = Check("k_core", "every user and item has at least as many interactions as settings.k_core", AGAIN)
USERS_TABLE = Check("users_table", "the users' table has every dense id of its bucket once, in order", AGAIN)
USER_BUCKETS = Check("user_buckets", "a user is in the bucket given by the hash of the source id", AGAIN)
ITEMS_TABLE = Check("items_table", "item ids are 0, 1, 2 ... and the source's ids are unique", AGAIN)
MARKUP = Check("text_markup", "titles contain no HTML entities or tags", "prepare again; the readers clean titles")
CONTROL = Check("text_control_characters", "titles contain no control characters or line ends", MARKUP.remedy)
DIRECTION = Check(
    "text_direction_characters",
    "titles contain no invisible characters that change the direction of text",
    "none needed; prompts leave them out",
    fault=False,
)
MISSING_TITLES = Check(
    "titles_missing",
    "every item has a title",
    "none needed if the source has no title either; a prompt calls such an item unknown",
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

    file: str  # path relative to the folder
    first_user: int  # dense id
    offsets: Array  # int64 [users of the bucket + 1]
    user: Array  # int32 [n]  dense
    item: Array  # int32 [n]  dense
    rating: Array  # float32 [n]  NaN where missing
    timestamp: Array  # int64 [n]
    order: Array  # int64 [n]

    @property
    def users(self) -> int:
        """Number of users in this bucket."""
        return len(self.offsets) - 1

    def tied(self) -> int:
        """Number of interactions at the same time as the same user's previous interaction."""
        return int(np.sum((np.diff(self.user) == 0) & (np.diff(self.timestamp) == 0)))


def check_users(bucket: Bucket, findings: Findings) -> bool:
    """Check the user ids and the order of the rows. `offsets` is valid only if both are right.

    Returns:
        True if both are right, so that checks that look up users can be run.
    """
    before = findings.faults
    last = bucket.first_user + bucket.users - 1
    outside = (bucket.user < bucket.first_user) | (bucket.user > last)
    findings.add_rows(
        USER_IDS,
        bucket.file,
        np.flatnonzero(outside),
        lambda row: f"user must be in {bucket.first_user} .. {last}, got {bucket.user[row]}",
    )
    idle = bucket.first_user + np.setdiff1d(np.arange(bucket.users), bucket.user - bucket.first_user)
    for user in idle.tolist():
        findings.add(USER_IDS, bucket.file, f"user {user} must have an interaction, but has none")
    keys = (bucket.user, bucket.timestamp, bucket.order)
    wrong = np.zeros(max(0, len(bucket.user) - 1), bool)
    equal = np.ones_like(wrong)
    for key in keys:
        wrong |= equal & (key[1:] < key[:-1])
        equal &= key[1:] == key[:-1]
    findings.add_rows(
        SORTED,
        bucket.file,
        np.flatnonzero(wrong) + 1,
        lambda row: (
            f"(user, timestamp, order) {tuple(int(k[row]) for k in keys)} comes after "
            f"{tuple(int(k[row - 1]) for k in keys)}"
        ),
    )
    return findings.faults == before


def check_items(bucket: Bucket, items: int, findings: Findings) -> bool:
    """Check that all items are in the catalog.

    Returns:
        True if they are.
    """
    outside = np.flatnonzero((bucket.item < 0) | (bucket.item >= items))
    findings.add_rows(
        ITEM_IDS, bucket.file, outside, lambda row: f"item must be in 0 .. {items - 1}, got {bucket.item[row]}"
    )
    return not len(outside)


def check_duplicates(bucket: Bucket, findings: Findings) -> None:
    """Check that a user interacts with an item at most once."""
    by = np.lexsort((np.arange(len(bucket.user)), bucket.item, bucket.user))
    same = (np.diff(bucket.user[by]) == 0) & (np.diff(bucket.item[by]) == 0)
    again, earlier = by[1:][same], by[:-1][same]
    first = dict(zip(again.tolist(), earlier.tolist()))
    findings.add_rows(
        DUPLICATES,
        bucket.file,
        np.sort(again),
        lambda row: f"user {bucket.user[row]} already has item {bucket.item[row]} in row {first[row]}",
    )


def check_ratings(bucket: Bucket, findings: Findings) -> None:
    """Check that ratings are finite or missing; warn if some are missing, since a threshold then drops these rows."""
    infinite, missing = np.isinf(bucket.rating), np.isnan(bucket.rating)
    findings.add_rows(RATINGS, bucket.file, np.flatnonzero(infinite), lambda row: f"the rating is {bucket.rating[row]}")
    if missing.any() and not missing.all():
        findings.add(UNRATED, bucket.file, f"{missing.sum()} of {len(missing)} interactions have no rating")


def check_orders(bucket: Bucket, findings: Findings) -> None:
    """Check that no two rows have the same position in the source."""
    by = np.argsort(bucket.order, kind="stable")
    again = by[1:][np.diff(bucket.order[by]) == 0]
    findings.add_rows(
        ORDERS,
        bucket.file,
        np.union1d(again, np.flatnonzero(bucket.order < 0)),
        lambda row: f"the position in the source is {bucket.order[row]}, which is negative or not unique",
    )


def check_times(bucket: Bucket, unit: str, findings: Findings, now_s: float | None = None) -> None:
    """Check that timestamps are plausible in the manifest's unit.

    Args:
        bucket: bucket with the timestamps.
        unit: "s" or "ms".
        findings: updated with what is wrong.
        now_s: current time in seconds since 1970; read from the clock by default.
    """
    factor = UNIT[unit]
    latest = int(((time.time() if now_s is None else now_s) + _DAY_S) * factor)
    stamp = bucket.timestamp
    # A current time in seconds, read as milliseconds, lies in January 1970.
    as_seconds = (stamp >= _YEAR_1990_S) & (stamp <= latest // 1000) if unit == "ms" else np.zeros(len(stamp), bool)
    bad = (stamp < 0) | (stamp > latest) | as_seconds

    def wrong(row: int) -> str:
        if stamp[row] < 0:
            return f"the timestamp is negative, {stamp[row]}"
        if as_seconds[row]:
            return f"the unit is ms, but {stamp[row]} looks like seconds"
        looks = ", which looks like milliseconds" if unit == "s" and stamp[row] <= latest * 1000 else ""
        return f"the timestamp is in the future, {stamp[row]} {unit}{looks}"

    findings.add_rows(TIMES, bucket.file, np.flatnonzero(bad), wrong)
    if len(stamp) and not stamp.any():  # readers write 0 if the source has no times
        findings.add(EARLY_TIMES, bucket.file, "all timestamps are 0: the order in the source is used instead of time")
        return
    findings.add_rows(
        EARLY_TIMES,
        bucket.file,
        np.flatnonzero(~bad & (stamp < _YEAR_1990_S * factor)),
        lambda row: f"the timestamp is {stamp[row]} {unit}",
    )


def check_user_core(bucket: Bucket, least: int, findings: Findings) -> None:
    """Check that every user has at least `least` interactions."""
    lengths = np.diff(bucket.offsets)
    for user in np.flatnonzero(lengths < least).tolist():
        findings.add(
            CORE,
            f"{bucket.file}, row {bucket.offsets[user]}",
            f"user {bucket.first_user + user} must have at least {least} interactions, got {lengths[user]}",
        )


def check_item_core(counts: Array, least: int, findings: Findings) -> None:
    """Check that every item with any interaction has at least `least` of them; counts [items] over all buckets."""
    few = np.flatnonzero((counts > 0) & (counts < least))
    findings.add_rows(
        CORE, "items.parquet", few, lambda row: f"item {row} must have at least {least} interactions, got {counts[row]}"
    )


def check_user_buckets(source_ids: Sequence[str], file: str, number: int, buckets: int, findings: Findings) -> None:
    """Check that users are in the bucket of their source id's hash, so that a user's rows are all in one bucket."""
    width = 2**HASH_BITS // buckets
    home = np.fromiter((user_hash(name) // width for name in source_ids), np.int64, len(source_ids))
    findings.add_rows(
        USER_BUCKETS,
        file,
        np.flatnonzero(home != number),
        lambda row: f"source id {source_ids[row]!r} belongs in bucket {home[row]}",
    )


def untitled(items: pl.DataFrame) -> Array:
    """bool [items]: items without a title."""
    return (items["title"].str.strip_chars() == "").to_numpy()


def check_catalog(items: pl.DataFrame, counts: Array, findings: Findings) -> None:
    """Check the ids of the catalog and the text that prompts show.

    Args:
        items: columns of `items.parquet`.
        counts: [items] number of interactions of each item.
        findings: updated with what is wrong.
    """
    file, dense, ids = "items.parquet", items["item"].to_numpy(), items["source_id"]
    findings.add_rows(
        ITEMS_TABLE,
        file,
        np.flatnonzero(dense != np.arange(len(dense))),
        lambda row: f"item must be {row}, got {dense[row]}",
    )
    again = (~ids.is_first_distinct() | (ids == "")).arg_true().to_numpy()
    findings.add_rows(ITEMS_TABLE, file, again, lambda row: f"source id {ids[row]!r} is empty or not unique")
    findings.add_rows(
        MISSING_TITLES,
        file,
        np.flatnonzero(untitled(items)),
        lambda row: f"item {ids[row]!r}, with {counts[row]} interactions, has no title",
    )
    for row, title in enumerate(items["title"].to_list()):
        for check, pattern in ((MARKUP, _ENTITY), (MARKUP, _TAG), (CONTROL, _CONTROL), (DIRECTION, _DIRECTION)):
            match = pattern.search(title)
            if match and (pattern is not _ENTITY or html.unescape(match.group()) != match.group()):
                findings.add(check, f"{file}, row {row}", f"the title contains {match.group()!r}: {title[:80]!r}")
