"""The phases of a run, and the record that each of them commits with its train state."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from r2rank_jax.errors import CheckpointError

Phase = Literal["sft", "sft_continued", "rl"]
"""SFT; SFT continued with as much work as RL, which is RL's control; and RL. The last two start from the first."""

PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass(frozen=True, kw_only=True)
class InputHashes:
    """SHA-256 of what a phase reads. Equal hashes mean equal contents, wherever the files are."""

    interactions: str
    items: str
    candidates: str
    """Of the held-out lists of the split."""
    tokenizer: str


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best validation of a phase so far."""

    step: int
    value: float
    """NDCG at the largest of `evaluation.ks`."""
    later: int = 0
    """Validations since, none of them better."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Best:
        """From the fields that this version has."""
        return cls(**{f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values})


@dataclass(frozen=True, kw_only=True)
class PhaseRecord:
    """What a phase needs to resume, and what later commands read of it; stored as JSON in every checkpoint."""

    phase: Phase
    config: Mapping[str, Any]
    """The run's configuration as JSON."""
    iterator: Any
    """State of the data iterator, from its `get_state`."""
    traces: str | None = None
    """SHA-256 of the traces; of SFT only."""
    reference: str | None = None
    """Identity of the SFT checkpoint that the phase started from; of RL and of SFT continued."""
    inputs: Mapping[str, str] | None = None
    """`InputHashes` as a dictionary; None in checkpoints that are older than this field."""
    changes: tuple[str, ...] = ()
    """Settings that were changed on purpose when the phase was resumed, such as more steps."""
    skipped: int = 0
    """Updates that were skipped so far because their gradient was not finite."""
    step: int | None = None
    """Steps done; None in checkpoints that are older than this field."""
    steps: int
    """Of the whole phase."""
    wall_s: float
    """Seconds of training so far, over all resumptions."""
    logp_gap: float | None = None
    """Largest |trainer's - sampler's log-probability| since the last logged step; of RL only."""
    finished: bool
    validated: bool = True
    """Whether a validation that was due at this step is done; False where the phase was told to stop during it."""
    finite_at: int | None = None
    """Step of the last validation whose scores were finite; None in checkpoints that are older than this field."""
    has_average: bool
    """Whether the state holds an average of the parameters, which then is the policy."""
    best: Best | None = None
    """Of a phase with `patience`: its policy is that of this step, not the newest."""

    @property
    def done(self) -> int:
        """Steps done when this was committed."""
        return self.steps if self.step is None else self.step

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the optional fields that have their default."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        plain = {name: value for name, value in values.items() if value != defaults[name]}
        plain |= {"changes": list(self.changes)} if self.changes else {}
        return plain | ({"best": dataclasses.asdict(self.best)} if self.best else {})

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PhaseRecord:
        """Inverse of `to_json`. Fields that this version does not have are ignored.

        Raises:
            CheckpointError: a required field is missing.
        """
        fields = dataclasses.fields(cls)
        missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in values]
        if missing:
            raise CheckpointError(f"a checkpoint's record must hold {missing[0]!r}, got {sorted(values)}; train again")
        known = {f.name: values[f.name] for f in fields if f.name in values}
        best = Best.from_json(known["best"]) if known.get("best") else None
        return cls(**known | {"changes": tuple(known.get("changes", ())), "best": best})
