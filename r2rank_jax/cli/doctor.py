"""`r2rank doctor`: whether a run would start and work here, started as the run itself will be."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

from r2rank_jax.cli.arguments import positive_number
from r2rank_jax.cli.configuration import add_configured, configuration
from r2rank_jax.cli.run_places import stored_run
from r2rank_jax.cli.runs import join_processes, keep_compiled_programs, others_told_of_errors
from r2rank_jax.errors import REFUSED

LAST_WORD_S = 0.5
"""Time for the other processes to read the verdict: with process 0, the coordination service ends."""


def add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `doctor`."""
    doctor = add_configured(commands, "doctor", "examine whether a run would start and work on these machines")
    doctor.add_argument(
        "--limit-s",
        type=positive_number,
        default=60.0,
        metavar="SECONDS",
        help="time limit of what each process checks alone, and of each check with others (default: 60)",
    )
    doctor.set_defaults(carry_out=_doctor)


def _doctor(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Return 2 if the run would not start or not work, else 0; the same on every process."""
    with others_told_of_errors():
        stored_run(arguments, use="write")
        config = configuration(arguments, overrides)
    run_dir = arguments.run_dir or Path("runs") / config.name
    join_processes(least_heartbeat_s=int(5 * arguments.limit_s))  # the doctor names processes that are silent
    keep_compiled_programs()
    from r2rank_jax.doctor.examination import examine
    from r2rank_jax.doctor.findings import text
    from r2rank_jax.doctor.processes import LostProcessError, Processes

    processes = Processes.of_this_job(arguments.limit_s)
    try:
        report = examine(config, run_dir, os.environ, processes, getattr(arguments, "address", None))
        if processes.index == 0:
            print(text(report.findings, report.not_tried), flush=True)
        code, stuck = processes.share("verdict", (REFUSED if report.faults else 0, report.stuck))
    except LostProcessError as error:
        print(f"r2rank: {error}", file=sys.stderr)
        _end(REFUSED)
    if stuck or report.stuck:
        if processes.index == 0 and processes.count > 1:
            time.sleep(LAST_WORD_S)
        _end(code)
    return int(code)


def _end(code: int) -> NoReturn:
    """End at once: a regular end would wait for what is stuck, in this process or in another."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
