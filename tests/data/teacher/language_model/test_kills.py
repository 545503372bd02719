"""Runs a small form of the benchmark: the command is killed repeatedly and its server injects every kind of failure."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]


@pytest.mark.slow
def test_every_request_is_answered_once_despite_kills():
    script = str(ROOT / "benchmarks" / "check_teacher.py")
    done = subprocess.run(
        [sys.executable, script, "--requests", "200", "--kills", "3", "--concurrency", "16"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["failed"] == [] and figures["kills"] == 4 and figures["answered"] == 200
    assert sum(figures["refused"].values()) > 10 and len(figures["faults"]) > 5, "some requests failed"
