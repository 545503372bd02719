"""What SIGTERM and SIGINT do to a command. Both mean "stop"; another one, seconds later, ends the process at once.

Most commands are interrupted: they raise `KeyboardInterrupt`, which cleans up after them. A training phase would lose
work that way, so it is asked instead. While it holds work that is not committed, a signal is only noted; the phase
calls `check` between pieces of work, and `check` raises `Stopped` at the same call in every process of the job. Before
the first step there is nothing to lose, and the process ends at once, even in the middle of a compilation.

Signals belong to the process, so the phase that they are noted for is global state of this module.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from r2rank_jax.errors import STOPPED, Stopped

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SAME_S = 2.0
"""Signals within this time of the first one are the same request, passed on by a launcher and by a batch system."""
_asked: _Asked | None = None  # the training phase that signals are noted for


@contextmanager
def interrupted_by_signals(*, last: bool) -> Iterator[None]:
    """Within this context, SIGTERM interrupts the command as Ctrl-C does, and a second signal ends the process.

    Args:
        last: nothing but the end of the process follows, and a signal can no longer change its exit code.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread may install handlers
        yield
        return
    before = {number: signal.signal(number, _interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if last else handler)


def ignore_signals() -> None:
    """From now on, in the main thread: the command has ended, and only waits for others."""
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def leave_signals_to_parent(worker: int, workers: int) -> None:
    """Ignore SIGTERM and SIGINT in a worker process that loads data; both numbers are Grain's.

    A terminal or a batch system sends signals to all processes of a job, and the work that the parent will commit still
    needs its data.
    """
    ignore_signals()


def _interrupt(number: int, frame: FrameType | None) -> None:
    first_at = time.monotonic()

    def second(number: int, frame: FrameType | None) -> None:
        if time.monotonic() - first_at >= _SAME_S:
            os._exit(128 + number)

    for each in _SIGNALS:
        signal.signal(each, second)
    raise KeyboardInterrupt


@contextmanager
def asked_to_stop(
    *,
    agreed: Callable[[int], bool] | None = None,
    spread: Callable[[], None] | None = None,
    leave: Callable[[int], None],
) -> Iterator[None]:
    """Within this context, the first signal makes a later `check` raise `Stopped`.

    Args:
        agreed: of a job of several processes. Called with the number of the check, the same in all processes; returns
            True at one check in all processes, some time after one of them has called `spread`.
        spread: tells all processes that this one was signalled.
        leave: ends the process, and with it the job, with an exit code; called where there is nothing to commit.
    """
    global _asked
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before_fd = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    before = {}
    for number in _SIGNALS:
        # A signal with a handler reaches the pipe, from which a thread reads it at once. The handler itself has to wait
        # until the main thread returns from XLA to Python.
        before[number] = signal.signal(number, lambda *_: None)
        signal.siginterrupt(number, False)  # system calls of libraries need not handle interruptions
    _asked = asked = _Asked(agreed, spread, leave)
    thread = threading.Thread(target=asked.watch, args=(reading,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        _asked = None
        signal.set_wakeup_fd(before_fd)
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if asked.told else handler)
        os.close(writing)  # ends the thread
        thread.join()
        os.close(reading)


def check() -> None:
    """Raise `Stopped` if this job was told to stop. All processes of a job must call it equally often.

    Call it between pieces of work after which the caller can still commit or drop what it holds.
    """
    if _asked is not None:
        _asked.check()


def hold() -> None:
    """From now on there is work to commit: signals wait for the next `check`."""
    if _asked is not None:
        _asked.holds_work = True


def release() -> None:
    """From now on, until `hold`, there is nothing to commit: a signal ends the process at once."""
    if _asked is not None:
        _asked.holds_work = False


def is_asked() -> bool:
    """Whether signals wait for the next `check`."""
    return _asked is not None


class _Asked:
    """Whether a training phase was told to stop."""

    def __init__(
        self, agreed: Callable[[int], bool] | None, spread: Callable[[], None] | None, leave: Callable[[int], None]
    ):
        self.holds_work = False
        self._agreed, self._spread, self._leave = agreed, spread, leave
        self._told = threading.Event()
        self._checks = 0

    @property
    def told(self) -> bool:
        """Whether this process was signalled."""
        return self._told.is_set()

    def check(self) -> None:
        self._checks += 1
        if self._told.is_set() if self._agreed is None else self._agreed(self._checks):
            raise Stopped("stopped as told")

    def watch(self, pipe: int) -> None:
        """Read signals from the pipe until it is closed."""
        first_at = 0.0
        while data := os.read(pipe, 1):
            if data[0] not in _SIGNALS:  # of another handler of this process
                continue
            name = signal.Signals(data[0]).name
            if self._told.is_set():
                if time.monotonic() - first_at < _SAME_S:
                    continue
                kill_workers()
                os.write(
                    2, f"r2rank: a second signal, {name}: ended without a commit\n".encode()
                )  # no lock to wait for
                os._exit(128 + data[0])
            self._told.set()
            first_at = time.monotonic()
            # A message that nobody can read must not keep the others from hearing.
            if not self.holds_work:
                with suppress(OSError):
                    print(f"r2rank: {name}: nothing to commit", file=sys.stderr, flush=True)
                self._leave(STOPPED)
            if self._spread is not None:
                self._spread()
            with suppress(OSError):
                print(f"r2rank: {name}: stopping soon; a second signal ends at once", file=sys.stderr, flush=True)


def end_process(code: int) -> NoReturn:
    """End this process and its worker processes at once, from any thread, without waiting for other processes."""
    kill_workers()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads any more
            stream.flush()
    os._exit(code)


def kill_workers() -> None:
    """Kill the worker processes of this process. Those that load data ignore SIGTERM, see `leave_signals_to_parent`."""
    for worker in multiprocessing.active_children():
        worker.kill()
