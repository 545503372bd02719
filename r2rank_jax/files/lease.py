"""The right to write to a folder of objects, for one job at a time and without a clock that all machines share.

A claim is an object `writer/NUMBER.json`, which only one job can create; the highest number holds. The holder rewrites
its claim again and again, and empties it at the end. A job that wants to write looks at the highest claim: it follows
an empty one at once, and any other only if it did not change for a while or if its process died on this machine.
"""

from __future__ import annotations

import json
import threading
import time

from r2rank_jax.errors import StorageError
from r2rank_jax.files.objects import ObjectFolder
from r2rank_jax.files.writer import described, died_here, read_writer, refusal, this_process

CLAIMS = "writer/"
BEAT_S = 10.0
"""Seconds between two signs of life."""
DEAD_S = 60.0
"""Seconds without a sign of life after which a claim may be followed."""


class Lease:
    """The claim of this job. A process that was killed leaves one behind, which ends after `DEAD_S`.

    Args:
        address: the folder of objects to write to.
        beat_s: see `BEAT_S`.
        dead_s: see `DEAD_S`; the same in all jobs.
    """

    def __init__(self, address: str, *, beat_s: float = BEAT_S, dead_s: float = DEAD_S):
        self._objects = ObjectFolder(address)
        self._beating = ObjectFolder(address, patience_s=0)  # a sign of life must not wait for other requests
        self._beat_s, self._dead_s = beat_s, dead_s
        self._holder = this_process()
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
        holder = read_writer(first)
        if holder is None or died_here(holder):
            return True
        print(
            f"waiting up to {self._dead_s:.0f} s for a sign of life of {described(holder)}, which may still write to "
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
                if read_writer(now) is None:
                    return True
                raise refusal(self._objects.address, holder)
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
