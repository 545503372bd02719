"""The journal: an append-only file of every request and answer, which survives a killed process.

One JSON object per line, each with the request's key:

    {"key", "asked": [prompt, completion]}     before a request is sent: the most tokens it can cost
    {"key", "failed": reason, "billed": bool}  it brought no answer
    {"key", "answer": {...}, "usage": [prompt, completion] | null}

Each line is one write, and an answer is synced to disk (fdatasync) before it is used. A killed process can leave an
incomplete last line, which the next process removes. Requests that were in flight then have an "asked" line and no
result, and count as billed at their ceiling.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from r2rank_jax.data.teacher.language_model.answers import Answer
from r2rank_jax.data.teacher.language_model.ledger import NOTHING, Tokens
from r2rank_jax.errors import DataError


@dataclass
class Past:
    """What a journal records of earlier runs."""

    reported: Tokens = NOTHING
    unreported: Tokens = NOTHING  # ceilings of attempts that may have been billed
    counts: Counter[str] = field(default_factory=Counter)  # asked, answered, lost in flight, failed: reason
    open: dict[str, Tokens] = field(default_factory=dict)  # asked, without a result


class Journal:
    """An open journal; one process at a time. `answers` maps a request's key to the content of its answer.

    Thinking is written to disk but not kept in memory: it can be fifty times as long, and nothing reads it.

    Args:
        path: file; created if it does not exist.

    Raises:
        DataError: another process has it open, or a line other than an incomplete last one cannot be read.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.answers: dict[str, str] = {}
        self.past = Past()
        self.repaired_bytes = 0
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock_file()
            self._end = self._read()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            os.close(self._file)
            self._file = -1

    def asked(self, key: str, ceiling: Tokens) -> None:
        """Record that a request is about to be sent."""
        self._append({"key": key, "asked": list(ceiling)})

    def failed(self, key: str, reason: str, billed: bool) -> None:
        """Record that a request failed."""
        self._append({"key": key, "failed": reason, "billed": billed})

    def answered(self, key: str, answer: Answer) -> None:
        """Record an answer; it is on disk when this returns.

        Raises:
            ValueError: the request already has an answer.
        """
        if key in self.answers:
            raise ValueError(f"request {key} is answered already")
        content = {name: getattr(answer, name) for name in ("content", "thinking", "finish_reason", "model")}
        usage = None if answer.usage is None else list(answer.usage)
        self._append({"key": key, "answer": content, "usage": usage}, sync=True)
        self.answers[key] = answer.content

    def _append(self, record: dict[str, Any], sync: bool = False) -> None:
        line = json.dumps(record, separators=(",", ":")).encode("ascii") + b"\n"
        with self._lock:
            if self._file < 0:  # an abandoned request that returns late
                return
            with self._whole_or_not():
                written = os.write(self._file, line)
                if written != len(line):
                    raise OSError(f"{written} of {len(line)} bytes were written; is the disk full?")
                if sync:
                    os.fdatasync(self._file)
            self._end += len(line)

    @contextmanager
    def _whole_or_not(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            os.ftruncate(self._file, self._end)
            raise DataError(
                f"{self.path} must store every answer, but writing failed ({error}); free some space and run the "
                "command again to continue"
            ) from error

    def _lock_file(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel releases it however the process ends
        except OSError as error:
            raise DataError(
                f"{self.path} must be used by one process at a time, and another has it open; wait for it to end, or "
                "give --journal another file"
            ) from error

    def _read(self) -> int:
        """Read all lines and remove an incomplete last one; returns the length of the file."""
        end = 0
        with open(self._file, "rb", closefd=False) as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    self.repaired_bytes = len(line)
                    os.ftruncate(self._file, end)
                    os.fsync(self._file)
                    break
                self._remember(number, line)
                end += len(line)
        past = self.past
        for ceiling in past.open.values():
            past.counts["lost in flight"] += 1
            past.unreported = past.unreported.plus(ceiling)
        past.open.clear()
        return end

    def _remember(self, number: int, line: bytes) -> None:
        past = self.past
        try:
            record = json.loads(line)
            key = record["key"]
            if "asked" in record:
                ceiling = Tokens(*map(int, record["asked"]))
                if key in past.open:  # its process was killed
                    past.counts["lost in flight"] += 1
                    past.unreported = past.unreported.plus(past.open[key])
                past.counts["asked"] += 1
                past.open[key] = ceiling
            elif "failed" in record:
                past.counts[f"failed: {record['failed']}"] += 1
                ceiling = past.open.pop(key, NOTHING)
                if record["billed"]:
                    past.unreported = past.unreported.plus(ceiling)
            else:
                if key in self.answers:
                    raise ValueError("a second answer")
                self.answers[key] = record["answer"]["content"]
                ceiling = past.open.pop(key, NOTHING)
                past.counts["answered"] += 1
                if record["usage"] is None:
                    past.unreported = past.unreported.plus(ceiling)
                else:
                    past.reported = past.reported.plus(Tokens(*map(int, record["usage"])))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.path}, line {number}: expected a request, a failure or a first answer, got "
                f"{line[:120].decode('utf-8', 'replace')!r} ({error}); the file was edited; restore a backup, or "
                "give --journal another file"
            ) from error
