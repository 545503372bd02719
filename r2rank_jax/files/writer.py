"""The process that writes to a run: what it says about itself, and how others name it when they are refused."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from r2rank_jax.errors import CheckpointError


def this_process() -> dict[str, Any]:
    """What this process says about itself, as JSON."""
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "process": os.getpid(),
        "command": shlex.join(["r2rank", *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def read_writer(content: str | bytes) -> dict[str, Any] | None:
    """The process that has written `content`; None if it is empty, and {} if nobody can tell."""
    if not content.strip():
        return None
    try:
        writer = json.loads(content)
    except ValueError:
        return {}
    return writer if isinstance(writer, dict) else {}


def described(writer: dict[str, Any]) -> str:
    """A process for a message."""
    try:
        return (
            f"`{writer['command']}` on host {writer['host']} (process {writer['process']}, since {writer['started']})"
        )
    except KeyError:
        return "another job"


def refusal(place: object, writer: dict[str, Any]) -> CheckpointError:
    """What to raise if another process writes to a run.

    Args:
        place: of the run, for the message.
        writer: the other process.
    """
    return CheckpointError(
        f"one job at a time may write to {place}, which {described(writer)} is writing; wait for it, stop it, or "
        "choose another --run-dir"
    )


def died_here(writer: dict[str, Any]) -> bool:
    """Whether a process ran on this machine and has ended. False if nobody can tell."""
    if writer.get("machine") is None or writer["machine"] != _machine():
        return False
    try:
        os.kill(int(writer["process"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, ValueError, TypeError, OverflowError):
        return False
    return False


def _machine() -> str | None:
    """What process numbers belong to: a start of a machine, and a container in it. Names of hosts can be equal."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None
