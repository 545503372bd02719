"""What a check found: a verdict, the figure measured and what to change; and the findings of all processes as text."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from r2rank_jax.errors import R2RankError

T = TypeVar("T")
MIB, GIB = 2**20, 2**30
Verdict = Literal["ok", "warning", "fault"]
LONGEST_REASON = 300
"""Characters of an error of another library that a finding quotes."""


@dataclass(frozen=True)
class Finding:
    """The result of one check on one process, or on all of them together."""

    check: str
    """Name of the check; several findings may share it."""
    verdict: Verdict
    """ok; warning: the run works, but worse than it could; fault: the run would not start, or not end."""
    what: str
    """The figure measured; of a warning or a fault: the requirement and what came."""
    remedy: str = ""
    """What to change; empty if ok."""


@dataclass(frozen=True)
class Outcome:
    """What one check gives: findings, and facts that must be the same on every process."""

    findings: Sequence[Finding]
    facts: Mapping[str, Any] = field(default_factory=dict)


def ok(check: str, what: str) -> Finding:
    """A finding that needs no remedy."""
    return Finding(check, "ok", what)


def warning(check: str, what: str, remedy: str) -> Finding:
    """A finding that a run works in spite of."""
    return Finding(check, "warning", what, remedy)


def fault(check: str, what: str, remedy: str) -> Finding:
    """A finding that keeps a run from starting or from ending."""
    return Finding(check, "fault", what, remedy)


def divided(message: str) -> tuple[str, str]:
    """A message of the package as what is wrong and the remedy, which is its last clause or its last sentence."""
    ends = list(re.finditer(r"; |\. (?=[A-Z])", message))
    if not ends:
        return message, "change what the message names"
    return message[: ends[-1].start()], message[ends[-1].end() :]


def size_text(size: float) -> str:
    """Bytes in GiB or MiB with three digits or so."""
    unit, name = (GIB, "GiB") if size >= GIB else (MIB, "MiB")
    value = size / unit
    return f"{value:,.0f} {name}" if value >= 100 else f"{value:.3g} {name}"


def of_error(check: str, error: Exception) -> Finding:
    """A fault from the error that the run itself would raise."""
    if isinstance(error, R2RankError):
        return fault(check, *divided(str(error)))
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return fault(check, f"{where}{error.strerror or error}", "mend this")
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return fault(check, f"{reason:.{LONGEST_REASON}}", "mend this, or report it with its message")


def attempt(check: str, work: Callable[[], T]) -> tuple[T | None, list[Finding]]:
    """The result of `work`, or the fault that its error is."""
    try:
        return work(), []
    except Exception as error:  # of a loader, a library or the file system: whatever stops a run is a finding
        return None, [of_error(check, error)]


def named(processes: Iterable[int]) -> str:
    """`process 1`, or `processes 1, 2 and 5`."""
    names = [str(process) for process in sorted(processes)]
    if len(names) == 1:
        return f"process {names[0]}"
    return f"processes {', '.join(names[:-1])} and {names[-1]}"


def merged(by_process: Mapping[int, Sequence[Finding]]) -> list[Finding]:
    """The findings of all processes: what is ok as process 0 says it, everything else with the processes it is about.

    The processes are left out where all that report a check say the same, or process 0 alone reports it, for all.

    Args:
        by_process: findings of each process, in the order of the checks.
    """
    order = list(dict.fromkeys(one.check for findings in by_process.values() for one in findings))
    lines = []
    for check in order:
        own = {process: [f for f in findings if f.check == check] for process, findings in by_process.items()}
        problems: dict[Finding, list[int]] = {}
        for process, findings in own.items():
            for one in findings:
                if one.verdict != "ok":
                    problems.setdefault(one, []).append(process)
        for one, processes in problems.items():
            reporting = [process for process, findings in own.items() if findings]
            prefix = "" if processes == reporting and 0 in processes else f"{named(processes)}: "
            lines.append(dataclasses.replace(one, what=prefix + one.what))
        if not problems:
            first = min(process for process, findings in own.items() if findings)
            lines += own[first]
    return lines


def text(findings: Sequence[Finding], not_tried: Sequence[str] = ()) -> str:
    """One aligned line per finding, a remedy below each warning and fault, and a summary last.

    Args:
        findings: of all processes, see `merged`.
        not_tried: names of the checks that the faults prevented.
    """
    width = max(len(one.check) for one in findings)
    lines = []
    for one in findings:
        lines.append(f"{one.verdict:<8} {one.check:<{width}}  {one.what}")
        if one.remedy:
            lines.append(f"{'':<8} {'':<{width}}  remedy: {one.remedy}")
    faults, warnings = (sum(one.verdict == verdict for one in findings) for verdict in ("fault", "warning"))
    answer = "would not run" if faults else "would run"
    skipped = f"; not tried: {', '.join(not_tried)}" if not_tried else ""
    lines.append(f"doctor: {answer}; {_count(faults, 'fault')}, {_count(warnings, 'warning')}{skipped}")
    return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
