"""How far long work with files is, on stderr: share, rows and rate. Short work says nothing."""

from __future__ import annotations

import sys
import time
from types import TracebackType

QUIET_S = 3.0  # work shorter than this is not worth a line
LINE_EVERY_S = 10.0  # where stderr is a file; on a screen one line is rewritten twice a second


class Progress:
    """Progress of one file.

    Args:
        name: of the file, or of the work.
        total_bytes: of the file as it lies on disk; None where it is not known.
    """

    def __init__(self, name: str, total_bytes: int | None):
        self._name = name
        self._total = total_bytes
        self._screen = sys.stderr.isatty()
        self._start = time.monotonic()
        self._next = self._start + QUIET_S
        self._shown = False

    def update(self, done_bytes: int, rows: int | None = None) -> None:
        """Say where the work stands, if the last word is some time ago.

        Args:
            done_bytes: so far, of the file as it lies on disk.
            rows: read so far; None where there are none, as in a download.
        """
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (0.5 if self._screen else LINE_EVERY_S)
        elapsed = now - self._start
        share = f"{100 * done_bytes / self._total:5.1f}%  " if self._total else ""
        rate = f"{done_bytes / elapsed / 1e6:,.1f} MB/s"
        if rows is not None:
            rate = f"{rows:,} rows  {rows / elapsed:,.0f} rows/s  {rate}"
        left = f"  {elapsed * (self._total / done_bytes - 1):,.0f} s left" if self._total and done_bytes else ""
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
