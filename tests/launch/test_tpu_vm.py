"""`launch/tpu_vm.sh` with a stub of gcloud that plays back states and runs commands in folders, one for each worker."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKERS = 2
ARGUMENTS = ["--name", "test", "--zone", "zone-a", "--type", "v5p-16", "--version", "v2-alpha-tpuv5", "--spot"]

# Keeps the state of the queued resource in a file. A worker is a folder; `ssh` runs the command there, except for
# `install`. A file `preempt-at-status-N` takes the slice away before the Nth look at the processes.
GCLOUD = """
set -euo pipefail
cd "{folder}"
echo "$*" >>calls
shift 2
case "$1 $2" in
  "queued-resources describe")
    if [[ -f refuse-describe ]]; then echo "ERROR: UNAVAILABLE" >&2; exit 1; fi
    if [[ ! -f queue ]]; then echo "ERROR: (gcloud) NOT_FOUND: Resource 'test' was not found" >&2; exit 1; fi
    if [[ $(<queue) == WAITING_FOR_RESOURCES ]]; then echo ACTIVE >queue; echo WAITING_FOR_RESOURCES; exit; fi
    cat queue
    ;;
  "queued-resources create")
    if [[ -f no-quota ]]; then echo "ERROR: quota" >&2; exit 1; fi
    echo WAITING_FOR_RESOURCES >queue
    for ((i = 0; i < {workers}; i++)); do rm -rf "worker$i" && mkdir "worker$i"; done
    ;;
  "queued-resources delete") rm queue ;;
  "tpu-vm describe") echo READY ;;
  "tpu-vm scp") for worker in worker?; do cp "$3" "$worker/"; done ;;
  "tpu-vm ssh")
    command=${{!#}}
    if [[ $command == *status ]]; then
      if [[ -f unreachable ]]; then exit 255; fi
      echo >>looks
      if [[ -f preempt-at-status-$(wc -l <looks) ]]; then
        echo SUSPENDED >queue
        for worker in worker?; do (cd "$worker" && bash r2rank/launch/tpu_worker.sh kill); done
        exit 255
      fi
    fi
    if [[ $command == *install && -f preempt-at-install ]]; then
      rm preempt-at-install
      echo SUSPENDED >queue
      exit 255
    fi
    if [[ $command == *install ]]; then exit "$(cat install-code 2>/dev/null || echo 0)"; fi
    for worker in worker?; do (cd "$worker" && HOME=$PWD WORKER=${{worker#worker}} bash -c "$command"); done
    ;;
  *) echo "unexpected: $*" >&2; exit 99 ;;
esac
"""
# Ends with the code in the file `codes`: a line for each start, a word for each worker. `wait` waits for SIGTERM.
R2RANK = """
set -euo pipefail
echo "$R2RANK_CLUSTER|$PWD|$*" >>"{folder}/starts$WORKER"
read -r -a codes < <(sed -n "$(wc -l <"{folder}/starts$WORKER")p" "{folder}/codes")
code=${{codes[$WORKER]}}
if [[ $code == wait ]]; then trap 'exit 75' TERM; while true; do sleep 0.05; done; fi
if [[ $code == deaf ]]; then trap '' TERM; while true; do sleep 0.05; done; fi
exit "$code"
"""


def stubs(folder: Path, *codes: str) -> dict[str, str]:
    """Write the stubs to `folder`, and the exit codes of the processes; return the environment."""
    (folder / "bin").mkdir()
    for path, text in ((folder / "bin/gcloud", GCLOUD), (folder / "bin/r2rank-stub", R2RANK)):
        path.write_text("#!/usr/bin/env bash\n" + text.format(folder=folder, workers=WORKERS), encoding="utf-8")
        path.chmod(0o755)
    (folder / "codes").write_text("".join(f"{line}\n" for line in codes), encoding="utf-8")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("R2RANK_")}
    return inherited | {
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
        "R2RANK_COMMAND": f"{folder}/bin/r2rank-stub",
        "R2RANK_RESTARTS": "2",
        "R2RANK_BACKOFF_S": "0",
        "R2RANK_POLL_S": "0",
        "R2RANK_GRACE_S": "2",
        "WORKER": "0",
    }


def launch(folder: Path, *codes: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "launch/tpu_vm.sh"), *ARGUMENTS, *options, "--", "sft", "--run-dir", "runs/two words"],
        env=stubs(folder, *codes),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def verbs(folder: Path) -> list[str]:
    """What was asked of gcloud, without the questions about states."""
    calls = (folder / "calls").read_text(encoding="utf-8").splitlines()
    words = [re.sub(r"^compute tpus (queued-resources|tpu-vm) ", "", call) for call in calls]
    short = []
    for call in words:
        if call.startswith("ssh"):
            command = call.split("--command ")[1]
            short.append(re.sub(r"^bash r2rank/launch/tpu_worker.sh (\w+).*", r"\1", command).split()[0])
        else:
            short.append(call.split()[0])
    return [verb for verb in short if verb not in ("describe", "status")]


INSTALL = ["scp", "mkdir", "install"]


def test_a_job_that_ends(tmp_path):
    done = launch(tmp_path, "0 0")
    assert done.returncode == 0, done.stderr
    assert verbs(tmp_path) == ["create", *INSTALL, "start", "delete"]
    for worker in range(WORKERS):
        folder = tmp_path / f"worker{worker}/r2rank"
        starts = (tmp_path / f"starts{worker}").read_text(encoding="utf-8")
        assert starts == f"auto|{folder}|sft --run-dir runs/two words\n"
        assert (folder / "pyproject.toml").is_file() and not (folder / ".git").exists()
    create = next(c for c in (tmp_path / "calls").read_text(encoding="utf-8").splitlines() if " create " in c)
    assert create.split(" create ")[1] == (
        "test --zone zone-a --node-id test --accelerator-type v5p-16 --runtime-version v2-alpha-tpuv5 --spot"
    )


@pytest.mark.slow
def test_preempted_once_then_done(tmp_path):
    (tmp_path / "preempt-at-status-3").touch()
    done = launch(tmp_path, "deaf deaf", "0 0")
    assert done.returncode == 0, done.stderr
    assert verbs(tmp_path) == ["create", *INSTALL, "start", "delete", "create", *INSTALL, "start", "delete"]
    assert "test is SUSPENDED" in done.stderr and "failure" not in done.stderr


@pytest.mark.slow
def test_preempted_during_installation(tmp_path):
    (tmp_path / "preempt-at-install").touch()
    done = launch(tmp_path, "0 0")
    assert done.returncode == 0, done.stderr
    assert verbs(tmp_path) == ["create", *INSTALL, "delete", "create", *INSTALL, "start", "delete"]
    assert "test is SUSPENDED" in done.stderr and "failure" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codes", "expected", "starts"),
    [
        (["2 2"], 2, 1),
        (["2 1"], 2, 1),  # its peer failed because of it
        (["1 2"], 2, 1),
        (["2 wait"], 2, 1),  # its peer is stopped at once
        (["75 75", "75 75", "75 75", "0 0"], 0, 4),  # stops do not count
        (["0 75", "0 0"], 0, 2),
        (["1 1", "137 0", "0 0"], 0, 3),
        (["3 75", "4 4", "5 5"], 5, 3),
        (["1 1", "2 2"], 2, 2),
    ],
    ids=str,
)
def test_exit_codes(tmp_path, codes, expected, starts):
    done = launch(tmp_path, *codes)
    assert done.returncode == expected, done.stderr
    assert verbs(tmp_path).count("start") == starts
    assert verbs(tmp_path).count("create") == 1 and verbs(tmp_path)[-1] == "delete"


@pytest.mark.slow
def test_processes_that_outlive_a_failure_are_stopped(tmp_path):
    done = launch(tmp_path, "7 deaf", "0 0")
    assert done.returncode == 0, done.stderr
    assert verbs(tmp_path) == ["create", *INSTALL, "start", "stop", "kill", "start", "delete"]


@pytest.mark.slow
@pytest.mark.parametrize(("file", "verb"), [("no-quota", "create"), ("install-code", "install")])
def test_failures_before_the_start_are_bounded(tmp_path, file, verb):
    (tmp_path / file).write_text("1")
    done = launch(tmp_path)
    assert done.returncode == 1
    assert verbs(tmp_path).count(verb) == 3 and "start" not in verbs(tmp_path)
    assert "giving up" in done.stderr and not (tmp_path / "queue").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("refuse-describe", ["delete"]),  # whether the slice exists is not known, so it is deleted at the end
        ("unreachable", ["create", *INSTALL, "start", "delete"] * 3),
    ],
)
def test_failures_of_the_cloud_are_bounded(tmp_path, file, expected):
    (tmp_path / file).touch()
    done = launch(tmp_path, "0 0", "0 0", "0 0")
    assert done.returncode == 1
    assert verbs(tmp_path) == expected, done.stderr


@pytest.mark.slow
def test_keep_and_setup(tmp_path):
    done = launch(tmp_path, "0 0", options=("--keep", "--setup", "touch 'a mount' || true; echo $0", "--project", "p"))
    assert done.returncode == 0, done.stderr
    assert "delete" not in verbs(tmp_path)
    assert all((tmp_path / f"worker{worker}/r2rank/a mount").exists() for worker in range(WORKERS))
    calls = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    assert all("--project p" in call for call in calls)


@pytest.mark.slow
@pytest.mark.parametrize(("codes", "expected"), [("wait wait", 75), ("wait deaf", 130)])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_processes(tmp_path, codes, expected, sent):
    command = [str(ROOT / "launch/tpu_vm.sh"), *ARGUMENTS, "--", "sft"]
    with subprocess.Popen(command, env=stubs(tmp_path, codes), stderr=subprocess.PIPE, text=True) as job:
        deadline = time.monotonic() + 30
        while not all((tmp_path / f"starts{worker}").exists() for worker in range(WORKERS)):
            assert time.monotonic() < deadline and job.poll() is None
            time.sleep(0.05)
        time.sleep(0.3)  # until the stubs have set their traps
        job.send_signal(sent)
        _, errors = job.communicate(timeout=30)
    assert job.returncode == expected, errors
    assert verbs(tmp_path)[-1] == "delete"


def test_dry_run_prints_and_runs_nothing(tmp_path):
    done = launch(tmp_path, options=("--dry-run", "--setup", "mount it"))
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "calls").exists() and not list(tmp_path.glob("starts*"))
    printed = done.stdout.splitlines()
    for line in printed:
        subprocess.run(["bash", "-n"], input=line, text=True, check=True)
    assert [line.split()[4] for line in printed if line.startswith("gcloud")] == [
        "describe", "create", "describe", "scp", *["ssh"] * 5, "describe", "delete",
    ]  # fmt: skip
    assert r"start\ sft\ --run-dir\ runs/two\\\ words" in done.stdout


@pytest.mark.parametrize(
    "arguments", [(), ARGUMENTS, [*ARGUMENTS, "--"], [*ARGUMENTS[2:], "--", "sft"], ["--nmae", "x"], ["--name"]]
)
def test_bad_usage(arguments):
    done = subprocess.run(
        [str(ROOT / "launch/tpu_vm.sh"), *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2 and "usage" in done.stderr
