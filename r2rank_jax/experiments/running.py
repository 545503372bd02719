"""Runs the commands of an experiment: in parallel where they can be, and resumed.

The output of a command is in `log.txt` beside what it writes. A command that is interrupted resumes from its last
checkpoint; one that has finished is not run again.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from r2rank_jax.config import differences, from_json, to_json
from r2rank_jax.errors import STOPPED, ConfigError, ExperimentError, Stopped
from r2rank_jax.experiments.jobs import Job
from r2rank_jax.files.atomic import replacing_file

COMMAND = (sys.executable, "-m", "r2rank_jax.cli")


class _Running(NamedTuple):
    job: Job
    process: subprocess.Popen[bytes]
    since: float


def is_done(job: Job) -> bool:
    """Whether a job has finished with this configuration. Fields that are newer than its run count as their default.

    Raises:
        ExperimentError: it has finished with another one.
    """
    if not job.done.is_file():
        return False
    record = json.loads(job.done.read_text(encoding="utf-8"))
    try:
        before = from_json(record["config"])
    except ConfigError as error:
        raise ExperimentError(f"{job.name} was run by another version: {error}; or choose another --runs") from error
    changed = differences(to_json(before), to_json(job.config))
    if changed:
        raise ExperimentError(
            f"{job.name} was run with other settings (then -> now): {'; '.join(changed)}; restore them, or choose "
            "another --runs"
        )
    return set(job.phases) <= set(record.get("phases", job.phases))  # records of older versions hold no phases


def run_all(jobs: list[Job], *, parallel: int) -> None:
    """Run the jobs that have not finished, each after those that it needs. To be called from the main thread.

    Args:
        jobs: in an order in which they could run one after the other.
        parallel: jobs that run at a time. Each gets its share of the processors that this process may use.

    Raises:
        ExperimentError: a job failed. Others that do not need it have been finished first.
    """
    waiting = [job for job in jobs if not is_done(job)]
    finished = {job.name for job in jobs} - {job.name for job in waiting}
    running: dict[int, _Running] = {}
    failed: list[Job] = []
    ended = threading.Event()  # by the SIGTERM of a batch system; Ctrl-C raises by itself
    before = signal.signal(signal.SIGTERM, lambda *_: ended.set()) or signal.SIG_DFL
    try:
        while waiting or running:
            if ended.is_set():
                raise Stopped("stopped as told; the same command runs what is left")
            for slot in range(parallel):
                ready = [job for job in waiting if set(job.after) <= finished]
                if slot not in running and ready:
                    waiting.remove(ready[0])
                    print(f"{ready[0].name}: started, {len(waiting)} more to start", flush=True)
                    running[slot] = _Running(ready[0], _start(ready[0], slot, parallel), time.monotonic())
            if not running:
                break  # what waits needs what failed
            time.sleep(0.2)
            for slot, (job, process, since) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[slot]
                minutes = (time.monotonic() - since) / 60
                if process.returncode == 0:
                    _write(job.done, {"config": to_json(job.config), "phases": job.phases})
                    finished.add(job.name)
                    print(f"{job.name}: done in {minutes:.1f} minutes", flush=True)
                elif process.returncode == STOPPED:
                    ended.set()
                else:
                    failed.append(job)
                    print(f"{job.name}: failed with exit code {process.returncode}", flush=True)
    finally:  # interrupted: the runs end as well, and the same command resumes them
        for one in running.values():
            one.process.terminate()
        for one in running.values():
            one.process.wait()
        signal.signal(signal.SIGTERM, before)
    if failed:
        names = ", ".join(job.name for job in failed)
        raise ExperimentError(
            f"{len(failed)} of {len(jobs)} jobs failed: {names}; the last line of {failed[0].log} "
            f"is: {_last_line(failed[0])}; the same command runs what is left"
        )


def _start(job: Job, slot: int, parallel: int) -> subprocess.Popen[bytes]:
    job.done.parent.mkdir(parents=True, exist_ok=True)
    if job.start is not None and not (job.directory / "checkpoints").exists():
        _adopt(job.start, job.directory)
    config = job.done.with_name(f"{job.done.stem.removeprefix('done-')}.config.json")
    _write(config, to_json(job.config))
    command = [*COMMAND, *job.arguments, "--config", str(config), "--run-dir", str(job.directory)]
    everything = os.sched_getaffinity(0)
    share = sorted(everything)[slot::parallel] or sorted(everything)
    os.sched_setaffinity(0, share)  # the child inherits it
    try:
        with job.log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    finally:
        os.sched_setaffinity(0, everything)


def _adopt(start: Path, directory: Path) -> None:
    """Give a new run directory the finished SFT of another one. The copy appears as a whole or not at all."""
    partial = directory / "checkpoints.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(start / "checkpoints/sft", partial / "sft")
    for name in ("tokenizer.json", "base"):
        if (start / name).is_dir():
            shutil.copytree(start / name, directory / name, dirs_exist_ok=True)
        elif (start / name).is_file():
            shutil.copy(start / name, directory / name)
    partial.rename(directory / "checkpoints")


def _write(path: Path, content: dict[str, Any]) -> None:
    with replacing_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _last_line(job: Job) -> str:
    lines = job.log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "empty")[:300]
