"""Kill a phase whose run directory is in an object store while it sends a commit, and compare it with one on disk."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from r2rank_jax.checkpoint.folders import sealed_steps
from r2rank_jax.files.checksums import SEAL
from r2rank_jax.files.objects import ObjectFolder
from r2rank_jax.runs.session.stored import StoredRun
from tests.support.command_line import COMMAND, environment
from tests.support.runs.stops import LIMIT_S, arrays, differences
from tests.support.servers.object_stores import Store

KEEPING_ALL = (
    "import sys; from r2rank_jax.checkpoint.commits import Checkpoints; from r2rank_jax.cli import main; "
    "Checkpoints.__init__.__kwdefaults__['keep'] = 10**6; sys.exit(main())"
)
"""The command, but no commit is deleted."""
LATEST_S = 0.05
"""Latest kill, in seconds after the first object of a commit was seen."""


@dataclass
class Kills:
    """How often a phase was killed, and what was wrong."""

    sending: int = 0
    """Kills that left a commit without a seal in the store."""
    other: int = 0
    """Kills that came after the seal."""
    restored: list[int] = field(default_factory=list)
    """The newest sealed step after each kill."""
    finished: int = 0
    """Runs that ended and were compared as a whole."""
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Phase:
    """A phase with its settings."""

    name: str
    config: Path
    settings: tuple[str, ...]

    def line(self, command: tuple[str, ...], run_dir: Path | str) -> list[str]:
        """A command line."""
        return [*command, self.name, "--config", str(self.config), "--run-dir", str(run_dir), *self.settings]


def kill_often(
    phase: Phase, store: Store, root: Path, *, kills: int, seed: int, sft: Path | None = None, runs: int = 1
) -> Kills:
    """Kill a phase again and again while it sends commits; half of the time another machine goes on.

    Args:
        phase: to run.
        store: for the runs.
        root: scratch folder.
        kills: kills while a commit is sent.
        seed: of the moments.
        sft: a run directory on disk that every run starts with.
        runs: runs that must finish at least.
    """
    reference = root / f"{phase.name}-reference"
    if sft is not None:
        shutil.copytree(sft, reference)
    subprocess.run(
        phase.line((sys.executable, "-c", KEEPING_ALL), reference),
        env=environment(),
        timeout=LIMIT_S,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    states = {step: arrays(reference / f"checkpoints/{phase.name}/{step}") for step in _steps(reference, phase)}
    outcome, draw = Kills(), random.Random(seed)
    while outcome.sending < kills or outcome.finished < runs:
        address, work = store.new(), root / f"{phase.name}-work"
        if sft is not None:
            put_run(sft, address, work)
        while _killed(phase, address, work, outcome, draw, stop=outcome.sending >= kills):
            _compare(phase, address, root / "fresh", states, outcome)
            if draw.random() < 0.5:
                shutil.rmtree(work)
        found = fetched(address, root / "fresh")
        outcome.problems += [f"{address}: {what}" for what in differences(reference, found, phase.name)]
        outcome.finished += 1
        shutil.rmtree(root / "fresh")
        shutil.rmtree(work)
    return outcome


def _killed(phase: Phase, address: str, work: Path, outcome: Kills, draw: random.Random, *, stop: bool) -> bool:
    """Start a phase and kill it while it sends a commit; False if it finished.

    Args:
        phase: to run.
        address: of its run.
        work: folder of the machine.
        outcome: to which the kill is added.
        draw: draws the moment.
        stop: let it finish.
    """
    objects, skipped = ObjectFolder(address), draw.randrange(4)
    log = work.with_suffix(".log")
    with log.open("ab") as output:
        process = subprocess.Popen(
            phase.line(COMMAND, address),
            env=environment(R2RANK_WORK_DIR=str(work)),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline, seen = time.monotonic() + LIMIT_S, _sending(objects, phase)  # the remains of the last kill
    while process.poll() is None:
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"the phase did not end, see {log}")
        new = set() if stop else _sending(objects, phase) - seen
        seen |= new
        if new:
            skipped -= 1
        if new and skipped < 0:
            time.sleep(draw.uniform(0, LATEST_S))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            sending = bool(_sending(objects, phase))
            outcome.sending += sending
            outcome.other += not sending
            return True
        time.sleep(0.005)
    if process.returncode != 0:
        raise AssertionError(f"exit code {process.returncode}: {log.read_text(encoding='utf-8')[-2000:]}")
    return False


def _sending(objects: ObjectFolder, phase: Phase) -> set[str]:
    """Steps that have objects, but no seal."""
    names = objects.tags(f"checkpoints/{phase.name}/")
    steps = {name.split("/")[2] for name in names}
    return {step for step in steps if f"checkpoints/{phase.name}/{step}/{SEAL}" not in names}


def _compare(phase: Phase, address: str, work: Path, states: dict[int, dict[str, np.ndarray]], outcome: Kills) -> None:
    """Restore what a machine that knows nothing finds, and compare every bit with the run on disk."""
    found = fetched(address, work)
    steps = _steps(found, phase)
    outcome.restored.append(steps[0] if steps else 0)
    objects = ObjectFolder(address)
    names = objects.tags(f"checkpoints/{phase.name}/")
    in_store = [int(name.split("/")[2]) for name in names if name.endswith(SEAL)]
    if steps[:1] != sorted(in_store, reverse=True)[:1]:
        outcome.problems.append(f"{address}: restored {steps[:1]} of {in_store}")
    if steps:
        restored = arrays(found / f"checkpoints/{phase.name}/{steps[0]}")
        wanted = states[steps[0]]
        if restored.keys() != wanted.keys() or any(restored[k].tobytes() != wanted[k].tobytes() for k in wanted):
            outcome.problems.append(f"{address}: step {steps[0]} differs")
    shutil.rmtree(work)


def fetched(address: str, work: Path) -> Path:
    """The run directory as a machine finds it that has nothing of it."""
    shutil.rmtree(work, ignore_errors=True)
    run = StoredRun(address, work, use="read")
    with run.opened():
        return run.folder


def put_run(run_dir: Path, address: str, work: Path) -> None:
    """Put a run on disk into the store."""
    run = StoredRun(address, work, use="write")
    with run.opened() as mirror:
        shutil.copytree(run_dir, run.folder, dirs_exist_ok=True)
        for phase in sorted((run.folder / "checkpoints").iterdir()):
            for step in sorted(sealed_steps(phase)):
                mirror.send_commit(phase / str(step))


def _steps(run_dir: Path, phase: Phase) -> list[int]:
    return sealed_steps(run_dir / "checkpoints" / phase.name)
