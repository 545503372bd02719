"""Places that cannot be written are refused in one line before any work, and trying them leaves nothing behind."""

import os
from pathlib import Path

import pytest

from r2rank_jax.errors import UsageError
from r2rank_jax.files.places import require_file, require_folder


def test_a_place_that_can_be_written_is_left_as_it_is(tmp_path):
    (tmp_path / "old.txt").write_text("old")
    for path in (tmp_path, tmp_path / "new" / "deep"):
        require_folder(path, "--out")
    for path in (tmp_path / "old.txt", tmp_path / "new" / "file"):
        require_file(path, "--out")
    assert [path.name for path in tmp_path.iterdir()] == ["old.txt"]


@pytest.mark.parametrize("require", [require_folder, require_file])
@pytest.mark.parametrize(
    ("place", "reason"),
    [("file/sub", "file is a file"), ("x" * 300, "name too long"), ("link/sub", "link is a broken link")],
)
def test_what_is_in_the_way_is_named(tmp_path, require, place, reason):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"^--out must be a \w+ to write, got .*; choose another --out$") as refusal:
        require(tmp_path / place, "--out")
    assert reason in str(refusal.value).lower()


@pytest.mark.parametrize("require", [require_folder, require_file])
@pytest.mark.parametrize("place", ["gs://bucket/run", "s3://bucket/run"])
def test_an_address_is_no_folder_of_that_name(tmp_path, monkeypatch, require, place):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="is no place of a file system; mount the storage; choose another --out"):
        require(Path(place), "--out")
    require(Path("a:b/run"), "--out")


def test_a_file_is_no_folder_and_a_folder_or_device_no_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="must be a folder to write"):
        require_folder(tmp_path / "file", "--out")
    with pytest.raises(UsageError, match=r"must be a file to write, .* is a folder"):
        require_file(tmp_path, "--out")
    with pytest.raises(UsageError, match=r"must be a file to write, .* is a device"):
        require_file(type(tmp_path)("/dev/null"), "--out")


def test_a_folder_without_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the user of a test may be root, who may write all
    for require in (require_folder, require_file):
        with pytest.raises(UsageError, match="must not be written"):
            require(tmp_path / "new", "--run-dir")
