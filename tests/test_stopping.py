"""What signals do to a command."""

import os
import signal
import subprocess
import sys
import time

import pytest

from r2rank_jax import stopping
from r2rank_jax.errors import Stopped

SAME_S = stopping._SAME_S

ASKED = """
import os, sys, time
from r2rank_jax import stopping
from r2rank_jax.errors import Stopped
with stopping.asked_to_stop(leave=stopping.end_process):
    if "hold" in sys.argv: stopping.hold()
    if "release" in sys.argv: stopping.release()
    print("ready", flush=True)
    try:
        while True:
            {body}
            stopping.check()
    except Stopped:
        print("committed", flush=True)
        sys.exit(75)
"""
# As during a compilation, other threads run meanwhile, but Python's signal handlers do not.
BUSY = "import ctypes; ctypes.CDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)"
INTERRUPTED = """
import sys, time
from r2rank_jax.cli import entry
def work(args):
    print("ready", flush=True)
    try:
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)
        time.sleep(60 if "slow" in sys.argv else 0)
entry._carry_out = work
sys.exit(entry.main())
"""


def run(code: str, *arguments: str, signals: tuple[tuple[signal.Signals, float], ...]) -> tuple[int, str, str]:
    """Run Python code, send signals, each some seconds after the one before, and return exit code and output."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for number, pause_s in signals:
            time.sleep(pause_s)
            os.kill(process.pid, number)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_phase_that_holds_work_commits_at_its_next_check(number):
    code, out, err = run(ASKED.format(body="time.sleep(.05)"), "hold", signals=((number, 0.2),))
    assert (code, out) == (75, "committed\n")
    assert err.startswith(f"r2rank: {number.name}: stopping soon")


def test_a_phase_without_work_ends_at_once_even_outside_of_python():
    code, out, err = run(ASKED.format(body=BUSY), signals=((signal.SIGTERM, 0.3),))
    assert (code, out) == (75, "")
    assert "nothing to commit" in err


def test_a_phase_that_has_released_its_work_ends_at_once():
    code, out, err = run(ASKED.format(body=BUSY), "hold", "release", signals=((signal.SIGTERM, 0.2),))
    assert (code, out) == (75, "") and "nothing to commit" in err


def test_a_second_signal_ends_a_busy_phase():
    twice = ((signal.SIGTERM, 0.2), (signal.SIGINT, SAME_S + 0.3))
    code, out, err = run(ASKED.format(body=BUSY), "hold", signals=twice)
    assert (code, out) == (128 + signal.SIGINT, "")
    assert "a second signal, SIGINT" in err


def test_a_signal_that_was_passed_on_twice_counts_once():
    twice = ((signal.SIGTERM, 0.2), (signal.SIGTERM, 0.2))
    code, out, _ = run(ASKED.format(body="time.sleep(1)"), "hold", signals=twice)
    assert (code, out) == (75, "committed\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_other_commands_clean_up_and_end(number):
    code, out, err = run(INTERRUPTED, signals=((number, 0.2),))
    assert (code, out) == (75, "cleaned up\n")
    assert err.count("\n") == 1 and "interrupted" in err


def test_a_second_signal_ends_a_slow_cleanup():
    twice = ((signal.SIGTERM, 0.2), (signal.SIGTERM, SAME_S + 0.3))
    assert run(INTERRUPTED, "slow", signals=twice)[0] == 128 + signal.SIGTERM


def test_without_a_phase_checks_do_nothing():
    stopping.check()
    stopping.hold()


def test_processes_stop_at_the_agreed_check():
    with stopping.asked_to_stop(agreed=lambda number: number == 3, leave=stopping.end_process):
        stopping.check()
        stopping.check()
        with pytest.raises(Stopped):
            stopping.check()


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stopping.asked_to_stop(leave=stopping.end_process), stopping.interrupted_by_signals(last=False):
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
