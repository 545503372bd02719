import json
import shutil

import numpy as np
import polars as pl
import pytest

from r2rank_jax.data.prepared.dataset import load, load_for_prompts
from r2rank_jax.data.prepared.folder import candidate_file, interactions_file
from r2rank_jax.data.prepared.settings import DEFAULT_PROTOCOLS
from r2rank_jax.errors import DataError


@pytest.mark.parametrize("protocol", DEFAULT_PROTOCOLS)
def test_histories_exclude_the_positive_and_everything_later(prepared, protocol):
    data = load(prepared, protocol)
    positions = [(user, place) for user, place in data.train_lists(1).tolist()]
    for name in ("valid", "test"):
        lists = data.candidate_lists(name)
        positions += list(zip(lists.user.tolist(), lists.position.tolist()))
    for user, position in positions:
        start = int(data.offsets[user])
        rows = data.history(user, position)
        assert (rows.start, rows.stop) == (start, start + position)
        assert data.item[start + position] not in data.item[rows]
        assert data.timestamp[rows].max() <= data.timestamp[start + position]
        last = data.history(user, position, 3)
        assert data.item[last].tolist() == data.item[rows].tolist()[-3:]


@pytest.mark.parametrize("protocol", DEFAULT_PROTOCOLS)
def test_held_out_positions_are_not_training_positions(prepared, protocol):
    data = load(prepared, protocol)
    training = set(map(tuple, data.train_lists(1).tolist()))
    assert training
    for name in ("valid", "test"):
        lists = data.candidate_lists(name)
        assert not training & set(zip(lists.user.tolist(), lists.position.tolist()))
        assert (lists.position >= data.train_end[lists.user]).all()
        rows = data.offsets[lists.user] + lists.position
        assert (lists.items[lists.labels == 1] == data.item[rows]).all()


def test_train_lists_are_all_positions_from_min_history_on(dataset):
    expected = [(u, p) for u in range(dataset.users) for p in range(4, dataset.train_end[u])]
    assert list(map(tuple, dataset.train_lists(4).tolist())) == expected
    with pytest.raises(DataError, match="at least 1"):
        dataset.train_lists(0)
    with pytest.raises(DataError, match=r"data\.min_history=500"):
        dataset.train_lists(500)


def test_training_negatives_exclude_only_training_items(dataset):
    pairs = dataset.train_lists(1)
    later_seen = 0
    for user, position in pairs.tolist():
        train_items = dataset.item[dataset.train_rows(user)].tolist()
        items, labels = dataset.training_list(user, position, key=0, n=20)
        assert items.tolist() == sorted(set(items.tolist())) and len(items) == 20
        assert items[labels == 1].tolist() == [train_items[position]]
        assert not set(items[labels == 0].tolist()) & set(train_items)
        held_out = dataset.item[dataset.offsets[user] + len(train_items) : dataset.offsets[user + 1]]
        later_seen += len(set(items.tolist()) & set(held_out.tolist()))
    # If the negatives excluded held-out positives, their absence would reveal them.
    assert later_seen > 0


@pytest.mark.parametrize("positives", [1, 3])
def test_positives_are_the_next_training_interactions_and_never_held_out(dataset, positives):
    pairs = dataset.train_lists(3)
    lists = dataset.training_lists(pairs, key=0, n=20, positives=positives)
    counts = set()
    for row, (user, position) in enumerate(pairs.tolist()):
        train_items = dataset.item[dataset.train_rows(user)].tolist()
        relevant = lists.items[row][lists.labels[row] == 1].tolist()
        assert relevant == sorted(train_items[position : position + positives])
        assert len(set(lists.items[row].tolist())) == 20
        assert not set(lists.items[row][lists.labels[row] == 0].tolist()) & set(train_items)
        counts.add(len(relevant))
    assert counts == set(range(1, positives + 1)), "the last positions have fewer"


def test_training_lists_depend_only_on_key_user_and_position(dataset):
    pairs = dataset.train_lists(3)[:40]
    lists = dataset.training_lists(pairs, key=5, n=20)
    reversed_lists = dataset.training_lists(pairs[::-1], key=5, n=20)
    assert (lists.items == reversed_lists.items[::-1]).all() and (lists.labels == reversed_lists.labels[::-1]).all()
    other_key = dataset.training_lists(pairs, key=6, n=20)
    assert (lists.items != other_key.items).any(axis=1).mean() > 0.9


@pytest.mark.parametrize("positives", [0, 20, 25])
def test_a_training_list_needs_positives_and_negatives(dataset, positives):
    with pytest.raises(DataError, match=rf"got {positives}; take 1 \.\. 19"):
        dataset.training_list(0, 3, key=0, n=20, positives=positives)


@pytest.mark.parametrize("position", [0, 10_000])
def test_a_training_list_needs_a_training_position_with_history(dataset, position):
    with pytest.raises(DataError, match="1 <= position <"):
        dataset.training_list(0, position, key=0, n=20)


def test_train_counts_ignore_held_out_interactions(dataset):
    counts = np.zeros(len(dataset.items), int)
    for user in range(dataset.users):
        start = dataset.offsets[user]
        np.add.at(counts, dataset.item[start : start + dataset.train_end[user]], 1)
    assert dataset.train_counts.tolist() == counts.tolist()
    assert counts.sum() == len(dataset.item) - 2 * dataset.users


def test_edited_files_are_refused_with_both_hashes(prepared, tmp_path, dataset):
    folder = tmp_path / "copy"
    shutil.copytree(prepared, folder)
    file = folder / candidate_file("leave_one_out")
    file.write_text(file.read_text().replace('"user":3,', '"user":4,', 1))
    with pytest.raises(DataError, match=rf"candidate file whose hash does not match.*{dataset.candidate_hash}, got"):
        load(folder, "leave_one_out")
    load(folder, "global_time")


def test_edited_interactions_are_refused(prepared, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(prepared, folder)
    frame = pl.read_parquet(folder / interactions_file(0))
    frame.with_columns(rating=pl.lit(5.0, pl.Float32)).write_parquet(folder / interactions_file(0))
    with pytest.raises(DataError, match="data file whose hash does not match"):
        load(folder, "leave_one_out")


@pytest.mark.parametrize("file", ["items.parquet", "interactions/00000.parquet"])
@pytest.mark.parametrize("damage", ["gone", "torn"])
def test_unreadable_tables_are_named_with_the_remedy(prepared, tmp_path, file, damage):
    path = tmp_path / "copy" / file
    shutil.copytree(prepared, tmp_path / "copy")
    content = path.read_bytes()
    path.unlink()
    if damage == "torn":
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"{file} must be a table that .* cannot be read: .*; restore it"):
        load(tmp_path / "copy", "leave_one_out")


def test_errors_for_wrong_folder_and_split(prepared, tmp_path):
    with pytest.raises(DataError, match=r"no manifest\.json; run `r2rank data prepare"):
        load(tmp_path, "leave_one_out")
    with pytest.raises(DataError, match=r"got 'random'; set data\.split"):
        load(prepared, "random")
    with pytest.raises(DataError, match=r"prepared for, leave_one_out, global_time, got 'last_n'; set data\.split"):
        load(prepared, "last_n")


def test_a_folder_of_the_first_format_is_refused_with_the_remedy(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "old")
    path = tmp_path / "old/manifest.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(
        DataError, match=r"format must be 2, got 1, .*; remove the folder and run `r2rank data prepare`"
    ):
        load(tmp_path / "old", "leave_one_out")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("users", "40"), ("items", -1), ("buckets", 0), ("buckets", True), ("time_unit", "weeks"), ("domain", None),
        ("settings", []), ("protocols", {"leave_one_out": 3}), ("interactions_sha256", None),
    ],
)  # fmt: skip
def test_a_manifest_with_another_type_is_refused_by_name(prepared, tmp_path, name, value):
    folder = shutil.copytree(prepared, tmp_path / "data")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {name: value}))
    with pytest.raises(DataError, match=f"json: {name} holds .*, which `r2rank data prepare` does not write"):
        load(folder, "leave_one_out")
    del manifest[name]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    if name != "domain":  # only the data card needs it
        with pytest.raises(DataError, match=f"it lacks {name}; restore the file"):
            load(folder, "leave_one_out")


def test_prompts_need_the_unit_of_the_times(prepared, tmp_path):
    assert load_for_prompts(prepared, "leave_one_out").time_unit == "s"
    folder = shutil.copytree(prepared, tmp_path / "data")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"time_unit": "ms"}))
    with pytest.raises(DataError, match=r"time_unit must be the unit of the times, whose latest is [0-9]+, got 'ms'"):
        load_for_prompts(folder, "leave_one_out")
