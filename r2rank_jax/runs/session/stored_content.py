"""What a run in an object store consists of: files, which `KnownFiles` keeps equal to a folder, and commits."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from r2rank_jax.checkpoint.folders import best_step
from r2rank_jax.files.atomic import replacing_file
from r2rank_jax.files.checksums import SEAL, damage
from r2rank_jax.files.lease import CLAIMS
from r2rank_jax.files.objects import ObjectFolder
from r2rank_jax.files.progress import Progress
from r2rank_jax.runs.session.one_writer import WRITER

COMMITS = "checkpoints/"


class KnownFiles:
    """The files of a run that belong to no commit, and which of them the folder has as they are in the store.

    Args:
        folder: run directory on this machine; a list beside it outlives the command.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._list = folder.with_name(f"{folder.name}.json")
        self._known: dict[str, list[str]] = {}  # name -> tag of the object, and of the file that equals it
        self._sending: dict[str, str] = {}  # name -> tag of a file that is being sent

    def fetch(self, objects: ObjectFolder, tags: dict[str, str], *, keep_unknown: bool) -> None:
        """Fetch what has changed in the store, and delete files that it does not have.

        Args:
            objects: the run in the store.
            tags: of all its objects.
            keep_unknown: keep files that it has never had, such as results that a reader could not send.
        """
        self._known = self._read()
        wanted = {name: tag for name, tag in tags.items() if is_plain(name)}
        for name, file in self._files().items():
            if name not in wanted and (name in self._known or not keep_unknown):
                file.unlink()
        stale = [name for name, tag in wanted.items() if self._known.get(name) != [tag, self._tag(name)]]
        with Progress(f"fetching {objects.address}", _bytes(stale, tags)) as progress:
            objects.fetch({name: self._folder / name for name in stale}, progress.update)
        self._known = {name: [tag, self._tag(name)] for name, tag in wanted.items()}
        self._write()

    def changed(self) -> dict[str, Path]:
        """Files that the store does not have as they are now: name -> file."""
        self._sending = {name: self._tag(name) for name in self._files()}  # a file may change while it is sent
        self._sending = {name: tag for name, tag in self._sending.items() if self._known.get(name, ["", ""])[1] != tag}
        return {name: self._folder / name for name in self._sending}

    def gone(self) -> list[str]:
        """Names of files that the store has and the folder has no longer."""
        files = self._files()
        return [name for name in self._known if name not in files]

    def sent(self, objects: ObjectFolder) -> None:
        """Note that the store has what `changed` returned, and no longer has what was `gone`."""
        gone = self.gone()
        if self._sending or gone:
            tags = objects.tags()
            self._known = {name: known for name, known in self._known.items() if name not in gone or name in tags}
            self._known |= {name: [tags.get(name, ""), tag] for name, tag in self._sending.items()}
            self._write()

    def _files(self) -> dict[str, Path]:
        found = {path.relative_to(self._folder).as_posix(): path for path in files_under(self._folder)}
        return {name: path for name, path in found.items() if is_plain(name)}

    def _tag(self, name: str) -> str:
        """A text that changes with a file."""
        try:
            status = (self._folder / name).stat()
        except OSError:
            return ""
        return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"

    def _read(self) -> dict[str, list[str]]:
        try:
            known = json.loads(self._list.read_bytes())
            return known if isinstance(known, dict) else {}
        except (OSError, ValueError):
            return {}

    def _write(self) -> None:
        with replacing_file(self._list) as partial:
            partial.write_text(json.dumps(self._known), encoding="utf-8")


def fetch_commit(
    objects: ObjectFolder, folder: Path, names: list[str], tags: dict[str, str], *, whole: bool
) -> int | None:
    """Fetch a commit unless the folder has it.

    Args:
        objects: the run in the store.
        folder: of the commit, in the run directory of this machine.
        names: of its objects.
        tags: of all objects.
        whole: the names are all of them, so that the commit can be checked against its seal.

    Returns:
        The step of the best validation that it names, or -1 if it names none; None if it is damaged.

    Raises:
        FileNotFoundError: an object has been deleted meanwhile.
    """
    prefix = f"{COMMITS}{folder.parent.name}/{folder.name}/"
    sealed = objects.read(prefix + SEAL)
    has_it = (folder / SEAL).is_file() and (folder / SEAL).read_bytes() == sealed
    problem = "not fetched" if not has_it else damage(folder) if whole else None
    partial = folder.parent.parent / f".{folder.parent.name}.{folder.name}.fetched"
    for _ in range(2):  # what came here damaged may be sound in the store
        if problem is None:
            break
        for remains in (folder, partial):
            shutil.rmtree(remains, ignore_errors=True)
        with Progress(f"fetching {objects.address}/{prefix[:-1]}", _bytes(names, tags)) as progress:
            objects.fetch({name: partial / name.removeprefix(prefix) for name in names}, progress.update)
        problem = damage(partial) if whole else None
        if problem is None:
            folder.parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial, folder)
    if problem is not None:
        print(f"{objects.address}/{prefix[:-1]} is damaged ({problem}); using the commit before it", flush=True)
        shutil.rmtree(partial)
        return None
    best = best_step(folder)
    return -1 if best is None else best


def commits_of(tags: dict[str, str]) -> dict[tuple[str, int], list[str]]:
    """Names of the objects of every commit, sealed or not: (phase, step) -> names."""
    commits: dict[tuple[str, int], list[str]] = {}
    for name in tags:
        if match := re.match(rf"{COMMITS}([a-z_]+)/([0-9]+)/.", name):
            commits.setdefault((match[1], int(match[2])), []).append(name)
    return commits


def has_seal(names: list[str]) -> bool:
    """Whether the objects of a commit include its seal."""
    return any(re.fullmatch(rf"{COMMITS}[a-z_]+/[0-9]+/{re.escape(SEAL)}", name) for name in names)


def is_plain(name: str) -> bool:
    """Whether an object or a file belongs to the run, but to no commit, claim or unfinished file."""
    hidden = any(part.startswith(".") for part in name.split("/"))
    return not (hidden or name == WRITER or name.startswith((COMMITS, CLAIMS)))


def files_under(folder: Path) -> list[Path]:
    """All files of a folder, which may be missing, and of folders in it."""
    return sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []


def _bytes(names: list[str], tags: dict[str, str]) -> int:
    return sum(int(tags[name].split()[0]) for name in names)
