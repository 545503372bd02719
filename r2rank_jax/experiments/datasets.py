"""The prepared folders of an experiment, made if they are missing, and what they must have in common."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r2rank_jax.data.prepared.dataset import Dataset, load
from r2rank_jax.errors import ExperimentError
from r2rank_jax.experiments.design import Experiment, Protocol


def prepare_data(experiment: Experiment) -> None:
    """Run the commands whose results do not exist.

    Raises:
        ExperimentError: a command failed.
    """
    preparations = [*experiment.data, *(each for protocol in experiment.also for each in protocol.data)]
    for preparation in preparations:
        if not Path(preparation.makes).exists():
            command = shlex.join(["r2rank", *preparation.command])
            print(command, flush=True)
            done = subprocess.run([sys.executable, "-m", "r2rank_jax.cli", *preparation.command])
            if done.returncode:
                raise ExperimentError(f"`{command}` failed with exit code {done.returncode}")


def dataset_of(experiment: Experiment, protocol: Protocol | None = None) -> Dataset:
    """The data of an experiment, with the candidates of a protocol or its own."""
    data = experiment.config.data
    return load(Path(data.directory if protocol is None else protocol.directory), data.split)


def require_same_interactions(experiment: Experiment) -> None:
    """Refuse a protocol that differs in more than its candidates: its test positives might have been trained on.

    Raises:
        ExperimentError: interactions or items differ, or the candidates do not.
    """
    own = dataset_of(experiment)
    for protocol in experiment.also:
        other = dataset_of(experiment, protocol)
        for what, a, b in (
            ("interactions", own.data_hash, other.data_hash),
            ("items", own.items_hash, other.items_hash),
        ):
            if a != b:
                raise ExperimentError(
                    f"protocol {protocol.name} must have the {what} of {experiment.config.data.directory} (SHA-256 "
                    f"{a[:12]}), but {protocol.directory} has others ({b[:12]}); prepare it from the same source with "
                    "the same settings except --negatives, --candidates and --seed"
                )
        if own.candidate_hash == other.candidate_hash:
            raise ExperimentError(
                f"protocol {protocol.name} must have other candidates than {experiment.config.data.directory}, but "
                f"{protocol.directory} has the same; prepare it with other --negatives or --candidates"
            )


def require_same_lists(measured: Mapping[str, Any], dataset: Dataset, path: Path, *, redo: Path) -> None:
    """Refuse what was measured on other data or candidates.

    Args:
        measured: content of a results file.
        dataset: the data as they are now.
        path: of the file, for the message.
        redo: file to delete to have it measured again, for the message.

    Raises:
        ExperimentError: a hash differs.
    """
    for name, expected in (("data_hash", dataset.data_hash), ("candidate_hash", dataset.candidate_hash)):
        if measured[name] != expected:
            raise ExperimentError(
                f"{path} was measured on other lists ({name} {measured[name][:12]}, now {expected[:12]}); restore the "
                f"data, or delete {redo} and run the experiment again"
            )
