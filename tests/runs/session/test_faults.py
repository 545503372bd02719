"""Jobs of two real processes whose surroundings are wrong: each ends soon, with the right code and one line."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.command_line import COMMAND, environment, metrics, run_cli
from tests.support.runs.jobs import LIMIT_S, job, wait_for


def process_of(job: subprocess.Popen, index: int) -> int:
    """The process id of one process of the job."""
    for folder in Path("/proc").iterdir():
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            parent = (folder / "stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[1]
        except (OSError, IndexError):
            continue
        if parent == str(job.pid) and f"R2RANK_PROCESS={index}".encode() in variables:
            return int(folder.name)
    raise AssertionError("no such process")


@pytest.mark.slow
@pytest.mark.timeout(2 * LIMIT_S)
@pytest.mark.parametrize(("sent", "victim"), [("SIGKILL", 0), ("SIGKILL", 1), ("SIGSTOP", 1)])
def test_a_lost_process_ends_the_job_and_a_restart_finishes_it(tiny, tmp_path, sent, victim):
    log, run_dir = tmp_path / "log", tmp_path / "run"
    arguments = ("sft", "--config", tiny.config, "--run-dir", run_dir, "--mesh.data", "2", "--sft.steps", "60")
    with job(log, *arguments, R2RANK_RESTARTS="1") as running:
        wait_for(log, "sft step    20")
        os.kill(process_of(running, victim), getattr(signal, sent))
        start = time.monotonic()
        wait_for(log, "restart 1 of 1")
        print(f"{sent} to process {victim}: all had ended after {time.monotonic() - start:.1f} s")  # shown by -s
        assert running.wait(timeout=LIMIT_S) == 0, log.read_text(encoding="utf-8")[-2000:]
    steps = [line["step"] for line in metrics(run_dir, "sft") if "loss" in line]
    assert steps == list(range(1, 61))


def wrapper(folder: Path, for_process_1: str) -> str:
    """A command that runs `r2rank`, and in process 1 does something else before or instead."""
    path = folder / "wrapper"
    lines = ("#!/usr/bin/env bash", f"if [[ $R2RANK_PROCESS == 1 ]]; then {for_process_1}; fi")
    path.write_text("\n".join([*lines, f'exec {" ".join(COMMAND)} "$@"\n']), encoding="utf-8")
    path.chmod(0o755)
    return str(path)


@pytest.mark.slow
@pytest.mark.timeout(2 * LIMIT_S)
@pytest.mark.parametrize(
    ("for_process_1", "words"),
    [
        ('set -- "$@" --sft.steps 0', "sft.steps must be at least 1, got 0"),  # before it joins
        ('cd empty; set -- "$@" --data.traces nothing.jsonl', "nothing.jsonl"),  # afterwards
    ],
)
def test_one_refused_process_ends_the_job(tiny, tmp_path, for_process_1, words):
    (tmp_path / "empty").mkdir()
    command = wrapper(tmp_path, for_process_1.replace("cd empty", f"cd {tmp_path}/empty"))
    log, run_dir = tmp_path / "log", tmp_path / "run"
    with job(log, "sft", "--config", tiny.config, "--run-dir", run_dir, "--mesh.data", "2", command=command) as running:
        wait_for(log, words)
        refused = time.monotonic()
        assert running.wait(timeout=LIMIT_S) == 2, log.read_text(encoding="utf-8")
    print(f"the job ended {time.monotonic() - refused:.1f} s after the refusal")  # shown by -s
    assert "Traceback" not in log.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(2 * LIMIT_S)
def test_processes_with_different_run_directories_are_refused(tiny, tmp_path):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    here, there = tmp_path / "here", tmp_path / "there"
    command = wrapper(tmp_path, f"cd {there}")
    log = tmp_path / "log"
    arguments = ("sft", "--config", tiny.config, "--run-dir", "run", "--mesh.data", "2")
    before = Path.cwd()
    os.chdir(here)
    try:
        with job(log, *arguments, command=command) as running:
            assert running.wait(timeout=LIMIT_S) == 2, log.read_text(encoding="utf-8")
    finally:
        os.chdir(before)
    (line,) = [text for text in log.read_text(encoding="utf-8").splitlines() if "r2rank: all processes must" in text]
    assert "was not seen by 1" in line
    assert not list(here.iterdir()) and not list(there.iterdir()), "a refused command leaves nothing behind"


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"R2RANK_PROCESSES": "2"}, "needs R2RANK_COORDINATOR"),
        ({"R2RANK_PROCESSES": "two"}, "at least 1, got 'two'"),
        ({"R2RANK_COORDINATOR": "127.0.0.1"}, "HOST:PORT"),
        ({"R2RANK_COORDINATOR": "127.0.0.1:{port}"}, "choose another port"),
    ],
)
def test_wrong_surroundings_are_refused_in_one_line(tiny, tmp_path, variables, words):
    good = {"R2RANK_COORDINATOR": "127.0.0.1:1", "R2RANK_PROCESSES": "2", "R2RANK_PROCESS": "0"}
    if words.startswith("needs"):
        del good["R2RANK_COORDINATOR"]
    with socket.create_server(("127.0.0.1", 0)) as busy:
        given = {name: text.format(port=busy.getsockname()[1]) for name, text in (good | variables).items()}
        done = run_cli("sft", "--config", tiny.config, "--run-dir", tmp_path / "run", env=environment(**given))
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and words in done.stderr
    assert not (tmp_path / "run").exists()
