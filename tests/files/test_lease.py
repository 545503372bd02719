"""One writer at a time in an object store, and what is left of one that died."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from r2rank_jax.errors import CheckpointError, StorageError
from r2rank_jax.files import writer
from r2rank_jax.files.lease import Lease
from r2rank_jax.files.objects import ObjectFolder

BEAT_S, DEAD_S = 0.1, 1.0
LONG_S = 60.0  # a busy machine may need seconds for a sign of life


def new_lease(address, dead_s=DEAD_S):
    return Lease(address, beat_s=BEAT_S, dead_s=dead_s)


def leave_claim(address, **changes):
    """The claim of a process that gives no sign of life."""
    holder = writer.this_process() | {"command": "r2rank rl", "machine": "another"} | changes
    ObjectFolder(address).write("writer/7.json", json.dumps(holder).encode())


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_living_writer_is_named_and_others_are_refused(address):
    first = new_lease(address)
    first.acquire()
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=rf"one job at a time .*`r2rank.*` on host .*process {os.getpid()}"):
        new_lease(address, LONG_S).acquire()
    assert time.monotonic() - start < LONG_S  # at its first sign of life
    first.require()
    first.release()


def test_a_released_claim_is_followed_at_once(address, capsys):
    first = new_lease(address)
    first.acquire()
    first.release()
    second = new_lease(address)
    second.acquire()
    assert "waiting" not in capsys.readouterr().out
    assert list(ObjectFolder(address).tags()) == ["writer/2.json"]
    second.release()


def test_a_silent_claim_of_another_machine_is_followed_after_a_while(address, capsys):
    leave_claim(address)
    start = time.monotonic()
    lease = new_lease(address)
    lease.acquire()
    assert time.monotonic() - start >= DEAD_S
    assert "waiting up to 1 s for a sign of life of `r2rank rl`" in capsys.readouterr().out
    assert list(ObjectFolder(address).tags()) == ["writer/8.json"]
    lease.release()


def test_a_process_that_died_on_this_machine_is_followed_at_once(address, capsys):
    leave_claim(address, machine=writer._machine(), process=dead_process())
    new_lease(address).acquire()
    assert "waiting" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"not JSON", b"[]", b"{}", b'{"machine": null, "process": "x"}'])
def test_a_claim_that_cannot_be_read_is_waited_for(address, content, capsys):
    ObjectFolder(address).write("writer/7.json", content)
    new_lease(address).acquire()
    assert "a sign of life of another job" in capsys.readouterr().out


def test_of_many_that_meet_a_dead_one_a_single_one_follows(address):
    leave_claim(address, machine=writer._machine(), process=dead_process())
    outcomes = []

    def acquire():
        lease = new_lease(address, LONG_S)
        try:
            lease.acquire()
            outcomes.append(lease)
        except CheckpointError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=acquire) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [outcome for outcome in outcomes if isinstance(outcome, Lease)]
    assert len(winners) == 1 and len(outcomes) == 6
    winners[0].require()
    winners[0].release()


def test_a_writer_that_was_stopped_for_long_learns_that_it_lost(address):
    first = new_lease(address)
    first.acquire()
    first._ended.set()  # no sign of life any more
    first._beats.join()
    claim = ObjectFolder(address).read("writer/1.json")
    ObjectFolder(address).write("writer/1.json", json.dumps(json.loads(claim) | {"machine": "another"}).encode())
    second = new_lease(address)
    second.acquire()
    with pytest.raises(StorageError, match="another one took over"):
        first.require()
    first.release()
    second.require()  # the loser's release does not touch the winner's claim
    second.release()
