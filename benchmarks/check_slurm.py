"""Check launch/slurm.sbatch on a real SLURM: it stops with a commit, is requeued, and goes on by itself.

    SLURM_CONF=... python benchmarks/check_slurm.py --low low --high high       about 15 minutes, most of it waiting

The cluster needs two nodes and two partitions: jobs of `--high` preempt those of `--low` by requeueing them
(PreemptMode=REQUEUE, GraceTime of 30 seconds or more). `apt-get install slurm-wlm munge` is enough for one on the
loopback interface. Jobs of a tiny model are preempted, cancelled, and run out of time; each must end with all its steps
after at least one restart. A job with a wrong setting must fail once and stay failed. Two jobs show the devices that
their processes see. The exit status is 1 if something else happens. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from check_stops import prepared

from tests.support.command_line import COMMAND, environment, metrics

LAUNCH = Path(__file__).parents[1] / "launch/slurm.sbatch"
STEPS = 3000  # more than fit into a minute
LIMIT_S = 900
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
DEVICES = """
import jax
from r2rank_jax.cli.runs import join_processes
join_processes()
print("DEVICES", jax.local_device_count())
"""


@dataclass
class Job:
    """A job, and its output."""

    name: str
    number: str
    log: Path
    run_dir: Path

    def shown(self, field: str) -> str:
        """A field of `scontrol show job`."""
        text = subprocess.run(
            ["scontrol", "show", "job", self.number], capture_output=True, text=True, check=True
        ).stdout
        found = re.search(rf"\b{field}=(\S*)", text)
        return found.group(1) if found else ""

    def is_over(self) -> bool:
        """Whether it has ended for good."""
        return self.shown("JobState") in OVER

    def output(self) -> str:
        """What it has printed so far, in all its starts."""
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""


def wait_for(what: str, holds: Callable[[], bool]) -> bool:
    """Wait until a condition holds; False if it does not in time."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(1)
    print(f"waited in vain until {what}")
    return False


def submit(root: Path, name: str, *arguments: str, options: tuple[str, ...], env: dict[str, str]) -> Job:
    log, run_dir = root / f"{name}.log", root / name
    command = ["sbatch", "--parsable", f"--output={log}", *options, str(LAUNCH), *arguments]
    number = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip()
    return Job(name, number, log, run_dir)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--low", default="low", help="partition whose jobs are preempted")
    parser.add_argument("--high", default="high", help="partition whose jobs preempt")
    args = parser.parse_args()
    results: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        root.chmod(0o755)
        tiny = prepared(root)
        env = environment(R2RANK_COMMAND=" ".join(COMMAND), SLURM_CONF=os.environ["SLURM_CONF"])

        def train(name: str, *options: str, steps: int = STEPS, processes: int = 1, data: int = 1) -> Job:
            settings = ("--sft.steps", str(steps), "--sft.validate-every", "0", "--sft.checkpoint-every", "100000")
            where = ("--config", str(tiny.config), "--run-dir", str(root / name), "--mesh.data", str(data))
            nodes = (f"--nodes={processes}", f"--partition={args.low}", "--export=ALL")
            return submit(root, name, "sft", *where, *settings, options=(*nodes, *options), env=env)

        def judge(job: Job) -> None:
            wait_for(
                f"{job.name} ends", lambda: job.shown("JobState") in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
            )
            steps = [line["step"] for line in metrics(job.run_dir, "sft") if "loss" in line]
            resumed = re.findall(r"sft: resuming at step (\d+)", job.output())
            good = job.shown("JobState") == "COMPLETED" and resumed and steps == list(range(1, STEPS + 1))
            state = f"{job.shown('JobState')}, restarts {job.shown('Restarts')}, resumed at {', '.join(resumed)}"
            results[job.name] = f"{'ok' if good else 'WRONG'}: {state}, {len(steps)} steps logged"
            print(f"{job.name:12}{results[job.name]}", flush=True)
            if not good:
                print(job.output()[-3000:])

        def begun(job: Job) -> None:
            wait_for(f"{job.name} trains", lambda: "sft step    20" in job.output())

        # A wrong setting, and devices.
        wrong = train("refused", data=3)
        wait_for("refused fails", wrong.is_over)
        good = wrong.shown("JobState") == "FAILED" and wrong.shown("Restarts") == "0"
        results["refused"] = f"{'ok' if good else 'WRONG'}: {wrong.shown('JobState')}, exit {wrong.shown('ExitCode')}"
        print(f"{'refused':12}{results['refused']}", flush=True)
        python = env | {
            "R2RANK_COMMAND": f"{sys.executable} -c",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        }
        for name, options, expected in (
            ("per node", ("--nodes=2",), [4, 4]),
            ("per device", ("--nodes=1", "--ntasks-per-node=2", "--overcommit"), [1, 1]),
        ):
            job = submit(root, name, DEVICES, options=(*options, f"--partition={args.low}"), env=python)
            wait_for(f"{name} ends", job.is_over)
            seen = [int(count) for count in re.findall(r"DEVICES (\d+)", job.output())]
            results[name] = f"{'ok' if seen == expected else 'WRONG'}: local devices {seen}"
            print(f"{name:12}{results[name]}", flush=True)
            if seen != expected:
                print(job.output()[-3000:])

        # One node each.
        limited = train("time limit", "--time=1", "--signal=TERM@20")
        cancelled = train("cancelled")
        begun(cancelled)
        subprocess.run(["scancel", cancelled.number], check=True)
        judge(cancelled)
        judge(limited)
        # Both nodes.
        preempted = train("preempted", "--exclusive", processes=2, data=2)
        begun(preempted)
        urgent = [
            "sbatch",
            "--parsable",
            "--nodes=2",
            f"--partition={args.high}",
            "--output=/dev/null",
            "--wrap",
            "sleep 3",
        ]
        subprocess.run(urgent, check=True, capture_output=True)
        judge(preempted)
    print(json.dumps(results))
    return int(any(not result.startswith("ok") for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
