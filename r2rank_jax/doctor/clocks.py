"""How far the clocks of the hosts are apart: times in logs and files, and certificates, rest on them."""

from __future__ import annotations

import time
from collections.abc import Mapping

from r2rank_jax.doctor.findings import Finding, named, ok, warning
from r2rank_jax.doctor.processes import Processes

MOST_SKEW_S = 1.0


def check_clocks(processes: Processes) -> list[Finding]:
    """Read every process's clock around a barrier. The first barrier only lets them arrive at the second together."""
    processes.meet("clocks, arriving")
    before = time.time()
    processes.meet("clocks")
    after = time.time()
    readings = processes.gather("clock readings", (before, after))
    return skew(readings) if processes.index == 0 and processes.count > 1 else []


def skew(readings: Mapping[int, tuple[float, float]]) -> list[Finding]:
    """Findings on the clocks, in comparison with the clock of process 0.

    Args:
        readings: process -> its clock before and after one barrier, in seconds. The barrier opened at one moment
            between both readings of every process, so that the middles differ by the skew, give or take half of both
            intervals.
    """
    start, end = readings[0]
    skews = {process: (a + b) / 2 - (start + end) / 2 for process, (a, b) in readings.items()}
    unsure = {process: (b - a) / 2 + (end - start) / 2 for process, (a, b) in readings.items()}
    late = [process for process in readings if process and abs(skews[process]) - unsure[process] > MOST_SKEW_S]
    worst = max(late or readings, key=lambda process: abs(skews[process]))
    figure = f"{1e3 * abs(skews[worst]):,.1f} ms, known to {1e3 * unsure[worst]:,.1f} ms"
    if not late:
        return [ok("clocks", f"apart by at most {figure}")]
    what = f"clocks should be at most {MOST_SKEW_S:g} s from that of process 0, got {named(late)} up to {figure}"
    return [warning("clocks", what, "synchronize the hosts' clocks, for example with chrony")]
