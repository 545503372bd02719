"""One job at a time writes to a run directory."""

import json
import multiprocessing
import os
import signal
import socket

import pytest

from r2rank_jax.errors import CheckpointError
from r2rank_jax.runs.session.one_writer import WRITER, one_writer


def hold(run_dir, held, release):
    with one_writer(run_dir):
        held.set()
        release.wait(60)


@pytest.fixture
def other_job(tmp_path):
    """Another process that writes to `tmp_path / "run"`."""
    spawned = multiprocessing.get_context("spawn")
    held, release = spawned.Event(), spawned.Event()
    process = spawned.Process(target=hold, args=(tmp_path / "run", held, release))
    process.start()
    assert held.wait(60)
    yield process, release
    if process.is_alive():  # an event waits for ever for a sleeper that was killed
        release.set()
    process.join(60)


def test_a_second_job_is_refused_by_name_and_host(tmp_path, other_job):
    process, release = other_job
    with pytest.raises(CheckpointError) as error, one_writer(tmp_path / "run"):
        pass
    message = str(error.value)
    assert f"on host {socket.gethostname()} (process {process.pid}, since 20" in message
    assert "wait for it, stop it, or choose another --run-dir" in message and "\n" not in message
    release.set()
    process.join(60)
    with one_writer(tmp_path / "run"):
        pass


def test_a_killed_job_leaves_no_lock(tmp_path, other_job):
    process, _ = other_job
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    with one_writer(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / WRITER).read_text())["process"] == os.getpid()


def test_a_command_that_wrote_nothing_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), one_writer(tmp_path / "run"):
        raise KeyError
    assert not (tmp_path / "run").exists()
    with one_writer(tmp_path / "run"):
        (tmp_path / "run/config.json").write_text("{}")
    assert sorted(f.name for f in (tmp_path / "run").iterdir()) == ["config.json", WRITER]
