"""Stop a phase again and again at random moments, as a cluster does, and compare it with one that nobody stopped."""

from __future__ import annotations

import logging
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from r2rank_jax.checkpoint.folders import sealed_steps
from r2rank_jax.errors import STOPPED
from r2rank_jax.files.checksums import damage
from tests.support.command_line import COMMAND, environment, metrics

END_S = 10
"""Seconds within which a job must have committed and ended."""
LIMIT_S = 240
"""Of a job that nobody stops."""


@dataclass(frozen=True)
class Command:
    """A phase to run, as a number of processes."""

    phase: str
    config: Path
    run_dir: Path
    processes: int
    settings: tuple[str, ...] = ()

    def line(self) -> list[str]:
        """The command line of every process."""
        mesh = ("--mesh.data", str(self.processes))
        return [
            *COMMAND,
            self.phase,
            "--config",
            str(self.config),
            "--run-dir",
            str(self.run_dir),
            *mesh,
            *self.settings,
        ]


@dataclass
class Outcome:
    """How often a phase was stopped, and what was wrong."""

    stops: int = 0
    """Signals, without those that came after the last check of a run."""
    finished: int = 0
    """Signals that came after the last check."""
    end_s: float = END_S
    """Seconds within which the job must end, after which it counts as a problem."""
    resumed: list[int] = field(default_factory=list)
    """Steps that runs went on from."""
    slowest_s: float = 0.0
    moments: dict[str, int] = field(default_factory=dict)
    """How often the last line before the signal was of which kind."""
    problems: list[str] = field(default_factory=list)


@contextmanager
def started(command: Command) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes of a job, which write to `<run>.<process>.log` beside the run directory."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    processes = []
    for process in range(command.processes):
        place = {
            "R2RANK_COORDINATOR": f"127.0.0.1:{port}",
            "R2RANK_PROCESSES": str(command.processes),
            "R2RANK_PROCESS": str(process),
        }
        with log_of(command, process).open("wb") as log:
            env = environment(**(place if command.processes > 1 else {}))
            settings = {"env": env, "stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True}
            processes.append(subprocess.Popen(command.line(), **settings))
    try:
        yield processes
    finally:
        for each in processes:
            each.kill()
            each.wait()


def log_of(command: Command, process: int) -> Path:
    """The output of a process."""
    return command.run_dir.with_name(f"{command.run_dir.name}.{process}.log")


def finish(command: Command) -> float:
    """Run a phase to its end, and return the seconds from its first line of output."""
    with started(command) as processes:
        _has_begun(command, processes)
        begun = time.monotonic()
        codes = [each.wait(timeout=LIMIT_S) for each in processes]
    assert codes == [0] * command.processes, (codes, log_of(command, 0).read_text(encoding="utf-8")[-2000:])
    return time.monotonic() - begun


def stop_often(command: Command, outcome: Outcome, *, stops: int, longest_s: float, draw: random.Random) -> None:
    """Start a phase, stop it at a random moment, and repeat until it has finished.

    Args:
        command: the phase.
        outcome: to which the stops are added.
        stops: how many of them `outcome` may hold. If there are as many, the phase may be left unfinished.
        longest_s: latest moment, in seconds after its first line of output.
        draw: draws the moments and the processes that get the signal.
    """
    while outcome.stops < stops:
        with started(command) as processes:
            if not _has_begun(command, processes):
                return  # nothing was left to do
            time.sleep(draw.uniform(0, longest_s))
            victim = draw.randrange(command.processes)
            moment = _moment(log_of(command, 0))
            if processes[victim].poll() is not None:
                ends = [each.wait(timeout=LIMIT_S) for each in processes]
                if any(ends):
                    outcome.problems.append(f"ended with {ends} although nobody stopped it")
                return
            sent = time.monotonic()
            # To the process alone, or also to the processes that load its data, as a terminal does.
            send = draw.choice([os.kill, os.killpg])
            send(processes[victim].pid, draw.choice([signal.SIGTERM, signal.SIGINT]))
            codes = _codes(processes, sent + 3 * outcome.end_s)
            took_s = time.monotonic() - sent
        finished = set(codes) == {0}  # the signal came after the last check
        if not finished and set(codes) != {STOPPED}:
            outcome.problems.append(
                f"stop {outcome.stops} at {moment!r}: exit codes {codes}, see {_kept(command, outcome)}"
            )
        if took_s > outcome.end_s:
            outcome.problems.append(f"stop {outcome.stops} at {moment!r} took {took_s:.1f} s")
        if loose := _not_sealed(command):
            outcome.problems.append(f"stop {outcome.stops} at {moment!r}: {loose}")
        outcome.stops += not finished
        outcome.finished += finished
        outcome.resumed += _resumed(command)
        outcome.slowest_s = max(outcome.slowest_s, took_s)
        outcome.moments[moment] = outcome.moments.get(moment, 0) + 1


def disturbed(
    command: Command,
    stops: int,
    *,
    seed: int,
    part: float,
    before: Callable[[Path], object] | None = None,
    end_s: float = END_S,
) -> Outcome:
    """Stop a phase until there are enough stops, beginning anew whenever it has finished, and compare every result.

    Args:
        command: the phase; "-undisturbed" or "-stopped0" and so on are appended to its run directory.
        stops: how many.
        seed: of the moments.
        part: latest moment, as a part of the time that an undisturbed run takes from its first line of output.
        before: prepares a run directory, for example with a finished SFT.
        end_s: seconds within which a job must end.
    """

    def fresh(name: str) -> Command:
        run_dir = command.run_dir.with_name(f"{command.run_dir.name}-{name}")
        if before is not None:
            before(run_dir)
        return replace(command, run_dir=run_dir)

    outcome, draw = Outcome(end_s=end_s), random.Random(seed)
    undisturbed = fresh("undisturbed")
    longest_s = part * finish(undisturbed)
    for attempt in range(10 * stops):
        if outcome.stops >= stops:
            break
        stopped, before_it = fresh(f"stopped{attempt}"), outcome.stops
        stop_often(stopped, outcome, stops=stops, longest_s=longest_s, draw=draw)
        finish(stopped)
        outcome.problems += differences(undisturbed.run_dir, stopped.run_dir, command.phase)
        if outcome.stops == before_it:  # it compiled less than the undisturbed one, and ended before the signal
            longest_s *= 0.7
    if outcome.stops < stops:
        outcome.problems.append(f"only {outcome.stops} of {stops} signals came in time")
    return outcome


def differences(one: Path, other: Path, phase: str) -> list[str]:
    """How the results of a phase in two run directories differ: metrics, and every bit of the last state."""
    found = []
    if metrics(one, phase) != metrics(other, phase):
        found.append("metrics.jsonl differs")
    steps = [sealed_steps(run / "checkpoints" / phase)[:1] for run in (one, other)]
    if steps[0] != steps[1]:
        return [*found, f"the last commits are {steps}"]
    a, b = (arrays(run / "checkpoints" / phase / str(steps[0][0])) for run in (one, other))
    if a.keys() != b.keys():
        return [*found, "the states have other arrays"]
    return found + [f"{name} differs" for name in a if a[name].tobytes() != b[name].tobytes()]


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """Every array of the state in the folder of a commit."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.metadata(folder / "state").item_metadata.tree
        kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        state: Any = reader.restore(folder / "state", args=ocp.args.PyTreeRestore(item=tree, restore_args=kinds))
        return {
            jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        }


def _has_begun(command: Command, processes: list[subprocess.Popen[bytes]]) -> bool:
    """Wait until all processes have caught the signals, which is before their first line about the phase."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if log_of(command, 0).stat().st_size > 0:
            return True
        if all(each.poll() is not None for each in processes):
            return False
        time.sleep(0.02)
    raise AssertionError("the job printed nothing")


def _resumed(command: Command) -> list[int]:
    text = log_of(command, 0).read_text(encoding="utf-8")
    return [int(step) for step in re.findall(r": resuming at step (\d+) of", text)]


def _codes(processes: list[subprocess.Popen[bytes]], deadline: float) -> list[int | None]:
    codes: list[int | None] = []
    for each in processes:
        try:
            codes.append(each.wait(timeout=max(deadline - time.monotonic(), 0.1)))
        except subprocess.TimeoutExpired:
            codes.append(None)
    return codes


def _moment(log: Path) -> str:
    """What the last line of the output is about."""
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    words = lines[-1].split() if lines else ["nothing"]
    return "validation" if "validation/" in lines[-1] else "step" if words[1:2] == ["step"] else " ".join(words[:2])


def _not_sealed(command: Command) -> str | None:
    folder = command.run_dir / "checkpoints" / command.phase
    names = sorted(f.name for f in folder.iterdir()) if folder.is_dir() else []
    sealed = sealed_steps(folder)
    if loose := [name for name in names if name not in map(str, sealed)]:
        return f"not sealed: {loose}"
    return damage(folder / str(sealed[0])) if sealed else None


def _kept(command: Command, outcome: Outcome) -> Path:
    """A copy of the output, which the next start would overwrite."""
    for process in range(command.processes):
        kept = log_of(command, process).with_suffix(f".stop{outcome.stops}.log")
        shutil.copy(log_of(command, process), kept)
    return log_of(command, 0).with_suffix(f".stop{outcome.stops}.log")
