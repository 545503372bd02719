"""Checkpoints that are committed as a whole and sealed with checksums.

A commit is the folder `<phase>/<step>/`, which Orbax writes asynchronously and renames into place. It holds the train
state and, as `extras`, the phase's `PhaseRecord`: the data iterator's state, the configuration and everything else the
phase needs to resume. When Orbax has finished, `seal.json` is added with the SHA-256 of every file. Only a sealed
folder whose files match is used, because Orbax's `latest_step` can name a step whose save failed, and Orbax does not
detect flipped bits.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from r2rank_jax.config import RunConfig, differences, in_current_fields, to_json
from r2rank_jax.errors import CheckpointError
from r2rank_jax.phases import PhaseRecord
from r2rank_jax.types import Params

SEAL = "seal.json"


class Checkpoints:
    """The commits of one phase of a run."""

    def __init__(self, directory: Path, *, keep: int = 2, read_only: bool = False):
        """Open `directory` and delete the remains of interrupted saves.

        Args:
            directory: `<run>/checkpoints/<phase>`.
            keep: the number of newest commits to keep.
            read_only: delete and move nothing, since a training run may be writing the unsealed folder.
        """
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs every barrier
        self.directory = directory.absolute()
        self._keep = keep
        self._read_only = read_only
        if jax.process_index() == 0 and not read_only:
            self.directory.mkdir(parents=True, exist_ok=True)
            for folder in self.directory.iterdir():
                if folder.is_dir() and not (folder / SEAL).exists():
                    shutil.rmtree(folder)
        self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._sealer = ThreadPoolExecutor(max_workers=1)
        self._sealing: Future[None] | None = None

    def save(self, step: int, state: Any, record: PhaseRecord) -> None:
        """Commit `state` and `record` together in the background. The arrays are copied before this method returns."""
        self.wait()
        self._writer.save(
            self.directory / str(step),
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), extras=ocp.args.JsonSave(record.to_json())),
        )
        self._sealing = self._sealer.submit(self._seal, step)

    def wait(self) -> None:
        """Wait until the last save is sealed. If it failed, its exception is raised here."""
        if self._sealing is not None:
            self._sealing.result()
            self._sealing = None

    def latest(self) -> int | None:
        """The newest sealed step whose files match their checksums. Damaged steps are reported and skipped."""
        for step in sealed_steps(self.directory):
            problem = damage(self.directory / str(step))
            if problem is None:
                return step
            print(f"checkpoint {self.directory.name}/{step} is damaged ({problem}); using the one before it")
            if self._read_only:
                continue
            _wait_for_everyone(f"damaged {step}")  # all processes must have read the folder before it is moved
            if jax.process_index() == 0:
                shutil.move(self.directory / str(step), self.directory.parent / f"{self.directory.name}.damaged.{step}")
        return None

    def restore(self, step: int, like: Any) -> tuple[Any, PhaseRecord]:
        """Restore state and record of one commit.

        Args:
            step: from `latest`.
            like: abstract state with shapes, dtypes and shardings.
        """
        restored = self._writer.restore(
            self.directory / str(step),
            args=ocp.args.Composite(state=ocp.args.StandardRestore(like), extras=ocp.args.JsonRestore()),
        )
        return restored.state, PhaseRecord.from_json(restored.extras)

    def record(self, step: int) -> PhaseRecord:
        """The record of one commit, without its state."""
        folder = self.directory / str(step)
        restored = self._writer.restore(folder, args=ocp.args.Composite(extras=ocp.args.JsonRestore()))
        return PhaseRecord.from_json(restored.extras)

    def identity(self, step: int) -> str:
        """The SHA-256 of the commit's seal, which identifies the content of the commit."""
        return hashlib.sha256((self.directory / str(step) / SEAL).read_bytes()).hexdigest()

    def close(self) -> None:
        """Wait for the last save and its seal."""
        self.wait()
        self._sealer.shutdown()
        self._writer.close()

    def _seal(self, step: int) -> None:
        """Wait until Orbax has renamed the save into place, write its seal, and only then delete older commits."""
        self._writer.wait_until_finished()
        if jax.process_index() != 0:
            return
        write_seal(self.directory / str(step))
        for old in sealed_steps(self.directory)[self._keep :]:
            shutil.rmtree(self.directory / str(old))


def sealed_steps(directory: Path) -> list[int]:
    """The sealed steps of a phase's folder, newest first."""
    if not directory.is_dir():
        return []
    steps = [int(f.name) for f in directory.iterdir() if f.name.isdigit() and (f / SEAL).exists()]
    return sorted(steps, reverse=True)


def write_seal(folder: Path) -> None:
    """Write the checksums of all files under `folder`, so that `damage` can check them."""
    partial = folder / f"{SEAL}.partial"
    partial.write_text(json.dumps(_checksums(folder), indent=0, sort_keys=True), encoding="utf-8")
    os.replace(partial, folder / SEAL)


def damage(folder: Path) -> str | None:
    """A description of the first file that does not match the seal, or None if all match."""
    try:
        sealed = dict(json.loads((folder / SEAL).read_bytes()))
    except (ValueError, TypeError):
        return f"{SEAL} is not readable"
    actual = _checksums(folder)
    for name in sorted(set(sealed) | set(actual)):
        if name not in actual:
            return f"{name} is missing"
        if sealed.get(name) != actual[name]:
            return f"{name} does not match its checksum"
    return None


def require_same_configuration(saved: Mapping[str, Any], config: Mapping[str, Any], parts: tuple[str, ...]) -> None:
    """Refuse to resume from a checkpoint of another configuration.

    Args:
        saved: the commit's configuration as JSON.
        config: the current configuration as JSON.
        parts: top-level sections that the phase depends on.

    Raises:
        CheckpointError: a field differs. The message names all fields that do.
    """
    old, new = ({p: without_machine_settings(_with_defaults(c.get(p), p)) for p in parts} for c in (saved, config))
    changed = differences(old, new)
    if changed:
        raise CheckpointError(
            "the checkpoint in this run directory belongs to another configuration; differing (saved -> now): "
            + "; ".join(changed)
            + ". Run with the saved settings, or choose another --run-dir"
        )


def _with_defaults(section: Any, name: str) -> Any:
    """Add fields that are newer than the saved section. When it was saved, the code behaved as with their defaults."""
    if not isinstance(section, dict):
        return section
    return to_json(RunConfig(name="any"))[name] | in_current_fields(section)


def without_machine_settings(section: Any) -> Any:
    """A section of a configuration without the settings that may differ between machines."""
    return (
        {k: v for k, v in section.items() if k not in ("attention", "remat")} if isinstance(section, dict) else section
    )


def load_policy(directory: Path, like: Params, config: Mapping[str, Any]) -> tuple[Params, PhaseRecord, str]:
    """Load the policy of a finished phase: its parameter average if it has one.

    Args:
        directory: `<run>/checkpoints/<phase>`.
        like: abstract parameters with shapes, dtypes and shardings.
        config: the current configuration as JSON; its model must be the checkpoint's.

    Returns:
        The parameters, the commit's record and its identity.

    Raises:
        CheckpointError: there is no checkpoint, the phase did not finish, or it trained another model.
    """
    if not sealed_steps(directory):
        raise CheckpointError(f"no checkpoint in {directory}; run `r2rank {directory.name.split('_')[0]}` first")
    checkpoints = Checkpoints(directory, read_only=True)
    step = checkpoints.latest()
    if step is None:
        raise CheckpointError(f"every checkpoint in {directory} is damaged; run that phase again")
    record = checkpoints.record(step)
    if not record.finished:
        raise CheckpointError(
            f"{directory.name} stopped at step {step} of {record.steps}; run the same command again to finish it"
        )
    require_same_configuration(record.config, config, ("model",))  # a model with equal shapes would load without error
    field = "average" if record.has_average else "params"
    folder = directory.absolute() / str(step) / "state"
    with ocp.PyTreeCheckpointer() as reader:
        restored = reader.restore(
            folder,
            args=ocp.args.PyTreeRestore(
                item={field: like},
                restore_args={field: ocp.checkpoint_utils.construct_restore_args(like)},
                partial_restore=True,
            ),
        )
    identity = checkpoints.identity(step)
    checkpoints.close()
    return restored[field], record, identity


def _wait_for_everyone(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(f for f in folder.rglob("*") if f.is_file() and not f.name.startswith(SEAL))
    return {str(f.relative_to(folder)): _sha256(f) for f in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
