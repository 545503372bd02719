"""Each check on small hand-made arrays: no finding on valid arrays, and the offending row on invalid ones."""

import json

import numpy as np
import polars as pl
import pytest

from r2rank_jax.data.audit import lists, tables, totals
from r2rank_jax.data.audit.findings import SHOWN, Check, Findings
from r2rank_jax.data.prepared.settings import Settings
from r2rank_jax.data.prepared.splits import last_n

FIRST = 10  # dense id of the bucket's first user
USER = [10, 10, 10, 10, 11, 11, 11]
ITEM = [0, 1, 2, 3, 4, 5, 0]
TIME = [900_000_000, 900_000_001, 900_000_001, 900_000_003, 900_000_000, 900_000_001, 900_000_002]
LISTS = [
    {"split": "valid", "user": 10, "position": 2, "items": [2, 6, 7], "labels": [1, 0, 0]},
    {"split": "valid", "user": 11, "position": 1, "items": [1, 3, 5], "labels": [0, 0, 1]},
    {"split": "test", "user": 10, "position": 3, "items": [3, 8, 9], "labels": [1, 0, 0]},
    {"split": "test", "user": 11, "position": 2, "items": [0, 8, 9], "labels": [1, 0, 0]},
]


def bucket(**changed):
    """A valid bucket of two users with 4 and 3 interactions, with some columns replaced."""
    columns = {"user": USER, "item": ITEM, "rating": [3.0] * 7, "timestamp": TIME, "order": range(7)} | changed
    kinds = {"user": np.int32, "item": np.int32, "rating": np.float32, "timestamp": np.int64, "order": np.int64}
    return tables.Bucket(
        file="interactions/00001.parquet",
        first_user=FIRST,
        offsets=np.array([0, 4, 7]),
        **{name: np.array(list(values), kinds[name]) for name, values in columns.items()},  # type: ignore[type-var]
    )


def only(findings):
    """The single finding, as (check, text)."""
    ((check, texts),) = findings.descriptions.items()
    assert len(texts) == findings.counts[check] == 1
    return check, texts[0]


def swapped(values, row, value):
    return [*values[:row], value, *values[row + 1 :]]


def test_a_valid_bucket_gives_no_finding():
    findings, rows = Findings(), bucket()
    assert tables.check_users(rows, findings) and tables.check_items(rows, 10, findings)
    tables.check_duplicates(rows, findings)
    tables.check_ratings(rows, findings)
    tables.check_orders(rows, findings)
    tables.check_times(rows, "s", findings)
    tables.check_user_core(rows, 3, findings)
    audit_lists(LISTS, findings)
    assert findings.text() == "" and findings.faults == 0


@pytest.mark.parametrize(
    "check, run, changed, row",
    [
        (tables.USER_IDS, tables.check_users, {"user": swapped(USER, 6, 12)}, 6),
        (tables.SORTED, tables.check_users, {"timestamp": swapped(TIME, 3, TIME[0])}, 3),
        (tables.SORTED, tables.check_users, {"order": [0, 2, 1, 3, 4, 5, 6]}, 2),
        (tables.ITEM_IDS, lambda b, f: tables.check_items(b, 10, f), {"item": swapped(ITEM, 5, 10)}, 5),
        (tables.DUPLICATES, tables.check_duplicates, {"item": swapped(ITEM, 3, 1)}, 3),
        (tables.RATINGS, tables.check_ratings, {"rating": swapped([3.0] * 7, 4, np.inf)}, 4),
        (tables.ORDERS, tables.check_orders, {"order": swapped(list(range(7)), 6, 0)}, 6),
        (tables.TIMES, lambda b, f: tables.check_times(b, "s", f), {"timestamp": swapped(TIME, 0, -1)}, 0),
        (tables.TIMES, lambda b, f: tables.check_times(b, "s", f), {"timestamp": swapped(TIME, 2, TIME[2] * 1000)}, 2),
        (tables.EARLY_TIMES, lambda b, f: tables.check_times(b, "s", f), {"timestamp": swapped(TIME, 1, 5)}, 1),
        (tables.CORE, lambda b, f: tables.check_user_core(b, 4, f), {}, 4),
    ],
)
def test_the_offending_row_is_named(check, run, changed, row):
    findings = Findings()
    run(bucket(**changed), findings)
    failed, text = only(findings)
    assert failed is check and text.startswith(f"interactions/00001.parquet, row {row}: ")


def test_a_user_without_interactions_is_a_gap():
    findings = Findings()
    assert not tables.check_users(bucket(user=[11, 11, 11, 11, 11, 11, 11]), findings)
    assert "user 10 must have an interaction" in findings.text()


def test_ratings_may_be_missing_throughout():
    findings = Findings()
    tables.check_ratings(bucket(rating=[np.nan] * 7), findings)
    assert not findings.counts


def test_seconds_are_not_taken_for_milliseconds():
    findings, stamps = Findings(), [t * 1000 for t in TIME]
    tables.check_times(bucket(timestamp=stamps), "ms", findings)
    assert not findings.counts
    tables.check_times(bucket(timestamp=swapped(stamps, 3, TIME[3])), "ms", findings)
    assert "row 3: the unit is ms, but 900000003 looks like seconds" in only(findings)[1]


def test_a_source_without_times_is_one_warning():
    findings = Findings()
    tables.check_times(bucket(timestamp=[0] * 7), "s", findings)
    assert findings.faults == 0 and only(findings)[1].endswith(
        "all timestamps are 0: the order in the source is used instead of time"
    )


def test_times_may_be_at_most_a_day_ahead():
    for stamp, faults in ((1_000_000_000 + 86_400, 0), (1_000_000_000 + 86_401, 1)):
        findings = Findings()
        tables.check_times(bucket(timestamp=swapped(TIME, 6, stamp)), "s", findings, now_s=1_000_000_000)
        assert findings.faults == faults


def check_catalog(findings, *titles, **changed):
    columns = {
        "item": range(len(titles)),
        "source_id": [f"s{i}" for i in range(len(titles))],
        "title": titles,
    } | changed
    tables.check_catalog(pl.DataFrame(columns), np.full(len(titles), 3), findings)


@pytest.mark.parametrize(
    "check, title",
    [
        (tables.MARKUP, "Truth About Cats &amp; Dogs"),
        (tables.MARKUP, "A &#39;quoted&#39; name"),
        (tables.MARKUP, 'Widget <span id="productTitle">'),
        (tables.MARKUP, 'Cut off in debris <span id="x'),
        (tables.MARKUP, "Two<br/>lines"),
        (tables.CONTROL, "One\nTwo"),
        (tables.DIRECTION, "\u202ereversed"),
        (tables.CONTROL, "nothing\x00ness"),
        (tables.MISSING_TITLES, "  "),
    ],
)
def test_unsuitable_text_in_titles_is_found(check, title):
    findings = Findings()
    check_catalog(findings, "Sound", title)
    failed, text = only(findings)
    assert failed is check and text.startswith("items.parquet, row 1: ")
    assert findings.faults == (check in (tables.MARKUP, tables.CONTROL))


@pytest.mark.parametrize(
    "title",
    ["AT&T; the end", "Say <stop> and <pad>", "R&D", "1 < 2 > 0", "<3", "Tom & Jerry; Duo", "👩‍👧 émigré", "a>b"],
)
def test_unusual_titles_cause_no_finding(title):
    findings = Findings()
    check_catalog(findings, title)
    assert not findings.counts


def test_catalog_ids_are_dense_and_unique():
    findings = Findings()
    check_catalog(findings, "A", "B", item=[0, 2])
    assert only(findings)[1] == "items.parquet, row 1: item must be 1, got 2"
    findings = Findings()
    check_catalog(findings, "A", "B", source_id=["x", "x"])
    assert only(findings)[1] == "items.parquet, row 1: source id 'x' is empty or not unique"


def test_the_core_ignores_items_without_interactions():
    findings = Findings()
    tables.check_item_core(np.array([0, 5, 2]), 3, findings)
    assert only(findings)[1] == "items.parquet, row 2: item 2 must have at least 3 interactions, got 2"


def audit_lists(records, findings, *, n=1, rows=None, **settings):
    content = "".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in records).encode()
    rows, settings = rows or bucket(), Settings(candidates=3, **settings)  # type: ignore[assignment]
    table = lists.read_lists("candidates/x/00001.jsonl", content, settings.candidates, findings)  # type: ignore[attr-defined]
    parts = last_n(rows.offsets, settings.positive(rows.rating), n)  # type: ignore[attr-defined]
    lists.check_lists(table, rows, 10, parts, settings, findings)


@pytest.mark.parametrize(
    "line, changed, checks",
    [
        (1, {"items": [2, 6, 6]}, {lists.ITEMS}),
        (1, {"items": [2, 7, 6]}, {lists.ITEMS}),
        (3, {"items": [3, 8, 10]}, {lists.ITEMS}),
        (1, {"labels": [1, 0, -1]}, {lists.LABELS, lists.POSITIVES}),
        (1, {"labels": [0, 1, 0]}, {lists.POSITIVES, lists.NEGATIVES}),
        (1, {"labels": [1, 1, 1]}, {lists.LABELS, lists.POSITIVES}),
        (1, {"items": [2, 6]}, {lists.SIZES, lists.MISSING}),
        (1, {"labels": [1, 0]}, {lists.SIZES, lists.MISSING}),
        (1, {"user": 12}, {lists.USERS, lists.MISSING}),
        (1, {"position": 1}, {lists.POSITIONS, lists.POSITIVES}),
        (3, {"position": 2}, {lists.POSITIONS, lists.POSITIVES, lists.PARTS}),
        (3, {"items": [1, 3, 9], "labels": [0, 1, 0]}, {lists.NEGATIVES}),
        (1, {"items": [2, 3, 9]}, {lists.NEGATIVES}),  # from the user's future
        (3, {"items": [1, 8, 9]}, {lists.POSITIVES, lists.HISTORY}),
        (1, {"split": "train"}, {lists.LINES, lists.MISSING}),
        (1, {"user": "10"}, {lists.LINES, lists.MISSING}),
        (1, {"items": [2, 6, 10**30]}, {lists.LINES, lists.MISSING}),
        (1, {"labels": [1, 0, float("nan")]}, {lists.LABELS, lists.POSITIVES}),
        (1, {"labels": "100"}, {lists.LINES, lists.MISSING}),
    ],
)
def test_a_fault_in_a_list_is_named(line, changed, checks):
    findings, records = Findings(), [dict(record) for record in LISTS]
    records[line - 1] |= changed
    audit_lists(records, findings)
    assert set(findings.descriptions) == checks
    for check in checks - {lists.MISSING}:
        assert findings.descriptions[check][0].startswith(f"candidates/x/00001.jsonl, line {line}: ")


def test_missing_repeated_and_misplaced_lists_are_named():
    for records, check, place in (
        (LISTS[1:], lists.MISSING, ": user 10 must have a valid list"),
        ([LISTS[0], *LISTS], lists.ONCE, ", line 2: user 10 already has a valid list"),
        ([LISTS[1], LISTS[0], *LISTS[2:]], lists.ORDER, ", line 2: the valid list of user 10 comes after"),
        (["nonsense\n", *LISTS], lists.LINES, ", line 1: got 'nonsense'"),
    ):
        findings = Findings()
        audit_lists(records, findings)
        failed, text = only(findings)
        assert failed is check and place in text


def test_an_empty_file_misses_every_list():
    findings = Findings()
    audit_lists([], findings)
    assert findings.counts == {lists.MISSING: 4}


def test_a_million_violations_are_counted_and_twenty_are_described():
    findings, check, asked = Findings(), Check("some", "it holds", "fix it"), []
    findings.add(check, "first", "bad")
    findings.add_rows(check, "file", np.arange(1_000_000), lambda row: asked.append(row) or "bad")
    assert findings.faults == findings.counts[check] == 1_000_001
    assert len(findings.descriptions[check]) == SHOWN == 20 and len(asked) == 19
    assert "FAULT some (1000001): it holds" in findings.text() and "... and 999981 more" in findings.text()
    findings.add_rows(check, "file", np.arange(5), lambda row: "bad")
    assert findings.counts[check] == 1_000_006 and len(findings.descriptions[check]) == 20


def test_warnings_come_last_and_are_not_faults():
    findings = Findings()
    findings.add(Check("mild", "a", "b", fault=False), "x", "y")
    findings.add(Check("grave", "a", "b"), "x", "y")
    assert findings.faults == 1
    assert [line.split()[:2] for line in findings.text().splitlines() if line[0] != " "] == [
        ["FAULT", "grave"],
        ["warning", "mild"],
    ]


def test_several_positives_with_graded_labels():
    # User 10 liked all but the third (rated 1); with n = 2 the test list has the second and the fourth.
    rows = bucket(rating=[5, 4, 1, 5, 1, 1, 1])
    valid = {"split": "test", "user": 10, "position": 1, "items": [1, 3, 9], "labels": [1, 2, 0]}
    for changed, checks in (
        ({}, set()),
        ({"labels": [2, 1, 0]}, {lists.POSITIVES}),
        ({"labels": [1, 0, 0]}, {lists.POSITIVES, lists.NEGATIVES}),
        ({"items": [1, 8, 9], "labels": [1, 0, 0]}, {lists.POSITIVES}),
        ({"items": [1, 2, 3], "labels": [1, 0, 2]}, {lists.NEGATIVES}),  # item 2 was seen but not liked
    ):
        findings = Findings()
        audit_lists([valid | changed], findings, n=2, rows=rows, positive_rating=4.0, labels="graded")
        assert set(findings.descriptions) == checks


def test_positives_outside_the_cuts_are_found():
    findings, rows = Findings(), bucket()
    table = lists.read_lists("f", "".join(json.dumps(r) + "\n" for r in LISTS).encode(), 3, findings)
    lists.check_times_of_lists(table, rows, [TIME[2], TIME[3]], findings)
    # User 11's test positive is at TIME[6], before the second cut. The other three positives are in place.
    assert only(findings) == (
        lists.TIMES,
        f"f, line 4: user 11's test positive has timestamp {TIME[6]}, but the cuts are [{TIME[2]}, {TIME[3]}]",
    )


def test_users_must_be_in_the_bucket_of_their_hash():
    # The hash of "ada" is 0.0847 of its range: the first of eight buckets, the second of sixteen.
    for number, buckets, faults in ((0, 1, 0), (0, 8, 0), (1, 16, 0), (1, 8, 1), (0, 16, 1)):
        findings = Findings()
        tables.check_user_buckets(["ada"], "users/00000.parquet", number, buckets, findings)
        assert findings.faults == faults


def test_steps_account_for_every_interaction():
    steps = [
        {"step": "read", "users": 5, "items": 9, "interactions": 30, "dropped": {"malformed": 2}},
        {"step": "deduplicate", "users": 5, "items": 9, "interactions": 26, "dropped": {"duplicate": 4}},
    ]
    last = {"users": 5, "items": 9, "interactions": 26}
    for changed, text in (
        ({}, ""),
        ({"dropped": {"duplicate": 3}}, "which leaves 27"),
        ({"users": 6}, "leaves 6 users, but the files hold 5"),
    ):
        findings = Findings()
        totals.check_steps([steps[0], steps[1] | changed], last, findings)
        assert findings.faults == bool(text) and text in findings.text()


def test_a_cut_must_be_an_order_statistic():
    # Times 0 .. 9: the cut at 80% is 8, with 8 interactions before it and 9 up to and including it.
    for below, up_to, faults in ((8, 9, 0), (7, 8, 1), (9, 10, 1), (2, 10, 0)):
        findings = Findings()
        totals.check_cut(8, 8, below, up_to, 10, findings)
        assert findings.faults == faults
