"""A run directory in an object store, worked on in a folder of this machine.

Orbax, logs and reports need a file system, so that a command works in a folder and this module keeps the store equal
to it: it fetches the run at the start, sends every commit when it is sealed, and all other files with each commit and
at the end. A commit's `seal.json` is sent last and deleted first; a commit without it does not exist. What was not sent
when a process was killed is not committed, even if its folder still holds it, because another machine may have
continued the run from the store meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from r2rank_jax.checkpoint.commits import KEPT
from r2rank_jax.checkpoint.folders import best_step, sealed_steps
from r2rank_jax.cluster import messages
from r2rank_jax.errors import REFUSED, JoinError, StorageError
from r2rank_jax.files.atomic import replacing_file
from r2rank_jax.files.checksums import SEAL, damage
from r2rank_jax.files.lease import CLAIMS, Lease
from r2rank_jax.files.objects import ObjectFolder
from r2rank_jax.files.progress import Progress
from r2rank_jax.runs.session.one_writer import WRITER

COMMITS = "checkpoints/"
SEND_FROM_MEMORY = 64 * 2**20
"""Largest size in bytes of a file that is read at once, so that a log to which a line is added is sent as it was."""
_FETCHED = "run directory fetched"
_FETCH_S = 6 * 3600


class StoredRun:
    """A run directory in an object store.

    Args:
        address: s3://BUCKET/NAME or gs://BUCKET/NAME.
        work: folder of this machine under which runs are worked on.
        writing: train, which one job at a time may do; else commits are only read.

    Raises:
        UsageError: the address cannot be used.
    """

    def __init__(self, address: str, work: Path, *, writing: bool):
        self.objects = ObjectFolder(address)
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", self.objects.address.rpartition("/")[2])
        own = work / f"{name}-{hashlib.sha256(self.objects.address.encode()).hexdigest()[:8]}"
        self.folder = own / ("writing" if writing else "reading")
        """The run directory on this machine. A report can be built while the run is trained, so there are two."""
        self._writing = writing
        self._lease = Lease(self.objects, shlex.join(["r2rank", *sys.argv[1:]])) if writing else None
        self._known_file = own / f"{self.folder.name}.json"
        self._known: dict[str, list[str]] = {}  # name -> tag of the object, and of the file that equals it
        self._lost = False  # the store does not take what is sent

    def config(self) -> Path | None:
        """A copy of the run's `config.json`; None if it has none. May be called before `opened`."""
        content = self.objects.read("config.json")
        if content is None:
            return None
        with replacing_file(self.folder.with_name("config.json")) as partial:
            partial.write_bytes(content)
        return self.folder.with_name("config.json")

    @contextmanager
    def opened(self) -> Iterator[Callable[[Path], None]]:
        """Fetch the run, and send what has changed when the block ends. Process 0 does it for all processes.

        Yields:
            What sends a sealed commit, given its folder.

        Raises:
            CheckpointError: another job is writing to the run.
            StorageError: the store does not answer, or refuses.
        """
        if messages.process() != 0:
            if messages.get(_FETCHED, _FETCH_S) is None:
                raise JoinError(f"process 0 must fetch {self.objects.address} within {_FETCH_S} s; see its output")
            yield self.send_commit
            return
        if self._lease is not None:
            self._lease.acquire()
        try:
            self.fetch()
            if messages.joined():
                messages.put(_FETCHED, "")
            try:
                yield self.send_commit
            finally:
                if not self._lost:
                    self._send_files()
                    self._move_set_aside()
        finally:
            if self._lease is not None:
                self._lease.release()

    def fetch(self) -> None:
        """Make the folder equal to the store: all files, and of each phase the newest sound commit and its best."""
        self._known = self._read_known()
        tags = self.objects.tags()
        for name in tags:
            if {"", ".", ".."} & set(name.split("/")):
                raise StorageError(
                    f"{self.objects.address} must hold a run directory, got an object named {name!r}; delete it",
                    REFUSED,
                )
        wanted = {name: tag for name, tag in tags.items() if _is_plain(name)}
        for name, file in self._files().items():
            if name not in wanted:
                file.unlink()
        stale = {name: tag for name, tag in wanted.items() if self._known.get(name) != [tag, self._tag(name)]}
        self._fetch({name: self.folder / name for name in stale}, tags)
        self._known = {name: [tag, self._tag(name)] for name, tag in wanted.items()}
        self._write_known()
        commits = _commits(tags)
        if self._writing:  # of saves that a kill interrupted
            self.objects.delete([name for names in commits.values() if not _seal(names) for name in names])
        phases = {phase for phase, _ in commits} | {folder.name for folder in self.folder.glob(f"{COMMITS}*")}
        for phase in sorted(phases):
            self._fetch_phase(phase, {step: names for (of, step), names in commits.items() if of == phase}, tags)

    def send_commit(self, folder: Path) -> None:
        """Send a sealed commit, and then delete the ones that it makes superfluous.

        Args:
            folder: `<run>/checkpoints/<phase>/<step>`.

        Raises:
            StorageError: the store does not take it, or another job writes to the run.
        """
        try:
            self._require_lease()
            self._send_files()
            phase, step = folder.parent.name, int(folder.name)
            commits = _commits(self.objects.tags(f"{COMMITS}{phase}/"))
            self._delete_commit(commits.get((phase, step), []))  # of a phase that was stopped in a validation
            files = {f"{COMMITS}{phase}/{step}/{path.relative_to(folder)}": path for path in _files(folder)}
            seal = f"{COMMITS}{phase}/{step}/{SEAL}"
            self._send({name: file for name, file in files.items() if name != seal})
            self._require_lease()  # the last moment at which another job's claim can be noticed
            self.objects.send({seal: files[seal]})
            kept = sealed_steps(folder.parent)
            if len(kept) >= KEPT:
                for (_, old), names in sorted(commits.items()):
                    if old not in kept:
                        self._delete_commit(names)
        except StorageError:
            self._lost = True
            raise

    def _require_lease(self) -> None:
        if self._lease is not None:
            self._lease.require()

    def _fetch_phase(self, phase: str, commits: dict[int, list[str]], tags: dict[str, str]) -> None:
        """Fetch the newest sound commit of a phase and the one of the best validation; delete others of the folder."""
        directory = self.folder / COMMITS / phase
        sealed = sorted((step for step, names in commits.items() if _seal(names)), reverse=True)
        kept = set()
        for step in sealed:
            if self._fetch_commit(directory / str(step), commits[step], tags):
                kept.add(step)
                best = best_step(directory / str(step))
                if (
                    best in sealed
                    and best not in kept
                    and self._fetch_commit(directory / str(best), commits[best], tags)
                ):
                    kept.add(best)
                break
        for folder in directory.iterdir() if directory.is_dir() else ():
            if folder.name not in map(str, kept):
                shutil.rmtree(folder)

    def _fetch_commit(self, folder: Path, names: list[str], tags: dict[str, str]) -> bool:
        """Fetch a commit unless the folder has it; False if what the store has is damaged."""
        prefix = f"{COMMITS}{folder.parent.name}/{folder.name}/"
        seal = folder / SEAL
        if seal.is_file() and seal.read_bytes() == self.objects.read(prefix + SEAL) and damage(folder) is None:
            return True
        shutil.rmtree(folder, ignore_errors=True)
        partial = self.folder / COMMITS / f".{folder.parent.name}.{folder.name}.fetched"
        shutil.rmtree(partial, ignore_errors=True)
        self._fetch({name: partial / name.removeprefix(prefix) for name in names}, tags)
        if problem := damage(partial):
            print(f"{self.objects.address}/{prefix} is damaged ({problem}); using the commit before it", flush=True)
            shutil.rmtree(partial)
            return False
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, folder)
        return True

    def _send_files(self) -> None:
        """Send files that have changed, and delete objects whose files this command has deleted."""
        files = self._files()
        changed = {}
        for name, file in files.items():
            if self._known.get(name, ["", ""])[1] != (tag := self._tag(name)):
                changed[name] = tag
                if file.stat().st_size <= SEND_FROM_MEMORY:
                    self.objects.write(name, file.read_bytes())
                else:
                    self._send({name: file})
        gone = [name for name in self._known if name not in files]
        self.objects.delete(gone)
        if changed or gone:
            tags = self.objects.tags()
            self._known = {name: known for name, known in self._known.items() if name in files}
            self._known |= {name: [tags.get(name, ""), tag] for name, tag in changed.items()}
            self._write_known()

    def _move_set_aside(self) -> None:
        """Keep commits that training has set aside as such: they must not be resumed from."""
        if not self._writing:
            return
        for aside in sorted((self.folder / COMMITS).glob("*.diverged.*")):
            phase, _, step = aside.name.split(".")
            self._delete_commit(_commits(self.objects.tags(f"{COMMITS}{phase}/")).get((phase, int(step)), []))
            self._send({f"{COMMITS}{aside.name}/{path.relative_to(aside)}": path for path in _files(aside)})
            shutil.rmtree(aside)

    def _delete_commit(self, names: list[str]) -> None:
        self.objects.delete([name for name in names if name.endswith(f"/{SEAL}")])
        self.objects.delete(names)

    def _fetch(self, files: dict[str, Path], tags: dict[str, str]) -> None:
        total = sum(int(tags[name].split()[0]) for name in files)
        with Progress(f"fetching {self.objects.address}", total) as progress:
            self.objects.fetch(files, progress.update)

    def _send(self, files: dict[str, Path]) -> None:
        total = sum(file.stat().st_size for file in files.values())
        with Progress(f"sending to {self.objects.address}", total) as progress:
            self.objects.send(files, progress.update)

    def _files(self) -> dict[str, Path]:
        """The files of the folder that are not commits: name -> file."""
        found = {str(PurePosixPath(path.relative_to(self.folder))): path for path in _files(self.folder)}
        return {name: path for name, path in found.items() if _is_plain(name)}

    def _tag(self, name: str) -> str:
        """A text that changes with a file."""
        try:
            status = (self.folder / name).stat()
        except OSError:
            return ""
        return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"

    def _read_known(self) -> dict[str, list[str]]:
        try:
            known = json.loads(self._known_file.read_bytes())
            return known if isinstance(known, dict) else {}
        except (OSError, ValueError):
            return {}

    def _write_known(self) -> None:
        with replacing_file(self._known_file) as partial:
            partial.write_text(json.dumps(self._known), encoding="utf-8")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []


def _is_plain(name: str) -> bool:
    """Whether an object or a file belongs to the run, but to no commit, claim or unfinished file."""
    hidden = any(part.startswith(".") for part in name.split("/"))
    return not (hidden or name == WRITER or name.startswith((COMMITS, CLAIMS)))


def _commits(tags: dict[str, str]) -> dict[tuple[str, int], list[str]]:
    """Names of the objects of every commit, sealed or not: (phase, step) -> names."""
    commits: dict[tuple[str, int], list[str]] = {}
    for name in tags:
        if match := re.match(rf"{COMMITS}([a-z_]+)/([0-9]+)/.", name):
            commits.setdefault((match[1], int(match[2])), []).append(name)
    return commits


def _seal(names: list[str]) -> bool:
    return any(re.fullmatch(rf"{COMMITS}[a-z_]+/[0-9]+/{re.escape(SEAL)}", name) for name in names)
