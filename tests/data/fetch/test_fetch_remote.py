"""`r2rank data fetch` of files on publishers' servers, replaced by a local server."""

import gzip
import hashlib
import io
import json
import zipfile

import pytest

from r2rank_jax.cli import main
from r2rank_jax.data.fetch import addresses
from r2rank_jax.data.fetch.addresses import CATEGORIES, names, remote
from r2rank_jax.data.fetch.fetch import fetch
from r2rank_jax.data.sources.source import open_source
from r2rank_jax.errors import DataError
from r2rank_jax.files import downloads


def archive(members):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return packed.getvalue()


SMALL = archive(
    {
        "ml-latest-small/ratings.csv": "userId,movieId,rating,timestamp\n1,2,4.0,964982703\n",
        "ml-latest-small/movies.csv": "movieId,title,genres\n2,Jumanji (1995),Adventure\n",
        "ml-latest-small/README.txt": "terms",
    }
)
MD5 = hashlib.md5(SMALL).hexdigest()


@pytest.fixture
def grouplens(server, monkeypatch):
    monkeypatch.setattr(addresses, "GROUPLENS", f"{server.url}/movielens")
    server.files = {
        "/movielens/ml-latest-small.zip": SMALL,
        "/movielens/ml-latest-small.zip.md5": f"MD5 (ml-latest-small.zip) = {MD5}\n".encode(),
    }
    return server


def test_an_archive_is_checked_against_the_published_md5_and_opens_as_a_source(grouplens, tmp_path, capfd):
    out = tmp_path / "ml-latest-small"
    assert main(["data", "fetch", "ml-latest-small", "--out", str(out)]) == 0
    output = capfd.readouterr().out
    assert f"checked: MD5 published at {grouplens.url}/movielens/ml-latest-small.zip.md5" in output
    assert "Harper" in output
    assert [path.name for path in tmp_path.iterdir()] == ["ml-latest-small"], "nothing is left beside it"
    assert sorted(path.name for path in out.iterdir()) == ["README.txt", "checksums.json", "movies.csv", "ratings.csv"]
    source = open_source(out)
    assert source.name == "ml-latest-small" and sum(frame.height for frame in source.interactions()) == 1


def test_a_second_fetch_verifies_and_a_damaged_or_foreign_folder_is_refused(grouplens, tmp_path, capfd):
    out = fetch("ml-latest-small", tmp_path / "out")
    requests = len(grouplens.seen)
    fetch("ml-latest-small", out)
    assert len(grouplens.seen) == requests and "checksums verified" in capfd.readouterr().out
    with pytest.raises(DataError, match="it holds ml-latest-small; choose another folder"):
        fetch("ml-1m", out)
    (out / "movies.csv").write_text("")
    with pytest.raises(DataError, match=r"movies\.csv changed"):
        fetch("ml-latest-small", out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"it has no checksums\.json"):
        fetch("ml-latest-small", tmp_path / "mine")


@pytest.mark.parametrize("published", [None, b"<html>not found</html>"])
def test_the_output_says_that_no_checksum_is_published(grouplens, tmp_path, capfd, published):
    del grouplens.files["/movielens/ml-latest-small.zip.md5"]
    if published:
        grouplens.files["/movielens/ml-latest-small.zip.md5"] = published
    fetch("ml-latest-small", tmp_path / "out")
    assert "checked: the size announced by the server; no published MD5" in capfd.readouterr().out


def test_a_wrong_md5_is_refused(grouplens, tmp_path):
    grouplens.files["/movielens/ml-latest-small.zip.md5"] = b"0" * 32
    with pytest.raises(DataError, match=r"must have MD5 0{32} \(published at"):
        fetch("ml-latest-small", tmp_path / "out")
    grouplens.files |= {"/movielens/ml-1m.zip": SMALL, "/movielens/ml-1m.zip.md5": MD5.encode()}
    with pytest.raises(DataError, match=r"must have MD5 c4d9eecfca2ab87c1945afe126590906 \(pinned here\)"):
        fetch("ml-1m", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_refused_archive_is_deleted(grouplens, tmp_path):
    evil = archive({"ml/ratings.csv": "x", "ml/../../evil": "x"})
    grouplens.files["/movielens/ml-latest-small.zip"] = evil
    grouplens.files["/movielens/ml-latest-small.zip.md5"] = hashlib.md5(evil).hexdigest().encode()
    with pytest.raises(DataError, match="a name that points outside the folder"):
        fetch("ml-latest-small", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_amazon_2023_benchmark_comes_with_its_metadata(server, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(addresses, "AMAZON_2023", f"{server.url}/2023")
    line = "AGKASBHYZPGTEPO6LWZPVJWB2BVA,B00000000{},5.0,159500783100{}\n"
    for number, part in enumerate(("train", "valid", "test")):
        text = "user_id,parent_asin,rating,timestamp\n" + line.format(number, number)
        server.files[f"/2023/benchmark/5core/last_out/Gift_Cards.{part}.csv.gz"] = gzip.compress(text.encode())
    meta = gzip.compress(json.dumps({"parent_asin": "B000000000", "title": "Card"}).encode())
    server.files["/2023/raw/meta_categories/meta_Gift_Cards.jsonl.gz"] = meta
    server.script = [{}, {}, {"cut": 20}]
    out = fetch("amazon-2023/Gift_Cards/5core/last_out", tmp_path / "gifts")
    source = open_source(out)
    assert source.name == "amazon-2023/Gift_Cards"
    assert sum(frame.height for frame in source.interactions()) == 3
    assert [frame["title"].to_list() for frame in source.items()] == [["Card"]]
    assert capfd.readouterr().out.count("no published MD5") == 4


def test_an_interrupted_fetch_keeps_complete_files(server, monkeypatch, tmp_path):
    monkeypatch.setattr(addresses, "AMAZON_2014", f"{server.url}/2014")
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    server.files = {
        "/2014/ratings_Baby.csv": b"A,B,1.0,1\n" * 100,
        "/2014/meta_Baby.json.gz": gzip.compress(b"{}" * 99),
    }
    server.script = [{}, {"cut": 10}]
    with pytest.raises(DataError, match=r"meta_Baby\.json\.gz must be downloaded completely"):
        fetch("amazon-2014/Baby", tmp_path / "baby")
    assert not (tmp_path / "baby").exists()
    fetch("amazon-2014/Baby", tmp_path / "baby")
    asked = [(path.rpartition("/")[2], span) for path, span, _ in server.seen]
    assert asked == [("ratings_Baby.csv", None), ("meta_Baby.json.gz", None), ("meta_Baby.json.gz", "bytes=10-")]
    assert [path.name for path in tmp_path.iterdir()] == ["baby"]


def test_names_and_addresses():
    assert (len(CATEGORIES[2014]), len(CATEGORIES[2018]), len(CATEGORIES[2023])) == (24, 29, 34)
    for name in names():
        found = remote(name)
        assert all(url.startswith("https://") for url in found.urls) and found.license
        assert len({url.rpartition("/")[2] for url in found.urls}) == len(found.urls)
    assert remote("ml-32m").urls == ("https://files.grouplens.org/datasets/movielens/ml-32m.zip",)
    assert remote("amazon-2014/Beauty").urls == (
        "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/ratings_Beauty.csv",
        "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/meta_Beauty.json.gz",
    )
    base = "https://mcauleylab.ucsd.edu/public_datasets/data"
    assert remote("amazon-2018/Video_Games").urls == (
        f"{base}/amazon_v2/categoryFilesSmall/Video_Games.csv",
        f"{base}/amazon_v2/metaFiles2/meta_Video_Games.json.gz",
    )
    assert remote("amazon-2023/Video_Games").urls == (
        f"{base}/amazon_2023/raw/review_categories/Video_Games.jsonl.gz",
        f"{base}/amazon_2023/raw/meta_categories/meta_Video_Games.jsonl.gz",
    )
    assert remote("amazon-2023/Video_Games/0core/rating_only").urls[0] == (
        f"{base}/amazon_2023/benchmark/0core/rating_only/Video_Games.csv.gz"
    )
    assert remote("amazon-2023/Nothing") is None


def test_an_unknown_name_gets_the_patterns_and_the_closest_name(tmp_path):
    with pytest.raises(
        DataError, match=r"one of ml-100k, .*amazon-2023/CATEGORY.* did you mean 'amazon-2023/Video_Games'"
    ):
        fetch("amazon-2023/VideoGames", tmp_path)
