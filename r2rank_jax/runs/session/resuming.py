"""Where a phase starts: at its latest commit if settings and inputs are the same, else from the beginning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from r2rank_jax.checkpoint.commits import Checkpoints
from r2rank_jax.checkpoint.folders import sealed_steps
from r2rank_jax.config import RunConfig
from r2rank_jax.errors import CheckpointError, Stopped
from r2rank_jax.lineage import require_same_inputs, require_same_settings
from r2rank_jax.phases import Best, InputHashes, Phase, PhaseRecord
from r2rank_jax.runs.session.divergence import has_diverged
from r2rank_jax.runs.session.log import say


@dataclass(frozen=True)
class Resumption:
    """The commit that a phase continues from; step 0 and no record if it starts from the beginning."""

    step: int = 0
    record: PhaseRecord | None = None
    changes: tuple[str, ...] = ()
    """Settings that were changed on purpose, now or when the phase was resumed before."""

    @property
    def first_step(self) -> int:
        """The first step to work on: the next one, or that of the commit if its validation is not done."""
        return self.step + 1 if self.validated else self.step

    @property
    def validated(self) -> bool:
        """Whether nothing is left to do at the step of the commit."""
        return self.record is None or self.record.validated

    @property
    def wall_s(self) -> float:
        return self.record.wall_s if self.record else 0.0

    @property
    def skipped(self) -> int:
        return self.record.skipped if self.record else 0

    @property
    def finite_at(self) -> int:
        """Step of the last validation whose scores were finite, or of the commit if it does not say."""
        return self.step if self.record is None or self.record.finite_at is None else self.record.finite_at

    @property
    def best(self) -> Best | None:
        return self.record.best if self.record else None

    @property
    def logp_gap(self) -> float:
        return (self.record.logp_gap or 0.0) if self.record else 0.0


def resume(
    run_dir: Path,
    phase: Phase,
    checkpoints: Checkpoints,
    config: RunConfig,
    hashes: InputHashes,
    *,
    traces: str | None = None,
    reference: str | None = None,
) -> Resumption:
    """Find the latest commit of a phase and check that this command continues it.

    Args:
        run_dir: the run directory.
        phase: to continue.
        checkpoints: of the phase.
        config: the current configuration.
        hashes: of the current data and tokenizer.
        traces: SHA-256 of the traces, of SFT.
        reference: identity of the SFT checkpoint that the phase starts from, of RL and of SFT continued.

    Raises:
        CheckpointError: the commit has other settings, data, traces or another reference; or SFT would change after a
            later phase has started from it.
    """
    step = checkpoints.latest()
    if step is None:
        return Resumption()
    record = checkpoints.record(step)
    changes = require_same_settings(record, config, done=step, diverged=has_diverged(run_dir, phase))
    require_same_inputs(record, config, hashes)
    if record.traces != traces:
        raise CheckpointError(
            f"the checkpoint in {run_dir} was trained on traces with SHA-256 {str(record.traces)[:12]}, the file now "
            f"has {str(traces)[:12]}; restore the file, or choose another --run-dir"
        )
    if record.reference not in (None, reference):
        raise CheckpointError(
            f"{phase} in {run_dir} must resume with the SFT checkpoint that it started from "
            f"({str(record.reference)[:12]}), got {str(reference)[:12]}; restore it, or choose another --run-dir"
        )
    later = [name for name in ("rl", "sft_continued") if sealed_steps(run_dir / "checkpoints" / name)]
    if changes and phase == "sft" and later:
        raise CheckpointError(
            f"SFT in {run_dir} must stay as it is, because {' and '.join(later)} started from it; got {changes[0]}; "
            "train it further in another --run-dir"
        )
    steps = config.rl.steps if phase == "rl" else config.sft.steps
    ended = (step == steps and record.validated) or (
        record.finished and not changes
    )  # early, where no validation got better
    say(f"{phase}: {'finished' if ended else 'resuming'} at step {step} of {steps}")
    for change in changes:
        say(f"{phase}: {change}")
    return Resumption(step, record, (*record.changes, *changes))


def stopped_in(phase: Phase, checkpoints: Checkpoints, steps: int) -> Stopped:
    """What to raise after a phase was told to stop and has committed.

    Args:
        phase: that stopped.
        checkpoints: of the phase, closed.
        steps: of the whole phase.
    """
    commits = sealed_steps(checkpoints.directory)
    where = f"step {commits[0]} of {steps} is committed" if commits else "nothing was done yet"
    return Stopped(f"{phase} stopped as told: {where}; run the same command again to go on")
