"""Work that survives a kill: steps sealed by checksums in a folder beside the output, gone when all is done."""

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

Facts = dict[str, Any]  # what a step found out, as JSON
SEAL = "seal.json"


class WorkersDied(DataError):
    """The work stopped half-way through no fault of the data; what is sealed stays for the next run."""


def sealed(folder: Path, work: Callable[[Path], Facts]) -> Facts:
    """What `work` wrote into a folder, done once: a folder whose seal is whole is not written again.

    Args:
        folder: where the files shall lie.
        work: writes files into the folder that it is given and returns facts.

    Returns:
        The facts, of this run or of an earlier one.
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
    """The facts of a sealed folder; None where there is none, or where a file is not what the seal says."""
    try:
        seal = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        whole = all(sha256(folder / name) == digest for name, digest in seal["files"].items())
    except (OSError, ValueError):
        return None
    return seal["facts"] if whole else None


@contextmanager
def work_folder(out: Path, identity: Facts) -> Iterator[Path]:
    """A hidden folder beside `out` for sealed steps.

    It outlives a kill, and the next run with the same identity goes on there; a run with another identity starts anew.
    It is removed when the block ends well, and when it ends in an error: then there is nothing to go on with.

    Args:
        out: the folder to be.
        identity: everything that the content depends on.

    Raises:
        DataError: another process works there now.
    """
    out = out.resolve()
    folder = out.parent / f".{out.name}.preparing"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"{out} is being prepared by another process now; wait for it, or stop it") from error
        try:
            _start_or_go_on(folder, identity)
            yield folder
        except WorkersDied:
            raise
        except Exception:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder)


def _start_or_go_on(folder: Path, identity: Facts) -> None:
    record = folder / "identity.json"
    content = json.dumps(identity, sort_keys=True)
    same = record.is_file() and record.read_text(encoding="utf-8") == content
    begun = list(folder.rglob(".*"))  # by a step that was killed
    for path in begun if same else [path for path in folder.iterdir() if path.name != "lock"]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if not same:
        with replacing_file(record) as temporary:
            temporary.write_text(content, encoding="utf-8")
