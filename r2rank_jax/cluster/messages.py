"""Short messages between the processes of a job, through the store of JAX's coordination service.

They need no devices and no collectives, and every wait has a limit. JAX has no public access to that store; Orbax uses
it in the same way. A key can be written once.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

_exchanges: Counter[str] = Counter()  # name -> how many there were; a key can be written once


def joined() -> bool:
    """Whether this process has joined others."""
    return client() is not None


def process() -> int:
    """Index of this process in its job, 0 on its own; known without starting JAX's devices."""
    return int(_state().process_id) if joined() else 0


def processes() -> int:
    """Number of processes of the job."""
    return int(_state().num_processes) if joined() else 1


def agrees_on_stops() -> bool:
    """Whether JAX's preemption service runs."""
    return joined() and _state().preemption_sync_manager is not None


def put(key: str, text: str) -> bool:
    """Write a message. False if the key has one already, or if the service is gone."""
    try:
        client().key_value_set(f"r2rank/{key}", text)
    except Exception:  # JAX raises errors of several types, which its documentation does not list
        return False
    return True


def get(key: str, limit_s: float) -> str | None:
    """Wait for a message. None if there is none in time, or if the service is gone."""
    try:
        return str(client().blocking_key_value_get(f"r2rank/{key}", int(1000 * limit_s)))
    except Exception:
        return None


def exchange(name: str, text: str, limit_s: float, *, to_first: bool = False) -> list[str | None]:
    """Send a text to all processes, and wait for theirs.

    All processes must call this equally often under each name, and threads must not share a name.

    Args:
        name: of what is exchanged.
        text: of this process.
        limit_s: seconds to wait for each process.
        to_first: only process 0 needs the texts, which are deleted once it has them; others get their own only.

    Returns:
        The texts in the order of processes; None for one that did not come.
    """
    if not joined():
        return [text]
    _exchanges[name] += 1
    folder = f"{name}/{_exchanges[name]}"
    put(f"{folder}/{process()}", text)
    if to_first and process() != 0:
        return [text]
    texts = [get(f"{folder}/{i}", limit_s) for i in range(processes())]
    if to_first:
        client().key_value_delete(f"r2rank/{folder}")
    return texts


def count(folder: str) -> int:
    """Number of keys below `folder`; 0 if the service is gone."""
    try:
        return len(client().key_value_dir_get(f"r2rank/{folder}"))
    except Exception:
        return 0


def client() -> Any:
    """JAX's connection to the coordination service, or None."""
    state = _state()
    return None if state is None else state.client


def _state() -> Any:
    """JAX's state of this process in the job, or None if JAX was not imported."""
    module = sys.modules.get("jax._src.distributed")
    return None if module is None else module.global_state
