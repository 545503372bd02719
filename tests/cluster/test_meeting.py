"""Processes meet, or say why they cannot. Each process is a thread here."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from r2rank_jax.cluster import meeting
from r2rank_jax.cluster.meeting import meet, stay_away
from r2rank_jax.cluster.variables import Place
from r2rank_jax.errors import FAILED, REFUSED, EndedElsewhere, JoinError, R2RankError, UsageError


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(meeting, "SAY_EVERY_S", 0.3)
    monkeypatch.setattr(meeting, "_BIND_S", 0.3)
    monkeypatch.setattr(meeting, "_RESOLVE_S", 0.3)


def place(port: int, process: int, processes: int = 3, host: str = "127.0.0.1") -> Place:
    return Place(host=host, port=port, processes=processes, process=process)


def outcomes(*calls) -> list[R2RankError | None]:
    """What each call raises, with all running at the same time."""

    def outcome(call) -> R2RankError | None:
        try:
            call()
        except R2RankError as error:
            return error
        return None

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(outcome, calls))


def test_all_go_on_once_the_last_has_arrived(port):
    def late() -> None:
        time.sleep(0.5)
        start.append(time.monotonic())
        meet(place(port, 2), 10)

    def early(process: int) -> None:
        meet(place(port, process), 10)
        ends.append(time.monotonic())

    start: list[float] = []
    ends: list[float] = []
    assert outcomes(lambda: early(0), lambda: early(1), late) == [None] * 3
    assert all(end >= start[0] for end in ends)
    with socket.create_server(("127.0.0.1", port)):  # JAX's service can have the port
        pass


def test_the_missing_are_named_while_waiting_and_at_the_end(port, capfd):
    first, second = outcomes(lambda: meet(place(port, 0, 4), 2), lambda: meet(place(port, 2, 4), 5))
    assert isinstance(first, JoinError) and "processes 1, 3 did not" in str(first)
    assert isinstance(second, EndedElsewhere) and str(second) == str(first)
    assert (first.exit_code, second.exit_code) == (FAILED, FAILED)
    assert f"waiting for processes 1, 3 at 127.0.0.1:{port}" in capfd.readouterr().err


def test_process_0_is_waited_for_by_name(port, capfd):
    (only,) = outcomes(lambda: meet(place(port, 1), 1))
    assert isinstance(only, JoinError) and "process 0 did not" in str(only)
    assert f"waiting for process 0 at 127.0.0.1:{port}" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ([(1, 3), (1, 3)], "two have 1"),
        ([(1, 2)], "must be the same everywhere, got 3 in process 0, 2 in 1"),
    ],
)
def test_processes_that_contradict_each_other_are_refused(port, others, words):
    first, *rest = outcomes(
        lambda: meet(place(port, 0), 5), *[partial(meet, place(port, *other), 5) for other in others]
    )
    for error in (first, *rest):
        assert error is not None and words in str(error)
        assert error.exit_code == REFUSED


@pytest.mark.parametrize("refused", [0, 2])
def test_one_refused_process_ends_those_that_wait(port, refused):
    reason = "model.width must be at least 1, got 0"
    calls = [partial(meet, place(port, process), 10) for process in range(3)]
    calls[refused] = partial(stay_away, place(port, refused), REFUSED, reason)
    start = time.monotonic()
    errors = outcomes(*calls)
    assert time.monotonic() - start < 5
    for process, error in enumerate(errors):
        assert process == refused or (isinstance(error, EndedElsewhere) and str(error) == reason)
        assert process == refused or error.exit_code == REFUSED


def test_a_process_that_dies_while_the_others_wait_ends_them(port):
    def die() -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b'{"process": 1, "processes": 3}\n')
            time.sleep(0.3)

    waiter = threading.Thread(target=lambda: (time.sleep(0.2), die()))
    waiter.start()
    (first,) = outcomes(lambda: meet(place(port, 0), 10))
    waiter.join()
    assert isinstance(first, EndedElsewhere) and "process 1 ended before" in str(first)
    assert first.exit_code == FAILED


def test_strangers_at_the_port_are_ignored(port):
    def stranger() -> None:
        time.sleep(0.2)
        for greeting in (b"GET / HTTP/1.1\r\n\r\n", b"\n", b"[1]\n", b""):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(greeting)

    def late() -> None:
        time.sleep(0.5)
        meet(place(port, 1, 2), 10)

    assert outcomes(lambda: meet(place(port, 0, 2), 10), stranger, late) == [None] * 3


def test_a_port_in_use_is_refused(port):
    with socket.create_server(("127.0.0.1", port)):
        (only,) = outcomes(lambda: meet(place(port, 0), 5))
    assert isinstance(only, UsageError) and f"port {port}" in str(only) and "choose another port" in str(only)


def test_an_unknown_host_is_refused(port):
    (only,) = outcomes(lambda: meet(place(port, 1, host="no-such-host.invalid"), 60))
    assert isinstance(only, UsageError) and "no-such-host.invalid" in str(only)
