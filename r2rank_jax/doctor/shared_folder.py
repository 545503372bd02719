"""Whether all processes write to one run directory: each sees a file of process 0, and process 0 sees one of each."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from r2rank_jax.doctor.findings import Finding, fault, named, ok
from r2rank_jax.doctor.processes import Processes

CHECK = "run directory"
SCRATCH = "doctor.scratch"
"""Folder in the run directory that exists while a doctor is at work."""
SEEN_WITHIN_S = 5.0
"""A network file system shows a new file to other hosts after a few seconds at most."""


@contextmanager
def scratch(run_dir: Path) -> Iterator[None]:
    """A folder that process 0 makes, and removes in the end. The caller holds the lock of the run directory."""
    folder = run_dir / SCRATCH
    shutil.rmtree(folder, ignore_errors=True)  # of a doctor that was killed
    folder.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a process that was too late may still write there


def check_shared(folder: Path, processes: Processes) -> list[Finding]:
    """Exchange files in a folder; all processes must call this, and process 0 must have made the folder.

    Returns:
        On process 0: the findings. Elsewhere: none.
    """
    token = secrets.token_hex(8) if processes.index == 0 else None
    if token is not None:
        (folder / "0").write_text(token, encoding="ascii")
    token = processes.share("token", token)
    reached = _appears(folder / "0", token, time.monotonic() + SEEN_WITHIN_S)
    error = None
    if reached and processes.index != 0:
        try:
            (folder / str(processes.index)).write_text(token, encoding="ascii")
        except OSError as refused:
            error = str(refused.strerror)
    answers = processes.gather("token seen", {"reached": reached, "error": error})
    if processes.index != 0:
        return []
    written = [process for process, answer in answers.items() if process and answer["reached"] and not answer["error"]]
    end = time.monotonic() + SEEN_WITHIN_S
    return judged(folder, answers, [p for p in written if not _appears(folder / str(p), token, end)])


def judged(folder: Path, answers: dict[int, dict[str, object]], hidden: list[int]) -> list[Finding]:
    """Findings of process 0.

    Args:
        folder: the exchanged files' folder.
        answers: process -> whether it saw the file of process 0, and why it could not write.
        hidden: processes that wrote a file which process 0 does not see.
    """
    run_dir, share = folder.parent.absolute(), "put --run-dir on a file system that all hosts share, at the same path"
    findings = []
    if blind := [process for process, answer in answers.items() if not answer["reached"]]:
        what = f"every process must see {run_dir} of process 0, got {named(blind)} without its file"
        findings.append(fault(CHECK, what, share))
    for process, answer in answers.items():
        if answer["error"]:
            what = f"every process must write to {run_dir}, got {answer['error']} in process {process}"
            findings.append(fault(CHECK, what, "give it the permission"))
    if hidden:
        what = f"process 0 must see what others write to {run_dir}, got nothing from {named(hidden)}"
        findings.append(fault(CHECK, what, share))
    return findings or [ok(CHECK, f"written and seen by {len(answers)} processes" if len(answers) > 1 else "written")]


def _appears(file: Path, content: str | None, deadline: float) -> bool:
    while True:
        try:
            if file.read_text(encoding="ascii") == content:
                return True
        except OSError:  # not there yet, or the folder is not
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
