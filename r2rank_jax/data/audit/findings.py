"""What an audit found: which check, where, what is wrong there, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from r2rank_jax.data.prepared.settings import Array

SHOWN = 20  # findings of one check that are worded; the others are counted


@dataclass(frozen=True)
class Check:
    """One thing that must hold of a prepared folder."""

    name: str
    requires: str
    remedy: str
    fault: bool = True  # False: worth knowing, and honest data can be so


@dataclass
class Findings:
    """Everything found so far. A check with a million offending rows costs the memory of `SHOWN` of them."""

    worded: dict[Check, list[str]] = field(default_factory=dict)
    counts: dict[Check, int] = field(default_factory=dict)

    def add(self, check: Check, where: str, wrong: str) -> None:
        """Note one offence.

        Args:
            check: what should hold.
            where: file, with its row (parquet, from 0) or line (text, from 1) where there is one.
            wrong: what is there instead.
        """
        self.counts[check] = self.counts.get(check, 0) + 1
        worded = self.worded.setdefault(check, [])
        if len(worded) < SHOWN:
            worded.append(f"{where}: {wrong}")

    def add_rows(self, check: Check, file: str, rows: Array, wrong: Callable[[int], str], place: str = "row") -> None:
        """Note an offence for each of `rows`.

        Args:
            check: what should hold.
            file: of the rows, relative to the folder.
            rows: [n] numbers of the offending rows or lines.
            wrong: asked for the rows that will be shown, and for no others.
            place: "row" or "line".
        """
        room = SHOWN - len(self.worded.get(check, ()))
        for row in rows[:room].tolist():
            self.add(check, f"{file}, {place} {row}", wrong(row))
        if len(rows) > room:
            self.counts[check] = self.counts.get(check, 0) + len(rows) - room

    @property
    def faults(self) -> int:
        """Number of offences that are faults, not warnings."""
        return sum(count for check, count in self.counts.items() if check.fault)

    @property
    def warnings(self) -> int:
        """Number of offences that are none."""
        return sum(self.counts.values()) - self.faults

    def text(self) -> str:
        """All findings, faults first, each on a line of its own; empty where there are none."""
        lines = []
        for check in sorted(self.counts, key=lambda check: not check.fault):
            count, worded = self.counts[check], self.worded[check]
            lines.append(f"{'FAULT' if check.fault else 'warning'} {check.name} ({count}): {check.requires}")
            lines += [f"    {finding}" for finding in worded]
            if count > len(worded):
                lines.append(f"    ... and {count - len(worded)} more")
            lines.append(f"    remedy: {check.remedy}")
        return "".join(line + "\n" for line in lines)
