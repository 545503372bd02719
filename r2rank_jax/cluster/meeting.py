"""Wait for all processes of a job, and say which are missing.

`jax.distributed` waits in silence, for minutes, and ends in a crash where the coordinator's port is in use. So the
processes meet first. Process 0 listens at the coordinator's port, and the others connect and give their numbers. When
all have arrived, process 0 tells them so and leaves the port to JAX.

Each message is one line of JSON. Process i sends {"process": i, "processes": N}; process 0 answers {"go": true}. A
process that cannot join, because its command was refused, says so instead: {"ended": EXIT CODE, "reason": LINE}. This
reaches all processes, which end with the same code.
"""

from __future__ import annotations

import errno
import json
import selectors
import socket
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from r2rank_jax.cluster.variables import COORDINATOR, JOIN_S, PROCESS, PROCESSES, Place
from r2rank_jax.errors import FAILED, REFUSED, STOPPED, EndedElsewhere, JoinError, UsageError

SAY_EVERY_S = 10
"""Seconds between messages about missing processes."""
_RESOLVE_S = 45
"""How long a host's name may be unknown. In Kubernetes a name appears with its pod."""
_BIND_S = 3
"""How long the port may be in use, perhaps still by an earlier attempt of this job."""
_LONGEST_MESSAGE = 4096
_STOPPED_WHILE_WAITING = {"ended": STOPPED, "reason": "another process was told to stop before all had arrived"}


def meet(place: Place, limit_s: float) -> None:
    """Return once all processes of the job are there.

    Args:
        place: of this process.
        limit_s: seconds after which the processes that are there give up.

    Raises:
        UsageError: the port is in use, the host is unknown, or two processes contradict each other.
        JoinError: a process is missing after `limit_s`, or left before all had arrived.
        EndedElsewhere: a process was refused before it could join.
    """
    if place.process == 0:
        _receive(place, limit_s)
    else:
        _arrive(place, limit_s)


def stay_away(place: Place, code: int, reason: str, limit_s: float = 5) -> None:
    """Tell the other processes, which may be waiting, that this one will not join.

    Args:
        place: of this process.
        code: its exit code, which becomes that of the job.
        reason: one line.
        limit_s: seconds for which process 0 waits for the others, and the others for process 0.
    """
    message = {"process": place.process, "processes": place.processes, "ended": code, "reason": reason[:2000]}
    deadline = time.monotonic() + limit_s
    heard = 0
    with suppress(OSError, UsageError):
        if place.process > 0:
            while time.monotonic() < deadline:
                with suppress(ConnectionError, TimeoutError):
                    socket.create_connection((place.host, place.port), timeout=2).sendall(_line(message))
                    return
                time.sleep(0.2)
            return
        with _listen(place) as listener:
            while heard < place.processes - 1 and time.monotonic() < deadline:
                listener.settimeout(deadline - time.monotonic())
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(2)
                    if _read_line(connection):  # unread data would reset the connection, and the answer would be lost
                        heard += 1
                        _tell([connection], message)


def _receive(place: Place, limit_s: float) -> None:
    clock = _Clock(limit_s)
    arrived: dict[int, socket.socket] = {}
    with _listen(place) as listener, selectors.DefaultSelector() as selector:
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ)
        try:
            while len(arrived) < place.processes - 1:
                for key, _ in selector.select(timeout=1):
                    if key.fileobj is listener:
                        _accept(listener, selector)
                        continue
                    connection = key.fileobj
                    assert isinstance(connection, socket.socket)
                    if gone := [i for i, other in arrived.items() if other is connection]:
                        last_word = _read_line(connection) or {"ended": FAILED, "reason": _left(gone[0])}
                        _tell(arrived.values(), last_word)
                        raise _ended(last_word)
                    greeting = _read_line(connection)
                    problem = _problem(greeting, place, arrived)
                    if greeting is None:  # not a process of ours, such as a scan of the network
                        selector.unregister(connection)
                        connection.close()
                    elif problem is not None:
                        _tell([*arrived.values(), connection], {"ended": REFUSED, "reason": problem})
                        raise UsageError(problem)
                    elif "ended" in greeting:
                        _tell(arrived.values(), greeting)
                        raise _ended(greeting)
                    else:
                        arrived[greeting["process"]] = connection
                missing = [i for i in range(1, place.processes) if i not in arrived]
                if missing and clock.over():
                    reason = _too_late(missing, limit_s)
                    _tell(arrived.values(), {"ended": FAILED, "reason": reason})
                    raise JoinError(reason)
                if missing and clock.due():
                    _say(f"{_named(missing)} at {place.address} ({clock.passed_s:.0f} s of {limit_s:.0f} s)")
            _tell(arrived.values(), {"go": True})
        except KeyboardInterrupt:
            _tell(arrived.values(), _STOPPED_WHILE_WAITING)
            raise
        finally:
            for key in list(selector.get_map().values()):
                if key.fileobj is not listener and isinstance(key.fileobj, socket.socket):
                    key.fileobj.close()


def _arrive(place: Place, limit_s: float) -> None:
    clock = _Clock(limit_s)
    with _connect(place, clock) as connection:
        answer = None
        while answer is None:
            connection.settimeout(min(SAY_EVERY_S, max(clock.left_s, 0.1)) + 5 * clock.over())
            try:
                answer = _read_line(connection, wait=True)
            except KeyboardInterrupt:
                _tell([connection], _STOPPED_WHILE_WAITING)
                raise
            except TimeoutError:
                if clock.over():
                    raise JoinError(f"not all processes had arrived after {limit_s:.0f} s; raise {JOIN_S}") from None
                continue  # process 0 says who is missing
            if answer is None:
                raise JoinError(_left(0))
    if "go" not in answer:
        raise _ended(answer)


def _listen(place: Place) -> socket.socket:
    """A socket at the coordinator's port, on the loopback interface alone where the address is there."""
    local = place.host in ("localhost", "127.0.0.1", "::1")
    deadline = time.monotonic() + _BIND_S
    while True:
        try:
            if local:
                family = socket.AF_INET6 if place.host == "::1" else socket.AF_INET
                return socket.create_server((place.host, place.port), family=family, backlog=1024)
            if socket.has_dualstack_ipv6():
                return socket.create_server(("", place.port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
            return socket.create_server(("", place.port), backlog=1024)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            raise UsageError(
                f"port {place.port} of {COORDINATOR} must be free on the host of process 0, but it cannot be used "
                f"({error.strerror}); choose another port"
            ) from error


def _connect(place: Place, clock: _Clock) -> socket.socket:
    """Connect to process 0 and send the greeting."""
    resolve_until = time.monotonic() + _RESOLVE_S
    while True:
        try:
            connection = socket.create_connection((place.host, place.port), timeout=5)
            connection.sendall(_line({"process": place.process, "processes": place.processes}))
            return connection
        except socket.gaierror as error:
            if time.monotonic() > resolve_until:
                raise UsageError(
                    f"host {place.host!r} of {COORDINATOR} must have an address, but this machine knows none "
                    f"({error.strerror}); correct the name"
                ) from error
            reason = f"an address of host {place.host!r}"
        except OSError:  # process 0 is not there yet
            reason = f"process 0 at {place.address}"
        if clock.over():
            raise JoinError(_too_late([0], clock.limit_s))
        if clock.due():
            _say(f"{reason} ({clock.passed_s:.0f} s of {clock.limit_s:.0f} s)")
        time.sleep(0.2)


def _accept(listener: socket.socket, selector: selectors.BaseSelector) -> None:
    try:
        connection, _ = listener.accept()
    except OSError:  # it went away again
        return
    connection.settimeout(2)
    selector.register(connection, selectors.EVENT_READ)


def _problem(greeting: dict[str, Any] | None, place: Place, arrived: dict[int, socket.socket]) -> str | None:
    """How a process contradicts the others."""
    if greeting is None:
        return None
    process, processes = greeting.get("process"), greeting.get("processes")
    if processes != place.processes:
        return f"{PROCESSES} must be the same everywhere, got {place.processes} in process 0, {processes} in {process}"
    if process in arrived or process not in range(1, processes):
        return f"every process must have another {PROCESS}, but two have {process}"
    return None


def _read_line(connection: socket.socket, *, wait: bool = False) -> dict[str, Any] | None:
    """A message; None where the other side left or says something else."""
    data = b""
    try:
        while not data.endswith(b"\n") and len(data) < _LONGEST_MESSAGE:
            part = connection.recv(_LONGEST_MESSAGE)
            if not part:
                return None
            data += part
        message = json.loads(data)
    except TimeoutError:
        if wait:
            raise
        return None
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) else None


def _ended(message: dict[str, Any]) -> EndedElsewhere:
    code = message.get("ended")
    reason = str(message.get("reason", "a process of another program answered"))
    return EndedElsewhere(reason, code if isinstance(code, int) else FAILED)


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _tell(connections: Iterable[socket.socket], message: dict[str, Any]) -> None:
    for connection in connections:
        try:
            connection.sendall(_line(message))
        except OSError:  # it has left; the launcher sees that
            continue


def _say(text: str) -> None:
    print(f"r2rank: waiting for {text}", file=sys.stderr, flush=True)


def _named(processes: list[int]) -> str:
    shown = ", ".join(map(str, processes[:20])) + (", ..." if len(processes) > 20 else "")
    return f"process{'es' if len(processes) > 1 else ''} {shown}"


def _left(process: int) -> str:
    return f"process {process} ended before all processes had arrived; its own output says why"


def _too_late(missing: list[int], limit_s: float) -> str:
    return (
        f"all processes must arrive within {limit_s:.0f} s, {_named(missing)} did not; look at their output, or raise "
        f"{JOIN_S}"
    )


class _Clock:
    """Measures the wait, and says when a message about it is due."""

    def __init__(self, limit_s: float):
        self.limit_s = limit_s
        self._start = time.monotonic()
        self._said = self._start

    @property
    def passed_s(self) -> float:
        return time.monotonic() - self._start

    @property
    def left_s(self) -> float:
        return self.limit_s - self.passed_s

    def over(self) -> bool:
        return self.left_s <= 0

    def due(self) -> bool:
        if time.monotonic() - self._said < SAY_EVERY_S:
            return False
        self._said = time.monotonic()
        return True
