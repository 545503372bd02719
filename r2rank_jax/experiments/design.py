"""What an experiment is. A file in `configs/experiments/` returns one `Experiment`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r2rank_jax.config import RunConfig, with_values
from r2rank_jax.errors import ConfigError
from r2rank_jax.phases import Phase


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One policy of an experiment, trained once per seed; its name is that of the system in the results."""

    name: str
    phase: Phase
    start: str | None = None
    """The arm that it starts from: RL from an SFT arm. SFT continued names the RL arm whose work it repeats."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Settings that differ from the experiment's configuration, by dotted name."""
    asks: str
    """What this arm is there to show, for the page."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """A command of `r2rank` that makes the data, run if `makes` does not exist."""

    command: tuple[str, ...]
    makes: str


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
    data: tuple[Preparation, ...] = ()
    notes: tuple[str, ...] = ()
    """What a reader of the results must know, failures included."""

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        _require(len(names) == len(set(names)) > 0, f"arms must have different names, got {names}")
        _require(len(self.seeds) == len(set(self.seeds)) > 0, f"seeds must differ, got {list(self.seeds)}")
        needed: dict[Phase, Phase | None] = {"sft": None, "rl": "sft", "sft_continued": "rl"}
        for place, arm in enumerate(self.arms):
            before = {other.name: other.phase for other in self.arms[:place]}
            found = None if arm.start is None else before.get(arm.start, "missing")
            wanted = needed[arm.phase]
            start = f"an earlier {wanted} arm" if wanted else "none"
            _require(
                found == wanted,
                f"arm {arm.name} of phase {arm.phase} must start from {start}, "
                f"got start={arm.start!r}; earlier arms: {before or 'none'}",
            )
            self.config_of(arm, self.seeds[0])  # refuses wrong values now
        known = {*names, *self.baselines}
        for pair in self.comparisons:
            _require(set(pair) <= known, f"comparisons must name arms or baselines {sorted(known)}, got {pair}")

    def arm(self, name: str) -> Arm:
        """The arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)

    def config_of(self, arm: Arm, seed: int) -> RunConfig:
        """The configuration of an arm's run.

        Raises:
            ConfigError: `values` holds a field or a value that a configuration cannot have.
        """
        values = {"seed": seed, **arm.values}
        if arm.phase == "sft_continued":  # it trains in the directory of the RL arm
            values = {"seed": seed, **self.arm(str(arm.start)).values, **arm.values}
        return with_values(self.config, values)

    def directory(self, root: Path, arm: Arm, seed: int) -> Path:
        """The run directory of an arm. SFT continued shares that of the RL arm whose work it repeats."""
        return root / f"seed{seed}" / (str(arm.start) if arm.phase == "sft_continued" else arm.name)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
