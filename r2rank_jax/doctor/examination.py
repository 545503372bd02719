"""The examination: what every process checks alone, what process 0 compares, and what all of them try together.

Nothing waits without a limit. A process that is missing or stuck becomes a fault that names it, and what would need it
is not tried.
"""

from __future__ import annotations

import dataclasses
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import jax

from r2rank_jax.config import RunConfig
from r2rank_jax.doctor import agreement
from r2rank_jax.doctor.clocks import check_clocks
from r2rank_jax.doctor.devices import check_configuration, check_devices, check_memory
from r2rank_jax.doctor.findings import Finding, Outcome, attempt, fault, merged, named, ok
from r2rank_jax.doctor.inputs import check_inputs
from r2rank_jax.doctor.processes import Processes, within
from r2rank_jax.doctor.shared_folder import SCRATCH, check_shared, scratch
from r2rank_jax.doctor.speed import all_reduce, axes_to_reduce, commit_and_restore
from r2rank_jax.doctor.storage import check_cache, check_limits, check_run_dir, check_store
from r2rank_jax.doctor.versions import check_versions
from r2rank_jax.runs.session.one_writer import locked
from r2rank_jax.sharding import make_mesh

T = TypeVar("T")
STEPS = ("clocks", "run directory", "all-reduce", "checkpoints")
"""What the processes try together, in this order."""
LEAST_S = 1.0
"""Seconds that a check may take even if those before it took all the time."""
TOGETHER = ("configuration", "devices", "versions", "same configuration", "same versions", "same flags", "same code")
"""Checks without which a collective could hang."""


@dataclass
class Report:
    """Findings of all processes; complete on process 0 only."""

    findings: list[Finding] = field(default_factory=list)
    not_tried: list[str] = field(default_factory=list)
    stuck: bool = False
    """Whether a process is missing, or a check of this one goes on in the background."""

    @property
    def faults(self) -> list[Finding]:
        return [one for one in self.findings if one.verdict == "fault"]


def examine(
    config: RunConfig,
    run_dir: Path,
    environment: Mapping[str, str],
    processes: Processes,
    address: str | None = None,
) -> Report:
    """Carry out all checks. Every process of the job must call this, after it has joined the others.

    Args:
        config: of the run.
        run_dir: of the run; nothing is left there.
        environment: variables of this process.
        processes: those of the job.
        address: of the run directory in an object store; process 0 tries it.

    Returns:
        The report; on other processes than 0, only whether something is stuck.

    Raises:
        LostProcessError: process 0 does not answer.
    """
    report = Report()
    hosts = processes.gather("host", socket.gethostname())
    _name_missing(report, processes, hosts, "started")
    if not processes.share("all started", not report.stuck):
        report.stuck, report.not_tried = True, ["all other checks"]
        return report
    neighbours = processes.share("hosts", Counter(hosts.values()))[socket.gethostname()]

    own_address = address if processes.index == 0 else None
    findings, facts = _alone(config, run_dir, own_address, environment, neighbours, processes.limit_s, report)
    payload = {"findings": [dataclasses.asdict(one) for one in findings], "facts": facts, "stuck": report.stuck}
    answers = processes.gather("alone", payload)
    if processes.index == 0:
        _name_missing(report, processes, answers, "reported on itself")
        report.stuck |= any(answer["stuck"] for answer in answers.values())
        report.findings += merged({p: [Finding(**one) for one in a["findings"]] for p, a in answers.items()})
        if processes.count > 1:
            report.findings += agreement.compare({p: answer["facts"] for p, answer in answers.items()})
    _together(config, run_dir, processes, report)
    return report


def _name_missing(report: Report, processes: Processes, answers: Mapping[int, object], what: str) -> None:
    """On process 0: a fault for the processes without an answer."""
    missing = [] if processes.index else [p for p in range(processes.count) if p not in answers]
    if missing:
        report.stuck = True
        wanted = f"every process must have {what} within {processes.limit_s:g} s, got no answer from {named(missing)}"
        report.findings.append(
            fault("processes", wanted, "look at what they print, or raise --limit-s if they are only slow")
        )
    elif not processes.index and what == "started" and processes.count > 1:
        hosts = len(set(answers.values()))
        report.findings.append(ok("processes", f"{processes.count} on {hosts} host{'' if hosts == 1 else 's'}"))


def _alone(
    config: RunConfig,
    run_dir: Path,
    address: str | None,
    environment: Mapping[str, str],
    neighbours: int,
    limit_s: float,
    report: Report,
) -> tuple[list[Finding], dict[str, object]]:
    """What this process finds without the others.

    Args:
        config: of the run.
        run_dir: of the run.
        address: in an object store, if this process tries it.
        environment: variables of this process.
        neighbours: processes of the job on this host.
        limit_s: seconds for all checks together.
        report: is told if a check does not end.
    """
    checks: dict[str, Callable[[], Outcome | list[Finding]]] = {
        "code": lambda: Outcome([], agreement.code_facts()),
        "versions": check_versions,
        "devices": partial(check_devices, config.mesh),
        "configuration": partial(check_configuration, config),
        "memory": lambda: check_memory(config, neighbours * len(jax.local_devices())),
        "disk": partial(check_run_dir, config, run_dir),
        "cache": lambda: check_cache(jax.config.jax_compilation_cache_dir),  # type: ignore[attr-defined]
        "limits": partial(check_limits, config),
        "data": partial(check_inputs, config, run_dir),
    }
    if address is not None:
        checks["store"] = partial(check_store, address)
    end, findings = time.monotonic() + limit_s, []
    facts = agreement.configuration_facts(config) | agreement.flag_facts(environment)
    for name, work in checks.items():
        outcome, faults = _limited(name, work, max(end - time.monotonic(), LEAST_S), report)
        findings += faults
        if isinstance(outcome, Outcome):
            findings += outcome.findings
            facts |= outcome.facts
        elif outcome is not None:
            findings += outcome
    return findings, facts


def _limited(name: str, work: Callable[[], T], limit_s: float, report: Report) -> tuple[T | None, list[Finding]]:
    try:
        return within(limit_s, partial(attempt, name, work))
    except TimeoutError as error:
        report.stuck = True
        return None, [fault(name, f"{name} {error}", "see what it waits for, or raise --limit-s")]


def _together(config: RunConfig, run_dir: Path, processes: Processes, report: Report) -> None:
    """Try what needs every process, as long as nothing is found that would let it hang."""
    with ExitStack() as held:
        for step in STEPS:
            possible = _possible(step, report)
            if step == "run directory" and possible and processes.index == 0:
                _, faults = attempt("lock", partial(_hold, run_dir, held))
                report.findings += faults
                possible = not faults
            if not processes.share(f"try {step}", possible):
                report.not_tried += [step] if processes.index == 0 else []
                continue
            work = partial(_step, step, config, run_dir / SCRATCH, processes)
            findings, faults = _limited(step, work, processes.limit_s, report)
            _collect(step, [*(findings or []), *faults], processes, report)


def _hold(run_dir: Path, held: ExitStack) -> None:
    """Take the lock of the run directory and make a folder there."""
    held.enter_context(locked(run_dir))
    held.enter_context(scratch(run_dir))


def _possible(step: str, report: Report) -> bool:
    faults = {one.check for one in report.faults}
    if report.stuck:
        return False
    if step == "run directory":
        return "devices" not in faults and "disk" not in faults
    if step == "all-reduce":
        return not faults & {*TOGETHER}
    if step == "checkpoints":
        return not faults & {*TOGETHER, "disk", "lock", "run directory", "all-reduce"}
    return True


def _step(step: str, config: RunConfig, folder: Path, processes: Processes) -> list[Finding]:
    if step == "clocks":
        return check_clocks(processes)
    if step == "run directory":
        return check_shared(folder, processes)
    mesh = make_mesh(config.mesh)
    if step == "all-reduce":
        return [finding for axis in axes_to_reduce(mesh) for finding in all_reduce(mesh, axis)]
    return commit_and_restore(config, mesh, folder)


def _collect(step: str, findings: Sequence[Finding], processes: Processes, report: Report) -> None:
    """Bring the findings of a joined check to process 0, and name the processes that do not come back from it."""
    payload = {"findings": [dataclasses.asdict(one) for one in findings], "stuck": report.stuck}
    answers = processes.gather(f"after {step}", payload)
    if processes.index != 0:
        return
    _name_missing(report, processes, answers, f"ended {step!r}")
    report.stuck |= any(answer["stuck"] for answer in answers.values())
    report.findings += merged({p: [Finding(**one) for one in answer["findings"]] for p, answer in answers.items()})
