"""`r2rank plan` and `r2rank report`: the resources a run needs, and its results."""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

from r2rank_jax.cli.configuration import add_configured, configuration
from r2rank_jax.cli.run_places import fetched, run_place, stored_run
from r2rank_jax.errors import UsageError
from r2rank_jax.files.places import require_file


def add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `plan`."""
    plan = add_configured(commands, "plan", "estimate the memory and time of a run on any machine", run_dir=False)
    plan.add_argument(
        "--topology",
        metavar="KIND:SIZE",
        help="the machine, for example v5p:4x4x8, v6e:2x4, h200:8 or cpu:8; 2xv5p:4x4x8: two slices, 2xh200:8: two "
        "machines, joined by a slower network (mesh.slices); required",
    )
    plan.add_argument(
        "--backend",
        default="abstract",
        choices=("abstract", "compile"),
        help="abstract estimates within seconds; compile also compiles the real programs, which takes minutes "
        "(default: abstract)",
    )
    plan.add_argument(
        "--compiler",
        type=Path,
        metavar="DIR",
        help="folder with libtpu or the CUDA plugin (default: compilers/tpu or compilers/cuda)",
    )
    plan.set_defaults(carry_out=_plan)


def add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `report`."""
    report = commands.add_parser("report", help="write a run's results as one HTML page", allow_abbrev=False)
    report.add_argument("--run-dir", type=run_place, required=True, metavar="DIR", help="the run; gets report.html")
    report.set_defaults(carry_out=_report)


def _plan(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Return 1 if the run does not fit into memory, else 0."""
    from r2rank_jax.plan import plan

    config = configuration(arguments, overrides)
    if arguments.topology is None:
        raise UsageError("`r2rank plan` needs --topology KIND:SIZE, for example v5p:2x2x2, h200:8 or cpu:8")
    message = plan.run(config, arguments.topology, arguments.backend, arguments.compiler)
    if message is not None:
        print(f"r2rank: {message}", file=sys.stderr)
    return 0 if message is None else 1


def _report(arguments: argparse.Namespace, _: list[str]) -> int:
    from r2rank_jax.report.build import build

    stored = stored_run(arguments, use="look")
    with nullcontext() if stored is None else fetched(stored):
        run_dir = _existing_run(arguments.run_dir)
        require_file(run_dir / "report.html", "--run-dir")
        print(build(run_dir))
    return 0


def _existing_run(run_dir: Path) -> Path:
    if not run_dir.is_dir():
        raise UsageError(f"--run-dir must be a run directory, got {run_dir}, which does not exist")
    return run_dir
