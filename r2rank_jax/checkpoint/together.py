"""Checksums of a commit by all processes of a job, each of which reads its own share of the files.

A share is every n-th file, whoever has written it. A host that reads a file of another host reads what the storage
holds, and not its own page cache. Nothing here uses devices, because a thread seals commits while the training goes on.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from r2rank_jax.cluster import messages
from r2rank_jax.errors import CheckpointError
from r2rank_jax.files.checksums import checksums, damage, file_names, write_seal

_LIMIT_S = 3600
"""Longest time in seconds that processes wait for the one whose share takes longest."""
_SEEN_S = 60
"""Seconds after which a file of process 0 must be visible on all hosts."""


def seal_by_all(folder: Path) -> None:
    """Seal a commit that Orbax has finished; all processes must call this. Process 0 writes the seal.

    Raises:
        CheckpointError: a process cannot read its share, or does not answer.
    """
    first = messages.process() == 0
    listed = messages.exchange("files to seal", json.dumps(file_names(folder)) if first else "", _LIMIT_S)[0]
    if listed is None:
        raise CheckpointError(f"process 0 must say what is in {folder}, it did not; see its output")
    try:
        share = json.loads(listed)[messages.process() :: messages.processes()]
        _wait_for_files([folder / name for name in share])
        answer: dict[str, Any] = {"digests": checksums(folder, share)}
    except OSError as error:
        answer = {"error": f"{error.filename}: {error.strerror}"}
    answers = messages.exchange("digests", json.dumps(answer), _LIMIT_S, to_first=True)
    if not first:
        return
    digests: dict[str, str] = {}
    for process, text in enumerate(answers):
        if text is None or "error" in (said := json.loads(text)):
            reason = "no answer" if text is None else said["error"]
            raise CheckpointError(f"process {process} must read its share of {folder}, got {reason}; see its output")
        digests |= said["digests"]
    write_seal(folder, digests)


def damage_seen_by_all(folder: Path) -> str | None:
    """What does not match the seal of a commit, or None; the same in all processes, which must all call this."""
    own = damage(folder, messages.process(), messages.processes())
    for process, answer in enumerate(messages.exchange("damage", json.dumps(own), _LIMIT_S)):
        silent = f"process {process} did not say whether it can read its share"
        problem = silent if answer is None else json.loads(answer)
        if problem is not None:
            return str(problem)
    return None


def _wait_for_files(files: list[Path]) -> None:
    """Wait until files can be seen here; a network file system may show them later than their writer."""
    deadline = time.monotonic() + _SEEN_S
    while not all(file.exists() for file in files) and time.monotonic() < deadline:
        time.sleep(0.1)
