"""Downloads from a local server that drops connections, changes its file, refuses ranges and reports wrong sizes."""

import hashlib
import json

import pytest

from r2rank_jax.errors import DataError
from r2rank_jax.files import downloads
from r2rank_jax.files.downloads import download
from tests.support.servers.http_server import CONTENT


def fetch(server, path, **md5):
    return download(f"{server.url}/file.zip", path / "file.zip", md5=md5)


def only_the_file(path):
    return [file.name for file in path.iterdir()] == ["file.zip"]


def test_a_complete_file_with_its_checksum(server, tmp_path):
    assert fetch(server, tmp_path, here=hashlib.md5(CONTENT).hexdigest()) == len(CONTENT)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT and only_the_file(tmp_path)


def test_an_interrupted_download_resumes(server, tmp_path):
    server.script = [{"cut": 300_000}, {"cut": 200_000}, {"status": 503}]
    fetch(server, tmp_path)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT and only_the_file(tmp_path)
    assert server.seen == [
        ("/file.zip", None, None),
        ("/file.zip", "bytes=300000-", '"one"'),
        ("/file.zip", "bytes=500000-", '"one"'),
        ("/file.zip", "bytes=500000-", '"one"'),
    ]


def test_a_later_run_resumes_the_download(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    server.script = [{"cut": 300_000}]
    with pytest.raises(
        DataError, match=r"1 attempts failed, the last with: the server announced 1,024,000 bytes, got 300,000"
    ):
        fetch(server, tmp_path)
    assert not (tmp_path / "file.zip").exists()
    fetch(server, tmp_path)
    assert server.seen[-1][1] == "bytes=300000-"
    assert (tmp_path / "file.zip").read_bytes() == CONTENT and only_the_file(tmp_path)


def test_a_download_starts_over_if_the_file_changed(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    server.script = [{"cut": 300_000}]
    with pytest.raises(DataError):
        fetch(server, tmp_path)
    server.content, server.etag = CONTENT[::-1], '"two"'
    fetch(server, tmp_path)
    assert server.seen[-1][1:] == ("bytes=300000-", '"one"'), "it asks to resume only the old file"
    assert (tmp_path / "file.zip").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_a_download_without_a_strong_validator_starts_over(server, tmp_path, etag):
    server.etag = etag
    server.script = [{"cut": 300_000}]
    fetch(server, tmp_path)
    assert [seen[1] for seen in server.seen] == [None, None]
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_a_download_from_a_server_without_ranges_starts_over(server, tmp_path):
    server.ranges = False
    server.script = [{"cut": 300_000}]
    fetch(server, tmp_path)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_a_range_other_than_the_requested_one_is_not_appended(server, tmp_path):
    server.script = [{"cut": 300_000}, {"start": 299_999}]
    fetch(server, tmp_path)
    assert [seen[1] for seen in server.seen] == [None, "bytes=300000-", None]
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_a_complete_part_file_is_moved_into_place(server, tmp_path):
    (tmp_path / ".file.zip.part").write_bytes(CONTENT)
    (tmp_path / ".file.zip.part.json").write_text(json.dumps({"url": f"{server.url}/file.zip", "validator": '"one"'}))
    fetch(server, tmp_path)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT and only_the_file(tmp_path)


@pytest.mark.parametrize("note", ["", "{}", "[1]", '{"url": "http://elsewhere", "validator": "x"}'])
def test_a_part_file_of_unknown_origin_is_not_used(server, tmp_path, note):
    (tmp_path / ".file.zip.part").write_bytes(b"something else")
    (tmp_path / ".file.zip.part.json").write_text(note)
    fetch(server, tmp_path)
    assert server.seen[0][1] is None and (tmp_path / "file.zip").read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    with pytest.raises(DataError, match=r"must have MD5 0{32} \(pinned\), got [0-9a-f]{32} over 1,024,000 bytes"):
        fetch(server, tmp_path, pinned="0" * 32)
    assert list(tmp_path.iterdir()) == []


def test_retries_are_few_and_end_with_the_reason(server, tmp_path):
    server.script = [{"status": 503}] * 99
    with pytest.raises(DataError, match=r"5 attempts failed, the last with: HTTP 503 .* run this again to resume"):
        fetch(server, tmp_path)
    assert len(server.seen) == 5


def test_a_file_shorter_than_announced_is_fetched_again(server, tmp_path):
    server.script = [{"announce": len(CONTENT) + 5}]
    fetch(server, tmp_path)
    assert len(server.seen) == 2 and (tmp_path / "file.zip").read_bytes() == CONTENT


def test_a_missing_file_is_not_requested_again(server, tmp_path):
    server.script = [{"status": 404}]
    with pytest.raises(DataError, match="the server answered 404"):
        fetch(server, tmp_path)
    assert len(server.seen) == 1 and list(tmp_path.iterdir()) == []


def test_retry_after_is_respected_up_to_a_limit(server, tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(downloads.time, "sleep", slept.append)
    server.script = [{"status": 429, "Retry-After": "7"}, {"status": 503, "Retry-After": "9999"}, {"status": 500}]
    fetch(server, tmp_path)
    assert slept == [7.0, downloads.PAUSE_AT_MOST_S, downloads.PAUSE_S * 4]


def test_an_unreachable_server(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "PAUSE_S", 0.0)
    with pytest.raises(DataError, match=r"5 attempts failed.*refused"):
        download("http://127.0.0.1:9/file.zip", tmp_path / "file.zip", md5={})
