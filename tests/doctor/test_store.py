"""The doctor on runs in object stores."""

import re

import pytest

from r2rank_jax.doctor import storage
from r2rank_jax.doctor.storage import check_store
from r2rank_jax.errors import REFUSED, StorageError
from r2rank_jax.files.objects import ObjectFolder
from tests.support.command_line import environment, run_cli, succeed


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(storage, "STORE_BYTES", 2**20)


def test_a_sound_store_is_timed_and_left_as_it_was(address):
    (finding,) = check_store(address)
    assert finding.verdict == "ok" and finding.what.startswith(f"{address}: 1 MiB sent in ")
    assert ObjectFolder(address).tags() == {}


def test_a_store_that_does_not_tell_writers_apart_is_a_warning(address, monkeypatch):
    monkeypatch.setattr(ObjectFolder, "create", lambda self, name, content: self.write(name, content) or True)
    (finding,) = check_store(address)
    assert finding.verdict == "warning" and "for one of two writers only" in finding.what
    assert ObjectFolder(address).tags() == {}


def test_a_store_that_gives_back_another_content_is_a_fault(address, monkeypatch):
    monkeypatch.setattr(ObjectFolder, "fetch", lambda self, files: [file.write_bytes(b"") for file in files.values()])
    (finding,) = check_store(address)
    assert finding.verdict == "fault" and "must give back what it was sent" in finding.what


def test_a_missing_bucket_is_named(store):
    with pytest.raises(StorageError, match="missing-bucket/run must let this machine write") as caught:
        check_store(store.bucket.replace("bucket", "missing-bucket") + "/run")
    assert caught.value.exit_code == REFUSED


def test_the_command_tries_the_store(tiny, address, store, tmp_path):
    env = environment(R2RANK_WORK_DIR=str(tmp_path))
    printed = succeed("doctor", "--config", tiny.config, "--run-dir", address, env=env)
    assert re.search(f"ok +store +{address}: 32 MiB sent in", printed)
    assert ObjectFolder(address).tags() == {} and "0 faults" in printed
    missing = f"{store.bucket.replace('bucket', 'missing-bucket')}/run"
    done = run_cli("doctor", "--config", tiny.config, "--run-dir", missing, env=env)
    assert done.returncode == REFUSED and re.search("fault +store", done.stdout) and "Traceback" not in done.stderr
