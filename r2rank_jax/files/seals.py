"""Resumable work: finished steps are sealed by checksums in a folder beside the output, which is removed at the end."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from r2rank_jax.errors import DataError
from r2rank_jax.files.atomic import replacing_file, replacing_folder
from r2rank_jax.files.wheels import sha256

Facts = dict[str, Any]  # results of a step, as JSON
SEAL = "seal.json"


class WorkersDied(DataError):
    """The work stopped for a reason other than the data; sealed steps are kept for the next run."""


def sealed(folder: Path, work: Callable[[Path], Facts]) -> Facts:
    """Run `work` once and seal its files. A folder with a valid seal is not written again.

    Args:
        folder: folder for the files.
        work: function that writes files into the given folder and returns facts.

    Returns:
        The facts, from this run or an earlier one.
    """
    facts = read_seal(folder)
    if facts is not None:
        return facts
    shutil.rmtree(folder, ignore_errors=True)
    with replacing_folder(folder) as temporary:
        facts = work(temporary)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        seal = {"facts": facts, "files": {str(path.relative_to(temporary)): sha256(path) for path in files}}
        (temporary / SEAL).write_text(json.dumps(seal), encoding="utf-8")
    return facts


def read_seal(folder: Path) -> Facts | None:
    """Return the facts of a sealed folder; None without a seal, or if a file does not match it."""
    try:
        seal = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        valid = all(sha256(folder / name) == digest for name, digest in seal["files"].items())
    except (OSError, ValueError):
        return None
    return seal["facts"] if valid else None


@contextmanager
def work_folder(out: Path, identity: Facts) -> Iterator[Path]:
    """Open a hidden folder beside `out` for sealed steps.

    The folder survives a kill. The next run with the same identity resumes from it; a run with another identity starts
    over. The folder is deleted when the block ends, whether normally or with an error, except after `WorkersDied`.

    Args:
        out: the final output folder.
        identity: everything that the content depends on.

    Raises:
        DataError: another process is using the folder.
    """
    out = out.resolve()
    folder = out.parent / f".{out.name}.preparing"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"{out} is being prepared by another process; wait for it, or stop it") from error
        try:
            _start_or_resume(folder, identity)
            yield folder
        except WorkersDied:
            raise
        except Exception:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder)


def _start_or_resume(folder: Path, identity: Facts) -> None:
    record = folder / "identity.json"
    content = json.dumps(identity, sort_keys=True)
    same = record.is_file() and record.read_text(encoding="utf-8") == content
    unfinished = list(folder.rglob(".*"))  # left by a step that was killed
    for path in unfinished if same else [path for path in folder.iterdir() if path.name != "lock"]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if not same:
        with replacing_file(record) as temporary:
            temporary.write_text(content, encoding="utf-8")
