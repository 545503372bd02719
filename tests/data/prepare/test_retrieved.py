"""A retriever's run file as the source of negatives."""

import json

import numpy as np
import pytest

from r2rank_jax.data.prepare.prepare import prepare
from r2rank_jax.data.prepare.retrieved import read_run
from r2rank_jax.data.prepared.dataset import load
from r2rank_jax.errors import DataError
from tests.support.tiny_source import ITEMS, USERS, write_raw

N = 12


def rankings():
    """User -> (item, score) best first: all items for most, few for some, none for user 5; some scores tie."""
    rng, found = np.random.default_rng(3), {}
    for user in range(1, USERS + 1):
        depth = 0 if user == 5 else 4 if user % 10 == 0 else ITEMS
        items = rng.permutation(ITEMS)[:depth] + 1
        found[user] = [(int(item), 9.0 - place // 2) for place, item in enumerate(items)]
    return found


def write_trec(path):
    lines = [
        f"{user} Q0 {item} {rank} {score} bm25"
        for user, ranked in rankings().items()
        for rank, (item, score) in enumerate(ranked, start=1)
    ]
    order = np.random.default_rng(0).permutation(len(lines))  # rows may come in any order
    unknown = ["77 Q0 3 1 5.0 bm25", "1 Q0 nosuch 1 99.0 bm25", "1 Q0 nosuch 2 98.0 bm25"]
    path.write_text("\n".join([*unknown, *(lines[i] for i in order)]) + "\n")


def write_jsonl(path):
    records = [{"user": str(user), "items": [str(item) for item, _ in ranked]} for user, ranked in rankings().items()]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize("form", [write_trec, write_jsonl])
@pytest.mark.parametrize("bucket_rows", [10_000, 100])
def test_negatives_are_the_best_items_outside_the_history(tmp_path, form, bucket_rows):
    form(tmp_path / "run")
    settings = {"negatives": "run", "run": str(tmp_path / "run"), "candidates": N, "bucket_rows": bucket_rows}
    prepare(write_raw(tmp_path / "raw"), tmp_path / "out", **settings)
    data = load(tmp_path / "out", "leave_one_out")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    source_ids = _source_ids(tmp_path / "out", manifest["buckets"])
    filled = positives_found = 0
    for name in ("valid", "test"):
        lists = data.candidate_lists(name)
        assert len(lists) == USERS
        for user, items, labels in zip(lists.user.tolist(), lists.items, lists.labels):
            history = data.item[data.offsets[user] : data.offsets[user + 1]].tolist()
            ranked = [item - 1 for item, _ in rankings()[source_ids[user]]]
            best = [item for item in ranked if item not in history][: N - 1]
            negatives = set(items[labels == 0].tolist())
            assert negatives >= set(best) and len(negatives) == N - 1 and not negatives & set(history)
            filled += N - 1 - len(best)
            positives_found += int(items[labels == 1][0]) in ranked
    assert 100 > filled > 2 * (N - 1)
    counts = manifest["protocols"]["leave_one_out"]["run"]
    assert counts["negatives_filled_uniformly"] == filled
    assert (counts["positives"], counts["positives_found"]) == (2 * USERS, positives_found)
    unknown = (1, 2) if form is write_trec else (0, 0)
    assert (counts["rows_of_unknown_users"], counts["rows_of_unknown_items"]) == unknown
    assert manifest["settings"]["run"] == "run" and len(manifest["run_sha256"]) == 64


def _source_ids(folder, buckets):
    import polars as pl

    from r2rank_jax.data.prepared.folder import users_file

    return [int(u) for b in range(buckets) for u in pl.read_parquet(folder / users_file(b))["source_id"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 Q0 3 1 5.0 tag\n1 Q0 3 1 5.0\n", "run, line 2: expected `user Q0 item rank score tag`, got 5 columns"),
        ("1 Q0 3 one 5.0 tag\n", "run, line 1: expected `user Q0"),
        ("1 Q0 3 1 nan tag\n", "run, line 1: expected a finite score, got nan"),
        ('{"user": "1", "items": "3"}\n', "run, line 1: expected {.user.: id, .items.:"),
        ('{"user": "1"\n', "run, line 1: expected {"),
        ("", "run: expected a retriever's ranked items, got none"),
        (None, "--run must be a retriever's run file, got .*, which does not exist"),
    ],
)
def test_malformed_run_files_are_refused_and_nothing_is_written(tiny_raw, tmp_path, text, message):
    if text is not None:
        (tmp_path / "run").write_text(text)
    with pytest.raises(DataError, match=message):
        prepare(tiny_raw, tmp_path / "out", negatives="run", run=str(tmp_path / "run"))
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.preparing").exists()


def test_ids_of_a_run_meet_those_of_the_source_in_all_forms_of_a_number(tmp_path):
    for text in ('{"user": 1, "items": [2.0, "3.0"]}\n', "1.0 Q0 2.0 1 0.9 tag\n1.00 Q0 3 2 0.8 tag\n"):
        (tmp_path / "run").write_text(text)
        assert [row[:2] for frame in read_run(tmp_path / "run") for row in frame.rows()] == [("1", "2"), ("1", "3")]
    for text in ('{"user": null, "items": []}\n', '{"user": 1, "items": [null]}\n', '{"user": 1, "items": [[2]]}\n'):
        (tmp_path / "run").write_text(text)
        with pytest.raises(DataError, match="line 1: expected"):
            list(read_run(tmp_path / "run"))
