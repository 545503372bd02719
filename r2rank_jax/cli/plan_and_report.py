"""`r2rank plan` and `r2rank report`: what a run would need, and what it came to."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from r2rank_jax.cli.arguments import UsageError
from r2rank_jax.cli.configuration import add_configured, configuration


def add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `plan`."""
    plan = add_configured(commands, "plan", "what a run would need of a machine that need not be there", run_dir=False)
    plan.add_argument("--topology", help="KIND:SIZE, as v5p:4x4x8, v6e:2x4, h200:8 or cpu:8")
    plan.add_argument(
        "--backend",
        default="abstract",
        choices=("abstract", "compile"),
        help="estimate, in seconds; or compile the real programs too, in minutes",
    )
    plan.add_argument(
        "--compiler",
        type=Path,
        help="folder with libtpu or the CUDA plugin; default: compilers/tpu, compilers/cuda",
    )
    plan.set_defaults(carry_out=_plan)


def add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `report`."""
    report = commands.add_parser("report", help="run directory -> one HTML file", allow_abbrev=False)
    report.add_argument("--run-dir", type=Path, required=True)
    report.set_defaults(carry_out=_report)


def _plan(known: argparse.Namespace, overrides: list[str]) -> int:
    """Exit code 1 where the run does not fit."""
    from r2rank_jax.plan import plan

    config = configuration(known, overrides)
    if known.topology is None:
        raise UsageError("`r2rank plan` needs --topology KIND:SIZE, for instance v5p:2x2x2, h200:8 or cpu:8")
    message = plan.run(config, known.topology, known.backend, known.compiler)
    if message is not None:
        print(f"r2rank: {message}", file=sys.stderr)
    return 0 if message is None else 1


def _report(known: argparse.Namespace, _: list[str]) -> int:
    from r2rank_jax.report.build import build

    print(build(_existing_run(known.run_dir)))
    return 0


def _existing_run(run_dir: Path) -> Path:
    if not run_dir.is_dir():
        raise UsageError(f"--run-dir must be a run directory, got {run_dir}, which is not there")
    return run_dir
