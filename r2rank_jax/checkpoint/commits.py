"""Checkpoints that are committed as a whole and sealed with checksums.

A commit is the folder `<phase>/<step>/`, which Orbax writes asynchronously and renames into place. It holds the train
state and, as `extras`, the phase's `PhaseRecord`: the data iterator's state, the configuration and everything else the
phase needs to resume. When Orbax has finished, `seal.json` is added with the SHA-256 of every file. Only a sealed
folder whose files match is used, because Orbax's `latest_step` can name a step whose save failed, and Orbax does not
detect flipped bits.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from r2rank_jax.checkpoint.folders import best_step, identity, sealed_steps
from r2rank_jax.checkpoint.salvage import seal_or_delete
from r2rank_jax.checkpoint.together import damage_seen_by_all, seal_by_all
from r2rank_jax.errors import CheckpointError
from r2rank_jax.files.checksums import SEAL
from r2rank_jax.phases import PhaseRecord

KEPT = 2
"""Newest commits of a phase that are kept, besides those of the best validation that they name."""


class Mirror(Protocol):
    """Another place that keeps a run, such as an object store."""

    def send_commit(self, folder: Path) -> None:
        """Keep a sealed commit, given its folder, and forget those that its phase no longer has."""

    def send_files(self) -> None:
        """Keep all files of the run that are not commits, as they are now."""

    def withdraw(self, phase: str, steps: list[int]) -> None:
        """Forget commits that must not be used."""


class Checkpoints:
    """The commits of one phase of a run."""

    def __init__(
        self,
        directory: Path,
        *,
        keep: int = KEPT,
        read_only: bool = False,
        mirror: Mirror | None = None,
    ):
        """Open `directory`, seal a save that only lacks its seal, and delete the remains of interrupted saves.

        Args:
            directory: `<run>/checkpoints/<phase>`.
            keep: the number of newest commits to keep, see `KEPT`.
            read_only: delete and move nothing, since a training run may be writing the unsealed folder.
            mirror: keeps the commits of process 0 elsewhere, too.
        """
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs every barrier
        self.directory = directory.absolute()
        self._keep = keep
        self._read_only = read_only
        self._mirror = mirror
        if jax.process_index() == 0 and not read_only:
            self.directory.mkdir(parents=True, exist_ok=True)
            for folder in self.directory.iterdir():
                if folder.is_dir() and not (folder / SEAL).exists():
                    seal_or_delete(folder)
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
        if changed := damage_seen_by_all(self.directory / str(step)):
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
        steps = [step for step in sealed_steps(self.directory) if step >= first]
        if self._mirror is not None and jax.process_index() == 0:
            self._mirror.withdraw(self.directory.name, steps)
        for step in steps:
            self._move_away(step, reason)

    def send_files(self) -> None:
        """Let the mirror, if there is one, have the run's other files as they are now; all processes wait for it."""
        if self._mirror is not None and jax.process_index() == 0:
            self._mirror.send_files()
        wait_for_everyone(f"files of {self.directory.name} sent")

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
        with reading(folder):
            restored = self._writer.restore(
                folder, args=ocp.args.Composite(state=ocp.args.StandardRestore(like), extras=ocp.args.JsonRestore())
            )
        return restored.state, PhaseRecord.from_json(restored.extras)

    def record(self, step: int) -> PhaseRecord:
        """The record of one commit, without its state; raises `CheckpointError` as `restore`."""
        folder = self.directory / str(step)
        with reading(folder):
            restored = self._writer.restore(folder, args=ocp.args.Composite(extras=ocp.args.JsonRestore()))
        return PhaseRecord.from_json(restored.extras)

    def identity(self, step: int) -> str:
        """The SHA-256 of the commit's seal, which identifies the content of the commit."""
        return identity(self.directory / str(step))

    def finish_save(self) -> None:
        """After an error, let the save that is under way be sealed, unless that needs other processes."""
        if self._sealing is not None and jax.process_count() == 1:
            wait([self._sealing])

    def close(self) -> None:
        """Wait for the last save and its seal."""
        self.wait()
        self._sealer.shutdown()
        self._writer.close()

    def _seal(self, step: int) -> None:
        """Wait until Orbax has renamed the save into place, write its seal, and only then delete older commits."""
        self._writer.wait_until_finished()
        seal_by_all(self.directory / str(step))
        if jax.process_index() != 0:
            return
        shutil.rmtree(self._replaced(step), ignore_errors=True)
        steps = sealed_steps(self.directory)
        bests = {best_step(self.directory / str(kept)) for kept in steps[: self._keep]}
        for old in steps[self._keep :]:
            if old not in bests:
                shutil.rmtree(self.directory / str(old))
        if self._mirror is not None:
            self._mirror.send_commit(self.directory / str(step))


@contextmanager
def reading(folder: Path) -> Iterator[None]:
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
