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
        'echo "$R2RANK_COORDINATOR $R2RANK_PROCESSES ${JAX_PLATFORMS-unset} $OMP_NUM_THREADS|$1|$2|$#"\n'
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
        assert rest == "3 unset 2|sft|two words|2"
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
    assert time.monotonic() - started < 15
    assert "[1] last words" in done.stdout
    assert "process 1 ended with exit code 7" in done.stderr
    for name in ("child", "self"):
        assert gone(int((tmp_path / name).read_text()))


def test_the_time_limit_stops_a_process_that_ignores_sigterm(tmp_path):
    stub = script(tmp_path / "stub", f"trap '' TERM; echo $$ > {tmp_path}/self; while true; do sleep 0.1; done\n")
    done = launch("1", "sft", command=stub, R2RANK_TIMEOUT_S="1", R2RANK_GRACE_S="1")
    assert done.returncode == 124
    assert "R2RANK_TIMEOUT_S=1" in done.stderr
    assert gone(int((tmp_path / "self").read_text()))


def start(stub: Path, tmp_path: Path, **settings: str) -> subprocess.Popen[str]:
    """Two processes of a stub, which has written its process id to `tmp_path/INDEX`."""
    job = subprocess.Popen(
        [str(LAUNCH / "local.sh"), "2", "sft"],
        env=environment(stub, **settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    files = [tmp_path / "0", tmp_path / "1"]
    deadline = time.monotonic() + 10
    while not all(file.exists() and file.read_text().strip() for file in files):
        assert time.monotonic() < deadline, "the processes did not start"
        time.sleep(0.05)
    return job


COMMITS = "trap 'echo committing; sleep 0.5; exit 75' TERM\n"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_all_commit(tmp_path, sent):
    stub = script(
        tmp_path / "stub", f"{COMMITS}echo $$ > {tmp_path}/$R2RANK_PROCESS; while true; do sleep 0.05; done\n"
    )
    with start(stub, tmp_path, R2RANK_RESTARTS="3") as job:
        job.send_signal(sent)
        out, _ = job.communicate(timeout=15)
    assert job.returncode == 75, out
    assert "[0] committing" in out and "[1] committing" in out
    assert all(gone(int((tmp_path / name).read_text())) for name in "01")


def test_a_second_signal_kills_all(tmp_path):
    stub = script(
        tmp_path / "stub", f"trap '' TERM; echo $$ > {tmp_path}/$R2RANK_PROCESS; while true; do sleep 0.05; done\n"
    )
    with start(stub, tmp_path) as job:
        job.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert job.poll() is None
        job.send_signal(signal.SIGTERM)
        out, _ = job.communicate(timeout=15)
    assert job.returncode == 143, out
    assert all(gone(int((tmp_path / name).read_text())) for name in "01")


def test_processes_that_do_not_commit_in_time_are_killed(tmp_path):
    stub = script(
        tmp_path / "stub", f"trap '' TERM; echo $$ > {tmp_path}/$R2RANK_PROCESS; while true; do sleep 0.05; done\n"
    )
    with start(stub, tmp_path, R2RANK_GRACE_S="1") as job:
        job.send_signal(signal.SIGTERM)
        out, _ = job.communicate(timeout=15)
    assert job.returncode == 137, out
    assert "killing the processes that have not ended: 0 1" in out


def attempts(tmp_path: Path, codes: str) -> str:
    """A stub whose attempts end with these codes, such as "1 75 0"; `tmp_path/attempts` counts them."""
    text = (
        f"codes=({codes})\n[[ $R2RANK_PROCESS == 0 ]] || exit 0\n"
        f"n=$(cat {tmp_path}/attempts 2>/dev/null || echo 0)\necho $((n + 1)) > {tmp_path}/attempts\n"
        "exit ${codes[$n]}\n"
    )
    return str(script(tmp_path / "stub", text))


@pytest.mark.parametrize(
    ("codes", "restarts", "code", "count"),
    [
        ("1 134 0", "2", 0, 3),  # a failed job starts again
        ("7 7 7", "1", 7, 2),  # a limited number of times
        ("7", "0", 7, 1),
        ("2 0", "3", 2, 1),  # a refused one never does
        ("75 75 1 75 0", "1", 0, 5),  # one that was stopped by another does, and this is no failure
        ("75 0", "0", 75, 1),
    ],
)
def test_restarts(tmp_path, codes, restarts, code, count):
    done = launch("2", "sft", command=attempts(tmp_path, codes), R2RANK_RESTARTS=restarts)
    assert done.returncode == code, done.stderr
    assert int((tmp_path / "attempts").read_text()) == count


@pytest.mark.parametrize(("others", "code"), [("2", 2), ("75", 75), ("9", 1)])
def test_a_refusal_or_a_stop_counts_more_than_the_failures_that_follow(tmp_path, others, code):
    stub = script(tmp_path / "stub", f"[[ $R2RANK_PROCESS == 0 ]] && exit 1; sleep 0.4; exit {others}\n")
    assert launch("2", "sft", command=stub).returncode == code


@pytest.mark.parametrize(
    ("settings", "devices"),
    [
        ({}, ["none", "none"]),
        ({"R2RANK_DEVICES": "2"}, ["0,1", "2,3"]),
        ({"FAKE_GPUS": "8"}, ["0,1,2,3", "4,5,6,7"]),
        ({"FAKE_GPUS": "8", "CUDA_VISIBLE_DEVICES": "4,5"}, ["0", "1"]),
        ({"FAKE_GPUS": "8", "JAX_PLATFORMS": "cpu"}, ["none", "none"]),
    ],
)
def test_devices_are_divided_between_the_processes(tmp_path, settings, devices):
    script(tmp_path / "nvidia-smi", 'for ((i = 0; i < ${FAKE_GPUS:-0}; i++)); do echo "GPU $i: H100"; done\n')
    stub = script(tmp_path / "stub", 'echo "devices=${R2RANK_LOCAL_DEVICES:-none}"\n')
    done = launch("2", "sft", command=stub, PATH=f"{tmp_path}:{os.environ['PATH']}", **settings)
    assert sorted(done.stdout.splitlines()) == [f"[{i}] devices={each}" for i, each in enumerate(devices)], done.stderr


def test_fewer_gpus_than_processes_are_refused(tmp_path):
    script(tmp_path / "nvidia-smi", "echo 'GPU 0: H100'\n")
    done = launch("2", "sft", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (done.returncode, done.stdout) == (2, "")
    assert "2 processes need at least as many GPUs, found 1" in done.stderr


@pytest.mark.parametrize("name", ["R2RANK_RESTARTS", "R2RANK_GRACE_S", "R2RANK_TIMEOUT_S", "R2RANK_DEVICES"])
def test_settings_must_be_numbers(name):
    done = launch("2", "sft", **{name: "many"})
    assert done.returncode == 2
    assert f"{name} must be a whole number, got 'many'" in done.stderr


@pytest.mark.parametrize("arguments", [(), ("2",), ("0", "sft"), ("two", "sft"), ("2", "--")])
def test_bad_usage(arguments):
    done = launch(*arguments)
    assert done.returncode == 2
    assert "usage" in done.stderr


def sbatch(tmp_path: Path, stub: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run slurm.sbatch with stubs of SLURM's commands: two tasks, one after the other; the largest exit code counts."""
    script(
        tmp_path / "scontrol",
        'case "$1 $2" in "show hostnames") echo "node-a"; echo "node-b";;'
        ' "show job") echo "X=1 Comment=${FAKE_COMMENT:-}";;'
        f' *) echo "$*" >> {tmp_path}/asked;; esac\n',
    )
    script(tmp_path / "sleep", "exit 0\n")  # it waits for SLURM to end it
    script(
        tmp_path / "srun",
        "while [[ $1 == --* ]]; do shift; done\nlargest=0\n"
        'for i in 0 1; do SLURM_NTASKS=2 SLURM_PROCID=$i SLURM_LOCALID=$i "$@" && code=0 || code=$?\n'
        "if ((code > largest)); then largest=$code; fi; done\nexit $largest\n",
    )
    fixed = {"SLURM_JOB_ID": "20007", "SLURM_JOB_NODELIST": "node-[a-b]", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return subprocess.run(
        [str(LAUNCH / "slurm.sbatch"), *arguments],
        env=environment(stub, **fixed, **settings),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    ("tasks", "devices"),
    [
        ({}, ["all", "all"]),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, ["all", "all"]),
        ({"SLURM_STEP_TASKS_PER_NODE": "2"}, ["0", "1"]),
        ({"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_GPUS_PER_TASK": "1"}, ["all", "all"]),
        ({"SLURM_STEP_TASKS_PER_NODE": "2", "R2RANK_LOCAL_DEVICES": "5"}, ["5", "5"]),
    ],
)
def test_slurm_sets_the_same_environment(tmp_path, tasks, devices):
    variables = "$R2RANK_COORDINATOR $R2RANK_PROCESSES $R2RANK_PROCESS ${R2RANK_LOCAL_DEVICES-all}"
    stub = script(tmp_path / "stub", f'echo "{variables}|$*"\n')
    done = sbatch(tmp_path, stub, "rl", "--seed", "1", **tasks)
    assert done.stdout.splitlines() == [f"node-a:10007 2 {i} {devices[i]}|rl --seed 1" for i in (0, 1)], done.stderr
    assert done.returncode == 0 and not (tmp_path / "asked").exists()


@pytest.mark.parametrize(
    ("code", "comment", "asked"),
    [
        (0, "", []),
        (2, "", []),
        (75, "", ["requeue 20007"]),
        (75, "failures:3", ["requeue 20007"]),
        (134, "", ["update JobId=20007 Comment=failures:1", "requeue 20007"]),
        (137, "failures:2", ["update JobId=20007 Comment=failures:3", "requeue 20007"]),
        (137, "failures:3", []),
    ],
)
def test_slurm_requeues_by_exit_code(tmp_path, code, comment, asked):
    done = sbatch(tmp_path, script(tmp_path / "stub", f"exit {code}\n"), "sft", FAKE_COMMENT=comment)
    assert done.returncode == code, done.stderr
    file = tmp_path / "asked"
    assert (file.read_text().splitlines() if file.exists() else []) == asked
