"""Compare the steps of the preparation with plain Python over the rows, in one bucket and in many."""

import json
from collections import Counter, defaultdict

import numpy as np
import polars as pl
import pytest

from r2rank_jax.cli import main
from r2rank_jax.data.prepare.partition import by_number, user_hash
from r2rank_jax.data.prepare.prepare import prepare
from r2rank_jax.data.prepare.times import order_statistic
from r2rank_jax.data.prepared.dataset import load
from r2rank_jax.data.prepared.folder import candidate_file, interactions_file, users_file
from r2rank_jax.data.prepared.settings import PROTOCOLS
from r2rank_jax.errors import DataError
from tests.support.tiny_source import INTER_HEADER, ITEMS, tiny_rows, write_raw

MANY = {"bucket_rows": 60}  # 16 buckets of the tiny source


def read(folder):
    """Interactions with the source's ids, and the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    parts = []
    for bucket in range(manifest["buckets"]):
        users = pl.read_parquet(folder / users_file(bucket)).rename({"source_id": "user_id"})
        parts.append(pl.read_parquet(folder / interactions_file(bucket)).join(users, on="user", maintain_order="left"))
    items = pl.read_parquet(folder / "items.parquet").select("item", item_id="source_id")
    return pl.concat(parts).join(items, on="item", how="left", maintain_order="left"), manifest


def lines(folder, protocol):
    files = sorted((folder / candidate_file(protocol)).parent.iterdir())
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def messy_rows():
    """The tiny source with repeated pairs: later, earlier, and at the same time as the first."""
    rows, rng = tiny_rows(), np.random.default_rng(1)
    for place in rng.permutation(len(rows))[:90].tolist():
        user, item, rating, time = rows[place]
        rows.insert(int(rng.integers(0, len(rows))), (user, item, 6 - rating, time + int(rng.integers(-1, 2)) * 40))
    return rows


def earliest(rows):
    """Oracle: (user, item) -> (time, place in the source, rating) of its earliest row."""
    found = {}
    for order, (user, item, rating, time) in enumerate(rows):
        found[user, item] = min(found.get((user, item), (time, order, rating)), (time, order, rating))
    return found


@pytest.mark.parametrize("settings", [{}, MANY])
def test_the_earliest_of_repeated_interactions_is_kept_and_the_others_counted(tmp_path, settings):
    rows = messy_rows()
    prepare(write_raw(tmp_path / "raw", rows), tmp_path / "out", **settings)
    frame, manifest = read(tmp_path / "out")
    wanted = earliest(rows)
    assert len(wanted) == len(rows) - 90
    found = {
        (int(row["user_id"]), int(row["item_id"])): (row["timestamp"], row["order"], row["rating"])
        for row in frame.iter_rows(named=True)
    }
    assert found == wanted and frame.height == len(wanted)
    assert [step["dropped"] for step in manifest["steps"]][:2] == [{"malformed": 0}, {"duplicate": 90}]
    assert [step["interactions"] for step in manifest["steps"]] == [len(rows), len(wanted), len(wanted)]


def k_core(rows, k):
    """Oracle: remove one offending user or item at a time."""
    left = set(rows)
    while True:
        counts = Counter(("user", user) for user, _ in left) + Counter(("item", item) for _, item in left)
        rare = [key for key, count in counts.items() if count < k]
        if not rare:
            return left
        kind, name = rare[0]
        left = {(user, item) for user, item in left if (user if kind == "user" else item) != name}


@pytest.mark.parametrize(("k", "settings"), [(8, {}), (8, MANY), (9, MANY)])
def test_the_k_core_is_the_largest_subset_in_which_all_have_k(tmp_path, k, settings):
    rows = tiny_rows()
    wanted = k_core([row[:2] for row in rows], k)
    assert 0 < len(wanted) < len(rows), "the fixture must exercise this"
    prepare(write_raw(tmp_path / "raw", rows), tmp_path / "out", k_core=k, candidates=5, **settings)
    frame, manifest = read(tmp_path / "out")
    pairs = list(zip(frame["user_id"].cast(int).to_list(), frame["item_id"].cast(int).to_list()))
    assert set(pairs) == wanted and len(pairs) == len(wanted)
    users, items = {user for user, _ in wanted}, {item for _, item in wanted}
    step = manifest["steps"][2]
    assert (step["users"], step["items"], step["interactions"]) == (len(users), len(items), len(wanted))
    assert step["dropped"] == {"rare user or item": len(rows) - len(wanted)}
    assert (manifest["users"], manifest["items"]) == (len(users), len(items)), "the catalog is what is left"
    assert frame["user"].unique().sort().to_list() == list(range(len(users))), "dense ids have no gaps"
    assert pl.read_parquet(tmp_path / "out/items.parquet")["source_id"].to_list() == [str(i) for i in sorted(items)]


def test_a_core_without_users_is_refused(tiny_raw, tmp_path):
    with pytest.raises(DataError, match=r"the 30-core must keep some users, got none: .*lower --k-core"):
        prepare(tiny_raw, tmp_path / "out", k_core=30)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_many_buckets_hold_what_one_holds(tiny_raw, tmp_path, prepared):
    prepare(tiny_raw, tmp_path / "out", protocols=PROTOCOLS, **MANY)
    frame, manifest = read(tmp_path / "out")
    whole, _ = read(prepared)
    assert manifest["buckets"] == 16 and len(tiny_rows()) / 16 <= 60
    same = ["user_id", "item_id", "item", "rating", "timestamp", "order"]
    assert frame.sort("order").select(same).equals(whole.sort("order").select(same))
    assert frame.equals(frame.sort("user", "timestamp", "order")), "dense users run through the buckets"
    buckets = {user: user_hash(user) >> 59 for user in frame["user_id"]}
    assert [buckets[user] for user in frame["user_id"]] == sorted(buckets[user] for user in frame["user_id"])
    for protocol in ("leave_one_out", "global_time"):
        data, one = load(tmp_path / "out", protocol), load(prepared, protocol)
        ids = frame.unique("user").sort("user")["user_id"].cast(int).to_list()
        for name in ("valid", "test"):
            found = {(ids[u], p) for u, p in zip(data.held_out[name].user, data.held_out[name].position)}
            assert found == {(u + 1, p) for u, p in zip(one.held_out[name].user, one.held_out[name].position)}
            assert (np.diff(data.held_out[name].user) > 0).all()
        assert data.train_counts.tolist() == one.train_counts.tolist()
    assert manifest["protocols"]["global_time"]["cuts"] == load_manifest(prepared)["protocols"]["global_time"]["cuts"]


def load_manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("negatives", ["uniform", "popularity"])
def test_lists_hold_the_positives_and_no_other_item_of_the_history(tmp_path_factory, protocol, negatives):
    root = tmp_path_factory.mktemp("lists")
    settings = {"positive_rating": 4, "labels": "graded", "last_n": 2, "cold_fraction": 0.3, "negatives": negatives}
    prepare(write_raw(root / "raw"), root / "out", protocols=[protocol], candidates=15, **settings, **MANY)
    data, found = load(root / "out", protocol), lines(root / "out", protocol)
    assert len(found) > 8 and {record["split"] for record in found} == {"valid", "test"}
    for record in found:
        rows = slice(data.offsets[record["user"]], data.offsets[record["user"] + 1])
        items, ratings = data.item[rows].tolist(), data.rating[rows].tolist()
        liked = [place for place in range(record["position"], len(items)) if ratings[place] >= 4]
        positives = liked[: 2 if protocol == "last_n" else 1]
        assert positives[0] == record["position"] > 0
        wanted = {items[place]: ratings[place] - 3 for place in positives}
        assert record["items"] == sorted(set(record["items"])) and len(record["items"]) == 15
        assert {i: label for i, label in zip(record["items"], record["labels"]) if label} == wanted
        assert set(record["items"]) & set(items) == set(wanted)
        if protocol == "last_n" and record["split"] == "test":
            assert liked == positives, "the last ones"
        if protocol == "cold_users":
            assert data.train_end[record["user"]] == 0


def test_training_lists_take_only_positives_and_histories_show_all(tiny_raw, tmp_path):
    prepare(tiny_raw, tmp_path / "out", positive_rating=4, labels="graded")
    data = load(tmp_path / "out", "leave_one_out")
    pairs = data.train_lists(3)
    wanted = [
        (user, place)
        for user in range(data.users)
        for place in range(3, data.train_end[user])
        if data.rating[data.offsets[user] + place] >= 4
    ]
    assert list(map(tuple, pairs.tolist())) == wanted
    for user, place in pairs.tolist():
        items, labels = data.training_list(user, place, key=0, n=20, positives=2)
        later = range(data.offsets[user] + place, data.offsets[user] + data.train_end[user])
        liked = [row for row in later if data.rating[row] >= 4][:2]
        assert dict(zip(items[labels > 0].tolist(), labels[labels > 0].tolist())) == {
            data.item[row]: data.rating[row] - 3 for row in liked
        }
        assert data.history(user, place).stop - data.history(user, place).start == place
    user, place = next((u, p) for u in range(data.users) for p in range(1, 4) if data.rating[data.offsets[u] + p] < 4)
    with pytest.raises(DataError, match=rf"rated 4 or more, got user {user}, position {place}"):
        data.training_list(user, place, key=0, n=20)


def test_popular_items_are_drawn_as_often_as_they_are_popular(tmp_path):
    rows = [(user, 1 + (user * step) % 7, 3, 100 * step) for user in range(1, 400) for step in (1, 2, 3)]
    prepare(write_raw(tmp_path / "raw", rows), tmp_path / "out", negatives="popularity", candidates=4, bucket_rows=400)
    data = load(tmp_path / "out", "leave_one_out")
    weight = 1.0 + data.train_counts
    assert weight[:7].min() > 20 and (weight[7:] == 1).all()
    drawn, expected = np.zeros(ITEMS), np.zeros(ITEMS)
    lists = data.candidate_lists("test")
    for user, items, labels in zip(lists.user, lists.items, lists.labels):
        drawn[items[labels == 0]] += 1
        outside = weight.copy()
        outside[data.item[data.offsets[user] : data.offsets[user + 1]]] = 0
        expected += outside / outside.sum()  # of the first of three draws
    assert drawn.sum() == 3 * len(lists) > 900 and drawn[:7].sum() > 0.7 * drawn.sum()
    assert np.corrcoef(drawn, expected)[0, 1] > 0.97


def test_a_source_without_ratings_is_prepared_and_a_rating_threshold_refused(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    header = "user_id:token\titem_id:token\ttimestamp:float\n"
    text = "".join(f"u{user}\ti{(user + step) % 30}\t{step}\n" for user in range(40) for step in range(5))
    (raw / "clicks.inter").write_text(header + text)
    prepare(raw, tmp_path / "out", candidates=10)
    data = load(tmp_path / "out", "leave_one_out")
    assert np.isnan(data.rating).all() and len(data.item) == 200
    assert data.items.title[0] == "" and load_manifest(tmp_path / "out")["items_without_title"] == 30
    assert len(data.candidate_lists("test")) == 40 and len(data.train_lists(1)) == 80
    frame, _ = read(tmp_path / "out")
    assert frame["rating"].null_count() == 200
    with pytest.raises(DataError, match=r"must leave some positives, got 4 where .* the source has no ratings"):
        prepare(raw, tmp_path / "rated", positive_rating=4)


def test_items_missing_from_the_item_table_are_kept_without_a_title(tmp_path):
    rows = [*tiny_rows(), (1, 61, 5, 990_000_000)]
    prepare(write_raw(tmp_path / "raw", rows), tmp_path / "out")
    items = load(tmp_path / "out", "leave_one_out").items
    assert items.source_id[60] == "61" and items.title[60] == "" and len(items) == 61


def test_ids_are_ordered_as_numbers_only_if_all_are_numbers():
    assert by_number(pl.Series(["10", "9", "007", "7"])).to_list() == ["007", "7", "9", "10"]
    assert by_number(pl.Series(["10", "9", "a"])).to_list() == ["10", "9", "a"]


def test_malformed_rows_are_set_aside_and_counted(tmp_path):
    raw = write_raw(tmp_path / "raw")
    with (raw / "tiny.inter").open("a") as file:
        file.write("1\t5\tgood\t1\n2\t3\n")
    with pytest.raises(DataError, match="rating must be a number, got 'good'"):
        prepare(raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    flags = ["--source", str(raw), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(["data", "prepare", *flags, "--on-error=quarantine"]) == 0
    aside = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    last = len(tiny_rows()) + 1
    assert [(row["file"], row["line"], row["text"]) for row in aside] == [
        ("tiny.inter", last + 1, "1\t5\tgood\t1"),
        ("tiny.inter", last + 2, "2\t3"),
    ]
    frame, manifest = read(tmp_path / "out")
    assert frame.height == len(tiny_rows()) and manifest["quarantined"] == {"tiny.inter": 2}
    assert manifest["steps"][0]["dropped"] == {"malformed": 2}


@pytest.mark.parametrize("seed", range(5))
def test_the_time_cuts_are_order_statistics(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    values = rng.choice([3, 10**6, 10**12]) + rng.integers(0, rng.choice([1, 5, 10**5, 10**10]), 500)

    def count(start, width, bins=1 << 16):
        place = (values - start) // width
        return np.bincount(place[(place >= 0) & (place < bins)], minlength=bins)

    for rank in (0, 1, 400, 450, 499):
        found = order_statistic(count, int(values.min()), int(values.max()), rank)
        assert found == np.sort(values)[rank]


def test_a_source_without_interactions_is_refused(tmp_path):
    raw = write_raw(tmp_path / "raw")
    (raw / "tiny.inter").write_text(INTER_HEADER)
    with pytest.raises(DataError, match=r"tiny\.inter: expected interactions, got none"):
        prepare(raw, tmp_path / "out")


def test_users_are_spread_evenly_over_the_buckets():
    found = defaultdict(int)
    for user in range(8000):
        found[user_hash(f"u{user}") >> 60] += 1
    assert len(found) == 8 and max(abs(count - 1000) for count in found.values()) < 5 * np.sqrt(1000)


def test_the_command_maps_columns_of_your_own_log(tmp_path, capfd):
    header, rows = (
        "sku,customer,stars,when\n",
        [f"s{(u * k) % 17},c{u},{k},{k}\n" for u in range(1, 30) for k in (1, 2, 3, 5)],
    )
    (tmp_path / "log.csv").write_text(header + "".join(rows))
    names = {"user": "customer", "item": "sku", "rating": "stars", "timestamp": "when"}
    flags = [f"--column={ours}={theirs}" for ours, theirs in names.items()]
    out = tmp_path / "out"
    paths = ["--source", str(tmp_path / "log.csv"), "--out", str(out)]
    assert main(["data", "prepare", *paths, "--kind=plain", *flags, "--candidates=5"]) == 0
    frame, manifest = read(out)
    assert manifest["settings"]["columns"] == names and manifest["settings"]["kind"] == "plain"
    found = {(row["user_id"], row["item_id"], row["rating"], row["timestamp"]) for row in frame.iter_rows(named=True)}
    wanted = {}
    for row in rows:
        item, user, rating, time = row.strip().split(",")
        wanted.setdefault((user, item), (user, item, float(rating), int(time)))
    assert found == set(wanted.values())
    capfd.readouterr()
    assert main(["data", "prepare", *paths, "--column", "user"]) == 2
    assert "--column must be KEY=NAME, as user=reviewer_id, got 'user'" in capfd.readouterr().err
