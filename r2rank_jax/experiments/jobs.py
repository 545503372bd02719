"""The commands that train, evaluate and probe the arms of an experiment, each a process of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from r2rank_jax.config import RunConfig, with_values
from r2rank_jax.experiments.design import Arm, Experiment, Protocol
from r2rank_jax.phases import Phase

COMMANDS: dict[Phase, tuple[str, ...]] = {"sft": ("sft",), "rl": ("rl",), "sft_continued": ("sft", "--continued")}


@dataclass(frozen=True)
class Job:
    """One command of an experiment."""

    name: str
    arguments: tuple[str, ...]  # of `r2rank`
    directory: Path  # the run directory
    config: RunConfig
    done: Path  # written when it has finished; the configuration and the log are beside it
    after: tuple[str, ...] = ()  # names of jobs that must have finished
    start: Path | None = None  # the run directory whose SFT policy it starts from
    phases: tuple[Phase, ...] = ()  # that an evaluation ranks by; it is repeated when there are more

    @property
    def log(self) -> Path:
        """The output of the command."""
        return self.done.with_name("log.txt")


def training_jobs(experiment: Experiment, root: Path) -> list[Job]:
    """One job for each arm and seed."""
    return [_training(experiment, root, arm, seed) for seed in experiment.seeds for arm in experiment.arms]


def evaluation_jobs(experiment: Experiment, root: Path) -> list[Job]:
    """For each run directory and protocol, one job that scores the test lists; for each probed arm, one that probes."""
    jobs = [_evaluation(experiment, root, arm, seed, None) for seed, arm in _of_directories(experiment)]
    for protocol in experiment.also:
        jobs += [_evaluation(experiment, root, arm, seed, protocol) for seed, arm in _of_directories(experiment)]
    return jobs + [
        _probing(experiment, root, experiment.arm(name), seed)
        for seed in experiment.seeds
        for name in experiment.probes
    ]


def evaluation_folder(directory: Path, protocol: Protocol | None) -> Path:
    """Where the evaluation of a run directory writes."""
    return directory if protocol is None else directory / f"also-{protocol.name}"


def probe_folder(directory: Path, arm: Arm) -> Path:
    """Where the probes of an arm write."""
    return directory / f"probe-{arm.phase}"


def _of_directories(experiment: Experiment) -> list[tuple[int, Arm]]:
    """Seed and arm of each run directory; SFT continued has none of its own."""
    return [(seed, arm) for seed in experiment.seeds for arm in experiment.arms if arm.phase != "sft_continued"]


def _training(experiment: Experiment, root: Path, arm: Arm, seed: int) -> Job:
    directory = experiment.directory(root, arm, seed)
    start = None
    if arm.phase == "rl":
        start = experiment.directory(root, experiment.arm(str(arm.start)), seed)
    return Job(
        name=f"seed{seed}/{arm.name}",
        arguments=COMMANDS[arm.phase],
        directory=directory,
        config=experiment.config_of(arm, seed),
        done=directory / f"done-{arm.phase}.json",
        after=() if arm.start is None else (f"seed{seed}/{arm.start}",),
        start=start,
    )


def _evaluation(experiment: Experiment, root: Path, arm: Arm, seed: int, protocol: Protocol | None) -> Job:
    directory = experiment.directory(root, arm, seed)
    phases = [a.phase for a in experiment.arms if experiment.directory(root, a, seed) == directory]
    arguments = ("eval", *(part for phase in phases for part in ("--phase", phase)))
    config, folder = experiment.config_of(arm, seed), evaluation_folder(directory, protocol)
    if protocol is not None:
        arguments += ("--other-data", "--out", str(folder))
        config = with_values(config, {"data.directory": protocol.directory})
    return Job(
        name=f"seed{seed}/{arm.name} {'test' if protocol is None else protocol.name}",
        arguments=arguments,
        directory=directory,
        config=config,
        done=folder / "done-eval.json",
        phases=tuple(phases),
    )


def _probing(experiment: Experiment, root: Path, arm: Arm, seed: int) -> Job:
    directory = experiment.directory(root, arm, seed)
    folder = probe_folder(directory, arm)
    run = experiment.arm(str(arm.start)) if arm.phase == "sft_continued" else arm
    return Job(
        name=f"seed{seed}/{arm.name} probes",
        arguments=("probe", "--phase", arm.phase, "--lists", "test", "--out", str(folder)),
        directory=directory,
        config=experiment.config_of(run, seed),
        done=folder / "done-probe.json",
    )
