"""The commands of an experiment run in order and in parallel, once, and a failure stops only what needs it."""

import dataclasses
import json
import os
import subprocess
import sys
import time

import pytest

from r2rank_jax.config import RunConfig
from r2rank_jax.errors import ExperimentError
from r2rank_jax.experiments import running
from r2rank_jax.experiments.jobs import Job
from r2rank_jax.experiments.running import run_all

# Stands for the r2rank command: appends its name to a file and exits with a code.
COMMAND = """
import sys
file, name, code, *_ = sys.argv[1:]
open(file, "a").write(name + "\\n")
print("said", name)
sys.exit(int(code))
"""
CONFIG = RunConfig(name="x")


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "COMMAND", (sys.executable, "-c", COMMAND, str(tmp_path / "ran")))

    def make(name, *after, code=0, config=CONFIG, start=None):
        directory = tmp_path / name
        return Job(name, (name, str(code)), directory, config, directory / "done-sft.json", after, start)

    return make


def ran(tmp_path):
    return (tmp_path / "ran").read_text().split()


@pytest.mark.parametrize("parallel", [1, 3])
def test_jobs_run_once_each_after_those_that_it_needs(job, tmp_path, parallel):
    jobs = [job("a"), job("b", "a"), job("c"), job("d", "b", "c")]
    run_all(jobs, parallel=parallel)
    order = ran(tmp_path)
    assert sorted(order) == ["a", "b", "c", "d"] and order.index("a") < order.index("b") < order.index("d")
    run_all(jobs, parallel=parallel)
    assert len(ran(tmp_path)) == 4
    jobs[1].done.unlink()
    run_all(jobs, parallel=parallel)
    assert ran(tmp_path)[4:] == ["b"]


def test_a_failure_is_named_with_its_reason_and_stops_only_what_needs_it(job, tmp_path):
    jobs = [job("a", code=3), job("b", "a"), job("c"), job("d", "c")]
    with pytest.raises(ExperimentError, match=r"1 of 4 jobs failed: a; the last line of .*log\.txt is: said a"):
        run_all(jobs, parallel=1)
    assert ran(tmp_path) == ["a", "c", "d"]
    run_all([job("a"), *jobs[1:]], parallel=1)
    assert ran(tmp_path)[3:] == ["a", "b"]


def test_its_commands_end_with_it(tmp_path):
    """A batch system sends SIGTERM to one process only."""
    script = f"""
import sys
from pathlib import Path
from r2rank_jax.config import RunConfig
from r2rank_jax.errors import Stopped
from r2rank_jax.experiments import running
from r2rank_jax.experiments.jobs import Job

running.COMMAND = (sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)")
directory = Path({str(tmp_path)!r}) / "a"
try:
    running.run_all([Job("a", (), directory, RunConfig(name="x"), directory / "done-sft.json")], parallel=1)
except Stopped as stopped:
    sys.exit(stopped.exit_code)
"""
    log, deadline = tmp_path / "a/log.txt", time.monotonic() + 60
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL)
    try:
        while not (log.is_file() and log.read_text().endswith("\n")):
            assert time.monotonic() < deadline and parent.poll() is None
            time.sleep(0.05)
        child = int(log.read_text())
        os.kill(child, 0)  # it runs
        parent.terminate()
        assert parent.wait(60) == 75
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
        assert not (tmp_path / "a/done-sft.json").exists()
    finally:
        parent.kill()


def test_a_finished_job_with_other_settings_is_refused_before_anything_runs(job, tmp_path):
    run_all([job("a")], parallel=1)
    with pytest.raises(ExperimentError, match=r"a was run with other settings .*seed: 0 -> 1; restore them"):
        run_all([job("b"), job("a", config=RunConfig(name="x", seed=1))], parallel=1)
    assert ran(tmp_path) == ["a"]


def test_a_finished_job_of_a_version_with_fewer_fields_counts_as_finished(job, tmp_path):
    run_all([job("a")], parallel=1)
    done = tmp_path / "a/done-sft.json"
    record = json.loads(done.read_text())
    del record["config"]["rl"]["gradients_every"]
    done.write_text(json.dumps(record))
    run_all([job("a")], parallel=1)
    assert ran(tmp_path) == ["a"]


def test_a_finished_job_that_this_version_cannot_read_is_named(job, tmp_path):
    run_all([job("a")], parallel=1)
    (tmp_path / "a/done-sft.json").write_text('{"config": {"name": "x", "speed": 3}}')
    with pytest.raises(ExperimentError, match=r"a was run by another version: unknown field speed.* another --runs"):
        run_all([job("a")], parallel=1)


def test_an_evaluation_is_repeated_when_its_directory_has_one_more_phase(job, tmp_path):
    for phases in (("rl",), ("rl",), ("rl", "sft_continued"), ("rl",)):
        run_all([dataclasses.replace(job("a"), phases=phases)], parallel=1)
    assert ran(tmp_path) == ["a", "a"]


def test_a_run_adopts_the_sft_policy_that_it_starts_from(job, tmp_path):
    start = tmp_path / "start"
    for name in ("checkpoints/sft/1/state", "checkpoints/rl/1/state", "base/card", "tokenizer.json"):
        (start / name).parent.mkdir(parents=True, exist_ok=True)
        (start / name).write_text(name)
    (tmp_path / "a/checkpoints.partial/sft/9").mkdir(parents=True)  # of a copy that was interrupted
    run_all([job("a", start=start)], parallel=1)
    files = {str(path.relative_to(tmp_path / "a")) for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert files == {
        "checkpoints/sft/1/state",
        "base/card",
        "tokenizer.json",
        "log.txt",
        "sft.config.json",
        "done-sft.json",
    }
    assert json.loads((tmp_path / "a/sft.config.json").read_text())["name"] == "x"
