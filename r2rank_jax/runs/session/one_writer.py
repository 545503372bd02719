"""One job at a time writes to a run directory."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from r2rank_jax.cluster import messages
from r2rank_jax.errors import CheckpointError, JoinError
from r2rank_jax.files.writer import read_writer, refusal, this_process

WRITER = "writer.json"
"""File in the run directory that its writer holds locked and fills in; empty when there is none."""
_ANSWER_S = 600
"""Seconds within which all processes come here; the first ones may have much to import."""
_SEEN_S = 3
"""Seconds after which a file must be visible on all hosts."""


@contextmanager
def one_writer(
    run_dir: Path, *, share: str = "choose a --run-dir on a file system that all hosts share"
) -> Iterator[None]:
    """Hold the run directory for this job; all processes must enter this.

    Process 0 locks it for all of them, and the others check that they see the same folder.

    Args:
        run_dir: the run directory.
        share: the remedy if they do not.

    Raises:
        CheckpointError: another job is writing to `run_dir`, or the processes have different folders there.
    """
    if messages.process() != 0:
        _answer(run_dir)
        yield
        return
    with locked(run_dir) as writer:
        _require_same_folder(run_dir, writer, share)
        yield


@contextmanager
def locked(run_dir: Path) -> Iterator[str]:
    """Lock the run directory and yield what `writer.json` says of this process.

    The lock ends with the process, so that a killed job leaves none behind. On a network file system, it also holds
    between hosts, as far as the file system supports `flock`.

    Raises:
        CheckpointError: another job is writing to `run_dir`.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / WRITER).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise refusal(run_dir, read_writer(file.read()) or {}) from error  # {}: it has just taken the lock
        file.seek(0)
        file.truncate()
        writer = json.dumps(this_process())
        file.write(writer)
        file.flush()
        os.fsync(file.fileno())  # other hosts must see it
        try:
            yield writer
        finally:
            file.truncate(0)
            if [entry.name for entry in run_dir.iterdir()] == [WRITER]:  # a refused command leaves nothing behind
                (run_dir / WRITER).unlink()
                run_dir.rmdir()


def is_locked(run_dir: Path) -> bool:
    """Whether a process of this machine holds the run directory."""
    try:
        with (run_dir / WRITER).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _require_same_folder(run_dir: Path, written: str, share: str) -> None:
    """Ask all other processes whether they see what this one, process 0, has written."""
    if messages.joined():
        messages.put(WRITER, written)
    answers = {i: messages.get(f"{WRITER}/{i}", _ANSWER_S) for i in range(1, messages.processes())}
    if silent := [str(i) for i, answer in answers.items() if answer is None]:
        raise JoinError(
            f"all processes must come to the run directory within {_ANSWER_S} s, {', '.join(silent)} did not; look at "
            "their output"
        )
    if blind := [i for i, answer in answers.items() if answer != "seen"]:
        raise CheckpointError(
            f"all processes must share the run directory, but what process 0 on host {socket.gethostname()} wrote to "
            f"{run_dir} was not seen by {', '.join(map(str, blind))}; {share}"
        )


def _answer(run_dir: Path) -> None:
    """Tell process 0 whether this process sees what it has written. It ends the job if not."""
    written = messages.get(WRITER, _ANSWER_S)
    deadline = time.monotonic() + _SEEN_S
    while _read(run_dir) != written and time.monotonic() < deadline:
        time.sleep(0.1)
    seen = written is not None and _read(run_dir) == written
    messages.put(f"{WRITER}/{messages.process()}", "seen" if seen else "not seen")


def _read(run_dir: Path) -> str | None:
    try:
        return (run_dir / WRITER).read_text(encoding="utf-8")
    except OSError:
        return None
