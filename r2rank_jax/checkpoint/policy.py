"""The policy of a phase, as other phases and commands use it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import orbax.checkpoint as ocp

from r2rank_jax.checkpoint.commits import Checkpoints, reading
from r2rank_jax.checkpoint.folders import sealed_steps
from r2rank_jax.config import RunConfig
from r2rank_jax.errors import CheckpointError
from r2rank_jax.lineage import require_same_model
from r2rank_jax.phases import PhaseRecord
from r2rank_jax.types import Params


@dataclass(frozen=True)
class LoadedPolicy:
    """The policy of a phase, and the commit that it comes from."""

    params: Params
    record: PhaseRecord
    identity: str
    step: int


def load_policy(
    directory: Path, like: Params, config: RunConfig, *, step: int | None = None, unfinished: bool = False
) -> LoadedPolicy:
    """Load the policy of a phase: its parameter average if it has one.

    Args:
        directory: `<run>/checkpoints/<phase>`.
        like: abstract parameters with shapes, dtypes and shardings.
        config: the current configuration; its model must be the checkpoint's.
        step: a commit's step; None: of the best validation, or the latest of a phase without `patience`.
        unfinished: accept a phase that has not finished.

    Raises:
        CheckpointError: there is no such checkpoint, the phase did not finish, or it trained another model.
    """
    steps = sealed_steps(directory)
    if not steps:
        raise CheckpointError(f"no checkpoint in {directory}; run `r2rank {directory.name.split('_')[0]}` first")
    if step is not None and step not in steps:
        raise CheckpointError(
            f"--step must be one of the checkpoints of {directory.name}, {', '.join(map(str, steps))}, got {step}"
        )
    checkpoints = Checkpoints(directory, read_only=True)
    chosen = step
    if step is None:
        step = checkpoints.latest()
        if step is None:
            raise CheckpointError(f"every checkpoint in {directory} is damaged; run that phase again")
    elif problem := checkpoints.problem(step):
        raise CheckpointError(f"checkpoint {directory.name}/{step} is damaged ({problem}); choose another --step")
    record = checkpoints.record(step)
    if not record.finished and not unfinished:
        raise CheckpointError(
            f"{directory.name} stopped at step {step} of {record.steps}; run the same command again to finish it"
        )
    require_same_model(record, config)
    if chosen is None and record.best is not None:
        problem = checkpoints.problem(record.best.step) if record.best.step in steps else "it is missing"
        if problem is None:
            step = record.best.step
        else:
            print(f"{directory.name}/{record.best.step}, of the best validation, is damaged ({problem}); using {step}")
    field = "average" if record.has_average else "params"
    with ocp.PyTreeCheckpointer() as reader, reading(directory / str(step)):
        restored = reader.restore(
            directory.absolute() / str(step) / "state",
            args=ocp.args.PyTreeRestore(
                item={field: like},
                restore_args={field: ocp.checkpoint_utils.construct_restore_args(like)},
                partial_restore=True,
            ),
        )
    identity = checkpoints.identity(step)
    checkpoints.close()
    return LoadedPolicy(restored[field], record, identity, step)
