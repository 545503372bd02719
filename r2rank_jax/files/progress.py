"""How far long work with files is, on stderr: share, rows and rate. Short work says nothing."""

from __future__ import annotations

import sys
import time
from types import TracebackType

QUIET_S = 3.0  # work shorter than this is not worth a line
LINE_EVERY_S = 10.0  # where stderr is a file; on a screen one line is rewritten twice a second


class Progress:
    """Progress of one file, or of other work that is counted.

    Args:
        name: of the file, or of the work.
        total: bytes of the file as it lies on disk, or how many `unit` there are; None where it is not known.
        unit: what is counted; None: bytes.
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
        """Say where the work stands, if the last word is some time ago.

        Args:
            done: so far, bytes of the file as it lies on disk or units.
            rows: read so far; None where there are none, as in a download.
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
