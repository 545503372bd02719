"""A run directory in an object store, worked on in a folder of this machine.

Orbax, logs and reports need a file system. So a command works in a folder, and this module keeps the store equal to it:
it fetches the run at the start, sends every commit when it is sealed, and all other files with each commit and at the
end. A commit's `seal.json` is sent last and deleted first; a commit without it does not exist. What was not sent when a
process was killed is not committed, even if its folder still has it, because another machine may have continued the run
from the store meanwhile.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from r2rank_jax.checkpoint.commits import KEPT
from r2rank_jax.checkpoint.folders import sealed_steps
from r2rank_jax.cluster import messages
from r2rank_jax.errors import REFUSED, CheckpointError, JoinError, R2RankError, StorageError, UsageError
from r2rank_jax.files.atomic import replacing_file
from r2rank_jax.files.checksums import SEAL
from r2rank_jax.files.lease import Lease
from r2rank_jax.files.objects import ObjectFolder
from r2rank_jax.files.progress import Progress
from r2rank_jax.runs.session.one_writer import is_locked
from r2rank_jax.runs.session.stored_content import (
    COMMITS,
    KnownFiles,
    commits_of,
    fetch_commit,
    files_under,
    has_seal,
)

SEND_FROM_MEMORY = 64 * 2**20
"""Largest size in bytes of a file that is read at once, so that a log to which a line is added is sent as it was."""
ATTEMPTS = 5
"""Times that a reader begins again because a job that trains has just deleted what it was fetching."""
_FETCHED = "run directory fetched"
_FETCH_S = 6 * 3600


class StoredRun:
    """A run directory in an object store.

    Args:
        address: s3://BUCKET/NAME or gs://BUCKET/NAME.
        work: folder of this machine under which runs are worked on.
        use: "write" trains, which one job at a time may do; "read" uses policies; "look" uses none, so that of a commit
            only the seal and the record are fetched.
        phases: whose commits are fetched, with "read"; None: of all.
        step: of a commit to fetch besides the newest and the best one, with "read".

    Raises:
        UsageError: the address cannot be used.
    """

    def __init__(
        self,
        address: str,
        work: Path,
        *,
        use: Literal["write", "read", "look"],
        phases: list[str] | None = None,
        step: int | None = None,
    ):
        self.objects = ObjectFolder(address)
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", self.objects.address.rpartition("/")[2])
        own = work / f"{name}-{hashlib.sha256(self.objects.address.encode()).hexdigest()[:8]}"
        self.folder = own / use
        """The run directory on this machine. A report can be built while the run is trained, so there are several."""
        for other in range(2, 100):
            if use == "write" or not is_locked(self.folder):
                break
            self.folder = own / f"{use}-{other}"
        self._use, self._phases, self._step = use, phases, step
        self._lease = Lease(address) if use == "write" else None
        self._known = KnownFiles(self.folder)
        self._open = False  # whether anything may be sent
        self._one_at_a_time = threading.Lock()  # the thread that seals commits sends them

    def config(self) -> Path | None:
        """A copy of the run's `config.json`; None if it has none. May be called before `opened`."""
        content = self.objects.read("config.json")
        if content is None:
            return None
        with replacing_file(self.folder.with_name("config.json")) as partial:
            partial.write_bytes(content)
        return self.folder.with_name("config.json")

    @contextmanager
    def opened(self) -> Iterator[StoredRun]:
        """Fetch the run, and send what has changed when the block ends. Process 0 does it for all processes.

        Raises:
            CheckpointError: another job is writing to the run, or all commits of a phase are damaged.
            UsageError: a reader finds no run.
            StorageError: the store does not answer, or refuses.
        """
        if messages.process() != 0:
            if messages.get(_FETCHED, _FETCH_S) is None:
                raise JoinError(f"process 0 must fetch {self.objects.address} within {_FETCH_S} s; see its output")
            yield self
            return
        if self._lease is not None:
            self._lease.acquire()
        try:
            self._fetch_all()
            self._open = True
            if self._use == "write":
                print(f"{self.objects.address}: worked on in {self.folder}", file=sys.stderr, flush=True)
            if messages.joined():
                messages.put(_FETCHED, "")
            try:
                yield self
            finally:
                self._finish()
        finally:
            self._open = False
            if self._lease is not None:
                self._lease.release()

    def send_commit(self, folder: Path) -> None:
        """Send a sealed commit, and then delete the ones that it makes superfluous.

        Args:
            folder: `<run>/checkpoints/<phase>/<step>`.

        Raises:
            StorageError: the store does not take it, or another job writes to the run.
        """
        with self._sending():
            self._send_files()
            phase, step = folder.parent.name, int(folder.name)
            commits = commits_of(self.objects.tags(f"{COMMITS}{phase}/"))
            self._delete_commit(commits.get((phase, step), []))  # of a phase that was stopped in a validation
            files = {f"{COMMITS}{phase}/{step}/{path.relative_to(folder)}": path for path in files_under(folder)}
            seal = f"{COMMITS}{phase}/{step}/{SEAL}"
            self._send({name: file for name, file in files.items() if name != seal})
            self._require_lease()  # the last moment at which another job's claim can be noticed
            self.objects.send({seal: files[seal]})
            kept = sealed_steps(folder.parent)
            if len(kept) >= KEPT:
                for (_, old), names in sorted(commits.items()):
                    if old not in kept:
                        self._delete_commit(names)

    def send_files(self) -> None:
        """Send all files that are not commits and have changed; raises as `send_commit`."""
        with self._sending():
            self._send_files()

    def withdraw(self, phase: str, steps: list[int]) -> None:
        """Delete the seals of commits that must not be resumed from; raises as `send_commit`."""
        with self._sending():
            self.objects.delete([f"{COMMITS}{phase}/{step}/{SEAL}" for step in steps])

    # -- fetching ---------------------------------------------------------------------------------------------------

    def _fetch_all(self) -> None:
        for _ in range(ATTEMPTS):
            try:
                self._fetch_once()
            except FileNotFoundError as error:  # a reader's: a job that trains deletes commits meanwhile
                deleted = error
            else:
                return
        raise StorageError(
            f"{self.objects.address} must stay as it is while it is fetched, got {ATTEMPTS} times an object that was "
            f"deleted meanwhile ({deleted}); run the command again"
        )

    def _fetch_once(self) -> None:
        """Make the folder equal to the store: all files, and commits."""
        tags = self.objects.tags()
        if not tags and self._use != "write":
            raise UsageError(f"{self.objects.address} must be a run, but nothing is there; see its name")
        for name in tags:
            if {"", ".", ".."} & set(name.split("/")):
                raise StorageError(
                    f"{self.objects.address} must hold a run directory, got an object named {name!r}; delete it",
                    REFUSED,
                )
        self._known.fetch(self.objects, tags, keep_unknown=self._use != "write")
        commits = commits_of(tags)
        if self._use == "write":  # of saves that a kill interrupted
            self.objects.delete([name for names in commits.values() if not has_seal(names) for name in names])
        directory = self.folder / COMMITS
        phases = {phase for phase, _ in commits}
        for entry in directory.iterdir() if directory.is_dir() else ():
            if not entry.is_dir():
                entry.unlink()
            elif entry.name not in phases:  # such as the remains of an interrupted command
                shutil.rmtree(entry)
        for phase in sorted(phases if self._phases is None else phases & set(self._phases)):
            sealed = {step: names for (of, step), names in commits.items() if of == phase and has_seal(names)}
            self._fetch_phase(directory / phase, sealed, tags)

    def _fetch_phase(self, directory: Path, sealed: dict[int, list[str]], tags: dict[str, str]) -> None:
        """Fetch the sound commits of a phase that this command may need, and delete others of the folder."""
        if self._use == "look":
            light = (f"/{SEAL}", "/extras/metadata")
            sealed = {step: [name for name in names if name.endswith(light)] for step, names in sealed.items()}
        kept: set[int] = set()
        wanted: set[int | None] = {self._step}
        for step in sorted(sealed, reverse=True):
            if self._use != "read" or not kept or step in wanted:
                best = fetch_commit(self.objects, directory / str(step), sealed[step], tags, whole=self._use != "look")
                if best is not None:
                    kept.add(step)
                    wanted |= {best} if kept == {step} else set()
        if sealed and not kept and self._use == "write":
            raise CheckpointError(
                f"a checkpoint of {directory.name} in {self.objects.address} must match its checksums, none of "
                f"{', '.join(map(str, sorted(sealed)))} does; delete them there to start {directory.name} anew"
            )
        for folder in directory.iterdir() if directory.is_dir() else ():
            if folder.name not in map(str, kept):
                shutil.rmtree(folder)

    # -- sending ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _sending(self) -> Iterator[None]:
        """Let one thread send, as long as this job may. After an error of the store nothing more is sent."""
        with self._one_at_a_time:
            if not self._open:
                raise StorageError(f"{self.objects.address} takes nothing more of this command; run the command again")
            try:
                self._require_lease()
                yield
            except StorageError:
                self._open = False
                raise

    def _finish(self) -> None:
        """Send what is left at the end. If an error ended the command, it must not be hidden by another one."""
        if not self._open:
            return
        error = sys.exception()
        try:
            with self._sending():
                self._send_files()
                if self._use == "write":
                    self._send_set_aside()
        except R2RankError as failed:
            if error is None:
                raise StorageError(f"{failed}; the files are in {self.folder}", failed.exit_code) from failed

    def _require_lease(self) -> None:
        if self._lease is not None:
            self._lease.require()

    def _send_files(self) -> None:
        for name, file in self._known.changed().items():
            if file.stat().st_size <= SEND_FROM_MEMORY:
                self.objects.write(name, file.read_bytes())
            else:
                self._send({name: file})
        if self._use == "write":  # training deletes the marker of a divergence once it has gone on, and nothing else
            self.objects.delete(name for name in self._known.gone() if re.fullmatch(r"diverged\.[a-z_]+\.json", name))
        self._known.sent(self.objects)

    def _send_set_aside(self) -> None:
        """Keep commits that training has set aside, under the names that they have on a disk."""
        for aside in sorted((self.folder / COMMITS).glob("*.diverged.*")):
            phase, _, step = aside.name.split(".")
            if int(step) not in sealed_steps(self.folder / COMMITS / phase):
                self._delete_commit(commits_of(self.objects.tags(f"{COMMITS}{phase}/")).get((phase, int(step)), []))
            self._send({f"{COMMITS}{aside.name}/{path.relative_to(aside)}": path for path in files_under(aside)})
            shutil.rmtree(aside)

    def _delete_commit(self, names: list[str]) -> None:
        self.objects.delete([name for name in names if name.endswith(f"/{SEAL}")])
        self.objects.delete(names)

    def _send(self, files: dict[str, Path]) -> None:
        total = sum(file.stat().st_size for file in files.values())
        with Progress(f"sending to {self.objects.address}", total) as progress:
            self.objects.send(files, progress.update)
