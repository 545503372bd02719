"""Let a job of several processes end as a whole, with one exit code.

Without this, a process that fails keeps the others waiting in a collective, and they end in crashes with codes of their
own, from which a launcher cannot tell a wrong setting from a lost machine. So the first process that ends early leaves
its exit code in the store of JAX's coordination service, where a thread of every other process waits for it.

JAX has no public access to that store; Orbax reads it in the same way.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

from r2rank_jax.stopping import end_process

_ENDED, _LEAVING = "r2rank/ended", "r2rank/leaving"
_FOREVER_MS = 30 * 24 * 3600 * 1000
_FIRST_MS = 3000
"""How long a process with an unforeseen error waits for the news that another one ended first."""
_LEAVE_S = 5
"""How long process 0, whose service carries the news, waits for the others to hear it."""


def joined() -> bool:
    """Whether this process has joined others."""
    return _client() is not None


def is_first() -> bool:
    """Whether this is process 0, or a process on its own; known without starting JAX."""
    return not joined() or _process() == 0


def end_together() -> None:
    """Wait for the other processes, which all call this as well, and disconnect.

    There is no time limit, because process 0 may still be writing. If a process dies, its missing heartbeat ends the
    wait.
    """
    client = _client()
    if client is not None:
        client.wait_at_barrier("r2rank/end", _FOREVER_MS)
        sys.modules["jax"].distributed.shutdown()


def leave(code: int, reason: str | BaseException = "") -> NoReturn:
    """End this process now, and the whole job with the same exit code.

    Args:
        code: exit code.
        reason: one line for stderr, if any, or an unforeseen error, whose traceback is shown. If another process ended
            first, that is the cause: its exit code is used, and an error of this process is not shown.
    """
    client, process = _client(), _process()
    line = reason if isinstance(reason, str) else type(reason).__name__
    first = _first(client, {"code": code, "process": process, "reason": line}, foreseen=isinstance(reason, str))
    if first["process"] != process and (first["reason"] == line or not isinstance(reason, str)):
        _say_first(first)
    elif not isinstance(reason, str):
        traceback.print_exception(reason)
    elif reason:
        print(reason, file=sys.stderr, flush=True)
    _let_others_hear(client)
    end_process(int(first["code"]))


def end_when_told() -> None:
    """Start a thread that ends this process when another one has called `leave`."""
    client, process = _client(), _process()

    def wait() -> None:
        try:
            first = json.loads(client.blocking_key_value_get(_ENDED, _FOREVER_MS))
        except Exception:  # disconnected: the job has ended, or JAX itself ends this process
            return
        if first["process"] == process:
            return
        _say_first(first)
        _let_others_hear(client)
        end_process(int(first["code"]))

    threading.Thread(target=wait, daemon=True).start()


def _first(client: Any, own: dict[str, Any], *, foreseen: bool) -> dict[str, Any]:
    """The first announced end of a process; `own` if there is no other."""
    try:
        if not foreseen:  # perhaps the loss of a connection to a process that has just ended
            return dict(json.loads(client.blocking_key_value_get(_ENDED, _FIRST_MS)))
    except Exception:  # JAX raises errors of several types
        pass
    try:
        client.key_value_set(_ENDED, json.dumps(own))
    except Exception:
        try:
            return dict(json.loads(client.blocking_key_value_get(_ENDED, _FIRST_MS)))
        except Exception:
            pass
    return own


def _let_others_hear(client: Any) -> None:
    """Leave. Process 0 waits until the others leave too, as they hear the news from it."""
    try:
        client.key_value_set(f"{_LEAVING}/{_process()}", "")
        deadline = time.monotonic() + _LEAVE_S
        while _process() == 0 and time.monotonic() < deadline:
            if len(client.key_value_dir_get(_LEAVING)) >= _state().num_processes:
                return
            time.sleep(0.05)
    except Exception:  # the service is gone, and with it the job
        return


def _say_first(first: dict[str, Any]) -> None:
    print(f"r2rank: process {first['process']} ended, and this one with it", file=sys.stderr, flush=True)


def _state() -> Any:
    """JAX's state of this process in the job, or None if JAX was not imported."""
    module = sys.modules.get("jax._src.distributed")
    return None if module is None else module.global_state


def _client() -> Any:
    """JAX's connection to the coordination service, or None."""
    state = _state()
    return None if state is None else state.client


def _process() -> int:
    return int(_state().process_id)
