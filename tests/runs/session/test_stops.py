"""A phase that is stopped at any moment and goes on equals one that nobody stopped; `benchmarks/check_stops.py` does
more of it."""

import shutil
from functools import partial

import pytest

from tests.support.runs.stops import LIMIT_S, Command, disturbed

SMALL = ("--evaluation.batch-users", "4", "--compute.wave-tokens", "2")  # many places at which to stop


@pytest.mark.slow
@pytest.mark.timeout(6 * LIMIT_S)
@pytest.mark.parametrize(
    ("phase", "processes", "stops", "workers"), [("sft", 1, 3, 1), ("rl", 1, 3, 0), ("rl", 2, 3, 0)]
)
def test_stops_change_nothing(tiny, sft_run, tmp_path, phase, processes, stops, workers):
    settings = (*SMALL, f"--{phase}.steps", "40", "--compute.data-workers", str(workers))
    command = Command(phase, tiny.config, tmp_path / "run", processes, settings)
    before = partial(shutil.copytree, sft_run) if phase == "rl" else None
    # The limit allows for other tests on the same cores.
    outcome = disturbed(command, stops, seed=processes, part=0.5, before=before, end_s=60)
    assert outcome.problems == []
