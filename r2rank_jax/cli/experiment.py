"""`r2rank experiment`: train and evaluate a grid of arms and seeds, and write its results and the page."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from r2rank_jax.cli.arguments import count
from r2rank_jax.cli.configuration import returned_by
from r2rank_jax.errors import UsageError
from r2rank_jax.files.places import require_file, require_folder

if TYPE_CHECKING:
    from r2rank_jax.experiments.design import Experiment


def add_experiment(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `experiment`."""
    command = commands.add_parser(
        "experiment",
        help="train and evaluate a grid of arms and seeds, and write its results",
        allow_abbrev=False,
        description="Run what has not been run of an experiment: its data, the arms for every seed, their evaluation "
        "on the test lists, the baselines. Then write its results and the page. Interrupted, the same command goes on.",
    )
    add = command.add_argument
    add("file", type=Path, nargs="?", metavar="FILE", help="Python file that defines experiment() -> Experiment")
    add("--runs", type=Path, default=Path("runs/experiments"), help="folder of the runs (default: %(default)s)")
    add("--results", type=Path, default=Path("results"), help="folder of the results (default: %(default)s)")
    add("--page", type=Path, default=Path("RESULTS.md"), help="page to write (default: %(default)s)")
    add("--jobs", type=count, default=1, help="runs at a time; each gets its share of the CPUs (default: 1)")
    add("--train-only", action="store_true", help="do not evaluate on the test lists yet")
    add("--page-only", action="store_true", help="only rebuild the page from the results")
    command.set_defaults(carry_out=_experiment)


def _experiment(arguments: argparse.Namespace, overrides: list[str]) -> int:
    if overrides:
        raise UsageError(f"unknown argument {overrides[0]!r}; the settings of an experiment are in its file")
    from r2rank_jax.experiments.page import write_page

    if arguments.page_only:
        write_page(arguments.results, arguments.page)
        print(f"{arguments.page}: written from {arguments.results}")
        return 0
    if arguments.file is None:
        raise UsageError("`r2rank experiment` needs FILE, for example configs/experiments/ml100k_loo.py")
    require_folder(arguments.results, "--results")
    require_file(arguments.page, "--page")
    experiment = load_experiment(arguments.file)
    root = arguments.runs / experiment.name
    require_folder(root, "--runs")
    from r2rank_jax.experiments.datasets import prepare_data, require_same_interactions
    from r2rank_jax.experiments.jobs import evaluation_jobs, training_jobs
    from r2rank_jax.experiments.running import run_all

    prepare_data(experiment)
    require_same_interactions(experiment)
    run_all(training_jobs(experiment, root), parallel=arguments.jobs)
    if arguments.train_only:
        print("trained; without --train-only, the test lists are scored next")
        return 0
    run_all(evaluation_jobs(experiment, root), parallel=arguments.jobs)
    from r2rank_jax.evaluation.results import write_results
    from r2rank_jax.experiments.gather import gather

    command = shlex.join(["r2rank", "experiment", str(arguments.file)])
    gathered = {
        "_".join([experiment.name, *([protocol.name] if protocol else [])]): gather(
            experiment, root, command=command, protocol=protocol
        )
        for protocol in (None, *experiment.also)
    }
    arguments.results.mkdir(parents=True, exist_ok=True)
    for name, results in gathered.items():
        write_results(arguments.results / f"{name}.json", results)
        print(f"{arguments.results / f'{name}.json'}: written")
    write_page(arguments.results, arguments.page)
    print(f"{arguments.page}: written")
    return 0


def load_experiment(path: Path) -> Experiment:
    """The experiment that `experiment()` of a Python file returns.

    Raises:
        UsageError: there is no such file, or it does not define an experiment.
    """
    from r2rank_jax.experiments import design

    if path.suffix != ".py" or not path.is_file():
        raise UsageError(f"FILE must be a Python file that defines experiment(), got {path}")
    return returned_by(path, "experiment", design.Experiment)
