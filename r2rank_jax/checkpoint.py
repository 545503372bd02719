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
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from r2rank_jax.config import RunConfig
from r2rank_jax.errors import CheckpointError
from r2rank_jax.files.checksums import SEAL, damage, write_seal
from r2rank_jax.lineage import require_same_model
from r2rank_jax.phases import PhaseRecord
from r2rank_jax.types import Params

KEPT = 2
"""Newest commits of a phase that are kept, besides those of the best validation that they name."""


class Checkpoints:
    """The commits of one phase of a run."""

    def __init__(self, directory: Path, *, keep: int = KEPT, read_only: bool = False):
        """Open `directory`, seal a save that only lacks its seal, and delete the remains of interrupted saves.

        Args:
            directory: `<run>/checkpoints/<phase>`.
            keep: the number of newest commits to keep, see `KEPT`.
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
                    _seal_or_delete(folder)
            for old in self.directory.parent.glob(self._replaced("*").name):
                place = self.directory / old.name.rpartition(".")[2]
                if place.exists():
                    shutil.rmtree(old)
                else:  # the commit that was to replace it was never completed
                    os.replace(old, place)
        if not read_only:
            wait_for_everyone(f"opened {directory.name}")  # all processes must see the same commits
        self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._sealer = ThreadPoolExecutor(max_workers=1)
        self._sealing: Future[None] | None = None

    def save(self, step: int, state: Any, record: PhaseRecord) -> None:
        """Commit `state` and `record` together in the background. The arrays are copied before this method returns.

        A commit of the same step, made by a phase that was told to stop before it had validated, is replaced. The old
        one is kept aside until the new one is sealed.
        """
        self.wait()
        record = replace(record, step=step)
        if jax.process_index() == 0 and (self.directory / str(step)).exists():
            shutil.rmtree(self._replaced(step), ignore_errors=True)
            os.replace(self.directory / str(step), self._replaced(step))
        wait_for_everyone(f"save {step}")
        self._writer.save(
            self.directory / str(step),
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), extras=ocp.args.JsonSave(record.to_json())),
        )
        self._sealing = self._sealer.submit(self._seal, step)

    def _replaced(self, step: int | str) -> Path:
        """Where a commit is kept while another one of the same step is written."""
        return self.directory.parent / f"{self.directory.name}.replaced.{step}"

    def wait(self) -> None:
        """Wait until the last save is sealed. If it failed, its exception is raised here."""
        if self._sealing is not None:
            self._sealing.result()
            self._sealing = None

    def latest(self) -> int | None:
        """The newest sound step. Others are reported, moved away unless read-only, and skipped."""
        for step in sealed_steps(self.directory):
            problem = self.problem(step)
            if problem is None:
                return step
            print(f"checkpoint {self.directory.name}/{step} is damaged ({problem}); using the one before it")
            if self._read_only:
                continue
            self._move_away(step, "damaged")
        return None

    def problem(self, step: int) -> str | None:
        """Why a sealed commit cannot be used, or None: files that do not match the seal, or a folder put elsewhere."""
        if changed := damage(self.directory / str(step)):
            return changed
        try:
            record = self.record(step)
        except CheckpointError as error:
            return str(error)
        if record.phase != self.directory.name:
            return f"it is a checkpoint of {record.phase}"
        return f"it was saved as step {record.step}" if record.step not in (None, step) else None

    def set_aside(self, first: int, reason: str) -> None:
        """Move the commits of step `first` and later out of the way, to `<phase>.<reason>.<step>`."""
        self.wait()
        wait_for_everyone("sealed")  # by process 0
        for step in sealed_steps(self.directory):
            if step >= first:
                self._move_away(step, reason)

    def _move_away(self, step: int, reason: str) -> None:
        wait_for_everyone(f"{reason} {step}")  # all processes must have read the folder before it is moved
        if jax.process_index() == 0:
            aside = self.directory.parent / f"{self.directory.name}.{reason}.{step}"
            shutil.rmtree(aside, ignore_errors=True)  # of an earlier time
            shutil.move(self.directory / str(step), aside)
        wait_for_everyone(f"{reason} {step}, moved")

    def restore(self, step: int, like: Any) -> tuple[Any, PhaseRecord]:
        """Restore state and record of one commit.

        Args:
            step: from `latest`.
            like: abstract state with shapes, dtypes and shardings.

        Raises:
            CheckpointError: it cannot be read, although its files match the seal.
        """
        folder = self.directory / str(step)
        with _reading(folder):
            restored = self._writer.restore(
                folder, args=ocp.args.Composite(state=ocp.args.StandardRestore(like), extras=ocp.args.JsonRestore())
            )
        return restored.state, PhaseRecord.from_json(restored.extras)

    def record(self, step: int) -> PhaseRecord:
        """The record of one commit, without its state; raises `CheckpointError` as `restore`."""
        folder = self.directory / str(step)
        with _reading(folder):
            restored = self._writer.restore(folder, args=ocp.args.Composite(extras=ocp.args.JsonRestore()))
        return PhaseRecord.from_json(restored.extras)

    def identity(self, step: int) -> str:
        """The SHA-256 of the commit's seal, which identifies the content of the commit."""
        return _identity(self.directory / str(step))

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
        shutil.rmtree(self._replaced(step), ignore_errors=True)
        steps = sealed_steps(self.directory)
        bests = {_best_step(self.directory / str(kept)) for kept in steps[: self._keep]}
        for old in steps[self._keep :]:
            if old not in bests:
                shutil.rmtree(self.directory / str(old))


def sealed_steps(directory: Path) -> list[int]:
    """The sealed steps of a phase's folder, newest first."""
    if not directory.is_dir():
        return []
    steps = [int(f.name) for f in directory.iterdir() if _is_step(f.name) and (f / SEAL).exists()]
    return sorted(steps, reverse=True)


def policy_identity(directory: Path) -> str | None:
    """Identity of the commit that `load_policy` would load if none is damaged; None if there is none."""
    steps = sealed_steps(directory)
    if not steps:
        return None
    best = _best_step(directory / str(steps[0]))
    return _identity(directory / str(best if best in steps else steps[0]))


def _best_step(folder: Path) -> int | None:
    """The step of the best validation that a commit names; None if it names none or cannot be read.

    Orbax writes the record as a file of JSON. Reading that file needs no devices, which the report must not start.
    """
    try:
        best = json.loads((folder / "extras/metadata").read_bytes())["best"]
        return int(best["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _identity(folder: Path) -> str:
    return hashlib.sha256((folder / SEAL).read_bytes()).hexdigest()


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
    with ocp.PyTreeCheckpointer() as reader, _reading(directory / str(step)):
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


def _seal_or_delete(folder: Path) -> None:
    """Seal a save that was complete when its process was killed; delete any other."""
    if _is_complete(folder):
        write_seal(folder)
        print(f"checkpoint {folder.parent.name}/{folder.name} was complete and is sealed now")
    else:
        shutil.rmtree(folder)


def _is_complete(folder: Path) -> bool:
    """Whether Orbax finished this save: it is named after its step, has its time of commit, and can be read."""
    if not _is_step(folder.name):
        return False
    try:
        committed = json.loads((folder / "_CHECKPOINT_METADATA").read_bytes())["commit_timestamp_nsecs"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(committed) and (folder / "extras/metadata").is_file() and _is_readable(folder / "state")


def _is_readable(state: Path) -> bool:
    """Whether every array can be read. They are read one at a time, as the whole state may not fit into one host."""
    alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix="readable")
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:  # the other processes are not here
        try:
            leaves, kind = jax.tree.flatten(reader.metadata(state).item_metadata.tree)
            for place in range(len(leaves)):
                one = [leaf if i == place else ocp.PLACEHOLDER for i, leaf in enumerate(leaves)]
                item = jax.tree.unflatten(kind, one)
                as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
                reader.restore(state, args=ocp.args.PyTreeRestore(item=item, restore_args=as_numpy))
        except Exception:
            return False
    return bool(leaves)


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdecimal()


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Turn errors of Orbax into one line."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # Orbax raises errors of many types, Exception itself among them
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"checkpoint {folder.parent.name}/{folder.name} cannot be read ({reason:.200}); remove or restore {folder}"
        ) from error


def wait_for_everyone(name: str) -> None:
    """Wait until all processes come here; all must call it with the same name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
