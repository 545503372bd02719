"""Folders of objects in local stores that are real servers."""

import os
import socket
import threading

import pytest

from r2rank_jax.errors import FAILED, REFUSED, StorageError, UsageError
from r2rank_jax.files import objects as module
from r2rank_jax.files.objects import ObjectFolder, is_address
from tests.support.servers.object_stores import STORES


@pytest.fixture(scope="module", params=STORES)
def store(request):
    with STORES[request.param]() as running:
        yield running


def test_objects_are_written_read_replaced_and_deleted(store):
    folder = ObjectFolder(store.new())
    assert folder.tags() == {} and folder.read("a/b") is None
    folder.write("a/b", b"one")
    first = folder.tags()
    assert list(first) == ["a/b"] and folder.read("a/b") == b"one"
    folder.write("a/b", b"two")
    assert folder.tags().keys() == first.keys() and folder.tags() != first
    folder.write("ab", b"")
    assert list(folder.tags("a/")) == ["a/b"]
    folder.delete(["a/b", "missing"])
    assert list(folder.tags()) == ["ab"]


def test_a_folder_does_not_see_one_whose_name_begins_like_its_own(store):
    address = store.new()
    ObjectFolder(f"{address}-2").write("a", b"")
    assert ObjectFolder(address).tags() == {}


def test_files_of_all_sizes_come_back_as_they_were_sent(store, tmp_path):
    folder, sizes = ObjectFolder(store.new()), [0, 1, 1000, 120 * 2**20]  # the last is sent in parts
    sent = {f"files/{size}": tmp_path / f"sent/{size}" for size in sizes}
    (tmp_path / "sent").mkdir()
    for size, file in zip(sizes, sent.values()):
        file.write_bytes(os.urandom(size))
    told = []
    folder.send(sent, told.append)
    assert max(told) == sum(sizes)
    back = {name: tmp_path / f"back/{name}" for name in sent}
    folder.fetch(back)
    assert all(back[name].read_bytes() == sent[name].read_bytes() for name in sent)


def test_one_of_many_writers_creates_an_object(store):
    address, winners = store.new(), []

    def create(index):
        if ObjectFolder(address).create("claim", str(index).encode()):
            winners.append(index)

    threads = [threading.Thread(target=create, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1 and ObjectFolder(address).read("claim") == str(winners[0]).encode()
    assert not ObjectFolder(address).create("claim", b"late")


def test_a_missing_bucket_is_one_line_and_not_tried_again(store):
    folder = ObjectFolder(store.bucket.replace("bucket", "missing-bucket") + "/run")
    for request in (folder.tags, lambda: folder.write("a", b""), lambda: folder.create("a", b"")):
        with pytest.raises(StorageError, match=r"missing-bucket/run must let this machine .* check its name") as caught:
            request()
        assert caught.value.exit_code == REFUSED and "\n" not in str(caught.value)


def test_a_store_that_does_not_answer_is_tried_again(monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for name, value in (("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}"), ("AWS_EC2_METADATA_DISABLED", "true")):
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    paused = []
    monkeypatch.setattr(module.time, "sleep", paused.append)
    monkeypatch.setattr(module, "_PAUSES_S", (7,))  # the packages make attempts of their own, of seconds
    with pytest.raises(StorageError, match="run the command again") as caught:
        ObjectFolder("s3://bucket/run", patience_s=10).write("a", b"")
    assert caught.value.exit_code == FAILED and capsys.readouterr().err.count("trying for 10 s") == 1
    assert 7 in paused


def test_missing_credentials_are_refused(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StorageError, match="credentials") as caught:
        ObjectFolder("s3://bucket/run").write("a", b"")
    assert caught.value.exit_code == REFUSED


@pytest.mark.parametrize(
    "address", ["s3://", "s3://bucket", "s3://bucket/", "s3://bucket/../a", "ftp://a/b", "s3:///b"]
)
def test_other_addresses_are_refused(address):
    with pytest.raises(UsageError, match="must be s3://BUCKET/NAME or gs://BUCKET/NAME"):
        ObjectFolder(address)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs the package gcsfs; run `pip install 'r2rank-jax\[gs\]'`"):
        ObjectFolder("gs://bucket/run")


@pytest.mark.parametrize(("text", "address"), [("s3://a/b", True), ("/a/b", False), ("a:/b", False), ("GS://a", True)])
def test_what_is_an_address(text, address):
    assert is_address(text) is address
