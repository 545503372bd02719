"""A run that was killed and resumed ends with the same bits as an undisturbed one."""

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from r2rank_jax.checkpoint.commits import Checkpoints
from r2rank_jax.checkpoint.folders import sealed_steps
from r2rank_jax.config import read
from r2rank_jax.phases import PhaseRecord
from r2rank_jax.sharding import make_mesh
from r2rank_jax.train.state import abstract_state
from tests.support.command_line import COMMAND, LIMIT_S, STEPS, environment, metrics

Moment = Callable[[float], bool]  # from the time at which the process was started


def run_until(args: list[str], moment: Moment, log: Path) -> bool:
    """Start `r2rank ARGS` and SIGKILL it as soon as `moment` holds. Return whether it was killed before it ended."""
    since, deadline = time.time(), time.monotonic() + LIMIT_S
    with log.open("w") as out:
        process = subprocess.Popen([*COMMAND, *args], env=environment(), stdout=out, stderr=subprocess.STDOUT)
    try:
        while process.poll() is None:
            if moment(since):
                os.kill(process.pid, signal.SIGKILL)
                break
            assert time.monotonic() < deadline, f"no end after {LIMIT_S} s:\n{log.read_text()}"
            time.sleep(0.001)
    finally:
        if process.poll() is None:
            process.kill()
        code = process.wait(30)
    assert code in (0, -signal.SIGKILL), log.read_text()
    return code != 0


def moments(run_dir: Path, phase: str, rng: random.Random) -> list[Moment]:
    """Moments to kill a process, chosen by what it has written.

    The first is after a first commit. Two follow in random order: while a commit is being written, and after a random
    number of further lines.
    """
    folder, lines_file = run_dir / "checkpoints" / phase, run_dir / "metrics.jsonl"

    def committed(since: float) -> bool:
        return bool(sealed_steps(folder))

    def half_written(since: float) -> bool:
        sealed = sealed_steps(folder)
        new = [f for f in folder.iterdir() if f.name not in map(str, sealed) and written_at(f) > since]
        return bool(sealed and new)

    further_lines = rng.randrange(1, 4)

    def more_lines(since: float) -> bool:
        sealed = sealed_steps(folder)
        if not sealed or written_at(lines_file) <= since:
            return False
        lines = [line for line in lines_file.read_text().splitlines() if f'"phase": "{phase}"' in line]
        return len(lines) >= sealed[0] + further_lines

    disturbed = [half_written, more_lines]
    rng.shuffle(disturbed)
    return [committed, *disturbed]


def written_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def run_through_kills(args: list[str], run_dir: Path, phase: str, seed: int, tmp_path: Path) -> None:
    """Run the command, killing it at every moment in turn and starting it again, until it ends by itself."""
    rng = random.Random(seed)
    kills_with_a_commit, resumed, log = 0, 0, tmp_path / "log"
    for moment in [*moments(run_dir, phase, rng), lambda _: False]:
        killed = run_until(args, moment, log)
        resumed += f"{phase}: resuming at step" in log.read_text()
        kills_with_a_commit += killed and bool(sealed_steps(run_dir / "checkpoints" / phase))
        if not killed:
            break
    assert not killed
    assert kills_with_a_commit >= 2 and resumed >= 1, (kills_with_a_commit, resumed, log.read_text())


def final_state(run_dir: Path, phase: str) -> tuple[dict[str, np.ndarray], PhaseRecord]:
    """Every array of the last commit, and the phase's record without its wall time."""
    config = read(run_dir / "config.json")
    optimizer = getattr(config, phase).optimizer
    checkpoints = Checkpoints(run_dir / "checkpoints" / phase, read_only=True)
    step = checkpoints.latest()
    assert step == STEPS
    state, record = checkpoints.restore(step, abstract_state(make_mesh(config.mesh), config.model, optimizer, STEPS))
    checkpoints.close()
    leaves = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(state)}
    assert {name.split("[")[0].split(".")[1] for name in leaves} == {"step", "root", "params", "optimizer", "average"}
    return leaves, dataclasses.replace(record, wall_s=0.0)


def require_equal_runs(undisturbed: Path, disturbed: Path, phase: str) -> None:
    (a, record_a), (b, record_b) = final_state(undisturbed, phase), final_state(disturbed, phase)
    assert a.keys() == b.keys()
    different = [name for name in a if a[name].dtype != b[name].dtype or a[name].tobytes() != b[name].tobytes()]
    assert not different
    assert record_a == record_b
    lines = metrics(undisturbed, phase)
    assert len(lines) == STEPS + 2  # a line a step, and two validations
    assert metrics(disturbed, phase) == lines


@pytest.mark.slow
def test_sft_after_kills_equals_undisturbed(tiny, sft_run, tmp_path):
    run_dir = tmp_path / "run"
    args = ["sft", "--config", str(tiny.config), "--run-dir", str(run_dir)]
    run_through_kills(args, run_dir, "sft", 1, tmp_path)
    require_equal_runs(sft_run, run_dir, "sft")


@pytest.mark.slow
def test_rl_after_kills_equals_undisturbed(tiny, sft_run, rl_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(sft_run, run_dir)
    args = ["rl", "--config", str(tiny.config), "--run-dir", str(run_dir)]
    run_through_kills(args, run_dir, "rl", 2, tmp_path)
    require_equal_runs(rl_run, run_dir, "rl")
