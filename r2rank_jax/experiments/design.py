"""What an experiment is. A file in `configs/experiments/` returns one `Experiment`; docs/experiments.md explains it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r2rank_jax.config import RunConfig, differences, to_json, with_values
from r2rank_jax.errors import ConfigError
from r2rank_jax.lineage import PROMPT, without_machine_settings
from r2rank_jax.phases import Phase


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One policy of an experiment, trained once per seed; its name is that of the system in the results."""

    name: str
    phase: Phase
    start: str | None = None
    """The arm that it starts from: RL from an SFT arm. SFT continued names the RL arm whose work it repeats."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Settings that differ from those of the arm that it starts from or, without one, from the experiment's
    configuration, by dotted name."""
    asks: str
    """What this arm is there to show, for the page."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """A command of `r2rank` that makes the data, run if `makes` does not exist."""

    command: tuple[str, ...]
    makes: str


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Other candidates for the same test interactions. Finished arms and baselines rank them; nothing is trained."""

    name: str
    """The results are in `results/EXPERIMENT_NAME.json`."""
    title: str
    """What the candidates are, for the page."""
    directory: str
    """A prepared folder of the same interactions and split."""
    data: tuple[Preparation, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A grid of seeds and arms."""

    name: str
    """Of `results/NAME.json` and of the folder of its runs."""
    title: str
    config: RunConfig
    seeds: tuple[int, ...]
    """Of parameters, batches and sampling. Data, traces and held-out lists are the same for all seeds."""
    arms: tuple[Arm, ...]
    """An arm comes after the one that it starts from."""
    baselines: tuple[str, ...] = ()
    """Systems of `evaluation.baselines.systems`, tuned on the validation lists."""
    comparisons: tuple[tuple[str, str], ...] = ()
    """Pairs of systems; the first is expected to be better."""
    probes: tuple[str, ...] = ()
    """Arms that `r2rank probe` probes on the test lists, for every seed."""
    also: tuple[Protocol, ...] = ()
    """Other candidates that the finished arms and the baselines rank too."""
    data: tuple[Preparation, ...] = ()
    notes: tuple[str, ...] = ()
    """What a reader of the results must know, failures included."""

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        _require(len(names) == len(set(names)) > 0, f"arms must have different names, got {names}")
        _require(len(self.seeds) == len(set(self.seeds)) > 0, f"seeds must differ, got {list(self.seeds)}")
        protocols = [protocol.name for protocol in self.also]
        _require(len(protocols) == len(set(protocols)), f"protocols must have different names, got {protocols}")
        for name in (self.name, *names, *protocols):
            _require(
                re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) is not None,
                f"names of experiments, arms and protocols must be letters, digits, '_', '-' and '.', got {name!r}",
            )
        for place, arm in enumerate(self.arms):
            self._check_start(arm, self.arms[:place])
        known = {*names, *self.critics(), *self.baselines}
        for pair in self.comparisons:
            _require(set(pair) <= known, f"comparisons must name arms or baselines {sorted(known)}, got {pair}")
        twice = sorted({*names, *self.critics()} & {*self.baselines} | {*names} & {*self.critics()})
        _require(not twice, f"arms and baselines must have different names, got {twice} twice")
        _require({*self.probes} <= {*names}, f"probes must name arms {names}, got {list(self.probes)}")

    def _check_start(self, arm: Arm, earlier: tuple[Arm, ...]) -> None:
        needed: dict[Phase, Phase | None] = {"sft": None, "rl": "sft", "sft_continued": "rl"}
        before = {other.name: other.phase for other in earlier}
        found = None if arm.start is None else before.get(arm.start, "missing")
        wanted = needed[arm.phase]
        start = f"an earlier {wanted} arm" if wanted else "none"
        _require(
            found == wanted,
            f"arm {arm.name} of phase {arm.phase} must start from {start}, "
            f"got start={arm.start!r}; earlier arms: {before or 'none'}",
        )
        _require("seed" not in arm.values, f"arm {arm.name} must not set seed, which the experiment's seeds do")
        config = self.config_of(arm, self.seeds[0])  # refuses wrong values now
        if arm.phase == "sft":
            config.require_critic_lists()
        if arm.start is not None:
            changed = differences(_lasting(self.config_of(self.arm(arm.start), self.seeds[0])), _lasting(config))
            _require(
                not changed,
                f"arm {arm.name} must have the model, prompts and data of {arm.start}, from which it starts, but "
                f"changes {'; '.join(changed)}; start it from an arm that has them",
            )

    def arm(self, name: str) -> Arm:
        """The arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)

    def critics(self) -> dict[str, Arm]:
        """The rankings by critics alone: name of the system -> the SFT arm that trains the critic."""
        return {
            f"{arm.name}_critic": arm
            for arm in self.arms
            if arm.phase == "sft" and self.config_of(arm, self.seeds[0]).sft.critic_users
        }

    def lineage(self, arm: Arm) -> tuple[Arm, ...]:
        """The arms that this one builds on, from the first to itself."""
        return (*(() if arm.start is None else self.lineage(self.arm(arm.start))), arm)

    def config_of(self, arm: Arm, seed: int) -> RunConfig:
        """The configuration of an arm's run: that of the arm that it starts from, with its own values.

        Raises:
            ConfigError: `values` holds a field or a value that a configuration cannot have.
        """
        values: dict[str, Any] = {}
        for each in self.lineage(arm):
            values |= each.values
        return with_values(self.config, {**values, "seed": seed})

    def directory(self, root: Path, arm: Arm, seed: int) -> Path:
        """The run directory of an arm. SFT continued shares that of the RL arm whose work it repeats."""
        return root / f"seed{seed}" / (str(arm.start) if arm.phase == "sft_continued" else arm.name)


def _lasting(config: RunConfig) -> dict[str, Any]:
    """What a policy keeps when it is trained further."""
    values = to_json(config)
    data = {name: values["data"][name] for name in (*PROMPT, "directory", "split")}
    return {"model": without_machine_settings(values["model"]), "data": data, "pretrained": values["pretrained"]}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
