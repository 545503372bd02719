"""A phase that is stopped at any moment and goes on equals one that nobody stopped; `benchmarks/check_stops.py` does
more of it."""

import random
import shutil
from dataclasses import replace

import pytest

from tests.support.runs.stops import LIMIT_S, Command, Outcome, differences, finish, stop_often

SMALL = ("--evaluation.batch-users", "4", "--compute.wave-tokens", "2")  # many places at which to stop


@pytest.mark.slow
@pytest.mark.timeout(6 * LIMIT_S)
@pytest.mark.parametrize(
    ("phase", "processes", "stops", "workers"), [("sft", 1, 5, 1), ("rl", 1, 5, 0), ("sft", 2, 4, 0), ("rl", 2, 4, 0)]
)
def test_stops_change_nothing(tiny, sft_run, tmp_path, phase, processes, stops, workers):
    settings = (*SMALL, f"--{phase}.steps", "40", "--compute.data-workers", str(workers))
    undisturbed = Command(phase, tiny.config, tmp_path / "undisturbed", processes, settings)
    stopped = replace(undisturbed, run_dir=tmp_path / "stopped")
    if phase == "rl":
        for command in (undisturbed, stopped):
            shutil.copytree(sft_run, command.run_dir)
    longest_s = 0.8 * finish(undisturbed)
    outcome = Outcome()
    stop_often(stopped, outcome, stops=stops, longest_s=longest_s, draw=random.Random(processes))
    finish(stopped)
    assert outcome.stops > outcome.finished, "it finished before the first signal"
    assert outcome.problems + differences(undisturbed.run_dir, stopped.run_dir, phase) == []
