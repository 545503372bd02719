"""`launch/local.sh` and `launch/slurm.sbatch` with stub commands: environment, output, and stopping of processes."""

import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"


def script(path: Path, text: str) -> Path:
    path.write_text("#!/usr/bin/env bash\n" + text, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def environment(command: Path | str, **settings: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("R2RANK_", "SLURM_"))}
    inherited.pop("JAX_PLATFORMS", None)
    return inherited | {"R2RANK_COMMAND": str(command)} | settings


def launch(*arguments: str, command: Path | str = "true", **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(LAUNCH / "local.sh"), *arguments],
        env=environment(command, **settings),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def gone(pid: int, within_s: float = 5.0) -> bool:
    """Whether a process has ended; a zombie has ended, too."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("separator", [[], ["--"]])
def test_environment_arguments_and_prefixes(tmp_path, separator):
    stub = script(
        tmp_path / "stub",
        'echo "$R2RANK_COORDINATOR $R2RANK_PROCESSES $JAX_PLATFORMS $OMP_NUM_THREADS|$1|$2|$#"\n'
        'echo "error" >&2\necho "me=$R2RANK_PROCESS"\n',
    )
    done = launch("3", *separator, "sft", "two words", command=stub, R2RANK_THREADS="2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 9
    coordinators = set()
    for i in range(3):
        mine = [line.removeprefix(f"[{i}] ") for line in lines if line.startswith(f"[{i}] ")]
        variables, error, me = mine
        assert (error, me) == ("error", f"me={i}")
        coordinator, rest = variables.split(" ", 1)
        assert rest == "3 cpu 2|sft|two words|2"
        coordinators.add(coordinator)
    (coordinator,) = coordinators
    host, port = coordinator.split(":")
    assert host == "127.0.0.1" and 1024 < int(port) < 32768


@pytest.mark.slow
def test_one_failure_stops_the_others(tmp_path):
    stub = script(
        tmp_path / "stub",
        f'if [[ $R2RANK_PROCESS == 1 ]]; then sleep 0.3; echo "last words"; exit 7; fi\n'
        f"sleep 60 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/self; wait\n",
    )
    started = time.monotonic()
    done = launch("2", "sft", command=stub)
    assert done.returncode == 7
    assert time.monotonic() - started < 10
    assert "[1] last words" in done.stdout
    assert "process 1 failed with exit code 7" in done.stderr
    for name in ("child", "self"):
        assert gone(int((tmp_path / name).read_text()))


def test_the_time_limit_stops_a_process_that_ignores_sigterm(tmp_path):
    stub = script(tmp_path / "stub", f"trap '' TERM; echo $$ > {tmp_path}/self; while true; do sleep 0.1; done\n")
    done = launch("1", "sft", command=stub, R2RANK_TIMEOUT_S="1", R2RANK_GRACE_S="1")
    assert done.returncode == 124
    assert "R2RANK_TIMEOUT_S=1" in done.stderr
    assert gone(int((tmp_path / "self").read_text()))


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_all(tmp_path, sent, code):
    stub = script(tmp_path / "stub", f"echo $$ > {tmp_path}/$R2RANK_PROCESS; sleep 60\n")
    with subprocess.Popen(
        [str(LAUNCH / "local.sh"), "2", "sft"],
        env=environment(stub),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as job:
        files = [tmp_path / "0", tmp_path / "1"]
        deadline = time.monotonic() + 10
        while not all(file.exists() and file.read_text().strip() for file in files):
            assert time.monotonic() < deadline, "the processes did not start"
            time.sleep(0.05)
        job.send_signal(sent)
        assert job.wait(timeout=15) == code
    assert all(gone(int(file.read_text())) for file in files)


@pytest.mark.parametrize("arguments", [(), ("2",), ("0", "sft"), ("two", "sft"), ("2", "--")])
def test_bad_usage(arguments):
    done = launch(*arguments)
    assert done.returncode == 2
    assert "usage" in done.stderr


def test_slurm_sets_the_same_environment(tmp_path):
    script(tmp_path / "scontrol", 'echo "node-a"; echo "node-b"\n')
    script(
        tmp_path / "srun",
        'while [[ $1 == --* ]]; do shift; done\nfor i in 0 1; do SLURM_NTASKS=2 SLURM_PROCID=$i "$@"; done\n',
    )
    stub = script(tmp_path / "stub", 'echo "$R2RANK_COORDINATOR $R2RANK_PROCESSES $R2RANK_PROCESS|$*"\n')
    settings = {"SLURM_JOB_ID": "20007", "SLURM_JOB_NODELIST": "node-[a-b]"}
    done = subprocess.run(
        [str(LAUNCH / "slurm.sbatch"), "rl", "--seed", "1"],
        env=environment(stub, PATH=f"{tmp_path}:{os.environ['PATH']}", **settings),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout.splitlines() == [f"node-a:10007 2 {i}|rl --seed 1" for i in (0, 1)], done.stderr
