"""Progress of long file operations on stderr: share, rows and rate. Short operations print nothing."""

from __future__ import annotations

import sys
import time
from types import TracebackType

QUIET_S = 3.0  # shorter work prints nothing
LINE_EVERY_S = 10.0  # if stderr is a file; on a terminal one line is rewritten twice a second


class Progress:
    """Progress of one file, or of other countable work.

    Args:
        name: name of the file or of the work.
        total: size of the file on disk in bytes, or number of units; None if unknown.
        unit: what is counted; None for bytes.
    """

    def __init__(self, name: str, total: int | None, unit: str | None = None):
        self._name = name
        self._total = total
        self._unit = unit
        self._screen = sys.stderr.isatty()
        self._start = time.monotonic()
        self._next = self._start + QUIET_S
        self._shown = False

    def update(self, done: int, rows: int | None = None) -> None:
        """Print the progress, unless it was printed recently.

        Args:
            done: bytes on disk, or units, processed so far.
            rows: rows read so far; None if there are none, as in a download.
        """
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (0.5 if self._screen else LINE_EVERY_S)
        elapsed = now - self._start
        share = f"{100 * done / self._total:5.1f}%  " if self._total else ""
        rate = f"{done / elapsed / 1e6:,.1f} MB/s" if self._unit is None else f"{done / elapsed:,.0f} {self._unit}/s"
        if rows is not None:
            rate = f"{rows:,} rows  {rows / elapsed:,.0f} rows/s  {rate}"
        left = f"  {elapsed * (self._total / done - 1):,.0f} s left" if self._total and done else ""
        line = f"{self._name}  {share}{rate}{left}"
        print(
            f"\r\x1b[K{line}" if self._screen else line, end="" if self._screen else "\n", file=sys.stderr, flush=True
        )
        self._shown = True

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown and self._screen:
            print(file=sys.stderr, flush=True)
