"""Two processes on one machine compute the same results as one."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from r2rank_jax.checkpoint.folders import sealed_steps
from r2rank_jax.files.checksums import damage
from tests.support.command_line import COMMAND, STEPS, environment, metrics

LAUNCH = Path(__file__).parents[2] / "launch/local.sh"
LIMIT_S = 240


def launch(*args: object, **settings: str) -> str:
    """Run `launch/local.sh 2 ARGS`, require success and return the output. The launcher stops its own processes."""
    settings |= {"R2RANK_COMMAND": " ".join(COMMAND), "R2RANK_TIMEOUT_S": str(LIMIT_S), "R2RANK_GRACE_S": "2"}
    done = subprocess.run(
        [str(LAUNCH), "2", *map(str, args)],
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=LIMIT_S + 20,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def require_same_learning(one: Path, two: Path, phase: str, names: tuple[str, ...]) -> None:
    """The same lines, and at every step the same numbers up to the order of summation."""
    lines, others = metrics(one, phase), metrics(two, phase)
    assert [(line["step"], line.keys()) for line in lines] == [(line["step"], line.keys()) for line in others]
    for name in names:
        a, b = ([line[name] for line in logged if name in line] for logged in (lines, others))
        assert len(a) == STEPS
        np.testing.assert_allclose(b, a, rtol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.timeout(2 * LIMIT_S + 60)
def test_two_processes_equal_one_in_sft(tiny, sft_run, tmp_path):
    run_dir = tmp_path / "run"
    args = ("sft", "--config", tiny.config, "--run-dir", run_dir, "--mesh.data", "2")
    printed = launch(*args)
    assert "[0] sft step    10" in printed
    assert "[1] sft step" not in printed, "only process 0 prints"
    require_same_learning(sft_run, run_dir, "sft", ("loss", "rationale_loss", "head_loss"))

    folder = run_dir / "checkpoints/sft"
    assert sealed_steps(folder) == [10, 9]
    assert damage(folder / "10") is None
    assert sorted(f.name for f in folder.iterdir()) == ["10", "9"]
    # Two processes resume from what two processes committed.
    # The newest commit lacks its seal, as if process 0 had been killed before it was written.
    (folder / "10/seal.json").unlink()
    printed = launch(*args)
    assert "[0] checkpoint sft/10 was complete and is sealed now" in printed
    assert "[0] sft: finished at step 10 of 10" in printed
    shutil.rmtree(folder / "10")
    assert "[0] sft: resuming at step 9 of 10" in launch(*args)
    require_same_learning(sft_run, run_dir, "sft", ("loss", "rationale_loss", "head_loss"))


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S + 60)
def test_two_processes_of_two_devices_equal_one_in_rl(tiny, sft_run, rl_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(sft_run, run_dir)  # committed by one process
    mesh = ("--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.slices", "2")  # a process imitates a machine
    devices = "--xla_force_host_platform_device_count=2 --xla_cpu_multi_thread_eigen=false"  # as in tests/conftest.py
    devices += " --xla_backend_optimization_level=0"
    launch("rl", "--config", tiny.config, "--run-dir", run_dir, *mesh, XLA_FLAGS=devices, PJRT_NPROC="64")
    require_same_learning(rl_run, run_dir, "rl", ("loss", "reward", "value"))
    assert sealed_steps(run_dir / "checkpoints/rl") == [10, 9]
