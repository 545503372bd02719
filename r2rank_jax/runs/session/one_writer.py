"""One job at a time writes to a run directory."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import jax

from r2rank_jax.errors import CheckpointError

WRITER = "writer.json"
"""File in the run directory that its writer holds locked and fills in; empty when there is none."""


@contextmanager
def one_writer(run_dir: Path) -> Iterator[None]:
    """Hold the run directory for this job. The lock ends with the process, so that a killed job leaves none behind.

    Process 0 holds it for all processes of a job. On a network file system, the lock also holds between hosts, as far
    as the file system supports `flock`.

    Raises:
        CheckpointError: another job is writing to `run_dir`.
    """
    if jax.process_index() != 0:
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / WRITER).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(
                f"one job at a time may write to {run_dir}, which {_describe(file.name)} is writing; wait for it, stop "
                "it, or choose another --run-dir"
            ) from error
        file.seek(0)
        file.truncate()
        json.dump(
            {
                "host": socket.gethostname(),
                "process": os.getpid(),
                "command": shlex.join(["r2rank", *sys.argv[1:]]),
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
            },
            file,
        )
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
            if [entry.name for entry in run_dir.iterdir()] == [WRITER]:  # a refused command leaves nothing behind
                (run_dir / WRITER).unlink()
                run_dir.rmdir()


def _describe(path: str) -> str:
    try:
        writer = json.loads(Path(path).read_text(encoding="utf-8"))
        return (
            f"`{writer['command']}` on host {writer['host']} (process {writer['process']}, since {writer['started']})"
        )
    except (ValueError, KeyError, TypeError):
        return "another job"  # which has just taken the lock
