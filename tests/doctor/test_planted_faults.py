"""Faults are planted one at a time, and `r2rank doctor` finds each in 30 seconds; a clean set-up has none."""

import fcntl
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

import r2rank_jax
from r2rank_jax.runs.session.one_writer import WRITER
from tests.support.command_line import COMMAND, environment, make_tiny

LAUNCH = Path(__file__).parents[2] / "launch/local.sh"
LIMIT_S = 30  # unless others use the machine as well
HARD_LIMIT_S = 100  # of a test on a busy machine, after which the launcher kills the processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(HARD_LIMIT_S + 60)]


class Doctor:
    """Runs the command, and reads what it printed."""

    def __init__(self, folder: Path, tiny):
        self.folder, self.tiny, self.run_dir = folder, tiny, folder / "run"
        self.cwd = folder

    def examine(
        self,
        *args: object,
        processes: int = 1,
        of_process_1: str = "",
        first: str = "",
        run_dir: object = None,
        **settings,
    ):
        """Examine the tiny run.

        Args:
            args: further arguments.
            processes: started by `launch/local.sh` if more than one.
            first: lines of bash that every process carries out before it starts the command.
            of_process_1: lines of bash that only process 1 carries out before it starts the command.
            run_dir: another run directory.
            settings: variables of the environment.

        Returns:
            Exit code, check -> verdict, and the text. A check that has several lines has the worst verdict.
        """
        command = self.folder / "command"
        own = f"if [[ ${{R2RANK_PROCESS:-}} == 1 ]]; then\n:\n{of_process_1}\nfi"
        command.write_text(f'#!/usr/bin/env bash\n{first}\n{own}\nexec {" ".join(COMMAND)} "$@"\n')
        command.chmod(0o755)
        run = ["doctor", "--config", self.tiny.config, "--run-dir", run_dir or self.run_dir, *args]
        start = [command] if processes == 1 else [LAUNCH, processes]
        limits = {"R2RANK_COMMAND": str(command), "R2RANK_TIMEOUT_S": str(HARD_LIMIT_S), "R2RANK_GRACE_S": "1"}
        began = time.monotonic()
        done = subprocess.run(
            list(map(str, [*start, *run])),
            env=environment(**(limits if processes > 1 else {}), **settings),
            cwd=self.cwd,
            capture_output=True,
            text=True,
            timeout=HARD_LIMIT_S + 20,
            check=False,
        )
        seconds = time.monotonic() - began
        text = f"{done.stdout}\n{done.stderr}"
        busy = os.getloadavg()[0] > (os.cpu_count() or 1) + 1
        assert seconds < LIMIT_S or busy, f"{seconds:.0f} s\n{text}"
        verdicts: dict[str, str] = {}
        for verdict, check in re.findall(r"^(?:\[0\] )?(ok|warning|fault) +(\S.*?)  ", done.stdout, re.MULTILINE):
            if "fault" not in (verdict, verdicts.get(check)) or verdict == "fault":
                verdicts[check] = verdict
        return done.returncode, verdicts, text

    def find(self, faults: set[str], what: str, *args: object, **how) -> str:
        """Require exactly these faults, exit code 2, and a line that matches `what`."""
        code, verdicts, text = self.examine(*args, **how)
        assert {check for check, verdict in verdicts.items() if verdict == "fault"} == faults, text
        assert code == 2 and re.search(what, text), text
        assert re.search(r"doctor: would not run; \d+ faults?", text), text
        assert not (self.run_dir / "doctor.scratch").exists()
        return text


@pytest.fixture
def doctor(tiny, tmp_path) -> Doctor:
    return Doctor(tmp_path, tiny)


# -- a clean set-up ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2])
def test_a_clean_set_up_has_no_findings_and_nothing_is_left(doctor, processes):
    code, verdicts, text = doctor.examine("--mesh.data", processes, processes=processes)
    assert code == 0 and set(verdicts.values()) == {"ok"}, text
    assert "doctor: would run; 0 faults, 0 warnings" in text
    assert {"versions", "devices", "memory", "disk", "cache", "limits", "data", "traces", "checkpoints"} <= set(
        verdicts
    )
    together = {"same code", "same configuration", "same versions", "same data", "same flags", "clocks"}
    assert together | {"all-reduce data"} <= set(verdicts) or processes == 1
    assert not doctor.run_dir.exists()


def test_two_processes_of_two_devices_have_an_all_reduce_along_each_axis(doctor):
    devices = "--xla_force_host_platform_device_count=2 --xla_cpu_multi_thread_eigen=false"  # as in tests/conftest.py
    mesh = ("--mesh.data", 2, "--mesh.tensor", 2)
    code, verdicts, text = doctor.examine(*mesh, processes=2, XLA_FLAGS=devices, PJRT_NPROC="64")
    assert code == 0 and {"all-reduce data", "all-reduce tensor"} <= set(verdicts), text
    assert "all-reduce fsdp" not in verdicts


# -- ten faults and more ----------------------------------------------------------------------------------------------


def test_a_mesh_of_more_devices_than_there_are(doctor):
    text = doctor.find({"devices"}, "needs 2 devices, found 1", "--mesh.data", 2)
    assert "not tried: run directory, all-reduce, checkpoints" in text


def test_a_model_that_does_not_fit_into_memory(doctor):
    huge = ("--model.width", 8192, "--model.layers", 40, "--model.mlp-width", 32768)
    code, verdicts, text = doctor.examine(*huge)
    assert code == 2 and verdicts["memory"] == "fault", text
    assert re.search(r"a device of this machine has [\d.]+ GiB for programs, but the run needs [\d,.]+ GiB", text)


def test_a_run_directory_that_cannot_be_made(doctor):
    (doctor.folder / "file").write_text("in the way")
    doctor.find({"disk"}, "--run-dir must be a folder to write", run_dir=doctor.folder / "file/run")


def test_a_disk_that_is_full(doctor):
    """A file system of 8 MiB in a mount namespace of its own, for commits of 10 MiB."""
    unshare = "unshare --user --map-root-user --mount"
    if subprocess.run(["bash", "-c", f"{unshare} true"], capture_output=True, check=False).returncode:
        pytest.skip("needs user namespaces")
    small = doctor.folder / "small"
    small.mkdir()
    again = f'if [[ -z $INSIDE ]]; then export INSIDE=1; exec {unshare} "$0" "$@"; fi\n'
    again += f"mount -t tmpfs -o size=8m none {small}"
    what = r"small/run must hold 5 commits of up to [\d.]+ MiB, [\d.]+ MiB more, got 8 MiB free"
    doctor.find({"disk"}, what, "--model.vocabulary", 40_000, run_dir=small / "run", first=again)


def test_data_that_are_missing(doctor):
    doctor.find({"data"}, "has no manifest.json", "--data.directory", doctor.folder / "nothing")


def test_data_that_are_damaged(doctor):
    data = shutil.copytree(doctor.tiny.data, doctor.folder / "data")
    with next((data / "candidates/leave_one_out").iterdir()).open("a") as file:
        file.write("\n")
    doctor.find({"data"}, "hash does not match", "--data.directory", data)


def test_traces_that_are_missing(doctor):
    doctor.find({"traces"}, "traces must be at", "--data.traces", doctor.folder / "nothing.jsonl")


def test_other_data_on_one_process(doctor):
    """Both processes name the folder alike, relative to different working directories."""
    shutil.copytree(doctor.tiny.data, doctor.folder / "data")
    other = doctor.folder / "other"
    other.mkdir()
    make_tiny(other)
    with (other / "data/traces.jsonl").open() as file:
        lines = file.readlines()
    lines[0] = lines[0].replace("{", '{"note": "another file", ', 1)
    (other / "data/traces.jsonl").write_text("".join(lines))
    paths = ("--data.directory", "data", "--data.traces", "data/traces.jsonl", "--mesh.data", 2)
    what = "got process 1 with traces: "
    doctor.find({"same data"}, what, *paths, processes=2, of_process_1=f"cd {other}")


def test_another_configuration_on_one_process(doctor):
    other = 'set -- "$@" --rl.steps 11'
    what = r"got process 1 with rl\.steps: 10 -> 11"
    doctor.find({"same configuration"}, what, "--mesh.data", 2, processes=2, of_process_1=other)


def test_other_code_on_one_process(doctor):
    package = Path(r2rank_jax.__file__).parent
    copy = shutil.copytree(package, doctor.folder / "code/r2rank_jax", ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "types.py").open("a") as file:
        file.write("# another commit\n")
    other = f"export PYTHONPATH={copy.parent}"
    text = doctor.find(
        {"same code"}, "got process 1 with .*source: ", "--mesh.data", 2, processes=2, of_process_1=other
    )
    assert "not tried: all-reduce, checkpoints" in text


def test_other_versions_on_one_process(doctor):
    """Metadata of a package that this version of r2rank_jax does not accept."""
    fake = doctor.folder / "site/flax-0.1.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: flax\nVersion: 0.1\n")
    other = f'export PYTHONPATH={fake.parent}:"$PYTHONPATH"'
    found = {"versions", "same versions"}
    text = doctor.find(found, r"process 1: r2rank-jax requires flax", "--mesh.data", 2, processes=2, of_process_1=other)
    assert 'remedy: run `pip install "flax' in text and "with flax: 0." in text


def test_other_flags_on_one_process(doctor):
    other = 'export XLA_FLAGS="$XLA_FLAGS --xla_cpu_multi_thread_eigen=false"'
    doctor.find({"same flags"}, "got process 1 with XLA_FLAGS", "--mesh.data", 2, processes=2, of_process_1=other)


def test_a_run_directory_that_is_not_shared(doctor):
    (doctor.folder / "other/runs").mkdir(parents=True)
    found = {"run directory"}
    what = "must see .*/run of process 0, got process 1 without its file"
    text = doctor.find(found, what, "--mesh.data", 2, processes=2, run_dir="run", of_process_1="cd other")
    assert "not tried: checkpoints" in text


def test_another_job_in_the_run_directory(doctor):
    doctor.run_dir.mkdir()
    with (doctor.run_dir / WRITER).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        doctor.find({"lock"}, "one job at a time may write to")
    assert [path.name for path in doctor.run_dir.iterdir()] == [WRITER]


def test_a_process_that_joins_and_answers_no_more(doctor):
    idle = "from r2rank_jax.cli.runs import join_processes; join_processes(); import time; time.sleep(90)"
    stuck = f"exec {COMMAND[0]} -c '{idle}'"
    what = "every process must have started within 5 s, got no answer from process 1"
    text = doctor.find({"processes"}, what, "--limit-s", 5, "--mesh.data", 2, processes=2, of_process_1=stuck)
    assert "doctor: would not run; 1 fault, 0 warnings; not tried: all other checks" in text


def test_process_0_stopped_in_the_middle_is_named_by_the_other(doctor):
    """Process 0 holds the coordination service, which then answers nobody and keeps no time limit."""
    stop = (
        "import os, signal, sys, r2rank_jax.doctor.examination as e; from r2rank_jax.cli import main; "
        "e._possible = lambda *a: os.kill(os.getpid(), signal.SIGSTOP); sys.exit(main())"
    )
    script = f'if [[ $R2RANK_PROCESS == 0 ]]; then exec {COMMAND[0]} -c "{stop}" "$@"; fi'
    code, verdicts, text = doctor.examine("--limit-s", 4, "--mesh.data", 2, processes=2, first=script)
    # Which of the two, depends on whether process 1 was sending or waiting.
    named = re.search(
        r"\[1\] r2rank: process 0(, which holds the coordination service,)? must (answer|take a message)", text
    )
    assert code == 2 and not verdicts and named, text


# -- what the run would survive ---------------------------------------------------------------------------------------


def test_a_cache_that_cannot_be_written_is_a_warning(doctor):
    (doctor.folder / "file").write_text("in the way")
    code, verdicts, text = doctor.examine(JAX_COMPILATION_CACHE_DIR=str(doctor.folder / "file/cache"))
    assert code == 0 and [c for c, verdict in verdicts.items() if verdict != "ok"] == ["cache"], text
    assert "1 warning" in text


def test_a_clock_that_is_wrong_is_a_warning(doctor):
    (doctor.folder / "site").mkdir()
    (doctor.folder / "site/sitecustomize.py").write_text(
        "import time\nreal = time.time\ntime.time = lambda: real() + 100\n"
    )
    other = f'export PYTHONPATH={doctor.folder / "site"}:"$PYTHONPATH"'
    code, verdicts, text = doctor.examine("--mesh.data", 2, processes=2, of_process_1=other)
    assert code == 0 and [c for c, verdict in verdicts.items() if verdict != "ok"] == ["clocks"], text
    assert re.search(r"from that of process 0, got process 1 up to (99,9\d\d|100,0\d\d)\.\d ms", text)
