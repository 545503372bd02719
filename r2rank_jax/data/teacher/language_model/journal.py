"""Every request and every answer, in one file that only grows, whatever ends the process.

One JSON object a line, each with the request's key:

    {"key", "asked": [prompt, completion]}     before a request goes out: the most tokens it can cost
    {"key", "failed": reason, "billed": bool}  it brought no answer
    {"key", "answer": {...}, "usage": [prompt, completion] | null}

A line is one write, and an answer is on the disk (fsync) before anything is made of it. A process that is killed can
leave one torn line, the last, which the next one cuts off; requests that were in flight have an "asked" and nothing
after it, and count as billed at their ceiling.
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
    """What a journal says about earlier runs."""

    known: Tokens = NOTHING
    unknown: Tokens = NOTHING  # ceilings of attempts that may have been billed
    counts: Counter[str] = field(default_factory=Counter)  # asked, answered, lost in flight, failed: reason
    open: dict[str, Tokens] = field(default_factory=dict)  # asked, nothing after it


class Journal:
    """An open journal; one process at a time. `answers` maps a request's key to what the teacher said.

    Thinking stays on the disk: it can be fifty times as long, and nothing reads it.

    Args:
        path: file; made if it is not there.

    Raises:
        DataError: another process has it open, or a line other than a torn last one cannot be read.
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
        """Note that a request goes out now."""
        self._append({"key": key, "asked": list(ceiling)})

    def failed(self, key: str, reason: str, billed: bool) -> None:
        """Note that it brought no answer."""
        self._append({"key": key, "failed": reason, "billed": billed})

    def answered(self, key: str, answer: Answer) -> None:
        """Keep an answer; it is on the disk when this returns.

        Raises:
            ValueError: the request has one already.
        """
        if key in self.answers:
            raise ValueError(f"request {key} is answered already")
        said = {name: getattr(answer, name) for name in ("content", "thinking", "finish_reason", "model")}
        usage = None if answer.usage is None else list(answer.usage)
        self._append({"key": key, "answer": said, "usage": usage}, sync=True)
        self.answers[key] = answer.content

    def _append(self, record: dict[str, Any], sync: bool = False) -> None:
        line = json.dumps(record, separators=(",", ":")).encode("ascii") + b"\n"
        with self._lock:
            if self._file < 0:  # an abandoned request that comes back late
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
                f"{self.path} must take every answer, and did not ({error}); make room and run the command again: it "
                "goes on from here"
            ) from error

    def _lock_file(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the kernel, however the process ends
        except OSError as error:
            raise DataError(
                f"{self.path} must belong to one process at a time, and another has it open; wait for it, or give "
                "--journal another file"
            ) from error

    def _read(self) -> int:
        """Read all lines and cut off a torn last one; returns the length of the file."""
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
            past.unknown = past.unknown.plus(ceiling)
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
                    past.unknown = past.unknown.plus(past.open[key])
                past.counts["asked"] += 1
                past.open[key] = ceiling
            elif "failed" in record:
                past.counts[f"failed: {record['failed']}"] += 1
                ceiling = past.open.pop(key, NOTHING)
                if record["billed"]:
                    past.unknown = past.unknown.plus(ceiling)
            else:
                if key in self.answers:
                    raise ValueError("a second answer")
                self.answers[key] = record["answer"]["content"]
                ceiling = past.open.pop(key, NOTHING)
                past.counts["answered"] += 1
                if record["usage"] is None:
                    past.unknown = past.unknown.plus(ceiling)
                else:
                    past.known = past.known.plus(Tokens(*map(int, record["usage"])))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.path}, line {number}: expected a request, a failure or a first answer, got "
                f"{line[:120].decode('utf-8', 'replace')!r} ({error}); the file was edited: take it from a backup, or "
                "give --journal another file"
            ) from error
