"""The right to write to a folder of objects, for one job at a time and without a clock that all machines share.

A claim is an object `writer/NUMBER.json`, which only one job can create; the highest number holds. The holder rewrites
its claim again and again, and empties it at the end. A job that wants to write looks at the highest claim: it follows
an empty one at once, and any other only if it did not change for a while or if its process died on this machine.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from r2rank_jax.errors import CheckpointError, StorageError
from r2rank_jax.files.objects import ObjectFolder

CLAIMS = "writer/"
BEAT_S = 10.0
"""Seconds between two signs of life."""
DEAD_S = 60.0
"""Seconds without a sign of life after which a claim may be followed."""


class Lease:
    """The claim of this job. A process that was killed leaves one behind, which ends after `DEAD_S`.

    Args:
        address: the folder of objects to write to.
        command: shown to others that want to write.
        beat_s: see `BEAT_S`.
        dead_s: see `DEAD_S`; the same in all jobs.
    """

    def __init__(self, address: str, command: str, *, beat_s: float = BEAT_S, dead_s: float = DEAD_S):
        self._objects = ObjectFolder(address)
        self._beating = ObjectFolder(address, patience_s=0)  # a sign of life must not wait for other requests
        self._beat_s, self._dead_s = beat_s, dead_s
        self._holder = _this_process() | {"command": command}
        self._number = 0
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="lease", daemon=True)

    def acquire(self) -> None:
        """Take the claim.

        Raises:
            CheckpointError: another job holds it.
            StorageError: the store refuses.
        """
        while True:
            number = self._newest()
            if number and not self._may_follow(number):
                continue  # it has changed hands meanwhile
            if self._objects.create(_name(number + 1), self._content(0)):
                if self._newest() == number + 1:
                    break
                self._objects.delete([_name(number + 1)])  # it came late: others had it, and are gone, or went on
        self._number = number + 1
        self._objects.delete([name for name in self._objects.tags(CLAIMS) if _number(name) < self._number])
        self._beats.start()

    def require(self) -> None:
        """Require that this job still holds the claim; it can lose it if it was stopped for long.

        Raises:
            StorageError: another job has taken it.
        """
        if self._newest() != self._number:
            raise StorageError(
                f"one job at a time may write to {self._objects.address}, another one took over while this one gave no "
                "sign of life; see what else runs, and run the command again if it is not running"
            )

    def release(self) -> None:
        """Let others write at once. It is no error if they do already, or if the store does not answer."""
        self._ended.set()
        self._beats.join(self._beat_s)
        try:
            if self._newest(self._beating) == self._number:
                self._beating.write(_name(self._number), b"")
        except StorageError:
            pass  # the claim ends by itself

    def _may_follow(self, number: int) -> bool:
        """Watch a claim until it is clear whether its job lives. False if the claim is gone.

        Raises:
            CheckpointError: it lives.
        """
        first = self._objects.read(_name(number))
        if first is None:
            return False
        holder = _holder(first)
        if holder is None or _died_here(holder):
            return True
        print(
            f"waiting up to {self._dead_s:.0f} s for a sign of life of {_described(holder)}, which may still write to "
            f"{self._objects.address}",
            flush=True,
        )
        began = time.monotonic()
        while time.monotonic() < began + self._dead_s:
            time.sleep(min(1.0, self._beat_s))
            now = self._objects.read(_name(number))
            if now is None:
                return False
            if now != first:
                if _holder(now) is None:
                    return True
                raise CheckpointError(
                    f"one job at a time may write to {self._objects.address}, which {_described(holder)} is writing; "
                    "wait for it, stop it, or choose another --run-dir"
                )
        return True

    def _newest(self, objects: ObjectFolder | None = None) -> int:
        return max(map(_number, (objects or self._objects).tags(CLAIMS)), default=0)

    def _beat(self) -> None:
        count = 0
        while not self._ended.wait(self._beat_s):
            count += 1
            try:
                if self._newest(self._beating) != self._number:
                    return  # `require` says so
                self._beating.write(_name(self._number), self._content(count))
            except StorageError:
                pass  # others may take over if this lasts; `require` says so

    def _content(self, beat: int) -> bytes:
        return json.dumps(self._holder | {"beat": beat}).encode()


def _name(number: int) -> str:
    return f"{CLAIMS}{number}.json"


def _number(name: str) -> int:
    stem = name.removeprefix(CLAIMS).removesuffix(".json")
    return int(stem) if stem.isdecimal() else 0


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "process": os.getpid(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _machine() -> str | None:
    """What process numbers belong to: a start of a machine, and a container in it. Names of hosts can be equal."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None


def _holder(content: bytes) -> dict[str, Any] | None:
    """The process that a claim names; None if it was released."""
    try:
        holder = json.loads(content) if content.strip() else None
    except ValueError:
        return {}
    return holder if holder is None or isinstance(holder, dict) else {}


def _died_here(holder: dict[str, Any]) -> bool:
    if holder.get("machine") is None or holder["machine"] != _machine():
        return False
    try:
        os.kill(int(holder["process"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, ValueError, TypeError, OverflowError):
        return False
    return False


def _described(holder: dict[str, Any]) -> str:
    try:
        return (
            f"`{holder['command']}` on host {holder['host']} (process {holder['process']}, since {holder['started']})"
        )
    except KeyError:
        return "another job"
