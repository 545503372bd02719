import hashlib
import json
from collections import defaultdict

import numpy as np
import pytest

from r2rank_jax.data.prepare import prepare as module
from r2rank_jax.data.prepare.prepare import prepare
from r2rank_jax.data.prepared.dataset import load
from r2rank_jax.data.prepared.folder import candidate_file
from r2rank_jax.data.prepared.negatives import sample_outside
from r2rank_jax.data.prepared.settings import DEFAULT_PROTOCOLS
from r2rank_jax.data.prepared.splits import HELD_OUT, NONE, global_time, last_n
from r2rank_jax.errors import DataError
from tests.support.tiny_source import tiny_rows, write_raw


def sequences():
    """Oracle: user -> [(time, place in source, item)] oldest first, by sorting the rows."""
    found = defaultdict(list)
    for order, (user, item, _, time) in enumerate(tiny_rows()):
        found[user - 1].append((time, order, item - 1))
    return {user: sorted(rows) for user, rows in found.items()}


def records(folder, protocol):
    return [json.loads(line) for line in (folder / candidate_file(protocol)).read_text().splitlines()]


@pytest.mark.parametrize("protocol", DEFAULT_PROTOCOLS)
def test_lists_have_one_positive_and_negatives_outside_the_whole_history(prepared, protocol):
    rows = sequences()
    found = records(prepared, protocol)
    assert {record["split"] for record in found} == {"valid", "test"}
    for record in found:
        items, history = record["items"], [item for *_, item in rows[record["user"]]]
        positive = history[record["position"]]
        assert len(items) == len(set(items)) == 20
        assert items == sorted(items), "order may tell nothing"
        assert set(items) & set(history) == {positive}
        assert record["labels"] == [int(item == positive) for item in items]


def test_leave_one_out_takes_the_last_two(prepared):
    rows = sequences()
    for record in records(prepared, "leave_one_out"):
        back = {"test": 1, "valid": 2}[record["split"]]
        assert record["position"] == len(rows[record["user"]]) - back


def test_global_time_never_trains_on_or_after_the_first_cut(prepared):
    cuts = json.loads((prepared / "manifest.json").read_text())["protocols"]["global_time"]["cuts"]
    rows, data = sequences(), load(prepared, "global_time")
    for user, sequence in rows.items():
        times = [time for time, *_ in sequence]
        assert data.train_end[user] == sum(time < cuts[0] for time in times)
    wanted = set()
    for name, low, high in (("valid", cuts[0], cuts[1]), ("test", cuts[1], np.inf)):
        for user, sequence in rows.items():
            inside = [place for place, (time, *_) in enumerate(sequence) if low <= time < high]
            if inside and inside[0] > 0:
                wanted.add((name, user, inside[0]))
    assert {(r["split"], r["user"], r["position"]) for r in records(prepared, "global_time")} == wanted
    assert len(wanted) > 5, "the fixture must exercise this protocol"


def test_ties_keep_source_order_and_are_counted(prepared):
    rows, data = sequences(), load(prepared, "leave_one_out")
    for user, sequence in rows.items():
        start = data.offsets[user]
        assert data.item[start : start + len(sequence)].tolist() == [item for *_, item in sequence]
    tied = sum(sequence[-1][0] == sequence[-2][0] for sequence in rows.values())
    part = json.loads((prepared / "manifest.json").read_text())["protocols"]["leave_one_out"]
    assert part["positives_tied_in_time_with_the_interaction_before"]["test"] == tied > 0


def test_a_rerun_gives_the_same_lists_and_another_seed_gives_others(tiny_raw, tmp_path, prepared, capfd):
    for name, seed in (("again", 0), ("other", 1)):
        prepare(tiny_raw, tmp_path / name, seed=seed)
    for protocol in DEFAULT_PROTOCOLS:
        file = candidate_file(protocol)
        digest = {k: hashlib.sha256((k / file).read_bytes()).hexdigest() for k in (prepared, tmp_path / "again")}
        assert len(set(digest.values())) == 1
        assert (tmp_path / "other" / file).read_bytes() != (prepared / file).read_bytes()
    capfd.readouterr()
    prepare(tiny_raw, tmp_path / "again")
    assert "same content" in capfd.readouterr().out


def test_draws_are_seeded_by_protocol_part_and_user(prepared, dataset):
    for record in records(prepared, "leave_one_out"):
        user = record["user"]
        history = dataset.item[dataset.offsets[user] : dataset.offsets[user + 1]]
        rng = np.random.default_rng([0, 0, HELD_OUT.index(record["split"]), user])
        drawn = sample_outside(rng, history, 60, 19).tolist()
        assert record["items"] == sorted([*drawn, int(history[record["position"]])])


def test_a_users_draw_does_not_depend_on_other_users(tmp_path, prepared):
    rows = [row for row in tiny_rows() if row[0] <= 20]
    prepare(write_raw(tmp_path / "raw", rows), tmp_path / "half")
    mine = [r for r in records(prepared, "leave_one_out") if r["user"] < 20]
    assert records(tmp_path / "half", "leave_one_out") == mine


def test_a_folder_with_other_content_is_left_unchanged(tiny_raw, tmp_path):
    out = tmp_path / "out"
    prepare(tiny_raw, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match=r"differs in .*seed"):
        prepare(tiny_raw, out, seed=3)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    (out / candidate_file("global_time")).write_text("")
    with pytest.raises(DataError, match="differs in candidates/global_time"):
        prepare(tiny_raw, out)


def test_a_failure_while_writing_leaves_no_files(tiny_raw, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(module.json, "dumps", fail)
    with pytest.raises(OSError, match="disk full"):
        prepare(tiny_raw, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_users_without_history_are_counted_and_excluded(tmp_path):
    lonely = [(41, 5, 3, 880_000_000), (42, 6, 3, 880_000_000), (42, 7, 3, 880_000_001)]
    prepare(write_raw(tmp_path / "raw", tiny_rows() + lonely), tmp_path / "out")
    part = json.loads((tmp_path / "out/manifest.json").read_text())["protocols"]["leave_one_out"]
    assert part["left_out_without_history"] == {"valid": 1, "test": 1}
    users = defaultdict(set)
    for record in records(tmp_path / "out", "leave_one_out"):
        users[record["split"]].add(record["user"])
    assert 40 not in users["test"] | users["valid"]
    assert 41 in users["test"] and 41 not in users["valid"]


def test_too_many_candidates_and_too_few_are_refused(tiny_raw, tmp_path):
    with pytest.raises(DataError, match=r"outside the user's interactions, got .* of 60; lower"):
        prepare(tiny_raw, tmp_path / "out", candidates=60)
    with pytest.raises(DataError, match="at least 2"):
        prepare(tiny_raw, tmp_path / "out", candidates=1)
    assert not (tmp_path / "out").exists()


def test_leave_one_out_by_hand():
    parts = last_n(np.cumsum([0, 5, 3, 2, 1]), np.ones(11, bool), 1)
    assert parts.test.tolist() == [4, 2, 1, NONE]
    assert parts.valid.tolist() == [3, 1, NONE, NONE]
    assert parts.train_end.tolist() == [3, 1, 1, 1]


def test_global_time_by_hand():
    # Ten interactions at times 0..9: cuts at 8 and 9. User 0 has all but 8; user 1 starts at 8.
    times = np.array([0, 1, 2, 3, 4, 5, 6, 7, 9, 8])
    parts = global_time(np.array([0, 9, 10]), times, np.ones(10, bool), (8, 9))
    assert parts.train_end.tolist() == [8, 0]
    assert parts.valid.tolist() == [NONE, NONE] and parts.without_history == {"valid": 1, "test": 0}
    assert parts.test.tolist() == [8, NONE]


def test_sampling_outside_is_uniform_and_exact():
    history = np.array([7, 0, 3])
    drawn = [sample_outside(np.random.default_rng(seed), history, 10, 2) for seed in range(3000)]
    assert all(len(set(pair.tolist())) == 2 for pair in drawn)
    counts = np.bincount(np.concatenate(drawn), minlength=10)
    assert counts[history].sum() == 0
    outside = np.setdiff1d(np.arange(10), history)
    assert np.abs(counts[outside] / 3000 - 2 / 7).max() < 0.04  # five standard deviations
    everything = sample_outside(np.random.default_rng(0), history, 10, 7)
    assert sorted(everything.tolist()) == outside.tolist()
