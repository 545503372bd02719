"""Let a job of several processes end as a whole, with one exit code.

Without this, a process that fails keeps the others waiting in a collective, and they end in crashes with codes of their
own, from which a launcher cannot tell a wrong setting from a lost machine. So the first process that ends early leaves
its exit code in a message, for which a thread of every other process waits.
"""

from __future__ import annotations

import atexit
import json
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

from r2rank_jax.cluster import messages
from r2rank_jax.stopping import end_process

_waiting: threading.Thread | None = None  # for the news that another process ended
_ENDED, _LEAVING = "ended", "leaving"
_FOREVER_S = 30 * 24 * 3600
_FIRST_S = 3
"""How long a process with an unforeseen error waits for the news that another one ended first."""
_LEAVE_S = 3
"""How long process 0, whose service carries the news, waits for the others to hear it."""


def end_together() -> None:
    """Wait for the other processes, which all call this as well, and disconnect.

    There is no time limit, because process 0 may still be writing. If a process dies, its missing heartbeat ends the
    wait.
    """
    client = messages.client()
    if client is not None:
        client.wait_at_barrier("r2rank/end", 1000 * _FOREVER_S)
        _disconnect()


def leave(code: int, reason: str | BaseException = "") -> NoReturn:
    """End this process now, and the whole job with the same exit code.

    Args:
        code: exit code.
        reason: one line for stderr, if any, or an unforeseen error, whose traceback is shown. If another process ended
            first, that is the cause: its exit code is used, and an error of this process is not shown.
    """
    line = reason if isinstance(reason, str) else type(reason).__name__
    own = {"code": code, "process": messages.process(), "reason": line}
    first = _first(own, foreseen=isinstance(reason, str))
    if first["process"] != own["process"] and (first["reason"] == line or not isinstance(reason, str)):
        _say_first(first)
    elif not isinstance(reason, str):
        traceback.print_exception(reason)
    elif reason:
        print(reason, file=sys.stderr, flush=True)
    _let_others_hear()
    end_process(int(first["code"]))


def end_when_told() -> None:
    """Start a thread that ends this process when another one has called `leave`."""

    def wait() -> None:
        text = messages.get(_ENDED, _FOREVER_S)
        if text is None:  # disconnected: the job has ended, or JAX itself ends this process
            return
        first = json.loads(text)
        if first["process"] != messages.process():
            _say_first(first)
            _let_others_hear()
            end_process(int(first["code"]))

    global _waiting
    _waiting = threading.Thread(target=wait, daemon=True)
    _waiting.start()
    atexit.register(_disconnect)


def _disconnect() -> None:
    """Leave the coordination service, and wait for the thread, which Python must not end within a call of C++."""
    sys.modules["jax"].distributed.shutdown()
    if _waiting is not None:
        _waiting.join(_LEAVE_S)


def _first(own: dict[str, Any], *, foreseen: bool) -> dict[str, Any]:
    """The first announced end of a process; `own` if there is no other."""
    text = None
    if not foreseen:  # perhaps the loss of a connection to a process that has just ended
        text = messages.get(_ENDED, _FIRST_S)
    if text is None and not messages.put(_ENDED, json.dumps(own)):
        text = messages.get(_ENDED, _FIRST_S)
    return own if text is None else dict(json.loads(text))


def _let_others_hear() -> None:
    """Say that this process leaves. Process 0 waits until all others do, because they hear the news from it."""
    messages.put(f"{_LEAVING}/{messages.process()}", "")
    deadline = time.monotonic() + _LEAVE_S
    while messages.process() == 0 and time.monotonic() < deadline:
        if messages.count(_LEAVING) >= messages.processes():
            return
        time.sleep(0.05)


def _say_first(first: dict[str, Any]) -> None:
    print(f"r2rank: process {first['process']} ended, and this one with it", file=sys.stderr, flush=True)
